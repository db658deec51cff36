//! The ledger in object storage, for a broker that has no better one beside it. It keeps every end and cannot claim.
//! `keys` says where what lies, `stone` what is in a job's object; `opening`, `settling` and `steering` write,
//! `reading`, `tally` and `account` read, `flags` and `clock` are what all of them ask.

mod account;
mod aside;
mod batches;
mod claims;
mod clock;
mod flags;
mod keys;
mod opening;
mod reading;
mod settling;
mod steering;
mod stone;
mod sweep;
mod tally;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::time::Instant;

use crate::broker::LeaseId;
use crate::error::Result;
use crate::job::{BatchName, JobId, Queue};
use crate::record::End;
use crate::store::Store;
use clock::Clock;
use flags::Flags;
use opening::Running;
use stone::Stone;
use sweep::Progress;
use tally::Tallies;

/// Requests of one call in flight at once: a page of 1,000 reads takes some 30 round trips.
const AT_ONCE: usize = 32;

/// The largest object read: a record is at most [`crate::codec::MAX_BYTES`], its head is small beside that.
const LARGEST: u64 = crate::codec::MAX_BYTES as u64;

/// The ledger in object storage.
///
/// A job's end is one object: `ledger/ends/<id>` for a success, created once whatever the epoch, which is the commit;
/// `ledger/ends/<id>.<epoch>` for any other end. So an id alone finds it. Beside it lies an empty *mark* in
/// `ledger/marks/<queue>/<batch>`, whose name holds time, id, epoch, end and sums: a listing of names gives counts, order
/// and cost without reading a record. A mark is written before its message is acknowledged, by whoever meets the end.
///
/// What it asks of the service, in requests: a fresh open two reads (and one each for a flag that is older than 5 s) in
/// one round trip; one of a message that came again a list besides, and a write after them when it runs. An end two
/// writes and a read; a dead one two writes more. A registration a write per 1,000 jobs of a batch, and two reads per
/// keyed job. A heartbeat none, save a read every 10 s for each queue and batch that runs, and two a minute for each
/// job that runs so long. Counts of a batch that is looked at a list or two every 5 s, and all of it (a list per 1,000
/// ends) now and then; in memory 16 bytes per ended job of a batch that has not finished. A page of results a list and
/// a read per record.
#[derive(Debug)]
pub struct ObjectLedger {
    store: Store,
    conditional: bool,
    clock: Clock,
    ages: Ages,
    flags: Flags,
    /// What runs under claims of this process.
    running: Mutex<HashMap<LeaseId, Running>>,
    /// Ends whose marks this process wrote lately.
    marked: Mutex<Recent>,
    /// Batches this process has seen, and queues it has noted.
    known: Mutex<Seen>,
    tallies: Tallies,
    swept: tokio::sync::Mutex<Progress>,
}

/// How old may be what is told without asking the store again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ages {
    /// Pauses, purges and cancelled batches, where a message is opened.
    pub flags: Duration,
    /// The same, for what runs.
    pub beats: Duration,
    /// Whether a running job has been ended by another copy.
    pub looks: Duration,
    /// Counts and results.
    pub counts: Duration,
    /// How young what has ended must not be to be told as a result while its batch is not over: what ended before may be
    /// listed yet, and would be missed by whoever goes on after it.
    pub untold: Duration,
    /// The whole list of a batch's ends, read again for marks that came late.
    pub whole: Duration,
    /// Between two rounds of retention.
    pub sweeps: Duration,
}

impl Default for Ages {
    /// As `protocol.md` promises: 5 s for pauses, cancelled batches and counts, 10 s for what runs; a minute for a copy
    /// elsewhere and marks that came late; an hour for retention, which is in days. Results 5 s after they ended:
    /// clocks of hosts are corrected where they are over 2 s off, and a second is left for the list.
    fn default() -> Self {
        let [flags, beats, looks, counts, untold, whole, sweeps] =
            [5, 10, 60, 5, 5, 60, 3_600].map(Duration::from_secs);
        Self { flags, beats, looks, counts, untold, whole, sweeps }
    }
}

impl Ages {
    /// Ask each time.
    pub const NONE: Self = {
        let none = Duration::ZERO;
        Self { flags: none, beats: none, looks: none, counts: none, untold: none, whole: none, sweeps: none }
    };
}

impl ObjectLedger {
    /// A ledger in this store, which must let us write, read and delete. Asks the service whether it creates only
    /// where nothing is; one that does not is used all the same, with a read before each write, and told of in the log.
    ///
    /// # Errors
    /// Whatever the store says, `Config` where a person has to mend it.
    pub async fn open(store: Store) -> Result<Self> {
        Self::open_with(store, Ages::default()).await
    }

    /// As [`ObjectLedger::open`], with other ages of what is remembered.
    ///
    /// # Errors
    /// As [`ObjectLedger::open`].
    pub async fn open_with(store: Store, ages: Ages) -> Result<Self> {
        let (conditional, clock) = tokio::try_join!(store.probe(), Clock::read(&store))?;
        if !conditional {
            tracing::warn!(
                "this object store does not create only where nothing is: two copies of a job that end in the same \
                 moment may both be taken for its result"
            );
        }
        Ok(Self {
            flags: Flags::new(store.clone()),
            store,
            conditional,
            clock,
            ages,
            running: Mutex::default(),
            marked: Mutex::default(),
            known: Mutex::default(),
            tallies: Tallies::default(),
            swept: tokio::sync::Mutex::default(),
        })
    }

    /// Whether the store creates only where nothing is; without that, two ends of a job in the same moment may both be
    /// taken for its result.
    pub fn is_conditional(&self) -> bool {
        self.conditional
    }

    /// What is in a job's object.
    async fn stone(&self, key: &str) -> Result<Option<Stone>> {
        self.store.get(key, LARGEST).await?.map(|bytes| Stone::read(&bytes)).transpose()
    }
}

/// The last ends that were marked.
#[derive(Debug, Default)]
struct Recent {
    order: VecDeque<(JobId, u32, End)>,
    set: HashSet<(JobId, u32, End)>,
}

impl Recent {
    /// More than are settled and announced a moment later at once in any one process.
    const MOST: usize = 10_000;

    fn note(&mut self, end: (JobId, u32, End)) {
        if self.set.insert(end) {
            self.order.push_back(end);
        }
        if self.order.len() > Self::MOST
            && let Some(old) = self.order.pop_front()
        {
            self.set.remove(&old);
        }
    }
}

/// What need not be written again.
#[derive(Debug, Default)]
struct Seen {
    queues: HashSet<Queue>,
    batches: HashMap<BatchName, Queue>,
}

/// All of them, some at once, their answers in order.
async fn all<T, F: Future<Output = Result<T>>>(work: Vec<F>) -> Result<Vec<T>> {
    stream::iter(work).buffered(AT_ONCE).try_collect().await
}

/// Locks; what they guard is whole after every statement.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Long ago enough, or never.
fn is_old(since: Option<Instant>, age: Duration) -> bool {
    since.is_none_or(|since| since.elapsed() >= age)
}

#[cfg(test)]
mod tests;
