//! How long a worker's calls of a limit key took lately. Pure.

use std::collections::VecDeque;

/// The calls whose times are remembered.
const REMEMBERED: usize = 50;

/// In milliseconds.
#[derive(Debug, Default)]
pub(super) struct Latencies(VecDeque<i64>);

impl Latencies {
    pub(super) fn learn(&mut self, latency: i64) {
        if self.0.len() >= REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(latency.max(0));
    }

    /// What two thirds of the calls take longer than. An answer counts as long as it was held and a window from its end on,
    /// less this: were all as quick as the quickest, nothing would be counted for longer than the provider counts it. The
    /// quickest itself would be safe whatever comes, and costs a third of the limit where calls differ much; half is too much.
    pub(super) fn usual(&self) -> i64 {
        let mut sorted: Vec<i64> = self.0.iter().copied().collect();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 3).copied().unwrap_or_default()
    }
}
