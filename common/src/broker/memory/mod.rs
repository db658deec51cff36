//! The reference backend: everything in this process's memory, one lock over plain maps, gone with the process.
//! The other backends are held against it by the conformance suite. Time is tokio's, so that tests may pause it.

mod book;
mod claims;
mod fair;
mod lease;
mod ledger;
mod sweep;
mod totals;
mod view;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::backend::{
    Backend, Cancel, CancelCounts, Depth, Enqueued, Envelope, HoldKey, MAX_BATCH, QueueView, Redriven, Refusal,
    Retention, Source, Swept, Terms, WorkerId,
};
use crate::codec;
use crate::error::{Error, Kind, Result};
use crate::job::{BatchName, JobId, Queue};
use crate::ledger::{LedgerId, Page};
use crate::record::End;
use crate::time::Timestamp;
use book::{Book, Place, Side, cancelled_by_user, purged};

/// The reference backend and its ledger.
#[derive(Debug)]
pub struct Memory {
    shared: Arc<Shared>,
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Memory {
    /// An empty one, whose clock is this host's as of now and tokio's from then on.
    pub fn new() -> Self {
        let shared = Shared {
            identity: LedgerId::random(),
            book: Mutex::default(),
            changed: Notify::new(),
            base: Timestamp::now(),
            started: Instant::now(),
        };
        Self { shared: Arc::new(shared) }
    }
}

/// What every handle, subscription and lease looks at.
#[derive(Debug)]
struct Shared {
    identity: LedgerId,
    /// Never held across an await.
    book: Mutex<Book>,
    /// Told whenever a job may have become ready.
    changed: Notify,
    base: Timestamp,
    started: Instant,
}

impl Shared {
    fn now(&self) -> Timestamp {
        self.base + self.started.elapsed()
    }

    /// A panic in another test's thread is no reason to fail here: every change is whole before anything can panic.
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Backend for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    async fn enqueue(&self, batch: Vec<Envelope>) -> Result<Vec<Enqueued>> {
        check_size("enqueue jobs", batch.len())?;
        let now = self.shared.now();
        let mut book = self.shared.book();
        book.promote(now);
        let answers = batch.into_iter().map(|envelope| enqueue_one(&mut book, envelope, now)).collect();
        self.shared.changed.notify_waiters();
        Ok(answers)
    }

    async fn subscribe(&self, terms: Terms) -> Result<Box<dyn Source>> {
        let mut seen = BTreeSet::new();
        if let Some((queue, _)) = terms.queues.iter().find(|(queue, _)| !seen.insert(queue.clone())) {
            return Err(Error::new(Kind::Config, "subscribe", format!("queue {queue} is named twice")));
        }
        Ok(Box::new(lease::MemorySource::new(Arc::clone(&self.shared), terms)))
    }

    async fn depth(&self, queue: &Queue) -> Result<Depth> {
        let now = self.shared.now();
        let mut book = self.shared.book();
        book.promote(now);
        Ok(book.depth(queue))
    }

    async fn queues(&self) -> Result<Vec<QueueView>> {
        let now = self.shared.now();
        let mut book = self.shared.book();
        book.promote(now);
        Ok(book.queues())
    }

    async fn pause(&self, queue: &Queue, reason: Option<&str>) -> Result<()> {
        let mut book = self.shared.book();
        match reason {
            Some(reason) => book.paused.insert(queue.clone(), reason.to_owned()),
            None => book.paused.remove(queue),
        };
        self.shared.changed.notify_waiters();
        Ok(())
    }

    async fn purge(&self, queue: &Queue) -> Result<u64> {
        let now = self.shared.now();
        let mut book = self.shared.book();
        let waiting = book.ids_where(|entry| entry.head.lane.queue == *queue && entry.is_waiting());
        for id in &waiting {
            book.end_unrun(*id, End::Cancelled, purged(), now);
        }
        Ok(waiting.len() as u64)
    }

    async fn cancel(&self, ids: &[JobId]) -> Result<Vec<Cancel>> {
        check_size("cancel jobs", ids.len())?;
        let now = self.shared.now();
        let mut book = self.shared.book();
        Ok(ids.iter().map(|id| cancel_one(&mut book, *id, now)).collect())
    }

    async fn cancel_batch(&self, batch: &BatchName) -> Result<CancelCounts> {
        let now = self.shared.now();
        let mut book = self.shared.book();
        if let Some(batch) = book.batches.get_mut(batch) {
            batch.cancelled = true;
        }
        let mut counts = CancelCounts::default();
        for id in book.ids_where(|entry| entry.head.batch.as_ref() == Some(batch)) {
            match cancel_one(&mut book, id, now) {
                Cancel::Ended => counts.ended += 1,
                Cancel::Flagged => counts.flagged += 1,
                Cancel::Already(_) | Cancel::Unknown => {}
            }
        }
        Ok(counts)
    }

