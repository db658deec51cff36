//! What the loop shows of itself: counts, and what holds jobs back. It changes nothing but what is shown.

use promptq_common::limits::Held;
use promptq_common::time::Timestamp;
use tokio::time::Instant;

use super::want::TROUBLE;
use super::{Heard, Intake, SHOW};
use crate::admission::Shortage;
use crate::status::{Blocked, BlockedBy, Status};

impl Intake {
    /// Shows what goes on, unless it was shown a moment ago.
    pub(crate) fn show_soon(&mut self) {
        if self.shown_at.elapsed() >= SHOW {
            self.show();
        }
    }

    /// Shows what goes on.
    pub(crate) fn show(&mut self) {
        self.shown_at = Instant::now();
        self.dirty = false;
        let held = self.desk.limits.held();
        // A job that tries a way which all others pass by is under way itself.
        let tries = |held: &&Held| held.probing && !self.desk.limits.lanes_behind(&held.key, 1).is_empty();
        let probing = u32::try_from(held.iter().filter(tries).count()).unwrap_or(u32::MAX);
        let spent = held.iter().filter(|held| held.spent).map(|held| held.key.clone()).collect();
        let mut blocked: Vec<_> = held
            .into_iter()
            .map(|held| {
                let by = BlockedBy::Limit { key: held.key, class: held.class };
                Blocked { by, detail: held.detail, since: held.since, until: Some(held.until), cap: held.cap }
            })
            .collect();
        blocked.extend(self.blocked_here());
        blocked.sort_by_key(|blocked| blocked.since);
        self.board.show(Status {
            running: u32::try_from(self.running.len()).unwrap_or(u32::MAX),
            probing,
            finished: self.finished,
            blocked,
            draining: self.draining,
            consuming: self.heard > Heard::Nothing,
            progress_at: self.progress_at,
            spent,
            retries_until: self.retries_until,
        });
    }

    /// What holds everything back, whatever the lane.
    fn blocked_here(&mut self) -> Vec<Blocked> {
        let shortage = self.shortage.borrow().clone();
        let now = Timestamp::now();
        self.short_since = shortage.as_ref().map(|_| self.short_since.unwrap_or(now));
        let short = shortage.map(|shortage| {
            let (by, detail) = match shortage {
                Shortage::Memory(figure) => (BlockedBy::Memory, figure),
                Shortage::Disk(figure) => (BlockedBy::Disk, figure),
            };
            Blocked { by, detail, since: self.short_since.unwrap_or(now), until: None, cap: None }
        });
        let settling = self.broker.settle_trouble().filter(|since| *since > TROUBLE).map(|since| {
            let detail = "jobs that are done cannot be stored".to_owned();
            Blocked { by: BlockedBy::Settling, detail, since: now - since, until: None, cap: None }
        });
        let broker = self.failing.as_ref().map(|failing| {
            let (detail, since) = (failing.detail.clone(), failing.since.1);
            Blocked { by: BlockedBy::Broker, detail, since, until: None, cap: None }
        });
        [short, settling, broker].into_iter().flatten().collect()
    }
}
