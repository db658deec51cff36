//! The contract every broker backend keeps: bytes in, bytes out; it never sees a `Job`.
//! Cut by lifetime: `Backend` lives as long as the process, `Source` as a worker's subscription, `Hold` as a delivery.
//! What each step must survive stands in ARCHITECTURE.md, in the seam walk.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use super::answer::{
    Beat, Cancel, CancelCounts, Claim, Declared, Depth, Enqueued, Leased, QueueView, Redriven, Refusal, Remark,
    Settled, Swept,
};
pub(super) use super::hold::HoldKey;
use crate::error::{Error, Kind, Result};
use crate::job::{BatchName, Fingerprint, JobId, Lane, ModelName, Priority, Queue};
use crate::ledger::Page;
use crate::outcome::{Attempt, History};
use crate::record::Record;
use crate::time::Timestamp;

/// A broker, as long as the process.
#[async_trait]
pub trait Backend: fmt::Debug + Send + Sync + 'static {
    /// What kind of broker it is, as metrics say it: `sqlite`, `redis`, `rabbitmq` or `memory`.
    fn name(&self) -> &'static str;

    /// Puts jobs in, at most [`MAX_BATCH`] at a time. One answer each, in order; `New` and `Known` mean durable.
    /// `Err`: unknown for all of them; repeating the call with the same ids is safe. A job that comes from another broker
    /// brings its epoch, attempts and history in its head, and keeps them.
    async fn enqueue(&self, batch: Vec<Envelope>) -> Result<Vec<Enqueued>>;

    /// As [`Backend::enqueue`], and publishes the messages of what is known and has not ended once more: somebody may have
    /// purged them at a broker that does not keep them with what is known, or a ledger that came from a backup says that
    /// jobs wait or run which ended since. `Unsupported` where none can be missing.
    async fn republish(&self, _batch: Vec<Envelope>) -> Result<Vec<Enqueued>> {
        let why = "this broker keeps its jobs together with what is known of them: none that is known is missing";
        Err(Error::new(Kind::Unsupported, "publish jobs again", why))
    }

    /// Opens a worker's one subscription. Queues need not exist; a queue named twice is an error of kind `Config`.
    async fn subscribe(&self, terms: Terms) -> Result<Box<dyn Source>>;

    /// How many jobs the queue holds, by state. An unreachable broker is `Err`, never zeros.
    async fn depth(&self, queue: &Queue) -> Result<Depth>;

    /// Every queue that holds jobs, is paused, or has been used within retention, by name.
    async fn queues(&self) -> Result<Vec<QueueView>>;

    /// The queue as it is now, if it is one of [`Backend::queues`], or was made for jobs that have not come yet.
    async fn queue(&self, queue: &Queue) -> Result<Option<QueueView>> {
        Ok(self.queues().await?.into_iter().find(|view| view.queue == *queue))
    }

    /// These queues, each as [`Backend::queue`] has it; what belongs to all of them is read once.
    async fn several(&self, queues: &[Queue]) -> Result<Vec<Option<QueueView>>> {
        let asked: Vec<_> = queues.iter().map(|queue| self.queue(queue)).collect();
        stream::iter(asked).buffered(ASKED_AT_ONCE).try_collect().await
    }

    /// Why a queue is paused, if it is.
    async fn paused(&self, queue: &Queue) -> Result<Option<String>> {
        Ok(self.queue(queue).await?.and_then(|view| view.paused))
    }

    /// Pauses (`Some(reason)`) or resumes (`None`) a queue: a paused one hands out no leases; running jobs go on.
    /// Idempotent; effective for every worker within 5 s.
    async fn pause(&self, queue: &Queue, reason: Option<&str>) -> Result<()>;

    /// Cancels every waiting job of the queue as of now; running jobs go on. Says how many it ended. Repeatable.
    async fn purge(&self, queue: &Queue) -> Result<u64>;

    /// Cancels jobs, at most [`MAX_BATCH`] at a time. One answer each, in order. Repeatable.
    async fn cancel(&self, ids: &[JobId]) -> Result<Vec<Cancel>>;

    /// Cancels what is left of a batch: waiting jobs now, running ones by flag, jobs enqueued to it later at their lease.
    async fn cancel_batch(&self, batch: &BatchName) -> Result<CancelCounts>;

    /// Puts dead, cancelled or expired jobs back in their queue under the next epoch, attempts and deaths at zero.
    /// At most [`MAX_BATCH`]; one answer each, in order. A job already back in line answers `Waiting`.
    async fn redrive(&self, ids: &[JobId]) -> Result<Vec<Redriven>>;

    /// Forgets dead jobs: they leave the dead set and can no longer be redriven; their records stay until retention.
    async fn drop_dead(&self, ids: &[JobId]) -> Result<u64>;

    /// Ends the waiting of every job released under `key`, in one step. Says how many.
    async fn wake(&self, key: &HoldKey) -> Result<u64>;

    /// Gives back at once every lease of `worker`, as if it had died: its jobs wait again with one death more.
    /// For a successor that knows its predecessor is gone.
    async fn recover(&self, worker: &WorkerId) -> Result<u64>;

    /// Jobs of the queue that wait here (ready, delayed or held), whole and as they stand, for putting them in elsewhere:
    /// the stored payload, and a head with today's epoch, attempts and history, and with the due time of a delayed job
    /// as its `not_before`. Holds and deaths stay behind. Left out are jobs that only have to be ended yet: past their
    /// deadline, or of epoch 0 in a cancelled batch.
    ///
    /// A page begins after the place `after`, which an earlier page gave as its `next` (`None`: at the start), and holds
    /// at most `limit` jobs (1 to [`MAX_BATCH`]) and [`PAGE_BYTES`] of payloads, or one job that is larger. It may be
    /// short, or even empty, and have a `next`. Looking leases nothing and changes nothing, save that
    /// what foreign clients left for the queue becomes jobs of it first. A job that waits from the
    /// first page to the last is in at least one of them, whatever is enqueued, leased, released or forgotten meanwhile;
    /// one that comes to wait during the walk may be missed, and one may come twice. Jobs of a lane come about in the
    /// order in which they would be leased. An `after` that is no place of this backend's is an error of kind `Config`.
    async fn waiting(&self, queue: &Queue, after: Option<&str>, limit: usize) -> Result<Page<Envelope>>;

    /// Removes jobs that wait in just this epoch, at most [`MAX_BATCH`], as though they had never been put in here: no
    /// record, no mark of a used id, nothing to redrive; queue, lane and batch count one job less each (a batch stays,
    /// with its seal). Says how many it removed. Jobs that run, have ended, or wait in another epoch stay as they are,
    /// so repeating is harmless. A backend may forget only what [`Backend::waiting`] gave on this connection last, and
    /// pass over the others: RabbitMQ has no hold of any other message, which would run yet. All of them or none where
    /// the backend can; after an `Err` any part may be gone. Durable as an enqueue is. A lease that ran out before is
    /// of no job any more: its claim and its settle say `Stale`.
    async fn forget(&self, jobs: &[(JobId, u32)]) -> Result<u64>;

    /// Bounded upkeep: expires waiting jobs whose deadline passed, applies retention. Call until `more` is false.
    async fn sweep(&self, retention: &Retention) -> Result<Swept>;

    /// Makes what the queue needs at a broker where that is not made by the way, with lanes of their own for `models`.
    /// With `prune`, lanes of other models are given up, empty ones at once. Idempotent; `None` where nothing is to make.
    async fn declare(&self, _queue: &Queue, _models: &[ModelName], _prune: bool) -> Result<Option<Declared>> {
        Ok(None)
    }

    /// Gives up what the broker holds for a queue of whose jobs none is left to run and whose results were read, where
    /// that does not go by itself. Says what stays, because somebody uses it yet. Who uses the queue again makes it again.
    async fn retire(&self, _queue: &Queue) -> Result<Vec<Remark>> {
        Ok(Vec::new())
    }
}

