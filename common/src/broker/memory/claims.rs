//! The memory backend as the ledger of another broker: the plainest statement of what a claim is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_trait::async_trait;

use super::super::backend::{
    Backend, Beat, Cancel, CancelCounts, Claim, Envelope, Head, LeaseId, QueueView, Redriven, Retention, Settled,
    Swept, Verdict, WorkerId,
};
use super::book::{Book, Entry, Place, Side, Why, cancelled_by_user, deadline_passed, purged};
use super::lease::{beat, settle, standing};
use super::{Memory, cancel_one, check_size};
use crate::error::Result;
use crate::job::{BatchName, JobId, Queue};
use crate::ledger::{Announced, Asked, Claims, LedgerId, Opened, Raised, Registered};
use crate::record::End;
use crate::time::Timestamp;

/// What is known of a job besides, because its message waits at another broker.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own; any of them may hold with any other")]
pub(super) struct Away {
    /// When it began to wait, as this ledger knows: a purge after that ends it.
    pub(super) since: Timestamp,
    /// Registered, and nobody has said yet that its message is durable.
    unconfirmed: bool,
    /// Raised, and nobody has said yet that the message of this epoch is durable.
    raised: bool,
    /// Put back in line after its batch was cancelled, in the same epoch.
    spared: bool,
    /// Its end has been announced.
    pub(super) announced: bool,
    /// When its message comes and why not before, as was known when it ended.
    pub(super) later: Option<(Timestamp, Why)>,
}

/// What messages meet of which no job is known yet.
#[derive(Debug, Default)]
pub(super) struct Notices {
    /// Cancelled before they were seen, and until when that is remembered.
    stops: BTreeMap<(Queue, JobId), Timestamp>,
    purged: BTreeMap<Queue, Timestamp>,
    /// Queues that messages are expected in.
    pub(super) used: BTreeSet<Queue>,
}

#[async_trait]
impl Claims for Memory {
    async fn identity(&self) -> Result<LedgerId> {
        Ok(self.shared.identity)
    }

    async fn register(&self, jobs: &[&Head]) -> Result<Vec<Registered>> {
        check_size("register jobs", jobs.len())?;
        let now = self.shared.now();
        let mut book = self.shared.book();
        Ok(jobs.iter().map(|head| book.register(head, now)).collect())
    }

    async fn confirm(&self, jobs: &[&Head]) -> Result<()> {
        self.mark(jobs, |away| away.unconfirmed = false);
        Ok(())
    }

    async fn open(&self, job: &Head, asked: &Asked<'_>) -> Result<Opened> {
        let now = self.shared.now();
        Ok(self.shared.book().open(job, asked, now))
    }

    async fn beat(&self, job: &Head, lease: LeaseId, length: Duration) -> Result<Beat> {
        let until = self.shared.now() + length;
        Ok(beat(&mut self.shared.book(), job.id, lease, until))
    }

    async fn settle(&self, job: &Head, lease: LeaseId, verdict: &Verdict, payload: Option<&[u8]>) -> Result<Settled> {
        let now = self.shared.now();
        let mut book = self.shared.book();
        let current = book.jobs.get(&job.id).is_some_and(|entry| standing(entry, lease).is_some());
        let settled = settle(&mut book, (job.id, lease), verdict, now);
        if let Some(entry) = book.jobs.get_mut(&job.id).filter(|_| current) {
            entry.wait_from(now);
            let failed = matches!(verdict, Verdict::End(record) if record.end != End::Succeeded);
            if failed && entry.payload.is_none() {
                entry.payload = payload.map(<[u8]>::to_vec);
            }
        }
        Ok(settled)
    }

    async fn announced(&self, ends: &[Announced]) -> Result<()> {
        let mut book = self.shared.book();
        for told in ends {
            let Some(entry) = book.jobs.get_mut(&told.id) else { continue };
            let current = entry.record.as_ref().is_some_and(|(_, now)| (now.end, now.epoch) == (told.end, told.epoch));
            if let Some(away) = entry.away.as_mut().filter(|_| current) {
                away.announced = true;
            }
        }
        Ok(())
    }

