//! Jobs and batches as the JSON objects that every command shows, and as cells of tables.

use promptq_common::ledger::{BatchView, JobView};
use promptq_common::record::Record;
use promptq_common::time::Timestamp;
use serde_json::{Value, json};

use crate::list::{Column, ago, cell};

/// A job as one object: what is known of it and, once it has ended, what came of it. Never its prompt or answer.
pub fn job(view: &JobView) -> Value {
    let mut object = json!(view);
    let record = view.record.as_deref();
    let cause = record.and_then(|record| record.cause.as_ref());
    object["class"] = json!(record.and_then(Record::class_name));
    object["code"] = json!(cause.map(|cause| &cause.code));
    object["detail"] = json!(cause.map(|cause| &cause.detail));
    object["usage"] = json!(record.map(|record| record.history.usage));
    object["cost_usd"] = json!(record.and_then(|record| record.history.known_cost()));
    object["cost_partial"] = json!(record.map(|record| record.history.is_cost_partial()));
    object["cost_source"] = json!(record.and_then(Record::cost_source));
    object["ended_at"] = json!(record.map(|record| record.ended_at));
    if let Some(place) = record.and_then(|record| record.trace) {
        object["trace_id"] = json!(place.trace_id());
    }
    object
}

/// The columns of a list of jobs.
pub const JOBS: &[Column] = &[
    ("id", |item| cell(item, "id")),
    ("state", |item| cell(item, "state")),
    ("queue", |item| cell(item, "queue")),
    ("model", |item| cell(item, "model")),
    ("batch", |item| cell(item, "batch")),
    ("attempts", |item| cell(item, "attempts")),
    ("age", |item| ago(item, "created_at")),
    ("code", |item| cell(item, "code")),
];

/// A batch as one object, with how far it is and when it may be done.
pub fn batch(view: &BatchView, causes: &[(String, u64)], now: Timestamp) -> Value {
    let counts = view.counts;
    let state = batch_state(view);
    let eta = eta_seconds(view, now);
    let cost = view.known_cost();
    json!({
        "batch": view.name,
        "queue": view.queue,
        "state": state,
        "sealed": view.sealed,
        "created_at": view.created_at,
        "counts": counts,
        "usage": view.usage,
        "cost_usd": cost,
        "cost_unknown": view.cost_unknown,
        "eta_seconds": eta,
        "causes": causes.iter().map(|(code, count)| json!({ "code": code, "count": count })).collect::<Vec<_>>(),
    })
}

/// In one word.
pub fn batch_state(view: &BatchView) -> &'static str {
    let counts = view.counts;
    let ended = counts.ended() == counts.total && view.sealed;
    match (ended, view.cancelled) {
        (true, true) => "cancelled",
        (true, false) => "finished",
        (false, true) => "cancelling",
        (false, false) if counts.running > 0 => "running",
        (false, false) if counts.queued + counts.delayed > 0 => "waiting",
        (false, false) => "open",
    }
}

/// How long the rest takes at the pace so far, in seconds: only where a few jobs have ended, some are left and one runs.
/// While none does it would only grow.
pub fn eta_seconds(view: &BatchView, now: Timestamp) -> Option<u64> {
    /// Fewer ends say nothing about the pace.
    const ENOUGH: u64 = 5;
    let ended = view.counts.ended();
    let left = view.counts.total.saturating_sub(ended);
    if ended < ENOUGH || left == 0 || view.cancelled || view.counts.running == 0 {
        return None;
    }
    let elapsed = u64::try_from(now.since(view.created_at).as_millis()).ok()?;
    Some(elapsed.saturating_mul(left) / ended / 1_000)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use promptq_common::job::{BatchName, JobId, Queue};
    use promptq_common::ledger::{Counts, Cursor};
    use promptq_common::outcome::Usage;
    use promptq_common::record::State;

    use super::*;

    /// A job that waits and has nothing of its own.
    pub(crate) fn waiting() -> JobView {
        JobView {
            id: JobId::from_bytes([1; 16]),
            queue: Queue::standard(),
            model: None,
            priority: 5,
            batch: None,
            row: None,
            custom_id: None,
            tenant: None,
            tags: BTreeMap::new(),
            state: State::Queued,
            epoch: 0,
            attempts: 0,
            deaths: 0,
            created_at: Timestamp::from_millis(0),
            deadline: Timestamp::from_millis(500_000),
            due: None,
            hold: None,
            worker: None,
            leased_at: None,
            cancel_requested: false,
            dropped: false,
            paused: None,
            record: None,
        }
    }

    fn view(counts: Counts, sealed: bool) -> BatchView {
        BatchView {
            name: BatchName::new("b").unwrap(),
            queue: Queue::standard(),
            created_at: Timestamp::from_millis(0),
            sealed,
            cancelled: false,
            counts,
            usage: Usage::default(),
            cost: None,
            cost_unknown: 0,
            last: Cursor(0),
        }
    }

    #[test]
    fn the_rest_is_judged_by_the_pace_so_far() {
        let now = Timestamp::from_millis(10_000);
        let counts = Counts { total: 30, succeeded: 8, dead: 2, queued: 19, running: 1, ..Counts::default() };
        let batch = view(counts, true);
        assert_eq!((eta_seconds(&batch, now), batch_state(&batch)), (Some(20), "running"));
        let still = view(Counts { queued: 20, running: 0, ..counts }, true);
        assert_eq!((eta_seconds(&still, now), batch_state(&still)), (None, "waiting"));
        let early = view(Counts { total: 30, succeeded: 4, running: 26, ..Counts::default() }, true);
        assert_eq!((eta_seconds(&early, now), batch_state(&early)), (None, "running"));
        let done = view(Counts { total: 9, succeeded: 9, ..Counts::default() }, true);
        assert_eq!((eta_seconds(&done, now), batch_state(&done)), (None, "finished"));
        let unsealed = view(Counts { total: 9, succeeded: 9, ..Counts::default() }, false);
        assert_eq!(batch_state(&unsealed), "open");
    }
}
