//! Rolls the records of each batch up into object storage: `part-<n>.jsonl` while it runs, `results.jsonl` and
//! `summary.json` when it is done. Stands on `Ledger` and `Store` alone; who calls it and when is the worker's.
//! What a part will hold is noted before it is written, so that whoever takes over writes the same part.

mod summary;

use std::io::{BufWriter, Write as _};
use std::time::Duration;

use promptq_common::broker::{Broker, WorkerId};
use promptq_common::error::{Error, Kind, Result};
use promptq_common::job::BatchName;
use promptq_common::ledger::{BatchView, Cursor, JobView, Ledger, Results, Scope};
use promptq_common::outcome::Body;
use promptq_common::record::{Output, Record};
use promptq_common::result_line::result_line;
use promptq_common::store::{Store, key_part};
use promptq_common::time::Timestamp;
use serde::{Deserialize, Serialize};
use summary::Summary;
use tempfile::NamedTempFile;

/// Between two parts of a batch that still runs (`protocol.md`: readers see results at most this old).
pub const EVERY: Duration = Duration::from_secs(300);

/// The lock's name and length: extended with every page, so it outlives only a holder that died or hangs.
const LOCK: (&str, Duration) = ("rollup", Duration::from_secs(120));

/// Records read at a time: at most 6.4 MB of inline answers.
const PAGE: usize = 100;

/// The newest batches looked at; older ones that still run were rolled up to their last part.
const BATCHES: usize = 1_000;

/// Rolls up what is due and returns; at once when another worker is at it. Call it every half minute or so while a store
/// is configured. Dropped at any point or dead after any step, the next call of any worker goes on from there.
///
/// # Errors
/// The first trouble with the ledger or the store; other batches have been tried all the same, and the next call
/// repeats what is missing.
pub async fn step(broker: &Broker, store: &Store, worker: &WorkerId) -> Result<()> {
    let roller = Roller { ledger: broker.ledger(), store, worker, now: Timestamp::now() };
    roller.step().await
}

struct Roller<'a> {
    ledger: &'a dyn Ledger,
    store: &'a Store,
    worker: &'a WorkerId,
    now: Timestamp,
}

/// How far a batch has been rolled up; a note in the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Progress {
    /// Parts written.
    parts: u32,
    /// The last record in them.
    done: Cursor,
    /// The last record of the part being written, if one is.
    open: Option<Cursor>,
    /// When the last part was begun.
    begun: Timestamp,
    /// The batch's last record when `results.jsonl` was written, if it was.
    results: Option<Cursor>,
}

