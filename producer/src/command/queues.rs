//! `promptq queues`: list them, pause and resume one, purge one. Declaring them is `declare`.

use std::collections::BTreeMap;

use promptq_common::broker::QueueView;
use promptq_common::job::Queue;
use promptq_common::telemetry::{Act, audit};
use promptq_common::time::{Timestamp, format_duration};
use serde_json::{Value, json};

use super::declare;
use crate::cli::{Confirm, ListOutput, Output};
use crate::confirm::{Deed, allowed};
use crate::context::Context;
use crate::limits::waits::{all_of_queues, line, objects, runners};
use crate::list::{Column, List, ago, cell, thousands};
use crate::printer::Format;
use crate::problem::{Exit, Problem, Result};

/// What about them.
#[derive(Debug, clap::Args)]
#[command(before_help = "Examples:\n  promptq queues list\n  promptq queues pause default --reason 'provider is down'")]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What can be done.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// List queues with their jobs by state
    List {
        /// Those without jobs that `run` and `doctor` made for themselves, too
        #[arg(long)]
        all: bool,
        /// The shape.
        #[command(flatten)]
        output: ListOutput,
    },
    /// Make what queues need at a broker where workers and producers may not: RabbitMQ
    Declare {
        /// The queues; all that the settings name unless given
        queues: Vec<Queue>,
        /// Give up the lanes of models that the settings no longer name, and delete those that are empty
        #[arg(long)]
        prune: bool,
        /// Make the configured ledger that of RabbitMQ's virtual host, whichever was before; stop every worker first
        #[arg(long)]
        new_ledger: bool,
        /// The shape.
        #[command(flatten)]
        output: Output,
    },
    /// Hand out no more jobs of a queue; running ones go on
    Pause {
        /// The queue
        queue: Queue,
        /// Why, for the audit line and for those who ask why their jobs wait
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// The shape.
        #[command(flatten)]
        output: Output,
    },
    /// Hand out jobs of a queue again
    Resume {
        /// The queue
        queue: Queue,
        /// Why, for the audit line
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// The shape.
        #[command(flatten)]
        output: Output,
    },
    /// Cancel every waiting job of a queue; running ones go on
    Purge {
        /// The queue
        queue: Queue,
        /// Asking.
        #[command(flatten)]
        confirm: Confirm,
        /// The shape.
        #[command(flatten)]
        output: Output,
    },
}

impl Args {
    /// The shape of data it was asked for.
    pub fn format(&self) -> Format {
        match &self.action {
            Action::List { output, .. } => output.output.format(),
            Action::Declare { output, .. }
            | Action::Pause { output, .. }
            | Action::Resume { output, .. }
            | Action::Purge { output, .. } => output.format(),
        }
    }
}

/// Lists, declares, pauses, resumes or purges.
pub async fn run(cx: &Context, args: &Args) -> Result<Exit> {
    match &args.action {
        Action::List { all, output } => list(cx, *all, &output.fields).await?,
        Action::Declare { queues, prune, new_ledger, .. } => declare::run(cx, queues, *prune, *new_ledger).await?,
        Action::Pause { queue, reason, .. } => pause(cx, queue, reason.as_deref()).await?,
        Action::Resume { queue, reason, .. } => resume(cx, queue, reason.as_deref()).await?,
        Action::Purge { queue, confirm, .. } => purge(cx, queue, confirm).await?,
    }
    Ok(Exit::Done)
}

async fn list(cx: &Context, all: bool, fields: &[String]) -> Result<()> {
    const COLUMNS: &[Column] = &[
        ("queue", |item| cell(item, "queue")),
        ("state", |item| cell(item, "state")),
        ("ready", |item| count(item, "ready")),
        ("delayed", delayed),
        ("running", |item| count(item, "running")),
        ("dead", |item| count(item, "dead")),
        ("oldest", |item| ago(item, "oldest_ready")),
        ("reason", |item| cell(item, "reason")),
        ("blocked", |item| cell(item, "blocked_by")),
    ];
    let broker = cx.existing().await?;
    let queues = broker.queues().await?;
    let shown: Vec<_> = queues.iter().filter(|view| all || !idle_scratch(view)).collect();
    let waiting = shown.iter().filter(|view| view.depth.ready + view.depth.delayed > 0);
    let waiting: Vec<Queue> = waiting.map(|view| view.queue.clone()).collect();
    let waits = if waiting.is_empty() {
        BTreeMap::new()
    } else {
        all_of_queues(broker.ledger(), &waiting, runners(cx).as_ref()).await?
    };
    let item = |view: &&QueueView| {
        let (mut item, none) = (object(view), Vec::new());
        let waits = waits.get(&view.queue).unwrap_or(&none);
        item["blocked"] = objects(waits);
        item["blocked_by"] = line(waits).into();
        item
    };
    List::whole(shown.iter().map(item).collect()).print(cx, COLUMNS, fields)?;
    if cx.keeps_messages_apart() && queues.iter().any(|view| view.depth.delayed > 0) {
        cx.printer.say(
            "delayed counts messages at RabbitMQ: those of jobs that have ended since are among them until they come due",
        );
    }
    Ok(())
}

