//! From before a submit to the start of the work, one job at a time, in a worker that has nothing else to do. promptq's
//! start is seen by a provider in this process, so that the call's way there counts as well; the peers tell theirs.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use promptq_common::broker::{Broker, Enqueued};
use promptq_common::job::{Job, Queue};
use promptq_common::work::Work;
use rand::RngExt as _;

use super::programs::{Count, Peer, Who, float, prompt, told};
use super::{Form, Run};
use crate::account::Figure;
use crate::machine::Load;
use crate::provider::{MODEL, Provider};
use crate::report::Sample;
use crate::stage::{Hall, Kind, Stage};

const KINDS: [Kind; 4] = [Kind::Redis, Kind::Quorum, Kind::Classic, Kind::Sqlite];
/// Jobs before the first that is measured.
const WARM_UP: u64 = 20;

/// All rounds.
pub(super) async fn hold(run: &mut Run) -> anyhow::Result<()> {
    let jobs = run.plan.form.of(300, 100).min(300);
    // Each has hundreds of waits in it.
    let rounds = if run.plan.form == Form::Full { run.plan.rounds.min(3) } else { 1 };
    for kind in KINDS {
        run.versions(kind);
        let hall = Hall::open(kind);
        for round in 1..=rounds {
            let mut samples = vec![("promptq", promptq(&hall.stage()?, jobs).await?)];
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

/// A `promptq-worker`, and a producer in this process, as the peers have theirs in one.
async fn promptq(stage: &Stage, jobs: u64) -> anyhow::Result<Sample> {
    let mut provider = Provider::start(Duration::ZERO, 16)?;
    let broker = Broker::connect(&stage.access()?).await?;
    let mut home = stage.home("")?;
    home.add(provider.environment());
    let (load, began, servers) = (Load::start()?, Instant::now(), stage.cpu()?);
    let mut worker = home.start("promptq-worker", &[])?;
    let mut waits = Vec::new();
    for n in 0..jobs + WARM_UP {
        let wait = Duration::from_micros(rand::rng().random_range(20_000..60_000));
        tokio::time::sleep(wait).await;
        let job = Job::new(Queue::standard(), Work::prompt(Some(MODEL), prompt(n)));
        let asked = Instant::now();
        let answers = broker.enqueue(&[job]).await?;
        ensure!(answers == [Enqueued::New], "an enqueue answered {answers:?}");
        let called = tokio::time::timeout(Duration::from_secs(30), provider.call()).await;
        ensure!(!worker.has_left()?, "the worker has left: {}", worker.tail());
        let called = called.with_context(|| format!("no call within 30 s: {}", worker.tail()))?;
        waits.push(called.context("the provider is gone")?.duration_since(asked).as_secs_f64() * 1e3);
    }
    let mut waits = waits.split_off(usize::try_from(WARM_UP)?);
    waits.sort_by(f64::total_cmp);
    let (seconds, servers) = (began.elapsed().as_secs_f64(), stage.cpu()? - servers);
    let (cpu, peak_kib) = worker.stop()?;
    Ok(Sample {
        jobs,
        seconds,
        per_second: float(jobs) / seconds,
        cpu_us: cpu * 1e6 / float(jobs + WARM_UP),
        broker_us: servers * 1e6 / float(jobs + WARM_UP),
        peak_kib,
        others: load.of_others(cpu + servers)?,
        p50_ms: Figure::of(waits.iter().copied()).map(|figure| figure.median),
        p99_ms: waits.get((waits.len() * 99 / 100).min(waits.len() - 1)).copied(),
        ..Sample::default()
    })
}
