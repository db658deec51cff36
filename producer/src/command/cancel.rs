//! `promptq cancel`: stops jobs by id, by batch or by filter. Waiting ones end now, running ones within a heartbeat.

use promptq_common::broker::{Cancel, MAX_BATCH};
use promptq_common::job::{BatchName, JobId};
use promptq_common::record::State;
use promptq_common::telemetry::{Act, audit};
use serde_json::json;

use super::retry::more;
use crate::cli::{Confirm, Output};
use crate::confirm::{Deed, allowed};
use crate::context::Context;
use crate::filter;
use crate::list::thousands;
use crate::pick::{self, Pick};
use crate::problem::{Exit, Problem, Result};

/// Which jobs.
#[derive(Debug, clap::Args)]
#[command(
    before_help = "Examples:\n  promptq cancel --batch nov-reviews --reason 'wrong prompt'\n  promptq cancel --where 'state=queued and model=gpt* and age>1h' --dry-run",
    after_help = "Waiting jobs end at once. A running job is stopped at its worker's next heartbeat, within 10 s unless worker.heartbeat says otherwise."
)]
pub struct Args {
    /// Jobs by id
    #[arg(value_name = "ID", required_unless_present_any = ["batch", "filter"], conflicts_with_all = ["batch", "filter"])]
    ids: Vec<String>,
    /// All that is left of a batch, jobs submitted to it later included
    #[arg(long, value_name = "NAME", conflicts_with = "filter")]
    batch: Option<BatchName>,
    /// All waiting and running jobs that fit
    #[arg(long = "where", value_name = "FILTER")]
    filter: Option<String>,
    /// Asking.
    #[command(flatten)]
    confirm: Confirm,
    /// The shape.
    #[command(flatten)]
    pub output: Output,
}

/// What came of it.
#[derive(Debug, Default)]
struct Done {
    ended: u64,
    flagged: u64,
    already: u64,
    /// Those of the flagged that nobody has seen: RabbitMQ cannot be asked whether their messages are there.
    unseen: Vec<JobId>,
    unknown: Vec<JobId>,
}

/// Cancels them.
pub async fn run(cx: &Context, args: &Args) -> Result<Exit> {
    match (&args.batch, &args.filter) {
        (Some(batch), _) => by_batch(cx, args, batch).await,
        (None, Some(text)) => by_filter(cx, args, text).await,
        (None, None) => by_ids(cx, args).await,
    }
}

async fn by_ids(cx: &Context, args: &Args) -> Result<Exit> {
    let ids = pick::ids(&args.ids)?;
    if args.confirm.dry_run {
        let samples = ids.iter().take(3).map(ToString::to_string).collect();
        let deed = Deed { verb: "cancel", count: ids.len() as u64, subject: "jobs".to_owned(), samples, queue: None };
        allowed(cx, &args.confirm, &deed).await?;
        return Ok(Exit::Done);
    }
    let mut done = Done::default();
    for chunk in ids.chunks(MAX_BATCH) {
        stop(cx, chunk, &mut done).await?;
    }
    let subject = match ids.as_slice() {
        [only] => only.to_string(),
        several => format!("{} jobs by id", several.len()),
    };
    finish(cx, args, &subject, &done)
}

async fn by_batch(cx: &Context, args: &Args, name: &BatchName) -> Result<Exit> {
    let broker = cx.existing().await?;
    let Some(batch) = broker.ledger().batch(name).await? else { return Err(no_batch(name)) };
    let deed = Deed {
        verb: "cancel",
        count: batch.counts.total - batch.counts.ended(),
        subject: format!("jobs of batch {name}"),
        samples: Vec::new(),
        queue: Some(batch.queue),
    };
    if !allowed(cx, &args.confirm, &deed).await? {
        return Ok(Exit::Done);
    }
    let counts = broker.cancel_batch(name).await?;
    let done = Done { ended: counts.ended, flagged: counts.flagged, ..Done::default() };
    finish(cx, args, &format!("batch {name}"), &done)
}

