//! Leasing from the memory backend and settling what was leased.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::super::backend::{
    Beat, Claim, Hold, LEASE_BYTES, LeaseId, Leased, RawDelivery, Settled, Source, Terms, Verdict, Want,
};
use super::Shared;
use super::book::{Book, Entry, Place, Side, Why, cancelled_by_user, deadline_passed};
use super::fair::Turns;
use crate::error::Result;
use crate::job::{JobId, Lane, Queue};
use crate::record::{End, Record};
use crate::time::Timestamp;

/// The longest `next` waits before it answers with nothing.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// The most lanes one answer names.
const LANES_SEEN: usize = 1_000;

/// A subscription.
#[derive(Debug)]
pub(super) struct MemorySource {
    shared: Arc<Shared>,
    terms: Terms,
    turns: Turns,
}

impl MemorySource {
    pub(super) fn new(shared: Arc<Shared>, terms: Terms) -> Self {
        let turns = Turns::new(&terms.queues);
        Self { shared, terms, turns }
    }

    /// Leases what `want` allows, without waiting. Nothing here awaits, so a dropped `next` has leased nothing.
    fn lease(&mut self, want: &Want) -> Leased {
        let now = self.shared.now();
        let shared = Arc::clone(&self.shared);
        let mut book = shared.book();
        book.promote(now);
        book.reclaim(now);
        let mut room = Room::new(want);
        let (mut leased, mut bytes) = (Leased::default(), 0);
        while room.total > 0 {
            let open: Vec<Lane> = self.lanes(&book).filter(|lane| room.of(lane) > 0).cloned().collect();
            let Some(lane) = self.turns.pick(open) else { break };
            let Some(&(_, id)) = book.lanes.get(&lane).and_then(|lane| lane.first()) else { break };
            let payload = book.jobs.get(&id).and_then(|entry| entry.payload.as_ref());
            bytes += payload.map_or(0, Vec::len);
            if bytes > LEASE_BYTES && !leased.deliveries.is_empty() {
                break;
            }
            if let Some(delivery) = self.take(&mut book, id, now) {
                room.use_one(&lane);
                leased.deliveries.push(delivery);
            }
        }
        leased.lanes_seen = self.lanes(&book).take(LANES_SEEN).cloned().collect();
        leased
    }

    /// Lanes of this subscription that hold ready jobs and are not paused.
    fn lanes<'a>(&'a self, book: &'a Book) -> impl Iterator<Item = &'a Lane> {
        let subscribed = |queue: &Queue| self.terms.queues.iter().any(|(name, _)| name == queue);
        book.lanes.keys().filter(move |lane| subscribed(&lane.queue) && !book.paused.contains_key(&lane.queue))
    }

    /// Leases one ready job, or ends it where it may not run any more.
    fn take(&self, book: &mut Book, id: JobId, now: Timestamp) -> Option<RawDelivery> {
        let entry = book.jobs.get(&id)?;
        if book.is_cancelled(&entry.head) {
            book.end_unrun(id, End::Cancelled, cancelled_by_user(), now);
            return None;
        }
        if entry.head.deadline <= now {
            book.end_unrun(id, End::Expired, deadline_passed(), now);
            return None;
        }
        let (head, payload) = (entry.head.clone(), entry.payload.clone().unwrap_or_default());
        let lease = LeaseId::random();
        let (worker, until) = (self.terms.worker.clone(), now + self.terms.lease);
        book.put(id, Place::Running { lease, worker, since: now, until, cancel: false });
        let hold =
            MemoryHold { shared: Arc::clone(&self.shared), id, epoch: head.epoch, lease, length: self.terms.lease };
        Some(RawDelivery { head, payload, lease, hold: Box::new(hold) })
    }
}

