//! A worker without jobs: whether it may leave, and what it waits for.

use std::time::Duration;

use promptq_common::error::Error;
use tokio::time::Instant;

use super::Intake;

impl Intake {
    /// Whether an idle worker leaves nothing behind that may come back to it soon: the jobs of a worker that has died
    /// come back when their leases run out, retries when they are due. After a lease more it waits no longer.
    pub(super) async fn nothing_is_left(&self, idle: Duration) -> bool {
        let settings = &self.desk.settings;
        let counting = async {
            let mut left = 0;
            for (queue, _) in &settings.queues {
                let depth = self.broker.depth(queue).await?;
                left += depth.running + depth.delayed;
            }
            Ok::<_, Error>(left)
        };
        let mut phase = self.phase.clone();
        let counted = tokio::select! {
            biased;
            _ = phase.changed() => return false,
            counted = counting => counted,
        };
        match counted {
            Ok(left) => left == 0 || idle >= settings.exit_when_idle.unwrap_or_default() + settings.lease,
            Err(error) => {
                tracing::warn!(%error, "cannot ask what is left to run; not leaving yet");
                false
            }
        }
    }

    /// Tells whoever has a worker leave by itself why it does not.
    pub(super) fn say_what_waits(&mut self) {
        if self.desk.settings.exit_when_idle.is_some() && self.said_at.replace(Instant::now()).is_none() {
            tracing::info!(
                "jobs wait that may not run now: their queue is paused, or a limit is shut; waiting with them. \
                 `promptq queues list` shows what is paused, `promptq queues resume NAME` ends that"
            );
        }
    }
}
