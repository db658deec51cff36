//! What jobs are made of: a text of 300 bytes each way for the least writes; for promptq's, the bytes that its own
//! codec makes of such a job and of its record. One of each is made at the start, and stamped for every job.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use promptq_common::broker::LeaseId;
use promptq_common::codec;
use promptq_common::job::{BatchName, Job, Queue};
use promptq_common::outcome::{Attempt, Body, History, Usage, Usd};
use promptq_common::record::{Answer, End, Output, Record};
use promptq_common::result_line::announcement;
use promptq_common::time::Timestamp;
use promptq_common::work::Work;
use serde_json::json;

/// Bytes of a prompt, and of an answer: those of the contests' jobs.
pub(super) const TEXT: usize = 300;
/// The batch that all jobs are of, as long a name as `promptq submit` gives one.
pub(super) const BATCH: &str = "01980c5e-7a3b-7c31-9f4e-5d2b8a6c1e07";
/// As long as a worker's name.
pub(super) const WORKER: &str = "vm-0123456789ab";
/// How long a lease lasts, in milliseconds.
pub(super) const LEASE: i64 = 45_000;

/// An id; those of one process follow one another.
pub(super) type Id = [u8; 16];

/// The next id.
pub(super) fn next_id() -> Id {
    static FIRST: LazyLock<u64> = LazyLock::new(rand::random);
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut id = Id::default();
    id[..8].copy_from_slice(&FIRST.to_be_bytes());
    id[8..].copy_from_slice(&NEXT.fetch_add(1, Relaxed).to_be_bytes());
    id
}

/// An id as messages are named by it.
pub(super) fn name(id: Id) -> String {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut name = String::with_capacity(36);
    for (place, byte) in id.into_iter().enumerate() {
        if [4, 6, 8, 10].contains(&place) {
            name.push('-');
        }
        for digit in [byte >> 4, byte & 15] {
            name.push(HEX[usize::from(digit)].into());
        }
    }
    name
}

/// Now, in milliseconds since 1970.
pub(super) fn now() -> i64 {
    Timestamp::now().as_millis()
}

/// The texts of a job with the least writes: what it asks, and what it is answered.
pub(super) fn texts() -> (Vec<u8>, Vec<u8>) {
    (text("words of a prompt ").into_bytes(), text("words of an answer ").into_bytes())
}

fn text(of: &str) -> String {
    of.chars().cycle().take(TEXT).collect()
}

/// What promptq writes of one job.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    /// The job, encoded.
    pub(super) payload: Vec<u8>,
    /// Its record, encoded.
    pub(super) record: Vec<u8>,
    /// The line that announces it.
    pub(super) announcement: Vec<u8>,
    /// What stands beside payload and record: deadline, lane, batch, fingerprint and the like.
    pub(super) head: Vec<u8>,
}

impl Stored {
    /// Bytes of a head, as a job of `promptq submit` has it in Redis: some 20 members, coded by script and codec.
    const HEAD: usize = 115;
    /// Bytes that stand there beside the record of a success: places in the logs, times, lease, what was consumed.
    const TRAIL: usize = 118;

    pub(super) fn new() -> anyhow::Result<Self> {
        let mut job = Job::new(Queue::standard(), Work::prompt(Some("mock"), text("words of a prompt ")));
        (job.batch, job.row) = (Some(BatchName::new(BATCH)?), Some(100_000));
        let record = record(&job);
        Ok(Self {
            payload: codec::encode_job(&job)?,
            record: codec::encode_record(&record)?,
            announcement: announcement(&record).into_bytes(),
            head: vec![b'h'; Self::HEAD],
        })
    }

    /// The payload of a job that asks this.
    pub(super) fn payload_of(prompt: &str) -> anyhow::Result<Vec<u8>> {
        Ok(codec::encode_job(&Job::new(Queue::standard(), Work::prompt(Some("mock"), prompt)))?)
    }

    /// Head and payload as one, as where a job is one string.
    pub(super) fn whole(&self) -> Vec<u8> {
        [self.head.as_slice(), &self.payload].concat()
    }

    /// Head, trail and record as one.
    pub(super) fn ended(&self) -> Vec<u8> {
        [self.head.as_slice(), &[b't'; Self::TRAIL], &self.record].concat()
    }
}

/// A first success, answered as a model's mock answers.
fn record(job: &Job) -> Record {
    let (now, usage) = (Timestamp::now(), Usage { input_tokens: 70, output_tokens: 60, ..Usage::default() });
    let mut history = History::default();
    history.push(Attempt {
        n: 1,
        worker: WORKER.to_owned(),
        started_at: now,
        ended_at: now,
        class: None,
        code: None,
        detail: None,
        status_code: Some(200),
        usage,
        cost: Some(Usd::from_nanos(1_250)),
    });
    // With what stands around it in this shape, an answer's body has some 300 bytes.
    let body = json!({
        "id": "chatcmpl-0123456789abcdef", "object": "chat.completion", "created": 1_767_225_600, "model": "mock",
        "choices": [{ "index": 0, "finish_reason": "stop",
            "message": { "role": "assistant", "content": "Mock: brief water brief delta." } }],
        "usage": { "prompt_tokens": 70, "completion_tokens": 60, "total_tokens": 130 },
    });
    Record {
        id: job.id,
        epoch: 0,
        end: End::Succeeded,
        queue: job.queue.clone(),
        batch: job.batch.clone(),
        row: job.row,
        custom_id: None,
        tenant: None,
        tags: job.tags.clone(),
        model: Some("mock".to_owned()),
        answer: Some(Answer {
            status_code: 200,
            request_id: Some("mock-0123456789abcdef".to_owned()),
            model: Some("mock".to_owned()),
            finish_reason: Some("stop".to_owned()),
            output: Output::Inline(Body::Json(body.to_string())),
            detail: None,
            origin: None,
        }),
        cause: None,
        attempts: 1,
        history,
        lease: LeaseId::random(),
        worker: Some(WORKER.to_owned()),
        created_at: job.created_at,
        started_at: Some(now),
        ended_at: now,
        trace: None,
    }
}
