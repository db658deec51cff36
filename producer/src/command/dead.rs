//! `promptq dead`: what was given up: list it, see its causes, put it back, forget it.

use promptq_common::broker::MAX_BATCH;
use promptq_common::job::{JobId, Queue};
use promptq_common::ledger::DeadGroup;
use promptq_common::outcome::FailureClass;
use promptq_common::record::State;
use promptq_common::telemetry::{Act, audit};
use serde_json::{Value, json};

use super::jobs;
use super::retry::Back;
use crate::cli::{Confirm, ListOutput, Output};
use crate::confirm::{Deed, allowed};
use crate::context::Context;
use crate::filter;
use crate::list::{Column, List, ago, cell, thousands};
use crate::pace::{Pace, Steps};
use crate::pick::{self, Pick};
use crate::printer::Format;
use crate::problem::{Exit, Problem, Result};

/// What about them.
#[derive(Debug, clap::Args)]
#[command(
    before_help = "Examples:\n  promptq dead groups -Q default\n  promptq dead redrive -Q default --code context_length_exceeded --dry-run"
)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What can be done.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// List dead jobs, newest first
    List {
        /// Which.
        #[command(flatten)]
        which: Which,
        /// At most so many; 0 for all
        #[arg(long, default_value_t = 50, value_name = "N")]
        limit: usize,
        /// Go on where another list ended
        #[arg(long, value_name = "CURSOR")]
        cursor: Option<String>,
        /// The shape.
        #[command(flatten)]
        output: ListOutput,
    },
    /// Count dead jobs by cause, with what may help
    Groups {
        /// Only this queue
        #[arg(short = 'Q', long)]
        queue: Option<Queue>,
        /// The shape.
        #[command(flatten)]
        output: ListOutput,
    },
    /// Put dead jobs back in their queue, attempts at zero
    Redrive {
        /// Which.
        #[command(flatten)]
        chosen: Chosen,
        /// No faster than this, such as 5/s, 300/m or 1000/h; stopped early, the rest stays dead
        #[arg(long, value_name = "RATE")]
        rate: Option<Pace>,
    },
    /// Forget dead jobs: they can no longer be put back
    Drop(Chosen),
}

/// Which dead jobs.
#[derive(Clone, Debug, clap::Args)]
pub struct Which {
    /// Only this queue
    #[arg(short = 'Q', long)]
    queue: Option<Queue>,
    /// Only this cause, as `dead groups` names it
    #[arg(long, value_name = "CODE")]
    code: Option<String>,
    /// Only those that fit, such as 'model=gpt* and age>1h'
    #[arg(long = "where", value_name = "FILTER")]
    filter: Option<String>,
}

/// Dead jobs to act on.
#[derive(Clone, Debug, clap::Args)]
pub struct Chosen {
    /// Jobs by id
    #[arg(value_name = "ID", conflicts_with_all = ["queue", "code", "filter", "all"])]
    ids: Vec<String>,
    /// Which.
    #[command(flatten)]
    which: Which,
    /// All dead jobs of all queues
    #[arg(long, conflicts_with_all = ["queue", "code", "filter"])]
    all: bool,
    /// Asking.
    #[command(flatten)]
    confirm: Confirm,
    /// The shape.
    #[command(flatten)]
    output: Output,
}

impl Args {
    /// The shape of data it was asked for.
    pub fn format(&self) -> Format {
        match &self.action {
            Action::List { output, .. } | Action::Groups { output, .. } => output.output.format(),
            Action::Redrive { chosen, .. } | Action::Drop(chosen) => chosen.output.format(),
        }
    }
}

/// Lists, groups, puts back or forgets.
pub async fn run(cx: &Context, args: &Args) -> Result<Exit> {
    match &args.action {
        Action::List { which, limit, cursor, output } => {
            jobs::list(cx, &which.pick()?, *limit, cursor.clone(), &output.fields).await?;
            Ok(Exit::Done)
        }
        Action::Groups { queue, output } => groups(cx, queue.as_ref(), &output.fields).await,
        Action::Redrive { chosen, rate } => redrive(cx, chosen, *rate).await,
        Action::Drop(chosen) => drop_jobs(cx, chosen).await,
    }
}

impl Which {
    fn pick(&self) -> Result<Pick> {
        let mut pick = match &self.filter {
            Some(text) => Pick::by(filter::parse(text)?),
            None => Pick::default(),
        };
        if self.queue.is_some() {
            pick.narrowed.queue.clone_from(&self.queue);
        }
        if self.code.is_some() {
            pick.narrowed.code.clone_from(&self.code);
        }
        pick.narrowed.states = vec![State::Dead];
        pick.redrivable = true;
        Ok(pick)
    }

    fn text(&self) -> String {
        let parts = [
            self.queue.as_ref().map(|queue| format!("queue={queue}")),
            self.code.as_ref().map(|code| format!("code={code}")),
            self.filter.clone(),
        ];
        let said: Vec<String> = parts.into_iter().flatten().collect();
        if said.is_empty() { "all dead jobs".to_owned() } else { said.join(" and ") }
    }
}

async fn groups(cx: &Context, queue: Option<&Queue>, fields: &[String]) -> Result<Exit> {
    const COLUMNS: &[Column] = &[
        ("count", |item| item["count"].as_u64().map_or_else(String::new, thousands)),
        ("code", |item| cell(item, "code")),
        ("class", |item| cell(item, "class")),
        ("queue", |item| cell(item, "queue")),
        ("model", |item| cell(item, "model")),
        ("first", |item| ago(item, "first")),
        ("last", |item| ago(item, "last")),
        ("suggestion", |item| cell(item, "suggestion")),
    ];
    let groups = cx.existing().await?.ledger().dead_groups(queue).await?;
    List::whole(groups.iter().map(group).collect()).print(cx, COLUMNS, fields)?;
    Ok(Exit::Done)
}

