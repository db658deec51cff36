//! What the memory backend's book looks like from outside: a job, a queue's depth, a batch, all counted afresh.

use std::collections::BTreeSet;

use super::super::backend::{Depth, Envelope, PAGE_BYTES, QueueView};
use super::book::{Book, Entry, Place};
use super::totals::Batch;
use crate::job::{BatchName, Fingerprint, JobId, Queue};
use crate::ledger::{BatchView, Counts, Cursor, JobView, Page};
use crate::record::{End, Record, State};
use crate::time::Timestamp;

impl Book {
    /// What an id stands for and its state, even after its record is gone.
    pub(super) fn seen(&self, id: JobId, now: Timestamp) -> Option<(Fingerprint, State)> {
        let live = self.jobs.get(&id).map(|entry| (entry.head.fingerprint, entry.state(now)));
        live.or_else(|| self.tombstones.get(&id).map(|stone| (stone.fingerprint, stone.end.into())))
    }

    pub(super) fn job(&self, id: JobId, now: Timestamp) -> Option<JobView> {
        let entry = self.jobs.get(&id)?;
        let head = &entry.head;
        let mut view = JobView {
            id,
            queue: head.lane.queue.clone(),
            model: head.lane.model.as_ref().map(|model| model.as_str().to_owned()),
            priority: head.priority.get(),
            batch: head.batch.clone(),
            row: head.row,
            custom_id: head.custom_id.clone(),
            tenant: head.tenant.clone(),
            tags: head.tags.clone(),
            state: entry.state(now),
            epoch: head.epoch,
            attempts: head.attempts,
            deaths: entry.deaths,
            created_at: head.created_at,
            deadline: head.deadline,
            due: None,
            hold: None,
            worker: None,
            leased_at: None,
            cancel_requested: false,
            dropped: entry.payload.is_none() && entry.state(now) == State::Dead,
            paused: self.paused.get(&head.lane.queue).cloned(),
            record: entry.record.as_ref().map(|(_, record)| Box::new(Record::clone(record))),
        };
        if let Some(record) = &view.record {
            view.attempts = record.attempts;
        }
        match &entry.place {
            Place::Delayed { due, hold, .. } => (view.due, view.hold) = (Some(*due), hold.clone()),
            Place::Away { wait: Some((due, _, hold)) } if *due > now => {
                (view.due, view.hold) = (Some(*due), hold.clone());
            }
            Place::Running { worker, since, cancel, .. } => {
                view.worker = Some(worker.as_str().to_owned());
                view.leased_at = Some(*since);
                view.cancel_requested = *cancel;
            }
            Place::Ready { .. } | Place::Away { .. } | Place::Ended => {}
        }
        Some(view)
    }

    /// Jobs that wait, whole, after the one numbered `after`.
    pub(super) fn waiting(&self, queue: &Queue, after: u64, limit: usize, now: Timestamp) -> Page<Envelope> {
        let mut page = Page { items: Vec::new(), next: None };
        let (mut bytes, mut last) = (0, after);
        for (&seq, id) in self.order.range(after.saturating_add(1)..) {
            let Some(entry) = self.jobs.get(id).filter(|entry| {
                let over = entry.head.deadline <= now || self.is_cancelled(&entry.head);
                entry.head.lane.queue == *queue && entry.is_waiting() && entry.away.is_none() && !over
            }) else {
                continue;
            };
            let payload = entry.payload.clone().unwrap_or_default();
            bytes += payload.len();
            if page.items.len() >= limit || (bytes > PAGE_BYTES && !page.items.is_empty()) {
                page.next = Some(last.to_string());
                break;
            }
            let mut head = entry.head.clone();
            if let Place::Delayed { due, .. } = &entry.place {
                head.not_before = Some(*due);
            }
            page.items.push(Envelope { head, payload });
            last = seq;
        }
        page
    }

    /// Every queue that has jobs, is paused or was said to be used, by name.
    pub(super) fn queues(&self) -> Vec<QueueView> {
        let used = self.jobs.values().map(|entry| &entry.head.lane.queue);
        let names: BTreeSet<&Queue> = used.chain(self.paused.keys()).chain(&self.notices.used).collect();
        names.into_iter().map(|queue| self.queue(queue)).collect()
    }

    pub(super) fn queue(&self, queue: &Queue) -> QueueView {
        QueueView { queue: queue.clone(), paused: self.paused.get(queue).cloned(), depth: self.depth(queue) }
    }

    pub(super) fn depth(&self, queue: &Queue) -> Depth {
        let mut depth = Depth::default();
        for entry in self.jobs.values().filter(|entry| entry.head.lane.queue == *queue) {
            match entry.place {
                Place::Ready { since, .. } => {
                    depth.ready += 1;
                    depth.oldest_ready = Some(depth.oldest_ready.map_or(since, |oldest| oldest.min(since)));
                }
                Place::Delayed { .. } => depth.delayed += 1,
                Place::Running { .. } => depth.running += 1,
                Place::Away { .. } => {}
                Place::Ended => depth.dead += u64::from(entry.is_dead()),
            }
        }
        depth
    }

    pub(super) fn batch(&self, name: &BatchName, now: Timestamp) -> Option<BatchView> {
        let batch = self.batches.get(name)?;
        let mut totals = batch.past;
        let mut counts = Counts::default();
        for entry in self.jobs.values().filter(|entry| entry.head.batch.as_ref() == Some(name)) {
            counts.total += 1;
            count(&mut counts, entry, now);
            if let Some((cursor, record)) = &entry.record {
                totals.add(*cursor, record);
            }
        }
        let past = |end: End| batch.past.ends[end as usize];
        counts.total += batch.past.ends.iter().sum::<u64>();
        counts.succeeded += past(End::Succeeded);
        counts.dead += past(End::Dead);
        counts.cancelled += past(End::Cancelled);
        counts.expired += past(End::Expired);
        let Batch { queue, created_at, sealed, cancelled, seq: _, past: _ } = batch;
        Some(BatchView {
            name: name.clone(),
            queue: queue.clone(),
            created_at: *created_at,
            sealed: *sealed,
            cancelled: *cancelled,
            counts,
            usage: totals.usage,
            cost: totals.cost,
            cost_unknown: totals.cost_unknown,
            last: Cursor(totals.last),
        })
    }
}

fn count(counts: &mut Counts, entry: &Entry, now: Timestamp) {
    let part = match (entry.state(now), &entry.place) {
        (State::Running, _) => &mut counts.running,
        (State::Succeeded, _) => &mut counts.succeeded,
        (State::Dead, _) => &mut counts.dead,
        (State::Cancelled, _) => &mut counts.cancelled,
        (State::Expired, _) => &mut counts.expired,
        (_, Place::Delayed { .. }) => &mut counts.delayed,
        (State::Scheduled | State::Queued | State::Retrying, _) => &mut counts.queued,
    };
    *part += 1;
}
