//! Lane queues that somebody deletes while they are consumed: made again where this user may, said once each. What was
//! in them is gone.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::desk::Desk;
use super::post::Post;
use super::topology;
use crate::broker::Declared;
use crate::error::{Kind, Result};
use crate::job::Queue;

/// Without the right to make a queue, it is somebody else who has to, and who may take their time.
const AGAIN: Duration = Duration::from_secs(30);

/// Between the first tries of one who has the right.
const SOON: [Duration; 4] =
    [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];

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
    let declared = match declare(post, queue).await {
        Ok(declared) => declared,
        Err(error) => {
            tracing::debug!(%error, %queue, "what is missing of a queue was not made");
            Declared::default()
        }
    };
    for name in new {
        let is_among = |names: &[String]| names.iter().any(|known| **known == **name);
        if is_among(&declared.made) {
            tracing::warn!("RabbitMQ had no queue {name} any more; it is made again, what waited in it is gone");
        } else if is_among(&declared.there) {
            tracing::info!("RabbitMQ had no queue {name} any more; somebody made it again, what waited in it is gone");
        } else {
            tracing::warn!(
                "RabbitMQ has no queue {name} any more, so its jobs go elsewhere or are refused; \
                 hint: run `promptq queues declare {queue}`"
            );
        }
    }
}

/// A server that is still about deleting a queue may refuse to make it for a moment, in words that do not say so.
async fn declare(post: &Post, queue: &Queue) -> Result<Declared> {
    // No models but those that the ledger knows: one that was given up since is not to come back.
    let once = || topology::declare(&post.link, post.ledger(), queue, &[], &post.settings);
    for wait in SOON {
        match once().await {
            Err(error) if !matches!(error.kind(), Kind::Denied | Kind::Closed) => {
                tracing::debug!(%error, %queue, "what is missing of a queue was not made yet");
                tokio::time::sleep(wait).await;
            }
            done => return done,
        }
    }
    once().await
}
