//! The model: what should be true of each job, and nothing about how. It knows no time; waits are long or none.

use std::collections::{BTreeMap, BTreeSet};

use promptq_common::broker::{Beat, Cancel, LeaseId, Redriven, Settled};
use promptq_common::job::JobId;
use promptq_common::ledger::Counts;
use promptq_common::record::End;

use super::ops::How;

/// Every job by id, and which batches a user cancelled.
#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) jobs: BTreeMap<JobId, Model>,
    pub(super) cancelled: BTreeSet<u8>,
}

/// One job.
#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) batch: u8,
    pub(super) body: u8,
    pub(super) place: Place,
    pub(super) epoch: u32,
    pub(super) attempts: u32,
    pub(super) deaths: u32,
    pub(super) dropped: bool,
    /// Attempts the current record adds up, and the epoch it is of.
    pub(super) recorded: Option<(u32, u32)>,
    /// Attempts of records that no longer count.
    pub(super) spent: u32,
    /// Who wrote the success.
    pub(super) winner: Option<LeaseId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Ready,
    Waiting { hold: Option<u8> },
    Running { lease: LeaseId, worker: usize, lapsed: bool, stop: bool },
    Ended(End),
}

/// A lease as the worker that holds it knows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token {
    pub(super) job: JobId,
    pub(super) lease: LeaseId,
    pub(super) epoch: u32,
    pub(super) attempts: u32,
}

impl Model {
    pub(super) fn new(batch: u8, body: u8, delayed: bool) -> Self {
        let place = if delayed { Place::Waiting { hold: None } } else { Place::Ready };
        let (epoch, attempts, deaths, dropped) = (0, 0, 0, false);
        Self { batch, body, place, epoch, attempts, deaths, dropped, recorded: None, spent: 0, winner: None }
    }

    pub(super) fn is_waiting(&self) -> bool {
        matches!(self.place, Place::Ready | Place::Waiting { .. })
    }

    fn end(&mut self, end: End, epoch: u32, attempts: u32, units: u32) {
        if let Some((old, of)) = self.recorded.replace((units, epoch))
            && of != epoch
        {
            self.spent += old;
        }
        self.attempts = attempts;
        self.place = Place::Ended(end);
        self.dropped = false;
    }

    fn cancel_now(&mut self) {
        self.end(End::Cancelled, self.epoch, self.attempts, self.attempts);
    }

    fn lose_worker(&mut self) {
        let stop = matches!(self.place, Place::Running { stop: true, .. });
        self.deaths += 1;
        if stop { self.cancel_now() } else { self.place = Place::Ready }
    }
}

impl World {
    /// A job enqueued to a cancelled batch ends when it would be leased.
    pub(super) fn is_doomed(&self, job: &Model) -> bool {
        job.is_waiting() && job.epoch == 0 && self.cancelled.contains(&job.batch)
    }

    pub(super) fn is_ready(&self, id: JobId) -> bool {
        let job = &self.jobs[&id];
        job.place == Place::Ready && !self.is_doomed(job)
    }

    /// Before anything is leased, what ran out comes back.
    pub(super) fn reclaim(&mut self) {
        for job in self.jobs.values_mut().filter(|job| matches!(job.place, Place::Running { lapsed: true, .. })) {
            job.lose_worker();
        }
    }

    pub(super) fn recover(&mut self, worker: usize) -> u64 {
        let of = |job: &&mut Model| matches!(job.place, Place::Running { worker: by, .. } if by == worker);
        self.jobs.values_mut().filter(of).map(Model::lose_worker).count() as u64
    }

    pub(super) fn beat(&self, token: &Token) -> Beat {
        match self.jobs[&token.job].place {
            Place::Running { lease, stop, .. } if lease == token.lease => {
                if stop {
                    Beat::Cancelled
                } else {
                    Beat::Kept
                }
            }
            Place::Ended(_) => Beat::Ended,
            Place::Ready | Place::Waiting { .. } | Place::Running { .. } => Beat::Lost,
        }
    }

    pub(super) fn settle(&mut self, token: &Token, how: How) -> Settled {
        let job = self.jobs.get_mut(&token.job).expect("leased jobs are known");
        let stop = match job.place {
            Place::Running { lease, stop, .. } if lease == token.lease => stop,
            Place::Ready | Place::Waiting { .. } | Place::Running { .. } | Place::Ended(_) => {
                if how != How::Succeeded || job.winner.is_some() {
                    return Settled::Stale;
                }
                job.end(End::Succeeded, token.epoch, token.attempts + 1, token.attempts + 1);
                job.winner = Some(token.lease);
                return Settled::Kept;
            }
        };
        let tried = token.attempts + 1;
        match how {
            How::Succeeded => {
                job.end(End::Succeeded, token.epoch, tried, tried);
                job.winner = Some(token.lease);
            }
            How::Dead => job.end(End::Dead, token.epoch, tried, tried),
            How::Cancelled => job.end(End::Cancelled, token.epoch, token.attempts, token.attempts),
            How::RetryNow | How::RetryLater => {
                job.attempts = tried;
                job.place = if how == How::RetryNow { Place::Ready } else { Place::Waiting { hold: None } };
            }
            How::ReleaseNow => job.place = Place::Ready,
            How::Hold(key) => job.place = Place::Waiting { hold: Some(key) },
        }
        if stop && job.is_waiting() {
            job.cancel_now();
        }
        Settled::Applied
    }

    pub(super) fn cancel(&mut self, id: JobId) -> Cancel {
        let job = self.jobs.get_mut(&id).expect("known");
        match &mut job.place {
            Place::Ended(end) => Cancel::Already((*end).into()),
            Place::Running { stop, .. } => {
                *stop = true;
                Cancel::Flagged
            }
            Place::Ready | Place::Waiting { .. } => {
                job.cancel_now();
                Cancel::Ended
            }
        }
    }

    pub(super) fn redrive(&mut self, id: JobId) -> Redriven {
        let job = self.jobs.get_mut(&id).expect("known");
        match job.place {
            Place::Ready | Place::Waiting { .. } | Place::Running { .. } => return Redriven::Waiting,
            Place::Ended(End::Succeeded) => return Redriven::Succeeded,
            Place::Ended(_) if job.dropped => return Redriven::Gone,
            Place::Ended(_) => {}
        }
        job.spent += job.recorded.take().map_or(0, |(units, _)| units);
        (job.epoch, job.attempts, job.deaths, job.place) = (job.epoch + 1, 0, 0, Place::Ready);
        Redriven::Queued { epoch: job.epoch }
    }

    /// A batch's jobs by state, all waiting ones as queued, and the attempts it paid for.
    pub(super) fn count(&self, batch: u8) -> (Counts, u64) {
        let (mut counts, mut units) = (Counts::default(), 0);
        for job in self.jobs.values().filter(|job| job.batch == batch) {
            counts.total += 1;
            units += u64::from(job.spent + job.recorded.map_or(0, |(units, _)| units));
            *match job.place {
                Place::Ready | Place::Waiting { .. } => &mut counts.queued,
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
