//! What a subscription has in hand: which messages it was given and has not answered for, and the claims on them.
//! How a claim ends is `hold.rs`; a message that stays long is `swap.rs`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, ready};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};

use super::crier::Endings;
use super::held::Held;
use super::post::Post;
use super::receipt::Receipt;
use super::wire::{Parcel, Read};
use crate::broker::backend::{LeaseId, Terms, WorkerId};
use crate::job::JobId;
use crate::record::Record;

/// How many messages may be answered for while their callers go on (ended jobs that wait for their announcement, copies
/// that have to wait elsewhere); with more, a caller waits until there is room.
const FINISHING: usize = 2_000;
/// A message that could not be answered for goes back after this.
pub(super) const REST: Duration = Duration::from_secs(1);

/// A subscription's messages in hand.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) post: Arc<Post>,
    pub(super) worker: WorkerId,
    pub(super) lease: Duration,
    hands: Mutex<HashMap<JobId, Hand>>,
    /// What goes on after a job has ended for its worker: announcing, acknowledging, replying.
    tasks: Mutex<JoinSet<()>>,
    pub(super) finishing: Arc<Semaphore>,
    pub(super) endings: Endings,
    /// How long jobs are in hand on average, in milliseconds; 0 while none has ended.
    usual: AtomicU64,
    /// Whether this worker's hold queue is there and consumed.
    pub(super) holding: AtomicBool,
    /// Whether the worker leaves: ends are then seen through before they are told.
    pub(super) leaving: AtomicBool,
}

/// A message that was delivered and not looked at yet.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) parcel: Parcel,
    /// How it ended before it came, if it did.
    pub(super) dead: Option<Box<Record>>,
    /// What it is claimed with. Kept over attempts: asked again with the same lease, it is the same claim.
    pub(super) lease: LeaseId,
    /// Whether it came from this worker's hold queue.
    pub(super) held: bool,
    pub(super) receipt: Receipt,
}

#[derive(Debug)]
pub(super) enum Hand {
    /// The ledger is being asked.
    Opening {
        /// Whether a copy of the message was seen meanwhile.
        copied: bool,
    },
    /// It runs here.
    Held(Arc<Held>),
}

impl Item {
    pub(super) fn new(read: Read, receipt: Receipt, redelivered: bool, held: bool) -> Self {
        let Read { mut parcel, dead } = read;
        parcel.again |= redelivered;
        Self { parcel, dead, lease: LeaseId::random(), held, receipt }
    }

    /// Has it wait elsewhere. One that is dead as it came would come back alive from there: it goes back as it is.
    pub(super) async fn put_off(self, post: &Post, wait: Duration) {
        if self.dead.is_none() {
            return post.park(self.parcel, self.receipt, wait).await;
        }
        rest(self.receipt).await;
    }
}

/// Gives a message back after a moment: it would be here again at once.
pub(super) async fn rest(receipt: Receipt) {
    tokio::time::sleep(REST).await;
    receipt.give_back();
}

impl Desk {
    pub(super) fn new(post: Arc<Post>, terms: &Terms) -> Arc<Self> {
        Arc::new(Self {
            post,
            worker: terms.worker.clone(),
            lease: terms.lease,
            hands: Mutex::default(),
            tasks: Mutex::default(),
            finishing: Arc::new(Semaphore::new(FINISHING)),
            endings: Endings::default(),
            usual: AtomicU64::new(0),
            holding: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
        })
    }

    /// Takes a message whose job runs here already: its channel was lost, or it comes from the hold queue. Gives back any
    /// other.
    pub(super) fn attach(&self, item: Item) -> Option<Item> {
        let copy = &item.parcel.envelope.head;
        // Under the lock: whoever lets go of the job at this moment finds the message that stands for it.
        let old = match self.hands().get(&copy.id) {
            Some(Hand::Held(held)) if held.is_same(copy) && (item.held || held.is_orphan()) => {
                held.replace(item.receipt)
            }
            Some(Hand::Held(_) | Hand::Opening { .. }) | None => return Some(item),
        };
        if let Some(old) = old {
            old.ack();
        }
        None
    }

