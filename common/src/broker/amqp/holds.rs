//! Which hold queues there are: AMQP cannot list queues, so the ledger keeps their names. One whose worker is gone and
//! that is empty is removed; its messages return to their lanes by themselves.

use std::time::Duration;

use super::post::Post;
use super::topology;
use crate::broker::backend::WorkerId;
use crate::error::{Error, Kind, Result};

/// The ledger's note: worker names, one a line.
const NOTE: &str = "amqp/holds";
/// How long changing the note may take.
const LOCK: Duration = Duration::from_secs(10);

/// Notes that this worker has a hold queue, before it has one.
pub(super) async fn add(post: &Post, worker: &WorkerId) -> Result<()> {
    change(post, worker, |names| {
        if !names.iter().any(|name| name == worker.as_str()) {
            names.push(worker.as_str().to_owned());
        }
    })
    .await
}

/// Removes a worker's hold queue unless something is in it or somebody consumes it.
pub(super) async fn remove(post: &Post, worker: &WorkerId) -> Result<()> {
    if topology::drop_hold(&post.link, worker).await? {
        change(post, worker, |names| names.retain(|name| name != worker.as_str())).await?;
    }
    Ok(())
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

async fn change(post: &Post, worker: &WorkerId, edit: impl FnOnce(&mut Vec<String>)) -> Result<()> {
    let ledger = post.ledger();
    if !ledger.lock(NOTE, worker, LOCK).await? {
        return Err(Error::new(Kind::Unavailable, "note a hold queue", "another worker is doing so"));
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
