//! The write side of a ledger that serves a broker which is not its own: who may run a job that came as a message, what
//! became of it, and what people asked for meanwhile. Only such a broker's backend calls it; everybody else reads.

use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;

use super::{Ledger, LedgerId};
use crate::broker::{
    Beat, Cancel, CancelCounts, Claim, Envelope, Head, LeaseId, QueueView, Retention, Settled, Swept, Verdict, WorkerId,
};
use crate::error::Result;
use crate::job::{BatchName, JobId, Queue};
use crate::record::{End, Record, State};
use crate::time::Timestamp;

/// A ledger for a broker that only carries messages. A job *waits* here while its message waits there: it counts as
/// queued, and nothing here gives it out. The right to run it is a *claim*, which is a lease of the ledger's own.
///
/// Calls for one delivery (`open`, `beat`, `settle`, `keep`) take one job and are gathered inside, as those
/// of a [`crate::broker::Hold`] are. The others take at most [`crate::broker::MAX_BATCH`] jobs, and answer in order.
/// Every call may be repeated after an `Err`; a call dropped before it returned may still have been carried out.
#[async_trait]
pub trait Claims: Ledger {
    /// Which ledger this is: made when somebody first asks, the same for everybody from then on, whatever address it is
    /// reached by. Cheap to repeat.
    ///
    /// # Errors
    /// As any other call; `Corrupt` for an identity that somebody else wrote over.
    async fn identity(&self) -> Result<LedgerId>;

    /// Enters jobs before their messages are published: those with a derived id, and all of a batch. What is in here
    /// already stays as it is.
    async fn register(&self, jobs: &[&Head]) -> Result<Vec<Registered>>;

    /// Says that the messages of registered jobs are durable. From then on registering them again is `Known`.
    async fn confirm(&self, jobs: &[&Head]) -> Result<()>;

