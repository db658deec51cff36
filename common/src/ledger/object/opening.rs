//! Whether a message may run, and whether what runs may go on: read from a few objects in one round trip.

use std::time::Duration;

use tokio::time::Instant;

use super::keys::{self, Kind as Sort};
use super::settling::Commit;
use super::stone::{Fate, Stone, What, renewed};
use super::{ObjectLedger, is_old, lock};
use crate::broker::{Beat, Claim, Head, LeaseId};
use crate::error::Result;
use crate::job::{JobId, Queue};
use crate::ledger::{Asked, Opened};
use crate::record::{Cause, End, Record};
use crate::time::Timestamp;

/// The most starts of one job that are counted: it is dead long before.
const STARTS: usize = 1_000;

/// What runs under a claim of this process.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) id: JobId,
    pub(super) queue: Queue,
    until: Instant,
    looked: Instant,
    bell: Option<Vec<u8>>,
    spared: bool,
    /// What says that this message came again, and runs.
    pub(super) start: Option<String>,
}

/// What was asked of a queue and a batch.
struct Flagged {
    paused: Option<String>,
    purged: Option<Timestamp>,
    bell: Option<Vec<u8>>,
    cancelled: bool,
}

impl ObjectLedger {
    pub(super) async fn open_message(&self, job: &Head, asked: &Asked<'_>) -> Result<Opened> {
        let (done, other, flags, deaths, ()) = tokio::try_join!(
            self.stone_at(keys::success(job.id)),
            self.stone_at(keys::other(job.id, job.epoch)),
            self.flags_of(job, self.ages.flags),
            self.deaths(job, asked),
            self.note_queue(&job.lane.queue),
        )?;
        if let Some(done) = done {
            return self.met(job, &done).await;
        }
        let spared = match &other {
            None => None,
            Some(stone) if matches!(stone.what, What::Spared { .. }) => Some(stone.at),
            Some(stone) if stone.what == What::Stopped => {
                // Its worker asks a second time, as one does who heard nothing.
                if lock(&self.running).contains_key(&asked.lease) {
                    return Ok(Opened { claim: Claim::Cancelled, announce: false, keep: false });
                }
                return self.end_unrun(job, End::Cancelled, cancelled_by_user()).await;
            }
            Some(stone) => return self.met(job, stone).await,
        };
        let since = self.waits_since(job, spared, flags.purged).await?;
        let deadline = spared.map_or(job.deadline, |at| renewed(job, at));
        if flags.cancelled && job.epoch == 0 && spared.is_none() {
            return self.end_unrun(job, End::Cancelled, cancelled_by_user()).await;
        }
        if flags.purged.is_some_and(|purged| since < purged) {
            return self.end_unrun(job, End::Cancelled, cause("purged", "its queue was purged")).await;
        }
        if deadline <= self.clock.now() {
            let cause = cause("deadline_passed", "its deadline passed before it ran");
            return self.end_unrun(job, End::Expired, cause).await;
        }
        if let Some(reason) = flags.paused {
            return Ok(Opened { claim: Claim::Paused { reason }, announce: false, keep: false });
        }
        if asked.redelivered {
            // Only now: a message that does not run after all is no death.
            self.store.put(&keys::start(job.id, job.epoch, asked.lease), Vec::new()).await?;
        }
        self.runs(job, asked, (flags.bell, spared.is_some()));
        Ok(Opened { claim: Claim::Fresh { deaths }, announce: false, keep: false })
    }

    /// What a message hears whose job has ended. Nothing tells who has announced that, so that is done again.
    async fn met(&self, job: &Head, stone: &Stone) -> Result<Opened> {
        let Some(state) = stone.state() else {
            return Ok(Opened { claim: Claim::Stale, announce: false, keep: false });
        };
        let unrun = match &stone.what {
            What::Ended { record, fate: Fate::Stands, .. } => record.lease == LeaseId::NONE,
            What::Ended { .. } | What::Stopped | What::Spared { .. } | What::Forgotten { .. } => false,
        };
        let keep = unrun && self.store.modified(&keys::kept(job.id)).await?.is_none();
        Ok(Opened { claim: Claim::Ended(state), announce: stone.record().is_some(), keep })
    }

    async fn end_unrun(&self, job: &Head, end: End, cause: Cause) -> Result<Opened> {
        let now = self.clock.now();
        let record = Record::unrun(job, end, Some(cause), now);
        match self.commit(&keys::other(job.id, job.epoch), Stone::ended(job, &record, now)).await? {
            Commit::Ours(stone) => {
                self.mark(&stone).await?;
                self.met(job, &stone).await
            }
            Commit::Theirs(stone) => self.met(job, &stone).await,
        }
    }

    /// When the message began to wait, as well as it can be known; asked further only where a purge depends on it.
    async fn waits_since(&self, job: &Head, spared: Option<Timestamp>, purged: Option<Timestamp>) -> Result<Timestamp> {
        let retried = job.history.recent.last().map(|attempt| attempt.ended_at);
        let since = [Some(job.created_at), retried, spared].into_iter().flatten().max().unwrap_or(job.created_at);
        if job.epoch == 0 || purged.is_none_or(|purged| purged <= since) {
            return Ok(since);
        }
        let before = self.stone(&keys::other(job.id, job.epoch - 1)).await?;
        Ok(match before.map(|stone| stone.what) {
            Some(What::Ended { fate: Fate::Raised { at, .. }, .. }) => since.max(at),
            _ => since,
        })
    }

