//! What is known of jobs and batches: records, batch counts, the dead set, notes. Reading never touches the queue.
//! Redis and SQLite brokers are their own ledger; `claims` is how another broker writes into one.

mod claims;
mod identity;
pub mod object;
mod report;

pub use claims::{Announced, Asked, Claims, Opened, Raised, Registered};
pub use identity::LedgerId;
pub use report::{HELD_KEYS, HELD_LANES, HeldKey, PACE_KEYS, PACES, Pace, WorkerReport};

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::broker::{HoldKey, WorkerId};
use crate::error::{Error, Kind, Result};
use crate::job::{BatchName, Fingerprint, JobId, Queue};
use crate::outcome::{FailureClass, Usage, Usd};
use crate::record::{Record, State};
use crate::time::Timestamp;

/// Where records, batch counts and notes are kept.
#[async_trait]
pub trait Ledger: fmt::Debug + Send + Sync + 'static {
    /// What is known of each id before an enqueue. At most [`crate::broker::MAX_BATCH`].
    async fn known(&self, keys: &[(JobId, Fingerprint)]) -> Result<Vec<Known>>;

    /// Each job as it is now, `None` for one that was never seen or is past retention.
    async fn fetch(&self, ids: &[JobId]) -> Result<Vec<Option<JobView>>>;

    /// The encoded job, while it is kept: until it has succeeded, or dropped, or past retention.
    async fn payload(&self, id: JobId) -> Result<Option<Vec<u8>>>;

    /// Jobs that fit, newest first, from `cursor` on. `limit` is at most 1,000; a page may be short and have a `next`.
    async fn list(&self, filter: &JobFilter, cursor: Option<&str>, limit: usize) -> Result<Page<JobView>>;

    /// Records in the order they became durable, after `cursor` (0 for all). A job redriven or late may come twice;
    /// the later one counts. At most `limit` (1 to 1,000) of them, and at most [`RESULT_BYTES`]: so a page may be
    /// short, or empty, and have more behind it. Only [`Results::more`] says where the end is.
    async fn results(&self, scope: &Scope, cursor: Cursor, limit: usize) -> Result<Results>;

    /// A batch as it is now.
    async fn batch(&self, name: &BatchName) -> Result<Option<BatchView>>;

    /// Batches, newest first, at most `limit`.
    async fn batches(&self, limit: usize) -> Result<Vec<BatchView>>;

    /// Says that no more jobs will be submitted to a batch. Creates it if it has none. Idempotent.
    async fn seal(&self, name: &BatchName, queue: &Queue) -> Result<()>;

    /// The dead set of a queue (all queues for `None`) by cause, largest group first, at most 1,000.
    async fn dead_groups(&self, queue: Option<&Queue>) -> Result<Vec<DeadGroup>>;

    /// Tells that a worker lives; forgotten after a minute without.
    async fn report(&self, worker: &WorkerReport) -> Result<()>;

    /// Forgets a worker at once, for one that leaves in order. No error for one that is not known.
    async fn leave(&self, worker: &WorkerId) -> Result<()>;

    /// Workers that reported within the last minute, and have not left.
    async fn workers(&self) -> Result<Vec<WorkerReport>>;

    /// Takes or extends the named lock for `owner`. False while another holds it. At most 200 characters.
    async fn lock(&self, name: &str, owner: &WorkerId, length: Duration) -> Result<bool>;

    /// Lets go of a lock of `owner`'s.
    async fn unlock(&self, name: &str, owner: &WorkerId) -> Result<()>;

    /// A small value kept under a key; `None` if there is none.
    async fn note(&self, key: &str) -> Result<Option<String>>;

    /// Keeps a small value (at most 64 KiB) under a key; `None` removes it.
    async fn set_note(&self, key: &str, value: Option<&str>) -> Result<()>;

    /// What all workers share of a limit key, with this ledger's clock. `Unsupported` where nothing can be compared
    /// before it is replaced.
    async fn limit(&self, _key: &str) -> Result<KeptLimit> {
        Err(unshared("read a limit"))
    }

    /// Replaces that by `new` (at most [`LIMIT_BYTES`]; empty: nothing is kept any more) if it is `old` still; says
    /// whether it was. Kept until it is replaced. After an `Err` nobody knows; `Unsupported` as [`Ledger::limit`].
    async fn swap_limit(&self, _key: &str, _old: &[u8], _new: &[u8]) -> Result<bool> {
        Err(unshared("change a limit"))
    }

    /// Every limit key that something is kept of, by name. `Unsupported` as [`Ledger::limit`].
    async fn limits(&self) -> Result<Vec<String>> {
        Err(unshared("list limits"))
    }
}

fn unshared(op: &'static str) -> Error {
    let why =
        "this ledger cannot compare before it replaces: limits are shared by Redis and SQLite, as broker or ledger";
    Error::new(Kind::Unsupported, op, why)
}

/// The most bytes kept of one limit key: 500 workers have it.
pub const LIMIT_BYTES: usize = 128 << 10;

/// Refuses what is above [`LIMIT_BYTES`].
pub(crate) fn check_limit(op: &'static str, new: &[u8]) -> Result<()> {
    if new.len() > LIMIT_BYTES {
        return Err(Error::new(Kind::TooLarge, op, format!("{} bytes; the limit is {LIMIT_BYTES}", new.len())));
    }
    Ok(())
}

/// What is kept of a limit key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptLimit {
    /// As [`Ledger::swap_limit`] was given it; empty when there is nothing.
    pub bytes: Vec<u8>,
    /// The ledger's clock when it was read.
    pub now: Timestamp,
}

