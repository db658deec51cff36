//! What a job costs while many others wait: jobs are put in and drained again at each filling, beside the same with few
//! waiting in the same minutes, so that a noisy machine is seen by both.

use std::fmt::Write as _;
use std::time::Instant;

use promptq_common::broker::Broker;
use promptq_common::job::{BatchName, Queue};

use super::figures::{Cost, Filled, FilledRow, median, ratios, today};
use super::hands::{SLOTS, clocked, drain, job, put};
use super::place::Place;
use super::{Figures, Kind};
use crate::account::number;
use crate::library::subscribe;

/// What the others are compared with, and the fillings after it.
const FEW: usize = 10_000;
/// Jobs of one turn.
const TURN: usize = 10_000;
/// Turns of each: one warms up.
const TURNS: usize = 7;
const PRODUCERS: usize = 2;

/// Fills one backend up to so many jobs, tenfold each time.
pub async fn fill(figures: &mut Figures, kind: Kind, most: usize) -> anyhow::Result<String> {
    let (few, many) = (Stock::start(kind).await?, Stock::start(kind).await?);
    few.put(FEW).await?;
    let (mut rows, mut waiting, mut said) = (Vec::new(), 0, String::new());
    let mut next = FEW;
    loop {
        let (more, began) = (next - waiting, Instant::now());
        let (memory, disk) = (many.place.memory()?, many.place.disk()?);
        let cost = clocked(&many.place, more, many.put(more)).await?;
        writeln!(said, "{kind}: to {next} waiting in {} s, {:.1} us/job", began.elapsed().as_secs(), cost.sum())?;
        waiting = next;
        let each = |now: f64, before: f64| (now - before) / number(more);
        let (memory, disk) = (each(many.place.memory()?, memory), each(many.place.disk()?, disk));
        let row = by_turns(&few, &many).await?;
        rows.push(FilledRow { waiting, memory, disk, payload: payload()?, ..row });
        if waiting >= most {
            break;
        }
        next = most.min(waiting * 10);
    }
    figures.fill.insert(kind.name().to_owned(), Filled { date: today(), rows });
    Ok(said)
}

async fn by_turns(few: &Stock, many: &Stock) -> anyhow::Result<FilledRow> {
    let (mut puts, mut drains) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for turn in 0..TURNS {
        for (side, stock) in [few, many].into_iter().enumerate() {
            let (put, drained) = stock.turn().await?;
            if turn > 0 {
                puts[side].push(put);
                drains[side].push(drained);
            }
        }
    }
    Ok(FilledRow {
        waiting: 0,
        enqueue: median(&puts[1]),
        drain: median(&drains[1]),
        enqueue_ratio: ratios(&puts[0], &puts[1]),
        drain_ratio: ratios(&drains[0], &drains[1]),
        memory: 0.0,
        disk: 0.0,
        payload: 0.0,
    })
}

/// A queue with jobs in it.
struct Stock {
    place: Place,
    producers: Vec<Broker>,
    worker: Broker,
}

impl Stock {
    async fn start(kind: Kind) -> anyhow::Result<Self> {
        let place = Place::start(kind)?;
        let access = place.access()?;
        let mut producers = Vec::new();
        for _ in 0..PRODUCERS {
            producers.push(Broker::connect(&access).await?);
        }
        Ok(Self { worker: Broker::connect(&access).await?, producers, place })
    }

    async fn put(&self, jobs: usize) -> anyhow::Result<()> {
        put(&self.producers, &Queue::standard(), jobs).await
    }

    /// Puts in some and takes as many out.
    async fn turn(&self) -> anyhow::Result<(Cost, Cost)> {
        let put = clocked(&self.place, TURN, self.put(TURN)).await?;
        let consumer = subscribe(&self.worker, &[Queue::standard()]).await?;
        let drained = clocked(&self.place, TURN, drain(vec![consumer], TURN, SLOTS)).await?;
        Ok((put, drained))
    }
}

/// Bytes of one encoded job.
fn payload() -> anyhow::Result<f64> {
    let job = job(&Queue::standard(), &BatchName::new("scaling")?, 1);
    Ok(number(promptq_common::codec::encode_job(&job)?.len()))
}
