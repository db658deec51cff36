//! What a subscription has in hand: which messages it was given and has not answered for, and the claims on them.
//! How a claim ends is `hold.rs`; a message that stays long is `swap.rs`.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Poll, ready};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};

use super::held::Held;
use super::hold::AmqpHold;
use super::post::Post;
use super::receipt::Receipt;
use super::wire::{Parcel, Read};
use crate::broker::backend::{Claim, LeaseId, RawDelivery, Terms, WorkerId};
use crate::error::{Error, Result};
use crate::job::JobId;
use crate::ledger::{Asked, Opened, Registered};
use crate::record::Record;

/// How many messages may be answered for while their callers go on (ended jobs that wait for their announcement, copies
/// that have to wait elsewhere); with more, a caller waits until there is room.
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
    /// Whether it came from this worker's hold queue.
    pub(super) held: bool,
    pub(super) receipt: Receipt,
}

#[derive(Debug)]
enum Hand {
    /// The ledger is being asked.
    Opening,
    /// It runs here.
    Held(Arc<Held>),
}

/// What came of opening a message.
#[derive(Debug)]
pub(super) enum Opening {
    /// It may run, or has to be settled.
    Granted(Box<RawDelivery>),
    /// It was answered for: nothing to do.
    Gone,
    /// Its queue is paused.
    Paused(Box<Item>),
    /// A copy of it is in hand, or another attempt of its job.
    Second(Box<Item>),
    /// The ledger did not answer.
    Failed(Box<Item>, Error),
}

