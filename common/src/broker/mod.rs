//! The facade everybody else holds: concrete, the same for every backend; spans and counters are emitted here, once.
//! What a backend must do is `backend.rs`; which URL means which backend is `connect.rs`.

mod access;
pub mod amqp;
mod answer;
mod backend;
mod connect;
mod foreign;
mod hold;
mod lease;
pub mod memory;
mod meter;
pub mod redis;
mod rounds;
pub mod sqlite;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

pub use access::{Access, Beside, Durability, Section};
pub use amqp::{Health, Hop, QueueType, Settings, examine, examine_ledger, renew_ledger};
pub use backend::{
    Backend, Beat, Cancel, CancelCounts, Claim, Declared, Depth, Enqueued, Envelope, Head, Hold, LEASE_BYTES, LeaseId,
    Leased, MAX_BATCH, PAGE_BYTES, QueueView, RawDelivery, Redriven, Refusal, Remark, Retention, Settled, Source,
    Swept, Terms, Verdict, Want, WorkerId,
};
pub(crate) use connect::sqlite_path;
pub use connect::{default_path, embedded_file, is_local, lacking, ledger, look, survey};
pub use hold::HoldKey;
pub use lease::{Consumer, Deliveries, Delivery, Lease};
pub use redis::{Fsync, Survey};
pub use sqlite::FileState;

use tokio::time::Instant;

use crate::codec;
use crate::error::Result;
use crate::job::{BatchName, Job, JobId, ModelName, Queue};
use crate::ledger::{Ledger, Page};

/// A connection to a broker and its ledger. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Broker {
    backend: Arc<dyn Backend>,
    ledger: Arc<dyn Ledger>,
    trouble: Trouble,
    meters: Option<Arc<meter::Meters>>,
}

impl Broker {
    /// A broker over this backend and ledger.
    pub fn new(backend: Arc<dyn Backend>, ledger: Arc<dyn Ledger>) -> Self {
        let meters = meter::Meters::of(backend.name());
        Self { backend, ledger, trouble: Trouble::default(), meters }
    }

    /// A broker in this process's memory; gone with it.
    pub fn memory() -> Self {
        let memory = Arc::new(memory::Memory::new());
        Self::new(Arc::clone(&memory) as Arc<dyn Backend>, memory)
    }

