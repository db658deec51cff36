//! The memory backend behind switches: what a broker in trouble looks like to a worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use async_trait::async_trait;
use promptq_common::broker::memory::Memory;
use promptq_common::broker::{
    Backend, Beat, Broker, Cancel, CancelCounts, Claim, Depth, Enqueued, Envelope, Hold, HoldKey, Leased, QueueView,
    Redriven, Retention, Settled, Source, Swept, Terms, Verdict, Want, WorkerId,
};
use promptq_common::error::{Error, Kind, Result};
use promptq_common::job::{BatchName, JobId, Queue};
use promptq_common::ledger::{Ledger, Page};

/// What fails now.
#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) next: AtomicBool,
    /// Not for a while but for a missing right.
    pub(super) denied: AtomicBool,
    pub(super) beat: AtomicBool,
    pub(super) settle: AtomicBool,
    pub(super) depth: AtomicBool,
    pub(super) beats: AtomicU32,
    pub(super) woken: AtomicU32,
}

impl Faults {
    pub(super) fn set(fault: &AtomicBool, fails: bool) {
        fault.store(fails, Ordering::SeqCst);
    }

    fn check(fault: &AtomicBool) -> Result<()> {
        if fault.load(Ordering::SeqCst) {
            return Err(Error::new(Kind::Unavailable, "reach the broker", "switched off"));
        }
        Ok(())
    }
}

#[derive(Debug)]
pub(super) struct Faulty {
    inner: Arc<Memory>,
    faults: Arc<Faults>,
}

impl Faulty {
    pub(super) fn broker() -> (Broker, Arc<Faults>) {
        let (inner, faults) = (Arc::new(Memory::new()), Arc::new(Faults::default()));
        let backend = Self { inner: Arc::clone(&inner), faults: Arc::clone(&faults) };
        (Broker::new(Arc::new(backend), inner as Arc<dyn Ledger>), faults)
    }
}

#[derive(Debug)]
struct FaultySource {
    inner: Box<dyn Source>,
    faults: Arc<Faults>,
}

#[derive(Debug)]
struct FaultyHold {
    inner: Box<dyn Hold>,
    faults: Arc<Faults>,
}

#[async_trait]
impl Source for FaultySource {
    async fn next(&mut self, want: &Want) -> Result<Leased> {
        Faults::check(&self.faults.next)?;
        if self.faults.denied.load(Ordering::SeqCst) {
            return Err(Error::new(Kind::Denied, "lease jobs", "switched off"));
        }
        let mut leased = self.inner.next(want).await?;
        for delivery in &mut leased.deliveries {
            let blank: Box<dyn Hold> = Box::new(Blank);
            let inner = std::mem::replace(&mut delivery.hold, blank);
            delivery.hold = Box::new(FaultyHold { inner, faults: Arc::clone(&self.faults) });
        }
        Ok(leased)
    }

    async fn close(self: Box<Self>) -> Result<()> {
        self.inner.close().await
    }
}

#[async_trait]
impl Hold for FaultyHold {
    async fn claim(&self) -> Result<Claim> {
        self.inner.claim().await
    }

    async fn beat(&self) -> Result<Beat> {
        Faults::check(&self.faults.beat)?;
        self.faults.beats.fetch_add(1, Ordering::SeqCst);
        self.inner.beat().await
    }

    async fn settle(&self, verdict: &Verdict) -> Result<Settled> {
        Faults::check(&self.faults.settle)?;
        self.inner.settle(verdict).await
    }
}

/// Stands in while a hold is being wrapped.
#[derive(Debug)]
struct Blank;

#[async_trait]
impl Hold for Blank {
    async fn claim(&self) -> Result<Claim> {
        Ok(Claim::Stale)
    }

    async fn beat(&self) -> Result<Beat> {
        Ok(Beat::Lost)
    }

    async fn settle(&self, _verdict: &Verdict) -> Result<Settled> {
        Ok(Settled::Stale)
    }
}

#[async_trait]
impl Backend for Faulty {
    fn name(&self) -> &'static str {
        "memory"
    }

    async fn enqueue(&self, batch: Vec<Envelope>) -> Result<Vec<Enqueued>> {
        self.inner.enqueue(batch).await
    }

    async fn subscribe(&self, terms: Terms) -> Result<Box<dyn Source>> {
        Faults::check(&self.faults.next)?;
        let inner = self.inner.subscribe(terms).await?;
        Ok(Box::new(FaultySource { inner, faults: Arc::clone(&self.faults) }))
    }

    async fn depth(&self, queue: &Queue) -> Result<Depth> {
        Faults::check(&self.faults.depth)?;
        self.inner.depth(queue).await
    }

    async fn queues(&self) -> Result<Vec<QueueView>> {
        self.inner.queues().await
    }

    async fn pause(&self, queue: &Queue, reason: Option<&str>) -> Result<()> {
        self.inner.pause(queue, reason).await
    }

    async fn purge(&self, queue: &Queue) -> Result<u64> {
        self.inner.purge(queue).await
    }

    async fn cancel(&self, ids: &[JobId]) -> Result<Vec<Cancel>> {
        self.inner.cancel(ids).await
    }

    async fn cancel_batch(&self, batch: &BatchName) -> Result<CancelCounts> {
        self.inner.cancel_batch(batch).await
    }

    async fn redrive(&self, ids: &[JobId]) -> Result<Vec<Redriven>> {
        self.inner.redrive(ids).await
    }

    async fn drop_dead(&self, ids: &[JobId]) -> Result<u64> {
        self.inner.drop_dead(ids).await
    }

    async fn wake(&self, key: &HoldKey) -> Result<u64> {
        self.faults.woken.fetch_add(1, Ordering::SeqCst);
        self.inner.wake(key).await
    }

    async fn recover(&self, worker: &WorkerId) -> Result<u64> {
        self.inner.recover(worker).await
    }

    async fn waiting(&self, queue: &Queue, after: Option<&str>, limit: usize) -> Result<Page<Envelope>> {
        self.inner.waiting(queue, after, limit).await
    }

    async fn forget(&self, jobs: &[(JobId, u32)]) -> Result<u64> {
        self.inner.forget(jobs).await
    }

    async fn sweep(&self, retention: &Retention) -> Result<Swept> {
        self.inner.sweep(retention).await
    }
}
