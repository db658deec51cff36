//! The question before a destructive act: how much, samples, and the queue's name typed for what is large or protected.

use std::io::IsTerminal;

use promptq_common::config::Config;
use promptq_common::job::Queue;

use crate::cli::Confirm;
use crate::context::Context;
use crate::list::thousands;
use crate::problem::{Exit, Problem, Result};

/// Above this many jobs a yes is not enough: the queue's name has to be typed.
const TYPED_ABOVE: u64 = 1_000;

/// What is about to be done.
#[derive(Clone, Debug)]
pub struct Deed {
    /// The verb: `cancel`, `purge`, …
    pub verb: &'static str,
    /// How many jobs.
    pub count: u64,
    /// Which, for people: `waiting jobs of queue default`.
    pub subject: String,
    /// Up to three of them.
    pub samples: Vec<String>,
    /// The queue all of them are in, if it is one.
    pub queue: Option<Queue>,
}

/// Whether to go on: `--yes`, or a yes on the terminal. A dry run is told about and is a no.
///
/// # Errors
/// A usage problem where a question cannot be asked, a failed one where the answer was no.
pub async fn allowed(cx: &Context, confirm: &Confirm, deed: &Deed) -> Result<bool> {
    let Deed { verb, count, subject, samples, queue } = deed;
    let counted = format!("{} {subject}", thousands(*count));
    if confirm.dry_run {
        report(cx, deed, &counted)?;
        return Ok(false);
    }
    if confirm.yes || *count == 0 {
        return Ok(true);
    }
    if confirm.no_input || !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Err(Problem::usage(format!("{verb} of {counted} needs a yes, and nobody can be asked"))
            .hint("add --yes, or look first with --dry-run"));
    }
    for sample in samples {
        cx.printer.say(&format!("  {sample}"));
    }
    let typed = queue.as_ref().filter(|queue| must_type(&cx.config, queue, *count)).map(ToString::to_string);
    let question = match &typed {
        Some(name) => format!("{verb} {counted}? Type the queue's name ({name})"),
        None => format!("{verb} {counted}?"),
    };
    // The answer is awaited on a thread of its own: a terminal read blocks.
    let answer = tokio::task::spawn_blocking(move || match typed {
        Some(name) => dialoguer::Input::<String>::new()
            .with_prompt(question)
            .allow_empty(true)
            .interact_text()
            .map(|answer| answer == name),
        None => dialoguer::Confirm::new().with_prompt(question).default(false).interact(),
    });
    match answer.await {
        Ok(Ok(true)) => Ok(true),
        Ok(Ok(false) | Err(_)) | Err(_) => {
            Err(Problem::new(Exit::Failed, "not-confirmed", format!("nothing was done: {verb} was not confirmed")))
        }
    }
}

fn must_type(config: &Config, queue: &Queue, count: u64) -> bool {
    count > TYPED_ABOVE || config.queue(queue).protected
}

fn report(cx: &Context, deed: &Deed, counted: &str) -> Result<()> {
    if cx.printer.is_json() {
        return cx.printer.json(&serde_json::json!({
            "dry_run": true, "action": deed.verb, "count": deed.count, "samples": deed.samples
        }));
    }
    cx.printer.line(&format!("would {} {counted}", deed.verb))?;
    deed.samples.iter().try_for_each(|sample| cx.printer.line(&format!("  {sample}")))?;
    cx.printer.say("nothing was done");
    Ok(())
}
