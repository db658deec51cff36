//! Opening messages: the ledger is asked about many at once, and each goes where its word sends it. What is in hand is
//! `desk.rs`.

use std::collections::hash_map::Entry;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, join_all};

use super::desk::{Desk, Hand, Item, REST, rest};
use super::held::Held;
use super::hold::AmqpHold;
use super::wire::Read;
use crate::broker::backend::{Claim, Envelope, RawDelivery};
use crate::error::{Error, Result};
use crate::job::JobId;
use crate::ledger::{Asked, Opened, Registered};
use crate::record::Record;
use crate::time::Timestamp;

/// What came of opening a message.
#[derive(Debug)]
pub(super) enum Opening {
    /// It may run, or has to be settled.
    Granted(Box<RawDelivery>),
    /// Its queue is paused.
    Paused(Box<Item>),
    /// A copy of it is in hand, or another attempt of its job.
    Second(Box<Item>),
    /// The ledger did not answer.
    Failed(Box<Item>, Error),
}

/// A message that is being opened, until that is over, however it ended.
struct Entered(Arc<Desk>, JobId);

impl Drop for Entered {
    fn drop(&mut self) {
        let mut hands = self.0.hands();
        if matches!(hands.get(&self.1), Some(Hand::Opening { .. })) {
            hands.remove(&self.1);
        }
    }
}

/// What came of opening messages together.
#[derive(Default)]
struct Openings {
    now: Vec<Opening>,
    /// What is left to do for the others; of those there is nothing to say.
    later: Vec<BoxFuture<'static, ()>>,
}

impl Openings {
    fn extend(&mut self, others: impl IntoIterator<Item = Self>) {
        for Self { now, later } in others {
            self.now.extend(now);
            self.later.extend(later);
        }
    }
}

