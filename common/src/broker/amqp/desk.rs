//! What a subscription has in hand: which messages it was given and has not answered for, and the claims on them.
//! How a claim ends is `hold.rs`; a message that stays long is `swap.rs`.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, ready};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::hold::AmqpHold;
use super::post::Post;
use super::slip::Slip;
use super::wire::{Parcel, Read};
use crate::broker::backend::{Claim, Head, LeaseId, RawDelivery, Terms, Verdict, WorkerId};
use crate::error::Error;
use crate::job::JobId;
use crate::ledger::Asked;
use crate::record::Record;

/// How many ended jobs may wait for their announcement; a further end waits until there is room.
const FINISHING: usize = 2_000;
/// A message that could not be answered for goes back after this.
const REST: Duration = Duration::from_secs(1);

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
    /// Whether it was delivered before.
    pub(super) redelivered: bool,
    /// Whether it came from this worker's hold queue.
    pub(super) held: bool,
    pub(super) slip: Slip,
}

#[derive(Debug)]
enum Hand {
    /// The ledger is being asked.
    Opening,
    /// It runs here.
    Held(Arc<Held>),
}

/// A claimed job and its message.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) parcel: Parcel,
    pub(super) lease: LeaseId,
    since: Instant,
    state: Mutex<HeldState>,
}

#[derive(Debug)]
struct HeldState {
    /// `None` once it was answered for.
    slip: Option<Slip>,
    /// When the claim runs out unless it is beaten.
    until: Instant,
    /// How many calls are under way that settle it.
    settling: u32,
    /// Since when a copy is on its way to the hold queue.
    swapping: Option<Instant>,
}

/// A call that settles a job is under way.
#[derive(Debug)]
pub(super) struct Settling<'a>(&'a Held, Duration);

/// What came of opening a message.
#[derive(Debug)]
pub(super) enum Opening {
    /// It may run, or has to be settled.
    Granted(Box<RawDelivery>),
    /// It was answered for: nothing to do.
    Gone,
    /// Its queue is paused.
    Paused(Box<Item>),
    /// The ledger did not answer.
    Failed(Box<Item>, Error),
}