    /// What kind of broker it is; see [`Backend::name`].
    pub fn backend_name(&self) -> &'static str {
        self.backend.name()
    }

    /// What is known of jobs and batches.
    pub fn ledger(&self) -> &dyn Ledger {
        &*self.ledger
    }

    /// Puts jobs in, at most [`MAX_BATCH`] at a time: one answer each, in order; `New` and `Known` mean durable.
    /// After an `Err` nothing is known of any of them; repeating is safe.
    #[tracing::instrument(skip_all, level = "debug", fields(jobs = jobs.len()))]
    pub async fn enqueue(&self, jobs: &[Job]) -> Result<Vec<Enqueued>> {
        self.put(jobs, false).await
    }

    /// As [`Broker::enqueue`], publishing once more what is known and waits; see [`Backend::republish`].
    #[tracing::instrument(skip_all, level = "debug", fields(jobs = jobs.len()))]
    pub async fn republish(&self, jobs: &[Job]) -> Result<Vec<Enqueued>> {
        self.put(jobs, true).await
    }

    async fn put(&self, jobs: &[Job], lost: bool) -> Result<Vec<Enqueued>> {
        let mut answers: Vec<Option<Enqueued>> = vec![None; jobs.len()];
        let mut batch = Vec::with_capacity(jobs.len());
        for (job, answer) in jobs.iter().zip(&mut answers) {
            match envelope(job) {
                Ok(envelope) => batch.push(envelope),
                Err(bytes) => {
                    let refused = Enqueued::Refused(Refusal::TooLarge(bytes));
                    if let Some(meters) = &self.meters {
                        meters.refused(&job.queue, &refused);
                    }
                    *answer = Some(refused);
                }
            }
        }
        let taken = if batch.is_empty() { Vec::new() } else { self.hand_over(batch, lost).await? };
        let mut taken = taken.into_iter();
        Ok(answers.into_iter().filter_map(|answer| answer.or_else(|| taken.next())).collect())
    }

    async fn hand_over(&self, batch: Vec<Envelope>, lost: bool) -> Result<Vec<Enqueued>> {
        let sent = self.meters.as_ref().map(|meters| (meters, meters.sends(&batch)));
        let taken = if lost { self.backend.republish(batch).await } else { self.backend.enqueue(batch).await };
        if let Some((meters, sent)) = sent {
            meters.answered(sent, taken.as_deref());
        }
        taken
    }

    /// Puts in jobs as another broker gave them by [`Broker::waiting`]; see [`Backend::enqueue`].
    #[tracing::instrument(skip_all, level = "debug", fields(jobs = jobs.len()))]
    pub async fn enqueue_moved(&self, jobs: Vec<Envelope>) -> Result<Vec<Enqueued>> {
        self.backend.enqueue(jobs).await
    }

    /// Opens a worker's one subscription.
    pub async fn consume(&self, terms: Terms) -> Result<Consumer> {
        let served = meter::served(terms.queues.iter().map(|(queue, _)| queue));
        let source = self.backend.subscribe(terms).await?;
        Ok(Consumer::new(source, self.trouble.clone(), served))
    }

    /// For how long settling has failed without a success in between; `None` while it works.
    /// A worker leases nothing new when this is above 5 s.
    pub fn settle_trouble(&self) -> Option<Duration> {
        self.trouble.since()
    }

    /// See [`Backend::depth`].
    pub async fn depth(&self, queue: &Queue) -> Result<Depth> {
        self.backend.depth(queue).await
    }

    /// See [`Backend::queues`].
    pub async fn queues(&self) -> Result<Vec<QueueView>> {
        self.backend.queues().await
    }

    /// See [`Backend::queue`].
    pub async fn queue(&self, queue: &Queue) -> Result<Option<QueueView>> {
        self.backend.queue(queue).await
    }

    /// See [`Backend::several`].
    pub async fn several(&self, queues: &[Queue]) -> Result<Vec<Option<QueueView>>> {
        self.backend.several(queues).await
    }

    /// See [`Backend::paused`].
    pub async fn paused(&self, queue: &Queue) -> Result<Option<String>> {
        self.backend.paused(queue).await
    }

    /// See [`Backend::pause`].
    pub async fn pause(&self, queue: &Queue, reason: Option<&str>) -> Result<()> {
        self.backend.pause(queue, reason).await
    }

    /// See [`Backend::purge`].
    pub async fn purge(&self, queue: &Queue) -> Result<u64> {
        self.backend.purge(queue).await
    }

    /// See [`Backend::cancel`].
    pub async fn cancel(&self, ids: &[JobId]) -> Result<Vec<Cancel>> {
        self.backend.cancel(ids).await
    }

    /// See [`Backend::cancel_batch`].
    pub async fn cancel_batch(&self, batch: &BatchName) -> Result<CancelCounts> {
        self.backend.cancel_batch(batch).await
    }

    /// See [`Backend::redrive`].
    pub async fn redrive(&self, ids: &[JobId]) -> Result<Vec<Redriven>> {
        self.backend.redrive(ids).await
    }

    /// See [`Backend::drop_dead`].
    pub async fn drop_dead(&self, ids: &[JobId]) -> Result<u64> {
        self.backend.drop_dead(ids).await
    }

    /// See [`Backend::wake`].
    pub async fn wake(&self, key: &HoldKey) -> Result<u64> {
        self.backend.wake(key).await
    }

    /// See [`Backend::recover`].
    pub async fn recover(&self, worker: &WorkerId) -> Result<u64> {
        self.backend.recover(worker).await
    }

    /// See [`Backend::waiting`].
    pub async fn waiting(&self, queue: &Queue, after: Option<&str>, limit: usize) -> Result<Page<Envelope>> {
        self.backend.waiting(queue, after, limit).await
    }

    /// See [`Backend::forget`].
    pub async fn forget(&self, jobs: &[(JobId, u32)]) -> Result<u64> {
        self.backend.forget(jobs).await
    }

    /// See [`Backend::sweep`].
    pub async fn sweep(&self, retention: &Retention) -> Result<Swept> {
        self.backend.sweep(retention).await
    }

    /// See [`Backend::retire`].
    pub async fn retire(&self, queue: &Queue) -> Result<Vec<Remark>> {
        self.backend.retire(queue).await
    }

    /// See [`Backend::declare`].
    pub async fn declare(&self, queue: &Queue, models: &[ModelName], prune: bool) -> Result<Option<Declared>> {
        self.backend.declare(queue, models, prune).await
    }
}

/// What backends read of a job, and its bytes; `Err` is the limit in bytes that one too large to travel is above.
pub fn envelope(job: &Job) -> Result<Envelope, usize> {
    let payload = codec::encode_job(job).map_err(|_| codec::MAX_BYTES)?;
    Ok(Envelope { head: head(job), payload })
}

/// What backends read of a job.
pub(crate) fn head(job: &Job) -> Head {
    Head {
        id: job.id,
        lane: job.lane(),
        priority: job.priority,
        batch: job.batch.clone(),
        row: job.row,
        custom_id: job.custom_id.clone(),
        tenant: job.tenant.clone(),
        tags: job.tags.clone(),
        keyed: job.keyed,
        fingerprint: job.fingerprint(),
        not_before: job.not_before,
        deadline: job.deadline,
        created_at: job.created_at,
        epoch: 0,
        attempts: 0,
        history: crate::outcome::History::default(),
    }
}

/// When settling began to fail, shared by everything a broker leased.
#[derive(Clone, Debug)]
struct Trouble {
    /// What the moments below are counted from: a clock that nobody sets.
    started: Instant,
    /// Milliseconds, 1 at least; 0 while settling works.
    since: Arc<AtomicU64>,
}

impl Default for Trouble {
    fn default() -> Self {
        Self { started: Instant::now(), since: Arc::default() }
    }
}

impl Trouble {
    /// Notes how a settlement went; whether that is news.
    fn note(&self, failed: bool) -> bool {
        use std::sync::atomic::Ordering::Relaxed;
        if failed {
            self.since.compare_exchange(0, self.millis(), Relaxed, Relaxed).is_ok()
        } else {
            // Mostly nothing has failed, and whoever only looks leaves the line of memory to the others.
            self.since.load(Relaxed) != 0 && self.since.swap(0, Relaxed) != 0
        }
    }

    fn since(&self) -> Option<Duration> {
        match self.since.load(std::sync::atomic::Ordering::Relaxed) {
            0 => None,
            at => Some(Duration::from_millis(self.millis().saturating_sub(at))),
        }
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
    }
}
