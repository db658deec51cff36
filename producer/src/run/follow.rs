//! From the ledger's records to the output: pages by cursor, lines, and the saved position. Flat in memory.

use promptq_common::broker::Broker;
use promptq_common::error::Kind;
use promptq_common::job::BatchName;
use promptq_common::ledger::{Cursor, Scope};
use promptq_common::outcome::Body;
use promptq_common::record::{Output, Record};
use promptq_common::result_line::result_line;
use promptq_common::store::Store;

use super::output::{OutputFile, Position};
use super::summary::Tally;
use crate::printer::Printer;
use crate::problem::{Exit, Problem, Result};
use crate::sink;

/// The most records read at once; fewer while lines are long, so that a page stays near [`PAGE_BYTES`]. Pages with fewer
/// bytes go out together.
const PAGE: usize = 1_000;
/// With answers at the inline limit (64 KiB) a page of 1,000 would be 64 MB.
const PAGE_BYTES: usize = 4 << 20;

/// Where lines go.
#[derive(Debug)]
pub(super) enum Sink {
    /// A file that can be gone on with.
    File(Box<OutputFile>),
    /// Standard output, from the first result on.
    Stdout(Printer, Position),
    /// A device or a pipe, from the first result on.
    Stream(Box<sink::Sink>, Position),
}

impl Sink {
    /// How far it is.
    pub(super) fn position(&self) -> &Position {
        match self {
            Self::File(file) => file.position(),
            Self::Stdout(_, position) | Self::Stream(_, position) => position,
        }
    }

    fn append(&mut self, bytes: &[u8], lines: u64, cursor: Cursor) -> Result<()> {
        match self {
            Self::File(file) => file.append(bytes, lines, cursor),
            Self::Stdout(printer, position) => {
                printer.data(bytes)?;
                position.pass(bytes, lines, cursor);
                Ok(())
            }
            Self::Stream(stream, position) => {
                stream.bytes(bytes)?;
                stream.flush()?;
                position.pass(bytes, lines, cursor);
                Ok(())
            }
        }
    }
}

/// What a step of a [`Follower`] has copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Copied {
    /// Nothing: there is no more now.
    Nothing,
    /// All there was. A page written is a flush to disk: the next one had better be a large one.
    Some,
    /// As much as is copied at once.
    Full,
}

/// Copies a batch's results into a sink.
#[derive(Debug)]
pub(super) struct Follower {
    broker: Broker,
    store: Option<Store>,
    batch: BatchName,
    note: String,
    sink: Sink,
    page: usize,
    saved: bool,
    /// What is told of what it has copied; `None` where an earlier run has copied some of it.
    tally: Option<Tally>,
}

impl Follower {
    /// Goes on where `sink` stands; positions are saved in the ledger under `note`.
    pub(super) fn new(broker: Broker, store: Option<Store>, batch: BatchName, note: String, sink: Sink) -> Self {
        let tally = (sink.position().lines == 0).then(Tally::default);
        Self { broker, store, batch, note, sink, page: PAGE / 10, saved: false, tally }
    }

    /// The positions saved under `note`.
    pub(super) async fn saved(broker: &Broker, note: &str) -> Result<Vec<Position>> {
        let Some(text) = broker.ledger().note(note).await? else { return Ok(Vec::new()) };
        serde_json::from_str(&text).map_err(|error| {
            Problem::new(Exit::Failed, "corrupt", format!("the saved position of this run cannot be read: {error}"))
                .hint("--overwrite writes all results anew")
        })
    }

    /// How far the sink is.
    pub(super) fn position(&self) -> &Position {
        self.sink.position()
    }

    /// What is told of the batch's results; nothing where that is not known.
    pub(super) fn tally(&self) -> Tally {
        self.tally.clone().unwrap_or_default()
    }

    /// Copies what comes next. Cancel-safe: what was read is appended whole or not at all, and a position that was not saved is
    /// saved by the next call.
    pub(super) async fn step(&mut self) -> Result<Copied> {
        let from = (self.position().cursor, self.page, false);
        let read = page(&self.broker, self.store.as_ref(), &self.batch, from).await?;
        let Some(mut read) = read else {
            self.save().await?;
            return Ok(Copied::Nothing);
        };
        let mut pages = 1;
        while read.more && read.bytes.len() < PAGE_BYTES / 2 {
            let from = (read.last, self.page, false);
            let next = page(&self.broker, self.store.as_ref(), &self.batch, from).await;
            // What was read goes out first; the next step meets the error.
            let Ok(Some(next)) = next else { break };
            read.append(&next);
            pages += 1;
        }
        self.page = (self.page * pages * PAGE_BYTES / read.bytes.len().max(1)).clamp(1, PAGE);
        self.saved = false;
        tokio::task::block_in_place(|| self.sink.append(&read.bytes, read.lines, read.last))?;
        if let Some(tally) = &mut self.tally {
            tally.append(&read.tally);
        }
        self.save().await?;
        Ok(if read.more { Copied::Full } else { Copied::Some })
    }

