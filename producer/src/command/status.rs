//! `promptq status`: how batches and jobs stand.

use std::collections::BTreeMap;

use promptq_common::job::{BatchName, JobId};
use promptq_common::ledger::{BatchView, JobFilter, JobView};
use promptq_common::record;
use promptq_common::time::{Timestamp, format_duration};
use serde_json::{Value, json};

use crate::cli::Output;
use crate::context::Context;
use crate::limits::{Standing, State, waits};
use crate::list::{Column, List, ago, cell, thousands};
use crate::printer::Format;
use crate::problem::{Exit, Problem, Result};
use crate::{command, view};

/// Which ones.
#[derive(Debug, clap::Args)]
#[command(before_help = "Examples:\n  promptq status nov-reviews\n  promptq status nov-reviews --json | jq .counts")]
pub struct Args {
    /// Batches by name, jobs by id; the newest batches when none is given. One gives a JSON object, several a list
    #[arg(value_name = "BATCH|ID")]
    names: Vec<String>,
    /// The shape.
    #[command(flatten)]
    pub output: Output,
}

/// The most causes shown of a batch.
const CAUSES: usize = 5;
/// How many dead jobs of a batch are looked at for their causes: one page of the ledger.
const LOOKED_AT: usize = 1_000;
/// How many batches are shown when none is named.
const NEWEST: usize = 20;

enum Seen {
    /// With its causes, and the limits that it waits for.
    Batch(Box<BatchView>, Vec<(String, u64)>, Vec<Standing>),
    Job(Box<JobView>),
}

/// Shows them.
pub async fn run(cx: &Context, args: &Args) -> Result<Exit> {
    if args.names.is_empty() {
        return newest(cx).await;
    }
    let mut seen = Vec::with_capacity(args.names.len());
    for name in &args.names {
        seen.push(look(cx, name).await?);
    }
    let now = Timestamp::now();
    if cx.printer.is_json() {
        let mut items: Vec<Value> = seen.iter().map(|seen| object(seen, now)).collect();
        if let (Format::Json, [only]) = (cx.printer.format(), items.as_mut_slice()) {
            cx.printer.json(&only.take())?;
        } else {
            List::whole(items).print(cx, &[], &[])?;
        }
        return Ok(Exit::Done);
    }
    for one in &seen {
        match one {
            Seen::Batch(batch, causes, waits) => {
                let eta = view::eta_seconds(batch, now).filter(|_| !stands_still(waits));
                show_batch(cx, batch, causes, (eta, now))?;
                waits::line(waits).map_or(Ok(()), |line| cx.printer.line(&line))?;
            }
            Seen::Job(job) => command::jobs::show(cx, job)?,
        }
    }
    Ok(Exit::Done)
}

fn object(seen: &Seen, now: Timestamp) -> Value {
    match seen {
        Seen::Batch(batch, causes, waits) => {
            let mut item = view::batch(batch, causes, now);
            if stands_still(waits) {
                item["eta_seconds"] = Value::Null;
            }
            item["blocked"] = waits::objects(waits);
            item
        }
        Seen::Job(job) => view::job(job),
    }
}

async fn newest(cx: &Context) -> Result<Exit> {
    const COLUMNS: &[Column] = &[
        ("batch", |item| cell(item, "batch")),
        ("state", |item| cell(item, "state")),
        ("queue", |item| cell(item, "queue")),
        ("ended", |item| count(item, "ended")),
        ("total", |item| count(item, "total")),
        ("dead", |item| count(item, "dead")),
        ("age", |item| ago(item, "created_at")),
    ];
    let now = Timestamp::now();
    let mut batches = cx.existing().await?.ledger().batches(NEWEST + 1).await?;
    let more = batches.len() > NEWEST;
    batches.truncate(NEWEST);
    let items = batches.iter().map(|batch| {
        let mut item = view::batch(batch, &[], now);
        item["counts"]["ended"] = json!(batch.counts.ended());
        item
    });
    List::whole(items.collect()).print(cx, COLUMNS, &[])?;
    if more {
        cx.printer.say(&format!("showing the newest {NEWEST}; older ones by name"));
    }
    Ok(Exit::Done)
}

fn count(item: &Value, key: &str) -> String {
    item["counts"][key].as_u64().map_or_else(|| "-".to_owned(), thousands)
}