/// Whether it is a queue that `run` or `doctor` made for itself and that holds nothing to look after.
pub(crate) fn idle_scratch(view: &QueueView) -> bool {
    view.is_blank() && is_own(&view.queue)
}

/// Whether a queue is one that `run` or `doctor` made for itself.
pub(crate) fn is_own(queue: &Queue) -> bool {
    queue.as_str().starts_with("run-") || is_doctors(queue)
}

/// Whether a queue is one of promptq's own, for trying the broker.
pub(crate) fn is_doctors(queue: &Queue) -> bool {
    queue.as_str().starts_with("promptq-")
}

/// Fails with `NotFound` for a queue that neither the broker, nor a worker, nor the settings know.
async fn known(cx: &Context, queue: &Queue) -> Result<()> {
    let broker = cx.existing().await?;
    let config = &cx.config;
    let configured = config.queues.keys().chain(config.worker.queues.iter().map(|(name, _)| name));
    let mut names: Vec<String> = configured.map(ToString::to_string).collect();
    names.extend(broker.queues().await?.into_iter().map(|view| view.queue.to_string()));
    for worker in broker.ledger().workers().await? {
        // Workers report what they serve as `name:weight`.
        names.extend(worker.queues.iter().filter_map(|served| Some(served.split(':').next()?.to_owned())));
    }
    if names.iter().any(|name| name == queue.as_str()) {
        return Ok(());
    }
    let problem = Problem::new(Exit::NotFound, "not-found", format!("there is no queue {:?}", queue.as_str()));
    let distance = |name: &String| strsim::osa_distance(name, queue.as_str());
    let near = names.iter().filter(|name| distance(name) <= 2).min_by_key(|name| distance(name));
    Err(match near {
        Some(near) => problem.hint(format!("did you mean {near}?")),
        None => problem.hint("promptq queues list shows those there are"),
    })
}

fn object(view: &QueueView) -> Value {
    let depth = view.depth;
    json!({
        "queue": view.queue,
        "state": if view.paused.is_some() { "paused" } else { "active" },
        "reason": view.paused,
        "ready": depth.ready,
        "delayed": depth.delayed,
        "delayed_of_all": depth.delayed_of_all,
        "running": depth.running,
        "dead": depth.dead,
        "oldest_ready": depth.oldest_ready,
    })
}

/// At most so many, where those of all queues are counted together.
fn delayed(item: &Value) -> String {
    let most = if item["delayed_of_all"] == true { "≤ " } else { "" };
    format!("{most}{}", count(item, "delayed"))
}

fn count(item: &Value, key: &str) -> String {
    item[key].as_u64().map_or_else(|| "-".to_owned(), thousands)
}

async fn pause(cx: &Context, queue: &Queue, reason: Option<&str>) -> Result<()> {
    known(cx, queue).await?;
    cx.existing().await?.pause(queue, Some(reason.unwrap_or("paused by a user"))).await?;
    audit(&Act { action: "pause", subject: queue.as_str(), reason, count: 1 });
    changed(cx, queue, "paused")
}

async fn resume(cx: &Context, queue: &Queue, reason: Option<&str>) -> Result<()> {
    known(cx, queue).await?;
    cx.existing().await?.pause(queue, None).await?;
    audit(&Act { action: "resume", subject: queue.as_str(), reason, count: 1 });
    changed(cx, queue, "active")
}

fn changed(cx: &Context, queue: &Queue, state: &str) -> Result<()> {
    if cx.printer.is_json() {
        return cx.printer.json(&json!({ "queue": queue, "state": state }));
    }
    cx.printer.line(&format!("queue {queue} is {state}"))
}

async fn purge(cx: &Context, queue: &Queue, confirm: &Confirm) -> Result<()> {
    known(cx, queue).await?;
    let broker = cx.existing().await?;
    // A count on a large queue may be slow; who says yes does not wait for it.
    if !confirm.yes || confirm.dry_run {
        let depth = broker.depth(queue).await?;
        let oldest =
            depth.oldest_ready.map(|at| format!("the oldest waits {}", format_duration(Timestamp::now().since(at))));
        let deed = Deed {
            verb: "purge",
            count: depth.ready + depth.delayed,
            subject: if depth.delayed_of_all {
                format!("waiting jobs at most of queue {queue} (delayed ones of other queues are counted, and stay)")
            } else {
                format!("waiting jobs of queue {queue}")
            },
            samples: oldest.into_iter().collect(),
            queue: Some(queue.clone()),
        };
        if !allowed(cx, confirm, &deed).await? {
            return Ok(());
        }
    }
    let count = broker.purge(queue).await?;
    audit(&Act { action: "purge", subject: queue.as_str(), reason: confirm.reason.as_deref(), count });
    if cx.printer.is_json() {
        return cx.printer.json(&json!({ "queue": queue, "purged": count }));
    }
    cx.printer.line(&format!("purged {} waiting jobs of queue {queue}", thousands(count)))
}
