//! Log lines: how much, in which shape and where to; and the audit lines of destructive acts. What is said belongs to
//! those who say it, and is never a prompt, an answer or a secret. Metrics: `metric.rs` names them, `recorder.rs` keeps
//! them, `admin.rs` shows them beside what `health.rs` knows. Traces: `trace/`.

pub mod admin;
pub mod exposition;
pub mod health;
pub mod label;
pub mod metric;
mod process;
pub mod recorder;
pub mod trace;

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

pub use crate::config::{LogFormat, redact_url};

/// Sends log lines to `writer` from now on; a second call in one process changes nothing. Other crates are heard from
/// `warn` on, whatever the level: what they trace may hold bodies and headers; those whose warnings do, never. Audit
/// lines have a `level` of their own.
pub fn init<W>((level, audit): (LevelFilter, LevelFilter), format: LogFormat, writer: W)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let targets = Targets::new()
        .with_target("promptq", level)
        .with_target(AUDIT, audit)
        .with_targets(SILENT.map(|name| (name, LevelFilter::OFF)))
        .with_default(level.min(LevelFilter::WARN));
    let terminal = std::io::stderr().is_terminal();
    let registry = tracing_subscriber::registry().with(targets);
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let text = match format {
        LogFormat::Auto => terminal,
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    // An error means that a subscriber is there already, which is what a second call may find.
    let set = if text {
        registry.with(lines.with_ansi(terminal)).try_init()
    } else {
        registry.with(lines.json().flatten_event(true).with_current_span(false)).try_init()
    };
    if set.is_err() {
        tracing::debug!("logging was set up before");
    }
}

const AUDIT: &str = "promptq::audit";

/// The AMQP driver and what is below it: it warns of every returned message with the whole of it, and of each refusal
/// that our own lines tell of.
const SILENT: [&str; 4] = ["lapin", "amq_protocol", "async_rs", "tcp_stream"];

/// One destructive act, for the log.
#[derive(Clone, Debug)]
pub struct Act<'a> {
    /// The verb: `cancel`, `purge`, `redrive`, …
    pub action: &'a str,
    /// What it was done to: a queue, a batch, an id, a filter.
    pub subject: &'a str,
    /// Why, as the user said.
    pub reason: Option<&'a str>,
    /// How many jobs it touched.
    pub count: u64,
}

/// Writes an audit line: who did what to how many of what, and why.
pub fn audit(act: &Act<'_>) {
    audit_by(&crate::config::actor(), act);
}

/// The same for somebody else than this process's user.
pub fn audit_by(actor: &str, act: &Act<'_>) {
    tracing::info!(
        target: "promptq::audit",
        actor,
        action = act.action,
        subject = act.subject,
        reason = act.reason.unwrap_or(""),
        count = act.count,
        "audit"
    );
}
