//! The model: what should be true of each job and its messages, and nothing about how.

use std::collections::{BTreeMap, BTreeSet};

use promptq_common::broker::{Beat, Cancel, Claim, LeaseId, Settled};
use promptq_common::job::JobId;
use promptq_common::ledger::Counts;
use promptq_common::record::End;
use promptq_common::time::Timestamp;

use super::How;

/// All jobs, and what was asked of batches and the queue.
#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) jobs: BTreeMap<JobId, Model>,
    pub(super) cancelled: BTreeSet<u8>,
    /// Counts steps, for what was before what.
    pub(super) now: u32,
    pub(super) purged: u32,
}

/// One job.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own; any of them may hold with any other")]
pub(super) struct Model {
    /// Whether the ledger has heard of it.
    pub(super) known: bool,
    pub(super) batch: Option<u8>,
    pub(super) place: Place,
    pub(super) epoch: u32,
    pub(super) attempts: u32,
    pub(super) deaths: u32,
    since: u32,
    pub(super) unconfirmed: bool,
    pub(super) raised: bool,
    spared: bool,
    stop_when_met: bool,
    announced: bool,
    pub(super) payload: bool,
    unrun: bool,
    /// Attempts the current record adds up, and the epoch it is of.
    recorded: Option<(u32, u32)>,
    /// Attempts of records that no longer count.
    spent: u32,
    /// Who wrote the success.
    pub(super) winner: Option<LeaseId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Away,
    Running { lease: LeaseId, worker: usize, lapsed: bool, stop: bool },
    Ended(End),
}

/// A message or a claim on one, as whoever has it knows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token {
    pub(super) job: JobId,
    pub(super) lease: LeaseId,
    pub(super) epoch: u32,
    pub(super) attempts: u32,
}

/// What a redrive comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Raise {
    Publish(u32),
    Restored,
    Waiting,
    Succeeded,
    Gone,
    Unknown,
}

impl Model {
    pub(super) fn new(batch: Option<u8>, known: bool, now: u32) -> Self {
        let (epoch, attempts, deaths) = (0, 0, 0);
        let (raised, spared, stop_when_met, announced, payload, unrun) = (false, false, false, false, false, false);
        let (place, unconfirmed, since, recorded, spent, winner) = (Place::Away, known, now, None, 0, None);
        Self {
            known,
            batch,
            place,
            epoch,
            attempts,
            deaths,
            since,
            unconfirmed,
            raised,
            spared,
            stop_when_met,
            announced,
            payload,
            unrun,
            recorded,
            spent,
            winner,
        }
    }

    fn end(&mut self, end: End, (epoch, attempts): (u32, u32), by_worker: bool) {
        if let Some((old, of)) = self.recorded.replace((attempts, epoch))
            && of != epoch
        {
            self.spent += old;
        }
        self.attempts = attempts;
        (self.place, self.announced, self.unrun) = (Place::Ended(end), false, !by_worker);
        self.payload = end != End::Succeeded && (self.payload || by_worker);
    }

    fn stop_unrun(&mut self) -> Claim {
        self.end(End::Cancelled, (self.epoch, self.attempts), false);
        Claim::Ended(End::Cancelled.into())
    }

    fn wait(&mut self, now: u32) {
        (self.place, self.since) = (Place::Away, now);
    }

    fn lose_worker(&mut self, now: u32) {
        let stop = matches!(self.place, Place::Running { stop: true, .. });
        self.deaths += 1;
        self.wait(now);
        if stop {
            self.stop_unrun();
        }
    }

    fn forget_record(&mut self) {
        self.spent += self.recorded.take().map_or(0, |(units, _)| units);
    }
}

impl World {
    /// What an opened message is told, and whether its end is to be announced and its payload kept.
    pub(super) fn open(&mut self, token: &Token, worker: usize, brief: bool) -> (Claim, bool, bool) {
        let claim = self.claim(token, worker, brief);
        let job = &self.jobs[&token.job];
        let announce = matches!(job.place, Place::Ended(_)) && !job.announced;
        let keep = matches!(claim, Claim::Ended(_)) && job.unrun && !job.payload;
        (claim, announce, keep)
    }

    fn claim(&mut self, token: &Token, worker: usize, brief: bool) -> Claim {
        let (now, purged) = (self.now, self.purged);
        let job = self.jobs.get_mut(&token.job).expect("published");
        if !std::mem::replace(&mut job.known, true) && job.stop_when_met {
            return job.stop_unrun();
        }
        match job.place {
            Place::Ended(End::Succeeded) => return Claim::Ended(End::Succeeded.into()),
            Place::Ended(end) if job.epoch == token.epoch => return Claim::Ended(end.into()),
            _ if (job.epoch, job.attempts) > (token.epoch, token.attempts) => return Claim::Stale,
            Place::Running { lapsed: true, .. } => job.lose_worker(now),
            Place::Running { .. } => return Claim::Taken { until: Timestamp::from_millis(0) },
            Place::Away | Place::Ended(_) => {}
        }
        if let Place::Ended(end) = job.place {
            return Claim::Ended(end.into());
        }
        job.attempts = job.attempts.max(token.attempts);
        let doomed = job.epoch == 0 && !job.spared && job.batch.is_some_and(|batch| self.cancelled.contains(&batch));
        if doomed || job.since < purged {
            return job.stop_unrun();
        }
        job.place = Place::Running { lease: token.lease, worker, lapsed: brief, stop: false };
        (job.unconfirmed, job.raised) = (false, false);
        Claim::Fresh { deaths: job.deaths }
    }

