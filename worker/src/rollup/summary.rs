//! `summary.json` of a batch: counts, usage, cost and timings of its jobs as they stand.

use std::collections::BTreeMap;

use promptq_common::ledger::BatchView;
use promptq_common::record::Record;
use promptq_common::time::Timestamp;
use serde_json::json;

/// Grows with each record; as large as ever.
#[derive(Debug, Default)]
pub(super) struct Summary {
    lines: u64,
    first_started: Option<Timestamp>,
    last_ended: Option<Timestamp>,
    queued: Span,
    run: Span,
    /// How many have which class: of their failure, or of an answer that is not whole.
    classes: BTreeMap<&'static str, u64>,
}

impl Summary {
    pub(super) fn add(&mut self, record: &Record) {
        self.lines += 1;
        if let Some(class) = record.class_name() {
            *self.classes.entry(class).or_default() += 1;
        }
        self.last_ended = self.last_ended.max(Some(record.ended_at));
        if let Some(started) = record.started_at {
            self.first_started = Some(self.first_started.map_or(started, |first| first.min(started)));
            self.queued.add(started.since(record.created_at).as_secs_f64());
            self.run.add(record.ended_at.since(started).as_secs_f64());
        }
    }

    /// Jobs added so far.
    pub(super) fn lines(&self) -> u64 {
        self.lines
    }

    /// One JSON object, indented, with a newline at the end.
    pub(super) fn json(&self, batch: &BatchView) -> Vec<u8> {
        let wall = self.last_ended.map(|ended| ended.since(batch.created_at).as_secs_f64());
        let summary = json!({
            "batch": batch.name,
            "queue": batch.queue,
            "lines": self.lines,
            "counts": batch.counts,
            "classes": self.classes,
            "usage": batch.usage,
            "cost_usd": batch.known_cost(),
            "cost_unknown_jobs": batch.cost_unknown,
            "timing": {
                "created_at": batch.created_at,
                "first_started_at": self.first_started,
                "last_ended_at": self.last_ended,
                "wall_s": wall,
                "queued_s": self.queued.json(),
                "run_s": self.run.json(),
            },
        });
        format!("{summary:#}\n").into_bytes()
    }
}

#[derive(Debug, Default)]
struct Span {
    n: u64,
    sum: f64,
    max: f64,
}

impl Span {
    fn add(&mut self, seconds: f64) {
        self.n += 1;
        self.sum += seconds;
        self.max = self.max.max(seconds);
    }

    #[expect(clippy::cast_precision_loss, reason = "a mean over fewer than 2^52 jobs")]
    fn json(&self) -> serde_json::Value {
        json!({ "mean": if self.n == 0 { 0.0 } else { self.sum / self.n as f64 }, "max": self.max })
    }
}

#[cfg(test)]
mod tests {
    use promptq_common::broker::LeaseId;
    use promptq_common::job::{JobId, Queue};
    use promptq_common::outcome::{FailureClass, History};
    use promptq_common::record::{Cause, End};

    use super::*;

    #[test]
    fn it_counts_what_jobs_died_of() {
        let at = Timestamp::from_millis(0);
        let cause = |class| Cause { class, code: "x".into(), detail: String::new(), status_code: None };
        let mut summary = Summary::default();
        for class in [Some(FailureClass::Fatal), Some(FailureClass::Fatal), Some(FailureClass::Content), None] {
            summary.add(&Record {
                id: JobId::fresh(),
                epoch: 0,
                end: End::Dead,
                queue: Queue::standard(),
                batch: None,
                row: None,
                custom_id: None,
                tenant: None,
                tags: BTreeMap::new(),
                model: None,
                answer: None,
                cause: Some(cause(class)),
                attempts: 1,
                history: History::default(),
                lease: LeaseId::NONE,
                worker: None,
                created_at: at,
                started_at: None,
                ended_at: at,
                trace: None,
            });
        }
        assert_eq!(summary.classes, BTreeMap::from([("content", 1), ("fatal", 2)]));
    }
}
