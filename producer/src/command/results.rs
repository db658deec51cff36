//! `promptq results`: what came of a batch or a job, one JSON line each, as it was or while it comes in.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use promptq_common::error::Kind;
use promptq_common::job::{BatchName, JobId};
use promptq_common::ledger::{Cursor, Scope};
use promptq_common::outcome::Body;
use promptq_common::record::{End, Output, Record, State};
use promptq_common::result_line::{answer_text, result_line};

use crate::context::Context;
use crate::patience::outlast;
use crate::problem::{Exit, Problem, Result};
use crate::sink::Sink;

/// Whose results, and where to.
#[derive(Debug, clap::Args)]
#[command(
    before_help = "Examples:\n  promptq results nov-reviews -o out.jsonl\n  promptq results nov-reviews --follow --state succeeded --text-only"
)]
pub struct Args {
    /// A batch by name, or a job by id
    #[arg(value_name = "BATCH|ID")]
    name: String,
    /// Write to a file, in place of what is there: at the end, with --follow as results come; - for standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Stay until every job has ended; code 3 when some did not succeed
    #[arg(long)]
    follow: bool,
    /// Only these ends: succeeded, dead, cancelled, expired
    #[arg(long, value_name = "STATE", value_delimiter = ',')]
    state: Vec<End>,
    /// Only what came after this cursor, as told at the end of an earlier run
    #[arg(long, value_name = "CURSOR")]
    after: Option<u64>,
    /// Only the answers' text, without the JSON around it
    #[arg(long)]
    text_only: bool,
}

/// Records read at once.
const PAGE: usize = 500;
/// Stored answers fetched at once: some in flight, few in memory.
const FETCHES: usize = 8;
/// How often a batch that is being followed is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// Writes them.
pub async fn run(cx: &Context, args: &Args) -> Result<Exit> {
    let ledger = cx.existing().await?.ledger();
    let missing = || {
        Problem::new(Exit::NotFound, "not-found", format!("there is no batch or job {:?}", args.name))
            .hint("promptq status lists the newest batches")
    };
    if let Ok(id) = args.name.parse::<JobId>()
        && ledger.fetch(&[id]).await?.into_iter().flatten().next().is_some()
    {
        return one(cx, args, id).await;
    }
    let name = BatchName::new(&args.name).map_err(|_| missing())?;
    let queue = ledger.batch(&name).await?.ok_or_else(missing)?.queue;
    tracing::debug!(%queue, batch = %name, "reading results");
    let mut writer = Writer::new(cx, args)?;
    let cursor = whole(cx, args, &name, &mut writer).await?;
    let exit = writer.finish(args)?;
    cx.printer.say(&format!("read up to cursor {} (--after {})", cursor.0, cursor.0));
    Ok(exit)
}

