//! Every label of a metric and what it may say, as data. A label that jobs could make up values for is bounded by whoever
//! fills it: what goes beyond is `other`.

use super::metric::Label;

/// What is said in place of a value beyond those a label may have.
pub const OTHER: &str = "other";

pub(super) const QUEUE: Label = Label { name: "queue", values: &[], said: "queues served, or the first 200 used" };
pub(super) const PROVIDER: Label = Label { name: "provider", values: &[], said: "configured providers, exec, mock" };
pub(super) const MODEL: Label = Label { name: "model", values: &[], said: "models configured or priced, else other" };
pub(super) const KEY: Label = Label { name: "key", values: &[], said: "limit keys and budgets, never batches" };
pub(super) const ROUTE: Label = Label { name: "route", values: &[], said: "templates of the gateway's paths" };
pub(super) const METHOD: Label = Label { name: "method", values: &[], said: "HTTP methods" };
pub(super) const CODE: Label = Label { name: "code", values: &[], said: "HTTP status codes" };
pub(super) const VERSION: Label = Label { name: "version", values: &[], said: "promptq's version" };
pub(super) const REVISION: Label = Label { name: "revision", values: &[], said: "what it was built from, or unknown" };

/// What kind of process it is.
pub const COMPONENT: Label = known("component", &["worker", "exporter", "gateway"]);
/// What holds the queue.
pub const BACKEND: Label = known("backend", &["memory", "sqlite", "redis", "rabbitmq"]);
/// What came of putting a job in.
pub const PUBLISHED: Label = known("outcome", &["confirmed", "known", "refused", "timeout", "unavailable", "error"]);
/// Why a job was not taken in.
pub const REFUSED: Label =
    known("reason", &["conflict", "too_large", "invalid", "unauthorized", "rate_limited", "wrong_queue"]);
/// How jobs end.
pub const ENDED: Label = known("outcome", &["succeeded", "dead", "cancelled", "expired"]);
/// Failure classes; `not_whole`: an answer that was put aside; `other`: died without a failure's class.
pub const REASON: Label = known(
    "reason",
    &[
        "throttled",
        "capacity",
        "account",
        "transient",
        "timed_out",
        "unknown_billed",
        "fatal",
        "content",
        "crashed",
        "not_whole",
        OTHER,
    ],
);
/// Why a job went back unspent.
pub const RELEASED: Label = known("reason", &["limit", "budget", OTHER]);
/// Why a run was given up in the middle.
pub const INTERRUPTED: Label = known("cause", &["drain_deadline", "lease_lost", "crashed"]);
/// Where a worker is in its life.
pub const STATE: Label = known("state", &["starting", "running", "draining"]);
/// How a worker left.
pub const SHUTDOWN: Label = known("result", &["clean", "deadline", "forced"]);
/// What holds a worker back.
pub const HELD_BY: Label = known("reason", &["limit", "memory", "disk", "settling", "broker"]);
/// What came of a call to a provider.
pub const CALLED: Label =
    known("outcome", &["ok", "rate_limited", "overloaded", "timeout", "client_error", "server_error"]);
/// Which tokens.
pub const TOKENS: Label = known("type", &["input", "output", "cached"]);
/// Where a result goes.
pub const SINK: Label = known("sink", &["ledger", "object_store"]);
/// Whether it got there.
pub const WRITTEN: Label = known("outcome", &["ok", "error"]);
/// What became of a span; `dropped`: too many waited to be sent.
pub const SPANS: Label = known("outcome", &["sent", "lost", "dropped"]);
/// Where jobs are.
pub const DEPTH: Label = known("state", &["ready", "running", "delayed", "dead"]);
/// How an age is known.
pub const SOURCE: Label = known("source", &["exact", "estimate"]);
/// Why jobs of a queue wait.
pub const BLOCKED: Label = known("reason", &["paused", "throttled", "capacity", "account", "budget"]);
/// What is limited.
pub const MEASURE: Label =
    known("limit", &["requests", "input_tokens", "output_tokens", "tokens", "concurrent", "usd"]);

const fn known(name: &'static str, values: &'static [&'static str]) -> Label {
    Label { name, values, said: "" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::FailureClass;
    use crate::record::End;

    #[test]
    fn labels_know_every_end_and_every_class() {
        assert_eq!(ENDED.values, End::ALL.map(End::as_str));
        for class in FailureClass::ALL {
            assert!(REASON.values.contains(&class.as_str()), "{class}");
        }
    }
}