    /// Whether a message of this job is in hand.
    pub(super) fn has(&self, id: JobId) -> bool {
        self.hands().contains_key(&id)
    }

    /// Waits until one message more may be answered for while its caller goes on. `None` never: nobody closes it.
    pub(super) async fn room(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.finishing).acquire_owned().await.ok()
    }

    /// Takes a job out of hand, with what answers for its message if that is still there to be answered for.
    pub(super) fn let_go(&self, held: &Arc<Held>) -> Option<Receipt> {
        let mut hands = self.hands();
        if matches!(hands.get(&held.id()), Some(Hand::Held(here)) if Arc::ptr_eq(here, held)) {
            hands.remove(&held.id());
            let took = u64::try_from(held.age().as_millis()).unwrap_or(u64::MAX).max(1);
            let usual = self.usual.load(Ordering::Relaxed);
            self.usual.store(if usual == 0 { took } else { usual - usual / 8 + took / 8 }, Ordering::Relaxed);
        }
        held.take()
    }

    /// How long jobs are in hand on average; as long as can be while that is not known.
    pub(super) fn usual(&self) -> Duration {
        match self.usual.load(Ordering::Relaxed) {
            0 => Duration::MAX,
            millis => Duration::from_millis(millis),
        }
    }

    /// Jobs in hand, for which `pick` holds.
    pub(super) fn held(&self, pick: impl Fn(&Held) -> bool) -> Vec<Arc<Held>> {
        let held = |hand: &Hand| match hand {
            Hand::Held(held) if pick(held) => Some(Arc::clone(held)),
            Hand::Held(_) | Hand::Opening { .. } => None,
        };
        self.hands().values().filter_map(held).collect()
    }

    /// How many messages are in hand.
    pub(super) fn count(&self) -> usize {
        self.hands().len()
    }

    /// Gives back the messages of claims that ran out: whoever gets them finds that, and a death more.
    pub(super) fn expire(&self) {
        for held in self.held(Held::is_over) {
            if held.is_over()
                && let Some(receipt) = self.let_go(&held)
            {
                receipt.give_back();
            }
        }
    }

    /// Goes on with something after its caller has been answered. What is under way is bounded by the deliveries that
    /// it answers for.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks();
        reap(&mut tasks);
        tasks.spawn(work);
    }

    /// Whether nothing is in hand and nothing under way.
    pub(super) fn is_done(&self) -> bool {
        let mut tasks = self.tasks();
        reap(&mut tasks);
        tasks.is_empty() && self.count() == 0
    }

    /// Waits until what was spawned is done, `patience` at the longest. What is not by then goes on while jobs run here;
    /// without any it ends, and the server takes its messages back with the channel, which is to end now.
    pub(super) async fn finish(&self, patience: Duration) {
        let done = std::future::poll_fn(|context| {
            while let Some(done) = ready!(self.tasks().poll_join_next(context)) {
                note(&done);
            }
            Poll::Ready(())
        });
        if tokio::time::timeout(patience, done).await.is_err() && self.count() == 0 {
            tracing::warn!("some messages are not answered for yet; whoever gets them next does it");
            self.endings.clear();
            let rest = std::mem::take(&mut *self.tasks());
            drop(rest);
        }
    }

    fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn hands(&self) -> MutexGuard<'_, HashMap<JobId, Hand>> {
        self.hands.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn reap(tasks: &mut JoinSet<()>) {
    while let Some(done) = tasks.try_join_next() {
        note(&done);
    }
}

/// What it had in hand went back when it broke.
fn note(done: &Result<(), JoinError>) {
    if done.as_ref().is_err_and(JoinError::is_panic) {
        tracing::error!("a message broke the worker's own code; it is back in its queue");
    }
}
