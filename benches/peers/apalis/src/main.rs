//! apalis on SQLite, by the command line of `../README.md`. A job is a row; its lock, its result and when it ended are
//! written into it in transactions of many, and it stays. It stores no cost, and a killed worker's jobs come back after
//! 60 s. SQLite in WAL mode with `synchronous = FULL`, as promptq has it; apalis' own `setup` would turn it off.

mod clock;

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use apalis::prelude::*;
use apalis_sqlite::{Config, SqlitePool, SqliteStorage};
use rand::Rng as _;
use serde::{Deserialize, Serialize};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use clock::{Clock, costs, cpu, now, say};

/// With its keys and the time, a body has about 300 bytes as JSON.
const FILLING: &str = "The quick brown fox jumps over the lazy dog. ";

/// Jobs at once, and in one transaction at most; more is not faster.
const SLOTS: usize = 200;

/// How often a worker with nothing to do looks: nobody wakes it across processes.
const LOOK: Duration = Duration::from_millis(20);

/// What a job carries.
#[derive(Debug, Deserialize, Serialize)]
struct Body {
    at: f64,
    text: String,
}

/// What a job gives.
#[derive(Debug, Deserialize, Serialize)]
struct Answer {
    answer: String,
    tokens: u32,
}

/// The command line.
#[derive(Default)]
struct Args {
    command: String,
    url: String,
    number: u64,
    warmup: Option<u64>,
    idle: Option<f64>,
    bulk: bool,
    latencies: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::read()?;
    match args.command.as_str() {
        "enqueue" => enqueue(&args).await,
        "work" => work(&args).await,
        "latency" => latency(&args).await,
        other => bail!("there is no command {other:?}"),
    }
}

async fn enqueue(args: &Args) -> Result<()> {
    let mut storage = storage(&open(&args.url).await?);
    submit(&mut storage, args.warmup(), args.bulk).await?;
    let (began, used) = (now(), cpu());
    submit(&mut storage, args.number, args.bulk).await?;
    let seconds = now() - began;
    say(&format!(r#""jobs":{},"seconds":{seconds},{}"#, args.number, costs(args.number, seconds, cpu() - used)));
    Ok(())
}

async fn submit(storage: &mut SqliteStorage<Body>, jobs: u64, bulk: bool) -> Result<()> {
    let size = if bulk { 500 } else { 1 };
    let mut left = jobs;
    while left > 0 {
        let some = left.min(size);
        let bodies = (0..some).map(|_| Body { at: now(), text: FILLING.repeat(6) }).collect();
        storage.push_bulk(bodies).await.map_err(|error| anyhow::anyhow!("{error}"))?;
        left -= some;
    }
    Ok(())
}

async fn work(args: &Args) -> Result<()> {
    let pool = open(&args.url).await?;
    let clock = Arc::new(Clock::new(args.warmup(), args.number, args.latencies));
    let worker = WorkerBuilder::new(format!("peer-{}", std::process::id()))
        .backend(storage(&pool).poll_with_interval(LOOK))
        .data(Arc::clone(&clock))
        .concurrency(SLOTS)
        .build(handle);
    let (watched, idle) = (Arc::clone(&clock), Duration::from_secs_f64(args.idle.unwrap_or(20.0)));
    let ran = worker.run_with_ctx(move |worker| {
        let (clock, pool) = (Arc::clone(&watched), pool.clone());
        async move {
            clock.until_done(&pool, idle).await;
            worker.stop()?;
            Ok(())
        }
    });
    ran.await.map_err(|error| anyhow::anyhow!("{error}"))?;
    std::process::exit(clock.tell());
}

async fn handle(job: Body, clock: Data<Arc<Clock>>) -> Result<Answer, BoxDynError> {
    clock.started(job.at);
    Ok(Answer { answer: FILLING.repeat(6), tokens: 70 })
}

/// Starts a worker and submits one job at a time to it while it has nothing to do.
async fn latency(args: &Args) -> Result<()> {
    let mut storage = storage(&open(&args.url).await?);
    let [number, warmup] = [args.number, args.warmup()].map(|count| count.to_string());
    let mut worker = tokio::process::Command::new(std::env::current_exe()?)
        .args(["work", "--url", &args.url, "--until", &number, "--warmup", &warmup, "--latencies"])
        .stdout(Stdio::piped())
        .spawn()?;
    submit(&mut storage, args.warmup(), false).await?;
    let mut lines = BufReader::new(worker.stdout.take().context("a pipe")?).lines();
    while let Some(line) = lines.next_line().await? {
        if !line.contains("\"warm\"") {
            println!("{line}");
            continue;
        }
        for _ in 0..args.number {
            // Out of step with what polls.
            let pause = rand::rng().random_range(20.0..60.0);
            tokio::time::sleep(Duration::from_secs_f64(pause / 1000.0)).await;
            submit(&mut storage, 1, false).await?;
        }
    }
    std::process::exit(worker.wait().await?.code().unwrap_or(1));
}

async fn open(url: &str) -> Result<SqlitePool> {
    let options = url
        .parse::<SqliteConnectOptions>()?
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(30));
    // One connection: apalis does one thing at a time with its file, and SQLite's statistics are a connection's own.
    let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await?;
    SqliteStorage::migrations().run(&pool).await?;
    Ok(pool)
}

fn storage(pool: &SqlitePool) -> SqliteStorage<Body> {
    SqliteStorage::new(pool).with_config(Config::default().queue("peers").batch_size(SLOTS))
}

impl Args {
    fn read() -> Result<Self> {
        let mut words = std::env::args().skip(1);
        let mut args =
            Self { command: words.next().context("a command: enqueue, work or latency")?, ..Self::default() };
        while let Some(flag) = words.next() {
            let mut value = || words.next().with_context(|| format!("{flag} needs a value"));
            match flag.as_str() {
                "--url" => args.url = value()?,
                "--jobs" | "--until" => args.number = value()?.parse()?,
                "--warmup" => args.warmup = Some(value()?.parse()?),
                "--idle" => args.idle = Some(value()?.parse()?),
                "--bulk" => args.bulk = true,
                "--latencies" => args.latencies = true,
                other => bail!("there is no flag {other}"),
            }
        }
        Ok(args)
    }

    fn warmup(&self) -> u64 {
        self.warmup.unwrap_or(if self.command == "latency" { 20 } else { 500 })
    }
}