impl Roller<'_> {
    async fn step(&self) -> Result<()> {
        if !self.hold().await? {
            return Ok(());
        }
        let rolled = self.batches().await;
        self.ledger.unlock(LOCK.0, self.worker).await?;
        rolled
    }

    async fn hold(&self) -> Result<bool> {
        self.ledger.lock(LOCK.0, self.worker, LOCK.1).await
    }

    async fn batches(&self) -> Result<()> {
        let mut first_trouble = Ok(());
        for batch in self.ledger.batches(BATCHES).await? {
            let rolled = self.batch(&batch).await;
            if let Err(error) = &rolled {
                tracing::warn!(batch = %batch.name, %error, "a batch could not be rolled up; trying again later");
            }
            first_trouble = first_trouble.and(rolled);
        }
        first_trouble
    }

    async fn batch(&self, batch: &BatchView) -> Result<()> {
        let mut progress = self.progress(batch).await?;
        let finished = batch.sealed && batch.counts.ended() == batch.counts.total;
        loop {
            if progress.open.is_none() && self.part_is_due(batch, &progress, finished) {
                progress = self.plan(batch, progress).await?;
            }
            let Some(last) = progress.open else { break };
            self.write_part(&batch.name, &progress, last).await?;
            progress = Progress { parts: progress.parts + 1, done: last, open: None, ..progress };
            self.save(&batch.name, &progress).await?;
        }
        if finished && progress.results != Some(batch.last) {
            self.write_results(batch, progress.results.is_some()).await?;
            self.save(&batch.name, &Progress { results: Some(batch.last), ..progress }).await?;
        }
        Ok(())
    }

    fn part_is_due(&self, batch: &BatchView, progress: &Progress, finished: bool) -> bool {
        batch.last > progress.done && (finished || self.now.since(progress.begun) >= EVERY)
    }

    /// Notes which records the next part holds. From here on nobody writes it otherwise.
    async fn plan(&self, batch: &BatchView, progress: Progress) -> Result<Progress> {
        let planned = Progress { open: Some(batch.last), begun: self.now, ..progress };
        self.save(&batch.name, &planned).await?;
        Ok(planned)
    }

    async fn write_part(&self, batch: &BatchName, progress: &Progress, last: Cursor) -> Result<()> {
        let mut lines = Lines::new()?;
        let mut from = progress.done;
        'pages: loop {
            let page = self.page(batch, from).await?;
            for (cursor, record) in &page.records {
                if *cursor > last {
                    break 'pages;
                }
                lines.push(&self.line(record).await?)?;
            }
            if !page.more {
                break;
            }
            from = page.next;
        }
        self.put(&format!("batches/{}/part-{}.jsonl", key_part(batch.as_str()), progress.parts + 1), lines).await
    }

    /// Every job once, as it stands now: of a job that ended twice (redriven, late) only the record that counts. What
    /// was written while every record was there is not replaced by less; the new ends are in the last part.
    async fn write_results(&self, batch: &BatchView, again: bool) -> Result<()> {
        let mut lines = Lines::new()?;
        let mut summary = Summary::default();
        let mut from = Cursor::default();
        loop {
            let page = self.page(&batch.name, from).await?;
            let ids: Vec<_> = page.records.iter().map(|(_, record)| record.id).collect();
            let views = self.ledger.fetch(&ids).await?;
            for ((_, record), view) in page.records.iter().zip(views) {
                if counts(record, view.as_ref()) {
                    summary.add(record);
                    lines.push(&self.line(record).await?)?;
                }
            }
            if !page.more {
                break;
            }
            from = page.next;
        }
        if again && summary.lines() < batch.counts.ended() {
            tracing::warn!(batch = %batch.name, "records are past their retention: its earlier results.jsonl stays");
            return Ok(());
        }
        let folder = format!("batches/{}", key_part(batch.name.as_str()));
        self.put(&format!("{folder}/results.jsonl"), lines).await?;
        self.store.put(&format!("{folder}/summary.json"), summary.json(batch)).await
    }

    /// The next records, with the lock extended: one that was lost meanwhile ends the step, its new holder goes on.
    async fn page(&self, batch: &BatchName, from: Cursor) -> Result<Results> {
        if !self.hold().await? {
            return Err(Error::new(Kind::Unavailable, "roll a batch up", "another worker has taken over"));
        }
        self.ledger.results(&Scope::Batch(batch.clone()), from, PAGE).await
    }

    async fn line(&self, record: &Record) -> Result<String> {
        Ok(result_line(record, self.stored_body(record).await?.as_ref()))
    }

    /// The body, where it is in object storage. One that is gone or damaged leaves a line that says where it was.
    async fn stored_body(&self, record: &Record) -> Result<Option<Body>> {
        let Some(Output::Stored(stored)) = record.answer.as_ref().map(|answer| &answer.output) else {
            return Ok(None);
        };
        match self.store.get_output(stored).await {
            Ok(body) => Ok(Some(body)),
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Corrupt | Kind::TooLarge) => {
                tracing::warn!(job = %record.id, %error, "a stored answer is missing from the roll-up");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn put(&self, key: &str, lines: Lines) -> Result<()> {
        let file = lines.finish()?;
        self.store.put_file(key, file.path()).await
    }

    async fn progress(&self, batch: &BatchView) -> Result<Progress> {
        match self.ledger.note(&note_key(&batch.name)).await? {
            Some(note) => serde_json::from_str(&note)
                .map_err(|error| Error::new(Kind::Corrupt, "read a roll-up's progress", "").because(error)),
            None => {
                Ok(Progress { parts: 0, done: Cursor::default(), open: None, begun: batch.created_at, results: None })
            }
        }
    }

    async fn save(&self, batch: &BatchName, progress: &Progress) -> Result<()> {
        let note = serde_json::to_string(progress)
            .map_err(|error| Error::new(Kind::Corrupt, "note a roll-up's progress", "").because(error))?;
        self.ledger.set_note(&note_key(batch), Some(&note)).await
    }
}

/// Whether this is the record that counts of its job; one past retention has no other.
fn counts(record: &Record, job: Option<&JobView>) -> bool {
    job.is_none_or(|job| job.record.as_deref() == Some(record))
}

fn note_key(batch: &BatchName) -> String {
    format!("rollup:{batch}")
}

/// Lines on their way into an object, in an unnamed-to-others file (mode 0600) rather than in memory.
struct Lines(BufWriter<NamedTempFile>);

impl Lines {
    fn new() -> Result<Self> {
        NamedTempFile::with_prefix("promptq-rollup-").map(|file| Self(BufWriter::new(file))).map_err(no_room)
    }

    /// Blocks for a page-cache write at most.
    fn push(&mut self, line: &str) -> Result<()> {
        self.0.write_all(line.as_bytes()).and_then(|()| self.0.write_all(b"\n")).map_err(no_room)
    }

    fn finish(self) -> Result<NamedTempFile> {
        self.0.into_inner().map_err(|error| no_room(error.into_error()))
    }
}

fn no_room(error: std::io::Error) -> Error {
    Error::new(Kind::Unavailable, "write a roll-up's temporary file", error.to_string()).because(error)
}

#[cfg(test)]
mod tests;
