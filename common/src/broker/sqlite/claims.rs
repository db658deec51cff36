//! The file as the ledger of another broker on the same host: every call is one transaction, together with whatever else
//! arrived meanwhile. What the calls do is `away.rs`, `open.rs` and `raise.rs`.

use std::sync::PoisonError;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::open::{Bid, open};
use super::settle::Ending;
use super::{Sqlite, account, away, check_count, lease, query, raise, row};
use crate::broker::backend::{
    Backend, Beat, Cancel, CancelCounts, Depth, Head, LeaseId, QueueView, Retention, Settled, Swept, Verdict, WorkerId,
};
use crate::codec;
use crate::error::{Error, Kind, Result};
use crate::job::{BatchName, JobId, Queue};
use crate::ledger::{Announced, Asked, Claims, Ledger, LedgerId, Opened, Raised, Registered};
use crate::record::End;
use crate::time::Timestamp;

/// Where a process may be made to die besides [`super::CRASH_POINTS`] of settling; see [`crate::crash_point!`].
pub const CRASH_POINTS: &[&str] = &[
    "sqlite.open.before_begin",
    "sqlite.open.after_entry",
    "sqlite.open.after_claim",
    "sqlite.open.before_commit",
    "sqlite.open.after_commit",
    "sqlite.settle.after_payload",
];

/// How many jobs one transaction puts back in line: payloads are read, each of up to 16 MiB.
const RAISED: usize = 10;

/// The note that says which ledger this is.
const IDENTITY: &str = "identity";

/// A queue is noted as used at most this often by one process.
const TOUCH: Duration = Duration::from_secs(60);

#[async_trait]
impl Claims for Sqlite {
    async fn identity(&self) -> Result<LedgerId> {
        if let Some(kept) = self.note(IDENTITY).await? {
            return LedgerId::parse(&kept);
        }
        let fresh = LedgerId::random().to_string();
        let first = move |tx: &mut super::tx::Tx<'_>| account::first_note(tx, IDENTITY, &fresh);
        LedgerId::parse(&self.writer.write("make the ledger's identity", 0, first).await?)
    }

    async fn register(&self, jobs: &[&Head]) -> Result<Vec<Registered>> {
        const OP: &str = "register jobs";
        check_count(OP, jobs.len())?;
        let jobs: Vec<Head> = jobs.iter().copied().cloned().collect();
        self.writer.write(OP, 0, move |tx| away::register(tx, &jobs)).await
    }

    async fn confirm(&self, jobs: &[&Head]) -> Result<()> {
        self.unmark("confirm jobs", jobs, away::UNCONFIRMED).await
    }

    async fn open(&self, job: &Head, asked: &Asked<'_>) -> Result<Opened> {
        let bid = Bid { lease: asked.lease, worker: asked.worker.clone(), length: millis(asked.length) };
        let job = job.clone();
        self.writer.write("open", 0, move |tx| open(tx, &job, &bid)).await
    }

