//! Everything the memory backend knows, and the only functions that move a job from one place to another.
//! Nothing here waits or reads a clock: callers pass the time and hold the lock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::super::backend::{Head, HoldKey, LeaseId, Redriven, WorkerId};
use super::claims::{Away, Notices};
use super::totals::{Batch, Totals};
use crate::job::{BatchName, Fingerprint, JobId, Lane, Queue};
use crate::outcome::History;
use crate::record::{Cause, End, Record, State};
use crate::time::Timestamp;

/// The whole of it.
#[derive(Debug, Default)]
pub(super) struct Book {
    pub(super) jobs: BTreeMap<JobId, Entry>,
    /// Jobs in the order they came, for lists.
    pub(super) order: BTreeMap<u64, JobId>,
    /// Ready jobs by lane; smaller ranks go first.
    pub(super) lanes: BTreeMap<Lane, BTreeSet<(i64, JobId)>>,
    /// Waiting for a time.
    delayed: BTreeSet<(Timestamp, JobId)>,
    /// Running, by when the lease runs out.
    leases: BTreeSet<(Timestamp, JobId)>,
    /// Records in the order they became durable.
    pub(super) log: BTreeMap<u64, JobId>,
    /// Ids that were used, whose records are gone.
    pub(super) tombstones: BTreeMap<JobId, Tombstone>,
    pub(super) paused: BTreeMap<Queue, String>,
    pub(super) notices: Notices,
    pub(super) batches: BTreeMap<BatchName, Batch>,
    pub(super) aside: super::ledger::Aside,
    last_seq: u64,
    last_cursor: u64,
    front: i64,
    back: i64,
}

/// One job.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) head: Head,
    pub(super) seq: u64,
    /// Gone once it has succeeded or was dropped.
    pub(super) payload: Option<Vec<u8>>,
    pub(super) deaths: u32,
    pub(super) place: Place,
    /// The success, else the end of the current epoch, and its place in the log.
    pub(super) record: Option<(u64, Arc<Record>)>,
    /// The last lease whose verdict was applied; makes repeating it harmless.
    pub(super) settled: Option<LeaseId>,
    /// Of a job whose message waits at another broker.
    pub(super) away: Option<Away>,
}

/// Where a job is. Each is in exactly one place.
#[derive(Clone, Debug)]
pub(super) enum Place {
    Ready {
        rank: i64,
        since: Timestamp,
    },
    Delayed {
        due: Timestamp,
        why: Why,
        hold: Option<HoldKey>,
    },
    Running {
        lease: LeaseId,
        worker: WorkerId,
        since: Timestamp,
        until: Timestamp,
        cancel: bool,
    },
    /// Waits at another broker, where it may be delayed like this.
    Away {
        wait: Option<(Timestamp, Why, Option<HoldKey>)>,
    },
    Ended,
}

impl Place {
    /// The same for a job whose message waits at another broker.
    fn elsewhere(self) -> Self {
        match self {
            Self::Ready { .. } => Self::Away { wait: None },
            Self::Delayed { due, why, hold } => Self::Away { wait: Some((due, why, hold)) },
            Self::Running { .. } | Self::Away { .. } | Self::Ended => self,
        }
    }
}

/// Why a job waits for a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    Scheduled,
    Retrying,
    Released,
}

/// What is left of a forgotten job.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tombstone {
    pub(super) fingerprint: Fingerprint,
    pub(super) end: End,
    pub(super) ended_at: Timestamp,
}

/// Which end of its lane a job goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Front,
    Back,
}

impl Entry {
    /// The job's state as people see it at `now`.
    pub(super) fn state(&self, now: Timestamp) -> State {
        match &self.place {
            Place::Running { .. } => State::Running,
            Place::Ended => self.record.as_ref().map_or(State::Dead, |(_, record)| record.end.into()),
            _ if self.head.deadline <= now => State::Expired,
            Place::Away { wait: Some((due, ..)) } if *due <= now => State::Queued,
            Place::Delayed { why: Why::Scheduled, .. } | Place::Away { wait: Some((_, Why::Scheduled, _)) } => {
                State::Scheduled
            }
            Place::Delayed { why: Why::Retrying, .. } | Place::Away { wait: Some((_, Why::Retrying, _)) } => {
                State::Retrying
            }
            Place::Delayed { .. } | Place::Away { .. } | Place::Ready { .. } => State::Queued,
        }
    }

    pub(super) fn is_waiting(&self) -> bool {
        matches!(self.place, Place::Ready { .. } | Place::Delayed { .. } | Place::Away { .. })
    }

    /// In the dead set: dead and still redrivable.
    pub(super) fn is_dead(&self) -> bool {
        self.payload.is_some() && self.end() == Some(End::Dead)
    }

    pub(super) fn end(&self) -> Option<End> {
        self.record.as_ref().map(|(_, record)| record.end)
    }

    /// Notes when a job begins to wait at another broker.
    pub(super) fn wait_from(&mut self, now: Timestamp) {
        if let Some(away) = &mut self.away {
            away.since = now;
        }
    }

