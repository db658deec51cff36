//! What settings must be to each other.

use super::places::is_rabbitmq;
use super::reader::Reader;
use super::{Address, Config, Ledger, Store, provider};
use crate::broker::{Durability, QueueType, Retention};
use crate::config::error::ConfigError;
use crate::limits::Measure;

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
        if policy.reuse.is_some_and(|age| age > config.reuse_kept) {
            r.wrong(&["queues", name.as_str(), "reuse"], "must be at most retention.reuse, for which answers are kept");
        }
    }
    if config.mock.errors + config.mock.throttled > 1.0 {
        r.wrong(&["mock", "errors"], "and mock.throttled together must be at most 1");
    }
    for name in config.models.keys().filter(|name| config.runners.contains_key(*name)) {
        let said = provider::said(r, name);
        r.wrong(&["models", name, said], &format!("cannot be: [runners.{name}] has the name"));
    }
    ledger(config, r);
    money(config, r);
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

/// A cap on what a fleet spends is kept by a ledger that can share it, or by none.
fn money(config: &Config, r: &mut Reader<'_>) {
    if config.ledger != Some(Ledger::Store) {
        return;
    }
    let budgets = config.queues.iter().filter(|(_, queue)| queue.budget.is_some());
    let limits = config.limits.iter().filter(|rule| rule.caps.iter().any(|cap| cap.measure == Measure::Usd));
    let all = budgets.map(|(name, _)| ["queues", name.as_str(), "budget"]);
    for path in all.chain(limits.map(|rule| ["limits", rule.key.as_str(), "usd"])) {
        r.wrong(&path, "cannot be kept: a ledger in object storage cannot share limits; name redis:// or sqlite://");
    }
}

/// SQLite and Redis are their own ledgers; RabbitMQ needs one that is not.
fn ledger(config: &Config, r: &mut Reader<'_>) {
    let broker = &config.broker.url;
    let path = ["ledger", "url"];
    if !is_rabbitmq(broker) {
        let is_itself = |ledger: &Ledger| matches!(ledger, Ledger::Elsewhere { url, .. } if url == broker);
        if config.ledger.as_ref().is_some_and(|ledger| !is_itself(ledger)) {
            let what = "ledger.url is of no use: this broker keeps its own records; leave it out";
            let error = ConfigError::new(r.origin(&path), what);
            r.errors.push(error.hint("to move to RabbitMQ, name that as the broker, and `broker move --from URL`"));
        }
        return;
    }
    match &config.ledger {
        Some(Ledger::Elsewhere { url, .. }) => match url.scheme() {
            "redis" | "rediss" | "sqlite" => {}
            "memory" => r.wrong(&path, "ends with each process: no other would see what it recorded"),
            "amqp" | "amqps" => {
                r.wrong(&path, "cannot be RabbitMQ, which keeps no records: name redis:// or sqlite://");
            }
            scheme => r.wrong(&path, &format!("cannot be {scheme}://: name redis:// or sqlite://, or \"store\"")),
        },
        Some(Ledger::Store) => match config.store.url.as_ref().map(Address::scheme) {
            Some("memory") => r.wrong(&["store", "url"], "ends with each process: it cannot be the ledger as well"),
            Some(_) if config.retention.bytes != Retention::standard().bytes => {
                let what = "retention.bytes is of no use: records in object storage go by age alone; leave it out";
                let error = ConfigError::new(r.origin(&["retention", "bytes"]), what);
                r.errors.push(error.hint("shorten retention.succeeded, or name a Redis server as the ledger"));
            }
            Some(_) => {}
            None => missing(r, &path, "ledger.url is the store, but there is none"),
        },
        None => {
            missing(r, &["broker", "url"], "RabbitMQ carries jobs and keeps no records: it needs a ledger beside it");
        }
    }
    if config.broker.amqp.queues == QueueType::Classic && config.broker.durability == Some(Durability::Strict) {
        r.wrong(&["broker", "queue_type"], "must be \"quorum\": classic queues may lose confirmed jobs with the power");
    }
}

fn missing(r: &mut Reader<'_>, path: &[&str], what: &str) {
    let error = ConfigError::new(r.origin(path), what).slug("store-missing");
    r.errors.push(error.hint("--ledger redis://HOST:6379, or --store s3://bucket/prefix, which promises less"));
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
    let is_file = |ledger: &Ledger| matches!(ledger, Ledger::Elsewhere { url, .. } if url.scheme() == "sqlite");
    if !shared && config.ledger.as_ref().is_some_and(is_file) {
        private(&["ledger", "url"], "a file");
    }
}