/// A worker's subscription.
#[async_trait]
pub trait Source: Send + fmt::Debug {
    /// Waits for jobs and leases them: never more than `want.total`, never more from a lane than its cap, and up to
    /// `want.rest` from each lane not named. Bands of a queue are served 8 : 3 : 1, queues by their weight.
    /// An answer stops before its payloads come to more than [`LEASE_BYTES`], yet holds one job at least; what it left
    /// behind waits for the next call, not leased.
    /// Returns when it leased something, or with nothing after at most a second, so that `lanes_seen` stays fresh.
    /// Jobs whose lease has run out are given to the caller again like any other, with one death more. Jobs past their
    /// deadline are ended instead, by the backend's clock: a worker's may be wrong and is asked nowhere.
    ///
    /// Cancel-safe: what was being leased when the future is dropped is kept for the next call.
    async fn next(&mut self, want: &Want) -> Result<Leased>;

    /// Ends the subscription and releases what it leased but never handed out, spending nothing.
    async fn close(self: Box<Self>) -> Result<()>;
}

/// The right to run one job, as long as it is kept. Dropping it lets the lease run out.
#[async_trait]
pub trait Hold: Send + Sync + fmt::Debug {
    /// The ledger's word that this lease may run this job now. Asked once, after decoding and before any cost.
    async fn claim(&self) -> Result<Claim>;

