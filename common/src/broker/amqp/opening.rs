//! Opening messages: the ledger is asked about many at once, and each goes where its word sends it. What is in hand is
//! `desk.rs`.

use std::collections::hash_map::Entry;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;

use super::desk::{Desk, Hand, Item, REST};
use super::held::Held;
use super::hold::AmqpHold;
use super::receipt::Receipt;
use super::wire::Read;
use crate::broker::backend::{Claim, Envelope, RawDelivery};
use crate::error::{Error, Result};
use crate::job::JobId;
use crate::ledger::{Asked, Opened, Registered};

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

impl Desk {
    /// Asks the ledger whether a message may run, and answers for it if not.
    pub(super) async fn open(self: Arc<Self>, item: Item) -> Opening {
        let Some(mut item) = self.attach(item) else { return Opening::Gone };
        let id = item.parcel.envelope.head.id;
        let Some(_entered) = self.enter(id) else { return Opening::Second(Box::new(item)) };
        match caught(id, Box::pin(self.ask(&mut item))).await {
            Some(Ok(opened)) => self.follow(item, opened).await,
            Some(Err(error)) => Opening::Failed(Box::new(item), error),
            None => {
                self.aside(rest(item.receipt)).await;
                Opening::Gone
            }
        }
    }

    /// As [`Self::open`], of many at once.
    pub(super) async fn open_all(self: Arc<Self>, items: Vec<Item>) -> Vec<Opening> {
        let (named, ours): (Vec<_>, Vec<_>) = items.into_iter().partition(|item| item.parcel.named);
        let named = join_all(named.into_iter().map(|item| Arc::clone(&self).open(item)));
        let (named, mut openings) = tokio::join!(named, Arc::clone(&self).open_ours(ours));
        openings.extend(named);
        openings
    }

    /// Of messages that nothing is to be asked about but whether they may run.
    async fn open_ours(self: Arc<Self>, items: Vec<Item>) -> Vec<Opening> {
        let (mut openings, mut asking) = (Vec::with_capacity(items.len()), Vec::with_capacity(items.len()));
        let mut entered = Vec::with_capacity(items.len());
        for item in items {
            let Some(item) = self.attach(item) else { continue };
            match self.enter(item.parcel.envelope.head.id) {
                Some(place) => {
                    entered.push(place);
                    asking.push(item);
                }
                None => openings.push(Opening::Second(Box::new(item))),
            }
        }
        if asking.is_empty() {
            return openings;
        }
        crate::crash_point!("amqp.open.before_ledger");
        let asked: Vec<_> = asking.iter().map(|item| (&item.parcel.envelope.head, self.asked(item))).collect();
        let opened = AssertUnwindSafe(self.post.claims.open_all(&asked)).catch_unwind().await;
        crate::crash_point!("amqp.open.after_ledger");
        let Ok(opened) = opened else {
            // One by one, each breaks for itself alone. Asked again with the same lease, it is the same claim.
            drop(entered);
            openings.extend(join_all(asking.into_iter().map(|item| Arc::clone(&self).open(item))).await);
            return openings;
        };
        let mut others = Vec::new();
        for (item, opened) in asking.into_iter().zip(opened) {
            match opened {
                Ok(opened) if item.dead.is_none() && matches!(opened.claim, Claim::Fresh { .. }) => {
                    match catch_unwind(AssertUnwindSafe(|| self.granted(item, opened.claim))) {
                        Ok(delivery) => openings.push(Opening::Granted(Box::new(delivery))),
                        Err(_) => others.push(self.broken().boxed()),
                    }
                }
                Ok(opened) => others.push(self.follow(item, opened).boxed()),
                Err(error) => openings.push(Opening::Failed(Box::new(item), error)),
            }
        }
        openings.extend(join_all(others).await);
        drop(entered);
        openings
    }

    /// Does what the ledger's word asks for, whatever breaks by that.
    async fn follow(self: &Arc<Self>, item: Item, opened: Opened) -> Opening {
        let id = item.parcel.envelope.head.id;
        match caught(id, Box::pin(self.answer(item, opened))).await {
            Some(opening) => opening,
            None => self.broken().await,
        }
    }

    /// After a message that broke the code here.
    async fn broken(&self) -> Opening {
        // It went back at once, and would be here again as fast.
        tokio::time::sleep(REST).await;
        Opening::Gone
    }

    fn asked(&self, item: &Item) -> Asked<'_> {
        Asked { lease: item.lease, worker: &self.worker, length: self.lease, redelivered: item.parcel.again }
    }

    /// Notes a message as being opened; `None` when one of its job is in hand already.
    fn enter(&self, id: JobId) -> Option<Entered<'_>> {
        if let Entry::Vacant(place) = self.hands().entry(id) {
            place.insert(Hand::Opening);
            return Some(Entered(self, id));
        }
        None
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
                Some(Ok(())) => return item.receipt.ack(),
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
    async fn grant(self: &Arc<Self>, mut item: Item, claim: Claim) -> Opening {
        let Some(mut record) = item.dead.take() else {
            return Opening::Granted(Box::new(self.granted(item, claim)));
        };
        let hold = self.hold(item, claim);
        record.lease = hold.held.lease;
        let room = self.room().await;
        self.spawn(async move {
            // Without an answer the claim runs out, and the next to get the message ends it.
            if let Err(error) = hold.bury(&record, room).await {
                tracing::warn!(%error, job = %record.id, "a job that nobody can read is not recorded yet");
            }
        });
        Opening::Gone
    }

    fn granted(self: &Arc<Self>, item: Item, claim: Claim) -> RawDelivery {
        let hold = self.hold(item, claim);
        let Envelope { head, payload } = hold.held.parcel.envelope.clone();
        RawDelivery { head, payload, lease: hold.held.lease, hold: Box::new(hold) }
    }

    fn hold(self: &Arc<Self>, item: Item, claim: Claim) -> AmqpHold {
        let Item { parcel, lease, receipt, .. } = item;
        let held = Arc::new(Held::new(parcel, lease, receipt, self.lease));
        self.hands().insert(held.id(), Hand::Held(Arc::clone(&held)));
        AmqpHold { desk: Arc::clone(self), held, claim, copied: OnceLock::new() }
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
    receipt.give_back();
}
