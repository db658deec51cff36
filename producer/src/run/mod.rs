//! One run: submit, work and write results at the same time, and go on where the last one stopped.
//! Enqueueing is `submit.rs`, working is promptq-worker's, the output `follow.rs` and `output.rs`.

mod drive;
mod ends;
mod follow;
mod lock;
mod output;
mod summary;

use std::path::Path;
use std::sync::Arc;

use promptq_common::broker::{Broker, MAX_BATCH, Redriven};
use promptq_common::config::Origin;
use promptq_common::job::{BatchName, JobId, Queue};
use promptq_common::ledger::JobFilter;
use promptq_common::record::State;
use promptq_common::store::Store;
use promptq_common::telemetry::{Act, audit};
use promptq_worker::runner::Runners;
use promptq_worker::status::Board;
use promptq_worker::{Parts, configured};

use crate::command::run::RunArgs;
use crate::command::submit::{UNCAPPED, dry_run, sources, tell_cancelled, tell_doubts};
use crate::context::Context;
use crate::forecast::Forecaster;
use crate::input::{Destination, Input};
use crate::problem::{Exit, Problem, Result};
use crate::settings;
use crate::sink;
use crate::submit::{self, Fit, Terms};
use drive::Drive;
use follow::{Follower, Sink};
use lock::Lock;
use output::{OutputFile, Position};

/// Runs to the end, or until it is stopped. Dies after any step: the same command again recovers the leases of the
/// worker that signed the lock, enqueues what is missing, and cuts the output back to the last saved position.
pub(crate) async fn run(cx: &Context, args: &RunArgs) -> Result<Exit> {
    let (job, fleet) = (&args.input.job, args.input.job.queue.is_some());
    // A fleet's workers have runners of their own.
    let runners = if fleet { None } else { Some(runners(cx, args.input.dry_run)?) };
    let fit = runners.clone().map(|runners| Arc::new(Fit::own(&cx.config, runners))).or_else(|| cx.fit().cloned());
    fit.iter().try_for_each(|fit| fit.flag(job.model.as_deref()))?;
    let sources = sources(&args.input).await?;
    let is_stdout = |path: &Path| path == Path::new("-") || path == Path::new("/dev/stdout");
    let output = Some(args.output.as_path()).filter(|path| !is_stdout(path));
    let address = cx.config.broker.url.expose();
    let identity = tokio::task::block_in_place(|| lock::identity(&args.input, &sources, address, output))?;
    let identity = if args.input.stream { JobId::fresh().to_string() } else { identity };
    let name = format!("run-{identity}");
    let mut lock = tokio::task::block_in_place(|| Lock::take(&name))?;

    let to = destination(cx, args, &name)?;
    let (queue, batch) = (to.queue.clone(), to.batch.clone());
    let input = Arc::new(Input::new(&args.input, sources, to)?.fitting(fit));
    let broker = cx.broker().await?;
    if let Some(predecessor) = lock.predecessor.as_ref().filter(|_| !fleet && !args.input.dry_run) {
        broker.recover(predecessor).await?;
    }
    let (skip_invalid, caller) = (args.input.skip_invalid, promptq_common::config::caller());
    let terms = Terms { skip_invalid, on_conflict: job.on_conflict, caller, ..Terms::default() };
    let whose = (&queue, &batch, job.max_cost);
    let forecaster = if args.input.dry_run { Some(Forecaster::of(cx, broker, whose).await?) } else { None };
    let checked = if args.input.stream { None } else { Some(submit::check(&input, broker, terms, forecaster).await?) };
    if args.input.dry_run {
        let Some(checked) = checked else {
            return Err(Problem::usage("--dry-run reads the whole input first; leave out --stream"));
        };
        return dry_run(cx, &input, &checked);
    }
    tell_doubts(cx, checked.as_ref());
    if let Some(most) = job.max_cost {
        let is_new = broker.ledger().batch(&batch).await?.is_none();
        // Its own workers keep all of the batch under it; of a fleet's each goes by what the jobs say.
        if !crate::budget::cap(&cx.printer, broker, &batch, most).await? && fleet && !is_new {
            cx.printer.warn(UNCAPPED);
        }
    }
    let store = if cx.config.store.url.is_some() { Some(cx.store().await?.clone()) } else { None };
    let follower = follower(cx, args, output, &name, (broker, store.clone(), &batch)).await?;
    if args.retry_dead {
        let redriven = retry_dead(broker, &batch).await?;
        cx.printer.say(&format!("{} of an earlier run tried again", submit::jobs(redriven)));
    }
    tell_cancelled(cx, broker, &batch, 0).await;
    let parts = runners.map(|runners| parts(cx, args, (&queue, &batch), (broker, store, runners)));
    if let Some(parts) = &parts {
        lock.sign(&parts.settings.worker)?;
        let count = checked.as_ref().map(|checked| submit::jobs(checked.rows));
        let (count, workers) = (count.as_deref().unwrap_or("standard input"), parts.settings.concurrency);
        cx.printer.say(&format!("{name} · {count} · {workers} at a time"));
    }
    let drive = Drive::new(cx, args, follower, batch, queue);
    drive.finish(broker, input, (terms, checked), parts).await
}

