//! Jobs, attempts and records with everything a case does not care about filled in.

use std::time::Duration;

use promptq_common::broker::{Head, LeaseId, Verdict, WorkerId, envelope};
use promptq_common::job::{BatchName, Job, JobId, Priority, Queue};
use promptq_common::ledger::{HeldKey, WorkerReport};
use promptq_common::outcome::{Attempt, Body, FailureClass, Usage, Usd};
use promptq_common::record::{Answer, Cause, End, Output, Record, Stored};
use promptq_common::time::Timestamp;
use promptq_common::work::Work;

/// A job of the standard queue for the model `mock`.
pub fn job() -> Job {
    Job::new(Queue::standard(), Work::prompt(Some("mock"), "say something"))
}

/// One that a ledger beside its broker knows before it is met: it has a key, which is like no other.
pub fn registered() -> Job {
    keyed(&JobId::fresh().to_string(), "say something")
}

/// So many of them.
pub fn jobs(count: usize) -> Vec<Job> {
    (0..count).map(|_| job()).collect()
}

/// One for another model.
pub fn job_for(model: Option<&str>) -> Job {
    Job { work: Work::prompt(model, "say something"), ..job() }
}

/// One with this priority, 0 to 9.
pub fn job_at(priority: u8) -> Job {
    Job { priority: Priority::new(priority).expect("0 to 9"), ..job() }
}

/// One in another queue.
pub fn job_in(queue: &Queue) -> Job {
    Job { queue: queue.clone(), ..job() }
}

/// One of a batch.
pub fn job_of(batch: &BatchName) -> Job {
    Job { batch: Some(batch.clone()), ..job() }
}

/// One whose id stands for `key` and whose prompt is `text`.
pub fn keyed(key: &str, text: &str) -> Job {
    Job { work: Work::prompt(Some("mock"), text), ..job() }.with_key(key)
}

/// Four times three jobs of the batch `b`, the same in every process.
pub fn rounds() -> Vec<Vec<Job>> {
    let job = |round, n| Job { batch: Some(batch("b")), ..keyed(&format!("{round}-{n}"), "say something") };
    (0..4).map(|round| (0..3).map(|n| job(round, n)).collect()).collect()
}

/// A queue's name.
pub fn queue(name: &str) -> Queue {
    Queue::new(name).expect("a good name")
}

/// A batch's name.
pub fn batch(name: &str) -> BatchName {
    BatchName::new(name).expect("a good name")
}

/// What every attempt here consumes.
pub const USAGE: Usage = Usage { input_tokens: 7, output_tokens: 3, cached_tokens: 2, reasoning_tokens: 1 };

/// What every attempt here costs.
pub const COST: Usd = Usd::from_nanos(1_250);

/// The attempt after the ones `head` has behind it; `None` for one that succeeded.
pub fn attempt(head: &Head, class: Option<FailureClass>) -> Attempt {
    Attempt {
        n: head.attempts + 1,
        worker: "test".to_owned(),
        started_at: Timestamp::now(),
        ended_at: Timestamp::now(),
        class,
        code: class.map(|_| "broken".to_owned()),
        detail: class.map(|_| "it broke".to_owned()),
        status_code: class.map(|_| 500),
        usage: USAGE,
        cost: Some(COST),
    }
}

/// The record of a run under `lease` that ended so.
pub fn record(head: &Head, lease: LeaseId, end: End) -> Record {
    let class = (end == End::Dead).then_some(FailureClass::Fatal);
    let mut record = Record::unrun(head, end, class.map(|class| cause(class, "broken")), Timestamp::now());
    record.lease = lease;
    record.worker = Some("test".to_owned());
    record.started_at = Some(Timestamp::now());
    if matches!(end, End::Succeeded | End::Dead) {
        record.attempts += 1;
        record.history.push(attempt(head, class));
    }
    record.answer = (end == End::Succeeded).then(|| answer("an answer"));
    record
}

/// An answer kept in the record.
pub fn answer(text: &str) -> Answer {
    let (model, finish_reason) = (Some("mock".to_owned()), Some("stop".to_owned()));
    Answer { model, finish_reason, ..Answer::plain(Output::Inline(Body::Text(text.to_owned()))) }
}

/// An answer kept in object storage under `key`.
pub fn stored_answer(key: &str) -> Answer {
    let stored = Stored { key: key.to_owned(), sha256: "00".repeat(32), bytes: 9, json: false };
    Answer { output: Output::Stored(stored), ..answer("") }
}

/// Why a job died.
pub fn cause(class: FailureClass, code: &str) -> Cause {
    Cause { class: Some(class), code: code.to_owned(), detail: "it broke".to_owned(), status_code: Some(500) }
}

/// The verdict that ends a job.
pub fn end(head: &Head, lease: LeaseId, end: End) -> Verdict {
    Verdict::End(Box::new(record(head, lease, end)))
}

/// The verdict that tries again after so long.
pub fn retry(head: &Head, after: Duration) -> Verdict {
    Verdict::Retry { after, attempt: Box::new(attempt(head, Some(FailureClass::Transient))) }
}

/// The verdict that gives a job back at once.
pub fn release() -> Verdict {
    Verdict::Release { after: Duration::ZERO, hold: None }
}

/// What a backend reads of a job.
pub fn head(job: &Job) -> Head {
    envelope(job).expect("a job that can travel").head
}

/// A worker of these queues that a key holds back: since two minutes, for eight more, in all their jobs for the model
/// `mock`.
pub fn held_back(queues: &[Queue], key: &str, class: FailureClass, detail: &str) -> WorkerReport {
    let now = Timestamp::now();
    let held = HeldKey {
        key: key.to_owned(),
        class,
        detail: detail.to_owned(),
        since: now - Duration::from_secs(120),
        until: now + Duration::from_secs(480),
        probing: false,
        lanes: queues.iter().map(|queue| (queue.clone(), Some("mock".to_owned()))).collect(),
        at_once: None,
        cap: None,
    };
    WorkerReport {
        id: WorkerId::random("w"),
        host: "h".to_owned(),
        pid: 1,
        version: "0".to_owned(),
        started_at: now,
        seen_at: now,
        slots: 4,
        running: 0,
        queues: queues.iter().map(|queue| format!("{queue}:1")).collect(),
        draining: false,
        blocked: Some(format!("{class} {key}: {detail}")),
        held: vec![held],
        paces: Vec::new(),
    }
}
