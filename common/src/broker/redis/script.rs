//! A Lua script with its digest. What it does is written in its file; how it gets to the server is `link.rs`.

/// Whether a script may run on a server that has reached `maxmemory`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    /// Not on a full server: it adds jobs.
    Room,
    /// On a full one too: it ends, releases or reads jobs, which is how a full server gets room.
    Always,
}

/// A script as it is sent: the shebang line, then its parts in order.
#[derive(Debug)]
pub(super) struct Script {
    pub(super) name: &'static str,
    pub(super) text: String,
    pub(super) sha: String,
}

impl Script {
    /// Whether it only does what workers and submitters do all the time: it changes nothing of a lease but for the one
    /// who has it.
    pub(super) fn is_everyday(&self) -> bool {
        matches!(self.name, "enqueue" | "lease" | "claim" | "beat" | "settle")
    }

    /// Joins the parts behind `#!lua` (Redis 7.0 and later).
    pub(super) fn new(name: &'static str, when: When, parts: &[&str]) -> Self {
        let shebang = match when {
            When::Room => "#!lua",
            When::Always => "#!lua flags=allow-oom",
        };
        let text = std::iter::once(shebang).chain(parts.iter().copied()).collect::<Vec<_>>().join("\n");
        let sha = deadpool_redis::redis::Script::new(&text).get_hash().to_owned();
        Self { name, text, sha }
    }
}
