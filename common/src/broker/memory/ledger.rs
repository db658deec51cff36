//! The memory backend's ledger: reading what the book knows, and the small things kept beside it.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;

use super::super::backend::WorkerId;
use super::Memory;
use super::book::Book;
use crate::codec;
use crate::error::{Error, Kind, Result};
use crate::job::{BatchName, Fingerprint, JobId, Queue};
use crate::ledger::{
    BatchView, Cursor, DeadGroup, JobFilter, JobView, KeptLimit, Known, Ledger, Page, RESULT_BYTES, Results, Scope,
    WorkerReport, check_limit,
};
use crate::outcome::FailureClass;
use crate::record::Record;
use crate::time::Timestamp;

/// The most items of one answer.
const PAGE: usize = 1_000;

/// The longest name of a lock, in characters.
const LOCK_NAME: usize = 200;

/// The largest note, in bytes.
const NOTE: usize = 64 * 1024;

/// How long a worker is believed to live without a report.
const WORKER_SILENCE: Duration = Duration::from_secs(60);

/// What is kept that is no job.
#[derive(Debug, Default)]
pub(super) struct Aside {
    workers: BTreeMap<WorkerId, (Timestamp, WorkerReport)>,
    locks: BTreeMap<String, (WorkerId, Timestamp)>,
    notes: BTreeMap<String, String>,
    limits: BTreeMap<String, Vec<u8>>,
}

#[async_trait]
impl Ledger for Memory {
    async fn known(&self, keys: &[(JobId, Fingerprint)]) -> Result<Vec<Known>> {
        let (now, book) = self.look();
        let answer = |(id, asked): &(JobId, Fingerprint)| match book.seen(*id, now) {
            None => Known::New,
            Some((fingerprint, state)) if fingerprint == *asked => Known::Same(state),
            Some((_, state)) => Known::Conflict(state),
        };
        Ok(keys.iter().map(answer).collect())
    }

    async fn fetch(&self, ids: &[JobId]) -> Result<Vec<Option<JobView>>> {
        let (now, book) = self.look();
        Ok(ids.iter().map(|id| book.job(*id, now)).collect())
    }

    async fn payload(&self, id: JobId) -> Result<Option<Vec<u8>>> {
        let (_, book) = self.look();
        Ok(book.jobs.get(&id).and_then(|entry| entry.payload.clone()))
    }

    async fn list(&self, filter: &JobFilter, cursor: Option<&str>, limit: usize) -> Result<Page<JobView>> {
        let before = match cursor {
            None => u64::MAX,
            Some(text) => text.parse().map_err(|_| Error::new(Kind::Config, "list jobs", "not a cursor of ours"))?,
        };
        let (now, book) = self.look();
        let limit = limit.clamp(1, PAGE);
        let older = book.order.range(..before).rev();
        let fitting =
            older.filter_map(|(seq, id)| Some((*seq, book.job(*id, now)?))).filter(|(_, job)| fits(filter, job));
        let mut found: Vec<_> = fitting.take(limit + 1).collect();
        let more = found.len() > limit;
        found.truncate(limit);
        let next = found.last().filter(|_| more).map(|(seq, _)| seq.to_string());
        Ok(Page { items: found.into_iter().map(|(_, job)| job).collect(), next })
    }

    async fn results(&self, scope: &Scope, cursor: Cursor, limit: usize) -> Result<Results> {
        let (_, book) = self.look();
        let after = book.log.range(cursor.0.saturating_add(1)..);
        let records = after.filter_map(|(at, id)| Some((Cursor(*at), &book.jobs.get(id)?.record.as_ref()?.1)));
        let ours = records.filter(|(_, record)| match scope {
            Scope::Batch(name) => record.batch.as_ref() == Some(name),
            Scope::Queue(queue) => record.queue == *queue,
        });
        let limit = limit.clamp(1, PAGE);
        let (mut page, mut bytes) = (Results { next: cursor, ..Results::default() }, 0);
        for (at, record) in ours {
            bytes += codec::encode_record(record)?.len();
            if page.records.len() == limit || (bytes > RESULT_BYTES && !page.records.is_empty()) {
                page.more = true;
                break;
            }
            page.next = at;
            page.records.push((at, Record::clone(record)));
        }
        Ok(page)
    }

    async fn batch(&self, name: &BatchName) -> Result<Option<BatchView>> {
        let (now, book) = self.look();
        Ok(book.batch(name, now))
    }

    async fn batches(&self, limit: usize) -> Result<Vec<BatchView>> {
        let (now, book) = self.look();
        let mut names: Vec<_> = book.batches.iter().map(|(name, batch)| (batch.seq, name)).collect();
        names.sort_unstable_by_key(|(seq, _)| std::cmp::Reverse(*seq));
        Ok(names.into_iter().take(limit).filter_map(|(_, name)| book.batch(name, now)).collect())
    }

    async fn seal(&self, name: &BatchName, queue: &Queue) -> Result<()> {
        let (now, mut book) = self.look();
        let batch = book.ensure_batch(name, queue, now);
        if batch.queue != *queue {
            let why = format!("batch {name} belongs to queue {}", batch.queue);
            return Err(Error::new(Kind::Conflict, "seal a batch", why));
        }
        batch.sealed = true;
        Ok(())
    }

    async fn dead_groups(&self, queue: Option<&Queue>) -> Result<Vec<DeadGroup>> {
        let (_, book) = self.look();
        Ok(dead_groups(&book, queue))
    }

