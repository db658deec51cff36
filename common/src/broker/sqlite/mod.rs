//! The embedded broker and its ledger: one SQLite file, any number of processes of one machine. This file is the way
//! in; each step is its own file: `enqueue`, `lease`, `hold`, `settle`, `admin`, `leave`, `retention`, `query`, `account`;
//! for the messages of another broker `claims`, `away`, `open`, `raise`.

mod account;
mod admin;
mod away;
mod claims;
mod damage;
mod enqueue;
mod file;
mod filesystem;
mod gathered;
mod hold;
mod hot;
mod lanes;
mod lease;
mod leave;
mod ledger;
mod open;
mod query;
mod raise;
mod reader;
mod ready;
mod retention;
mod row;
mod settle;
mod source;
mod stage;
#[cfg(test)]
mod tests;
mod turned;
mod tx;
mod watcher;
mod writer;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use async_trait::async_trait;
use tokio::time::Instant;

pub use self::claims::CRASH_POINTS as CLAIMS_CRASH_POINTS;
pub use self::file::FileState;

use self::reader::Reader;
use self::source::RowSource;
use self::writer::Writer;
use super::backend::{
    Backend, Cancel, CancelCounts, Depth, Enqueued, Envelope, HoldKey, MAX_BATCH, QueueView, Redriven, Retention,
    Source, Swept, Terms, WorkerId,
};
use crate::error::{Error, Kind, Result};
use crate::job::{BatchName, JobId, Queue};
use crate::ledger::Page;

/// Where a process may be made to die, in the order a job meets them; see [`crate::crash_point!`].
pub const CRASH_POINTS: &[&str] = &[
    "sqlite.enqueue.before_begin",
    "sqlite.enqueue.after_job",
    "sqlite.enqueue.after_payload",
    "sqlite.enqueue.before_commit",
    "sqlite.enqueue.after_commit",
    "sqlite.lease.before_begin",
    "sqlite.lease.after_promote",
    "sqlite.lease.after_recover",
    "sqlite.lease.after_take",
    "sqlite.lease.before_commit",
    "sqlite.lease.after_commit",
    "sqlite.settle.before_begin",
    "sqlite.settle.after_record",
    "sqlite.settle.after_job",
    "sqlite.settle.before_commit",
    "sqlite.settle.after_commit",
];

/// The embedded broker: one writing thread and two reading ones in this process.
#[derive(Debug)]
pub struct Sqlite {
    path: PathBuf,
    writer: Writer,
    /// For claims, which are short and in the way of every job.
    claims: Reader,
    /// For everything people ask.
    queries: Reader,
    /// When this process last noted that a queue is used; never held across an await.
    touched: Mutex<HashMap<Queue, Instant>>,
}

impl Sqlite {
    /// Opens the file, making it (0600) and its folder (0700) when missing.
    ///
    /// # Errors
    /// `Config` for a network file system, another program's file or a newer schema; `Denied` for missing rights;
    /// `Unavailable`
    /// for a full disk or a file that other processes keep locked.
    pub async fn open(path: &Path) -> Result<Self> {
        let writer = Writer::start(path.to_owned()).await?;
        let claims = Reader::start(path.to_owned()).await?;
        let queries = Reader::start(path.to_owned()).await?;
        Ok(Self { path: path.to_owned(), writer, claims, queries, touched: Mutex::default() })
    }

    /// Looks at the file, and whether it may be written, or made where there is none; changes nothing.
    ///
    /// # Errors
    /// As [`Sqlite::open`].
    pub async fn look(path: &Path) -> Result<FileState> {
        let path = path.to_owned();
        let looked = tokio::task::spawn_blocking(move || file::look(&path)).await;
        looked.map_err(|gone| Error::new(Kind::Closed, "look at the embedded database", gone.to_string()))?
    }
}

/// Refuses calls above the documented size.
fn check_count(op: &'static str, count: usize) -> Result<()> {
    if count > MAX_BATCH {
        return Err(Error::new(Kind::TooLarge, op, format!("{count} at once; at most {MAX_BATCH}")));
    }
    Ok(())
}

