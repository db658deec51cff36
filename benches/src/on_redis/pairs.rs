//! The limit and promptq by turns in the same minutes, pair by pair: jobs per second, and processor time for each job.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::programs::Programs;
use super::{access, limit, server_time};
use crate::facade::{Facade, jobs};
use crate::meter::{Rate, clocked};
use crate::redis::{Options, RedisServer};
use crate::spread::Spread;

/// How surely the server keeps what it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fsync {
    /// `appendfsync everysec`
    Everysec,
    /// `appendfsync always`
    Always,
}

/// Batches of the limit; ratios are taken to [`BESIDE`].
const BATCHES: [usize; 4] = [1, 20, 100, 500];
const BESIDE: usize = 100;

/// Everything that was measured, by what it is a measurement of.
#[derive(Default)]
struct Book(BTreeMap<(u8, String), Vec<Rate>>);

/// So many pairs of so many jobs each; the table.
pub async fn pairs(fsync: Fsync, pairs: usize, count: usize) -> anyhow::Result<String> {
    let mut book = Book::default();
    for _ in 0..pairs {
        for batch in BATCHES {
            limit_alone(&mut book, fsync, count, batch).await?;
        }
        for hands in [1, 2] {
            facade(&mut book, fsync, count, hands).await?;
            programs(&mut book, fsync, count, hands).await?;
        }
    }
    Ok(book.table(fsync, pairs, count))
}

/// A fresh one: nothing of another contestant is in its memory or its file, which it never rewrites meanwhile.
fn server(fsync: Fsync) -> RedisServer {
    let options = match fsync {
        Fsync::Everysec => Options::every_second(),
        Fsync::Always => Options::durable(),
    };
    RedisServer::start(options.with("auto-aof-rewrite-percentage 0"))
}

async fn limit_alone(book: &mut Book, fsync: Fsync, count: usize, batch: usize) -> anyhow::Result<()> {
    let server = server(fsync);
    let rate = clocked(|| server_time(&server), count, limit::enqueue(&server, count, batch)).await?;
    book.note(0, format!("limit enqueue, {batch:>3} a call"), rate);
    let rate = clocked(|| server_time(&server), count, limit::drain(&server, batch)).await?;
    book.note(1, format!("limit drain, {batch:>3} a call"), rate);
    limit::check(&server, count)
}

async fn facade(book: &mut Book, fsync: Fsync, count: usize, hands: usize) -> anyhow::Result<()> {
    let server = server(fsync);
    let facade = Facade::connect(&access(&server)?, hands).await?;
    // Scripts are loaded, connections made, allocators warm.
    facade.live(&jobs(1_000, Some("warm-up"))?).await?;
    let (waiting, live) = (jobs(count, Some("waiting"))?, jobs(count, Some("live"))?);
    let rate = clocked(|| server_time(&server), count, facade.enqueue(&waiting)).await?;
    book.note(2, format!("Broker enqueue, {hands}"), rate);
    let rate = clocked(|| server_time(&server), count, facade.drain(count)).await?;
    book.note(3, format!("Broker drain, {hands}"), rate);
    let rate = clocked(|| server_time(&server), count, facade.live(&live)).await?;
    book.note(4, format!("Broker live, {hands} + {hands}"), rate);
    Ok(())
}

async fn programs(book: &mut Book, fsync: Fsync, count: usize, workers: usize) -> anyhow::Result<()> {
    let server = server(fsync);
    let programs = Programs::new(&server, count, workers)?;
    if workers == 1 {
        let rate = clocked(|| server_time(&server), count, programs.enqueue()).await?;
        book.note(5, "promptq submit".to_owned(), rate);
    } else {
        programs.enqueue().await?;
    }
    let rate = clocked(|| server_time(&server), count, programs.drain(&server, count)).await?;
    book.note(6, format!("promptq-worker drain, {workers}"), rate);
    let rate = clocked(|| server_time(&server), count, programs.live(&server, 2 * count)).await?;
    book.note(7, format!("submit and worker live, {workers}"), rate);
    Ok(())
}

impl Book {
    fn note(&mut self, row: u8, what: String, rate: Rate) {
        self.0.entry((row, what)).or_default().push(rate);
    }

    fn beside(&self, row: u8) -> Option<&Vec<Rate>> {
        let (row, verb) = if matches!(row, 0 | 2 | 5) { (0, "enqueue") } else { (1, "drain") };
        self.0.get(&(row, format!("limit {verb}, {BESIDE:>3} a call")))
    }

    fn table(&self, fsync: Fsync, pairs: usize, count: usize) -> String {
        let mut text = format!(
            "Redis, AOF {fsync:?}, {count} jobs, {pairs} pairs: median (least-most); ratios pair by pair to the limit at \
             {BESIDE} a call, of a live run to its drain\n\
             {:32} {:24} {:18} {:18} {:22} {}\n",
            "", "jobs/s", "our us/job", "Redis us/job", "ratio of jobs/s", "ratio of Redis us"
        );
        for ((row, what), rates) in &self.0 {
            let spread = |of: fn(&Rate) -> f64| Spread::of(rates.iter().map(of)).to_string();
            let ratio = |of: fn(&Rate) -> f64| {
                let beside = self.beside(*row).into_iter().flatten();
                Spread::of(rates.iter().zip(beside).map(|(ours, limit)| of(ours) / of(limit))).to_string()
            };
            let (speed, ours, theirs) =
                (spread(|rate| rate.jobs_per_s), spread(|rate| rate.ours), spread(|rate| rate.theirs));
            let (fast, dear) = (ratio(|rate| rate.jobs_per_s), ratio(|rate| rate.theirs));
            writeln!(text, "{what:32} {speed:24} {ours:18} {theirs:18} {fast:22} {dear}").expect("a string takes all");
        }
        text
    }
}
