//! What the way of a job costs, step by step, in processor time and allocations, as tables in Markdown:
//! `cargo bench -p promptq-benches --bench costs`. Needs redis-server and rabbitmq-server.
#![expect(clippy::print_stdout, reason = "the figures are for people")]

#[path = "steps/mod.rs"]
mod way;

use std::alloc::System;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use futures_util::future::try_join_all;
use promptq_benches::library::{enqueue, subscribe, success};
use promptq_benches::scaling::{Kind, Place, own_time};
use promptq_common::broker::{Broker, Claim, Delivery, Want, WorkerId};
use promptq_common::job::{Job, Queue};
use promptq_worker::Parts;
use promptq_worker::runner::{ExecSettings, MockSettings, RunnerSettings, Runners};
use promptq_worker::settings::Settings;
use promptq_worker::status::Board;
use promptq_worker::stop::Stop;
use rustix::time::{ClockId, clock_gettime};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// How often a step is done that needs no broker, and how often before it counts.
const TIMES: u32 = 50_000;
/// Jobs on each backend; as many warm it up.
const JOBS: usize = 20_000;
/// As `submit` hands them over, and as many as a worker has at once.
const WINDOW: usize = 1_000;
const SLOTS: usize = 500;
/// Everything that is done to a job at a broker.
const CALLS: [&str; 7] = ["enqueue", "lease", "open (decode)", "claim", "make the record", "settle", "all of these"];
const WHOLE: [&str; 2] = ["enqueue", "a worker with the mock"];

fn main() -> anyhow::Result<()> {
    let folder = tempfile::TempDir::new()?;
    println!("| step | us | allocations | bytes |\n|---|---|---|---|");
    for (name, mut step) in way::steps(&folder)? {
        (0..TIMES / 10).for_each(|_| step());
        let (region, began) = (Region::new(ALLOCATOR), thread_time()?);
        (0..TIMES).for_each(|_| step());
        let (took, change, times) = (thread_time()? - began, region.change(), f64::from(TIMES));
        let (allocations, bytes) = (count(change.allocations + change.reallocations), count(change.bytes_allocated));
        println!("| {name} | {:.2} | {:.1} | {:.0} |", took * 1e6 / times, allocations / times, bytes / times);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let (mut calls, mut whole) = (Vec::new(), Vec::new());
        for kind in [None, Some(Kind::Sqlite), Some(Kind::Redis), Some(Kind::Rabbit)] {
            calls.push(by_call(kind).await?);
            whole.push(by_worker(kind).await?);
        }
        println!("\n{}\n{}", table("call", &CALLS, &calls), table("whole", &WHOLE, &whole));
        Ok(())
    })
}

/// What a step took for all jobs.
#[derive(Clone, Copy, Debug, Default)]
struct Took {
    ours: f64,
    theirs: f64,
    allocations: f64,
}

impl Took {
    fn add(&mut self, more: Self) {
        self.ours += more.ours;
        self.theirs += more.theirs;
        self.allocations += more.allocations;
    }
}

fn table(head: &str, names: &[&str], columns: &[Vec<Took>]) -> String {
    let mut text = format!("| {head} | memory | SQLite | Redis | RabbitMQ |\n|---|---|---|---|---|\n");
    for (place, name) in names.iter().enumerate() {
        text += &["| ", name].concat();
        for column in columns {
            let took = column.get(place).copied().unwrap_or_default();
            let each = 1.0 / count(JOBS);
            let (ours, theirs) = (took.ours * 1e6 * each, took.theirs * 1e6 * each);
            // A string takes whatever is written to it.
            let _written = write!(text, " | {ours:.1} + {theirs:.1}; {:.1}", took.allocations * each);
        }
        text += " |\n";
    }
    text
}

/// A broker, and what stands behind it.
struct Stage {
    place: Option<Place>,
    producer: Broker,
    worker: Broker,
}

impl Stage {
    async fn start(kind: Option<Kind>) -> anyhow::Result<Self> {
        let Some(kind) = kind else {
            let broker = Broker::memory();
            return Ok(Self { place: None, producer: broker.clone(), worker: broker });
        };
        let place = Place::start(kind)?;
        let access = place.access()?;
        let (producer, worker) = (Broker::connect(&access).await?, Broker::connect(&access).await?);
        Ok(Self { place: Some(place), producer, worker })
    }

    fn theirs(&self) -> anyhow::Result<f64> {
        self.place.as_ref().map_or(Ok(0.0), Place::time)
    }

    /// Does something, and adds what it took.
    async fn clocked<T>(&self, sum: &mut Took, of: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        let (theirs, region, ours) = (self.theirs()?, Region::new(ALLOCATOR), own_time()?);
        let value = of.await?;
        let (ours, change) = (own_time()? - ours, region.change());
        let allocations = count(change.allocations + change.reallocations);
        sum.add(Took { ours, theirs: self.theirs()? - theirs, allocations });
        Ok(value)
    }