    /// Its allowance begins again, or one that expired would expire at once.
    pub(super) fn renew_allowance(&mut self, now: Timestamp) {
        let allowance = self.head.deadline.since(self.head.created_at);
        self.head.deadline = self.head.deadline.max(now + allowance);
    }
}

impl Book {
    /// Moves a job; the only place that touches the indexes.
    pub(super) fn put(&mut self, id: JobId, place: Place) {
        let Some(entry) = self.jobs.get_mut(&id) else { return };
        let place = if entry.away.is_some() { place.elsewhere() } else { place };
        let old = std::mem::replace(&mut entry.place, place);
        match old {
            Place::Ready { rank, .. } => {
                if let Some(lane) = self.lanes.get_mut(&entry.head.lane) {
                    lane.remove(&(rank, id));
                    if lane.is_empty() {
                        self.lanes.remove(&entry.head.lane);
                    }
                }
            }
            Place::Delayed { due, .. } => {
                self.delayed.remove(&(due, id));
            }
            Place::Running { until, .. } => {
                self.leases.remove(&(until, id));
            }
            Place::Away { .. } | Place::Ended => {}
        }
        match &entry.place {
            Place::Ready { rank, .. } => {
                self.lanes.entry(entry.head.lane.clone()).or_default().insert((*rank, id));
            }
            Place::Delayed { due, .. } => {
                self.delayed.insert((*due, id));
            }
            Place::Running { until, .. } => {
                self.leases.insert((*until, id));
            }
            Place::Away { .. } | Place::Ended => {}
        }
    }

    /// A job seen for the first time, waiting at the back of its lane or for its time.
    pub(super) fn admit(&mut self, head: Head, payload: Option<Vec<u8>>, away: Option<Away>, now: Timestamp) {
        self.last_seq += 1;
        let (id, seq, not_before) = (head.id, self.last_seq, head.not_before);
        if let Some(name) = head.batch.clone() {
            self.ensure_batch(&name, &head.lane.queue, now);
        }
        self.order.insert(seq, id);
        let why = if head.attempts > 0 { Why::Retrying } else { Why::Scheduled };
        let entry = Entry { head, seq, payload, deaths: 0, place: Place::Ended, record: None, settled: None, away };
        self.jobs.insert(id, entry);
        match not_before {
            Some(due) if due > now => self.put(id, Place::Delayed { due, why, hold: None }),
            _ => self.make_ready(id, Side::Back, now),
        }
    }

    pub(super) fn ensure_batch(&mut self, name: &BatchName, queue: &Queue, now: Timestamp) -> &mut Batch {
        let seq = self.batches.len() as u64;
        self.batches.entry(name.clone()).or_insert_with(|| Batch {
            queue: queue.clone(),
            created_at: now,
            seq,
            sealed: false,
            cancelled: false,
            past: Totals::default(),
        })
    }

    pub(super) fn make_ready(&mut self, id: JobId, side: Side, since: Timestamp) {
        let rank = match side {
            Side::Front => {
                self.front -= 1;
                self.front
            }
            Side::Back => {
                self.back += 1;
                self.back
            }
        };
        self.put(id, Place::Ready { rank, since });
    }

    /// Makes ready what has waited long enough.
    pub(super) fn promote(&mut self, now: Timestamp) {
        while let Some(&(due, id)) = self.delayed.first().filter(|(due, _)| *due <= now) {
            let released =
                matches!(self.jobs.get(&id).map(|entry| &entry.place), Some(Place::Delayed { why: Why::Released, .. }));
            self.make_ready(id, if released { Side::Front } else { Side::Back }, due);
        }
    }

    /// Takes back every lease that has run out.
    pub(super) fn reclaim(&mut self, now: Timestamp) {
        while let Some(&(_, id)) = self.leases.first().filter(|(until, _)| *until <= now) {
            self.bereave(id, now);
        }
    }

    /// Ends a lease whose worker died: one death more, back to the front; a job somebody cancelled ends here.
    pub(super) fn bereave(&mut self, id: JobId, now: Timestamp) {
        let Some(entry) = self.jobs.get_mut(&id) else { return };
        entry.deaths += 1;
        entry.wait_from(now);
        let cancelled = matches!(entry.place, Place::Running { cancel: true, .. });
        if cancelled {
            self.end_unrun(id, End::Cancelled, cancelled_by_user(), now);
        } else {
            self.make_ready(id, Side::Front, now);
        }
    }

    /// When something happens by itself next: a job falls due or a lease runs out.
    pub(super) fn next_event(&self) -> Option<Timestamp> {
        let due = self.delayed.first().map(|(at, _)| *at);
        let out = self.leases.first().map(|(at, _)| *at);
        due.into_iter().chain(out).min()
    }