    /// Saves the position. Must have been called before the first append to a new file, so that what a crash leaves
    /// is known to be ours.
    pub(super) async fn save(&mut self) -> Result<()> {
        if self.saved {
            return Ok(());
        }
        if let Sink::File(file) = &self.sink {
            save(&self.broker, &self.note, &[file.position()]).await?;
        }
        self.saved = true;
        Ok(())
    }

    /// Writes the file anew with one line per job, where redriven or late jobs have left more; or, as `fuller`, where
    /// it has fewer: then only if that gives more, as records past retention are in the file alone.
    pub(super) async fn rewrite(&mut self, fuller: bool) -> Result<()> {
        let Sink::File(file) = &mut self.sink else { return Ok(()) };
        let mut draft = file.draft()?;
        let mut size = PAGE / 10;
        while let Some(read) =
            page(&self.broker, self.store.as_ref(), &self.batch, (draft.position().cursor, size, true)).await?
        {
            size = (size * PAGE_BYTES / read.bytes.len().max(1)).clamp(1, PAGE);
            tokio::task::block_in_place(|| draft.append(&read.bytes, read.lines, read.last))?;
        }
        if fuller && draft.position().lines <= file.position().lines {
            draft.discard();
            return Ok(());
        }
        save(&self.broker, &self.note, &[file.position(), draft.position()]).await?;
        tokio::task::block_in_place(|| file.replace(draft))?;
        self.saved = false;
        self.save().await
    }
}

async fn save(broker: &Broker, note: &str, positions: &[&Position]) -> Result<()> {
    let text = serde_json::to_string(positions)
        .map_err(|error| Problem::new(Exit::Failed, "failed", format!("cannot write the position: {error}")))?;
    Ok(broker.ledger().set_note(note, Some(&text)).await?)
}

/// A page of lines.
#[derive(Debug)]
struct Read {
    bytes: Vec<u8>,
    lines: u64,
    tally: Tally,
    last: Cursor,
    /// Whether there was more.
    more: bool,
}

impl Read {
    fn append(&mut self, next: &Self) {
        self.bytes.extend_from_slice(&next.bytes);
        self.lines += next.lines;
        self.tally.append(&next.tally);
        (self.last, self.more) = (next.last, next.more);
    }
}

/// The lines after `cursor`; `None` at the end. With `newest`, records that a later one has replaced are left out.
async fn page(
    broker: &Broker,
    store: Option<&Store>,
    batch: &BatchName,
    (cursor, size, newest): (Cursor, usize, bool),
) -> Result<Option<Read>> {
    let read = broker.ledger().results(&Scope::Batch(batch.clone()), cursor, size).await?;
    let (records, last, more) = (read.records, read.next, read.more);
    if last == cursor {
        return Ok(None);
    }
    let current = if newest { replaced(broker, &records).await? } else { Vec::new() };
    let (mut bytes, mut lines, mut tally) = (Vec::new(), 0, Tally::default());
    for (n, (_, record)) in records.iter().enumerate() {
        if current.get(n) == Some(&true) {
            continue;
        }
        let body = stored(store, record).await?;
        bytes.extend_from_slice(result_line(record, body.as_ref()).as_bytes());
        bytes.push(b'\n');
        lines += 1;
        tally.add(record);
    }
    Ok(Some(Read { bytes, lines, tally, last, more }))
}

/// For each record, whether the job's account is another one by now.
async fn replaced(broker: &Broker, records: &[(Cursor, Record)]) -> Result<Vec<bool>> {
    let ids: Vec<_> = records.iter().map(|(_, record)| record.id).collect();
    let views = broker.ledger().fetch(&ids).await?;
    let now = |view: Option<promptq_common::ledger::JobView>| view.and_then(|view| view.record);
    let mut replaced = Vec::new();
    for ((n, (_, record)), view) in records.iter().enumerate().zip(views) {
        let again = records.iter().skip(n + 1).any(|(_, later)| later.id == record.id);
        let other =
            now(view).is_some_and(|now| (now.epoch, now.end, now.lease) != (record.epoch, record.end, record.lease));
        replaced.push(again || other);
    }
    Ok(replaced)
}

