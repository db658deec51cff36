//! How a subscription ends: what was not handed out goes back at once, the channel stays for jobs that still run.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::consumers::{Arrival, Consumers};
use super::desk::{Desk, Item};
use super::receipt::Receipt;
use super::{swap, topology, wire};
use crate::broker::backend::{RawDelivery, Verdict};
use crate::job::Queue;

/// How often it is looked whether the last job is done.
const LOOK: Duration = Duration::from_millis(100);
/// How long a worker that leaves waits for its channel and its hold queue to go.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between attempts to give a claim back.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Gives back what was claimed and not handed out, spending nothing. While the ledger does not hear of it that is tried
/// again, for as long as a claim lasts: one that runs out is a death.
pub(super) async fn release(jobs: Vec<RawDelivery>, lease: Duration) {
    let one = |job: RawDelivery| async move {
        let verdict = Verdict::Release { after: Duration::ZERO, hold: None };
        let mut pause = PAUSES.0;
        while let Err(error) = job.hold.settle(&verdict).await {
            tracing::debug!(%error, job = %job.head.id, "a claim was not given back; trying again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    };
    if timeout(lease, join_all(jobs.into_iter().map(one))).await.is_err() {
        tracing::warn!("the ledger took no claims back; they have run out, and count as a death each");
    }
}

/// Gives back what nobody has started.
pub(super) fn give_back(items: Vec<Item>) {
    for item in items {
        item.receipt.give_back();
    }
}

/// Ends a subscription whose worker takes no more: now if nothing runs, else behind the last job.
pub(super) async fn quit(desk: Arc<Desk>, consumers: Consumers, keepers: JoinSet<()>, hold: Arc<str>) {
    let post = Arc::clone(&desk.post);
    let seen_off = see_off(Arc::downgrade(&desk), consumers, keepers, hold);
    if desk.is_done() {
        // A process that leaves does not wait for what is spawned.
        if timeout(PATIENCE, seen_off).await.is_err() {
            tracing::debug!("what this worker leaves behind is for the next sweep");
        }
        return;
    }
    drop(desk);
    post.outlive(seen_off);
}

/// Keeps the channel for jobs that still run, gives back what is delivered all the same, and closes after the last.
async fn see_off(desk: Weak<Desk>, mut consumers: Consumers, mut keepers: JoinSet<()>, hold: Arc<str>) {
    let mut last = None;
    while let Some(desk) = desk.upgrade() {
        if desk.count() == 0 {
            desk.finish(PATIENCE).await;
            last = Some(desk);
            break;
        }
        // A job may become a long one only now.
        if desk.holding.load(Ordering::Relaxed) {
            consumers.set([(Arc::clone(&hold), 0)].into_iter().collect());
        }
        match timeout(LOOK, consumers.next()).await {
            Ok(Some(arrival)) => hand_back(&desk, arrival, &hold),
            Ok(None) => break,
            Err(_) => {}
        }
    }
    consumers.close().await;
    // Nothing is to be sent to the hold queue any more.
    keepers.shutdown().await;
    if let Some(desk) = last {
        swap::leave(&desk).await;
    }
}

fn hand_back(desk: &Desk, arrival: Arrival, hold: &Arc<str>) {
    let Arrival { queue, delivery, origin } = arrival;
    let receipt = Receipt::new(&delivery, &origin);
    let owner = topology::queue_of_key(delivery.routing_key.as_str()).unwrap_or_else(Queue::standard);
    let read = wire::read(&delivery, &owner, desk.post.clock.now());
    let Some(item) = desk.attach(Item::new(read, receipt, delivery.redelivered, queue == *hold)) else { return };
    if item.held {
        let post = Arc::clone(&desk.post);
        desk.spawn(async move { item.put_off(&post, Duration::ZERO).await });
    } else {
        item.receipt.give_back();
    }
}