    /// Ends a job by this record, which takes the place of the epoch's earlier end. The caller has made sure that no
    /// success is replaced.
    pub(super) fn end(&mut self, id: JobId, record: Record) {
        self.put(id, Place::Ended);
        let Some(entry) = self.jobs.get_mut(&id) else { return };
        self.last_cursor += 1;
        if record.end == End::Succeeded {
            entry.payload = None;
        }
        if let Some(away) = &mut entry.away {
            away.announced = false;
        }
        let (epoch, batch) = (record.epoch, entry.head.batch.clone());
        let old = entry.record.replace((self.last_cursor, Arc::new(record)));
        self.log.insert(self.last_cursor, id);
        if let Some((cursor, old)) = old {
            self.log.remove(&cursor);
            if old.epoch != epoch {
                self.keep_spending(batch.as_ref(), &old);
            }
        }
    }

    /// Ends a job that no lease ends.
    pub(super) fn end_unrun(&mut self, id: JobId, end: End, cause: Cause, now: Timestamp) {
        if let Some(entry) = self.jobs.get_mut(&id) {
            entry.note_later();
            let record = Record::unrun(&entry.head, end, Some(cause), now);
            self.end(id, record);
        }
    }

    /// Puts an ended job back in line under the next epoch.
    pub(super) fn redrive(&mut self, id: JobId, now: Timestamp) -> Redriven {
        let Some(entry) = self.jobs.get_mut(&id) else {
            return if self.tombstones.contains_key(&id) { Redriven::Gone } else { Redriven::Unknown };
        };
        match entry.end() {
            None if entry.head.deadline > now || !entry.is_waiting() => return Redriven::Waiting,
            Some(End::Succeeded) => return Redriven::Succeeded,
            Some(_) if entry.payload.is_none() => return Redriven::Gone,
            None | Some(_) => {}
        }
        entry.renew_allowance(now);
        let epoch = entry.head.epoch + 1;
        self.begin_epoch(id, epoch);
        self.make_ready(id, Side::Back, now);
        Redriven::Queued { epoch }
    }

    /// Counts from zero in that epoch; the end of an earlier one no longer counts.
    pub(super) fn begin_epoch(&mut self, id: JobId, epoch: u32) {
        let Some(entry) = self.jobs.get_mut(&id) else { return };
        (entry.head.epoch, entry.head.attempts, entry.head.history) = (epoch, 0, History::default());
        entry.deaths = 0;
        let (batch, old) = (entry.head.batch.clone(), entry.record.take());
        if let Some((cursor, old)) = old {
            self.log.remove(&cursor);
            self.keep_spending(batch.as_ref(), &old);
        }
    }

    /// An end that no longer counts was paid for all the same.
    fn keep_spending(&mut self, batch: Option<&BatchName>, old: &Record) {
        if let Some(batch) = batch.and_then(|name| self.batches.get_mut(name)) {
            batch.past.spend(old);
        }
    }

    /// Forgets an ended job, keeping the mark that its id was used and its share of the batch's counts.
    pub(super) fn bury(&mut self, id: JobId) -> Option<Arc<Record>> {
        let entry = self.jobs.remove(&id)?;
        let (cursor, record) = entry.record?;
        self.order.remove(&entry.seq);
        self.log.remove(&cursor);
        if let Some(batch) = entry.head.batch.as_ref().and_then(|name| self.batches.get_mut(name)) {
            batch.past.add(cursor, &record);
        }
        let fingerprint = entry.head.fingerprint;
        self.tombstones.insert(id, Tombstone { fingerprint, end: record.end, ended_at: record.ended_at });
        Some(record)
    }

    /// Removes a job that waits in this epoch as though it had never come; whether there was one.
    pub(super) fn forget(&mut self, id: JobId, epoch: u32) -> bool {
        let Some(entry) = self.jobs.get(&id).filter(|entry| entry.is_waiting() && entry.head.epoch == epoch) else {
            return false;
        };
        let seq = entry.seq;
        self.put(id, Place::Ended);
        self.order.remove(&seq);
        self.jobs.remove(&id);
        true
    }

    /// Whether a user stopped it with its batch. A job redriven from there runs all the same.
    pub(super) fn is_cancelled(&self, head: &Head) -> bool {
        let batch = head.batch.as_ref().and_then(|name| self.batches.get(name));
        head.epoch == 0 && batch.is_some_and(|batch| batch.cancelled)
    }

    /// Ids of jobs for which `fits` holds, in the order they came.
    pub(super) fn ids_where(&self, fits: impl Fn(&Entry) -> bool) -> Vec<JobId> {
        self.order.values().copied().filter(|id| self.jobs.get(id).is_some_and(&fits)).collect()
    }
}

pub(super) fn cancelled_by_user() -> Cause {
    cause("cancelled_by_user", "cancelled by a user")
}

pub(super) fn purged() -> Cause {
    cause("purged", "its queue was purged")
}

pub(super) fn deadline_passed() -> Cause {
    cause("deadline_passed", "its deadline passed before it ran")
}

fn cause(code: &str, detail: &str) -> Cause {
    Cause { class: None, code: code.to_owned(), detail: detail.to_owned(), status_code: None }
}
