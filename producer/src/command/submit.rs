//! `promptq submit`: checks an input, enqueues its jobs, prints the batch; waits for them when asked to.

use std::sync::Arc;
use std::time::Duration;

use promptq_common::broker::Broker;
use promptq_common::config::caller;
use promptq_common::job::{BatchName, JobId, Queue};
use promptq_common::ledger::BatchView;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::budget;
use crate::cli::Output;
use crate::context::Context;
use crate::forecast::{Forecast, Forecaster};
use crate::input::args::length;
use crate::input::{Destination, Input, InputArgs, Source};
use crate::limits::follow::Waits;
use crate::list::quoted;
use crate::patience::outlast;
use crate::printer::Format;
use crate::problem::{Exit, Problem, Result};
use crate::progress::{Mode, Progress};
use crate::submit::{self, Checked, Tally, Terms, grouped, jobs};

/// Said where a cap does not hold for all of a batch.
pub(crate) const UNCAPPED: &str = "--max-cost holds for the new jobs alone: the others were enqueued without one";

/// What to submit.
#[derive(Debug, clap::Args)]
#[command(
    before_help = "Examples:\n  promptq submit reviews.csv -t 'Sentiment of: {{text}}' --id-field id --batch nov-reviews\n  promptq submit - --wait < prompts.jsonl"
)]
pub struct SubmitArgs {
    /// What to read, and what becomes of each row.
    #[command(flatten)]
    pub input: InputArgs,
    /// Waits until every job has ended, at most so long
    #[arg(long, value_name = "LENGTH", num_args = 0..=1, require_equals = true, value_parser = length)]
    pub wait: Option<Option<Duration>>,
    /// Publishes what is known and has not ended once more: for jobs whose messages are gone from RabbitMQ
    #[arg(long)]
    pub republish: bool,
    /// With --wait: exits 0 although some jobs are dead
    #[arg(long)]
    pub allow_failures: bool,
    /// With --wait: how progress is shown
    #[arg(long, value_name = "HOW", default_value = "auto")]
    pub progress: Mode,
    /// The shape of data.
    #[command(flatten)]
    pub output: Output,
}

impl SubmitArgs {
    /// The shape of data it was asked for.
    pub fn format(&self) -> Format {
        self.output.format()
    }
}

/// Submits; Ctrl-C leaves what is enqueued in place.
pub async fn run(cx: &Context, args: &SubmitArgs) -> Result<Exit> {
    let job = &args.input.job;
    cx.fit().map_or(Ok(()), |fit| fit.flag(job.model.as_deref()))?;
    let sources = sources(&args.input).await?;
    let batch = match &job.batch {
        Some(name) => name.clone(),
        None => fresh_name()?,
    };
    let queue = job.queue.clone().unwrap_or_else(Queue::standard);
    let policy = cx.config.queues.get(&queue).cloned();
    let reusable_for = cx.config.reusable_for();
    let to = Destination { queue, policy, batch: batch.clone(), named: job.batch.is_some(), reusable_for };
    let input = Arc::new(Input::new(&args.input, sources, to)?.fitting(cx.fit().cloned()));
    let terms = Terms {
        skip_invalid: args.input.skip_invalid,
        on_conflict: job.on_conflict,
        republish: args.republish,
        caller: caller(),
    };
    let broker = cx.broker().await?;
    let whose = (input.queue(), input.batch(), job.max_cost);
    let forecaster = if args.input.dry_run { Some(Forecaster::of(cx, broker, whose).await?) } else { None };
    let checked = if args.input.stream { None } else { Some(submit::check(&input, broker, terms, forecaster).await?) };
    if args.input.dry_run {
        let Some(checked) = checked else {
            return Err(Problem::usage("--dry-run reads the whole input first; leave out --stream"));
        };
        return dry_run(cx, &input, &checked);
    }
    tell_doubts(cx, checked.as_ref());
    let capped = match job.max_cost {
        Some(most) => Some(budget::cap(&cx.printer, broker, &batch, most).await?),
        None => None,
    };
    let tally = submit::enqueue(&input, broker, terms, checked.as_ref(), None)
        .await
        .map_err(|problem| resumable(problem, job.batch.is_some()))?;
    if capped == Some(false) && tally.known > 0 {
        cx.printer.warn(UNCAPPED);
    }
    if job.batch.is_some() {
        tell_cancelled(cx, broker, &batch, tally.new).await;
    }
    let Some(longest) = args.wait else {
        told(cx, &input, &tally, None)?;
        cx.printer.say(&format!("next: promptq status {}", quoted(batch.as_str())));
        return Ok(Exit::Done);
    };
    cx.printer.say(&format!("{} in batch {batch}; Ctrl-C stops the waiting, not the jobs", tally.summary()));
    let (view, pending) = wait(cx, broker, &batch, args.progress, longest).await?;
    told(cx, &input, &tally, Some(&view))?;
    if pending {
        cx.printer.say(&format!("{} still to end", jobs(view.counts.total - view.counts.ended())));
        return Ok(Exit::Pending);
    }
    let all_well = view.counts.succeeded == view.counts.total;
    Ok(if all_well || args.allow_failures { Exit::Done } else { Exit::SomeDead })
}

/// Says of a batch that somebody cancelled what does not run of it, and how it would; `new` of its jobs came just now. What
/// cannot be asked is not told: nothing depends on it.
pub(crate) async fn tell_cancelled(cx: &Context, broker: &Broker, batch: &BatchName, new: u64) {
    let Ok(Some(view)) = broker.ledger().batch(batch).await else { return };
    let (cancelled, name) = (view.counts.cancelled, quoted(batch.as_str()));
    if cancelled > 0 {
        let what = format!("{} of this batch were cancelled, and stay so", jobs(cancelled));
        cx.printer.warn(&format!("{what}; to run them again: promptq retry --batch {name}"));
    }
    if view.cancelled && new > 0 {
        cx.printer.warn("this batch was cancelled: what is new in it is too; under another --batch name it runs");
    }
}

