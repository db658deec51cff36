//! What workers take of the server while nothing comes, and what a job takes of it that waits.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use promptq_common::broker::{Access, Broker};
use promptq_common::job::{BatchName, Job, Queue};
use promptq_common::work::Work;

use super::idlers;
use crate::account::number;
use crate::contest::{TEXT, prompt};
use crate::library::enqueue;
use crate::process::own_time;
use crate::redis::{Options, RedisServer};

/// What the server has to do for workers that have nothing to do, each connected by itself.
pub async fn idle(workers: usize, length: Duration) -> anyhow::Result<String> {
    let server = RedisServer::start(Options::every_second());
    let mut hands = idlers(&Access::new(&server.url())?, workers).await?;
    server.must(&["CONFIG", "RESETSTAT"]);
    let (began, ours, theirs) = (Instant::now(), own_time()?, server_time(&server)?);
    tokio::time::sleep(length).await;
    let seconds = began.elapsed().as_secs_f64();
    let (ours, theirs) = (own_time()? - ours, server_time(&server)? - theirs);
    let stats = info(&server, "commandstats")?;
    let all = figure(&info(&server, "stats")?, "total_commands_processed:")?;
    let mut calls = Vec::new();
    for line in stats.lines().filter_map(|line| line.strip_prefix("cmdstat_")) {
        let (name, rest) = line.split_once(":calls=").context("a command without calls")?;
        calls.push((name.to_owned(), rest.split(',').next().unwrap_or_default().parse::<f64>()? / seconds));
    }
    ensure!(hands.try_join_next().is_none(), "a worker broke off");
    let asked = |name: &str| calls.iter().filter(|(known, _)| known == name).map(|(_, rate)| rate).sum::<f64>();
    let clients = asked("evalsha") + asked("blpop") + asked("ping");
    calls.sort_by(|one, other| other.1.total_cmp(&one.1));
    let list: Vec<_> = calls.iter().take(12).map(|(name, rate)| format!("{name} {rate:.0}")).collect();
    Ok(format!(
        "{workers} idle workers: {clients:.0} calls of clients a second, {:.0} commands with those inside scripts; \
         {:.2} % of a processor there, {:.2} % here\n  a second: {}\n",
        all / seconds,
        theirs / seconds * 100.0,
        ours / seconds * 100.0,
        list.join(", ")
    ))
}

/// What a waiting job takes of the server's memory beyond its own bytes, in a batch and without.
pub async fn memory(count: u64) -> anyhow::Result<String> {
    let mut text = String::new();
    for batch in [None, Some("nightly-evaluation")] {
        let server = RedisServer::start(Options::cheap());
        let broker = Broker::connect(&Access::new(&server.url())?).await?;
        let jobs = jobs(count, batch)?;
        let used = || figure(&info(&server, "memory")?, "used_memory:");
        // Scripts, connections and the queue itself are there whatever waits.
        enqueue(&broker, &jobs[..1]).await?;
        let before = used()?;
        fill(&broker, &jobs[1..]).await?;
        let payloads = jobs[1..].iter().map(|job| Ok(promptq_common::codec::encode_job(job)?.len()));
        let payloads = payloads.sum::<anyhow::Result<usize>>()?;
        let each = (used()? - before - number(payloads)) / number(jobs.len() - 1);
        let (kind, mean) = (batch.map_or("without a batch", |_| "in a batch"), payloads / (jobs.len() - 1));
        writeln!(text, "{count} jobs wait {kind}: {each:.0} bytes each beyond {mean} of payload ({TEXT} of prompt)")?;
    }
    Ok(text)
}

async fn fill(broker: &Broker, jobs: &[Job]) -> anyhow::Result<()> {
    for window in jobs.chunks(1_000) {
        enqueue(broker, window).await?;
    }
    Ok(())
}

/// Processor time of the server, all its threads, in seconds.
fn server_time(server: &RedisServer) -> anyhow::Result<f64> {
    let info = info(server, "cpu")?;
    Ok(figure(&info, "used_cpu_sys:")? + figure(&info, "used_cpu_user:")?)
}

/// One section of what the server tells of itself.
fn info(server: &RedisServer, section: &str) -> anyhow::Result<String> {
    Ok(server.command(&["INFO", section]).map_err(|why| anyhow!(why))?.text())
}

/// The number behind `name` at the start of a line.
fn figure(info: &str, name: &str) -> anyhow::Result<f64> {
    let value = info.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
    Ok(value.trim().parse()?)
}

/// So many jobs of one batch.
fn jobs(count: u64, batch: Option<&str>) -> anyhow::Result<Vec<Job>> {
    let batch = batch.map(BatchName::new).transpose()?;
    let job = |n| Job { batch: batch.clone(), ..Job::new(Queue::standard(), Work::prompt(Some("mock"), prompt(n))) };
    Ok((0..count).map(job).collect())
}