#[async_trait]
impl Backend for Sqlite {
    fn name(&self) -> &'static str {
        "sqlite"
    }

    async fn enqueue(&self, batch: Vec<Envelope>) -> Result<Vec<Enqueued>> {
        check_count("enqueue", batch.len())?;
        let bytes = batch.iter().map(|envelope| envelope.payload.len()).sum();
        self.writer.write("enqueue", bytes, move |tx| enqueue::enqueue(tx, &batch)).await
    }

    async fn subscribe(&self, terms: Terms) -> Result<Box<dyn Source>> {
        let source = RowSource::new(self.writer.clone(), self.claims.clone(), &self.path, terms)?;
        Ok(Box::new(source))
    }

    async fn depth(&self, queue: &Queue) -> Result<Depth> {
        Ok(self.queue(queue).await?.map(|view| view.depth).unwrap_or_default())
    }

    async fn queues(&self) -> Result<Vec<QueueView>> {
        self.queries.read("list queues", |conn| query::queues(conn, None)).await
    }

    async fn queue(&self, queue: &Queue) -> Result<Option<QueueView>> {
        let queue = queue.clone();
        let views = self.queries.read("read a depth", move |conn| query::queues(conn, Some(&queue))).await?;
        Ok(views.into_iter().next())
    }

    async fn pause(&self, queue: &Queue, reason: Option<&str>) -> Result<()> {
        let (queue, reason) = (queue.clone(), reason.map(str::to_owned));
        self.writer.write("pause", 0, move |tx| admin::pause(tx, &queue, reason.as_deref())).await
    }

    async fn purge(&self, queue: &Queue) -> Result<u64> {
        let upto = self.writer.write("purge", 0, |tx| admin::newest(tx)).await?;
        let mut ended = 0;
        loop {
            let queue = queue.clone();
            let count = self.writer.write("purge", 0, move |tx| admin::purge_step(tx, &queue, upto)).await?;
            ended += count;
            if count < u64::from(admin::STEP) {
                return Ok(ended);
            }
        }
    }

    async fn cancel(&self, ids: &[JobId]) -> Result<Vec<Cancel>> {
        check_count("cancel", ids.len())?;
        let ids = ids.to_vec();
        self.writer.write("cancel", 0, move |tx| admin::cancel(tx, &ids)).await
    }

    async fn cancel_batch(&self, batch: &BatchName) -> Result<CancelCounts> {
        let name = batch.clone();
        let marked = self.writer.write("cancel a batch", 0, move |tx| admin::mark_batch(tx, &name)).await?;
        let mut counts = CancelCounts::default();
        let Some((id, upto)) = marked else { return Ok(counts) };
        let mut from = 0;
        loop {
            let step = move |tx: &mut tx::Tx<'_>| admin::cancel_batch_step(tx, id, (from, upto));
            let (some, next) = self.writer.write("cancel a batch", 0, step).await?;
            counts.ended += some.ended;
            counts.flagged += some.flagged;
            match next {
                Some(next) => from = next,
                None => return Ok(counts),
            }
        }
    }

    async fn redrive(&self, ids: &[JobId]) -> Result<Vec<Redriven>> {
        check_count("redrive", ids.len())?;
        let ids = ids.to_vec();
        self.writer.write("redrive", 0, move |tx| admin::redrive(tx, &ids)).await
    }

    async fn drop_dead(&self, ids: &[JobId]) -> Result<u64> {
        check_count("drop dead jobs", ids.len())?;
        let ids = ids.to_vec();
        self.writer.write("drop dead jobs", 0, move |tx| admin::drop_dead(tx, &ids)).await
    }

    async fn wake(&self, key: &HoldKey) -> Result<u64> {
        let key = key.clone();
        self.writer.write("wake jobs", 0, move |tx| admin::wake(tx, &key)).await
    }

    async fn recover(&self, worker: &WorkerId) -> Result<u64> {
        let worker = worker.clone();
        self.writer.write("recover a worker's jobs", 0, move |tx| admin::recover(tx, worker.as_str())).await
    }

    async fn waiting(&self, queue: &Queue, after: Option<&str>, limit: usize) -> Result<Page<Envelope>> {
        let (queue, after) = (queue.clone(), leave::place(after)?);
        let limit = limit.clamp(1, MAX_BATCH);
        self.queries.read("list waiting jobs", move |conn| leave::waiting(conn, &queue, after, limit)).await
    }

    async fn forget(&self, jobs: &[(JobId, u32)]) -> Result<u64> {
        check_count("forget", jobs.len())?;
        let jobs = jobs.to_vec();
        self.writer.write("forget", 0, move |tx| leave::forget(tx, &jobs)).await
    }

    async fn sweep(&self, retention: &Retention) -> Result<Swept> {
        let retention = *retention;
        self.writer.write("sweep", 0, move |tx| retention::sweep(tx, &retention)).await
    }
}