/// What is known of an id before an enqueue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Nothing.
    New,
    /// The same job, in this state.
    Same(State),
    /// Another job under the same key, in this state.
    Conflict(State),
}

/// A job as it is now.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JobView {
    /// The job.
    pub id: JobId,
    /// Its queue.
    pub queue: Queue,
    /// Its model as submitted.
    pub model: Option<String>,
    /// Its priority.
    pub priority: u8,
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
    /// Where it is in its life. A waiting job past its deadline is `Expired`.
    pub state: State,
    /// 0, and one more with each redrive.
    pub epoch: u32,
    /// Attempts spent in this epoch.
    pub attempts: u32,
    /// Leases of this epoch that ended without a verdict.
    pub deaths: u32,
    /// When it was submitted.
    pub created_at: Timestamp,
    /// Expired when it has not run by then.
    pub deadline: Timestamp,
    /// When it may be leased, if that is not now.
    pub due: Option<Timestamp>,
    /// What it was released under, if it waits for that.
    #[serde(serialize_with = "as_text")]
    pub hold: Option<HoldKey>,
    /// Who runs it.
    pub worker: Option<String>,
    /// When its running lease was given.
    pub leased_at: Option<Timestamp>,
    /// Whether a user asked to stop it and its worker has not done so yet.
    pub cancel_requested: bool,
    /// Whether a dead job was dropped: out of the dead set, never to be redriven.
    pub dropped: bool,
    /// Why its queue is paused, if it is.
    pub paused: Option<String>,
    /// Its record: the success if there is one, else the end of the current epoch.
    #[serde(skip)]
    pub record: Option<Box<Record>>,
}

#[expect(clippy::ref_option, reason = "the signature serde calls")]
fn as_text<S: serde::Serializer>(key: &Option<HoldKey>, serializer: S) -> Result<S::Ok, S::Error> {
    key.as_ref().map(ToString::to_string).serialize(serializer)
}

/// What a list of jobs is narrowed to; empty narrows nothing.
#[derive(Clone, Debug, Default)]
pub struct JobFilter {
    /// Only this queue.
    pub queue: Option<Queue>,
    /// Only this batch.
    pub batch: Option<BatchName>,
    /// Only these states.
    pub states: Vec<State>,
    /// Only this cause code.
    pub code: Option<String>,
}

/// One page of a list.
#[derive(Clone, Debug)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Where to go on; `None` at the end. Opaque.
    pub next: Option<String>,
}

/// The most bytes of encoded records in one page of results. A record above it comes alone: with answers at the inline
/// limit (64 KiB) a page of 1,000 would hold 64 MiB, at a broker without object storage 8 GiB.
pub const RESULT_BYTES: usize = 8 << 20;

/// A page of records.
#[derive(Clone, Debug, Default)]
pub struct Results {
    /// Each with its place, in order.
    pub records: Vec<(Cursor, Record)>,
    /// Where to go on: the place of the last record read, which need not be among `records` (it may be past
    /// retention); what was asked from where nothing was read.
    pub next: Cursor,
    /// Whether records were left behind for the limit or the bytes: then `next` is past what was asked from. False:
    /// there were no more when this was read; what comes later comes after `next`.
    pub more: bool,
}

/// Whose results.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One batch's.
    Batch(BatchName),
    /// One queue's.
    Queue(Queue),
}

/// A place in a ledger's order of records; 0 is before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cursor(pub u64);

/// A batch as it is now.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BatchView {
    /// Its name.
    pub name: BatchName,
    /// Its queue.
    pub queue: Queue,
    /// When its first job was submitted.
    pub created_at: Timestamp,
    /// Whether all its jobs were submitted.
    pub sealed: bool,
    /// Whether a user cancelled it.
    pub cancelled: bool,
    /// Its jobs.
    pub counts: Counts,
    /// Tokens of ended jobs, all attempts.
    pub usage: Usage,
    /// Known cost of ended jobs, all attempts; `None` while none is known.
    pub cost: Option<Usd>,
    /// Ended jobs of which some call cost something that nobody knows.
    pub cost_unknown: u64,
    /// Its newest record.
    pub last: Cursor,
}

impl BatchView {
    /// What is known of the cost of its ended jobs; nothing where none of them was billed. `None` where nobody knows any of it.
    pub fn known_cost(&self) -> Option<Usd> {
        // A file of an earlier build does not count answers of programs as unknown.
        let is_free = self.cost_unknown == 0 && self.counts.succeeded == 0;
        self.cost.or_else(|| is_free.then(Usd::default))
    }
}

/// Jobs by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// All of them.
    pub total: u64,
    /// Waiting, and could be leased.
    pub queued: u64,
    /// Waiting for a time: scheduled, retrying or held.
    pub delayed: u64,
    /// Leased.
    pub running: u64,
    /// Answered.
    pub succeeded: u64,
    /// Given up.
    pub dead: u64,
    /// Stopped by a user.
    pub cancelled: u64,
    /// Past their deadline.
    pub expired: u64,
}

impl Counts {
    /// Jobs that have ended.
    pub fn ended(&self) -> u64 {
        self.succeeded + self.dead + self.cancelled + self.expired
    }
}

/// Dead jobs with one cause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeadGroup {
    /// The queue.
    pub queue: Queue,
    /// The model as submitted.
    pub model: Option<String>,
    /// The class of the last failure.
    pub class: Option<FailureClass>,
    /// The cause's code.
    pub code: String,
    /// How many.
    pub count: u64,
    /// When the first of them died.
    pub first: Timestamp,
    /// When the last of them died.
    pub last: Timestamp,
    /// One of them.
    pub sample: JobId,
    /// What that one said.
    pub detail: String,
}