    /// How many runs of this epoch have begun and not ended. Only messages that came again are noted: so the first death
    /// is not seen, and one that was handed back unopened counts for nothing.
    async fn deaths(&self, job: &Head, asked: &Asked<'_>) -> Result<u32> {
        if !asked.redelivered {
            return Ok(0);
        }
        let listed = self.store.list(&keys::starts(job.id), None, STARTS).await?;
        let (ours, epoch) = (format!("{}.{}", job.epoch, asked.lease), format!("{}.", job.epoch));
        let others = listed.iter().filter(|start| start.name.starts_with(&epoch) && start.name != ours).count();
        Ok(u32::try_from(others).unwrap_or(u32::MAX))
    }

    fn runs(&self, job: &Head, asked: &Asked<'_>, (bell, spared): (Option<Vec<u8>>, bool)) {
        let now = Instant::now();
        let start = asked.redelivered.then(|| keys::start(job.id, job.epoch, asked.lease));
        let (id, queue) = (job.id, job.lane.queue.clone());
        let run = Running { id, queue, until: now + asked.length, looked: now, bell, spared, start };
        let mut running = lock(&self.running);
        running.retain(|_, run| run.until > now);
        running.insert(asked.lease, run);
    }

    /// Another copy is seen within a minute, what a person asked for within 10 s. A store that does not answer takes
    /// nothing away: there is no claim that anybody else could have been given.
    pub(super) async fn beat_claim(&self, job: &Head, lease: LeaseId, length: Duration) -> Result<Beat> {
        let known = lock(&self.running).get_mut(&lease).map(|run| {
            run.until = Instant::now() + length;
            (run.bell.clone(), run.looked, run.spared)
        });
        let Some((heard, looked, spared)) = known else {
            let found = self.find(job.id).await?;
            return Ok(if found.state().is_some() { Beat::Ended } else { Beat::Lost });
        };
        let Ok(flags) = self.flags_of(job, self.ages.beats).await else { return Ok(Beat::Kept) };
        if flags.cancelled && job.epoch == 0 && !spared {
            return Ok(Beat::Cancelled);
        }
        if flags.bell == heard && !is_old(Some(looked), self.ages.looks) {
            return Ok(Beat::Kept);
        }
        let (done, other) = (keys::success(job.id), keys::other(job.id, job.epoch));
        let Ok((done, other)) = tokio::try_join!(self.stone_at(done), self.stone_at(other)) else {
            return Ok(Beat::Kept);
        };
        if let Some(run) = lock(&self.running).get_mut(&lease) {
            (run.bell, run.looked) = (flags.bell, Instant::now());
        }
        Ok(match other.map(|stone| stone.what) {
            _ if done.is_some() => Beat::Ended,
            Some(What::Ended { .. } | What::Forgotten { .. }) => Beat::Ended,
            Some(What::Stopped) => Beat::Cancelled,
            Some(What::Spared { .. }) | None => Beat::Kept,
        })
    }

    async fn flags_of(&self, job: &Head, age: Duration) -> Result<Flagged> {
        let queue = &job.lane.queue;
        let cancelled = async {
            match &job.batch {
                Some(batch) => self.flags.get(keys::batch(batch, "cancelled"), age).await,
                None => Ok(None),
            }
        };
        let (paused, purged, bell, cancelled) = tokio::try_join!(
            self.flags.get(keys::queue(queue, "pause"), age),
            self.flags.get(keys::queue(queue, "purged"), age),
            self.flags.get(keys::queue(queue, "bell"), age),
            cancelled,
        )?;
        Ok(Flagged {
            paused: paused.as_deref().map(text),
            purged: purged.and_then(|at| text(&at).parse().ok()).map(Timestamp::from_millis),
            bell,
            cancelled: cancelled.is_some(),
        })
    }

    /// Notes once that there is such a queue.
    pub(super) async fn note_queue(&self, queue: &Queue) -> Result<()> {
        if lock(&self.known).queues.contains(queue) {
            return Ok(());
        }
        self.store.put(&keys::queue(queue, "here"), queue.as_str().into()).await?;
        lock(&self.known).queues.insert(queue.clone());
        Ok(())
    }

    /// As [`ObjectLedger::stone`], of a key that nobody else needs.
    pub(super) async fn stone_at(&self, key: String) -> Result<Option<Stone>> {
        self.stone(&key).await
    }

    /// Writes the mark of a job that waits again.
    pub(super) async fn mark_waiting(&self, head: &Head, epoch: u32, (at, sort): (Timestamp, Sort)) -> Result<()> {
        let folder = keys::marks(&head.lane.queue, head.batch.as_ref());
        self.tallies.forget(&folder);
        let name = keys::Mark::waits(head.id, epoch, at, sort).name();
        self.store.put(&format!("{folder}/{name}"), Vec::new()).await
    }
}

pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn cancelled_by_user() -> Cause {
    cause("cancelled_by_user", "cancelled by a user")
}

fn cause(code: &str, detail: &str) -> Cause {
    Cause { class: None, code: code.to_owned(), detail: detail.to_owned(), status_code: None }
}
