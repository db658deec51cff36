//! `promptq keys`: the API keys of the gateway. A secret is printed once and kept nowhere.

use std::path::PathBuf;
use std::time::Duration;

use promptq_common::config::Flag;
use promptq_common::job::Queue;
use promptq_common::line::check_name;
use promptq_common::telemetry::{Act, audit};
use promptq_common::time::Timestamp;
use serde_json::{Value, json};

use super::serve::keys_flag;
use crate::cli::{ListOutput, Output};
use crate::context::Context;
use crate::gateway::key::{Key, Role, Secret};
use crate::gateway::keyring::Keys;
use crate::input::args::length;
use crate::list::{Column, List, ago, cell};
use crate::printer::Format;
use crate::problem::{Exit, Problem, Result};

/// What about them.
#[derive(Debug, clap::Args)]
#[command(
    before_help = "Examples:\n  promptq keys create ci --role submitter --queue default --expires 90d\n  promptq keys revoke pq_1f3a9c2e77aa"
)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    action: Action,
    /// The file of keys (`$XDG_STATE_HOME/promptq/keys.json`)
    #[arg(long, value_name = "FILE", global = true)]
    keys: Option<PathBuf>,
}

/// What can be done.
#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Make a key and print its secret, this once
    Create {
        /// What people call it
        #[arg(value_name = "NAME", default_value = "key", hide_default_value = true)]
        name: String,
        /// viewer sees, submitter submits too, operator cancels too, admin may everything
        #[arg(long, value_enum)]
        role: Role,
        /// Only in this queue; repeatable
        #[arg(short = 'Q', long = "queue", value_name = "QUEUE")]
        queues: Vec<Queue>,
        /// Good for so long
        #[arg(long, value_name = "LENGTH", value_parser = lifetime)]
        expires: Option<Duration>,
        /// Requests a second at most (`gateway.rate_per_key`)
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        rate: Option<u32>,
        /// The shape.
        #[command(flatten)]
        output: Output,
    },
    /// List keys; never their secrets
    List {
        /// The shape.
        #[command(flatten)]
        output: ListOutput,
    },
    /// Make a key good for nothing, within a second
    Revoke {
        /// The key, by the first part of its secret
        #[arg(value_name = "ID")]
        id: String,
        /// Why, for the audit line
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
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
            Action::Create { output, .. } | Action::Revoke { output, .. } => output.format(),
        }
    }

    /// The settings among its flags.
    pub fn flags(&self) -> Vec<Flag> {
        keys_flag(self.keys.as_ref()).into_iter().collect()
    }
}

/// A length that is not over at once.
fn lifetime(text: &str) -> Result<Duration, String> {
    length(text)
        .and_then(|length| if length.is_zero() { Err("it would be expired at once".into()) } else { Ok(length) })
}

/// Makes, lists or revokes.
pub fn run(cx: &Context, args: &Args) -> Result<Exit> {
    let path = &cx.config.gateway.keys;
    match &args.action {
        Action::Create { name, role, queues, expires, rate, .. } => {
            check_name("the key's name", name).map_err(Problem::usage)?;
            let secret = Secret::random();
            let made = Key::of(&secret, name.clone(), *role, queues.clone());
            let expires_at = expires.map(|length| made.created_at + length);
            let key = Key { rate: *rate, expires_at, ..made };
            Keys::change(path, |keys| {
                keys.keys.push(key.clone());
                Ok(())
            })?;
            audit(&Act { action: "keys create", subject: &key.id, reason: None, count: 1 });
            created(cx, &key, &secret)?;
        }
        Action::List { output } => list(cx, &output.fields)?,
        Action::Revoke { id, reason, .. } => {
            // Whoever pastes a whole secret means its key.
            let id = Secret::read(id).map_or_else(|| id.clone(), |secret| secret.id().to_owned());
            Keys::change(path, |keys| {
                let before = keys.keys.len();
                keys.keys.retain(|key| key.id != id);
                if keys.keys.len() < before { Ok(()) } else { Err(missing(&id)) }
            })?;
            audit(&Act { action: "keys revoke", subject: &id, reason: reason.as_deref(), count: 1 });
            if cx.printer.is_json() {
                cx.printer.json(&json!({ "id": id, "state": "revoked" }))?;
            } else {
                cx.printer.line(&format!("{id} is revoked"))?;
            }
        }
    }
    Ok(Exit::Done)
}

fn missing(id: &str) -> Problem {
    Problem::new(Exit::NotFound, "not-found", format!("there is no key {id:?}")).hint("promptq keys list shows them")
}

/// The secret alone on standard output, for `KEY=$(promptq keys create …)`; the rest is talk.
fn created(cx: &Context, key: &Key, secret: &Secret) -> Result<()> {
    if cx.printer.is_json() {
        let mut item = object(key, Timestamp::now());
        item["secret"] = secret.expose().into();
        return cx.printer.json(&item);
    }
    cx.printer.line(secret.expose())?;
    let queues = key.queues.iter().map(Queue::as_str).collect::<Vec<_>>().join(", ");
    let queues = if queues.is_empty() { "all queues".to_owned() } else { format!("queues {queues}") };
    let until = key.expires_at.map_or_else(|| "for ever".to_owned(), |at| format!("until {at}"));
    cx.printer.say(&format!("{} ({}): {}, {queues}, {until}; its secret is shown once", key.id, key.name, key.role));
    Ok(())
}

fn list(cx: &Context, fields: &[String]) -> Result<()> {
    const COLUMNS: &[Column] = &[
        ("id", |item| cell(item, "id")),
        ("name", |item| cell(item, "name")),
        ("role", |item| cell(item, "role")),
        ("queues", |item| cell(item, "of")),
        ("state", |item| cell(item, "state")),
        ("created", |item| ago(item, "created_at")),
        ("expires", |item| cell(item, "expires_at")),
    ];
    let keys = Keys::read(&cx.config.gateway.keys)?.unwrap_or_default();
    let now = Timestamp::now();
    List::whole(keys.keys.iter().map(|key| object(key, now)).collect()).print(cx, COLUMNS, fields)
}

fn object(key: &Key, now: Timestamp) -> Value {
    let queues: Vec<&str> = key.queues.iter().map(Queue::as_str).collect();
    json!({
        "id": key.id,
        "name": key.name,
        "role": key.role,
        "queues": queues,
        "of": if queues.is_empty() { "all".to_owned() } else { queues.join(" ") },
        "rate": key.rate,
        "state": if key.is_expired(now) { "expired" } else { "good" },
        "created_at": key.created_at,
        "expires_at": key.expires_at,
    })
}
