//! What the facade counts, once for every backend: jobs put in, and how leases begin and end. All handles are made when a
//! queue is first met; without a recorder there are none, and nothing is counted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::{Claim, Enqueued, Envelope, HoldKey, Refusal, Settled, Verdict};
use crate::error::{Error, Kind};
use crate::job::Queue;
use crate::outcome::{AnswerClass, Attempt, Body, FailureClass, Usd};
use crate::record::{End, Output, Record};
use crate::telemetry::label::OTHER;
use crate::telemetry::metric as m;
use crate::telemetry::recorder::{self, Counter, Histogram, Recorder, Sum};

/// Queues that jobs are put into and that are told apart: anybody may name one.
const QUEUES: usize = 200;

/// Where the outcome of a call that nobody waited for to its end is among the others.
const TIMED_OUT: usize = 3;

/// What a broker counts of jobs put in.
#[derive(Debug)]
pub(super) struct Meters {
    recorder: &'static Recorder,
    backend: &'static str,
    duration: Histogram,
    queues: Mutex<HashMap<Queue, Arc<Published>>>,
    other: Arc<Published>,
}

#[derive(Debug)]
struct Published {
    outcomes: [Counter; 6],
    refused: [Counter; 6],
    bytes: Histogram,
}

impl Published {
    fn new(recorder: &Recorder, backend: &str, queue: &str) -> Self {
        Self {
            outcomes: recorder.counters(&m::PUBLISHED, &[queue, backend]),
            refused: recorder.counters(&m::REJECTED, &[queue]),
            bytes: recorder.histogram(&m::PUBLISH_BYTES, &[queue]),
        }
    }

    fn note(&self, answer: &Enqueued) {
        let outcome = match answer {
            Enqueued::New => 0,
            Enqueued::Known(_) => 1,
            Enqueued::Refused(why) => {
                let reason = match why {
                    Refusal::Conflict => 0,
                    Refusal::TooLarge(_) => 1,
                    Refusal::NoSuchQueue | Refusal::OtherQueue(_) => 5,
                };
                self.refused[reason].increment(1);
                2
            }
        };
        self.outcomes[outcome].increment(1);
    }
}

/// Jobs on their way in: whose they are, and since when. Dropped without an answer, as by a client that leaves, they count
/// as timed out: whoever put them in waits no more, and nobody knows whether they are there.
#[derive(Debug)]
pub(super) struct Sent {
    queues: Vec<Arc<Published>>,
    at: Instant,
}

impl Sent {
    fn all(&self, outcome: usize) {
        self.queues.iter().for_each(|queue| queue.outcomes[outcome].increment(1));
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        self.all(TIMED_OUT);
    }
}

impl Meters {
    /// Those of a broker of this kind; `None` where no numbers are kept.
    pub(super) fn of(backend: &'static str) -> Option<Arc<Self>> {
        let recorder = recorder::installed()?;
        Some(Arc::new(Self {
            recorder,
            backend,
            duration: recorder.histogram(&m::PUBLISH_DURATION, &[backend]),
            queues: Mutex::default(),
            other: Arc::new(Published::new(recorder, backend, OTHER)),
        }))
    }

    /// Jobs are handed to the broker.
    pub(super) fn sends(&self, batch: &[Envelope]) -> Sent {
        let mut queues = Vec::<Arc<Published>>::with_capacity(batch.len());
        for (place, envelope) in batch.iter().enumerate() {
            let queue = &envelope.head.lane.queue;
            let same = place.checked_sub(1).filter(|before| batch[*before].head.lane.queue == *queue);
            let published = same.map_or_else(|| self.published(queue), |before| Arc::clone(&queues[before]));
            published.bytes.record(bytes(envelope.payload.len()));
            queues.push(published);
        }
        Sent { queues, at: Instant::now() }
    }

    /// It has answered, each in order.
    pub(super) fn answered(&self, mut sent: Sent, answer: Result<&[Enqueued], &Error>) {
        self.duration.record(sent.at.elapsed());
        match answer {
            Ok(answers) => sent.queues.iter().zip(answers).for_each(|(queue, answer)| queue.note(answer)),
            Err(error) => {
                let outcome = match error.kind() {
                    Kind::TimedOut => TIMED_OUT,
                    Kind::Unavailable => 4,
                    Kind::Config
                    | Kind::Denied
                    | Kind::Unsupported
                    | Kind::Corrupt
                    | Kind::TooLarge
                    | Kind::NotFound
                    | Kind::Conflict
                    | Kind::Closed => 5,
                };
                sent.all(outcome);
            }
        }
        // They are counted now.
        sent.queues.clear();
    }

    /// A job was refused before the broker was asked.
    pub(super) fn refused(&self, queue: &Queue, answer: &Enqueued) {
        self.published(queue).note(answer);
    }

    fn published(&self, queue: &Queue) -> Arc<Published> {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(published) = queues.get(queue) {
            return Arc::clone(published);
        }
        if queues.len() >= QUEUES {
            return Arc::clone(&self.other);
        }
        let published = Arc::new(Published::new(self.recorder, self.backend, queue.as_str()));
        queues.insert(queue.clone(), Arc::clone(&published));
        published
    }
}