impl Item {
    pub(super) fn new(read: Read, slip: Slip, redelivered: bool, held: bool) -> Self {
        let lease = LeaseId::random();
        Self { parcel: read.parcel, dead: read.dead, lease, redelivered, held, slip }
    }
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
            Some(Hand::Held(held)) if held.is_same(copy) && (item.held || held.is_orphan()) => held.replace(item.slip),
            Some(Hand::Held(_) | Hand::Opening) | None => return Some(item),
        };
        if let Some(old) = old {
            self.spawn(old.ack());
        }
        None
    }

    /// Asks the ledger whether a message may run, and answers for it if not.
    pub(super) async fn open(self: Arc<Self>, item: Item) -> Opening {
        let id = item.parcel.envelope.head.id;
        let Some(item) = self.enter(item).await else { return Opening::Gone };
        let opened = self.ask(item).await;
        if !matches!(opened, Opening::Granted(_)) {
            let mut hands = self.hands();
            if matches!(hands.get(&id), Some(Hand::Opening)) {
                hands.remove(&id);
            }
        }
        opened
    }

    /// Notes a message as being opened; `None` when a copy of it is in hand already and this one was answered for.
    async fn enter(&self, item: Item) -> Option<Item> {
        let item = self.attach(item)?;
        if let Entry::Vacant(place) = self.hands().entry(item.parcel.envelope.head.id) {
            place.insert(Hand::Opening);
            return Some(item);
        }
        // The next attempt may come before the last one is out of hand.
        let copy = &item.parcel.envelope.head;
        let next = matches!(self.hands().get(&copy.id), Some(Hand::Held(held)) if held.is_before(copy));
        self.post.park(item.parcel, item.slip, if next { Duration::ZERO } else { self.lease }).await;
        None
    }

    async fn ask(self: &Arc<Self>, item: Item) -> Opening {
        let head = &item.parcel.envelope.head;
        crate::crash_point!("amqp.open.before_ledger");
        let asked =
            Asked { lease: item.lease, worker: &self.worker, length: self.lease, redelivered: item.redelivered };
        let asked = self.post.claims.open(head, &asked).await;
        crate::crash_point!("amqp.open.after_ledger");
        let opened = match asked {
            Ok(opened) => opened,
            Err(error) => return Opening::Failed(Box::new(item), error),
        };
        match opened.claim {
            Claim::Fresh { .. } | Claim::Cancelled => self.grant(item, opened.claim).await,
            Claim::Paused { .. } => Opening::Paused(Box::new(item)),
            Claim::Taken { until } => {
                let wait = until.since(self.post.clock.now());
                self.post.park(item.parcel, item.slip, wait).await;
                Opening::Gone
            }
            Claim::Ended(_) | Claim::Stale => {
                if let Err(error) = self.post.conclude(&item.parcel, &opened).await {
                    tracing::warn!(%error, job = %item.parcel.envelope.head.id, "an ended job is not announced yet");
                    tokio::time::sleep(REST).await;
                    item.slip.give_back().await;
                } else {
                    item.slip.ack().await;
                }
                Opening::Gone
            }
        }
    }

    /// Takes a claimed job in hand.
    async fn grant(self: &Arc<Self>, item: Item, claim: Claim) -> Opening {
        let Item { parcel, dead, lease, slip, .. } = item;
        let (head, payload) = (parcel.envelope.head.clone(), parcel.envelope.payload.clone());
        let state = HeldState { slip: Some(slip), until: Instant::now() + self.lease, settling: 0, swapping: None };
        let job = Arc::new(Held { parcel, lease, since: Instant::now(), state: Mutex::new(state) });
        self.hands().insert(head.id, Hand::Held(Arc::clone(&job)));
        let hold = Box::new(AmqpHold { desk: Arc::clone(self), held: job, claim, copied: AtomicBool::new(false) });
        if let Some(mut record) = dead {
            record.lease = lease;
            // Without an answer the claim runs out, and the next to get the message ends it.
            if let Err(error) = crate::broker::Hold::settle(&*hold, &Verdict::End(record)).await {
                tracing::warn!(%error, job = %head.id, "a job that nobody can read is not recorded yet");
            }
            return Opening::Gone;
        }
        Opening::Granted(Box::new(RawDelivery { head, payload, lease, hold }))
    }

    /// Takes a job out of hand, with what answers for its message if that is still there to be answered for.
    pub(super) fn let_go(&self, held: &Arc<Held>) -> Option<Slip> {
        let mut hands = self.hands();
        if matches!(hands.get(&held.id()), Some(Hand::Held(here)) if Arc::ptr_eq(here, held)) {
            hands.remove(&held.id());
            let took = u64::try_from(held.since.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
            let usual = self.usual.load(Ordering::Relaxed);
            self.usual.store(if usual == 0 { took } else { usual - usual / 8 + took / 8 }, Ordering::Relaxed);
        }
        held.state().slip.take()
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
            Hand::Held(_) | Hand::Opening => None,
        };
        self.hands().values().filter_map(held).collect()
    }

    /// How many messages are in hand.
    pub(super) fn count(&self) -> usize {
        self.hands().len()
    }

    /// Gives back the messages of claims that ran out: whoever gets them finds that, and a death more.
    pub(super) async fn expire(&self) {
        for held in self.held(Held::is_over) {
            if held.is_over()
                && let Some(slip) = self.let_go(&held)
            {
                slip.give_back().await;
            }
        }
    }

    /// Goes on with something after its caller has been answered. What is under way is bounded by the deliveries that
    /// it answers for.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(work);
    }

    /// Whether nothing is in hand and nothing under way.
    pub(super) fn is_done(&self) -> bool {
        let mut tasks = self.tasks();
        while tasks.try_join_next().is_some() {}
        tasks.is_empty() && self.count() == 0
    }

    /// Waits until what was spawned is done, `patience` at the longest. What is not by then goes on while jobs run here;
    /// without any it ends, and the server takes its messages back with the channel, which is to end now.
    pub(super) async fn finish(&self, patience: Duration) {
        let done = std::future::poll_fn(|context| {
            loop {
                if ready!(self.tasks().poll_join_next(context)).is_none() {
                    return Poll::Ready(());
                }
            }
        });
        if tokio::time::timeout(patience, done).await.is_err() && self.count() == 0 {
            tracing::warn!("some messages are not answered for yet; whoever gets them next does it");
            let rest = std::mem::take(&mut *self.tasks());
            drop(rest);
        }
    }

    fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hands(&self) -> MutexGuard<'_, HashMap<JobId, Hand>> {
        self.hands.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    pub(super) fn id(&self) -> JobId {
        self.parcel.envelope.head.id
    }

    /// Whether a message with this head is a copy of its.
    fn is_same(&self, head: &Head) -> bool {
        let ours = &self.parcel.envelope.head;
        (ours.epoch, ours.attempts) == (head.epoch, head.attempts)
    }

    /// Whether a message with this head is of a later attempt.
    fn is_before(&self, head: &Head) -> bool {
        let ours = &self.parcel.envelope.head;
        (ours.epoch, ours.attempts) < (head.epoch, head.attempts)
    }

    /// Its claim was extended.
    pub(super) fn beaten(&self, length: Duration) {
        self.state().until = Instant::now() + length;
    }

    /// Keeps its message here for as long as the answer lives and `length` beyond that, however long the ledger takes to
    /// hear of the end: were it given back, the job would run again while its answer waits to be stored.
    pub(super) fn settling(&self, length: Duration) -> Settling<'_> {
        self.state().settling += 1;
        Settling(self, length)
    }

    /// Whether its claim ran out and nobody is settling it.
    fn is_over(&self) -> bool {
        let state = self.state();
        state.settling == 0 && state.until <= Instant::now()
    }

    /// Whether its message has been given to somebody else, or will be.
    pub(super) fn is_orphan(&self) -> bool {
        !self.state().slip.as_ref().is_some_and(Slip::is_usable)
    }

    /// Whether its message has been in hand for longer than `age` or was taken back, and no copy is on its way since
    /// then.
    pub(super) fn is_old(&self, age: Duration) -> bool {
        let state = self.state();
        let swapping = state.swapping.is_some_and(|since| since.elapsed() < age / 2);
        !swapping && state.slip.as_ref().is_some_and(|slip| slip.age() >= age || slip.is_taken_back())
    }

    /// A copy of its message is on its way to this worker.
    pub(super) fn swapping(&self) {
        self.state().swapping = Some(Instant::now());
    }

    /// No copy is on its way after all, or none that is known of.
    pub(super) fn not_swapping(&self) {
        self.state().swapping = None;
    }

    /// Another copy of the message stands for it from now on; the old one is to be acknowledged.
    fn replace(&self, slip: Slip) -> Option<Slip> {
        let mut state = self.state();
        state.swapping = None;
        state.slip.replace(slip)
    }

    fn state(&self) -> MutexGuard<'_, HeldState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Settling<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.settling -= 1;
        state.until = state.until.max(Instant::now() + self.1);
    }
}
