//! `promptq retry`: puts dead, cancelled or expired jobs back in their queue. Also what `dead redrive` does to each.

use promptq_common::broker::{MAX_BATCH, Redriven};
use promptq_common::job::JobId;
use promptq_common::telemetry::{Act, audit};
use serde_json::json;

use crate::cli::Output;
use crate::context::Context;
use crate::list::thousands;
use crate::pick;
use crate::problem::{Exit, Problem, Result};

/// Which jobs.
#[derive(Debug, clap::Args)]
#[command(
    before_help = "Examples:\n  promptq retry 019abcde-0123-7abc-8def-0123456789ab\n  promptq retry 019abcde-0123-7abc-8def-0123456789ab --reason 'key renewed'"
)]
pub struct Args {
    /// Jobs by id
    #[arg(value_name = "ID", required = true)]
    ids: Vec<String>,
    /// Why, for the audit line
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
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
    let ids = pick::ids(&args.ids)?;
    let mut back = Back::default();
    for chunk in ids.chunks(MAX_BATCH) {
        back.put(cx, chunk).await?;
    }
    let subject = match ids.as_slice() {
        [only] => only.to_string(),
        several => format!("{} jobs by id", several.len()),
    };
    back.finish(cx, &Act { action: "retry", subject: &subject, reason: args.reason.as_deref(), count: 0 })
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

fn more(ids: &[JobId]) -> String {
    match ids.len() {
        0 | 1 => String::new(),
        several => format!(" (and {} more)", several - 1),
    }
}
