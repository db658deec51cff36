//! How a subscription ends: what was not handed out goes back at once, the channel stays for jobs that still run.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;

use super::desk::{Desk, Item};
use super::slip::Slip;
use super::tap::{Arrival, Tap};
use super::{swap, topology, wire};
use crate::broker::backend::{RawDelivery, Verdict};
use crate::job::Queue;

/// How often it is looked whether the last job is done.
const LOOK: Duration = Duration::from_millis(100);

/// Gives back what was claimed and not handed out, spending nothing.
pub(super) async fn release(jobs: Vec<RawDelivery>) {
    for job in jobs {
        let verdict = Verdict::Release { after: Duration::ZERO, hold: None };
        if let Err(error) = job.hold.settle(&verdict).await {
            tracing::debug!(%error, job = %job.head.id, "a claim is left to run out");
        }
    }
}

/// Keeps the channel for jobs that still run, gives back what is delivered all the same, and closes after the last.
pub(super) async fn see_off(desk: Weak<Desk>, mut tap: Tap, keepers: JoinSet<()>, hold: Arc<str>) {
    let mut last = None;
    while let Some(desk) = desk.upgrade() {
        if desk.is_done() {
            last = Some(desk);
            break;
        }
        match timeout(LOOK, tap.next()).await {
            Ok(Some(arrival)) => hand_back(&desk, arrival, &hold).await,
            Ok(None) => break,
            Err(_) => {}
        }
    }
    tap.close().await;
    drop(keepers);
    if let Some(desk) = last {
        swap::leave(&desk).await;
    }
}

async fn hand_back(desk: &Desk, arrival: Arrival, hold: &Arc<str>) {
    let Arrival { queue, delivery, count, ended } = arrival;
    let slip = Slip::new(delivery.acker.clone(), &count, ended);
    let owner = topology::queue_of_key(delivery.routing_key.as_str()).unwrap_or_else(Queue::standard);
    let read = wire::read(&delivery, &owner, desk.post.clock.now());
    let Some(item) = desk.attach(Item::new(read, slip, delivery.redelivered, queue == *hold)) else { return };
    if item.held {
        desk.post.park(item.parcel, item.slip, Duration::ZERO).await;
    } else {
        item.slip.give_back().await;
    }
}
