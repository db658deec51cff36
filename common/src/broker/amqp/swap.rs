//! Jobs that run for longer than the server lets a delivery stay unanswered: their message changes to this worker's own
//! hold queue and comes back by it, as a fresh delivery. Should the worker die, the hold queue returns it to its lane.

use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::desk::Desk;
use super::held::Held;
use super::publisher::{Message, Sent};
use super::{holds, topology};
use crate::error::{Error, Kind, Result};

/// However long the server waits, a message changes after this.
const LATEST: Duration = Duration::from_secs(25 * 60);

/// How long a delivery stays unanswered: half of `timeout`, the server's patience.
pub(super) fn patience(timeout: Duration) -> Duration {
    (timeout / 2).min(LATEST)
}

/// Keeps the claims and messages in hand, for as long as somebody has one. A message changes once it is as old as
/// [`patience`] says.
pub(super) async fn keep(desk: Weak<Desk>, timeout: Duration, lease: Duration) {
    let age = patience(timeout);
    let pause = (lease / 8).min(age / 8).clamp(Duration::from_millis(20), Duration::from_secs(1));
    loop {
        tokio::time::sleep(pause).await;
        let Some(desk) = desk.upgrade() else { return };
        desk.expire();
        for held in desk.held(|held| held.is_old(age)) {
            if let Err(error) = swap(&desk, &held).await {
                tracing::warn!(%error, job = %held.id(), "the message of a long job was not renewed; trying again");
                break;
            }
        }
    }
}

/// Sends a copy of a message to the hold queue, where its consumer meets the job that runs.
async fn swap(desk: &Desk, held: &Held) -> Result<()> {
    let name = topology::hold_name(&desk.worker);
    if !desk.holding.load(Ordering::Relaxed) {
        holds::add(&desk.post, &desk.worker).await?;
        topology::declare_hold(&desk.post.link, &desk.worker, desk.lease, &desk.post.settings).await?;
        desk.holding.store(true, Ordering::Relaxed);
    }
    let (properties, body) = held.parcel.message(true)?;
    let key = topology::key(&held.parcel.envelope.head.lane);
    held.swapping();
    let message = Message { exchange: name, key, properties, body, mandatory: true };
    let sent = desk.post.link.publisher().publish(message).await;
    if !matches!(sent, Ok(Sent::Taken)) {
        // Tried again at once: the server's patience does not wait. Should it have come all the same, it stands, too.
        held.not_swapping();
    }
    match sent {
        Ok(Sent::Taken) => Ok(()),
        // Somebody has deleted the queue, and its exchange went with it.
        Ok(Sent::Returned) => Err(gone(desk)),
        Err(error) if error.kind() == Kind::NotFound => Err(gone(desk)),
        Err(error) => Err(error),
    }
}

fn gone(desk: &Desk) -> Error {
    desk.holding.store(false, Ordering::Relaxed);
    Error::new(Kind::Unavailable, "renew a message", "the hold queue is gone; making it again")
}

/// Removes the hold queue, if there is one.
pub(super) async fn leave(desk: &Desk) {
    if !desk.holding.load(Ordering::Relaxed) {
        return;
    }
    if let Err(error) = holds::leave(&desk.post, &desk.worker).await {
        tracing::debug!(%error, "the hold queue stays for the next sweep");
    }
}