    /// Asks whether the message with this head may be run under a new lease, and claims it if so. A job that was never
    /// seen is entered. A claim that ran out without an end is a death. The deadline, a cancel, a batch cancelled and a
    /// purge are met here: such a job ends now, and is told as `Ended`.
    ///
    /// Only `Fresh` and `Cancelled` hold a claim. Asked again with the same lease, it is the same claim.
    async fn open(&self, job: &Head, asked: &Asked<'_>) -> Result<Opened>;

    /// Asks about many messages as [`Claims::open`] does, each job once; one answer each, in order.
    async fn open_all(&self, messages: &[(&Head, Asked<'_>)]) -> Vec<Result<Opened>> {
        join_all(messages.iter().map(|(job, asked)| self.open(job, asked))).await
    }

    /// Extends a claim to `length` from now. Anything but `Kept` is final.
    async fn beat(&self, job: &Head, lease: LeaseId, length: Duration) -> Result<Beat>;

    /// Ends a claim: record, counts, sums and the end of the claim in one step. `job` is the head that was opened. A
    /// retry's copy was published before, a release's is published afterwards. `payload` is kept for a redrive if the
    /// verdict is an end other than a success. A claim that is no longer the job's changes nothing, save that a success is kept.
    async fn settle(&self, job: &Head, lease: LeaseId, verdict: &Verdict, payload: Option<&[u8]>) -> Result<Settled>;

    /// Says that these ends have been announced, however many. While one is its job's, later copies of the message need
    /// not do so.
    async fn announced(&self, ends: &[Announced]) -> Result<()>;

    /// Whether [`Claims::announced`] does something for the ledger itself, which therefore has to hear of every end. The
    /// others need not be told of an end that no other copy of its message will ask about.
    fn hears_of_all_announced(&self) -> bool {
        false
    }

    /// Hands over the payload of a message that was told [`Opened::keep`], before it is acknowledged. False: the job has
    /// been put back in line meanwhile and needs this message: open it again.
    async fn keep(&self, job: &Head, payload: &[u8]) -> Result<bool>;

    /// First step of a redrive: ended jobs are to wait again, the old end leaves the counts. See [`Raised`].
    async fn raise(&self, ids: &[JobId]) -> Result<Vec<Raised>>;

    /// Second step: these messages, as [`Raised::Publish`] gave them, are durable. Opening one of them says so too.
    async fn published(&self, jobs: &[&Head]) -> Result<()>;

    /// Cancels jobs: one that waits ends now and its message meets that; one with a claim is flagged. An id that was
    /// never seen is noted in each of `queues`, where its message would be, and told as `Flagged`: should it surface
    /// within 37 days, it ends.
    async fn cancel(&self, ids: &[JobId], queues: &[Queue]) -> Result<Vec<Cancel>>;

    /// Cancels what is left of a batch: flagged first, then its waiting jobs end, and running ones are flagged.
    async fn cancel_batch(&self, batch: &BatchName) -> Result<CancelCounts>;

    /// Pauses (`Some(reason)`) or resumes a queue: its messages are told `Paused` when they are opened.
    async fn pause(&self, queue: &Queue, reason: Option<&str>) -> Result<()>;

    /// Cancels what waits as of now: known jobs at once (how many is the answer), the others when their message is
    /// opened, if it was created before. What has a claim goes on, and may be retried. Repeatable.
    async fn purge(&self, queue: &Queue) -> Result<u64>;

    /// As [`crate::broker::Backend::drop_dead`].
    async fn drop_dead(&self, ids: &[JobId]) -> Result<u64>;

    /// Removes jobs that wait in just this epoch, as [`crate::broker::Backend::forget`] does.
    async fn forget(&self, jobs: &[(JobId, u32)]) -> Result<u64>;

    /// Ends every claim of `worker`, as if it had died: a death each.
    async fn recover(&self, worker: &WorkerId) -> Result<u64>;

    /// Bounded upkeep: claims that ran out, deadlines that passed, retention. Call until `more` is false.
    async fn sweep(&self, retention: &Retention) -> Result<Swept>;

    /// The ledger's clock, by which claims run out and deadlines pass.
    async fn now(&self) -> Result<Timestamp>;

    /// Notes that a queue is used, so that [`Claims::standings`] lists it while nothing of it is known. Repeat it while
    /// that is so: a ledger may forget a queue that has been empty for a while. Cheap to repeat.
    async fn touch(&self, queue: &Queue) -> Result<()>;

    /// A queue's pause, and how many of its jobs run and are dead. What waits is the broker's to count.
    async fn standing(&self, queue: &Queue) -> Result<QueueView>;

    /// Why a queue is paused, if it is: all of [`Claims::standing`] that a worker asks for, again and again.
    async fn paused(&self, queue: &Queue) -> Result<Option<String>> {
        Ok(self.standing(queue).await?.paused)
    }

    /// Whether of several copies of a message one runs at a time, so that another one does no harm.
    fn keeps_copies_apart(&self) -> bool {
        true
    }

    /// Every queue this ledger knows, as [`Claims::standing`] shows it, by name.
    async fn standings(&self) -> Result<Vec<QueueView>>;
}

/// Who asks to run a message, and what its broker says of it.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The new claim's token.
    pub lease: LeaseId,
    /// Who would run it.
    pub worker: &'a WorkerId,
    /// How long the claim lasts without a beat.
    pub length: Duration,
    /// Whether the broker may have delivered this message before, which is how a ledger without claims knows of deaths.
    pub redelivered: bool,
}

/// An end that has been announced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    /// Whose.
    pub id: JobId,
    /// The job's queue.
    pub queue: Queue,
    /// The epoch it ended in.
    pub epoch: u32,
    /// How.
    pub end: End,
}

impl Announced {
    /// The end that a record tells of.
    #[must_use]
    pub fn of(record: &Record) -> Self {
        Self { id: record.id, queue: record.queue.clone(), epoch: record.epoch, end: record.end }
    }
}

/// The answer to one registered job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Registered {
    /// Entered now: publish it, then confirm.
    New,
    /// Entered before and never confirmed: publish it again, marked as a possible duplicate, then confirm.
    Again,
    /// Durable, and in this state.
    Known(State),
    /// Another job has this id.
    Conflict,
    /// Its batch belongs to another queue.
    OtherQueue(Queue),
}

/// The answer to one opened message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Whether it may run.
    pub claim: Claim,
    /// The job has ended and nobody has said [`Claims::announced`] of that, whether or not it was announced (a plain
    /// success is not told of): fetch its record, announce it, say so.
    pub announce: bool,
    /// The job has ended without its payload: hand it over by `keep` before this message is acknowledged.
    pub keep: bool,
}

/// The answer to the first step of a redrive.
#[derive(Clone, Debug, PartialEq)]
pub enum Raised {
    /// Publish this, under its new epoch, then say `published`. A repeat gives the same until that is said.
    Publish(Box<Envelope>),
    /// It ended while its message waited, and that has not surfaced since: the end is taken back, the message may run
    /// after all, under this epoch.
    Restored {
        /// The job's epoch, the same as before.
        epoch: u32,
    },
    /// Was waiting or running already; nothing changed.
    Waiting,
    /// Has succeeded.
    Succeeded,
    /// Its payload is gone.
    Gone,
    /// No such job.
    Unknown,
}