    async fn beat(&self, job: &Head, lease: LeaseId, length: Duration) -> Result<Beat> {
        let (id, length) = (job.id, millis(length));
        let work = move |tx: &mut super::tx::Tx<'_>| match row::Place::by_id(tx, id)? {
            Some(place) => lease::extend(tx, place.seq, lease, length),
            None => Ok(Beat::Lost),
        };
        self.writer.write("beat", 0, work).await
    }

    async fn settle(&self, job: &Head, lease: LeaseId, verdict: &Verdict, payload: Option<&[u8]>) -> Result<Settled> {
        let failed = matches!(verdict, Verdict::End(record) if record.end != End::Succeeded);
        let payload = payload.filter(|_| failed).map(<[u8]>::to_vec);
        let (id, ending) = (job.id, Ending::of(verdict)?);
        let bytes = ending.bytes() + payload.as_ref().map_or(0, Vec::len);
        self.writer
            .write("settle", bytes, move |tx| away::end_claim(tx, (id, lease), &ending, payload.as_deref()))
            .await
    }

    async fn announced(&self, ends: &[Announced]) -> Result<()> {
        let ends: Vec<_> = ends.iter().map(|told| (told.id, told.epoch, told.end)).collect();
        self.writer
            .write("note announcements", 0, move |tx| {
                ends.iter().try_for_each(|&(id, epoch, end)| away::announced(tx, id, epoch, end))
            })
            .await
    }

    async fn keep(&self, job: &Head, payload: &[u8]) -> Result<bool> {
        const OP: &str = "keep a payload";
        if payload.len() > codec::MAX_BYTES {
            let why = format!("{} bytes; at most {}", payload.len(), codec::MAX_BYTES);
            return Err(Error::new(Kind::TooLarge, OP, why));
        }
        let (which, payload) = ((job.id, job.epoch), payload.to_vec());
        self.writer.write(OP, payload.len(), move |tx| away::keep(tx, which, &payload)).await
    }

    async fn raise(&self, ids: &[JobId]) -> Result<Vec<Raised>> {
        const OP: &str = "raise jobs";
        check_count(OP, ids.len())?;
        let mut raised = Vec::with_capacity(ids.len());
        for ids in ids.chunks(RAISED) {
            let ids = ids.to_vec();
            raised.append(&mut self.writer.write(OP, 0, move |tx| raise::raise(tx, &ids)).await?);
        }
        Ok(raised)
    }

    async fn published(&self, jobs: &[&Head]) -> Result<()> {
        self.unmark("mark published jobs", jobs, away::RAISED).await
    }

    async fn cancel(&self, ids: &[JobId], queues: &[Queue]) -> Result<Vec<Cancel>> {
        check_count("cancel", ids.len())?;
        let (ids, queues) = (ids.to_vec(), queues.to_vec());
        self.writer.write("cancel", 0, move |tx| away::cancel(tx, &ids, &queues)).await
    }

    async fn cancel_batch(&self, batch: &BatchName) -> Result<CancelCounts> {
        Backend::cancel_batch(self, batch).await
    }

    async fn pause(&self, queue: &Queue, reason: Option<&str>) -> Result<()> {
        Backend::pause(self, queue, reason).await
    }

    async fn purge(&self, queue: &Queue) -> Result<u64> {
        let name = queue.clone();
        self.writer.write("purge", 0, move |tx| away::note_purge(tx, &name)).await?;
        Backend::purge(self, queue).await
    }

    async fn drop_dead(&self, ids: &[JobId]) -> Result<u64> {
        Backend::drop_dead(self, ids).await
    }

    async fn forget(&self, jobs: &[(JobId, u32)]) -> Result<u64> {
        Backend::forget(self, jobs).await
    }

    async fn recover(&self, worker: &WorkerId) -> Result<u64> {
        Backend::recover(self, worker).await
    }

    async fn sweep(&self, retention: &Retention) -> Result<Swept> {
        let retention = *retention;
        self.writer.write("sweep", 0, move |tx| away::sweep(tx, &retention)).await
    }

    async fn now(&self) -> Result<Timestamp> {
        Ok(Timestamp::now())
    }

    async fn touch(&self, queue: &Queue) -> Result<()> {
        let fresh = |at: &Instant| at.elapsed() < TOUCH;
        if self.touched.lock().unwrap_or_else(PoisonError::into_inner).get(queue).is_some_and(fresh) {
            return Ok(());
        }
        let name = queue.clone();
        self.writer.write("note a queue", 0, move |tx| away::touch(tx, &name)).await?;
        self.touched.lock().unwrap_or_else(PoisonError::into_inner).insert(queue.clone(), Instant::now());
        Ok(())
    }

    async fn standing(&self, queue: &Queue) -> Result<QueueView> {
        let only = queue.clone();
        let views = self.queries.read("read a queue", move |conn| query::queues(conn, Some(&only))).await?;
        let unknown = || QueueView { queue: queue.clone(), paused: None, depth: Depth::default() };
        Ok(views.into_iter().next().unwrap_or_else(unknown))
    }

    async fn standings(&self) -> Result<Vec<QueueView>> {
        Backend::queues(self).await
    }
}

impl Sqlite {
    async fn unmark(&self, op: &'static str, jobs: &[&Head], mark: i64) -> Result<()> {
        check_count(op, jobs.len())?;
        let jobs: Vec<_> = jobs.iter().map(|head| (head.id, head.epoch)).collect();
        self.writer.write(op, 0, move |tx| away::unmark(tx, &jobs, mark)).await
    }
}

fn millis(length: Duration) -> i64 {
    i64::try_from(length.as_millis()).unwrap_or(i64::MAX / 2)
}
