//! What a fleet takes of its broker: workers with connections of their own, all in this process, while nothing comes and
//! while they drain.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use promptq_common::broker::{Broker, Consumer, Want};
use promptq_common::job::Queue;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::figures::{Cost, Fleet, FleetRow, today};
use super::hands::{drain, put};
use super::place::{Place, resident};
use super::{Figures, Kind};
use crate::account::number;
use crate::library::subscribe;
use crate::process::{built, own_time};

/// They come in step; after so long they are out of it.
const SETTLING: Duration = Duration::from_secs(12);
/// How long an idle fleet is looked at.
const LOOK: Duration = Duration::from_secs(15);
/// Jobs that a fleet drains, and as many again that wait behind them.
const JOBS: usize = 30_000;
/// A fleet that is busy for longer with them stands in its own way.
const PATIENCE: Duration = Duration::from_secs(90);
/// Jobs that one of many workers has at once.
const SLOTS: usize = 10;

/// One backend with these fleets.
pub async fn workers(figures: &mut Figures, kind: Kind, counts: &[usize]) -> anyhow::Result<String> {
    let mut rows = Vec::new();
    for count in counts {
        rows.push(fleet(kind, *count).await?);
        let fleet = Fleet { date: today(), process: process(kind).await?, rows: rows.clone() };
        figures.workers.insert(kind.name().to_owned(), fleet);
    }
    Ok(String::new())
}

async fn fleet(kind: Kind, count: usize) -> anyhow::Result<FleetRow> {
    let place = Place::start(kind)?;
    let access = place.access()?;
    let producer = Broker::connect(&access).await?;
    // The queue is there, and what is made once for all.
    put(std::slice::from_ref(&producer), &Queue::standard(), 100).await?;
    drain(vec![subscribe(&producer, &[Queue::standard()]).await?], 100, SLOTS).await?;
    let before = Held::of(&place)?;
    let mut brokers = Vec::new();
    for _ in 0..count {
        brokers.push(Broker::connect(&access).await?);
    }
    let row = FleetRow { workers: count, ..idle(&place, &brokers, before).await? };
    put(std::slice::from_ref(&producer), &Queue::standard(), 2 * JOBS).await?;
    let mut consumers = Vec::new();
    for broker in &brokers {
        consumers.push(subscribe(broker, &[Queue::standard()]).await?);
    }
    let (calls, ours, theirs) = (place.calls()?, own_time()?, place.time()?);
    // What is not done by then shows that there are too many of them.
    let Ok(drained) = timeout(PATIENCE, drain(consumers, JOBS, SLOTS)).await else { return Ok(row) };
    drained?;
    let (after, per) = (place.calls()?, 1.0 / number(JOBS));
    let busy = Cost { ours: (own_time()? - ours) * 1e6 * per, theirs: (place.time()? - theirs) * 1e6 * per };
    Ok(FleetRow { busy: Some(busy), busy_calls: [(after.0 - calls.0) * per, (after.1 - calls.1) * per], ..row })
}

/// What is held of the machine at one moment.
struct Held {
    connections: (f64, f64),
    server: f64,
    own: f64,
    threads: f64,
}

impl Held {
    fn of(place: &Place) -> anyhow::Result<Self> {
        let (server, own) = (place.memory()?, resident(std::process::id())?);
        Ok(Self { connections: place.connections()?, server, own, threads: threads()? })
    }
}

/// What they take while nothing comes.
async fn idle(place: &Place, brokers: &[Broker], before: Held) -> anyhow::Result<FleetRow> {
    let mut hands = JoinSet::new();
    for broker in brokers {
        let consumer = subscribe(broker, &[Queue::standard()]).await?;
        hands.spawn(wait(consumer));
    }
    sleep(SETTLING).await;
    let (began, calls, ours, theirs) = (Instant::now(), place.calls()?, own_time()?, place.time()?);
    sleep(LOOK).await;
    let seconds = began.elapsed().as_secs_f64();
    let (ours, theirs, after) = (own_time()? - ours, place.time()? - theirs, place.calls()?);
    ensure!(hands.try_join_next().is_none(), "a worker broke off");
    let (now, each) = (Held::of(place)?, 1.0 / number(brokers.len()));
    hands.shutdown().await;
    let connections = [now.connections.0 - before.connections.0, now.connections.1 - before.connections.1];
    Ok(FleetRow {
        workers: 0,
        connections: connections.map(|all| all * each),
        memory: [now.own - before.own, now.server - before.server].map(|all| all * each),
        threads: (now.threads - before.threads) * each,
        idle_calls: [(after.0 - calls.0) / seconds, (after.1 - calls.1) / seconds],
        idle: [ours / seconds, theirs / seconds],
        busy: None,
        busy_calls: [0.0; 2],
    })
}

async fn wait(mut consumer: Consumer) -> anyhow::Result<()> {
    let want = Want { total: 1, caps: Vec::new(), rest: 1 };
    loop {
        let came = consumer.next(&want).await?;
        ensure!(came.deliveries.is_empty(), "a job came to an idle fleet");
    }
}

/// Memory of a whole worker process that waits, in bytes.
async fn process(kind: Kind) -> anyhow::Result<f64> {
    let place = Place::start(kind)?;
    let home = tempfile::TempDir::new()?;
    let (broker, ledger) = place.urls();
    let mut command = Command::new(built("promptq-worker")?);
    command.env_clear().env("HOME", home.path()).env("PROMPTQ_BROKER", broker).current_dir(home.path());
    if let Some(ledger) = ledger {
        command.env("PROMPTQ_LEDGER", ledger);
    }
    let mut worker = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    sleep(Duration::from_secs(3)).await;
    let (left, memory) = (worker.try_wait()?, resident(worker.id()));
    // Gone already when it has left.
    worker.kill().ok();
    worker.wait()?;
    ensure!(left.is_none(), "an idle worker left with {left:?}");
    memory
}

fn threads() -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("Threads:")).context("no count of threads")?;
    Ok(line.trim().parse()?)
}
