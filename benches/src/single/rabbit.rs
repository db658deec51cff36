//! What workers take while nothing comes, what a backlog behind a closed lane costs the open one beside it, and how soon
//! a job begins where the ledger is object storage.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use promptq_common::broker::{Beside, Broker, Want};
use promptq_common::job::{Band, Job, Lane, ModelName, Queue};
use promptq_common::store::Store;
use promptq_common::work::Work;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{ONE, idlers};
use crate::account::Figure;
use crate::library::{enqueue, subscribe, success};
use crate::process::own_time;
use crate::stage::{Hall, Kind};

/// Jobs before the first that is measured.
const WARM_UP: usize = 20;
/// Between two jobs of an idle worker.
const PAUSE: Duration = Duration::from_millis(40);
/// Milliseconds from submit to start, beside a GET.
const GOAL: f64 = 3.0;

/// What the servers have to do for workers that have nothing to do, each connected by itself.
pub async fn idle(workers: usize, length: Duration) -> anyhow::Result<String> {
    let hall = Hall::open(Kind::Quorum);
    let servers = hall.stage()?;
    let mut hands = idlers(&servers.access()?, workers).await?;
    let (began, ours, theirs) = (Instant::now(), own_time()?, servers.cpu()?);
    tokio::time::sleep(length).await;
    let seconds = began.elapsed().as_secs_f64();
    ensure!(hands.try_join_next().is_none(), "a worker broke off");
    Ok(format!(
        "{workers} idle workers: {:.2} % of a processor at the servers, {:.2} % here\n",
        (servers.cpu()? - theirs) / seconds * 100.0,
        (own_time()? - ours) / seconds * 100.0
    ))
}

/// How fast an open lane is drained alone, and beside so many jobs in a closed one.
pub async fn backlog(closed: usize, open: usize) -> anyhow::Result<String> {
    let hall = Hall::open(Kind::Quorum);
    let servers = hall.stage()?;
    let broker = Broker::connect(&servers.access()?).await?;
    let models = ["shut", "open"].map(ModelName::new);
    broker.declare(&Queue::standard(), &models, false).await?;
    let mut times = Vec::new();
    for behind in [0, closed] {
        fill(&broker, "shut", behind).await?;
        let before = times.len();
        for _ in 0..5 {
            fill(&broker, "open", open).await?;
            times.push(drain(&broker, open).await?);
        }
        ensure!(times.len() == before + 5, "five runs each");
    }
    let of = |runs: &[f64]| Figure::of(runs.iter().copied()).context("there are runs");
    let (alone, beside) = (of(&times[..5])?, of(&times[5..])?);
    Ok(format!(
        "{open} jobs of an open lane: {alone} s alone, {beside} s beside {closed} in a closed one; ratio of medians {:.2}\n",
        beside.median / alone.median
    ))
}

/// From before a submit to the start, one job at a time in an idle worker, with a folder as object storage for the ledger;
/// and what it takes to read an object there.
pub async fn over_a_store(jobs: usize) -> anyhow::Result<String> {
    let mut lines = Vec::new();
    for kind in [Kind::Quorum, Kind::Classic] {
        let (hall, folder) = (Hall::open(kind), TempDir::new()?);
        let servers = hall.stage()?;
        let store = Store::open(&format!("file://{}", folder.path().display())).await?;
        let mut access = servers.access()?;
        access.beside = Beside::Store(store.clone());
        let (broker, worker) = (Broker::connect(&access).await?, Broker::connect(&access).await?);
        let (tell, mut told) = mpsc::channel(1);
        let mut hands = JoinSet::new();
        hands.spawn(async move { begin(&worker, &tell).await });
        let (mut waits, mut reads) = (Vec::new(), Vec::new());
        store.put("probe", vec![b'x'; 300]).await?;
        for turn in 0..jobs + WARM_UP {
            tokio::time::sleep(PAUSE).await;
            let asked = Instant::now();
            enqueue(&broker, &[Job::new(Queue::standard(), Work::prompt(Some("mock"), "hi"))]).await?;
            let wait = told.recv().await.context("the worker broke off")?.duration_since(asked);
            let asked = Instant::now();
            ensure!(store.get("probe", 1_000).await?.is_some(), "it was put there");
            if turn >= WARM_UP {
                waits.push(wait.as_secs_f64() * 1e3);
                reads.push(asked.elapsed().as_secs_f64() * 1e3);
            }
        }
        let (wait, read) = (Figure::of(waits).context("there are jobs")?, Figure::of(reads).context("and reads")?);
        lines.push(format!(
            "{}, ledger in a folder, {jobs} jobs: idle submit to start p50 {wait} ms, a GET {read} ms; goal {:.2} ms\n",
            kind.name(),
            GOAL + read.median
        ));
    }
    Ok(lines.concat())
}

/// Takes one job after the other, tells when it may begin, and ends it.
async fn begin(broker: &Broker, tell: &mpsc::Sender<Instant>) -> anyhow::Result<()> {
    let mut consumer = subscribe(broker, &[Queue::standard()]).await?;
    loop {
        for delivery in consumer.next(&ONE).await?.deliveries {
            delivery.lease.claim().await?;
            delivery.open()?;
            if tell.send(Instant::now()).await.is_err() {
                return Ok(());
            }
            let verdict = success(&delivery, "positive");
            delivery.lease.settle(verdict).await?;
        }
    }
}

async fn fill(broker: &Broker, model: &str, count: usize) -> anyhow::Result<()> {
    let jobs: Vec<Job> = (0..count).map(|_| Job::new(Queue::standard(), Work::prompt(Some(model), "hi"))).collect();
    for window in jobs.chunks(1_000) {
        enqueue(broker, window).await?;
    }
    Ok(())
}

/// Drains so many jobs of the open lane, the other one closed; in seconds.
async fn drain(broker: &Broker, count: usize) -> anyhow::Result<f64> {
    let shut = Band::ALL.map(|band| {
        let lane = Lane { queue: Queue::standard(), model: Some(ModelName::new("shut")), band };
        (lane, 0)
    });
    let want = Want { total: 100, caps: shut.into(), rest: 100 };
    let began = Instant::now();
    let mut consumer = subscribe(broker, &[Queue::standard()]).await?;
    let mut left = count;
    while left > 0 {
        for delivery in consumer.next(&want).await?.deliveries {
            let verdict = success(&delivery, "positive");
            delivery.lease.settle(verdict).await?;
            left -= 1;
        }
    }
    let took = began.elapsed().as_secs_f64();
    consumer.close().await?;
    Ok(took)
}
