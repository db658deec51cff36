//! The two traits, each method one step of a sibling.

use std::time::Duration;

use async_trait::async_trait;

use super::opening::text;
use super::reading::Found;
use super::{LARGEST, ObjectLedger, all, keys};
use crate::broker::{
    Beat, Cancel, CancelCounts, Depth, Head, LeaseId, MAX_BATCH, QueueView, Retention, Settled, Swept, Verdict,
    WorkerId,
};
use crate::error::{Error, Kind, Result};
use crate::job::{BatchName, Fingerprint, JobId, Queue};
use crate::ledger::{
    Announced, Asked, BatchView, Claims, Cursor, DeadGroup, JobFilter, JobView, Known, Ledger, LedgerId, Opened, Page,
    Raised, Registered, Results, Scope, WorkerReport,
};
use crate::record::State;
use crate::time::Timestamp;

/// The most dead jobs that are counted.
const DEAD: usize = 100_000;

#[async_trait]
impl Claims for ObjectLedger {
    async fn identity(&self) -> Result<LedgerId> {
        self.own_identity().await
    }

    async fn register(&self, jobs: &[&Head]) -> Result<Vec<Registered>> {
        check_count("register jobs", jobs.len())?;
        self.register_jobs(jobs).await
    }

    /// Nothing is kept of a job that waits.
    async fn confirm(&self, _jobs: &[&Head]) -> Result<()> {
        Ok(())
    }

    async fn open(&self, job: &Head, asked: &Asked<'_>) -> Result<Opened> {
        self.open_message(job, asked).await
    }

    async fn beat(&self, job: &Head, lease: LeaseId, length: Duration) -> Result<Beat> {
        self.beat_claim(job, lease, length).await
    }

    async fn settle(&self, job: &Head, lease: LeaseId, verdict: &Verdict, payload: Option<&[u8]>) -> Result<Settled> {
        self.settle_claim(job, lease, verdict, payload).await
    }

    async fn announced(&self, ends: &[Announced]) -> Result<()> {
        all(ends.iter().map(|told| self.mark_announced(told)).collect()).await.map(drop)
    }

    fn hears_of_all_announced(&self) -> bool {
        true
    }

    async fn keep(&self, job: &Head, payload: &[u8]) -> Result<bool> {
        self.keep_payload(job, payload).await
    }

    async fn raise(&self, ids: &[JobId]) -> Result<Vec<Raised>> {
        check_count("raise jobs", ids.len())?;
        all(ids.iter().map(|id| self.raise_job(*id)).collect()).await
    }

    async fn published(&self, jobs: &[&Head]) -> Result<()> {
        check_count("mark published jobs", jobs.len())?;
        all(jobs.iter().map(|head| self.note_published(head)).collect()).await.map(drop)
    }

    /// Whether a job waits or runs is not known: what has not ended is `Flagged`, and ends when its message surfaces.
    async fn cancel(&self, ids: &[JobId], queues: &[Queue]) -> Result<Vec<Cancel>> {
        check_count("cancel jobs", ids.len())?;
        let told: Vec<Cancel> = all(ids.iter().map(|id| self.cancel_job(*id, queues)).collect()).await?;
        if told.contains(&Cancel::Flagged) {
            self.ring(queues).await?;
        }
        Ok(told)
    }

    async fn cancel_batch(&self, batch: &BatchName) -> Result<CancelCounts> {
        self.flag_batch(batch).await
    }

    async fn pause(&self, queue: &Queue, reason: Option<&str>) -> Result<()> {
        self.note_queue(queue).await?;
        self.flags.set(keys::queue(queue, "pause"), reason.map(Into::into)).await
    }

    /// None is known here: each ends when its message surfaces.
    async fn purge(&self, queue: &Queue) -> Result<u64> {
        self.note_queue(queue).await?;
        let now = self.clock.now().as_millis().to_string();
        self.flags.set(keys::queue(queue, "purged"), Some(now.into_bytes())).await.map(|()| 0)
    }

    async fn drop_dead(&self, ids: &[JobId]) -> Result<u64> {
        check_count("drop dead jobs", ids.len())?;
        let dropped: Vec<bool> = all(ids.iter().map(|id| self.drop_job(*id)).collect()).await?;
        Ok(dropped.into_iter().filter(|dropped| *dropped).count() as u64)
    }

    async fn forget(&self, jobs: &[(JobId, u32)]) -> Result<u64> {
        check_count("forget jobs", jobs.len())?;
        self.forget_jobs(jobs).await
    }

    /// There are no claims to end: the broker gives back what a dead worker held.
    async fn recover(&self, _worker: &WorkerId) -> Result<u64> {
        Ok(0)
    }