#[async_trait]
impl Source for MemorySource {
    async fn next(&mut self, want: &Want) -> Result<Leased> {
        let end = self.shared.now() + LONGEST_WAIT;
        loop {
            let shared = Arc::clone(&self.shared);
            let changed = shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let leased = self.lease(want);
            let now = shared.now();
            if !leased.deliveries.is_empty() || now >= end {
                return Ok(leased);
            }
            let event = shared.book().next_event().map_or(end, |at| at.min(end));
            // A job due in a lane that is closed is no reason to spin.
            let pause = event.since(now).max(Duration::from_millis(1));
            let _woken = tokio::time::timeout(pause, changed).await;
        }
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// What is left of a [`Want`].
struct Room {
    total: u32,
    lanes: BTreeMap<Lane, u32>,
    rest: u32,
}

impl Room {
    fn new(want: &Want) -> Self {
        Self { total: want.total, lanes: want.caps.iter().cloned().collect(), rest: want.rest }
    }

    fn of(&self, lane: &Lane) -> u32 {
        self.lanes.get(lane).copied().unwrap_or(self.rest)
    }

    fn use_one(&mut self, lane: &Lane) {
        let left = self.of(lane) - 1;
        self.lanes.insert(lane.clone(), left);
        self.total -= 1;
    }
}

/// The right to run one job.
#[derive(Debug)]
struct MemoryHold {
    shared: Arc<Shared>,
    id: JobId,
    epoch: u32,
    lease: LeaseId,
    length: Duration,
}

#[async_trait]
impl Hold for MemoryHold {
    async fn claim(&self) -> Result<Claim> {
        let now = self.shared.now();
        let book = self.shared.book();
        let Some(entry) = book.jobs.get(&self.id) else { return Ok(Claim::Stale) };
        if entry.end() == Some(End::Succeeded) {
            return Ok(Claim::Ended(entry.state(now)));
        }
        if entry.head.epoch != self.epoch {
            return Ok(Claim::Stale);
        }
        Ok(match (standing(entry, self.lease), &entry.place) {
            (Some(true), _) => Claim::Cancelled,
            (Some(false), _) => match book.paused.get(&entry.head.lane.queue) {
                Some(reason) => Claim::Paused { reason: reason.clone() },
                None => Claim::Fresh { deaths: entry.deaths },
            },
            (None, Place::Ended) => Claim::Ended(entry.state(now)),
            (None, Place::Running { until, .. }) => Claim::Taken { until: *until },
            (None, Place::Ready { .. } | Place::Delayed { .. } | Place::Away { .. }) => Claim::Stale,
        })
    }

    async fn beat(&self) -> Result<Beat> {
        let until = self.shared.now() + self.length;
        Ok(beat(&mut self.shared.book(), self.id, self.lease, until))
    }

    async fn settle(&self, verdict: &Verdict) -> Result<Settled> {
        let now = self.shared.now();
        let settled = settle(&mut self.shared.book(), (self.id, self.lease), verdict, now);
        // An end makes nothing ready, and nothing due.
        if !matches!(verdict, Verdict::End(_)) {
            self.shared.changed.notify_waiters();
        }
        Ok(settled)
    }
}

/// Whether the job is running under this lease, and whether a user wants it stopped.
pub(super) fn standing(entry: &Entry, lease: LeaseId) -> Option<bool> {
    match entry.place {
        Place::Running { lease: current, cancel, .. } if current == lease => Some(cancel),
        Place::Running { .. } | Place::Ready { .. } | Place::Delayed { .. } | Place::Away { .. } | Place::Ended => None,
    }
}

/// Extends a lease.
pub(super) fn beat(book: &mut Book, id: JobId, lease: LeaseId, until: Timestamp) -> Beat {
    let Some(entry) = book.jobs.get(&id) else { return Beat::Lost };
    let Some(stop) = standing(entry, lease) else {
        return if entry.record.is_some() { Beat::Ended } else { Beat::Lost };
    };
    let mut place = entry.place.clone();
    if let Place::Running { until: out, .. } = &mut place {
        *out = until;
    }
    book.put(id, place);
    if stop { Beat::Cancelled } else { Beat::Kept }
}

/// Ends a lease; what a stale one may still do is keep its success.
pub(super) fn settle(book: &mut Book, (id, lease): (JobId, LeaseId), verdict: &Verdict, now: Timestamp) -> Settled {
    let Some(entry) = book.jobs.get_mut(&id) else { return Settled::Stale };
    let Some(cancel) = standing(entry, lease) else { return settle_late(book, (id, lease), verdict) };
    entry.settled = Some(lease);
    match verdict {
        Verdict::End(record) => book.end(id, Record::clone(record)),
        Verdict::Retry { after, attempt } => {
            entry.head.attempts += 1;
            entry.head.history.push((**attempt).clone());
            if cancel {
                book.end_unrun(id, End::Cancelled, cancelled_by_user(), now);
            } else {
                book.put(id, Place::Delayed { due: now + *after, why: Why::Retrying, hold: None });
            }
        }
        Verdict::Release { .. } if cancel => book.end_unrun(id, End::Cancelled, cancelled_by_user(), now),
        Verdict::Release { after, .. } if after.is_zero() => book.make_ready(id, Side::Front, now),
        Verdict::Release { after, hold: key } => {
            book.put(id, Place::Delayed { due: now + *after, why: Why::Released, hold: key.clone() });
        }
    }
    Settled::Applied
}

/// The verdict of a lease that is no longer the job's.
fn settle_late(book: &mut Book, (id, lease): (JobId, LeaseId), verdict: &Verdict) -> Settled {
    let Some(entry) = book.jobs.get(&id) else { return Settled::Stale };
    let success = matches!(verdict, Verdict::End(record) if record.end == End::Succeeded);
    let (applied, has_success) = (entry.settled == Some(lease), entry.end() == Some(End::Succeeded));
    let own = entry.record.as_ref().is_some_and(|(_, record)| record.lease == lease);
    match verdict {
        Verdict::End(record) if success && !has_success => {
            book.end(id, Record::clone(record));
            Settled::Kept
        }
        _ if applied && (!success || own) => Settled::Applied,
        _ if success && own => Settled::Kept,
        Verdict::End(_) | Verdict::Retry { .. } | Verdict::Release { .. } => Settled::Stale,
    }
}