    async fn keep(&self, job: &Head, payload: &[u8]) -> Result<bool> {
        let mut book = self.shared.book();
        let Some(entry) = book.jobs.get_mut(&job.id) else { return Ok(true) };
        if entry.lacks_payload() {
            entry.payload = Some(payload.to_vec());
        }
        Ok(entry.record.is_some() || entry.head.epoch > job.epoch)
    }

    async fn raise(&self, ids: &[JobId]) -> Result<Vec<Raised>> {
        check_size("raise jobs", ids.len())?;
        let now = self.shared.now();
        let mut book = self.shared.book();
        Ok(ids.iter().map(|id| book.raise(*id, now)).collect())
    }

    async fn published(&self, jobs: &[&Head]) -> Result<()> {
        self.mark(jobs, |away| away.raised = false);
        Ok(())
    }

    async fn cancel(&self, ids: &[JobId], queues: &[Queue]) -> Result<Vec<Cancel>> {
        check_size("cancel jobs", ids.len())?;
        let now = self.shared.now();
        let mut book = self.shared.book();
        Ok(ids.iter().map(|id| book.cancel_here_or_there(*id, queues, now)).collect())
    }

    async fn cancel_batch(&self, batch: &BatchName) -> Result<CancelCounts> {
        Backend::cancel_batch(self, batch).await
    }

    async fn pause(&self, queue: &Queue, reason: Option<&str>) -> Result<()> {
        Backend::pause(self, queue, reason).await
    }

    async fn purge(&self, queue: &Queue) -> Result<u64> {
        let now = self.shared.now();
        self.shared.book().notices.purged.insert(queue.clone(), now);
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
        let now = self.shared.now();
        let mut book = self.shared.book();
        book.reclaim(now);
        book.notices.stops.retain(|_, until| *until > now);
        Ok(book.sweep(retention, now))
    }

    async fn now(&self) -> Result<Timestamp> {
        Ok(self.shared.now())
    }

    async fn touch(&self, queue: &Queue) -> Result<()> {
        self.shared.book().notices.used.insert(queue.clone());
        Ok(())
    }

    async fn standing(&self, queue: &Queue) -> Result<QueueView> {
        Ok(self.shared.book().queue(queue))
    }

    async fn standings(&self) -> Result<Vec<QueueView>> {
        Ok(self.shared.book().queues())
    }
}

impl Memory {
    /// Changes what is noted of jobs that are still in the epoch of these heads.
    fn mark(&self, jobs: &[&Head], change: impl Fn(&mut Away)) {
        let mut book = self.shared.book();
        for head in jobs {
            let entry = book.jobs.get_mut(&head.id).filter(|entry| entry.head.epoch == head.epoch);
            if let Some(away) = entry.and_then(|entry| entry.away.as_mut()) {
                change(away);
            }
        }
    }
}

impl Entry {
    /// Keeps when its message comes, for the case that its end is taken back.
    pub(super) fn note_later(&mut self) {
        let later = self.later();
        if let Some(away) = &mut self.away {
            away.later = later;
        }
    }

    /// When its message comes, as far as is known, and why not before.
    fn later(&self) -> Option<(Timestamp, Why)> {
        if let Place::Away { wait: Some((due, why, _)) } = &self.place {
            return Some((*due, *why));
        }
        self.away.as_ref()?.later
    }

    /// Ended while its message waited: that message still has the payload.
    fn lacks_payload(&self) -> bool {
        let unrun = self.record.as_ref().is_some_and(|(_, record)| record.lease == LeaseId::NONE);
        unrun && self.payload.is_none()
    }
}