    /// Extends the lease by its full length. Anything but `Kept` is final.
    async fn beat(&self) -> Result<Beat>;

    /// Ends the lease. May be repeated after an `Err` with the same verdict; once `Ok`, what it says is durable and
    /// repeating changes nothing. A lease that is no longer this one's changes no state, save that a success is kept.
    async fn settle(&self, verdict: &Verdict) -> Result<Settled>;
}

/// The most bytes of payloads in one answer of [`Source::next`], and the size of the largest job: 1,000 of those would
/// be 16 GiB.
pub const LEASE_BYTES: usize = crate::codec::MAX_BYTES;

/// Queues that are asked about at once.
pub(super) const ASKED_AT_ONCE: usize = 16;

/// The most jobs or ids in one call.
pub const MAX_BATCH: usize = 1_000;

/// The most bytes of payloads in one page of [`Backend::waiting`], unless one job alone is larger: as much as a
/// submission sends at once.
pub const PAGE_BYTES: usize = 1 << 20;

/// A job on its way: what backends read, and the payload they only carry.
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope {
    /// What backends read.
    pub head: Head,
    /// The encoded job.
    pub payload: Vec<u8>,
}

/// What a backend knows of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// The job.
    pub id: JobId,
    /// Where it waits.
    pub lane: Lane,
    /// Within the band only for show.
    pub priority: Priority,
    /// Its batch.
    pub batch: Option<BatchName>,
    /// Its 1-based row in the batch's input.
    pub row: Option<u64>,
    /// The submitter's name for it.
    pub custom_id: Option<String>,
    /// The submitter's label for budgets.
    pub tenant: Option<String>,
    /// The submitter's labels.
    pub tags: BTreeMap<String, String>,
    /// Whether the id was derived from a key.
    pub keyed: bool,
    /// Hash of what it asks for.
    pub fingerprint: Fingerprint,
    /// Not leased before this.
    pub not_before: Option<Timestamp>,
    /// Expired when it has not run by then.
    pub deadline: Timestamp,
    /// When it was submitted.
    pub created_at: Timestamp,
    /// 0, and one more with each redrive.
    pub epoch: u32,
    /// Attempts spent in this epoch.
    pub attempts: u32,
    /// What they came to.
    pub history: History,
}

