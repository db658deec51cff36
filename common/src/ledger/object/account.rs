//! What ended jobs of a batch come to, kept so that one end can take the place of another.

use crate::ledger::Counts;
use crate::outcome::{Usage, Usd};
use crate::record::End;

use super::keys::{Kind, Mark};

/// Ended jobs, added up.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Account {
    ends: [u64; 4],
    usage: Usage,
    cost: Usd,
    priced: u64,
    pub(super) cost_unknown: u64,
}

impl Account {
    /// One more that ended so.
    pub(super) fn add(&mut self, mark: &Mark) {
        if let Kind::Ended(end) = mark.kind {
            self.ends[end as usize] += 1;
            self.usage += mark.usage;
            self.cost += mark.cost.unwrap_or_default();
            self.priced += u64::from(is_priced(mark));
            self.cost_unknown += u64::from(mark.cost.is_none());
        }
    }

    /// One fewer: its job stands otherwise now. What it consumed stays, unless that is in what came in its place.
    pub(super) fn take(&mut self, mark: &Mark, consumed: bool) {
        let Kind::Ended(end) = mark.kind else { return };
        self.ends[end as usize] -= 1;
        if consumed {
            self.usage = Usage {
                input_tokens: self.usage.input_tokens.saturating_sub(mark.usage.input_tokens),
                output_tokens: self.usage.output_tokens.saturating_sub(mark.usage.output_tokens),
                cached_tokens: self.usage.cached_tokens.saturating_sub(mark.usage.cached_tokens),
                reasoning_tokens: self.usage.reasoning_tokens.saturating_sub(mark.usage.reasoning_tokens),
            };
            let left = self.cost.as_nanos().saturating_sub(mark.cost.unwrap_or_default().as_nanos());
            self.cost = Usd::from_nanos(left);
            self.priced -= u64::from(is_priced(mark));
            self.cost_unknown -= u64::from(mark.cost.is_none());
        }
    }

    /// By state, of so many jobs in all; what has not ended is taken to wait.
    pub(super) fn counts(&self, jobs: u64) -> Counts {
        let of = |end: End| self.ends[end as usize];
        let total = jobs.max(self.ended());
        Counts {
            total,
            queued: total - self.ended(),
            succeeded: of(End::Succeeded),
            dead: of(End::Dead),
            cancelled: of(End::Cancelled),
            expired: of(End::Expired),
            ..Counts::default()
        }
    }

    pub(super) fn ended(&self) -> u64 {
        self.ends.iter().sum()
    }

    pub(super) fn usage(&self) -> Usage {
        self.usage
    }

    pub(super) fn cost(&self) -> Option<Usd> {
        (self.priced > 0).then_some(self.cost)
    }
}

/// Whether it has a price: what was never called has none, an answer may have one of nothing.
fn is_priced(mark: &Mark) -> bool {
    mark.cost.is_some_and(|cost| cost > Usd::default() || mark.kind == Kind::Ended(End::Succeeded))
}
