//! A batch of the memory backend, and ended jobs added up.

use crate::job::Queue;
use crate::outcome::{Usage, Usd};
use crate::record::Record;
use crate::time::Timestamp;

/// A batch, and what its forgotten jobs came to.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) queue: Queue,
    pub(super) created_at: Timestamp,
    pub(super) seq: u64,
    pub(super) sealed: bool,
    pub(super) cancelled: bool,
    pub(super) past: Totals,
}

/// Ended jobs, added up.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub(super) ends: [u64; 4],
    pub(super) usage: Usage,
    pub(super) cost: Option<Usd>,
    pub(super) cost_unknown: u64,
    pub(super) last: u64,
}

impl Totals {
    pub(super) fn add(&mut self, cursor: u64, record: &Record) {
        self.ends[record.end as usize] += 1;
        self.spend(record);
        self.last = self.last.max(cursor);
    }

    /// What the record's attempts consumed, without its end.
    pub(super) fn spend(&mut self, record: &Record) {
        self.usage += record.history.usage;
        if let Some(cost) = record.history.cost {
            *self.cost.get_or_insert_default() += cost;
        }
        self.cost_unknown += u64::from(record.history.is_cost_unknown());
    }
}