    async fn sweep(&self, retention: &Retention) -> Result<Swept> {
        self.sweep_on(retention).await
    }

    async fn now(&self) -> Result<Timestamp> {
        Ok(self.clock.now())
    }

    async fn touch(&self, queue: &Queue) -> Result<()> {
        self.note_queue(queue).await
    }

    async fn standing(&self, queue: &Queue) -> Result<QueueView> {
        let (paused, dead) = tokio::try_join!(self.paused(queue), self.dead_marks(Some(queue), DEAD))?;
        let depth = Depth { dead: dead.len() as u64, ..Depth::default() };
        Ok(QueueView { queue: queue.clone(), paused, depth })
    }

    /// Who runs what is not known here.
    fn keeps_copies_apart(&self) -> bool {
        false
    }

    /// One read, and none while what was read is young.
    async fn paused(&self, queue: &Queue) -> Result<Option<String>> {
        let paused = self.flags.get(keys::queue(queue, "pause"), self.ages.flags).await?;
        Ok(paused.as_deref().map(text))
    }

    async fn standings(&self) -> Result<Vec<QueueView>> {
        let folders = self.store.folders("ledger/queues").await?;
        let views = folders.iter().map(|folder| async move {
            let name = self.store.get(&format!("ledger/queues/{folder}/here"), LARGEST).await?;
            match name.and_then(|name| Queue::new(std::str::from_utf8(&name).ok()?).ok()) {
                Some(queue) => self.standing(&queue).await.map(Some),
                None => Ok(None),
            }
        });
        let views: Vec<Option<QueueView>> = all(views.collect()).await?;
        let mut views: Vec<QueueView> = views.into_iter().flatten().collect();
        views.sort_by(|a, b| a.queue.cmp(&b.queue));
        Ok(views)
    }
}

#[async_trait]
impl Ledger for ObjectLedger {
    async fn known(&self, keys: &[(JobId, Fingerprint)]) -> Result<Vec<Known>> {
        check_count("look jobs up", keys.len())?;
        let found: Vec<Found> = all(keys.iter().map(|(id, _)| self.find(*id)).collect()).await?;
        Ok(found.iter().zip(keys).map(|(found, (_, fingerprint))| found.known(*fingerprint)).collect())
    }

    async fn fetch(&self, ids: &[JobId]) -> Result<Vec<Option<JobView>>> {
        all(ids.iter().map(|id| self.view(*id)).collect()).await
    }

    async fn payload(&self, id: JobId) -> Result<Option<Vec<u8>>> {
        if self.find(id).await?.state() == Some(State::Succeeded) {
            return Ok(None);
        }
        self.store.get(&keys::kept(id), LARGEST).await
    }

    async fn list(&self, filter: &JobFilter, cursor: Option<&str>, limit: usize) -> Result<Page<JobView>> {
        self.list_jobs(filter, cursor, limit).await
    }

    async fn results(&self, scope: &Scope, cursor: Cursor, limit: usize) -> Result<Results> {
        self.page_of(scope, cursor, limit).await
    }

    async fn batch(&self, name: &BatchName) -> Result<Option<BatchView>> {
        self.batch_view(name, false).await
    }

    async fn batches(&self, limit: usize) -> Result<Vec<BatchView>> {
        self.newest_batches(limit).await
    }

    async fn seal(&self, name: &BatchName, queue: &Queue) -> Result<()> {
        self.seal_batch(name, queue).await
    }

    async fn dead_groups(&self, queue: Option<&Queue>) -> Result<Vec<DeadGroup>> {
        self.group_dead(queue).await
    }

    async fn report(&self, worker: &WorkerReport) -> Result<()> {
        self.report_worker(worker).await
    }

    async fn leave(&self, worker: &WorkerId) -> Result<()> {
        self.forget_worker(worker).await
    }

    async fn workers(&self) -> Result<Vec<WorkerReport>> {
        self.live_workers().await
    }

    async fn lock(&self, name: &str, owner: &WorkerId, length: Duration) -> Result<bool> {
        self.take_lock(name, owner, length).await
    }

    async fn unlock(&self, name: &str, owner: &WorkerId) -> Result<()> {
        self.drop_lock(name, owner).await
    }

    async fn note(&self, key: &str) -> Result<Option<String>> {
        self.read_note(key).await
    }

    async fn set_note(&self, key: &str, value: Option<&str>) -> Result<()> {
        self.write_note(key, value).await
    }
}

fn check_count(op: &'static str, count: usize) -> Result<()> {
    if count > MAX_BATCH {
        return Err(Error::new(Kind::TooLarge, op, format!("{count} at once; at most {MAX_BATCH}")));
    }
    Ok(())
}
