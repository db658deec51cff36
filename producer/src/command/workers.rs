//! `promptq workers`: who has reported within the last minute.

use serde_json::{Value, json};

use crate::cli::ListOutput;
use crate::context::Context;
use crate::list::{Column, List, ago, cell};
use crate::printer::Format;
use crate::problem::{Exit, Result};

/// What about them.
#[derive(Debug, clap::Args)]
#[command(before_help = "Examples:\n  promptq workers list\n  promptq workers list --fields id,running,slots --json")]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What can be done.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// List workers with their slots and queues
    List {
        /// The shape.
        #[command(flatten)]
        output: ListOutput,
    },
}

impl Args {
    /// The shape of data it was asked for.
    pub fn format(&self) -> Format {
        let Action::List { output } = &self.action;
        output.output.format()
    }
}

/// Lists them.
pub async fn run(cx: &Context, args: &Args) -> Result<Exit> {
    const COLUMNS: &[Column] = &[
        ("id", |item| cell(item, "id")),
        ("state", |item| cell(item, "state")),
        ("slots", |item| format!("{}/{}", item["running"], item["slots"])),
        ("queues", |item| cell(item, "serves")),
        ("host", |item| format!("{}:{}", cell(item, "host"), item["pid"])),
        ("started", |item| ago(item, "started_at")),
        ("seen", |item| ago(item, "seen_at")),
        ("blocked", |item| cell(item, "blocked")),
    ];
    let Action::List { output } = &args.action;
    let workers = cx.existing().await?.ledger().workers().await?;
    let object = |worker: &promptq_common::ledger::WorkerReport| {
        let mut item = json!(worker);
        let state = match (worker.draining, worker.blocked.is_some()) {
            (true, _) => "draining",
            (false, true) => "blocked",
            (false, false) => "active",
        };
        item["state"] = state.into();
        item["serves"] = worker.queues.join(" ").into();
        item
    };
    let items: Vec<Value> = workers.iter().map(object).collect();
    if items.is_empty() && !cx.printer.is_json() {
        cx.printer.say("no worker has reported within the last minute; start one with promptq-worker");
    }
    List::whole(items).print(cx, COLUMNS, &output.fields)?;
    Ok(Exit::Done)
}
