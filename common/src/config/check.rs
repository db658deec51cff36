//! What settings must be to each other.

use super::reader::Reader;
use super::{Config, Store};
use crate::config::error::ConfigError;

/// Adds what does not fit together to the reader's errors.
pub(super) fn check(config: &Config, r: &mut Reader<'_>) {
    let worker = &config.worker;
    if worker.heartbeat * 3 > worker.lease {
        r.wrong(&["worker", "heartbeat"], "must be at most a third of worker.lease: two beats may get lost");
    }
    let retention = &config.retention;
    if retention.tombstones < retention.succeeded.max(retention.dead) {
        r.wrong(&["retention", "tombstones"], "must be at least as long as retention.succeeded and retention.dead");
    }
    for (name, policy) in &config.queues {
        if policy.backoff.first > policy.backoff.max {
            r.wrong(&["queues", name.as_str(), "backoff", "first"], "must be at most its max");
        }
    }
    if config.mock.errors + config.mock.throttled > 1.0 {
        r.wrong(&["mock", "errors"], "and mock.throttled together must be at most 1");
    }
    ledger(config, r);
    shared(config, r);
    if worker.allow_exec && !config.broker.local {
        let at = r.origin(&["worker", "allow_exec"]);
        r.errors.push(
            ConfigError::new(at, "worker.allow_exec would let everyone who reaches the broker run programs here")
                .slug("exec-not-allowed")
                .hint("name the commands instead: [runners.NAME] argv = [\"program\"]"),
        );
    }
}

/// SQLite and Redis are their own ledgers.
fn ledger(config: &Config, r: &mut Reader<'_>) {
    let Some(ledger) = &config.ledger else { return };
    let is_own = matches!(config.broker.url.scheme(), "sqlite" | "memory" | "redis" | "rediss");
    if is_own && *ledger != config.broker.url {
        r.wrong(&["ledger", "url"], "is of no use: this broker keeps its own records; leave it out");
    }
}

/// Protocol, section 8: hosts that share a broker must share what its jobs leave behind.
fn shared(config: &Config, r: &mut Reader<'_>) {
    if config.broker.local {
        return;
    }
    let Store { url, shared, .. } = &config.store;
    let mut private = |path: &[&str], what: &str| {
        let at = r.origin(path);
        r.errors.push(
            ConfigError::new(at, format!("{} is {what} of this host, but the broker is not", path.join(".")))
                .slug("store-not-shared")
                .hint("name one that every host reaches, or set store.shared = true if every host sees the same files"),
        );
    };
    if !shared && url.as_ref().is_some_and(|url| url.scheme() == "file") {
        private(&["store", "url"], "a folder");
    }
    if !shared && config.ledger.as_ref().is_some_and(|ledger| ledger.scheme() == "sqlite") {
        private(&["ledger", "url"], "a file");
    }
}