    async fn redrive(&self, ids: &[JobId]) -> Result<Vec<Redriven>> {
        check_size("redrive jobs", ids.len())?;
        let now = self.shared.now();
        let mut book = self.shared.book();
        let answers = ids.iter().map(|id| book.redrive(*id, now)).collect();
        self.shared.changed.notify_waiters();
        Ok(answers)
    }

    async fn drop_dead(&self, ids: &[JobId]) -> Result<u64> {
        check_size("drop dead jobs", ids.len())?;
        let mut book = self.shared.book();
        let mut dropped = 0;
        for id in ids {
            if let Some(entry) = book.jobs.get_mut(id).filter(|entry| entry.is_dead()) {
                entry.payload = None;
                dropped += 1;
            }
        }
        Ok(dropped)
    }

    async fn wake(&self, key: &HoldKey) -> Result<u64> {
        let now = self.shared.now();
        let mut book = self.shared.book();
        book.promote(now);
        let held =
            book.ids_where(|entry| matches!(&entry.place, Place::Delayed { hold, .. } if hold.as_ref() == Some(key)));
        for id in held.iter().rev() {
            book.make_ready(*id, Side::Front, now);
        }
        self.shared.changed.notify_waiters();
        Ok(held.len() as u64)
    }

    async fn recover(&self, worker: &WorkerId) -> Result<u64> {
        let now = self.shared.now();
        let mut book = self.shared.book();
        let running = book.ids_where(|entry| matches!(&entry.place, Place::Running { worker: by, .. } if by == worker));
        for id in running.iter().rev() {
            book.bereave(*id, now);
        }
        self.shared.changed.notify_waiters();
        Ok(running.len() as u64)
    }

    async fn waiting(&self, queue: &Queue, after: Option<&str>, limit: usize) -> Result<Page<Envelope>> {
        let after = match after {
            None => 0,
            Some(place) => {
                place.parse().map_err(|_| Error::new(Kind::Config, "list waiting jobs", "no place of ours"))?
            }
        };
        let now = self.shared.now();
        Ok(self.shared.book().waiting(queue, after, limit.clamp(1, MAX_BATCH), now))
    }

    async fn forget(&self, jobs: &[(JobId, u32)]) -> Result<u64> {
        check_size("forget jobs", jobs.len())?;
        let mut book = self.shared.book();
        Ok(jobs.iter().map(|(id, epoch)| u64::from(book.forget(*id, *epoch))).sum())
    }

    async fn sweep(&self, retention: &Retention) -> Result<Swept> {
        let now = self.shared.now();
        Ok(self.shared.book().sweep(retention, now))
    }
}

fn enqueue_one(book: &mut Book, envelope: Envelope, now: Timestamp) -> Enqueued {
    let Envelope { head, payload } = envelope;
    if let Some((fingerprint, state)) = book.seen(head.id, now) {
        let same = fingerprint == head.fingerprint;
        return if same { Enqueued::Known(state) } else { Enqueued::Refused(Refusal::Conflict) };
    }
    if payload.len() > codec::MAX_BYTES {
        return Enqueued::Refused(Refusal::TooLarge(payload.len()));
    }
    let batch = head.batch.as_ref().and_then(|name| book.batches.get(name));
    if let Some(other) = batch.filter(|batch| batch.queue != head.lane.queue) {
        return Enqueued::Refused(Refusal::OtherQueue(other.queue.clone()));
    }
    book.admit(head, Some(payload), None, now);
    Enqueued::New
}

fn cancel_one(book: &mut Book, id: JobId, now: Timestamp) -> Cancel {
    let Some(entry) = book.jobs.get_mut(&id) else {
        return book.tombstones.get(&id).map_or(Cancel::Unknown, |stone| Cancel::Already(stone.end.into()));
    };
    match &mut entry.place {
        Place::Running { cancel, .. } => {
            *cancel = true;
            Cancel::Flagged
        }
        Place::Ready { .. } | Place::Delayed { .. } | Place::Away { .. } => {
            book.end_unrun(id, End::Cancelled, cancelled_by_user(), now);
            Cancel::Ended
        }
        Place::Ended => Cancel::Already(entry.state(now)),
    }
}

fn check_size(op: &'static str, count: usize) -> Result<()> {
    if count > MAX_BATCH {
        return Err(Error::new(Kind::TooLarge, op, format!("{count} at once; the limit is {MAX_BATCH}")));
    }
    Ok(())
}
