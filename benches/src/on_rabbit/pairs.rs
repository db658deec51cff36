//! The limit and promptq by turns in the same minutes, pair by pair: jobs per second, and processor time for each job.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{Servers, Stage, limit};
use crate::facade::{Facade, jobs};
use crate::meter::{Rate, clocked};
use crate::spread::Spread;

/// Everything that was measured, by what it is a measurement of.
#[derive(Default)]
struct Book(BTreeMap<(u8, &'static str), Vec<Rate>>);

const ENQUEUE: (u8, &str) = (0, "limit enqueue");
const DRAIN: (u8, &str) = (1, "limit drain");

/// So many pairs of so many jobs each; the table.
pub async fn pairs(stage: Stage, pairs: usize, count: usize) -> anyhow::Result<String> {
    let mut book = Book::default();
    for _ in 0..pairs {
        let servers = Servers::start(stage).await?;
        limit::declare(&servers.rabbit, stage.queues).await?;
        book.note(ENQUEUE, clocked(|| servers.time(), count, limit::enqueue(&servers.rabbit, count)).await?);
        book.note(DRAIN, clocked(|| servers.time(), count, limit::drain(&servers.rabbit, count)).await?);
        for hands in [1, 2] {
            facade(&mut book, &servers, count, hands).await?;
        }
    }
    Ok(book.table(stage, pairs, count))
}

async fn facade(book: &mut Book, servers: &Servers, count: usize, hands: usize) -> anyhow::Result<()> {
    let facade = Facade::connect(&servers.access()?, hands).await?;
    // Queues are declared, connections made, allocators warm.
    facade.live(&jobs(1_000, None)?).await?;
    let (waiting, live) = (jobs(count, None)?, jobs(count, None)?);
    let names = if hands == 1 {
        [(2, "Broker enqueue, 1"), (4, "Broker drain, 1"), (6, "Broker live, 1 + 1")]
    } else {
        [(3, "Broker enqueue, 2"), (5, "Broker drain, 2"), (7, "Broker live, 2 + 2")]
    };
    book.note(names[0], clocked(|| servers.time(), count, facade.enqueue(&waiting)).await?);
    book.note(names[1], clocked(|| servers.time(), count, facade.drain(count)).await?);
    book.note(names[2], clocked(|| servers.time(), count, facade.live(&live)).await?);
    Ok(())
}

impl Book {
    fn note(&mut self, what: (u8, &'static str), rate: Rate) {
        self.0.entry(what).or_default().push(rate);
    }

    fn table(&self, stage: Stage, pairs: usize, count: usize) -> String {
        let mut text = format!(
            "RabbitMQ, {stage}, {count} jobs, {pairs} pairs: median (least-most); ratios pair by pair to the limit, of a \
             live run to its drain\n{:24} {:24} {:18} {:18} {}\n",
            "", "jobs/s", "our us/job", "servers' us/job", "ratio of jobs/s"
        );
        for ((row, what), rates) in &self.0 {
            let spread = |of: fn(&Rate) -> f64| Spread::of(rates.iter().map(of)).to_string();
            let beside = self.0.get(if matches!(row, 0 | 2 | 3) { &ENQUEUE } else { &DRAIN });
            let ratio = rates.iter().zip(beside.into_iter().flatten());
            let ratio = Spread::of(ratio.map(|(ours, limit)| ours.jobs_per_s / limit.jobs_per_s)).to_string();
            let (speed, ours, theirs) =
                (spread(|rate| rate.jobs_per_s), spread(|rate| rate.ours), spread(|rate| rate.theirs));
            writeln!(text, "{what:24} {speed:24} {ours:18} {theirs:18} {ratio}").expect("a string takes all");
        }
        text
    }
}
