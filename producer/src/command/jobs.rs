//! `promptq jobs`: list them, show one, say why one has not run yet.

use promptq_common::codec::place_of;
use promptq_common::job::JobId;
use promptq_common::ledger::JobView;
use promptq_common::record::State;
use promptq_common::telemetry::trace::Context as Place;
use promptq_common::time::{Timestamp, format_duration};
use serde_json::json;

use super::why;
use crate::cli::{ListOutput, Output};
use crate::context::Context;
use crate::limits::Standing;
use crate::list::Pages;
use crate::pick::Pick;
use crate::printer::Format;
use crate::problem::{Exit, Problem, Result};
use crate::{filter, view};

/// What about them.
#[derive(Debug, clap::Args)]
#[command(
    before_help = "Examples:\n  promptq jobs list --where 'state=dead and model=gpt* and tag.run=42 and age>1h'\n  promptq jobs why 019abcde-0123-7abc-8def-0123456789ab"
)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What can be done.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// List jobs, newest first
    List {
        /// Only those that fit, such as 'state in (queued,running) and batch=nov*'
        #[arg(long = "where", value_name = "FILTER")]
        filter: Option<String>,
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
    /// Show one job with its attempts; never its prompt or answer
    Show {
        /// The job
        #[arg(value_name = "ID")]
        id: String,
        /// The shape.
        #[command(flatten)]
        output: Output,
    },
    /// Say in one sentence why a job has not run yet
    Why {
        /// The job
        #[arg(value_name = "ID")]
        id: String,
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
            Action::Show { output, .. } | Action::Why { output, .. } => output.format(),
        }
    }
}

/// Lists, shows or explains.
pub async fn run(cx: &Context, args: &Args) -> Result<Exit> {
    match &args.action {
        Action::List { filter, limit, cursor, output } => {
            let mut pick = match filter {
                Some(text) => Pick::by(filter::parse(text)?),
                None => Pick::default(),
            };
            // What doctor tries the broker with is nobody's job, unless it is asked for.
            pick.without_doctors = pick.narrowed.queue.is_none();
            list(cx, &pick, *limit, cursor.clone(), &output.fields).await?;
        }
        Action::Show { id, .. } => {
            let job = find(cx, id).await?;
            let place = place(cx, &job).await?;
            if cx.printer.is_json() {
                let mut item = view::job(&job);
                if let Some(place) = place {
                    item["trace_id"] = json!(place.trace_id());
                }
                item["recent_attempts"] = json!(job.record.as_ref().map(|record| &record.history.recent));
                cx.printer.json(&item)?;
            } else {
                show(cx, &job)?;
                place.map_or(Ok(()), |place| cx.printer.line(&format!("{:<10} {}", "trace", place.trace_id())))?;
            }
        }
        Action::Why { id, .. } => {
            let job = find(cx, id).await?;
            let why = why::explain(cx, &job).await?;
            if cx.printer.is_json() {
                let limit = why.limit.as_ref().map(Standing::object);
                cx.printer.json(&json!({ "id": job.id, "state": job.state, "why": why.says, "limit": limit }))?;
            } else {
                cx.printer.line(&why.says)?;
            }
        }
    }
    Ok(Exit::Done)
}

/// Prints what fits, at most `limit` of it (0: all), a page at a time.
pub(super) async fn list(
    cx: &Context,
    pick: &Pick,
    limit: usize,
    cursor: Option<String>,
    fields: &[String],
) -> Result<()> {
    let broker = cx.existing().await?;
    let most = if limit == 0 { usize::MAX } else { limit };
    let mut pages = Pages::new(cx, view::JOBS, fields);
    let mut next = cursor;
    loop {
        let (jobs, after) = pick.page(broker, next, most - pages.shown()).await?;
        pages.add(&jobs.iter().map(view::job).collect::<Vec<_>>())?;
        next = after;
        if next.is_none() || pages.shown() >= most {
            return pages.end(next.as_deref());
        }
    }
}

