//! From before a submit to the start of the work, one job at a time, in a worker that has nothing else to do. The start is
//! the first line of a handler, promptq's as the peers'; `over http` is the whole worker, seen by a provider in this process.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use promptq_common::broker::Broker;
use promptq_common::job::{Job, Queue};
use promptq_common::work::Work;
use rand::RngExt as _;

use super::programs::{Count, Peer, Who, float, prompt, told};
use super::{Form, Run, SMOKE};
use crate::account::Figure;
use crate::library::enqueue;
use crate::machine::Load;
use crate::process::monotonic;
use crate::provider::{MODEL, Provider};
use crate::report::Sample;
use crate::stage::{Hall, Kind, Stage};

const KINDS: [Kind; 4] = [Kind::Redis, Kind::Quorum, Kind::Classic, Kind::Sqlite];
/// Jobs before the first that is measured.
const WARM_UP: u64 = 20;

/// All rounds.
pub(super) async fn hold(run: &mut Run) -> anyhow::Result<()> {
    let jobs = run.plan.form.of(300, 100, SMOKE).min(300);
    // Each has hundreds of waits in it.
    let rounds = if run.plan.form == Form::Full { run.plan.rounds.min(3) } else { 1 };
    for kind in KINDS {
        run.versions(kind);
        let hall = Hall::open(kind);
        for round in 1..=rounds {
            let mut samples = vec![
                ("promptq", handled(&hall.stage()?, jobs).await?),
                ("over http", called(&hall.stage()?, jobs).await?),
            ];
            for name in if run.plan.peers { peers(kind) } else { &[] } {
                let peer = Who::Peer(Peer { name, results: false, bulk: false });
                let sample = told(&hall.stage()?, peer, "latency", Count { jobs, warmup: WARM_UP }).await?;
                samples.push((name, sample));
            }
            for (contestant, sample) in samples {
                let (contest, measure) = (kind.name().to_owned(), "latency".to_owned());
                run.note(Sample { contest, measure, contestant: contestant.to_owned(), round, ..sample });
            }
        }
    }
    Ok(())
}

fn peers(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Redis | Kind::RedisAlways => &["sidekiq", "bullmq"],
        Kind::Quorum | Kind::Classic => &["dramatiq"],
        Kind::Sqlite => &["apalis"],
    }
}

/// A worker whose handler tells when it begins, and a producer in this process, as the peers have theirs in one.
async fn handled(stage: &Stage, jobs: u64) -> anyhow::Result<Sample> {
    let broker = Broker::connect(&stage.access()?).await?;
    let home = stage.home("")?;
    let (load, began, servers) = (Load::start()?, Instant::now(), stage.cpu()?);
    let mut worker = home.start("handler", &["--max-jobs", &(jobs + WARM_UP).to_string()])?;
    let mut asked = Vec::new();
    for n in 0..jobs + WARM_UP {
        pause().await;
        asked.push(monotonic());
        submit(&broker, "handler", n).await?;
        ensure!(n + 1 == jobs + WARM_UP || !worker.has_left()?, "the worker has left: {}", worker.tail());
    }
    let took = worker.ended().await?;
    let told = took.output.lines().map(|line| Ok(Duration::from_nanos(line.parse()?)));
    let called = told.collect::<anyhow::Result<Vec<_>>>()?;
    ensure!(called.len() == asked.len(), "{} of {} jobs have begun", called.len(), asked.len());
    let delays = called.into_iter().zip(asked).map(|(called, asked)| called.saturating_sub(asked));
    let (delays, servers) = (delays.collect(), stage.cpu()? - servers);
    let (cpu, peak_kib, seconds) = (took.cpu, took.peak_kib, began.elapsed().as_secs_f64());
    Seen { delays, seconds, cpu, peak_kib, servers, others: load.of_others(cpu + servers)? }.sample(jobs)
}

/// A `promptq-worker`, whose calls a provider in this process sees come.
async fn called(stage: &Stage, jobs: u64) -> anyhow::Result<Sample> {
    let mut provider = Provider::start(Duration::ZERO, 16)?;
    let broker = Broker::connect(&stage.access()?).await?;
    let mut home = stage.home("")?;
    home.add(provider.environment());
    let (load, began, servers) = (Load::start()?, Instant::now(), stage.cpu()?);
    let mut worker = home.start("promptq-worker", &[])?;
    let mut delays = Vec::new();
    for n in 0..jobs + WARM_UP {
        pause().await;
        let asked = Instant::now();
        submit(&broker, MODEL, n).await?;
        let called = tokio::time::timeout(Duration::from_secs(30), provider.call()).await;
        ensure!(!worker.has_left()?, "the worker has left: {}", worker.tail());
        let called = called.with_context(|| format!("no call within 30 s: {}", worker.tail()))?;
        delays.push(called.context("the provider is gone")?.duration_since(asked));
    }
    let (seconds, servers) = (began.elapsed().as_secs_f64(), stage.cpu()? - servers);
    let (cpu, peak_kib) = worker.stop()?;
    Seen { delays, seconds, cpu, peak_kib, servers, others: load.of_others(cpu + servers)? }.sample(jobs)
}

async fn pause() {
    let wait = Duration::from_micros(rand::rng().random_range(20_000..60_000));
    tokio::time::sleep(wait).await;
}

async fn submit(broker: &Broker, model: &str, n: u64) -> anyhow::Result<()> {
    enqueue(broker, &[Job::new(Queue::standard(), Work::prompt(Some(model), prompt(n)))]).await
}

/// What was seen of one worker, the jobs of the warm-up first.
struct Seen {
    delays: Vec<Duration>,
    seconds: f64,
    cpu: f64,
    peak_kib: u64,
    servers: f64,
    others: f64,
}

impl Seen {
    fn sample(mut self, jobs: u64) -> anyhow::Result<Sample> {
        let mut waits: Vec<_> =
            self.delays.split_off(usize::try_from(WARM_UP)?).into_iter().map(|wait| wait.as_secs_f64() * 1e3).collect();
        waits.sort_by(f64::total_cmp);
        Ok(Sample {
            jobs,
            seconds: self.seconds,
            per_second: float(jobs) / self.seconds,
            cpu_us: self.cpu * 1e6 / float(jobs + WARM_UP),
            broker_us: self.servers * 1e6 / float(jobs + WARM_UP),
            peak_kib: self.peak_kib,
            others: self.others,
            p50_ms: Figure::of(waits.iter().copied()).map(|figure| figure.median),
            p99_ms: waits.get((waits.len() * 99 / 100).min(waits.len() - 1)).copied(),
            ..Sample::default()
        })
    }
}
