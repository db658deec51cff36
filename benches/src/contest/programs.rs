//! Those who take part: promptq by its real binaries, the limit programs, and the peers. Each is a program, so that what
//! it took of the machine is its own.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, ensure};
use serde::Deserialize;

use crate::account::number;
use crate::machine::Load;
use crate::process::{Home, Took, built};
use crate::report::Sample;
use crate::stage::Stage;

/// As much text as a prompt has here, in bytes: a short question with its context.
pub(crate) const TEXT: usize = 300;
/// A model that answers at once.
pub(super) const AT_ONCE: &str = "[mock]\nlatency = [\"0ms\", \"0ms\"]\n";

/// Who takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// `promptq submit` and `promptq-worker`.
    Promptq,
    /// The limit program with promptq's writes.
    Limit,
    /// The limit program with the least there are.
    Bare,
    /// A socket loop without a driver, with the least writes.
    Raw,
    /// Somebody else's queue.
    Peer(Peer),
}

/// A peer, and how it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) name: &'static str,
    /// Whether it stores results only when it is told where.
    pub(super) results: bool,
    /// Whether it has a way to submit many in one call, which is then taken.
    pub(super) bulk: bool,
}

impl Who {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Promptq => "promptq",
            Self::Limit => "limit",
            Self::Bare => "bare",
            Self::Raw => "raw",
            Self::Peer(peer) => peer.name,
        }
    }
}

/// How many jobs are put in, and how many of them are measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Count {
    pub(super) jobs: u64,
    pub(super) warmup: u64,
}

impl Count {
    pub(super) fn all(self) -> u64 {
        self.jobs + self.warmup
    }
}

/// The one line that contestants print.
#[derive(Debug, Deserialize)]
pub(super) struct Line {
    jobs: u64,
    #[serde(default)]
    seconds: f64,
    #[serde(default)]
    per_second: f64,
    #[serde(default)]
    cpu_us_per_job: f64,
    #[serde(default)]
    peak_kib: u64,
    pub(super) p50_ms: Option<f64>,
    pub(super) p99_ms: Option<f64>,
}

impl Line {
    pub(super) fn of(took: &Took) -> anyhow::Result<Self> {
        let line = took.output.lines().last().context("it said nothing")?;
        serde_json::from_str(line).with_context(|| format!("it said {line}"))
    }
}

/// Starts a limit program or a peer with these words, and reads what it says of itself; the broker's account is ours.
pub(super) async fn told(stage: &Stage, who: Who, verb: &str, count: Count) -> anyhow::Result<Sample> {
    let mut words = words(stage, who, verb)?;
    let number = if verb == "work" { "--until" } else { "--jobs" };
    words.args([number, &count.jobs.to_string(), "--warmup", &count.warmup.to_string()]);
    let (load, broker, home) = (Load::start()?, stage.cpu()?, Home::new("", Vec::new())?);
    let took = home.begin(who.name(), words)?.ended().await.with_context(|| format!("{} {verb}", who.name()))?;
    let (broker, line) = (stage.cpu()? - broker, Line::of(&took)?);
    ensure!(line.jobs == count.jobs, "{} {verb} did {} of {} jobs", who.name(), line.jobs, count.jobs);
    Ok(Sample {
        jobs: line.jobs,
        seconds: line.seconds,
        per_second: line.per_second,
        cpu_us: line.cpu_us_per_job,
        broker_us: broker * 1e6 / float(count.all()),
        peak_kib: line.peak_kib.max(took.peak_kib),
        others: load.of_others(took.cpu + broker)?,
        p50_ms: line.p50_ms,
        p99_ms: line.p99_ms,
        ..Sample::default()
    })
}

/// The program and where the broker is.
fn words(stage: &Stage, who: Who, verb: &str) -> anyhow::Result<Command> {
    let mut words = match who {
        Who::Peer(peer) => {
            let mut words = Command::new(tree().join("benches/peers/run"));
            words.args([peer.name, verb]);
            if peer.results {
                words.args(["--results", &stage.ledger().unwrap_or_else(|| stage.url())]);
            }
            if peer.bulk && verb == "enqueue" {
                words.arg("--bulk");
            }
            words
        }
        Who::Promptq | Who::Limit | Who::Bare | Who::Raw => limit(stage, who, verb)?,
    };
    words.args(["--url", &stage.url()]);
    if let Some(queue) = stage.queue() {
        words.args(["--queue", queue]);
    }
    Ok(words)
}

fn limit(stage: &Stage, who: Who, verb: &str) -> anyhow::Result<Command> {
    let mut words = Command::new(built("limit")?);
    words.args([limit_name(stage, who), verb]);
    if who == Who::Limit {
        words.args(["--writes", "promptq"]);
        if let Some(ledger) = stage.ledger() {
            words.args(["--ledger", &ledger]);
        }
    }
    Ok(words)
}

/// By which name the limit program knows who is meant.
fn limit_name(stage: &Stage, who: Who) -> &'static str {
    let driver = match stage.queue() {
        Some(_) => ["rabbit", "rabbit-raw"],
        None if stage.url().starts_with("redis") => ["redis", "redis-raw"],
        None => ["sqlite", "sqlite"],
    };
    driver[usize::from(who == Who::Raw)]
}

/// Where the peers are.
fn tree() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, PathBuf::from)
}