impl Desk {
    /// Asks the ledger whether messages may run, and answers for those that may not. None waits for another of them: what
    /// takes longer goes on by itself, each with a `slot` until it is done, and is left out of the answer.
    pub(super) async fn open_all<S: Send + 'static>(
        self: Arc<Self>,
        items: Vec<Item>,
        mut slot: impl FnMut() -> S,
    ) -> Vec<Opening> {
        let (named, ours): (Vec<_>, Vec<_>) = items.into_iter().partition(|item| item.parcel.named);
        let named = join_all(named.into_iter().map(|item| self.open_one(item)));
        let (named, mut openings) = tokio::join!(named, self.open_ours(ours));
        openings.extend(named);
        for work in openings.later {
            let slot = slot();
            self.spawn(async move {
                work.await;
                drop(slot);
            });
        }
        openings.now
    }

    async fn open_one(self: &Arc<Self>, item: Item) -> Openings {
        let mut openings = Openings::default();
        let Some(mut item) = self.attach(item) else { return openings };
        let id = item.parcel.envelope.head.id;
        let Some(entered) = self.enter(id) else {
            openings.now.push(Opening::Second(Box::new(item)));
            return openings;
        };
        match caught(id, Box::pin(self.ask(&mut item))).await {
            Some(Ok(opened)) => self.follow((entered, item), opened, &mut openings),
            Some(Err(error)) => openings.now.push(Opening::Failed(Box::new(item), error)),
            None => {
                let resting = Arc::clone(self).aside(rest(item.receipt));
                openings.later.push(later(entered, resting));
            }
        }
        openings
    }

    /// Of messages that nothing is to be asked about but whether they may run.
    async fn open_ours(self: &Arc<Self>, items: Vec<Item>) -> Openings {
        let mut openings = Openings { now: Vec::with_capacity(items.len()), later: Vec::new() };
        let mut asking = Vec::with_capacity(items.len());
        for item in items {
            let Some(item) = self.attach(item) else { continue };
            match self.enter(item.parcel.envelope.head.id) {
                Some(entered) => asking.push((entered, item)),
                None => openings.now.push(Opening::Second(Box::new(item))),
            }
        }
        if asking.is_empty() {
            return openings;
        }
        crate::crash_point!("amqp.open.before_ledger");
        let asked: Vec<_> = asking.iter().map(|(_, item)| (&item.parcel.envelope.head, self.asked(item))).collect();
        let opened = AssertUnwindSafe(self.post.claims.open_all(&asked)).catch_unwind().await;
        crate::crash_point!("amqp.open.after_ledger");
        let Ok(opened) = opened else {
            // One by one, each breaks for itself alone. Asked again with the same lease, it is the same claim.
            let again = asking.into_iter().map(|(entered, item)| {
                drop(entered);
                self.open_one(item)
            });
            openings.extend(join_all(again).await);
            return openings;
        };
        for ((entered, item), opened) in asking.into_iter().zip(opened) {
            match opened {
                Ok(opened) => self.follow((entered, item), opened, &mut openings),
                Err(error) => openings.now.push(Opening::Failed(Box::new(item), error)),
            }
        }
        openings
    }

    /// Does what the ledger's word asks for: at once, unless that may take a while.
    fn follow(self: &Arc<Self>, (entered, mut item): (Entered, Item), opened: Opened, openings: &mut Openings) {
        let work = match opened.claim {
            Claim::Fresh { .. } | Claim::Cancelled => {
                if let Some(record) = item.dead.take() {
                    later(entered, Arc::clone(self).bury(item, opened.claim, record))
                } else {
                    if let Ok(delivery) = catch_unwind(AssertUnwindSafe(|| self.granted(item, opened.claim))) {
                        return openings.now.push(Opening::Granted(Box::new(delivery)));
                    }
                    broke(entered.1);
                    later(entered, pause())
                }
            }
            Claim::Paused { .. } => return openings.now.push(Opening::Paused(Box::new(item))),
            Claim::Taken { until } => later(entered, Arc::clone(self).park(item, until)),
            Claim::Ended(_) | Claim::Stale => later(entered, Arc::clone(self).conclude(item, opened)),
        };
        openings.later.push(work);
    }

    fn asked(&self, item: &Item) -> Asked<'_> {
        Asked { lease: item.lease, worker: &self.worker, length: self.lease, redelivered: item.parcel.again }
    }

    /// Notes a message as being opened; `None` when one of its job is in hand already.
    fn enter(self: &Arc<Self>, id: JobId) -> Option<Entered> {
        match self.hands().entry(id) {
            Entry::Vacant(place) => place.insert(Hand::Opening { copied: false }),
            Entry::Occupied(mut hand) => {
                match hand.get_mut() {
                    Hand::Opening { copied } => *copied = true,
                    Hand::Held(held) => held.has_copy(),
                }
                return None;
            }
        };
        Some(Entered(Arc::clone(self), id))
    }

    /// Has a message wait elsewhere.
    async fn park(self: Arc<Self>, item: Item, until: Timestamp) {
        let (desk, wait) = (Arc::clone(&self), until.since(self.post.clock.now()));
        self.aside(async move { item.put_off(&desk.post, wait).await }).await;
    }

    /// Answers for the message of a job that has ended.
    async fn conclude(self: Arc<Self>, item: Item, opened: Opened) {
        let desk = Arc::clone(&self);
        self.aside(async move {
            let id = item.parcel.envelope.head.id;
            match caught(id, Box::pin(desk.post.conclude(&item.parcel, &opened))).await {
                Some(Ok(())) => return item.receipt.ack(),
                Some(Err(error)) => tracing::warn!(%error, job = %id, "an ended job is not announced yet"),
                None => {}
            }
            rest(item.receipt).await;
        })
        .await;
    }

    /// Goes on with something that no neighbour is to wait for: those that were opened with it run already.
    async fn aside(self: Arc<Self>, work: impl Future<Output = ()> + Send + 'static) {
        let room = self.room().await;
        self.spawn(async move {
            work.await;
            drop(room);
        });
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
        crate::crash_point!("amqp.open.before_ledger");
        let opened = self.post.claims.open(&item.parcel.envelope.head, &self.asked(item)).await;
        crate::crash_point!("amqp.open.after_ledger");
        opened
    }

    /// Ends a claimed job that nobody can read.
    async fn bury(self: Arc<Self>, item: Item, claim: Claim, mut record: Box<Record>) {
        let hold = self.hold(item, claim);
        record.lease = hold.held.lease;
        let room = self.room().await;
        self.spawn(async move {
            // Without an answer the claim runs out, and the next to get the message ends it.
            if let Err(error) = hold.bury(&record, room).await {
                tracing::warn!(%error, job = %record.id, "a job that nobody can read is not recorded yet");
            }
        });
    }

    /// Takes a claimed job in hand.
    fn granted(self: &Arc<Self>, item: Item, claim: Claim) -> RawDelivery {
        let hold = self.hold(item, claim);
        let Envelope { head, payload } = hold.held.parcel.envelope.clone();
        RawDelivery { head, payload, lease: hold.held.lease, hold: Box::new(hold) }
    }

    fn hold(self: &Arc<Self>, item: Item, claim: Claim) -> AmqpHold {
        let Item { parcel, lease, receipt, .. } = item;
        let held = Arc::new(Held::new(parcel, lease, receipt, self.lease));
        if let Some(Hand::Opening { copied: true }) = self.hands().insert(held.id(), Hand::Held(Arc::clone(&held))) {
            held.has_copy();
        }
        AmqpHold { desk: Arc::clone(self), held, claim, copied: OnceLock::new() }
    }
}

/// What is left to do for a message, whatever breaks by that.
fn later(entered: Entered, work: impl Future<Output = ()> + Send + 'static) -> BoxFuture<'static, ()> {
    async move {
        if caught(entered.1, work).await.is_none() {
            pause().await;
        }
        drop(entered);
    }
    .boxed()
}

/// After a message that broke the code here: it went back at once, and would be here again as fast.
async fn pause() {
    tokio::time::sleep(REST).await;
}

#[cfg(test)]
impl Desk {
    /// As [`Self::open_all`], of one, and waits for what takes longer.
    pub(super) async fn open(self: Arc<Self>, item: Item) -> Option<Opening> {
        let Openings { mut now, later } = self.open_one(item).await;
        join_all(later).await;
        now.pop()
    }
}

/// What `work` comes to; `None` if it breaks, so that its caller still answers for the message.
async fn caught<T>(job: JobId, work: impl Future<Output = T>) -> Option<T> {
    let done = AssertUnwindSafe(work).catch_unwind().await;
    if done.is_err() {
        broke(job);
    }
    done.ok()
}

fn broke(job: JobId) {
    tracing::error!(%job, "a message broke the worker's own code; it goes back");
}
