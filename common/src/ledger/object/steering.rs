//! What people ask of jobs whose messages are out of reach: cancel, redrive, drop, purge. Flags that messages meet.

use super::keys::{self, Kind as Sort};
use super::reading::Found;
use super::settling::Commit;
use super::stone::{Fate, Stone, What, raised};
use super::{ObjectLedger, all, lock};
use crate::broker::{Cancel, CancelCounts, Envelope, Head, LeaseId};
use crate::error::{Error, Kind, Result};
use crate::job::{BatchName, JobId, Queue};
use crate::ledger::{Known, Raised, Registered};
use crate::record::{End, Record, State};
use crate::time::Timestamp;

/// How often a job is looked at anew that others keep changing.
const TRIES: usize = 5;

impl ObjectLedger {
    pub(super) async fn register_jobs(&self, jobs: &[&Head]) -> Result<Vec<Registered>> {
        // One after the other: each queue and batch is asked for once, and known to those that follow.
        for head in jobs {
            self.note_queue(&head.lane.queue).await?;
            if let Some(batch) = &head.batch {
                self.ensure_batch(batch, &head.lane.queue).await?;
            }
        }
        let answers: Vec<Registered> = all(jobs.iter().map(|head| self.register_job(head)).collect()).await?;
        let mut batches: Vec<(&BatchName, Vec<JobId>)> = Vec::new();
        let ours =
            jobs.iter().zip(&answers).filter(|(_, answer)| matches!(answer, Registered::New | Registered::Known(_)));
        for (batch, id) in ours.filter_map(|(head, _)| Some((head.batch.as_ref()?, head.id))) {
            match batches.iter_mut().find(|(name, _)| *name == batch) {
                Some((_, ids)) => ids.push(id),
                None => batches.push((batch, vec![id])),
            }
        }
        for (batch, ids) in batches {
            self.note_jobs(batch, &ids).await?;
        }
        Ok(answers)
    }

    async fn register_job(&self, head: &Head) -> Result<Registered> {
        if let Some(batch) = &head.batch {
            let owner = self.ensure_batch(batch, &head.lane.queue).await?;
            if owner != head.lane.queue {
                return Ok(Registered::OtherQueue(owner));
            }
        }
        // Nobody else has an id that was drawn just now.
        let known = if head.keyed { self.find(head.id).await?.known(head.fingerprint) } else { Known::New };
        Ok(match known {
            Known::New => Registered::New,
            Known::Same(state) => Registered::Known(state),
            Known::Conflict(_) => Registered::Conflict,
        })
    }

    pub(super) async fn raise_job(&self, id: JobId) -> Result<Raised> {
        for _ in 0..TRIES {
            let found = self.find(id).await?;
            if found.done.is_some() {
                return Ok(Raised::Succeeded);
            }
            let at = found.current.as_ref().map_or_else(|| self.clock.now(), |stone| stone.at);
            let told = match found.current.map(|stone| stone.what) {
                None => match found.before.map(|stone| stone.what) {
                    Some(What::Ended { head, fate: Fate::Raised { published: false, .. }, .. }) => {
                        return self.publish_raised(&head).await;
                    }
                    Some(_) => Some(Raised::Waiting),
                    None => Some(Raised::Unknown),
                },
                Some(What::Ended { fate: Fate::Dropped, .. } | What::Forgotten { .. }) => Some(Raised::Gone),
                Some(What::Spared { head }) => {
                    // Again, should whoever spared it have died before.
                    if let Some(head) = head {
                        self.mark_waiting(&head, head.epoch, (at, Sort::Restored)).await?;
                    }
                    Some(Raised::Waiting)
                }
                Some(What::Stopped) => {
                    let head = found.before.as_ref().and_then(Stone::raised_head).map(Box::new);
                    let spared = self.spare(id, found.epoch, head).await?;
                    spared.map(|_| Raised::Restored { epoch: found.epoch })
                }
                Some(What::Ended { head, record, .. }) if self.store.modified(&keys::kept(id)).await?.is_none() => {
                    match record.lease {
                        LeaseId::NONE => self.restore(&head).await?,
                        _ => Some(Raised::Gone),
                    }
                }
                Some(What::Ended { head, .. }) if self.raise_ended(&head).await? => {
                    return self.publish_raised(&head).await;
                }
                Some(What::Ended { .. }) => None,
            };
            if let Some(told) = told {
                return Ok(told);
            }
        }
        Err(Error::new(Kind::Unavailable, "raise a job", "others keep changing it"))
    }

