//! promptq's figures, printed: `benches/run [rows] [calls] [idle] [latency]`, these by default, and `redis` or a part of
//! it. Not a test: nothing is judged.
#![expect(clippy::print_stdout, reason = "the figures are for people")]

use std::io::{BufWriter, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use promptq_benches::on_rabbit::{self, Stage};
use promptq_benches::on_redis::{self, Fsync};
use promptq_benches::{Home, Running, Took};
use promptq_common::broker::{Access, Broker};
use promptq_common::job::{BatchName, Job, JobId, Queue};
use promptq_common::ledger::{Cursor, Scope};
use promptq_common::work::Work;

const NO_LATENCY: &str = "[mock]\nlatency = [\"0ms\", \"0ms\"]\n";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut wanted: Vec<String> = std::env::args().skip(1).collect();
    if wanted.is_empty() {
        wanted = ["rows", "calls", "idle", "latency"].map(str::to_owned).to_vec();
    }
    for what in wanted.into_iter().flat_map(parts) {
        match what.as_str() {
            "rows" => rows(100_000).await?,
            "million" => rows(1_000_000).await?,
            "calls" => calls(10_000).await?,
            "idle" => idle(Duration::from_secs(30)).await?,
            "latency" => latency(500).await?,
            "redis-everysec" => print!("{}", on_redis::pairs(Fsync::Everysec, PAIRS, 20_000).await?),
            "redis-always" => print!("{}", on_redis::pairs(Fsync::Always, PAIRS, 20_000).await?),
            "redis-glance" => print!("{}", on_redis::pairs(Fsync::Everysec, 2, 20_000).await?),
            "redis-latency" => print!("{}", on_redis::latency(500).await?),
            "redis-idle" => print!("{}", on_redis::idle(100, Duration::from_secs(10)).await?),
            "redis-memory" => print!("{}", on_redis::memory(100_000).await?),
            "rabbit-quorum" => print!("{}", on_rabbit::pairs(Stage::QUORUM, PAIRS, 20_000).await?),
            "rabbit-classic" => print!("{}", on_rabbit::pairs(Stage::CLASSIC, PAIRS, 20_000).await?),
            "rabbit-store" => print!("{}", on_rabbit::pairs(Stage::STORE, 3, 5_000).await?),
            "rabbit-glance" => print!("{}", on_rabbit::pairs(Stage::QUORUM, 2, 20_000).await?),
            "rabbit-latency" => print!("{}", on_rabbit::latency(300).await?),
            "rabbit-idle" => print!("{}", on_rabbit::idle(100, Duration::from_secs(10)).await?),
            "rabbit-backlog" => print!("{}", on_rabbit::backlog(100_000, 1_000).await?),
            _ => bail!(
                "{what} is not known; there are rows, million, calls, idle, latency, {}, {}",
                REDIS.join(", "),
                RABBIT.join(", ")
            ),
        }
    }
    Ok(())
}

/// `performance.md`, section 4: at least ten.
const PAIRS: usize = 10;

/// The parts of `redis`, and a quick look at the first of them.
const REDIS: [&str; 6] =
    ["redis-latency", "redis-idle", "redis-memory", "redis-everysec", "redis-always", "redis-glance"];

/// The same for `rabbit`.
const RABBIT: [&str; 7] = [
    "rabbit-latency",
    "rabbit-idle",
    "rabbit-backlog",
    "rabbit-quorum",
    "rabbit-classic",
    "rabbit-store",
    "rabbit-glance",
];

fn parts(what: String) -> Vec<String> {
    let parts = match what.as_str() {
        "redis" => &REDIS[..REDIS.len() - 1],
        "rabbit" => &RABBIT[..RABBIT.len() - 1],
        _ => return vec![what],
    };
    parts.iter().map(|part| (*part).to_owned()).collect()
}

/// `promptq run` over so many rows with a mock that answers at once.
async fn rows(count: u32) -> anyhow::Result<()> {
    let home = Home::new(NO_LATENCY)?;
    let mut input = BufWriter::new(std::fs::File::create(home.path().join("rows.csv"))?);
    writeln!(input, "id,text")?;
    for row in 0..count {
        writeln!(input, "r{row},this is the text of review number {row}")?;
    }
    input.into_inner()?.sync_all()?;
    let arguments =
        ["run", "rows.csv", "-t", "Sentiment of: {{text}}", "--id-field", "id", "-m", "mock", "-o", "out.jsonl"];
    let took = succeeded(home.start("promptq", &arguments)?).await?;
    let rate = f64::from(count) / took.time.as_secs_f64();
    println!("run, {count} rows: {:.1} s, {rate:.0} jobs/s, peak {} MiB", took.time.as_secs_f64(), took.peak_mib);
    Ok(())
}

