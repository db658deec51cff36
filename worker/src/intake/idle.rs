//! A worker without jobs: whether it may leave, and what it waits for.

use std::time::Duration;

use promptq_common::error::Error;
use promptq_common::job::Lane;
use promptq_common::limits::Held;
use promptq_common::time::Timestamp;
use tokio::time::Instant;

use super::Intake;
use crate::StopReason;

impl Intake {
    /// Why an idle worker leaves, if nothing stays behind that may come back to it soon: the jobs of a worker that has died
    /// come back when their leases run out, retries when they are due. After a lease more it waits no longer.
    pub(super) async fn nothing_is_left(&self, idle: Duration) -> Option<StopReason> {
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
            _ = phase.changed() => return None,
            counted = counting => counted,
        };
        match counted {
            Ok(0) => Some(StopReason::Idle),
            Ok(_) if idle < settings.exit_when_idle.unwrap_or_default() + settings.lease => None,
            Ok(_) => Some(self.broke(&[]).unwrap_or(StopReason::Idle)),
            Err(error) => {
                tracing::warn!(%error, "cannot ask what is left to run; not leaving yet");
                None
            }
        }
    }

    /// Why a worker that leaves by itself does so, if there is no money for any job of these lanes, which are ready: nothing
    /// that it could wait for brings any.
    fn broke(&self, lanes: &[Lane]) -> Option<StopReason> {
        let Held { key, detail, .. } = self.desk.limits.is_spent_for(lanes)?;
        tracing::warn!(
            key,
            "leaving: the jobs that are left wait for money: {detail}; `promptq limits set {key:?} usd=AMOUNT` allows more"
        );
        Some(StopReason::Broke)
    }

    /// Tells whoever has a worker leave by itself why it does not, while jobs of these lanes are ready and may not run; or why
    /// it leaves after all.
    pub(super) fn waits_with(&mut self, lanes: &[Lane]) -> Option<StopReason> {
        let length = self.desk.settings.exit_when_idle?;
        if self.waits_since.is_none() {
            tracing::info!(
                "jobs wait that may not run now: their queue is paused, or a limit is shut; waiting with them. \
                 `promptq queues list` shows what is paused, `promptq queues resume NAME` ends that"
            );
        }
        let is_long = self.waits_since.get_or_insert_with(Instant::now).elapsed() >= length;
        let retries = self.retries_until.is_some_and(|until| until >= Timestamp::now());
        if is_long && !retries { self.broke(lanes) } else { None }
    }
}