    pub(super) fn beat(&self, token: &Token) -> Beat {
        match self.jobs[&token.job].place {
            Place::Running { lease, stop, .. } if lease == token.lease && stop => Beat::Cancelled,
            Place::Running { lease, .. } if lease == token.lease => Beat::Kept,
            Place::Ended(_) => Beat::Ended,
            Place::Away | Place::Running { .. } => Beat::Lost,
        }
    }

    pub(super) fn settle(&mut self, token: &Token, how: How) -> Settled {
        let now = self.now;
        let job = self.jobs.get_mut(&token.job).expect("claimed");
        let tried = (token.epoch, token.attempts + 1);
        let stop = match job.place {
            Place::Running { lease, stop, .. } if lease == token.lease => stop,
            Place::Away | Place::Running { .. } | Place::Ended(_) => {
                if how != How::Succeeded || job.winner.is_some() {
                    return Settled::Stale;
                }
                job.end(End::Succeeded, tried, true);
                job.winner = Some(token.lease);
                return Settled::Kept;
            }
        };
        match how {
            How::Succeeded => {
                job.end(End::Succeeded, tried, true);
                job.winner = Some(token.lease);
            }
            How::Dead => job.end(End::Dead, tried, true),
            How::Cancelled => job.end(End::Cancelled, (token.epoch, token.attempts), true),
            How::Retry => {
                job.attempts = tried.1;
                job.wait(now);
            }
            How::Release => job.wait(now),
        }
        if stop && job.place == Place::Away {
            job.stop_unrun();
        }
        Settled::Applied
    }

    pub(super) fn keep(&mut self, token: &Token) -> bool {
        let job = self.jobs.get_mut(&token.job).expect("published");
        let ended = matches!(job.place, Place::Ended(_));
        job.payload |= ended && job.unrun;
        !job.known || ended || job.epoch > token.epoch
    }

    /// Whether there is a record to announce.
    pub(super) fn announce(&mut self, id: JobId) -> bool {
        let job = self.jobs.get_mut(&id).expect("published");
        job.announced = matches!(job.place, Place::Ended(_));
        job.announced
    }

    pub(super) fn cancel(&mut self, id: JobId) -> Cancel {
        let job = self.jobs.get_mut(&id).expect("published");
        match &mut job.place {
            _ if !job.known => {
                job.stop_when_met = true;
                Cancel::Flagged
            }
            Place::Ended(end) => Cancel::Already((*end).into()),
            Place::Running { stop, .. } => {
                *stop = true;
                Cancel::Flagged
            }
            Place::Away => {
                job.stop_unrun();
                Cancel::Ended
            }
        }
    }

    pub(super) fn purge(&mut self) -> u64 {
        self.purged = self.now;
        let waits = |job: &&mut Model| job.known && job.place == Place::Away;
        self.jobs.values_mut().filter(waits).map(Model::stop_unrun).count() as u64
    }

    pub(super) fn raise(&mut self, id: JobId) -> Raise {
        let now = self.now;
        let job = self.jobs.get_mut(&id).expect("published");
        match job.place {
            _ if !job.known => return Raise::Unknown,
            Place::Ended(End::Succeeded) => return Raise::Succeeded,
            Place::Away if job.raised => return Raise::Publish(job.epoch),
            Place::Away | Place::Running { .. } => return Raise::Waiting,
            Place::Ended(_) if !job.payload && !job.unrun => return Raise::Gone,
            Place::Ended(_) => {}
        }
        job.wait(now);
        if !job.payload {
            (job.spared, job.recorded) = (true, None);
            return Raise::Restored;
        }
        job.forget_record();
        (job.epoch, job.attempts, job.deaths, job.raised) = (job.epoch + 1, 0, 0, true);
        Raise::Publish(job.epoch)
    }

    pub(super) fn drop_dead(&mut self, id: JobId) -> u64 {
        let job = self.jobs.get_mut(&id).expect("published");
        let dead = job.place == Place::Ended(End::Dead) && job.payload;
        job.payload &= !dead;
        u64::from(dead)
    }

    pub(super) fn recover(&mut self, worker: usize) -> u64 {
        let now = self.now;
        let of = |job: &&mut Model| matches!(job.place, Place::Running { worker: by, .. } if by == worker);
        self.jobs.values_mut().filter(of).map(|job| job.lose_worker(now)).count() as u64
    }

    pub(super) fn reclaim(&mut self) {
        let now = self.now;
        for job in self.jobs.values_mut().filter(|job| matches!(job.place, Place::Running { lapsed: true, .. })) {
            job.lose_worker(now);
        }
    }

    /// A batch's jobs by state, all waiting ones as queued, and the attempts it paid for.
    pub(super) fn count(&self, batch: u8) -> (Counts, u64) {
        let (mut counts, mut units) = (Counts::default(), 0);
        for job in self.jobs.values().filter(|job| job.batch == Some(batch)) {
            counts.total += 1;
            units += u64::from(job.spent + job.recorded.map_or(0, |(units, _)| units));
            *match job.place {
                Place::Away => &mut counts.queued,
                Place::Running { .. } => &mut counts.running,
                Place::Ended(End::Succeeded) => &mut counts.succeeded,
                Place::Ended(End::Dead) => &mut counts.dead,
                Place::Ended(End::Cancelled) => &mut counts.cancelled,
                Place::Ended(End::Expired) => &mut counts.expired,
            } += 1;
        }
        (counts, units)
    }
}