/// A message that is being opened, until that is over, however it ended.
struct Entered<'a>(&'a Desk, JobId);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut hands = self.0.hands();
        if matches!(hands.get(&self.1), Some(Hand::Opening)) {
            hands.remove(&self.1);
        }
    }
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
        tokio::time::sleep(wait.min(REST)).await;
        self.receipt.give_back().await;
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
            Some(Hand::Held(held)) if held.is_same(copy) && (item.held || held.is_orphan()) => {
                held.replace(item.receipt)
            }
            Some(Hand::Held(_) | Hand::Opening) | None => return Some(item),
        };
        if let Some(old) = old {
            self.spawn(old.ack());
        }
        None
    }

    /// Asks the ledger whether a message may run, and answers for it if not.
    pub(super) async fn open(self: Arc<Self>, item: Item) -> Opening {
        let Some(mut item) = self.attach(item) else { return Opening::Gone };
        let id = item.parcel.envelope.head.id;
        let Some(_entered) = self.enter(id) else { return Opening::Second(Box::new(item)) };
        match caught(id, Box::pin(self.ask(&mut item))).await {
            Some(Ok(opened)) => {
                if let Some(opening) = caught(id, Box::pin(self.answer(item, opened))).await {
                    return opening;
                }
                // It went back at once, and would be here again as fast.
                tokio::time::sleep(REST).await;
                Opening::Gone
            }
            Some(Err(error)) => Opening::Failed(Box::new(item), error),
            None => {
                self.aside(rest(item.receipt)).await;
                Opening::Gone
            }
        }
    }

    /// Notes a message as being opened; `None` when one of its job is in hand already.
    fn enter(&self, id: JobId) -> Option<Entered<'_>> {
        if let Entry::Vacant(place) = self.hands().entry(id) {
            place.insert(Hand::Opening);
            return Some(Entered(self, id));
        }
        None
    }

    /// Whether a message of this job is in hand.
    pub(super) fn has(&self, id: JobId) -> bool {
        self.hands().contains_key(&id)
    }

    /// Has a message wait elsewhere.
    async fn park(self: &Arc<Self>, item: Item, wait: Duration) {
        let desk = Arc::clone(self);
        self.aside(async move { item.put_off(&desk.post, wait).await }).await;
    }

    /// Answers for the message of a job that has ended.
    async fn conclude(self: &Arc<Self>, item: Item, opened: Opened) {
        let desk = Arc::clone(self);
        self.aside(async move {
            let id = item.parcel.envelope.head.id;
            match caught(id, Box::pin(desk.post.conclude(&item.parcel, &opened))).await {
                Some(Ok(())) => return item.receipt.ack().await,
                Some(Err(error)) => tracing::warn!(%error, job = %id, "an ended job is not announced yet"),
                None => {}
            }
            rest(item.receipt).await;
        })
        .await;
    }

    /// Goes on with something that no neighbour is to wait for: those that were opened with it run already.
    async fn aside(&self, work: impl Future<Output = ()> + Send + 'static) {
        let room = self.room().await;
        self.spawn(async move {
            work.await;
            drop(room);
        });
    }

    /// Waits until one message more may be answered for while its caller goes on. `None` never: nobody closes it.
    pub(super) async fn room(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.finishing).acquire_owned().await.ok()
    }

    /// Has the ledger compare what a foreign client named with the job that has the name: only our own producers do so
    /// before they publish.
    async fn compare(&self, item: &mut Item) -> Result<()> {
        if item.parcel.named {
            let registered = self.post.claims.register(&[&item.parcel.envelope.head]).await?;
            // Dead here, it comes again and is found registered by itself: that is no conflict.
            crate::crash_point!("amqp.open.after_compare");
            if registered.first() == Some(&Registered::Conflict) {
                let read = Read::conflicting(item.parcel.clone(), self.post.clock.now());
                (item.parcel, item.dead) = (read.parcel, read.dead);
            }
            item.parcel.named = false;
        }
        Ok(())
    }

    async fn ask(&self, item: &mut Item) -> Result<Opened> {
        self.compare(item).await?;
        let Parcel { envelope, again, .. } = &item.parcel;
        crate::crash_point!("amqp.open.before_ledger");
        let asked = Asked { lease: item.lease, worker: &self.worker, length: self.lease, redelivered: *again };
        let opened = self.post.claims.open(&envelope.head, &asked).await;
        crate::crash_point!("amqp.open.after_ledger");
        opened
    }

    /// Does what the ledger's word asks for.
    async fn answer(self: &Arc<Self>, item: Item, opened: Opened) -> Opening {
        match opened.claim {
            Claim::Fresh { .. } | Claim::Cancelled => self.grant(item, opened.claim).await,
            Claim::Paused { .. } => Opening::Paused(Box::new(item)),
            Claim::Taken { until } => {
                self.park(item, until.since(self.post.clock.now())).await;
                Opening::Gone
            }
            Claim::Ended(_) | Claim::Stale => {
                self.conclude(item, opened).await;
                Opening::Gone
            }
        }
    }

    /// Takes a claimed job in hand.
    async fn grant(self: &Arc<Self>, item: Item, claim: Claim) -> Opening {
        let Item { parcel, dead, lease, receipt, .. } = item;
        let (head, payload) = (parcel.envelope.head.clone(), parcel.envelope.payload.clone());
        let job = Arc::new(Held::new(parcel, lease, receipt, self.lease));
        self.hands().insert(head.id, Hand::Held(Arc::clone(&job)));
        let hold = Box::new(AmqpHold { desk: Arc::clone(self), held: job, claim, copied: OnceLock::new() });
        if let Some(mut record) = dead {
            record.lease = lease;
            let room = self.room().await;
            self.spawn(async move {
                // Without an answer the claim runs out, and the next to get the message ends it.
                if let Err(error) = hold.bury(&record, room).await {
                    tracing::warn!(%error, job = %head.id, "a job that nobody can read is not recorded yet");
                }
            });
            return Opening::Gone;
        }
        Opening::Granted(Box::new(RawDelivery { head, payload, lease, hold }))
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
                && let Some(receipt) = self.let_go(&held)
            {
                receipt.give_back().await;
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

/// What `work` comes to; `None` if it breaks, so that its caller still answers for the message.
async fn caught<T>(job: JobId, work: impl Future<Output = T>) -> Option<T> {
    let done = AssertUnwindSafe(work).catch_unwind().await;
    if done.is_err() {
        tracing::error!(%job, "a message broke the worker's own code; it goes back");
    }
    done.ok()
}

/// Gives a message back after a moment: it would be here again at once.
async fn rest(receipt: Receipt) {
    tokio::time::sleep(REST).await;
    receipt.give_back().await;
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
