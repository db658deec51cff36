//! What workers take while nothing comes, and what a backlog behind a closed lane
//! costs the open one beside it.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use promptq_common::broker::{Broker, Want};
use promptq_common::job::{Band, Job, Lane, ModelName, Queue};
use promptq_common::work::Work;

use super::idlers;
use crate::account::Figure;
use crate::library::{enqueue, subscribe, success};
use crate::process::own_time;
use crate::stage::{Hall, Kind};

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