pub(super) fn no_batch(name: &BatchName) -> Problem {
    Problem::new(Exit::NotFound, "not-found", format!("there is no batch {:?}", name.as_str()))
        .hint("promptq status lists the newest batches")
}

async fn by_filter(cx: &Context, args: &Args, text: &str) -> Result<Exit> {
    let broker = cx.existing().await?;
    let mut pick = Pick::by(filter::parse(text)?);
    let living = |state: &State| !state.is_ended();
    if pick.narrowed.states.is_empty() {
        pick.narrowed.states = State::ALL.into_iter().filter(living).collect();
    } else {
        pick.narrowed.states.retain(living);
        if pick.narrowed.states.is_empty() {
            return Err(Problem::usage("the filter fits only jobs that have ended; there is nothing to cancel"));
        }
    }
    if !args.confirm.yes || args.confirm.dry_run {
        let counted = pick.count(broker).await?;
        let deed = Deed {
            verb: "cancel",
            count: counted.count,
            subject: "jobs that fit".to_owned(),
            samples: counted.samples,
            queue: pick.narrowed.queue.clone(),
        };
        if !allowed(cx, &args.confirm, &deed).await? {
            return Ok(Exit::Done);
        }
    }
    let (mut done, mut cursor) = (Done::default(), None);
    loop {
        let (jobs, next) = pick.page(broker, cursor, MAX_BATCH).await?;
        let ids: Vec<JobId> = jobs.iter().map(|job| job.id).collect();
        stop(cx, &ids, &mut done).await?;
        if next.is_none() {
            break;
        }
        cursor = next;
    }
    finish(cx, args, text, &done)
}

async fn stop(cx: &Context, ids: &[JobId], done: &mut Done) -> Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    let broker = cx.existing().await?;
    // Before it is asked: cancelling leaves a trace of what it does not find.
    let seen = if cx.keeps_messages_apart() { broker.ledger().fetch(ids).await? } else { Vec::new() };
    let mut seen = seen.iter();
    let answers = broker.cancel(ids).await?;
    for (id, answer) in ids.iter().zip(answers) {
        let is_seen = seen.next().is_none_or(Option::is_some);
        match answer {
            Cancel::Ended => done.ended += 1,
            Cancel::Flagged if !is_seen => done.unseen.push(*id),
            Cancel::Flagged => done.flagged += 1,
            Cancel::Already(_) => done.already += 1,
            Cancel::Unknown => done.unknown.push(*id),
        }
    }
    Ok(())
}

fn finish(cx: &Context, args: &Args, subject: &str, done: &Done) -> Result<Exit> {
    let Done { ended, flagged, already, unseen, unknown } = done;
    let reason = args.confirm.reason.as_deref();
    let count = ended + flagged + u64::try_from(unseen.len()).unwrap_or(u64::MAX);
    audit(&Act { action: "cancel", subject, reason, count });
    let missing = unknown
        .first()
        .map(|id| Problem::new(Exit::NotFound, "not-found", format!("there is no job {id}{}", more(unknown))));
    // Where nothing was met there is no data, only the problem.
    if missing.is_none() || count + already > 0 {
        if cx.printer.is_json() {
            cx.printer.json(&json!({ "cancelled": ended, "stopping": flagged, "already": already,
                "unseen": unseen, "unknown": unknown }))?;
        } else {
            let [ended, flagged, already] = [ended, flagged, already].map(|count| thousands(*count));
            cx.printer.line(&format!("cancelled {ended}  stopping {flagged}  already finished {already}"))?;
        }
    }
    if let Some(id) = unseen.first() {
        cx.printer.say(&format!(
            "nobody has seen {id}{} yet: stopped if it comes up, and RabbitMQ cannot be asked whether there is such a job",
            more(unseen)
        ));
    }
    missing.map_or(Ok(Exit::Done), Err)
}
