//! promptq as a library: what measurements put in, subscribe with and end jobs by, whatever the broker.

use std::time::Duration;

use anyhow::ensure;
use promptq_common::broker::{Broker, Consumer, Delivery, Enqueued, Head, LeaseId, Terms, Verdict, WorkerId};
use promptq_common::job::{BatchName, Job, JobId, Queue};
use promptq_common::outcome::{Attempt, Body, Usage, Usd};
use promptq_common::record::{Answer, End, Output, Record};
use promptq_common::time::Timestamp;
use promptq_common::work::Work;

/// Bytes of a prompt, and of an answer.
const TEXT: usize = 300;

/// A prompt.
pub fn text(n: usize) -> String {
    format!("{n:>8} {}", "words of a review ".repeat(TEXT / 18 + 1)).chars().take(TEXT).collect()
}

/// A job of a batch, with it.
pub fn job(n: usize) -> Job {
    let mut job = Job::new(Queue::standard(), Work::prompt(Some("mock"), text(n)));
    (job.batch, job.id) = (BatchName::new("reviews").ok(), JobId::fresh());
    job
}

/// What a model answers.
pub fn answer() -> String {
    "a".repeat(TEXT)
}

/// Enqueues them, all of which must be new.
pub async fn enqueue(broker: &Broker, jobs: &[Job]) -> anyhow::Result<()> {
    let answers = broker.enqueue(jobs).await?;
    let strange = answers.iter().find(|answer| **answer != Enqueued::New);
    ensure!(strange.is_none() && answers.len() == jobs.len(), "an enqueue answered {strange:?}");
    Ok(())
}

/// A subscription to these queues, all of one weight.
pub async fn subscribe(broker: &Broker, queues: &[Queue]) -> anyhow::Result<Consumer> {
    let queues = queues.iter().map(|queue| (queue.clone(), 1)).collect();
    Ok(broker.consume(Terms { worker: WorkerId::random("bench"), queues, lease: Duration::from_secs(45) }).await?)
}

/// A success with this answer.
pub fn success(delivery: &Delivery, answer: &str) -> Verdict {
    Verdict::End(Box::new(record(&delivery.head, delivery.lease.id(), answer)))
}

/// The record of one.
pub fn record(head: &Head, lease: LeaseId, answer: &str) -> Record {
    let mut record = Record::unrun(head, End::Succeeded, None, Timestamp::now());
    (record.lease, record.worker, record.started_at) = (lease, Some("bench".to_owned()), Some(Timestamp::now()));
    record.attempts += 1;
    record.history.push(Attempt {
        n: record.attempts,
        worker: "bench".to_owned(),
        started_at: Timestamp::now(),
        ended_at: Timestamp::now(),
        class: None,
        code: None,
        detail: None,
        status_code: Some(200),
        usage: Usage { input_tokens: 70, output_tokens: 60, cached_tokens: 0, reasoning_tokens: 0 },
        cost: Some(Usd::from_nanos(1_250)),
    });
    let (model, finish_reason) = (Some("mock".to_owned()), Some("stop".to_owned()));
    let plain = Answer::plain(Output::Inline(Body::Text(answer.to_owned())));
    record.answer = Some(Answer { model, finish_reason, ..plain });
    record
}
