//! What the way of a job costs, step by step, as tables in Markdown. In processor time, or in allocations: whoever counts
//! those makes each of them dearer, with threads beside it several times over, so that a program measures one of the two.

#[path = "../steps/mod.rs"]
mod way;

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures_util::future::try_join_all;
use promptq_benches::library::{answer, enqueue, job, subscribe, success};
use promptq_benches::scaling::{Kind, Place};
use promptq_common::broker::{Broker, Claim, Delivery, Want, WorkerId};
use promptq_common::job::{Job, Queue};
use promptq_common::telemetry::admin::{Admin, Listen};
use promptq_common::telemetry::health::Health;
use promptq_worker::runner::{ExecSettings, MockSettings, RunnerSettings, Runners};
use promptq_worker::settings::Settings;
use promptq_worker::status::Board;
use promptq_worker::stop::Stop;
use promptq_worker::{Drained, Parts};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

/// How often a step is done that needs no broker, and how often before it counts.
const TIMES: u32 = 50_000;
/// Jobs on each backend; as many warm it up.
const JOBS: usize = 20_000;
/// As `submit` hands them over, and as many as a worker has at once.
const WINDOW: usize = 1_000;
const SLOTS: usize = 500;
/// How often a worker has all of them to do.
const ROUNDS: usize = 5;
/// Everything that is done to a job at a broker.
const CALLS: [&str; 7] = ["enqueue", "lease", "open (decode)", "claim", "make the record", "settle", "all of these"];
const WHOLE: [&str; 2] = ["enqueue", "a worker with the mock"];

/// What is measured.
#[derive(Clone, Copy)]
pub(crate) struct Meter {
    /// The name of what it counts.
    pub(crate) unit: &'static str,
    /// How many so far, of the whole process.
    pub(crate) process: fn() -> anyhow::Result<f64>,
    /// And of this thread alone.
    pub(crate) thread: fn() -> anyhow::Result<f64>,
    /// Whether these are microseconds of processor time, of which servers take some too.
    pub(crate) is_time: bool,
}

/// The tables, of the brokers that the command line names, or all: `memory sqlite redis rabbit`.
pub(crate) fn tables(meter: Meter) -> anyhow::Result<String> {
    let named: Vec<_> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    // With the word `metrics` everything is counted, as in a worker that shows itself.
    let (counted, named): (Vec<_>, Vec<_>) = named.into_iter().partition(|word| word == "metrics");
    let kinds = [None, Some(Kind::Sqlite), Some(Kind::Redis), Some(Kind::Rabbit)].into_iter();
    let name = |kind: &Option<Kind>| kind.map_or("memory", Kind::name);
    let kinds: Vec<_> = kinds.filter(|kind| named.is_empty() || named.iter().any(|word| word == name(kind))).collect();
    let mut text = if named.is_empty() { steps(meter)? } else { String::new() };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let _admin = if counted.is_empty() { None } else { show(&runtime)? };
    let (mut calls, mut whole) = (Vec::new(), Vec::new());
    for kind in &kinds {
        calls.push(runtime.block_on(by_call(*kind, meter))?);
        whole.push(runtime.block_on(by_worker(*kind, meter))?);
    }
    let heads: Vec<_> = kinds.iter().map(name).collect();
    text += &table(&format!("call, {}", meter.unit), &heads, &CALLS, &calls);
    text += &table(&format!("whole, {}", meter.unit), &heads, &WHOLE, &whole);
    Ok(text)
}

/// Begins to keep metrics.
fn show(runtime: &Runtime) -> anyhow::Result<Option<Admin>> {
    let _inside = runtime.enter();
    let anywhere = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
    Ok(Admin::open(Listen::At(anywhere), "worker", &Health::default())?)
}

/// What needs no broker, by the time of this thread alone.
fn steps(meter: Meter) -> anyhow::Result<String> {
    let folder = tempfile::TempDir::new()?;
    let mut text = format!("| step | {} |\n|---|---|\n", meter.unit);
    for (name, mut step) in way::steps(&folder)? {
        (0..TIMES / 10).for_each(|_| step());
        let began = (meter.thread)()?;
        (0..TIMES).for_each(|_| step());
        let _written = writeln!(text, "| {name} | {:.2} |", ((meter.thread)()? - began) / f64::from(TIMES));
    }
    Ok(text)
}

/// What a step took for all jobs.
#[derive(Clone, Copy, Debug, Default)]
struct Took {
    ours: f64,
    theirs: f64,
}

impl Took {
    fn add(&mut self, more: Self) {
        self.ours += more.ours;
        self.theirs += more.theirs;
    }
}