/// promptq's programs on one broker.
#[derive(Debug)]
pub(super) struct Promptq<'a> {
    stage: &'a Stage,
    home: Home,
}

impl<'a> Promptq<'a> {
    pub(super) fn on(stage: &'a Stage) -> anyhow::Result<Self> {
        Ok(Self { stage, home: stage.home(AT_ONCE)? })
    }

    /// One `promptq submit` of so many rows: its start and its check of the whole file before the first job included.
    pub(super) async fn enqueue(&self, jobs: u64) -> anyhow::Result<Sample> {
        self.rows(jobs)?;
        let (load, broker) = (Load::start()?, self.stage.cpu()?);
        let took = self.submit().await?;
        let broker = self.stage.cpu()? - broker;
        let others = load.of_others(took.cpu + broker)?;
        let peaks = Measured { jobs, seconds: took.seconds, cpu: took.cpu, broker, broker_jobs: jobs, others };
        Ok(Sample { peak_kib: took.peak_kib, ..peaks.sample() })
    }

    /// One worker that works off what waits. Its clock runs from the record of its last warm-up job to the last one's.
    pub(super) async fn drain(&self, count: Count) -> anyhow::Result<Sample> {
        let (load, broker) = (Load::start()?, self.stage.cpu()?);
        let mut worker = self.home.start("promptq-worker", &WORKER)?;
        let started = (0, Instant::now(), 0.0);
        let first = self.stage.until_ended(count.warmup, &mut worker).await?;
        // Where a look came too late to be a beginning, all of it is measured.
        let late = first > count.warmup + count.jobs / 2;
        let (first, began, cpu) = if late { started } else { (first, Instant::now(), worker.cpu()?) };
        let last = self.stage.until_ended(count.all(), &mut worker).await?;
        let (seconds, cpu) = (began.elapsed().as_secs_f64(), worker.cpu()? - cpu);
        let broker = self.stage.cpu()? - broker;
        let (all, peak_kib) = worker.stop()?;
        let others = load.of_others(all + broker)?;
        let measured = Measured { jobs: last - first, seconds, cpu, broker, broker_jobs: count.all(), others };
        Ok(Sample { peak_kib, ..measured.sample() })
    }

    /// One worker, warm and waiting, and one `promptq submit` beside it: from the submission's start to the last record.
    pub(super) async fn live(&self, count: Count) -> anyhow::Result<Sample> {
        self.rows(count.warmup)?;
        let mut worker = self.home.start("promptq-worker", &WORKER)?;
        self.submit().await?;
        self.stage.until_ended(count.warmup, &mut worker).await?;
        self.rows(count.jobs)?;
        let (load, broker, cpu, began) = (Load::start()?, self.stage.cpu()?, worker.cpu()?, Instant::now());
        let (submitted, ended) = tokio::join!(self.submit(), self.stage.until_ended(count.all(), &mut worker));
        let seconds = began.elapsed().as_secs_f64();
        let (submitted, _) = (submitted?, ended?);
        let (cpu, broker) = (worker.cpu()? - cpu + submitted.cpu, self.stage.cpu()? - broker);
        let others = load.of_others(cpu + broker)?;
        let measured = Measured { jobs: count.jobs, seconds, cpu, broker, broker_jobs: count.jobs, others };
        let (_, peak_kib) = worker.stop()?;
        Ok(Sample { peak_kib: peak_kib.max(submitted.peak_kib), ..measured.sample() })
    }

    async fn submit(&self) -> anyhow::Result<Took> {
        let submit = self.home.start("promptq", &["submit", "rows.csv", "-t", "{{text}}", "-m", "mock"])?;
        submit.ended().await.context("promptq submit")
    }

    /// The table that is submitted next, on the disk before any clock runs.
    fn rows(&self, jobs: u64) -> anyhow::Result<()> {
        let mut text = String::from("text\n");
        for row in 0..jobs {
            writeln!(text, "{}", prompt(row))?;
        }
        let file = std::fs::File::create(self.home.path().join("rows.csv"))?;
        std::io::Write::write_all(&mut &file, text.as_bytes())?;
        Ok(file.sync_all()?)
    }
}

/// With fewer than this many deliveries ahead RabbitMQ was slower, with twice as many hardly faster.
const WORKER: [&str; 2] = ["--concurrency", "500"];

/// What was measured here, not told.
pub(super) struct Measured {
    pub(super) jobs: u64,
    pub(super) seconds: f64,
    /// Of our processes, in seconds.
    pub(super) cpu: f64,
    /// Of the broker, in seconds, and for how many jobs.
    pub(super) broker: f64,
    pub(super) broker_jobs: u64,
    pub(super) others: f64,
}

impl Measured {
    pub(super) fn sample(&self) -> Sample {
        Sample {
            jobs: self.jobs,
            seconds: self.seconds,
            per_second: float(self.jobs) / self.seconds,
            cpu_us: self.cpu * 1e6 / float(self.jobs),
            broker_us: self.broker * 1e6 / float(self.broker_jobs),
            others: self.others,
            ..Sample::default()
        }
    }
}

/// The text of a prompt, another one for each `n`.
pub(crate) fn prompt(n: u64) -> String {
    format!("{n:>8} {}", "words of a prompt ".repeat(TEXT / 18 + 1)).chars().take(TEXT).collect()
}

/// A count as a figure to reckon with.
pub(super) fn float(count: u64) -> f64 {
    usize::try_from(count).map_or(f64::INFINITY, number)
}
