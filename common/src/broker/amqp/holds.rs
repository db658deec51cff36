//! Which hold queues there are: AMQP cannot list queues, so the ledger keeps their names. One whose worker is gone and
//! that is empty is removed; its messages return to their lanes by themselves.

use std::time::Duration;

use lapin::options::{BasicAckOptions, BasicGetOptions};

use super::post::Post;
use super::{topology, wire};
use crate::broker::backend::WorkerId;
use crate::error::{Error, Kind, Result};
use crate::job::Queue;

const OP: &str = "empty a hold queue";
/// The ledger's note: worker names, one a line.
const NOTE: &str = "amqp/holds";
/// How long changing the note may take.
const LOCK: Duration = Duration::from_secs(10);
/// How often a worker that leaves looks whether its hold queue can go, and after what: its consumer has just ended, and
/// the server takes a moment to have back what that was given.
const LEAVING: u32 = 20;
const MOMENT: Duration = Duration::from_millis(100);

/// Notes that this worker has a hold queue, before it has one.
pub(super) async fn add(post: &Post, worker: &WorkerId) -> Result<()> {
    change(post, worker, |names| {
        if !names.iter().any(|name| name == worker.as_str()) {
            names.push(worker.as_str().to_owned());
        }
    })
    .await
}

/// Removes the hold queue of a worker that has nothing in hand any more and consumes no more. A copy that came after its
/// job had ended would lie there for a lease: it goes to its lane, where whoever gets it asks the ledger.
/// Dead in the middle: a copy may be in both, and the next sweep removes the queue.
pub(super) async fn leave(post: &Post, worker: &WorkerId) -> Result<()> {
    for _ in 0..LEAVING {
        empty(post, worker).await?;
        if remove(post, worker).await? {
            return Ok(());
        }
        tokio::time::sleep(MOMENT).await;
    }
    Err(Error::new(
        Kind::Unavailable,
        "remove a hold queue",
        "the server still counts its consumer; a sweep removes it",
    ))
}

/// Sends what lies in a worker's hold queue to its lanes.
async fn empty(post: &Post, worker: &WorkerId) -> Result<()> {
    let name = topology::hold_name(worker);
    if topology::ready(&post.link, &name).await?.unwrap_or(0) == 0 {
        return Ok(());
    }
    let failed = |error: lapin::Error| post.link.peer().lift(OP, &error);
    let channel = post.link.channel().await?;
    loop {
        let asked = channel.basic_get(name.as_str().into(), BasicGetOptions::default());
        let Some(got) = post.link.answer(OP, asked).await?.map_err(failed)? else { break };
        let owner = topology::queue_of_key(got.delivery.routing_key.as_str()).unwrap_or_else(Queue::standard);
        let read = wire::read(&got.delivery, &owner, post.clock.now());
        post.send(&read.parcel, Duration::ZERO).await?;
        got.delivery.acker.ack(BasicAckOptions::default()).await.map_err(failed)?;
    }
    post.link.answer(OP, channel.close(200, "done".into())).await?.map_err(failed)
}

/// Removes a worker's hold queue unless something is in it or somebody consumes it. Whether it is gone.
async fn remove(post: &Post, worker: &WorkerId) -> Result<bool> {
    let gone = topology::drop_hold(&post.link, worker).await?;
    if gone {
        change(post, worker, |names| names.retain(|name| name != worker.as_str())).await?;
    }
    Ok(gone)
}

/// Removes what workers left behind that are gone.
pub(super) async fn sweep(post: &Post) -> Result<()> {
    let Some(names) = post.ledger().note(NOTE).await? else { return Ok(()) };
    let alive = post.ledger().workers().await?;
    for name in names.lines() {
        if !alive.iter().any(|worker| worker.id.as_str() == name) {
            remove(post, &WorkerId::known(name)).await?;
        }
    }
    Ok(())
}

/// The lock is held for a moment; one whose owner died runs out.
const BUSY: &str = "another worker changes the list of hold queues in the ledger; it is tried again by itself";

async fn change(post: &Post, worker: &WorkerId, edit: impl FnOnce(&mut Vec<String>)) -> Result<()> {
    let ledger = post.ledger();
    if !ledger.lock(NOTE, worker, LOCK).await? {
        return Err(Error::new(Kind::Unavailable, "note a hold queue", BUSY));
    }
    let changed = async {
        let old = ledger.note(NOTE).await?.unwrap_or_default();
        let mut names: Vec<String> = old.lines().map(str::to_owned).collect();
        edit(&mut names);
        let new = names.join("\n");
        ledger.set_note(NOTE, (!new.is_empty()).then_some(&new)).await
    };
    let changed = changed.await;
    ledger.unlock(NOTE, worker).await?;
    changed
}