fn group(group: &DeadGroup) -> Value {
    let mut item = json!(group);
    item["suggestion"] = suggestion(group).into();
    item
}

/// What may help, by what went wrong.
fn suggestion(group: &DeadGroup) -> &'static str {
    if group.code == "crash_loop" {
        return "its worker died each time: look at the worker's log before a redrive";
    }
    match group.class {
        Some(FailureClass::Content) => "refused for what it says: change the prompt, or drop",
        Some(FailureClass::Fatal) => "will not work as it is: mend the request or the settings, then redrive",
        Some(FailureClass::Account) => "renew key, credit or permission, then redrive",
        Some(FailureClass::TimedOut) => "raise the queue's timeout and submit again, or redrive",
        Some(
            FailureClass::Throttled
            | FailureClass::Capacity
            | FailureClass::Transient
            | FailureClass::UnknownBilled
            | FailureClass::Crashed,
        )
        | None => "redrive once the cause is gone",
    }
}

/// What is to be acted on: ids as given, or everything picked.
enum Target {
    Ids(Vec<JobId>),
    Pick(Box<Pick>),
}

/// What to act on, once it has been allowed; `None` for a dry run.
async fn target(cx: &Context, chosen: &Chosen, verb: &'static str) -> Result<Option<Target>> {
    let Chosen { ids, which, all, confirm, .. } = chosen;
    if !ids.is_empty() {
        let ids = pick::ids(ids)?;
        let samples = ids.iter().take(3).map(ToString::to_string).collect();
        let deed = Deed { verb, count: ids.len() as u64, subject: "dead jobs".to_owned(), samples, queue: None };
        // Named one by one is meant one by one; only a dry run says more.
        let go = !confirm.dry_run || allowed(cx, confirm, &deed).await?;
        return Ok(go.then_some(Target::Ids(ids)));
    }
    let narrowed = which.queue.is_some() || which.code.is_some() || which.filter.is_some();
    if !narrowed && !all {
        return Err(Problem::usage(format!("{verb} which dead jobs?"))
            .hint("name ids, -Q QUEUE, --code CODE or --where FILTER; --all means all"));
    }
    let pick = which.pick()?;
    if !confirm.yes || confirm.dry_run {
        let counted = pick.count(cx.existing().await?).await?;
        let deed = Deed {
            verb,
            count: counted.count,
            subject: format!("dead jobs ({})", which.text()),
            samples: counted.samples,
            queue: which.queue.clone(),
        };
        if !allowed(cx, confirm, &deed).await? {
            return Ok(None);
        }
    }
    Ok(Some(Target::Pick(Box::new(pick))))
}

impl Target {
    /// The ids, a page at a time; the cursor goes on even where jobs leave the dead set behind it.
    async fn next(&mut self, cx: &Context, cursor: &mut Option<String>) -> Result<(Vec<JobId>, bool)> {
        match self {
            Self::Ids(ids) => {
                let page = ids.drain(..ids.len().min(MAX_BATCH)).collect();
                Ok((page, ids.is_empty()))
            }
            Self::Pick(pick) => {
                let (jobs, next) = pick.page(cx.existing().await?, cursor.take(), MAX_BATCH).await?;
                let last = next.is_none();
                *cursor = next;
                Ok((jobs.iter().map(|job| job.id).collect(), last))
            }
        }
    }
}

async fn redrive(cx: &Context, chosen: &Chosen, rate: Option<Pace>) -> Result<Exit> {
    let Some(mut target) = target(cx, chosen, "redrive").await? else { return Ok(Exit::Done) };
    let (mut back, mut cursor, mut last) = (Back::default(), None, false);
    let mut steps = rate.map(Pace::begin);
    while !last {
        let ids;
        (ids, last) = target.next(cx, &mut cursor).await?;
        let size = steps.as_ref().map_or(MAX_BATCH, Steps::size).min(MAX_BATCH);
        for ids in ids.chunks(size) {
            if let Some(steps) = &mut steps {
                steps.wait(ids.len()).await;
            }
            back.put(cx, ids).await?;
        }
    }
    let reason = chosen.confirm.reason.as_deref();
    back.finish(cx, &Act { action: "redrive", subject: &subject(chosen), reason, count: 0 })
}

async fn drop_jobs(cx: &Context, chosen: &Chosen) -> Result<Exit> {
    let Some(mut target) = target(cx, chosen, "drop").await? else { return Ok(Exit::Done) };
    let (mut dropped, mut asked, mut cursor, mut last) = (0, 0, None, false);
    while !last {
        let ids;
        (ids, last) = target.next(cx, &mut cursor).await?;
        asked += ids.len() as u64;
        if !ids.is_empty() {
            dropped += cx.existing().await?.drop_dead(&ids).await?;
        }
    }
    let reason = chosen.confirm.reason.as_deref();
    audit(&Act { action: "drop", subject: &subject(chosen), reason, count: dropped });
    if cx.printer.is_json() {
        cx.printer.json(&json!({ "dropped": dropped, "not_dead": asked - dropped }))?;
    } else {
        cx.printer.line(&format!("dropped {}  not dead {}", thousands(dropped), thousands(asked - dropped)))?;
    }
    Ok(if dropped == 0 && asked > 0 { Exit::NotFound } else { Exit::Done })
}

fn subject(chosen: &Chosen) -> String {
    match chosen.ids.as_slice() {
        [] => chosen.which.text(),
        [only] => only.clone(),
        several => format!("{} jobs by id", several.len()),
    }
}