/// What a subscription counts of the leases of each queue it serves.
pub(super) type Served = Arc<HashMap<Queue, Arc<Leases>>>;

/// What is counted of the leases of one queue.
#[derive(Debug)]
pub(super) struct Leases {
    redelivered: Counter,
    duplicate: Counter,
    completed: [Counter; 4],
    duration: [Histogram; 4],
    end_to_end: [Histogram; 4],
    retried: [Counter; 11],
    dead: [Counter; 11],
    released: [Counter; 3],
    paid_twice: Sum,
    written: [Counter; 2],
    write_duration: Histogram,
    answer_bytes: Histogram,
}

/// Those of each of these queues; `None` where no numbers are kept.
pub(super) fn served<'a>(queues: impl Iterator<Item = &'a Queue>) -> Option<Served> {
    let recorder = recorder::installed()?;
    Some(Arc::new(queues.map(|queue| (queue.clone(), Arc::new(Leases::new(recorder, queue.as_str())))).collect()))
}

impl Leases {
    fn new(recorder: &Recorder, queue: &str) -> Self {
        let ends = |metric| End::ALL.map(|end| recorder.histogram(metric, &[queue, end.as_str()]));
        Self {
            redelivered: recorder.counter(&m::REDELIVERED, &[queue]),
            duplicate: recorder.counter(&m::DUPLICATE, &[queue]),
            completed: recorder.counters(&m::COMPLETED, &[queue]),
            duration: ends(&m::JOB_DURATION),
            end_to_end: ends(&m::END_TO_END),
            retried: recorder.counters(&m::RETRIED, &[queue]),
            dead: recorder.counters(&m::DEAD, &[queue]),
            released: recorder.counters(&m::RELEASED, &[queue]),
            paid_twice: recorder.sum(&m::PAID_TWICE, &[queue]),
            written: recorder.counters(&m::RESULT_WRITES, &["ledger"]),
            write_duration: recorder.histogram(&m::RESULT_DURATION, &["ledger"]),
            answer_bytes: recorder.histogram(&m::RESULT_BYTES, &["ledger"]),
        }
    }

    /// What the ledger said to a claim.
    pub(super) fn claimed(&self, claim: &Claim) {
        match claim {
            Claim::Fresh { deaths: 1.. } => self.redelivered.increment(1),
            Claim::Ended(_) | Claim::Taken { .. } | Claim::Stale => self.duplicate.increment(1),
            Claim::Fresh { deaths: 0 } | Claim::Cancelled | Claim::Paused { .. } => {}
        }
    }

    /// A try to settle failed.
    pub(super) fn not_written(&self) {
        self.written[1].increment(1);
    }

    /// A lease ended, at last, after so long.
    pub(super) fn settled(&self, verdict: &Verdict, settled: Settled, begun: Instant) {
        self.written[0].increment(1);
        self.write_duration.record(begun.elapsed());
        if settled == Settled::Stale {
            return;
        }
        match verdict {
            Verdict::End(record) => self.ended(record),
            Verdict::Retry { attempt, .. } => self.retried[retry_reason(attempt)].increment(1),
            Verdict::Release { hold, .. } => self.released[match hold {
                Some(HoldKey::Limit(_)) => 0,
                Some(HoldKey::Batch(_) | HoldKey::Budget(_)) => 1,
                None => 2,
            }]
            .increment(1),
        }
    }

    fn ended(&self, record: &Record) {
        let end = record.end as usize;
        self.completed[end].increment(1);
        self.end_to_end[end].record(record.ended_at.since(record.created_at));
        if let Some(started_at) = record.started_at {
            self.duration[end].record(record.ended_at.since(started_at));
        }
        if record.end == End::Dead {
            let class = record.cause.as_ref().and_then(|cause| cause.class);
            self.dead[class.map_or(REASONS - 1, place)].increment(1);
        }
        if let Some(answer) = &record.answer {
            if let Output::Inline(Body::Json(body) | Body::Text(body)) = &answer.output {
                self.answer_bytes.record(bytes(body.len()));
            }
            // The one that was answered is paid for anyhow.
            let cut = |attempt: &&Attempt| attempt.class == Some(FailureClass::UnknownBilled);
            let lost = record.history.recent.iter().filter(cut).filter_map(|attempt| attempt.cost);
            self.paid_twice.add_nanos(lost.map(Usd::as_nanos).sum());
        }
    }
}

/// How many reasons there are: the classes, an answer that was not whole, and none of these.
const REASONS: usize = FailureClass::ALL.len() + 2;

fn place(class: FailureClass) -> usize {
    FailureClass::ALL.iter().position(|known| *known == class).unwrap_or(REASONS - 1)
}

fn retry_reason(attempt: &Attempt) -> usize {
    let not_whole = attempt.fault().map(|_: AnswerClass| REASONS - 2);
    attempt.class.map(place).or(not_whole).unwrap_or(REASONS - 1)
}

#[expect(clippy::cast_precision_loss, reason = "a bucket for a size")]
fn bytes(length: usize) -> f64 {
    length as f64
}