    async fn put(&self, jobs: &[Job]) -> anyhow::Result<()> {
        for window in jobs.chunks(WINDOW) {
            enqueue(&self.producer, window).await?;
        }
        Ok(())
    }
}

/// Each call of the library by itself, [`SLOTS`] jobs side by side.
async fn by_call(kind: Option<Kind>) -> anyhow::Result<Vec<Took>> {
    let stage = Stage::start(kind).await?;
    let mut sums = vec![Took::default(); CALLS.len()];
    for warm in [true, false] {
        sums.fill(Took::default());
        let jobs: Vec<_> = (0..JOBS).map(way::job).collect();
        stage.clocked(&mut sums[0], stage.put(&jobs)).await?;
        let mut consumer = subscribe(&stage.worker, &[Queue::standard()]).await?;
        let mut left = JOBS;
        while left > 0 {
            let total = u32::try_from(left.min(SLOTS))?;
            let want = Want { total, caps: Vec::new(), rest: total };
            let came = stage.clocked(&mut sums[1], async { Ok(consumer.next(&want).await?.deliveries) }).await?;
            left -= came.len();
            finish(&stage, &mut sums, came).await?;
        }
        consumer.close().await?;
        ensure!(warm || sums[0].ours > 0.0, "nothing was measured");
    }
    for place in 0..CALLS.len() - 1 {
        let part = sums[place];
        sums[CALLS.len() - 1].add(part);
    }
    Ok(sums)
}

async fn finish(stage: &Stage, sums: &mut [Took], came: Vec<Delivery>) -> anyhow::Result<()> {
    let opened = async { Ok(came.iter().map(Delivery::open).collect::<Result<Vec<_>, _>>()?) };
    drop(stage.clocked(&mut sums[2], opened).await?);
    let claims = async { Ok(try_join_all(came.iter().map(|delivery| delivery.lease.claim())).await?) };
    for claim in stage.clocked(&mut sums[3], claims).await? {
        ensure!(matches!(claim, Claim::Fresh { .. }), "a claim answered {claim:?}");
    }
    let verdicts = stage
        .clocked(&mut sums[4], async { Ok(came.iter().map(|one| success(one, &way::answer())).collect::<Vec<_>>()) });
    let ends: Vec<_> = verdicts.await?.into_iter().zip(came).collect();
    let settles = async { Ok(try_join_all(ends.into_iter().map(|(end, one)| one.lease.settle(end))).await?) };
    drop(stage.clocked(&mut sums[5], settles).await?);
    Ok(())
}

/// The whole way: jobs put in, and a worker of [`SLOTS`] slots with everything it does.
async fn by_worker(kind: Option<Kind>) -> anyhow::Result<Vec<Took>> {
    let stage = Stage::start(kind).await?;
    let mut sums = vec![Took::default(); WHOLE.len()];
    for _ in ["warm up", "measure"] {
        sums.fill(Took::default());
        let jobs: Vec<_> = (0..JOBS).map(way::job).collect();
        stage.clocked(&mut sums[0], stage.put(&jobs)).await?;
        let mut settings = Settings::standard(WorkerId::random("bench"), vec![(Queue::standard(), 1)]);
        (settings.concurrency, settings.max_jobs) = (u32::try_from(SLOTS)?, Some(u64::try_from(JOBS)?));
        let runners = RunnerSettings {
            providers: std::collections::BTreeMap::new(),
            models: std::collections::BTreeMap::new(),
            exec: ExecSettings { named: [].into(), allow_inline: false, environment: Vec::new(), max_output: 1_000 },
            mock: MockSettings { latency: (Duration::ZERO, Duration::ZERO), ..MockSettings::standard() },
        };
        let runners = Arc::new(Runners::new(runners)?);
        let parts = Parts { broker: stage.worker.clone(), store: None, runners, settings, board: Board::new() };
        let left = stage.clocked(&mut sums[1], promptq_worker::run(parts, Stop::new())).await?;
        ensure!(left.finished.ended() == u64::try_from(JOBS)?, "a worker left with {left:?}");
    }
    Ok(sums)
}

/// Processor time of this thread, in seconds.
fn thread_time() -> anyhow::Result<f64> {
    let own = clock_gettime(ClockId::ThreadCPUTime);
    Ok(f64::from(u32::try_from(own.tv_sec)?) + f64::from(u32::try_from(own.tv_nsec)?) / 1e9)
}

fn count(number: usize) -> f64 {
    u32::try_from(number).map_or(f64::INFINITY, f64::from)
}
