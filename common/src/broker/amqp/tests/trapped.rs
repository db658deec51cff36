//! The ledger in memory behind a trap: one call of a kind breaks, the others are carried out. Keeps what it was asked.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use crate::broker::memory::Memory;
use crate::broker::{
    Beat, Cancel, CancelCounts, Head, LeaseId, QueueView, Retention, Settled, Swept, Verdict, WorkerId,
};
use crate::error::Result;
use crate::job::{BatchName, Fingerprint, JobId, Queue};
use crate::ledger::{
    Announced, Asked, BatchView, Claims, Cursor, DeadGroup, JobFilter, JobView, Known, Ledger, LedgerId, Opened, Page,
    Raised, Registered, Results, Scope, WorkerReport,
};
use crate::time::Timestamp;

/// A ledger with a trap.
#[derive(Debug, Default)]
pub(super) struct Trapped {
    inner: Memory,
    trap: Mutex<Option<&'static str>>,
    asked: Mutex<Vec<bool>>,
    noted: Mutex<Vec<JobId>>,
}

impl Trapped {
    /// Has the next call of this name break.
    pub(super) fn set(&self, call: &'static str) {
        *self.trap.lock().unwrap_or_else(PoisonError::into_inner) = Some(call);
    }

    /// Whether each message that was opened had been delivered before.
    pub(super) fn redelivered(&self) -> Vec<bool> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Of which jobs it was told that their ends were announced.
    pub(super) fn noted(&self) -> Vec<JobId> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn pass(&self, call: &str) {
        let trapped = self.trap.lock().unwrap_or_else(PoisonError::into_inner).take_if(|trap| *trap == call);
        assert!(trapped.is_none(), "{call} breaks, as the test would have it");
    }
}

#[async_trait]
impl Claims for Trapped {
    async fn identity(&self) -> Result<LedgerId> {
        self.inner.identity().await
    }

    async fn register(&self, jobs: &[&Head]) -> Result<Vec<Registered>> {
        self.inner.register(jobs).await
    }

    async fn confirm(&self, jobs: &[&Head]) -> Result<()> {
        self.inner.confirm(jobs).await
    }

    async fn open(&self, job: &Head, asked: &Asked<'_>) -> Result<Opened> {
        self.pass("open");
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(asked.redelivered);
        self.inner.open(job, asked).await
    }

    async fn beat(&self, job: &Head, lease: LeaseId, length: Duration) -> Result<Beat> {
        self.inner.beat(job, lease, length).await
    }

    async fn settle(&self, job: &Head, lease: LeaseId, verdict: &Verdict, payload: Option<&[u8]>) -> Result<Settled> {
        self.pass("settle");
        self.inner.settle(job, lease, verdict, payload).await
    }

    async fn announced(&self, ends: &[Announced]) -> Result<()> {
        self.pass("announced");
        self.noted.lock().unwrap_or_else(PoisonError::into_inner).extend(ends.iter().map(|end| end.id));
        self.inner.announced(ends).await
    }

    async fn keep(&self, job: &Head, payload: &[u8]) -> Result<bool> {
        self.inner.keep(job, payload).await
    }

    async fn raise(&self, ids: &[JobId]) -> Result<Vec<Raised>> {
        self.inner.raise(ids).await
    }

    async fn published(&self, jobs: &[&Head]) -> Result<()> {
        self.inner.published(jobs).await
    }

    async fn cancel(&self, ids: &[JobId], queues: &[Queue]) -> Result<Vec<Cancel>> {
        Claims::cancel(&self.inner, ids, queues).await
    }

    async fn cancel_batch(&self, batch: &BatchName) -> Result<CancelCounts> {
        Claims::cancel_batch(&self.inner, batch).await
    }

    async fn pause(&self, queue: &Queue, reason: Option<&str>) -> Result<()> {
        Claims::pause(&self.inner, queue, reason).await
    }

    async fn purge(&self, queue: &Queue) -> Result<u64> {
        Claims::purge(&self.inner, queue).await
    }

    async fn drop_dead(&self, ids: &[JobId]) -> Result<u64> {
        Claims::drop_dead(&self.inner, ids).await
    }

    async fn forget(&self, jobs: &[(JobId, u32)]) -> Result<u64> {
        Claims::forget(&self.inner, jobs).await
    }

    async fn recover(&self, worker: &WorkerId) -> Result<u64> {
        Claims::recover(&self.inner, worker).await
    }

    async fn sweep(&self, retention: &Retention) -> Result<Swept> {
        Claims::sweep(&self.inner, retention).await
    }

    async fn now(&self) -> Result<Timestamp> {
        self.inner.now().await
    }

    async fn touch(&self, queue: &Queue) -> Result<()> {
        self.inner.touch(queue).await
    }

    async fn standing(&self, queue: &Queue) -> Result<QueueView> {
        self.inner.standing(queue).await
    }

    async fn standings(&self) -> Result<Vec<QueueView>> {
        self.inner.standings().await
    }
}

#[async_trait]
impl Ledger for Trapped {
    async fn known(&self, keys: &[(JobId, Fingerprint)]) -> Result<Vec<Known>> {
        self.inner.known(keys).await
    }

    async fn fetch(&self, ids: &[JobId]) -> Result<Vec<Option<JobView>>> {
        self.inner.fetch(ids).await
    }

    async fn payload(&self, id: JobId) -> Result<Option<Vec<u8>>> {
        self.inner.payload(id).await
    }

    async fn list(&self, filter: &JobFilter, cursor: Option<&str>, limit: usize) -> Result<Page<JobView>> {
        self.inner.list(filter, cursor, limit).await
    }

    async fn results(&self, scope: &Scope, cursor: Cursor, limit: usize) -> Result<Results> {
        self.inner.results(scope, cursor, limit).await
    }

    async fn batch(&self, name: &BatchName) -> Result<Option<BatchView>> {
        self.inner.batch(name).await
    }

    async fn batches(&self, limit: usize) -> Result<Vec<BatchView>> {
        self.inner.batches(limit).await
    }

    async fn seal(&self, name: &BatchName, queue: &Queue) -> Result<()> {
        self.inner.seal(name, queue).await
    }

    async fn dead_groups(&self, queue: Option<&Queue>) -> Result<Vec<DeadGroup>> {
        self.inner.dead_groups(queue).await
    }

    async fn report(&self, worker: &WorkerReport) -> Result<()> {
        self.inner.report(worker).await
    }

    async fn leave(&self, worker: &WorkerId) -> Result<()> {
        self.inner.leave(worker).await
    }

    async fn workers(&self) -> Result<Vec<WorkerReport>> {
        self.inner.workers().await
    }

    async fn lock(&self, name: &str, owner: &WorkerId, length: Duration) -> Result<bool> {
        self.inner.lock(name, owner, length).await
    }

    async fn unlock(&self, name: &str, owner: &WorkerId) -> Result<()> {
        self.inner.unlock(name, owner).await
    }

    async fn note(&self, key: &str) -> Result<Option<String>> {
        self.inner.note(key).await
    }

    async fn set_note(&self, key: &str, value: Option<&str>) -> Result<()> {
        self.inner.set_note(key, value).await
    }
}
