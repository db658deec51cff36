//! `promptq retry`: puts dead, cancelled or expired jobs back in their queue. Also what `dead redrive` does to each.

use promptq_common::broker::{MAX_BATCH, Redriven};
use promptq_common::job::{BatchName, JobId};
use promptq_common::ledger::JobFilter;
use promptq_common::record::State;
use promptq_common::telemetry::{Act, audit};
use serde_json::json;

use super::cancel::no_batch;
use crate::cli::{Confirm, Output};
use crate::confirm::{Deed, allowed};
use crate::context::Context;
use crate::list::thousands;
use crate::pick::{self, Pick};
use crate::problem::{Exit, Problem, Result};

/// Which jobs.
#[derive(Debug, clap::Args)]
#[command(
    before_help = "Examples:\n  promptq retry 019abcde-0123-7abc-8def-0123456789ab --reason 'key renewed'\n  promptq retry --batch nov-reviews --dry-run"
)]
pub struct Args {
    /// Jobs by id
    #[arg(value_name = "ID", required_unless_present = "batch", conflicts_with = "batch")]
    ids: Vec<String>,
    /// All jobs of a batch that ended without an answer: dead, cancelled, expired
    #[arg(long, value_name = "NAME")]
    batch: Option<BatchName>,
    /// Asking.
    #[command(flatten)]
    confirm: Confirm,
    /// The shape.
    #[command(flatten)]
    pub output: Output,
}

/// What came of putting jobs back.
#[derive(Debug, Default)]
pub(super) struct Back {
    queued: u64,
    /// Those of them that no message was published for: the old one is to run.
    old: u64,
    waiting: u64,
    succeeded: Vec<JobId>,
    gone: Vec<JobId>,
    unknown: Vec<JobId>,
}

/// Puts them back.
pub async fn run(cx: &Context, args: &Args) -> Result<Exit> {
    let mut back = Back::default();
    let subject = if let Some(name) = &args.batch {
        if !by_batch(cx, &args.confirm, name, &mut back).await? {
            return Ok(Exit::Done);
        }
        format!("batch {name}")
    } else {
        let ids = pick::ids(&args.ids)?;
        if args.confirm.dry_run {
            let samples = ids.iter().take(3).map(ToString::to_string).collect();
            allowed(cx, &args.confirm, &deed(ids.len() as u64, "jobs".to_owned(), samples)).await?;
            return Ok(Exit::Done);
        }
        for chunk in ids.chunks(MAX_BATCH) {
            back.put(cx, chunk).await?;
        }
        match ids.as_slice() {
            [only] => only.to_string(),
            several => format!("{} jobs by id", several.len()),
        }
    };
    back.finish(cx, &Act { action: "retry", subject: &subject, reason: args.confirm.reason.as_deref(), count: 0 })
}

/// Puts back what ended of a batch without an answer; false if that was not allowed.
async fn by_batch(cx: &Context, confirm: &Confirm, name: &BatchName, back: &mut Back) -> Result<bool> {
    let broker = cx.existing().await?;
    if broker.ledger().batch(name).await?.is_none() {
        return Err(no_batch(name));
    }
    let states = vec![State::Dead, State::Cancelled, State::Expired];
    let narrowed = JobFilter { batch: Some(name.clone()), states, ..JobFilter::default() };
    let pick = Pick { narrowed, redrivable: true, ..Pick::default() };
    if !confirm.yes || confirm.dry_run {
        let counted = pick.count(broker).await?;
        let subject = format!("jobs of batch {name} that have no answer");
        if !allowed(cx, confirm, &deed(counted.count, subject, counted.samples)).await? {
            return Ok(false);
        }
    }
    let mut cursor = None;
    loop {
        let (jobs, next) = pick.page(broker, cursor, MAX_BATCH).await?;
        let ids: Vec<JobId> = jobs.iter().map(|job| job.id).collect();
        back.put(cx, &ids).await?;
        if next.is_none() {
            return Ok(true);
        }
        cursor = next;
    }
}

fn deed(count: u64, subject: String, samples: Vec<String>) -> Deed {
    Deed { verb: "retry", count, subject, samples, queue: None }
}

impl Back {
    /// Puts up to [`MAX_BATCH`] jobs back.
    pub(super) async fn put(&mut self, cx: &Context, ids: &[JobId]) -> Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let answers = cx.existing().await?.redrive(ids).await?;
        for (id, answer) in ids.iter().zip(answers) {
            match answer {
                Redriven::Queued { epoch } => {
                    self.queued += 1;
                    // Whatever is published for a redrive has a later one.
                    self.old += u64::from(epoch == 0);
                }
                Redriven::Waiting => self.waiting += 1,
                Redriven::Succeeded => self.succeeded.push(*id),
                Redriven::Gone => self.gone.push(*id),
                Redriven::Unknown => self.unknown.push(*id),
            }
        }
        Ok(())
    }

    /// Says what came of it, for people, programs and the audit.
    pub(super) fn finish(self, cx: &Context, act: &Act<'_>) -> Result<Exit> {
        let Self { queued, waiting, old, .. } = &self;
        audit(&Act { count: *queued, ..act.clone() });
        let problem = self.problem();
        // Where nothing was done there is no data, only the problem.
        if problem.is_none() || queued + waiting > 0 {
            self.show(cx)?;
        }
        if old + waiting > 0 && cx.keeps_messages_apart() {
            cx.printer.say(&unseen(old + waiting));
        }
        problem.map_or(Ok(Exit::Done), Err)
    }

    fn show(&self, cx: &Context) -> Result<()> {
        let Self { queued, waiting, succeeded, gone, unknown, .. } = self;
        if cx.printer.is_json() {
            return cx.printer.json(&json!({
                "queued": queued, "already_waiting": waiting, "succeeded": succeeded, "gone": gone, "unknown": unknown
            }));
        }
        let [queued, waiting] = [queued, waiting].map(|count| thousands(*count));
        cx.printer.line(&format!("back in line {queued}  already waiting {waiting}"))
    }

    fn problem(&self) -> Option<Problem> {
        let Self { succeeded, gone, unknown, .. } = self;
        if let Some(id) = unknown.first() {
            let what = format!("there is no job {id}{}", more(unknown));
            return Some(Problem::new(Exit::NotFound, "not-found", what));
        }
        if let Some(id) = gone.first() {
            let what = format!("{id}{} can no longer be run: it was dropped, or is past retention", more(gone));
            return Some(Problem::new(Exit::NotFound, "gone", what).hint("submit it again"));
        }
        let id = succeeded.first()?;
        let what = format!("{id}{} has succeeded, and a success is never replaced", more(succeeded));
        Some(Problem::new(Exit::Conflict, "succeeded", what).hint("submit it again as a new job"))
    }
}

/// What there is to know of jobs whose messages wait at a broker that cannot be asked for them.
fn unseen(jobs: u64) -> String {
    format!(
        "{} run when their messages come up, at their old time if they are delayed (promptq jobs why ID), and RabbitMQ \
         cannot be asked whether those are still there; if they were purged or deleted there, submit the same jobs again \
         with --republish",
        thousands(jobs)
    )
}

/// ` (and 3 more)` after the first of several.
pub(super) fn more(ids: &[JobId]) -> String {
    match ids.len() {
        0 | 1 => String::new(),
        several => format!(" (and {} more)", several - 1),
    }
}
