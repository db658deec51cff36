//! Lane queues that somebody deletes while they are consumed: made again where this user may, said once each. What was
//! in them is gone.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::desk::Desk;
use super::post::Post;
use super::topology;
use crate::job::Queue;

/// Without the right to make a queue, it is somebody else who has to, and who may take their time.
const AGAIN: Duration = Duration::from_secs(30);

/// Which are missing, and what was done about it.
#[derive(Debug, Default)]
pub(super) struct Mender {
    tried: Option<Instant>,
    /// As of the last try.
    known: HashSet<Arc<str>>,
}

impl Mender {
    /// Sees to the lane queues that are not there, each with the queue of ours that it belongs to.
    pub(super) fn see_to(&mut self, missing: &[(Arc<str>, Queue)], desk: &Arc<Desk>) {
        if missing.is_empty() {
            self.known.clear();
            return;
        }
        let all_known = missing.iter().all(|(name, _)| self.known.contains(name));
        if all_known && self.tried.is_some_and(|at| at.elapsed() < AGAIN) {
            return;
        }
        self.tried = Some(Instant::now());
        let new: Vec<_> = missing.iter().filter(|(name, _)| !self.known.contains(name)).cloned().collect();
        self.known = missing.iter().map(|(name, _)| Arc::clone(name)).collect();
        let queues: HashSet<Queue> = missing.iter().map(|(_, queue)| queue.clone()).collect();
        for queue in queues {
            let new: Vec<_> = new.iter().filter(|(_, of)| *of == queue).map(|(name, _)| Arc::clone(name)).collect();
            let post = Arc::clone(&desk.post);
            desk.spawn(async move { mend(&post, &queue, &new).await });
        }
    }
}

/// Makes everything of a queue that is missing, and tells of those that were not known to be.
async fn mend(post: &Post, queue: &Queue, new: &[Arc<str>]) {
    // No models but those that the ledger knows: one that was given up since is not to come back.
    let made = topology::declare(&post.link, post.ledger(), queue, &[], &post.settings).await;
    if let Err(error) = &made {
        tracing::debug!(%error, %queue, "what is missing of a queue was not made");
    }
    let made = made.map(|declared| declared.made).unwrap_or_default();
    for name in new {
        if made.iter().any(|made| **made == **name) {
            tracing::warn!("RabbitMQ had no queue {name} any more; it is made again, what waited in it is gone");
        } else {
            tracing::warn!(
                "RabbitMQ has no queue {name} any more, so its jobs go elsewhere or are refused; \
                 hint: run `promptq queues declare {queue}`"
            );
        }
    }
}