/// A job of that id, else a batch of that name: batches without a name of their own are named by an id.
async fn look(cx: &Context, name: &str) -> Result<Seen> {
    let ledger = cx.existing().await?.ledger();
    if let Ok(id) = name.parse::<JobId>()
        && let Some(job) = ledger.fetch(&[id]).await?.into_iter().flatten().next()
    {
        return Ok(Seen::Job(Box::new(job)));
    }
    let missing = || {
        Problem::new(Exit::NotFound, "not-found", format!("there is no batch or job {name:?}"))
            .hint("promptq status lists the newest batches")
    };
    let Ok(batch_name) = BatchName::new(name) else { return Err(missing()) };
    let Some(batch) = ledger.batch(&batch_name).await? else { return Err(missing()) };
    let mut causes: BTreeMap<String, u64> = BTreeMap::new();
    if batch.counts.dead > 0 {
        let filter = JobFilter { batch: Some(batch_name), states: vec![record::State::Dead], ..JobFilter::default() };
        for job in ledger.list(&filter, None, LOOKED_AT).await?.items {
            if let Some(cause) = job.record.and_then(|record| record.cause) {
                *causes.entry(cause.code).or_default() += 1;
            }
        }
    }
    let mut causes: Vec<(String, u64)> = causes.into_iter().collect();
    causes.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    causes.truncate(CAUSES);
    let waiting = !batch.cancelled && batch.counts.queued + batch.counts.delayed > 0;
    let of = (&batch.queue, &batch.name);
    let waits = if waiting { waits::of_batch(ledger, of, waits::runners(cx).as_ref()).await? } else { Vec::new() };
    Ok(Seen::Batch(Box::new(batch), causes, waits))
}

/// Whether some of a batch's jobs wait for a person, or another side, so that the pace of the others says nothing of them.
fn stands_still(waits: &[Standing]) -> bool {
    waits.iter().any(|one| one.lacks().is_some() || matches!(one.state(), State::Refused(_) | State::Down(_)))
}

fn show_batch(
    cx: &Context,
    batch: &BatchView,
    causes: &[(String, u64)],
    (eta, now): (Option<u64>, Timestamp),
) -> Result<()> {
    let counts = batch.counts;
    let done = (counts.ended() * 100).checked_div(counts.total).unwrap_or(0);
    let eta = eta
        .map(|seconds| format!("  about {} left", format_duration(std::time::Duration::from_secs(seconds))))
        .unwrap_or_default();
    let age = format_duration(now.since(batch.created_at));
    let state = view::batch_state(batch);
    cx.printer.line(&format!("BATCH {}  {state}  {done}%{eta}  queue {}  begun {age} ago", batch.name, batch.queue))?;
    if !batch.sealed && !batch.cancelled {
        cx.printer.line("still being submitted, or its submit was interrupted: repeat it to complete")?;
    }
    let numbers = [
        ("total", counts.total),
        ("queued", counts.queued),
        ("delayed", counts.delayed),
        ("running", counts.running),
        ("succeeded", counts.succeeded),
        ("dead", counts.dead),
        ("cancelled", counts.cancelled),
        ("expired", counts.expired),
    ];
    let numbers: Vec<String> = numbers.iter().map(|(name, count)| format!("{name} {}", thousands(*count))).collect();
    cx.printer.line(&numbers.join("  "))?;
    let cost = cost(batch);
    let usage = batch.usage;
    let (sent, received) = (thousands(usage.input_tokens), thousands(usage.output_tokens));
    cx.printer.line(&format!("tokens {sent} in / {received} out  cost {cost}"))?;
    if !causes.is_empty() {
        let causes: Vec<String> = causes.iter().map(|(code, count)| format!("{}x {code}", thousands(*count))).collect();
        cx.printer.line(&format!("top causes  {}", causes.join("  ")))?;
    }
    Ok(())
}

/// What is known of what it cost. Programs report no cost, and a job that never ran has none.
fn cost(batch: &BatchView) -> String {
    match (batch.known_cost(), batch.cost_unknown) {
        (Some(cost), 0) => format!("${cost}"),
        (Some(cost), unknown) => format!("${cost} + {} unknown", thousands(unknown)),
        (None, _) => "unknown".to_owned(),
    }
}