async fn find(cx: &Context, id: &str) -> Result<JobView> {
    let missing = || {
        Problem::new(Exit::NotFound, "not-found", format!("there is no job {id:?}"))
            .hint("ended jobs are forgotten after a while (section retention)")
    };
    let ledger = cx.existing().await?.ledger();
    let id = id.parse::<JobId>().map_err(|_| missing())?;
    ledger.fetch(&[id]).await?.into_iter().flatten().next().ok_or_else(missing)
}

/// Where in a trace a job belongs: its record says so, of one that has none its bytes, where the ledger has them.
async fn place(cx: &Context, job: &JobView) -> Result<Option<Place>> {
    let told = job.record.as_ref().and_then(|record| record.trace);
    if told.is_some() || job.state == State::Succeeded {
        return Ok(told);
    }
    Ok(cx.existing().await?.ledger().payload(job.id).await?.and_then(|payload| place_of(&payload)))
}

/// Shows one job to people.
pub(super) fn show(cx: &Context, job: &JobView) -> Result<()> {
    let now = Timestamp::now();
    let say = |name: &str, value: String| cx.printer.line(&format!("{name:<10} {value}"));
    let maybe = |name: &str, value: Option<String>| value.map_or(Ok(()), |value| say(name, value));
    let ago = |at: Timestamp| format!("{at} ({} ago)", format_duration(now.since(at)));
    cx.printer.line(&format!("JOB {}  {}", job.id, job.state))?;
    say("queue", format!("{}  priority {}", job.queue, job.priority))?;
    maybe("model", job.model.clone())?;
    maybe(
        "batch",
        job.batch.as_ref().map(|batch| match job.row {
            Some(row) => format!("{batch}  row {row}"),
            None => batch.to_string(),
        }),
    )?;
    maybe("custom id", job.custom_id.clone())?;
    maybe("tenant", job.tenant.clone())?;
    let tags: Vec<String> = job.tags.iter().map(|(name, value)| format!("{name}={value}")).collect();
    maybe("tags", (!tags.is_empty()).then(|| tags.join(" ")))?;
    say("submitted", ago(job.created_at))?;
    say("attempts", format!("{}  deaths {}  epoch {}", job.attempts, job.deaths, job.epoch))?;
    maybe("due", job.due.map(|due| format!("{due} (in {})", format_duration(due.since(now)))))?;
    maybe("held by", job.hold.as_ref().map(ToString::to_string))?;
    maybe("worker", job.worker.clone())?;
    let Some(record) = &job.record else { return Ok(()) };
    say("ended", ago(record.ended_at))?;
    maybe("cause", record.cause.as_ref().map(|cause| format!("{}: {}", cause.code, cause.detail)))?;
    let fault = record.history.recent.last().filter(|last| record.cause.is_none() && last.fault().is_some());
    maybe("answer", fault.and_then(|last| Some(format!("{}: {}", last.code.as_ref()?, last.detail.as_ref()?))))?;
    let usage = record.history.usage;
    let more = if record.history.is_cost_unknown() { " + ?" } else { "" };
    let cost = record.history.known_cost().map_or_else(|| "?".to_owned(), |cost| format!("${cost}{more}"));
    say("consumed", format!("{} tokens in / {} out  cost {cost}", usage.input_tokens, usage.output_tokens))?;
    record.history.recent.iter().try_for_each(|attempt| {
        let took = format_duration(attempt.ended_at.since(attempt.started_at));
        let end = attempt.code.as_deref().unwrap_or("ok");
        // What is wrong is said above, of the last one.
        let more = attempt.detail.as_ref().filter(|_| attempt.code.is_none());
        let more = more.map_or_else(String::new, |more| format!("  {more}"));
        say(&format!("attempt {}", attempt.n), format!("{end}  {took}  on {}{more}", attempt.worker))
    })
}
