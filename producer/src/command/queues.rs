//! `promptq queues`: list them, pause and resume one, purge one.

use promptq_common::broker::QueueView;
use promptq_common::job::Queue;
use promptq_common::telemetry::{Act, audit};
use promptq_common::time::{Timestamp, format_duration};
use serde_json::{Value, json};

use crate::cli::{Confirm, ListOutput, Output};
use crate::confirm::{Deed, allowed};
use crate::context::Context;
use crate::list::{Column, List, ago, cell, thousands};
use crate::printer::Format;
use crate::problem::{Exit, Result};

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
        /// The shape.
        #[command(flatten)]
        output: ListOutput,
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
            Action::List { output } => output.output.format(),
            Action::Pause { output, .. } | Action::Resume { output, .. } | Action::Purge { output, .. } => {
                output.format()
            }
        }
    }
}

/// Lists, pauses, resumes or purges.
pub async fn run(cx: &Context, args: &Args) -> Result<Exit> {
    match &args.action {
        Action::List { output } => list(cx, &output.fields).await?,
        Action::Pause { queue, reason, .. } => pause(cx, queue, reason.as_deref()).await?,
        Action::Resume { queue, reason, .. } => resume(cx, queue, reason.as_deref()).await?,
        Action::Purge { queue, confirm, .. } => purge(cx, queue, confirm).await?,
    }
    Ok(Exit::Done)
}

async fn list(cx: &Context, fields: &[String]) -> Result<()> {
    const COLUMNS: &[Column] = &[
        ("queue", |item| cell(item, "queue")),
        ("state", |item| cell(item, "state")),
        ("ready", |item| count(item, "ready")),
        ("delayed", |item| count(item, "delayed")),
        ("running", |item| count(item, "running")),
        ("dead", |item| count(item, "dead")),
        ("oldest", |item| ago(item, "oldest_ready")),
        ("reason", |item| cell(item, "reason")),
    ];
    let queues = cx.broker().await?.queues().await?;
    List::whole(queues.iter().map(object).collect()).print(cx, COLUMNS, fields)
}

fn object(view: &QueueView) -> Value {
    let depth = view.depth;
    json!({
        "queue": view.queue,
        "state": if view.paused.is_some() { "paused" } else { "active" },
        "reason": view.paused,
        "ready": depth.ready,
        "delayed": depth.delayed,
        "running": depth.running,
        "dead": depth.dead,
        "oldest_ready": depth.oldest_ready,
    })
}

fn count(item: &Value, key: &str) -> String {
    item[key].as_u64().map_or_else(|| "-".to_owned(), thousands)
}

async fn pause(cx: &Context, queue: &Queue, reason: Option<&str>) -> Result<()> {
    cx.broker().await?.pause(queue, Some(reason.unwrap_or("paused by a user"))).await?;
    audit(&Act { action: "pause", subject: queue.as_str(), reason, count: 1 });
    changed(cx, queue, "paused")
}

async fn resume(cx: &Context, queue: &Queue, reason: Option<&str>) -> Result<()> {
    cx.broker().await?.pause(queue, None).await?;
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
    let broker = cx.broker().await?;
    // A count on a large queue may be slow; who says yes does not wait for it.
    if !confirm.yes || confirm.dry_run {
        let depth = broker.depth(queue).await?;
        let oldest =
            depth.oldest_ready.map(|at| format!("the oldest waits {}", format_duration(Timestamp::now().since(at))));
        let deed = Deed {
            verb: "purge",
            count: depth.ready + depth.delayed,
            subject: format!("waiting jobs of queue {queue}"),
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