    async fn report(&self, worker: &WorkerReport) -> Result<()> {
        let (now, mut book) = self.look();
        book.aside.workers.retain(|_, (seen, _)| now.since(*seen) < WORKER_SILENCE);
        book.aside.workers.insert(worker.id.clone(), (now, worker.clone()));
        Ok(())
    }

    async fn leave(&self, worker: &WorkerId) -> Result<()> {
        let (_, mut book) = self.look();
        book.aside.workers.remove(worker);
        Ok(())
    }

    async fn workers(&self) -> Result<Vec<WorkerReport>> {
        let (now, book) = self.look();
        let alive = book.aside.workers.values().filter(|(seen, _)| now.since(*seen) < WORKER_SILENCE);
        Ok(alive.map(|(_, report)| report.clone()).collect())
    }

    async fn lock(&self, name: &str, owner: &WorkerId, length: Duration) -> Result<bool> {
        if name.chars().count() > LOCK_NAME {
            return Err(Error::new(Kind::TooLarge, "take a lock", format!("its name is over {LOCK_NAME} characters")));
        }
        let (now, mut book) = self.look();
        if book.aside.locks.get(name).is_some_and(|(holder, until)| holder != owner && *until > now) {
            return Ok(false);
        }
        book.aside.locks.insert(name.to_owned(), (owner.clone(), now + length));
        Ok(true)
    }

    async fn unlock(&self, name: &str, owner: &WorkerId) -> Result<()> {
        let (_, mut book) = self.look();
        if book.aside.locks.get(name).is_some_and(|(holder, _)| holder == owner) {
            book.aside.locks.remove(name);
        }
        Ok(())
    }

    async fn note(&self, key: &str) -> Result<Option<String>> {
        let (_, book) = self.look();
        Ok(book.aside.notes.get(key).cloned())
    }

    async fn set_note(&self, key: &str, value: Option<&str>) -> Result<()> {
        if value.is_some_and(|value| value.len() > NOTE) {
            return Err(Error::new(Kind::TooLarge, "keep a note", format!("over {NOTE} bytes")));
        }
        let (_, mut book) = self.look();
        match value {
            Some(value) => book.aside.notes.insert(key.to_owned(), value.to_owned()),
            None => book.aside.notes.remove(key),
        };
        Ok(())
    }

    async fn limit(&self, key: &str) -> Result<KeptLimit> {
        let (now, book) = self.look();
        Ok(KeptLimit { bytes: book.aside.limits.get(key).cloned().unwrap_or_default(), now })
    }

    async fn swap_limit(&self, key: &str, old: &[u8], new: &[u8]) -> Result<bool> {
        check_limit("change a limit", new)?;
        let (_, mut book) = self.look();
        let same = book.aside.limits.get(key).map_or(&[][..], Vec::as_slice) == old;
        if same && new.is_empty() {
            book.aside.limits.remove(key);
        } else if same {
            book.aside.limits.insert(key.to_owned(), new.to_owned());
        }
        Ok(same)
    }

    async fn limits(&self) -> Result<Vec<String>> {
        let (_, book) = self.look();
        Ok(book.aside.limits.keys().cloned().collect())
    }
}

impl Memory {
    fn look(&self) -> (Timestamp, std::sync::MutexGuard<'_, Book>) {
        let now = self.shared.now();
        let mut book = self.shared.book();
        book.promote(now);
        (now, book)
    }
}

fn fits(filter: &JobFilter, job: &JobView) -> bool {
    let code = || job.record.as_ref()?.cause.as_ref().map(|cause| &cause.code);
    filter.queue.as_ref().is_none_or(|queue| job.queue == *queue)
        && filter.batch.as_ref().is_none_or(|batch| job.batch.as_ref() == Some(batch))
        && (filter.states.is_empty() || filter.states.contains(&job.state))
        && filter.code.as_ref().is_none_or(|asked| code() == Some(asked))
}

fn dead_groups(book: &Book, queue: Option<&Queue>) -> Vec<DeadGroup> {
    type Cause<'a> = (&'a Queue, &'a Option<String>, Option<FailureClass>, &'a str);
    let mut groups: Vec<(Cause<'_>, DeadGroup)> = Vec::new();
    let dead = book.jobs.values().filter(|entry| entry.is_dead()).filter_map(|entry| Some(&entry.record.as_ref()?.1));
    for record in dead.filter(|record| queue.is_none_or(|queue| record.queue == *queue)) {
        let class = record.cause.as_ref().and_then(|cause| cause.class);
        let (code, detail) = record.cause.as_ref().map_or(("", ""), |cause| (&cause.code, &cause.detail));
        let key = (&record.queue, &record.model, class, code);
        if let Some((_, group)) = groups.iter_mut().find(|(other, _)| *other == key) {
            group.count += 1;
            group.first = group.first.min(record.ended_at);
            group.last = group.last.max(record.ended_at);
            continue;
        }
        let group = DeadGroup {
            queue: record.queue.clone(),
            model: record.model.clone(),
            class,
            code: code.to_owned(),
            count: 1,
            first: record.ended_at,
            last: record.ended_at,
            sample: record.id,
            detail: detail.to_owned(),
        };
        groups.push((key, group));
    }
    let mut groups: Vec<_> = groups.into_iter().map(|(_, group)| group).collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.count));
    groups.truncate(PAGE);
    groups
}
