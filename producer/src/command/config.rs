//! `promptq config`: whether settings are right, what they are and where they came from. Offline; see `doctor`.

use promptq_common::config::{Origin, Setting};
use serde_json::Value;

use crate::cli::Output;
use crate::context::Context;
use crate::printer::Format;
use crate::problem::{Exit, Result};
use crate::settings::problem;

/// What about them.
#[derive(Debug, clap::Args)]
#[command(before_help = "Examples:\n  promptq config check\n  promptq config show --origin")]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// Check or show.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Say every setting that is wrong; connects to nothing
    Check,
    /// Print the settings in force; secrets are masked
    Show {
        /// Also print where each came from, defaults included
        #[arg(long)]
        origin: bool,
        /// The shape of the list.
        #[command(flatten)]
        output: Output,
    },
}

impl Args {
    /// The shape of data it was asked for.
    pub fn format(&self) -> Format {
        match &self.action {
            Action::Check => Format::Table,
            Action::Show { output, .. } => output.format(),
        }
    }
}

/// Prints settings; that they are right is known by now, but for keys that callers alone need.
pub fn run(cx: &Context, args: &Args) -> Result<Exit> {
    let settings = &cx.config.settings;
    match &args.action {
        Action::Check => {
            cx.config.callable().map_err(|errors| problem(&errors))?;
            let files: Vec<_> = cx.config.files.iter().map(|path| path.display().to_string()).collect();
            let said = settings.iter().filter(|setting| setting.origin != Origin::Default).count();
            let files = if files.is_empty() { "no file".to_owned() } else { files.join(", ") };
            cx.printer.line(&format!("settings are right: {said} given ({files}), the others are defaults"))?;
        }
        Action::Show { origin, .. } if cx.printer.is_json() => show_json(cx, settings, *origin)?,
        Action::Show { origin: true, .. } => {
            let row = |setting: &Setting| vec![setting.name.clone(), text(&setting.value), setting.origin.to_string()];
            cx.printer.table(Some(&["SETTING", "VALUE", "ORIGIN"]), &settings.iter().map(row).collect::<Vec<_>>())?;
        }
        Action::Show { origin: false, .. } => {
            let row = |setting: &Setting| vec![setting.name.clone(), text(&setting.value)];
            cx.printer.table(Some(&["SETTING", "VALUE"]), &settings.iter().map(row).collect::<Vec<_>>())?;
        }
    }
    Ok(Exit::Done)
}

fn show_json(cx: &Context, settings: &[Setting], origin: bool) -> Result<()> {
    let value = |setting: &Setting| {
        if origin {
            serde_json::json!(setting)
        } else {
            serde_json::json!({ "name": setting.name, "value": setting.value })
        }
    };
    if cx.printer.format() == Format::Jsonl {
        return settings.iter().try_for_each(|setting| cx.printer.json(&value(setting)));
    }
    let items: Vec<Value> = settings.iter().map(value).collect();
    cx.printer.json(&serde_json::json!({ "items": items, "next_cursor": null, "truncated": false }))
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(", "),
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => value.to_string(),
    }
}