    /// Puts a job in line in the next epoch; false when it does not stand as it did.
    async fn raise_ended(&self, head: &Head) -> Result<bool> {
        let now = self.clock.now();
        let raised = self.rewrite(keys::other(head.id, head.epoch), |stone| match &stone.what {
            What::Ended { head, record, fate: Fate::Stands } => {
                let fate = Fate::Raised { at: now, published: false };
                Some(Stone { what: What::Ended { head: head.clone(), record: record.clone(), fate }, ..stone.clone() })
            }
            What::Ended { .. } | What::Stopped | What::Spared { .. } | What::Forgotten { .. } => None,
        });
        Ok(raised.await?.is_some())
    }

    /// Takes the job that ended with this head out of the counts of ended ones, and says what to publish.
    async fn publish_raised(&self, head: &Head) -> Result<Raised> {
        let stone = self.stone(&keys::other(head.id, head.epoch)).await?;
        let Some(Stone { what: What::Ended { fate: Fate::Raised { at, .. }, .. }, .. }) = &stone else {
            return Err(Error::new(Kind::Unavailable, "raise a job", "others keep changing it"));
        };
        let Some(payload) = self.store.get(&keys::kept(head.id), super::LARGEST).await? else {
            return Ok(Raised::Gone);
        };
        self.undead(stone.as_ref()).await?;
        self.mark_waiting(head, head.epoch + 1, (*at, Sort::Raised)).await?;
        Ok(Raised::Publish(Box::new(Envelope { head: raised(head, *at), payload })))
    }

    /// Takes back an end whose message has not handed over its payload. Should it do so in this moment, it has been told
    /// that nobody needs it: then what it handed over is published.
    async fn restore(&self, head: &Head) -> Result<Option<Raised>> {
        let Some(at) = self.spare(head.id, head.epoch, Some(Box::new(head.clone()))).await? else { return Ok(None) };
        if self.store.modified(&keys::kept(head.id)).await?.is_none() {
            self.mark_waiting(head, head.epoch, (at, Sort::Restored)).await?;
            return Ok(Some(Raised::Restored { epoch: head.epoch }));
        }
        let now = self.clock.now();
        let record = Record::unrun(head, End::Cancelled, None, now);
        let ended = Stone::ended(head, &record, now);
        self.rewrite(keys::other(head.id, head.epoch), |stone| stone.is_open().then(|| ended.clone())).await?;
        Ok(None)
    }

    /// Lets the message of this epoch run after all, from when on; `None` when something else stands there.
    async fn spare(&self, id: JobId, epoch: u32, head: Option<Box<Head>>) -> Result<Option<Timestamp>> {
        let now = self.clock.now();
        let spared = self.rewrite(keys::other(id, epoch), |stone| {
            let may = stone.what == What::Stopped
                || matches!(&stone.what, What::Ended { record, fate: Fate::Stands, .. } if record.lease == LeaseId::NONE);
            let at = now.max(stone.at + std::time::Duration::from_millis(1));
            may.then(|| Stone { at, what: What::Spared { head: head.clone() } })
        });
        Ok(spared.await?.map(|stone| stone.at))
    }

    /// Notes that the message of a raised job is durable.
    pub(super) async fn note_published(&self, head: &Head) -> Result<()> {
        let Some(before) = head.epoch.checked_sub(1) else { return Ok(()) };
        let noted = self.rewrite(keys::other(head.id, before), |stone| match &stone.what {
            What::Ended { head, record, fate: Fate::Raised { at, published: false } } => {
                let fate = Fate::Raised { at: *at, published: true };
                Some(Stone { what: What::Ended { head: head.clone(), record: record.clone(), fate }, ..stone.clone() })
            }
            What::Ended { .. } | What::Stopped | What::Spared { .. } | What::Forgotten { .. } => None,
        });
        noted.await.map(drop)
    }

    /// Keeps the payload of a job that ended while its message waited; false when the message may run after all.
    pub(super) async fn keep_payload(&self, job: &Head, payload: &[u8]) -> Result<bool> {
        if self.stone(&keys::success(job.id)).await?.is_some() {
            return Ok(true);
        }
        // In this order: whoever takes the end back looks for the payload afterwards.
        self.store.put(&keys::kept(job.id), payload.to_vec()).await?;
        let stone = self.stone(&keys::other(job.id, job.epoch)).await?;
        Ok(stone.is_none_or(|stone| !stone.is_open()))
    }