impl Book {
    fn register(&mut self, head: &Head, now: Timestamp) -> Registered {
        if let Some((fingerprint, state)) = self.seen(head.id, now) {
            let entry = self.jobs.get(&head.id);
            let unconfirmed = entry.and_then(|entry| entry.away.as_ref()).is_some_and(|away| away.unconfirmed);
            if fingerprint != head.fingerprint {
                return Registered::Conflict;
            }
            return if unconfirmed && !state.is_ended() { Registered::Again } else { Registered::Known(state) };
        }
        let batch = head.batch.as_ref().and_then(|name| self.batches.get(name));
        if let Some(other) = batch.filter(|batch| batch.queue != head.lane.queue) {
            return Registered::OtherQueue(other.queue.clone());
        }
        let away = Away { since: now, unconfirmed: true, ..Away::default() };
        self.admit(head.clone(), None, Some(away), now);
        Registered::New
    }

    fn open(&mut self, head: &Head, asked: &Asked<'_>, now: Timestamp) -> Opened {
        if let Some(stone) = self.tombstones.get(&head.id) {
            return Opened { claim: Claim::Ended(stone.end.into()), announce: false, keep: false };
        }
        if !self.jobs.contains_key(&head.id) {
            self.meet(head, now);
        }
        let claim = self.find(head, asked, now).unwrap_or_else(|| self.grant(head, asked, now));
        let entry = &self.jobs[&head.id];
        let announced = entry.away.as_ref().is_none_or(|away| away.announced);
        Opened {
            announce: entry.record.is_some() && !announced,
            keep: matches!(claim, Claim::Ended(_)) && entry.lacks_payload(),
            claim,
        }
    }

    /// Enters a job whose message is the first that is heard of it.
    fn meet(&mut self, head: &Head, now: Timestamp) {
        self.admit(head.clone(), None, Some(Away { since: head.created_at, ..Away::default() }), now);
        if self.notices.stops.remove(&(head.lane.queue.clone(), head.id)).is_some_and(|until| until > now) {
            self.end_unrun(head.id, End::Cancelled, cancelled_by_user(), now);
        }
    }

    /// Why this message may not have a new claim, if it is for what became of its job.
    fn find(&mut self, head: &Head, asked: &Asked<'_>, now: Timestamp) -> Option<Claim> {
        let entry = self.jobs.get(&head.id)?;
        let ended = matches!(entry.place, Place::Ended);
        if entry.end() == Some(End::Succeeded) || (ended && entry.head.epoch == head.epoch) {
            return Some(Claim::Ended(entry.state(now)));
        }
        if (entry.head.epoch, entry.head.attempts) > (head.epoch, head.attempts) {
            return Some(Claim::Stale);
        }
        if let Some(stop) = standing(entry, asked.lease) {
            let deaths = entry.deaths;
            beat(self, head.id, asked.lease, now + asked.length);
            return Some(if stop { Claim::Cancelled } else { Claim::Fresh { deaths } });
        }
        let Place::Running { until, .. } = entry.place else { return None };
        if until > now {
            return Some(Claim::Taken { until });
        }
        self.bereave(head.id, now);
        let entry = self.jobs.get(&head.id)?;
        entry.record.is_some().then(|| Claim::Ended(entry.state(now)))
    }

    /// Ends a job that may not run any more, or gives the claim unless the queue is paused.
    fn grant(&mut self, head: &Head, asked: &Asked<'_>, now: Timestamp) -> Claim {
        let id = head.id;
        self.adopt(head, now);
        let entry = &self.jobs[&id];
        let away = entry.away.clone().unwrap_or_default();
        let purge = self.notices.purged.get(&head.lane.queue);
        let cause = if self.is_cancelled(&entry.head) && !away.spared {
            Some((End::Cancelled, cancelled_by_user()))
        } else if purge.is_some_and(|purge| away.since < *purge) {
            Some((End::Cancelled, purged()))
        } else if entry.head.deadline <= now {
            Some((End::Expired, deadline_passed()))
        } else {
            None
        };
        if let Some((end, cause)) = cause {
            self.end_unrun(id, end, cause, now);
            return Claim::Ended(end.into());
        }
        if let Some(reason) = self.paused.get(&head.lane.queue) {
            return Claim::Paused { reason: reason.clone() };
        }
        let (lease, worker, until, deaths) = (asked.lease, asked.worker.clone(), now + asked.length, entry.deaths);
        self.put(id, Place::Running { lease, worker, since: now, until, cancel: false });
        if let Some(away) = self.jobs.get_mut(&id).and_then(|entry| entry.away.as_mut()) {
            (away.unconfirmed, away.raised) = (false, false);
        }
        Claim::Fresh { deaths }
    }

