//! What a backend answers: to an enqueue, a claim, a heartbeat, a settle, and to people's questions and commands.

use serde::Serialize;

use super::backend::RawDelivery;
use crate::job::{Lane, Queue};
use crate::record::State;
use crate::time::Timestamp;

/// What declaring a queue at a broker that needs it came to: names of the broker's own queues and exchanges.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Declared {
    /// Made now.
    pub made: Vec<String>,
    /// There already.
    pub there: Vec<String>,
    /// There, but not as it would be made now, and why; it stays as it is.
    pub differs: Vec<Remark>,
    /// Lanes of models that are no longer declared, deleted.
    pub pruned: Vec<String>,
    /// Such lanes that stay for now, and why.
    pub left: Vec<Remark>,
}

/// Something at a broker that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Remark {
    /// Its name there.
    pub name: String,
    /// Why, for people.
    pub why: String,
}

/// The answer to one enqueued job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Enqueued {
    /// Durable now.
    New,
    /// The same job was already there, in this state; durable.
    Known(State),
    /// Not taken.
    Refused(Refusal),
}

/// Why a job was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The same id is there with another fingerprint.
    Conflict,
    /// Too large to travel: its size, or where that is not known the limit, in bytes.
    TooLarge(usize),
    /// The backend knows no such queue and cannot make one.
    NoSuchQueue,
    /// Its batch belongs to another queue.
    OtherQueue(Queue),
}

/// What a call to [`super::Source::next`] gave.
#[derive(Debug, Default)]
pub struct Leased {
    /// Leased jobs, first to be started first.
    pub deliveries: Vec<RawDelivery>,
    /// Lanes of the subscription that hold ready jobs now, closed ones included; at most 1,000.
    pub lanes_seen: Vec<Lane>,
}

/// The ledger's answer to a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Run it. `deaths` leases of this epoch ended without a verdict before this one.
    Fresh {
        /// How many.
        deaths: u32,
    },
    /// It has ended (a success in any epoch, or any end in this one): never run it; settling is not needed.
    Ended(State),
    /// A user cancelled it: settle it as cancelled.
    Cancelled,
    /// Its queue or batch is paused: release it.
    Paused {
        /// Why, for people.
        reason: String,
    },
    /// Another live lease runs it.
    Taken {
        /// When that lease runs out, at the latest.
        until: Timestamp,
    },
    /// A newer epoch or attempt exists: drop this copy.
    Stale,
}

/// The answer to a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beat {
    /// The lease is extended.
    Kept,
    /// Another copy has ended the job: drop the run.
    Ended,
    /// A user cancelled it: stop it and settle as cancelled.
    Cancelled,
    /// The lease is somebody else's now.
    Lost,
}

/// What settling did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// As the verdict said.
    Applied,
    /// The lease was no longer this one's, but its success is now the job's record.
    Kept,
    /// The lease was no longer this one's; nothing changed.
    Stale,
}

/// A queue's jobs by state, and how long the oldest has waited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Depth {
    /// Could be leased now, paused or held-back lanes included.
    pub ready: u64,
    /// Wait for a time: scheduled, retrying or released under a hold.
    pub delayed: u64,
    /// Whether `delayed` counts those of all queues, and is the most that this one can have: RabbitMQ keeps them together.
    pub delayed_of_all: bool,
    /// Leased.
    pub running: u64,
    /// In the dead set.
    pub dead: u64,
    /// When the oldest ready job became so.
    pub oldest_ready: Option<Timestamp>,
}

impl Depth {
    /// How many jobs wait here, as far as that is known: without `delayed` where that counts other queues' too.
    pub fn waiting(&self) -> u64 {
        self.ready + if self.delayed_of_all { 0 } else { self.delayed }
    }
}

/// A queue, for lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct QueueView {
    /// Its name.
    pub queue: Queue,
    /// Why it is paused, if it is.
    pub paused: Option<String>,
    /// Its jobs.
    pub depth: Depth,
}

impl QueueView {
    /// Whether there is nothing to see of it: no jobs that wait, run or are dead, and no pause.
    pub fn is_blank(&self) -> bool {
        let depth = self.depth;
        depth.ready + depth.delayed + depth.running + depth.dead == 0 && self.paused.is_none()
    }
}

/// The answer to one cancelled job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancel {
    /// It was waiting and has ended.
    Ended,
    /// It runs; its worker stops it within one heartbeat.
    Flagged,
    /// It had ended before, like this.
    Already(State),
    /// No such job.
    Unknown,
}

/// What cancelling a batch came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CancelCounts {
    /// Waiting jobs ended now.
    pub ended: u64,
    /// Running jobs flagged.
    pub flagged: u64,
}

/// The answer to one redriven job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redriven {
    /// Back in line, under this epoch.
    Queued {
        /// The new epoch; the old one where a message that waits at RabbitMQ is to run after all.
        epoch: u32,
    },
    /// Was waiting or running already; nothing changed.
    Waiting,
    /// Has succeeded: a success is never replaced. Replay it as a new job instead.
    Succeeded,
    /// Its payload is gone (dropped, or past retention).
    Gone,
    /// No such job.
    Unknown,
}

/// What a sweep did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Jobs expired.
    pub expired: u64,
    /// Records that gave up their answer.
    pub forgotten: u64,
    /// Keys of stored outputs nothing names any more, to be deleted by the caller.
    pub outputs: Vec<String>,
    /// Whether there is more to do now.
    pub more: bool,
}
