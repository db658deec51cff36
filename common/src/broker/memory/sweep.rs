//! Upkeep of the memory backend: passed deadlines, retention by age and by bytes.

use super::super::backend::{Retention, Swept};
use super::book::{Book, deadline_passed};
use crate::codec;
use crate::job::JobId;
use crate::record::{End, Output, Record};
use crate::time::Timestamp;

/// The most jobs one sweep expires or forgets, so that nobody waits long for the lock.
const AT_ONCE: usize = 1_000;

impl Book {
    pub(super) fn sweep(&mut self, retention: &Retention, now: Timestamp) -> Swept {
        let late = self.ids_where(|entry| entry.is_waiting() && entry.head.deadline <= now);
        let old = self.past_age(retention, now);
        let old = if old.is_empty() { self.past_bytes(retention.bytes) } else { old };
        let mut swept = Swept { more: late.len() > AT_ONCE || old.len() > AT_ONCE, ..Swept::default() };
        for id in late.into_iter().take(AT_ONCE) {
            self.end_unrun(id, End::Expired, deadline_passed(), now);
            swept.expired += 1;
        }
        for id in old.into_iter().take(AT_ONCE) {
            let Some(record) = self.bury(id) else { continue };
            swept.forgotten += 1;
            swept.outputs.extend(stored_key(&record));
        }
        self.tombstones.retain(|_, stone| now.since(stone.ended_at) <= retention.tombstones);
        swept
    }

    /// Ended jobs older than their kind is kept.
    fn past_age(&self, retention: &Retention, now: Timestamp) -> Vec<JobId> {
        self.ids_where(|entry| {
            let Some((_, record)) = &entry.record else { return false };
            let kept = if record.end == End::Succeeded { retention.succeeded } else { retention.dead };
            now.since(record.ended_at) > kept
        })
    }

    /// The oldest records, as many as are over the limit.
    fn past_bytes(&self, limit: u64) -> Vec<JobId> {
        let records = || self.log.values().filter_map(|id| Some((*id, self.jobs.get(id)?.record.as_ref()?.1.as_ref())));
        let mut over = records().map(|(_, record)| bytes(record)).sum::<u64>().saturating_sub(limit);
        let mut old = Vec::new();
        for (id, record) in records() {
            if over == 0 {
                break;
            }
            over = over.saturating_sub(bytes(record));
            old.push(id);
        }
        old
    }
}

fn bytes(record: &Record) -> u64 {
    codec::encode_record(record).map_or(0, |bytes| bytes.len() as u64)
}

fn stored_key(record: &Record) -> Option<String> {
    match &record.answer.as_ref()?.output {
        Output::Stored(stored) => Some(stored.key.clone()),
        Output::Inline(_) => None,
    }
}
