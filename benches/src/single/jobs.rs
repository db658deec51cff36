//! The jobs and ends of measurements that have promptq as a library.

use std::time::Duration;

use anyhow::ensure;
use promptq_common::broker::{Broker, Enqueued, Head, LeaseId, Terms, Verdict, Want, WorkerId};
use promptq_common::job::{BatchName, Job, Queue};
use promptq_common::outcome::{Attempt, Body, Usage, Usd};
use promptq_common::record::{Answer, End, Output, Record};
use promptq_common::time::Timestamp;
use promptq_common::work::Work;

use crate::contest::{TEXT, prompt};

/// What an idle worker asks for.
pub(super) const ONE: Want = Want { total: 1, caps: Vec::new(), rest: 1 };

/// Enqueues them, all of which must be new.
pub(super) async fn put(broker: &Broker, jobs: &[Job]) -> anyhow::Result<()> {
    let answers = broker.enqueue(jobs).await?;
    let strange = answers.iter().find(|answer| **answer != Enqueued::New);
    ensure!(strange.is_none() && answers.len() == jobs.len(), "an enqueue answered {strange:?}");
    Ok(())
}

/// So many jobs of one batch.
pub(super) fn jobs(count: u64, batch: Option<&str>) -> anyhow::Result<Vec<Job>> {
    let batch = batch.map(BatchName::new).transpose()?;
    let job = |n| Job { batch: batch.clone(), ..Job::new(Queue::standard(), Work::prompt(Some("mock"), prompt(n))) };
    Ok((0..count).map(job).collect())
}

/// What a worker of the standard queue asks for.
pub(super) fn terms() -> Terms {
    let (worker, queues) = (WorkerId::random("bench"), vec![(Queue::standard(), 1)]);
    Terms { worker, queues, lease: Duration::from_secs(45) }
}

/// A success with an answer as long as a prompt.
pub(super) fn verdict(head: &Head, lease: LeaseId) -> Verdict {
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
    record.answer = Some(Answer {
        status_code: 200,
        request_id: None,
        model: Some("mock".to_owned()),
        finish_reason: Some("stop".to_owned()),
        output: Output::Inline(Body::Text("a".repeat(TEXT))),
    });
    Verdict::End(Box::new(record))
}
