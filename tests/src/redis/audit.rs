//! Whether what a Redis broker keeps fits together: every job in one place, every counter what it counts. What that
//! means key by key is `audit.lua`.

use super::{RedisServer, Reply};

/// The shapes, as the scripts under test know them.
const BOOK: &str = concat!(
    include_str!("../../../common/src/broker/redis/scripts/book.lua"),
    "\n",
    include_str!("../../../common/src/broker/redis/scripts/moves.lua")
);
const AUDIT: &str = include_str!("audit.lua");

impl RedisServer {
    /// What does not fit together in any queue; empty is good. Each queue is looked at in one moment.
    ///
    /// # Panics
    /// When the server does not answer, or holds what cannot even be read.
    pub fn faults(&self) -> Vec<String> {
        let script = format!("{BOOK}\n{AUDIT}");
        let keys = self.must(&["KEYS", "{pq:*"]);
        let mut queues: Vec<String> = keys.list().iter().filter_map(queue_prefix).collect();
        queues.sort_unstable();
        queues.dedup();
        let faults = queues.iter().flat_map(|queue| {
            let found = self.must(&["EVAL", &script, "1", queue]);
            found.list().iter().map(|fault| format!("{queue}: {}", fault.text())).collect::<Vec<_>>()
        });
        faults.collect()
    }
}

/// `{pq:<queue>}` of a key.
fn queue_prefix(key: &Reply) -> Option<String> {
    key.text().split_once('}').map(|(prefix, _)| format!("{prefix}}}"))
}
