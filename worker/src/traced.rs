//! What traces tell of a delivery and of its calls, and the place in a trace that a run, its provider and its record are
//! given. What a span is, and where it goes, is `common/src/telemetry/trace`.

use promptq_common::broker::{Head, Settled, Verdict};
use promptq_common::error::Error;
use promptq_common::job::Job;
use promptq_common::outcome::{Failure, Outcome, Reply, Usd};
use promptq_common::record::End;
use promptq_common::telemetry::trace::name::{self as n, call, operation};
use promptq_common::telemetry::trace::{Context, Kind, Span, Value, tracer};
use promptq_common::work::Input;

use crate::call::Way;
use crate::execute::{Desk, Did};
use crate::provider::Endpoint;

/// One delivery.
#[derive(Debug)]
pub(crate) struct Traced {
    place: Context,
    span: Option<Box<Span>>,
}

impl Traced {
    /// A delivery begins; `None` where nothing is traced and nobody has said what the job was caused by. Of a job whose
    /// submitter has not said either, all deliveries are in one trace: its id is the job's.
    pub(crate) fn begin(head: &Head, job: Option<&Job>, desk: &Desk) -> Option<Self> {
        let parent = job.and_then(|job| job.trace);
        let Some(tracer) = tracer() else { return parent.map(|place| Self { place, span: None }) };
        let queue = head.lane.queue.as_str();
        let what = (Kind::Consumer, format!("{} {queue}", operation::PROCESS));
        let (place, mut span) = tracer.begin(parent, Some(*head.id.as_bytes()), what);
        if let Some(span) = &mut span {
            of(span, operation::PROCESS, head, desk);
            span.set(n::ATTEMPT, u64::from(head.attempts) + 1);
            span.set(n::EPOCH, u64::from(head.epoch));
        }
        Some(Self { place, span })
    }

    /// Where what the delivery causes belongs.
    pub(crate) fn place(&self) -> &Context {
        &self.place
    }

    /// What is to become of it; its record says by which delivery.
    pub(crate) fn judged(&mut self, verdict: &mut Verdict) {
        let failure = match verdict {
            Verdict::End(record) => {
                record.trace = Some(self.place);
                let cause = record.cause.as_ref().filter(|_| record.end == End::Dead);
                cause.map(|cause| (record.class_name(), Some(cause.code.as_str())))
            }
            Verdict::Retry { attempt, .. } => Some((attempt.class_name(), attempt.code.as_deref())),
            Verdict::Release { .. } => None,
        };
        if let (Some(span), Some((class, code))) = (&mut self.span, failure) {
            span.fail(class.or(code).unwrap_or(n::INTERRUPTED));
            if let Some(code) = code {
                span.set(n::CODE, code);
            }
        }
    }

    /// What is to become of it begins to be written down.
    pub(crate) fn settles(&self, head: &Head, desk: &Desk) -> Option<Box<Span>> {
        self.span.as_ref()?;
        let what = (Kind::Client, format!("{} {}", operation::SETTLE, head.lane.queue));
        let mut span = tracer()?.begin(Some(self.place), None, what).1?;
        of(&mut span, operation::SETTLE, head, desk);
        Some(span)
    }

    /// What became of it.
    pub(crate) fn did(mut self, did: Did) {
        if let Some(mut span) = self.span.take() {
            span.set(
                n::OUTCOME,
                match did {
                    Did::Ended(end) => end.as_str(),
                    Did::Retried(_) => "retried",
                    Did::Released => "released",
                    Did::Cut => "cut",
                    Did::Dropped => "dropped",
                },
            );
            span.end();
        }
    }
}

fn of(span: &mut Span, operation: &'static str, head: &Head, desk: &Desk) {
    span.set(n::SYSTEM, desk.system);
    span.set(n::DESTINATION, head.lane.queue.as_str());
    span.set(n::OPERATION, operation);
    span.set(n::OPERATION_TYPE, operation);
    span.set(n::MESSAGE, head.id.to_string());
    span.set(n::CLIENT, desk.settings.worker.as_str());
    if let Some(batch) = &head.batch {
        span.set(n::CONVERSATION, batch.as_str());
    }
}

