//! Lane queues that somebody deletes while they are consumed: made again where this user may, said once each. What was
//! in them is gone.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::desk::Desk;
use super::post::Post;
use super::topology;
use crate::job::Queue;

/// Without the right to make a queue, it is somebody else who has to, and who may take their time.
const AGAIN: Duration = Duration::from_secs(30);

/// What was done about those that are missing.
#[derive(Debug, Default)]
pub(super) struct Mender {
    tried: Option<Instant>,
    /// Those of the last try, and since when they had been missing.
    known: HashMap<Arc<str>, Instant>,
}

impl Mender {
    /// Sees to the lane queues that are not there, and since when. `owner` says which queue of ours one belongs to.
    pub(super) fn see_to(
        &mut self,
        missing: HashMap<Arc<str>, Instant>,
        owner: impl Fn(&str) -> Option<Queue>,
        desk: &Desk,
    ) {
        let is_new = |(name, since): (&Arc<str>, &Instant)| self.known.get(name) != Some(since);
        let again = self.tried.is_none_or(|at| at.elapsed() >= AGAIN);
        if missing.is_empty() || !again && !missing.iter().any(is_new) {
            return;
        }
        let mut queues: HashMap<Queue, Vec<Arc<str>>> = HashMap::new();
        for (name, since) in &missing {
            let Some(queue) = owner(name) else { continue };
            let new = queues.entry(queue).or_default();
            if is_new((name, since)) {
                new.push(Arc::clone(name));
            }
        }
        (self.tried, self.known) = (Some(Instant::now()), missing);
        for (queue, new) in queues {
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
