//! How much a worker may take now: its free slots, and what limits leave of each lane.

use std::time::Duration;

use promptq_common::broker::{Delivery, Want};
use promptq_common::job::{Lane, ModelName};

use super::Intake;

/// Settling that has failed for longer than this stops the taking: what is done must be stored first.
pub(super) const TROUBLE: Duration = Duration::from_secs(5);

impl Intake {
    /// Tells the limits which lanes hold jobs.
    pub(super) fn note_lanes(&self, seen: &[Lane], delivered: &[Delivery]) {
        if self.desk.limits.wants_lanes() {
            let delivered = delivered.iter().map(|delivery| &delivery.head.lane);
            let ways_of = |lane: &Lane| {
                let model = lane.model.as_ref().map(ModelName::as_str);
                self.desk.runners.limit_keys(&lane.queue, model)
            };
            self.desk.limits.seen(seen.iter().chain(delivered), ways_of);
        }
    }

    /// How much there is room for now.
    pub(super) fn want(&self) -> Want {
        let settings = &self.desk.settings;
        let running = u32::try_from(self.running.len()).unwrap_or(u32::MAX);
        let mut total = settings.concurrency.saturating_sub(running);
        if let Some(most) = settings.max_jobs {
            let left = most.saturating_sub(self.ran() + u64::from(running));
            total = total.min(u32::try_from(left).unwrap_or(u32::MAX));
        }
        if self.held_back() {
            total = 0;
        }
        let mut caps = self.desk.limits.caps();
        for (_, cap) in &mut caps {
            *cap = (*cap).min(total);
        }
        Want { total, caps, rest: self.desk.limits.rest(total) }
    }

    /// Whether the broker may answer an earlier question with more than there is room for now, or would not answer it
    /// with what there is room for. More free slots alone are no reason: an answer that can come is there at once.
    pub(super) fn outgrown(&self, asked: &Want) -> bool {
        let now = self.want();
        let open = |want: &Want| -> Vec<_> { want.caps.iter().map(|(lane, cap)| (lane.clone(), *cap > 0)).collect() };
        now.total < asked.total || (asked.total == 0 && now.total > 0) || open(&now) != open(asked)
    }

    pub(super) fn held_back(&self) -> bool {
        self.shortage.borrow().is_some() || self.broker.settle_trouble().is_some_and(|since| since > TROUBLE)
    }
}