/// So many calls of one second, all at once, in one worker.
async fn calls(count: u32) -> anyhow::Result<()> {
    let home = Home::new("[mock]\nlatency = [\"1s\", \"1s\"]\n")?;
    let broker = Broker::connect(&Access::new(home.broker())?).await?;
    let batch = BatchName::new("calls")?;
    let jobs: Vec<_> = (0..count)
        .map(|row| {
            let mut job = Job::new(Queue::standard(), Work::prompt(Some("mock"), format!("call {row}")));
            job.batch = Some(batch.clone());
            job
        })
        .collect();
    for jobs in jobs.chunks(1_000) {
        broker.enqueue(jobs).await?;
    }
    let slots = count.to_string();
    let took = succeeded(home.start("promptq-worker", &["--concurrency", &slots, "--once"])?).await?;
    let (mut first, mut last, mut cursor) = (None, None, Cursor(0));
    loop {
        let page = broker.ledger().results(&Scope::Batch(batch.clone()), cursor, 1_000).await?;
        cursor = page.next;
        for (_, record) in &page.records {
            first = first.into_iter().chain(record.started_at).min();
            last = last.max(Some(record.ended_at));
        }
        if !page.more {
            break;
        }
    }
    let work = last.context("no records")?.since(first.context("no records")?);
    println!(
        "one worker, {count} calls of 1 s at once: {:.2} s from first start to last end, {:.2} s for the process, peak {} MiB",
        work.as_secs_f64(),
        took.time.as_secs_f64(),
        took.peak_mib
    );
    Ok(())
}

/// A worker with nothing to do.
async fn idle(length: Duration) -> anyhow::Result<()> {
    let home = Home::new("")?;
    let worker = home.start("promptq-worker", &[])?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (began, before) = (Instant::now(), worker.ticks()?);
    tokio::time::sleep(length).await;
    let used = u32::try_from(worker.ticks()? - before)?;
    let share = f64::from(used) * 10.0 / 1_000.0 / began.elapsed().as_secs_f64() * 100.0;
    println!("idle worker: {} MiB resident, {share:.2} % of one processor", worker.resident()? / 1024);
    Ok(())
}

/// From submission in this process to the start in another, one job at a time.
async fn latency(count: usize) -> anyhow::Result<()> {
    let home = Home::new(NO_LATENCY)?;
    let broker = Broker::connect(&Access::new(home.broker())?).await?;
    let _worker = home.start("promptq-worker", &[])?;
    // The first jobs wait for the worker to come up.
    for warm_up in 0..5 {
        one_job(&broker, warm_up).await?;
    }
    let mut waits = Vec::with_capacity(count);
    for n in 0..count {
        waits.push(one_job(&broker, n).await?);
        // Out of step with the worker's own polling.
        tokio::time::sleep(Duration::from_millis(20 + (n as u64 * 7) % 41)).await;
    }
    waits.sort_unstable();
    let at = |share: usize| waits[(count * share / 100).min(count - 1)].as_millis();
    println!("submit to start over two processes, {count} jobs: p50 {} ms, p99 {} ms", at(50), at(99));
    Ok(())
}

async fn one_job(broker: &Broker, n: usize) -> anyhow::Result<Duration> {
    let job = Job::new(Queue::standard(), Work::prompt(Some("mock"), format!("one {n}")));
    let (id, submitted) = (job.id, job.created_at);
    broker.enqueue(&[job]).await?;
    let began = Instant::now();
    loop {
        if let Some(started) = started(broker, id).await? {
            return Ok(started.since(submitted));
        }
        ensure!(began.elapsed() < Duration::from_secs(30), "a job did not run within 30 s");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn started(broker: &Broker, id: JobId) -> anyhow::Result<Option<promptq_common::time::Timestamp>> {
    let views = broker.ledger().fetch(&[id]).await?;
    Ok(views.into_iter().flatten().find_map(|view| view.record).and_then(|record| record.started_at))
}

async fn succeeded(program: Running) -> anyhow::Result<Took> {
    let took = program.wait().await?;
    ensure!(took.status.success(), "it ended with {}", took.status);
    Ok(took)
}
