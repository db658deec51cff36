//! Thousands of calls of one second in flight in one worker. The goal is for the mock provider, which is in the worker,
//! and counted from the records; beside it a provider behind HTTP, which counts for itself and shares the processors.

use std::time::{Duration, Instant};

use anyhow::Context;
use promptq_common::broker::{Broker, Enqueued};
use promptq_common::job::{BatchName, Job, Queue};
use promptq_common::ledger::{Cursor, Scope};
use promptq_common::work::Work;

use super::programs::{Count, Measured, Who, told};
use super::{Form, Run, SMOKE};
use crate::account::number;
use crate::machine::Load;
use crate::provider::{MODEL, Provider};
use crate::report::Sample;
use crate::stage::{Hall, Kind, Stage};

const SECOND: Duration = Duration::from_secs(1);

/// All rounds.
pub(super) async fn hold(run: &mut Run) -> anyhow::Result<()> {
    let calls = run.plan.form.of(10_000, 10_000, SMOKE);
    let rounds = if run.plan.form == Form::Full { run.plan.rounds.min(5) } else { 1 };
    for kind in [Kind::Sqlite, Kind::Redis, Kind::Quorum] {
        run.versions(kind);
        let hall = Hall::open(kind);
        for round in 1..=rounds {
            let mut samples = Vec::new();
            if kind == Kind::Quorum {
                let (stage, count) = (hall.stage()?, Count { jobs: calls, warmup: 500 });
                told(&stage, Who::Limit, "enqueue", count).await?;
                samples.push(("limit", told(&stage, Who::Limit, "work", count).await?));
            }
            samples.push(("promptq", measured(&hall.stage()?, calls, None).await?));
            let provider = Provider::start(SECOND, 1)?;
            samples.push(("over http", measured(&hall.stage()?, calls, Some(&provider)).await?));
            for (contestant, sample) in samples {
                let (contest, measure) = (kind.name().to_owned(), "calls".to_owned());
                run.note(Sample { contest, measure, contestant: contestant.to_owned(), round, ..sample });
            }
        }
    }
    Ok(())
}

/// One worker with a slot for every call: from the first start to the last end, by its records.
async fn measured(stage: &Stage, calls: u64, provider: Option<&Provider>) -> anyhow::Result<Sample> {
    let broker = Broker::connect(&stage.access()?).await?;
    let batch = BatchName::new("calls")?;
    let model = provider.map_or("mock", |_| MODEL);
    let jobs: Vec<_> = (0..calls)
        .map(|row| Job {
            batch: Some(batch.clone()),
            ..Job::new(Queue::standard(), Work::prompt(Some(model), format!("call {row}")))
        })
        .collect();
    for jobs in jobs.chunks(1_000) {
        let answers = broker.enqueue(jobs).await?;
        anyhow::ensure!(answers.iter().all(|answer| *answer == Enqueued::New), "an enqueue answered {answers:?}");
    }
    drop(jobs);
    let mut home = stage.home("[mock]\nlatency = [\"1s\", \"1s\"]\n")?;
    home.add(provider.into_iter().flat_map(Provider::environment));
    let (load, servers, began) = (Load::start()?, stage.cpu()?, Instant::now());
    let mut worker = home.start("promptq-worker", &["--concurrency", &calls.to_string()])?;
    stage.until_ended(calls, &mut worker).await?;
    let (cpu, servers, whole) = (worker.cpu()?, stage.cpu()? - servers, began.elapsed());
    let (_, peak_kib) = worker.stop()?;
    let others = load.of_others(cpu + servers)?;
    let times = times(&broker, batch).await?;
    let at_once = provider.map_or_else(|| at_once(&times), Provider::most);
    let first = times.iter().map(|(start, _)| *start).min().context("no job has started")?;
    let last = times.iter().map(|(_, end)| *end).max().context("no job has ended")?;
    let seconds = number(usize::try_from(last - first)?) / 1e3;
    anyhow::ensure!(seconds <= whole.as_secs_f64() + 0.01, "{seconds} s of {whole:?}");
    let measured = Measured { jobs: calls, seconds, cpu, broker: servers, broker_jobs: calls, others };
    Ok(Sample { peak_kib, at_once: Some(at_once), ..measured.sample() })
}

/// When each call began and ended, in milliseconds.
async fn times(broker: &Broker, batch: BatchName) -> anyhow::Result<Vec<(i64, i64)>> {
    let (scope, mut cursor, mut times) = (Scope::Batch(batch), Cursor(0), Vec::new());
    loop {
        let page = broker.ledger().results(&scope, cursor, 1_000).await?;
        cursor = page.next;
        for (_, record) in &page.records {
            let started = record.started_at.context("an end without a start")?;
            times.push((started.as_millis(), record.ended_at.as_millis()));
        }
        if !page.more {
            return Ok(times);
        }
    }
}

/// The most that overlap; one that ends in the millisecond in which another starts does not overlap it.
fn at_once(times: &[(i64, i64)]) -> u64 {
    let mut turns: Vec<_> = times.iter().flat_map(|(start, end)| [(*start, 1_i64), (*end, -1)]).collect();
    turns.sort_unstable();
    let (mut open, mut most) = (0, 0);
    for (_, step) in turns {
        open += step;
        most = most.max(open);
    }
    u64::try_from(most).unwrap_or(0)
}