/// It was written down, or why it was not: the lease was not this worker's any more, or it never can be.
pub(crate) fn settled(span: Option<Box<Span>>, answer: &Result<Settled, Error>) {
    let Some(mut span) = span else { return };
    match answer {
        Ok(Settled::Applied | Settled::Kept) => {}
        Ok(Settled::Stale) => span.fail("stale"),
        Err(_) => span.fail("refused"),
    }
    span.end();
}

/// A call by one of the job's ways begins below this place.
pub(crate) fn call(job: &Job, way: Way<'_>, below: Option<Context>) -> Option<Box<Span>> {
    let tracer = tracer()?;
    let parent = Some(below?);
    if !way.runner.billed() {
        // Not the model: it may be a command with all that it is given.
        let mut span = tracer.begin(parent, None, (Kind::Internal, way.key.to_owned())).1?;
        span.set(n::KEY, way.key);
        return Some(span);
    }
    let operation = match &job.work.input {
        Input::Prompt(_) => call::CHAT,
        Input::Request { url, .. } => match Endpoint::of(url) {
            Some(Endpoint::Embeddings) => call::EMBEDDINGS,
            Some(Endpoint::Generate) => call::GENERATE,
            Some(Endpoint::Chat | Endpoint::Responses | Endpoint::Messages) | None => call::CHAT,
        },
    };
    let priced = way.runner.priced_as(job);
    let provider = priced.as_ref().map_or_else(|| way.key.split('/').next().unwrap_or_default(), |(name, _)| name);
    let model = priced.as_ref().map(|(_, model)| model.as_str()).or(job.work.model.as_deref());
    let name = model.map_or_else(|| operation.to_owned(), |model| format!("{operation} {model}"));
    let mut span = tracer.begin(parent, None, (Kind::Client, name)).1?;
    let known = n::PROVIDERS.iter().find(|(ours, _)| *ours == provider).map(|(_, theirs)| *theirs);
    span.set(n::GEN_AI, operation);
    span.set(n::PROVIDER, known.unwrap_or(provider));
    span.set(n::KEY, way.key);
    if let Some(model) = model {
        span.set(n::ASKED_MODEL, model);
    }
    Some(span)
}

/// What the call has come to.
pub(crate) fn called(span: Option<Box<Span>>, outcome: &Outcome) {
    let Some(mut span) = span else { return };
    match outcome {
        Outcome::Success(reply) => answered(&mut span, reply),
        Outcome::Failure(failure) => failed(&mut span, failure),
    }
    span.end();
}

fn answered(span: &mut Span, reply: &Reply) {
    span.set(n::STATUS, u64::from(reply.status_code));
    span.set(n::INPUT, reply.usage.input_tokens);
    span.set(n::OUTPUT, reply.usage.output_tokens);
    if reply.usage.cached_tokens > 0 {
        span.set(n::CACHED, reply.usage.cached_tokens);
    }
    if let Some(model) = &reply.model {
        span.set(n::MODEL, model.as_str());
    }
    if let Some(id) = &reply.request_id {
        span.set(n::REQUEST, id.as_str());
    }
    if let Some(reason) = &reply.finish_reason {
        span.set(n::FINISH, Value::Texts(vec![reason.clone()]));
    }
    cost(span, reply.cost);
}

fn failed(span: &mut Span, failure: &Failure) {
    span.fail(failure.class.as_str());
    span.set(n::CODE, failure.code.as_str());
    if let Some(status) = failure.status_code {
        span.set(n::STATUS, u64::from(status));
    }
    if failure.usage.input_tokens + failure.usage.output_tokens > 0 {
        span.set(n::INPUT, failure.usage.input_tokens);
        span.set(n::OUTPUT, failure.usage.output_tokens);
    }
    cost(span, failure.cost);
}

#[expect(clippy::cast_precision_loss, reason = "traces know no other numbers")]
fn cost(span: &mut Span, cost: Option<Usd>) {
    if let Some(cost) = cost {
        span.set(n::COST, Value::Fraction(cost.as_nanos() as f64 / 1e9));
    }
}