/// The body, where it is in object storage. One that is gone or damaged leaves a line that says where it was.
async fn stored(store: Option<&Store>, record: &Record) -> Result<Option<Body>> {
    let Some(Output::Stored(place)) = record.answer.as_ref().map(|answer| &answer.output) else { return Ok(None) };
    let Some(store) = store else { return Ok(None) };
    match store.get_output(place).await {
        Ok(body) => Ok(Some(body)),
        Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Corrupt | Kind::TooLarge) => {
            tracing::warn!(job = %record.id, %error, "a stored answer is missing from the results");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use promptq_common::broker::{Terms, Verdict, Want, WorkerId};
    use promptq_common::job::{Job, Queue};
    use promptq_common::record::{Answer, End, Stored};
    use promptq_common::work::Work;

    use super::*;

    async fn ended(broker: &Broker, batch: &BatchName, answer: Option<Answer>) {
        let work = Work::prompt(Some("mock"), "hi");
        broker.enqueue(&[Job { batch: Some(batch.clone()), ..Job::new(Queue::standard(), work) }]).await.unwrap();
        let terms = Terms {
            worker: WorkerId::random("w"),
            queues: vec![(Queue::standard(), 1)],
            lease: Duration::from_secs(60),
        };
        let mut consumer = broker.consume(terms).await.unwrap();
        let want = Want { total: 1, caps: Vec::new(), rest: 1 };
        let delivery = consumer.next(&want).await.unwrap().deliveries.pop().unwrap();
        let mut record = Record::unrun(&delivery.head, End::Dead, None, promptq_common::time::Timestamp::now());
        record.answer = answer;
        delivery.lease.settle(Verdict::End(Box::new(record))).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_result_that_was_listed_behind_the_file_is_in_it_at_the_end() {
        let (broker, batch) = (Broker::memory(), BatchName::new("b").unwrap());
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("out.jsonl");
        let sink = Sink::File(Box::new(OutputFile::open(&path, &[], false).unwrap()));
        let mut follower = Follower::new(broker.clone(), None, batch.clone(), "note".into(), sink);
        follower.save().await.unwrap();
        ended(&broker, &batch, None).await;
        ended(&broker, &batch, None).await;
        let all = broker.ledger().results(&Scope::Batch(batch.clone()), Cursor(0), 9).await.unwrap();
        let Sink::File(file) = &mut follower.sink else { unreachable!("a file") };
        let line = format!("{}\n", result_line(&all.records[1].1, None));
        file.append(line.as_bytes(), 1, all.next).unwrap();
        assert_eq!(follower.step().await.unwrap(), Copied::Nothing, "the cursor is past both");
        follower.rewrite(true).await.unwrap();
        assert_eq!((std::fs::read_to_string(&path).unwrap().lines().count(), follower.position().lines), (2, 2));
        // What the ledger has no more stays in the file.
        let Sink::File(file) = &mut follower.sink else { unreachable!("a file") };
        file.append(line.as_bytes(), 1, all.next).unwrap();
        follower.rewrite(true).await.unwrap();
        assert_eq!(follower.position().lines, 3);
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 1, "no draft is left");
        follower.rewrite(false).await.unwrap();
        assert_eq!(follower.position().lines, 2);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_read_before_an_error_is_written_before_it_is_told() {
        let (broker, batch) = (Broker::memory(), BatchName::new("b").unwrap());
        for _ in 0..PAGE / 10 {
            ended(&broker, &batch, None).await;
        }
        let place = Stored { key: "no//key".into(), sha256: String::new(), bytes: 1, json: false };
        ended(&broker, &batch, Some(Answer::plain(Output::Stored(place)))).await;
        let home = tempfile::tempdir().unwrap();
        let sink = Sink::File(Box::new(OutputFile::open(&home.path().join("out.jsonl"), &[], false).unwrap()));
        let mut follower = Follower::new(broker, Some(Store::memory()), batch, "note".into(), sink);
        follower.save().await.unwrap();
        assert_eq!(follower.step().await.unwrap(), Copied::Full);
        assert_eq!(follower.position().lines, 100);
        follower.step().await.unwrap_err();
        assert_eq!(follower.position().lines, 100);
    }
}