/// Says which jobs may come to nothing.
pub(crate) fn tell_doubts(cx: &Context, checked: Option<&Checked>) {
    for doubt in checked.map(|checked| checked.doubts.lines()).unwrap_or_default() {
        cx.printer.say(&format!("note: {doubt}"));
    }
}

/// What the arguments name; reading standard input may block, so it is done apart.
pub(crate) async fn sources(args: &InputArgs) -> Result<Vec<Source>> {
    let args = args.clone();
    let mut reader = JoinSet::new();
    reader.spawn_blocking(move || Input::open(&args));
    match reader.join_next().await {
        Some(Ok(sources)) => sources,
        Some(Err(_)) | None => Err(Problem::new(Exit::Failed, "failed", "reading the input broke off")),
    }
}

/// What a dry run prints.
pub(crate) fn dry_run(cx: &Context, input: &Input, checked: &Checked) -> Result<Exit> {
    tell_doubts(cx, Some(checked));
    if cx.printer.is_json() {
        cx.printer.json(&json!({ "dry_run": true, "batch": input.batch(), "queue": input.queue(),
            "rows": checked.rows, "known": checked.known, "invalid": checked.invalid, "repeated": checked.repeated,
            "conflicts": checked.conflicts, "first": checked.first.as_ref().map(|first| &first.text),
            "forecast": checked.forecast.as_ref().map(Forecast::json) }))?;
        return Ok(Exit::Done);
    }
    let queue = input.queue();
    let known = grouped(checked.known);
    let left_out = checked.known + checked.conflicts + checked.repeated;
    let new = jobs(checked.rows.saturating_sub(left_out));
    cx.printer.line(&format!("would enqueue {new} to queue {queue} ({known} already known)"))?;
    if checked.invalid + checked.repeated + checked.conflicts > 0 {
        let (invalid, repeated, conflicts) =
            (grouped(checked.invalid), grouped(checked.repeated), grouped(checked.conflicts));
        cx.printer.line(&format!("left out: {invalid} invalid, {repeated} repeated, {conflicts} conflicting"))?;
    }
    let mut forecast = checked.forecast.iter().flat_map(Forecast::lines);
    forecast.try_for_each(|line| cx.printer.line(&format!("  {line}")))?;
    if let Some(first) = &checked.first {
        let id = first.custom_id.as_ref().map(|id| format!(", id {id}")).unwrap_or_default();
        cx.printer.line(&format!("first prompt (row 1{id}): {:?}", first.text))?;
    }
    cx.printer.line("nothing was enqueued")?;
    Ok(Exit::Done)
}

fn told(cx: &Context, input: &Input, tally: &Tally, view: Option<&BatchView>) -> Result<()> {
    if cx.printer.is_json() {
        return cx.printer.json(&json!({ "batch": input.batch(), "queue": input.queue(), "new": tally.new,
            "known": tally.known, "republished": tally.again, "invalid": tally.invalid,
            "conflicts": tally.conflicts, "repeated": tally.repeated,
            "counts": view.map(|view| view.counts), "cost_usd": view.and_then(BatchView::known_cost),
            "cost_unknown": view.map(|view| view.cost_unknown) }));
    }
    cx.printer.line(input.batch().as_str())?;
    match view {
        None => cx.printer.say(&format!("{} to queue {}", tally.summary(), input.queue())),
        Some(view) => {
            let counts = &view.counts;
            let (succeeded, others) = (grouped(counts.succeeded), grouped(counts.ended() - counts.succeeded));
            cx.printer.say(&format!("done: {succeeded} succeeded, {others} did not"));
        }
    }
    Ok(())
}

/// Waits until every job has ended or `longest` is over; true when it was.
async fn wait(
    cx: &Context,
    broker: &Broker,
    batch: &BatchName,
    mode: Mode,
    longest: Option<Duration>,
) -> Result<(BatchView, bool)> {
    let until = longest.map(|longest| Instant::now() + longest);
    let (mut progress, mut waits) = (Progress::new(mode, cx.printer), Waits::default());
    loop {
        let Some(view) = outlast(&cx.printer, async || broker.ledger().batch(batch).await).await? else {
            return Err(Problem::new(Exit::NotFound, "not-found", format!("batch {batch} is gone")));
        };
        let blocked = waits.line(broker.ledger(), &view, None).await;
        progress.show(&view, 0, blocked.as_deref());
        if let Some(news) = waits.news() {
            progress.hide(|| cx.printer.say(&news));
        }
        if view.counts.ended() >= view.counts.total {
            return Ok((view, false));
        }
        if let Some(short) = outlast(&cx.printer, async || budget::spent(broker, &view).await).await? {
            return Err(budget::stopped(broker, &view, short.0.as_ref()).await?);
        }
        if until.is_some_and(|until| Instant::now() >= until) {
            return Ok((view, true));
        }
        let next = Instant::now() + Duration::from_millis(300);
        tokio::time::sleep_until(until.map_or(next, |until| until.min(next))).await;
    }
}

fn resumable(problem: Problem, named: bool) -> Problem {
    if named { problem.hint("the same command again enqueues only what is missing") } else { problem }
}

fn fresh_name() -> Result<BatchName> {
    BatchName::new(&JobId::fresh().to_string()).map_err(|bad| Problem::new(Exit::Failed, "failed", bad.to_string()))
}