    /// A message may be ahead of the ledger: a retry's copy is published before its claim ends.
    fn adopt(&mut self, head: &Head, now: Timestamp) {
        let Some(entry) = self.jobs.get_mut(&head.id) else { return };
        if entry.head.epoch < head.epoch {
            entry.head.deadline = head.deadline;
            entry.wait_from(now);
            self.begin_epoch(head.id, head.epoch);
            self.make_ready(head.id, Side::Back, now);
        }
        if let Some(entry) = self.jobs.get_mut(&head.id).filter(|entry| entry.head.attempts < head.attempts) {
            (entry.head.attempts, entry.head.history) = (head.attempts, head.history.clone());
        }
    }

    fn raise(&mut self, id: JobId, now: Timestamp) -> Raised {
        let Some(entry) = self.jobs.get_mut(&id) else {
            return if self.tombstones.contains_key(&id) { Raised::Gone } else { Raised::Unknown };
        };
        let overdue = entry.is_waiting() && entry.head.deadline <= now;
        if entry.lacks_payload() || (overdue && entry.payload.is_none()) {
            return self.restore(id, now);
        }
        match self.redrive(id, now) {
            Redriven::Queued { .. } => {
                if let Some(entry) = self.jobs.get_mut(&id) {
                    let away = entry.away.get_or_insert_default();
                    (away.raised, away.since) = (true, now);
                }
                // A job of our own waits there from now on.
                self.make_ready(id, Side::Back, now);
            }
            Redriven::Waiting if self.jobs[&id].away.as_ref().is_some_and(|away| away.raised) => {}
            Redriven::Waiting => return Raised::Waiting,
            Redriven::Succeeded => return Raised::Succeeded,
            Redriven::Gone => return Raised::Gone,
            Redriven::Unknown => return Raised::Unknown,
        }
        let entry = &self.jobs[&id];
        let head = Head { not_before: None, ..entry.head.clone() };
        Raised::Publish(Box::new(Envelope { head, payload: entry.payload.clone().unwrap_or_default() }))
    }

    /// Takes back an end that its message has not met.
    fn restore(&mut self, id: JobId, now: Timestamp) -> Raised {
        let Some(entry) = self.jobs.get_mut(&id) else { return Raised::Unknown };
        entry.renew_allowance(now);
        if let Some(away) = &mut entry.away {
            (away.spared, away.since) = (true, now);
        }
        let later = entry.later().filter(|(due, _)| *due > now);
        let (epoch, old) = (entry.head.epoch, entry.record.take());
        if let Some((cursor, _)) = old {
            self.log.remove(&cursor);
        }
        match later {
            // It comes when it would have come.
            Some((due, why)) => self.put(id, Place::Delayed { due, why, hold: None }),
            None => self.make_ready(id, Side::Back, now),
        }
        Raised::Restored { epoch }
    }

    fn cancel_here_or_there(&mut self, id: JobId, queues: &[Queue], now: Timestamp) -> Cancel {
        let told = cancel_one(self, id, now);
        if told != Cancel::Unknown || queues.is_empty() {
            return told;
        }
        let until = now + Retention::standard().tombstones;
        self.notices.stops.extend(queues.iter().map(|queue| ((queue.clone(), id), until)));
        Cancel::Flagged
    }
}
