//! Endpoints that get only so many calls at once from this worker, as people see them. Why and how many: `aimd.rs`.

use tokio::time::Instant;

use super::Limits;
use crate::time::Timestamp;

/// A limit key whose endpoint has too much to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounded {
    /// The key.
    pub key: String,
    /// The most calls at once from this worker.
    pub at_once: u32,
    /// Since when there has been such a bound.
    pub since: Timestamp,
}

impl Limits {
    /// The keys whose endpoints have had too much to do lately, longest first. Those that are shut are not among them.
    pub fn bounded(&self) -> Vec<Bounded> {
        let (table, now) = (self.table(), Instant::now());
        let open = table.gates.iter().filter(|(_, gate)| gate.shut.is_none());
        let bound = open.filter_map(|(key, gate)| Some((key, gate.endpoint.as_ref()?.bound_since(now)?)));
        let mut all: Vec<_> =
            bound.map(|(key, (at_once, (_, since)))| Bounded { key: key.to_string(), at_once, since }).collect();
        drop(table);
        all.sort_by(|a, b| (a.since, &a.key).cmp(&(b.since, &b.key)));
        all
    }
}