fn table(head: &str, heads: &[&str], names: &[&str], columns: &[Vec<Took>]) -> String {
    let mut text = format!("\n| {head} | {} |\n|---{}|\n", heads.join(" | "), "|---".repeat(heads.len()));
    for (place, name) in names.iter().enumerate() {
        text += &["| ", name].concat();
        for column in columns {
            let took = column.get(place).copied().unwrap_or_default();
            let (ours, theirs) = (took.ours / count(JOBS), took.theirs / count(JOBS));
            // A string takes whatever is written to it.
            let _written = write!(text, " | {ours:.1}");
            if theirs > 0.0 {
                let _written = write!(text, " + {theirs:.1}");
            }
        }
        text += " |\n";
    }
    text
}

/// A broker, and what stands behind it.
struct Stage {
    meter: Meter,
    place: Option<Place>,
    producer: Broker,
    worker: Broker,
}

impl Stage {
    async fn start(kind: Option<Kind>, meter: Meter) -> anyhow::Result<Self> {
        let Some(kind) = kind else {
            let broker = Broker::memory();
            return Ok(Self { meter, place: None, producer: broker.clone(), worker: broker });
        };
        let place = Place::start(kind)?;
        let access = place.access()?;
        let (producer, worker) = (Broker::connect(&access).await?, Broker::connect(&access).await?);
        Ok(Self { meter, place: Some(place), producer, worker })
    }

    fn theirs(&self) -> anyhow::Result<f64> {
        let servers = self.place.as_ref().filter(|_| self.meter.is_time);
        servers.map_or(Ok(0.0), |place| place.time().map(|seconds| seconds * 1e6))
    }

    /// Does something, and adds what it took.
    async fn clocked<T>(&self, sum: &mut Took, of: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        let (theirs, ours) = (self.theirs()?, (self.meter.process)()?);
        let value = of.await?;
        let ours = (self.meter.process)()? - ours;
        sum.add(Took { ours, theirs: self.theirs()? - theirs });
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
async fn by_call(kind: Option<Kind>, meter: Meter) -> anyhow::Result<Vec<Took>> {
    let stage = Stage::start(kind, meter).await?;
    let mut sums = vec![Took::default(); CALLS.len()];
    for warm in [true, false] {
        sums.fill(Took::default());
        let jobs: Vec<_> = (0..JOBS).map(job).collect();
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
    let verdicts =
        stage.clocked(&mut sums[4], async { Ok(came.iter().map(|one| success(one, &answer())).collect::<Vec<_>>()) });
    let ends: Vec<_> = verdicts.await?.into_iter().zip(came).collect();
    let settles = async { Ok(try_join_all(ends.into_iter().map(|(end, one)| one.lease.settle(end))).await?) };
    drop(stage.clocked(&mut sums[5], settles).await?);
    Ok(())
}

/// The whole way: jobs put in, and a worker of [`SLOTS`] slots with everything it does. The median of some rounds.
async fn by_worker(kind: Option<Kind>, meter: Meter) -> anyhow::Result<Vec<Took>> {
    let stage = Stage::start(kind, meter).await?;
    let mut rounds = Vec::new();
    for _ in 0..=ROUNDS {
        let mut sums = vec![Took::default(); WHOLE.len()];
        let jobs: Vec<_> = (0..JOBS).map(job).collect();
        stage.clocked(&mut sums[0], stage.put(&jobs)).await?;
        let left = stage.clocked(&mut sums[1], work(stage.worker.clone())).await?;
        ensure!(left.finished.ended() == u64::try_from(JOBS)?, "a worker left with {left:?}");
        rounds.push(sums);
    }
    // The first one warms it up.
    rounds.remove(0);
    let median = |place: usize| {
        let mut of: Vec<_> = rounds.iter().map(|sums| sums[place]).collect();
        of.sort_by(|one, other| one.ours.total_cmp(&other.ours));
        of[ROUNDS / 2]
    };
    Ok((0..WHOLE.len()).map(median).collect())
}

/// A worker that ends with the last job, on the runtime's own threads as that of the programs is.
async fn work(broker: Broker) -> anyhow::Result<Drained> {
    let mut settings = Settings::standard(WorkerId::random("bench"), vec![(Queue::standard(), 1)]);
    (settings.concurrency, settings.max_jobs) = (u32::try_from(SLOTS)?, Some(u64::try_from(JOBS)?));
    let runners = RunnerSettings {
        providers: std::collections::BTreeMap::new(),
        models: std::collections::BTreeMap::new(),
        exec: ExecSettings { named: [].into(), allow_inline: false, environment: Vec::new(), max_output: 1_000 },
        mock: MockSettings { latency: (Duration::ZERO, Duration::ZERO), ..MockSettings::standard() },
    };
    let runners = Arc::new(Runners::new(runners)?);
    let parts = Parts { broker, store: None, runners, settings, board: Board::new() };
    let mut alone = JoinSet::new();
    alone.spawn(promptq_worker::run(parts, Stop::new()));
    alone.join_next().await.context("no worker")??
}

fn count(number: usize) -> f64 {
    u32::try_from(number).map_or(f64::INFINITY, f64::from)
}
