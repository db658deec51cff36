//! What a job costs that shares its broker with jobs of many queues: the same number of jobs in one queue and spread over
//! many, by turns.

use promptq_common::broker::Broker;
use promptq_common::job::{BatchName, Queue};

use super::figures::{Cost, Spreading, SpreadingRow, median, ratios, today};
use super::hands::{SLOTS, clocked, drain, job};
use super::place::Place;
use super::{Figures, Kind};
use crate::account::number;
use crate::library::{enqueue, subscribe};

/// Jobs of one turn: a submission of 50 for each of a thousand queues.
const JOBS: usize = 50_000;
const SUBMISSION: usize = 50;
/// Turns of each: one warms up.
const TURNS: usize = 4;

/// One backend over so many queues, beside one.
pub async fn queues(figures: &mut Figures, kind: Kind, counts: &[usize]) -> anyhow::Result<String> {
    let mut rows = Vec::new();
    for &count in counts {
        let (one, many) = (Shelf::start(kind, 1).await?, Shelf::start(kind, count).await?);
        let (mut ones, mut manys) = (Costs::default(), Costs::default());
        for turn in 0..TURNS {
            let (first, second) = (one.turn().await?, many.turn().await?);
            if turn > 0 {
                ones.note(first);
                manys.note(second);
            }
        }
        rows.push(SpreadingRow {
            queues: count,
            enqueue: median(&manys.0[0]),
            drain_all: median(&manys.0[1]),
            drain_one: median(&manys.0[2]),
            enqueue_ratio: ratios(&ones.0[0], &manys.0[0]),
            drain_all_ratio: ratios(&ones.0[1], &manys.0[1]),
            drain_one_ratio: ratios(&ones.0[2], &manys.0[2]),
            memory: (many.memory - one.memory) / number(count),
        });
    }
    figures.queues.insert(kind.name().to_owned(), Spreading { date: today(), jobs: JOBS, rows });
    Ok(String::new())
}

#[derive(Default)]
struct Costs([Vec<Cost>; 3]);

impl Costs {
    fn note(&mut self, costs: [Cost; 3]) {
        for (list, cost) in self.0.iter_mut().zip(costs) {
            list.push(cost);
        }
    }
}

/// A broker with so many queues.
struct Shelf {
    place: Place,
    producer: Broker,
    worker: Broker,
    queues: Vec<Queue>,
    /// Of its servers, with one job in each queue and before it.
    memory: f64,
}

/// Jobs of a turn that one queue gets besides, for a worker that knows no other.
const ALONE: usize = 10_000;

impl Shelf {
    async fn start(kind: Kind, count: usize) -> anyhow::Result<Self> {
        let place = Place::start(kind)?;
        let access = place.access()?;
        let (producer, worker) = (Broker::connect(&access).await?, Broker::connect(&access).await?);
        let queues: Vec<_> = (0..count).map(|n| Queue::new(&format!("line-{n}"))).collect::<Result<_, _>>()?;
        let before = place.memory()?;
        let mut shelf = Self { place, producer, worker, queues, memory: 0.0 };
        shelf.put(&shelf.queues, count).await?;
        shelf.memory = shelf.place.memory()? - before;
        shelf.drain(&shelf.queues, count).await?;
        Ok(shelf)
    }

    /// Puts in so many, a submission to each queue in turn.
    async fn put(&self, queues: &[Queue], jobs: usize) -> anyhow::Result<()> {
        let each = SUBMISSION.min(jobs.div_ceil(queues.len()));
        for (from, queue) in (0..jobs).step_by(each).zip(queues.iter().cycle()) {
            // A batch is of one queue.
            let batch = BatchName::new(queue.as_str())?;
            let jobs: Vec<_> = (from..jobs.min(from + each)).map(|n| job(queue, &batch, n)).collect();
            enqueue(&self.producer, &jobs).await?;
        }
        Ok(())
    }

    async fn drain(&self, queues: &[Queue], jobs: usize) -> anyhow::Result<()> {
        let consumer = subscribe(&self.worker, queues).await?;
        drain(vec![consumer], jobs, SLOTS).await
    }

    /// What it costs to put a job in; to drain it by a worker of all queues; and by a worker of one of them, while jobs
    /// wait in all.
    async fn turn(&self) -> anyhow::Result<[Cost; 3]> {
        let put = clocked(&self.place, JOBS, self.put(&self.queues, JOBS)).await?;
        let first = &self.queues[..1];
        self.put(first, ALONE).await?;
        let alone = clocked(&self.place, ALONE, self.drain(first, ALONE)).await?;
        let all = clocked(&self.place, JOBS, self.drain(&self.queues, JOBS)).await?;
        Ok([put, all, alone])
    }
}