/// What a worker subscribes with.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Who leases.
    pub worker: WorkerId,
    /// From where, and each queue's share (at least 1).
    pub queues: Vec<(Queue, u32)>,
    /// How long a lease lasts without a beat.
    pub lease: Duration,
}

/// How much a worker would take now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// In all.
    pub total: u32,
    /// From these lanes at most so many; 0 closes a lane.
    pub caps: Vec<(Lane, u32)>,
    /// From each lane not named above.
    pub rest: u32,
}

impl Want {
    /// Which of jobs from these lanes, in this order, are within it.
    pub fn fitting<'a>(&self, lanes: impl Iterator<Item = &'a Lane>) -> Vec<bool> {
        let caps: HashMap<&Lane, u32> = self.caps.iter().map(|(lane, cap)| (lane, *cap)).collect();
        let (mut total, mut had) = (self.total, HashMap::<&Lane, u32>::new());
        lanes
            .map(|lane| {
                let count = had.entry(lane).or_default();
                let fits = *count < caps.get(lane).copied().unwrap_or(self.rest) && total > 0;
                *count += u32::from(fits);
                total -= u32::from(fits);
                fits
            })
            .collect()
    }
}

/// One leased job.
#[derive(Debug)]
pub struct RawDelivery {
    /// What the backend knows.
    pub head: Head,
    /// The encoded job.
    pub payload: Vec<u8>,
    /// The lease's fencing token.
    pub lease: LeaseId,
    /// The right to settle it.
    pub hold: Box<dyn Hold>,
}

/// A lease's random id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LeaseId(Uuid);

impl LeaseId {
    /// No lease.
    pub const NONE: Self = Self(Uuid::nil());

    /// A new one.
    pub fn random() -> Self {
        Self(uuid::Builder::from_random_bytes(rand::random()).into_uuid())
    }

    /// The 16 bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// From 16 bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.hyphenated(), f)
    }
}

impl fmt::Debug for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A worker process's identity, random per start; at most 64 characters of `A-Z a-z 0-9 . _ -`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct WorkerId(String);

impl WorkerId {
    /// `<name>-<12 random hexadecimal digits>`; characters a name may not hold become `_`.
    pub fn random(name: &str) -> Self {
        let tail = Uuid::now_v7().simple().to_string().split_off(20);
        let name: String = name
            .chars()
            .take(48)
            .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '_' })
            .collect();
        Self(format!("{name}-{tail}"))
    }

    /// An identity kept elsewhere, as [`WorkerId::as_str`] gave it.
    pub fn known(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The identity.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How a lease ends.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// The job has ended; the record says how. Done, dead, cancelled or expired by its `end`.
    End(Box<Record>),
    /// Try again later; this attempt is spent and goes into the history.
    Retry {
        /// The least wait.
        after: Duration,
        /// The attempt that failed.
        attempt: Box<Attempt>,
    },
    /// Give back, spending nothing.
    Release {
        /// Wait at least this long; zero: available at once, ahead of its lane.
        after: Duration,
        /// What it waits for, so that all such jobs can be woken in one step.
        hold: Option<HoldKey>,
    },
}

/// How long ended jobs are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Answers and records of successes.
    pub succeeded: Duration,
    /// Dead, cancelled and expired jobs, redrivable until then.
    pub dead: Duration,
    /// All records together, in bytes; the oldest give up their answers first.
    pub bytes: u64,
    /// The mark that an id has been used, counted from the end; at least as long as the others.
    pub tombstones: Duration,
}

impl Retention {
    /// 7 days, 30 days, 10 GiB, 37 days.
    pub const fn standard() -> Self {
        const DAY: u64 = 86_400;
        let (succeeded, dead) = (Duration::from_secs(7 * DAY), Duration::from_secs(30 * DAY));
        Self { succeeded, dead, bytes: 10 << 30, tombstones: Duration::from_secs(37 * DAY) }
    }
}