async fn one(cx: &Context, args: &Args, id: JobId) -> Result<Exit> {
    loop {
        let job = cx.existing().await?.ledger().fetch(&[id]).await?.into_iter().flatten().next();
        let Some(job) = job else {
            return Err(Problem::new(Exit::NotFound, "not-found", format!("there is no job {id}")));
        };
        if let (true, Some(record)) = (job.state.is_ended(), &job.record) {
            let mut writer = Writer::new(cx, args)?;
            let body = body(cx, record).await?;
            writer.write(record, &body)?;
            return writer.finish(args);
        }
        if !args.follow {
            return Err(Problem::new(Exit::Pending, "pending", format!("job {id} has not ended: it is {}", job.state))
                .hint("wait for it with --follow, or ask promptq jobs why"));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Everything there is, or everything there will be; up to where.
async fn whole(cx: &Context, args: &Args, name: &BatchName, writer: &mut Writer<'_>) -> Result<Cursor> {
    let ledger = cx.existing().await?.ledger();
    let scope = Scope::Batch(name.clone());
    let mut cursor = Cursor(args.after.unwrap_or(0));
    loop {
        // Looked at before the records: a batch that has ended by then has all of them below.
        let over = match outlast(&cx.printer, async || ledger.batch(name).await).await? {
            Some(batch) => batch.sealed && batch.counts.ended() == batch.counts.total,
            None => true,
        };
        loop {
            let page = outlast(&cx.printer, async || ledger.results(&scope, cursor, PAGE).await).await?;
            let records: Vec<Record> = page.records.into_iter().map(|(_, record)| record).collect();
            write(cx, args, records, writer).await?;
            cursor = page.next;
            if !page.more {
                break;
            }
        }
        if over || !args.follow {
            return Ok(cursor);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Writes a page in its order; ends that a redrive or a late success has overtaken are left out.
async fn write(cx: &Context, args: &Args, records: Vec<Record>, writer: &mut Writer<'_>) -> Result<()> {
    let ledger = cx.existing().await?.ledger();
    let failed: Vec<JobId> =
        records.iter().filter(|record| record.end != End::Succeeded).map(|record| record.id).collect();
    let mut now: HashMap<JobId, (State, u32)> = HashMap::new();
    if !failed.is_empty() {
        let views = ledger.fetch(&failed).await?.into_iter().flatten();
        now.extend(views.map(|view| (view.id, (view.state, view.epoch))));
    }
    let current = |record: &Record| {
        let overtaken = |(state, epoch): &(State, u32)| *state == State::Succeeded || *epoch > record.epoch;
        record.end == End::Succeeded || !now.get(&record.id).is_some_and(overtaken)
    };
    let wanted = |record: &Record| (args.state.is_empty() || args.state.contains(&record.end)) && current(record);
    let records: Vec<Record> = records.into_iter().filter(wanted).collect();
    let mut bodies = futures_util::stream::iter(records.iter().map(|record| body(cx, record))).buffered(FETCHES);
    for record in &records {
        let Some(body) = bodies.next().await else { break };
        writer.write(record, &body?)?;
    }
    writer.flush()
}

/// A stored answer's body; `Gone` where the record names one that is not there any more.
enum Fetched {
    Inline,
    Stored(Body),
    Gone,
}

async fn body(cx: &Context, record: &Record) -> Result<Fetched> {
    let Some(Output::Stored(stored)) = record.answer.as_ref().map(|answer| &answer.output) else {
        return Ok(Fetched::Inline);
    };
    match cx.store().await?.get_output(stored).await {
        Ok(body) => Ok(Fetched::Stored(body)),
        Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Corrupt | Kind::TooLarge) => {
            cx.printer.warn(&format!("the answer of {} is not in the store: {error}", record.id));
            Ok(Fetched::Gone)
        }
        Err(error) => Err(error.into()),
    }
}

/// Where lines go, and what they came to.
struct Writer<'a> {
    cx: &'a Context,
    file: Option<Sink>,
    text_only: bool,
    failed: u64,
    gone: u64,
}

impl<'a> Writer<'a> {
    fn new(cx: &'a Context, args: &Args) -> Result<Self> {
        let path = args.output.as_deref().filter(|path| *path != Path::new("-"));
        let file = path.map(|path| Sink::create(path, args.follow)).transpose()?;
        Ok(Self { cx, file, text_only: args.text_only, failed: 0, gone: 0 })
    }

    fn write(&mut self, record: &Record, body: &Fetched) -> Result<()> {
        self.failed += u64::from(record.end != End::Succeeded);
        self.gone += u64::from(matches!(body, Fetched::Gone));
        let stored = match body {
            Fetched::Stored(body) => Some(body),
            Fetched::Inline | Fetched::Gone => None,
        };
        let line = if self.text_only {
            let inline = record.answer.as_ref().and_then(|answer| match &answer.output {
                Output::Inline(body) => Some(body),
                Output::Stored(_) => None,
            });
            let Some(text) = stored.or(inline).and_then(answer_text) else { return Ok(()) };
            text.into_owned()
        } else {
            result_line(record, stored)
        };
        match &mut self.file {
            None => self.cx.printer.line(&line),
            Some(sink) => sink.line(&line),
        }
    }

    /// What was written so far can be read from here on, where it is written as it comes.
    fn flush(&mut self) -> Result<()> {
        self.file.as_mut().map_or(Ok(()), Sink::flush)
    }

    fn finish(self, args: &Args) -> Result<Exit> {
        if let Some(sink) = self.file {
            sink.finish()?;
        }
        if self.gone > 0 {
            let what = format!("{} answers are not in the store any more", self.gone);
            return Err(Problem::new(Exit::Failed, "answers-gone", what).hint("is --store the one their worker used?"));
        }
        Ok(if args.follow && self.failed > 0 { Exit::SomeDead } else { Exit::Done })
    }
}
