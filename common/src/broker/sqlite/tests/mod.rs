//! What only this backend promises; the contract itself is the conformance suite's.

mod away;
mod counts;
mod damage;
mod file;
mod gathered;
mod lean;
mod many;
mod sharing;

use std::path::Path;
use std::time::Duration;

use super::Sqlite;
use crate::broker::backend::{Backend as _, RawDelivery, Source, Terms, Verdict, Want};
use crate::broker::{Envelope, WorkerId, envelope};
use crate::job::{BatchName, Job, Priority, Queue};
use crate::outcome::{Attempt, Body, FailureClass, Usage};
use crate::record::{Answer, End, Output, Record};
use crate::time::Timestamp;
use crate::work::Work;

const LEASE: Duration = Duration::from_secs(45);

async fn open(folder: &Path) -> Sqlite {
    Sqlite::open(&folder.join("q.db")).await.unwrap()
}

fn queue() -> Queue {
    Queue::new("q").unwrap()
}

fn job(n: usize) -> Job {
    Job::new(queue(), Work::prompt(Some(["a", "b"][n % 2]), format!("say {n}")))
}

fn jobs(count: usize) -> Vec<Envelope> {
    (0..count).map(|n| envelope(&job(n)).unwrap()).collect()
}

async fn subscribe(sqlite: &Sqlite, name: &str, lease: Duration) -> Box<dyn Source> {
    sqlite.subscribe(Terms { worker: WorkerId::random(name), queues: vec![(queue(), 1)], lease }).await.unwrap()
}

fn want(total: u32) -> Want {
    Want { total, caps: Vec::new(), rest: total }
}

fn ending(delivery: &RawDelivery, end: End) -> Verdict {
    let mut record = Record::unrun(&delivery.head, end, None, Timestamp::now());
    record.lease = delivery.lease;
    record.attempts = 1;
    record.answer = (end == End::Succeeded).then(|| Answer::plain(Output::Inline(Body::Text("yes".into()))));
    Verdict::End(Box::new(record))
}

/// What every attempt takes.
const TOKENS: Usage = Usage { input_tokens: 3, output_tokens: 0, cached_tokens: 0, reasoning_tokens: 0 };

fn attempt() -> Attempt {
    Attempt {
        n: 1,
        worker: "w".into(),
        started_at: Timestamp::now(),
        ended_at: Timestamp::now(),
        class: Some(FailureClass::Transient),
        code: None,
        detail: None,
        status_code: None,
        usage: TOKENS,
        cost: None,
    }
}

/// The verdict with one more attempt on its record.
fn used(verdict: Verdict) -> Verdict {
    let Verdict::End(mut record) = verdict else { return verdict };
    record.attempts = u32::try_from(record.history.usage.input_tokens / 3).unwrap() + 1;
    record.history.usage += TOKENS;
    Verdict::End(record)
}