    pub(super) async fn cancel_job(&self, id: JobId, queues: &[Queue]) -> Result<Cancel> {
        let found = self.find(id).await?;
        if let Some(state) = found.state() {
            return Ok(Cancel::Already(state));
        }
        let runs = lock(&self.running).values().any(|run| run.id == id);
        if queues.is_empty() && found.current.is_none() && found.before.is_none() && !runs {
            return Ok(Cancel::Unknown);
        }
        let stopped = Stone { at: self.clock.now(), what: What::Stopped };
        match self.commit(&keys::other(id, found.epoch), stopped).await? {
            Commit::Ours(_) => Ok(Cancel::Flagged),
            Commit::Theirs(stone) => Ok(stone.state().map_or(Cancel::Flagged, Cancel::Already)),
        }
    }

    /// Has whoever runs something of these queues, and of those that this process runs, look at their jobs.
    pub(super) async fn ring(&self, queues: &[Queue]) -> Result<()> {
        let mut all: Vec<Queue> = lock(&self.running).values().map(|run| run.queue.clone()).collect();
        all.extend_from_slice(queues);
        all.sort_unstable();
        all.dedup();
        for queue in all {
            let sound = LeaseId::random().as_bytes().to_vec();
            self.flags.set(keys::queue(&queue, "bell"), Some(sound)).await?;
        }
        Ok(())
    }

    /// How many of its jobs the flag will meet is known; which of them run is not.
    pub(super) async fn flag_batch(&self, name: &BatchName) -> Result<CancelCounts> {
        if self.owner(name).await?.is_none() {
            return Ok(CancelCounts::default());
        }
        let key = keys::batch(name, "cancelled");
        if self.store.modified(&key).await?.is_none() {
            self.flags.set(key, Some(Vec::new())).await?;
        }
        let view = self.batch_view(name, false).await?;
        let left = view.map_or(0, |view| view.counts.total - view.counts.ended());
        Ok(CancelCounts { ended: 0, flagged: left })
    }

    /// Whether it was dead and is now dropped.
    pub(super) async fn drop_job(&self, id: JobId) -> Result<bool> {
        let found = self.find(id).await?;
        if found.done.is_some() {
            return Ok(false);
        }
        let dropped = self.rewrite(keys::other(id, found.epoch), |stone| match &stone.what {
            What::Ended { head, record, fate: Fate::Stands } if record.end == End::Dead => {
                let (head, record) = (head.clone(), record.clone());
                Some(Stone { what: What::Ended { head, record, fate: Fate::Dropped }, ..stone.clone() })
            }
            What::Ended { .. } | What::Stopped | What::Spared { .. } | What::Forgotten { .. } => None,
        });
        let Some(stone) = dropped.await? else { return Ok(false) };
        self.undead(Some(&stone)).await?;
        self.store.delete(&[keys::kept(id)]).await?;
        Ok(true)
    }

    /// Takes jobs that wait in just this epoch out of their batches. Which batch is not known here: every batch that
    /// counts one of them leaves it out.
    pub(super) async fn forget_jobs(&self, jobs: &[(JobId, u32)]) -> Result<u64> {
        let found = all(jobs.iter().map(|(id, _)| self.find(*id)).collect()).await?;
        let waits = |(found, (id, epoch)): (&Found, &(JobId, u32))| {
            (found.epoch == *epoch && found.state().is_none()).then_some(*id)
        };
        let ids: Vec<JobId> = found.iter().zip(jobs).filter_map(waits).collect();
        self.note_gone(&ids).await?;
        Ok(ids.len() as u64)
    }
}

impl Stone {
    /// The head under which its job waits again.
    fn raised_head(&self) -> Option<Head> {
        match &self.what {
            What::Ended { head, fate: Fate::Raised { at, .. }, .. } => Some(raised(head, *at)),
            What::Ended { .. } | What::Stopped | What::Spared { .. } | What::Forgotten { .. } => None,
        }
    }
}

impl Found {
    /// What an id stands for, and whether that is the same.
    pub(super) fn known(&self, fingerprint: crate::job::Fingerprint) -> Known {
        let stones = [self.done.as_ref(), self.current.as_ref(), self.before.as_ref()];
        let Some(theirs) = stones.into_iter().flatten().find_map(Stone::fingerprint) else { return Known::New };
        let state = self.state().unwrap_or(State::Queued);
        if theirs == fingerprint { Known::Same(state) } else { Known::Conflict(state) }
    }
}