fn destination(cx: &Context, args: &RunArgs, name: &str) -> Result<Destination> {
    let failed = |bad: promptq_common::job::BadName| Problem::new(Exit::Failed, "failed", bad.to_string());
    let job = &args.input.job;
    let batch = job.batch.clone().map_or_else(|| BatchName::new(name), Ok).map_err(failed)?;
    let queue = job.queue.clone().map_or_else(|| Queue::new(name), Ok).map_err(failed)?;
    let policy = cx.config.queues.get(&queue).cloned();
    Ok(Destination { queue, policy, batch, named: true, reusable_for: cx.config.reusable_for() })
}

async fn follower(
    cx: &Context,
    args: &RunArgs,
    output: Option<&Path>,
    name: &str,
    (broker, store, batch): (&Broker, Option<Store>, &BatchName),
) -> Result<Follower> {
    let note = format!("{name}/output");
    let sink = match output {
        None => Sink::Stdout(cx.printer, Position::default()),
        Some(path) if sink::Sink::is_special(path) => {
            let stream = tokio::task::block_in_place(|| sink::Sink::create(path, true))?;
            Sink::Stream(Box::new(stream), Position::default())
        }
        Some(path) => {
            let known = if args.overwrite { Vec::new() } else { Follower::saved(broker, &note).await? };
            let file = tokio::task::block_in_place(|| OutputFile::open(path, &known, args.overwrite))?;
            Sink::File(Box::new(file))
        }
    };
    let mut follower = Follower::new(broker.clone(), store, batch.clone(), note, sink);
    follower.save().await?;
    Ok(follower)
}

/// The workers of this run: they lease from its queue alone, run its batch alone, and may start programs for it.
fn parts(
    cx: &Context,
    args: &RunArgs,
    (queue, batch): (&Queue, &BatchName),
    (broker, store, runners): (&Broker, Option<Store>, Arc<Runners>),
) -> Parts {
    let config = &cx.config;
    let mut settings = configured::settings(config);
    settings.queues = vec![(queue.clone(), 1)];
    settings.own_batch = Some(batch.clone());
    settings.own_cap = args.input.job.max_cost;
    settings.concurrency = args.concurrency.unwrap_or(settings.concurrency);
    settings.roll_up =
        config.settings.iter().any(|setting| setting.name == "store.url" && setting.origin != Origin::Default);
    Parts { broker: broker.clone(), store, runners, settings, board: Board::new() }
}

/// What this run's workers can run.
fn runners(cx: &Context, dry_run: bool) -> Result<Arc<Runners>> {
    if !dry_run {
        cx.config.callable().map_err(|errors| settings::problem(&errors))?;
    }
    let mut settings = configured::runners(&cx.config);
    settings.exec.allow_inline = true;
    let runners = Runners::new(settings).map_err(|error| Problem::new(Exit::Usage, "config", format!("{error:#}")))?;
    Ok(Arc::new(runners))
}

/// Puts every dead job of the batch back in line, before anything runs.
async fn retry_dead(broker: &Broker, batch: &BatchName) -> Result<u64> {
    let filter = JobFilter { batch: Some(batch.clone()), states: vec![State::Dead], ..JobFilter::default() };
    let (mut cursor, mut redriven) = (None, 0);
    loop {
        let page = broker.ledger().list(&filter, cursor.as_deref(), MAX_BATCH).await?;
        let ids: Vec<_> = page.items.iter().map(|job| job.id).collect();
        if !ids.is_empty() {
            let answers = broker.redrive(&ids).await?;
            redriven += answers.iter().filter(|answer| matches!(answer, Redriven::Queued { .. })).count() as u64;
        }
        cursor = page.next;
        if cursor.is_none() {
            audit(&Act {
                action: "redrive",
                subject: batch.as_str(),
                reason: Some("run --retry-dead"),
                count: redriven,
            });
            return Ok(redriven);
        }
    }
}
