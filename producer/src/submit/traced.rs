//! What traces tell of jobs that are put in, and the places in them that the jobs are given.

use promptq_common::broker::Enqueued;
use promptq_common::job::{Job, Queue};
use promptq_common::telemetry::trace::name::{self as n, operation};
use promptq_common::telemetry::trace::{Context, Kind, Span, tracer};

/// Jobs on their way in.
#[derive(Debug)]
pub(super) struct Sending(Option<Box<Span>>);

/// Jobs are handed to this kind of broker. Each that does not say itself what it was caused by was caused by `caller`.
/// Where there is a tracer, what a job causes is below its own span, of one alone below that of the sending.
pub(super) fn sending(jobs: &mut [Job], caller: Option<Context>, system: &'static str) -> Sending {
    for job in jobs.iter_mut() {
        job.trace = job.trace.or(caller);
    }
    let Some(tracer) = tracer() else { return Sending(None) };
    let Some(queue) = jobs.first().map(|job| job.queue.clone()) else { return Sending(None) };
    let name = format!("{} {queue}", operation::SEND);
    let mut span = if let [job] = jobs {
        let (place, mut span) = tracer.begin(job.trace, None, (Kind::Producer, name));
        job.trace = Some(place);
        if let Some(span) = &mut span {
            of(span, job);
        }
        span
    } else {
        let mut span = tracer.begin(caller, None, (Kind::Client, name)).1;
        for job in jobs.iter_mut() {
            let what = (Kind::Producer, format!("{} {}", operation::CREATE, job.queue));
            let (place, made) = tracer.begin(job.trace, None, what);
            job.trace = Some(place);
            if let Some(mut made) = made {
                said(&mut made, operation::CREATE, (system, &job.queue));
                of(&mut made, job);
                made.end();
            }
            if let Some(span) = &mut span {
                span.link(place);
            }
        }
        if let Some(span) = &mut span {
            span.set(n::COUNT, jobs.len() as u64);
        }
        span
    };
    if let Some(span) = &mut span {
        said(span, operation::SEND, (system, &queue));
    }
    Sending(span)
}

impl Sending {
    /// The broker has answered, or nobody knows.
    pub(super) fn answered<E>(self, answers: &Result<Vec<Enqueued>, E>) {
        let Some(mut span) = self.0 else { return };
        let refused = |answer: &Enqueued| matches!(answer, Enqueued::Refused(_));
        match answers {
            Ok(answers) if answers.iter().any(refused) => span.fail("refused"),
            Ok(_) => {}
            Err(_) => span.fail("unknown"),
        }
        span.end();
    }
}

fn said(span: &mut Span, operation: &'static str, (system, queue): (&'static str, &Queue)) {
    span.set(n::SYSTEM, system);
    span.set(n::DESTINATION, queue.as_str());
    span.set(n::OPERATION, operation);
    span.set(n::OPERATION_TYPE, operation);
}

fn of(span: &mut Span, job: &Job) {
    span.set(n::MESSAGE, job.id.to_string());
    if let Some(batch) = &job.batch {
        span.set(n::CONVERSATION, batch.as_str());
    }
}

#[cfg(test)]
mod tests {
    use promptq_common::codec::{MAX_BYTES, encode_job};
    use promptq_common::work::Work;

    use super::*;
    use crate::input::small_enough;

    #[test]
    fn a_job_that_is_small_enough_still_is_with_its_place_in_a_trace() {
        let caller = Context::root(None, true);
        let empty = Job::new(Queue::standard(), Work::prompt(None, ""));
        let of = |bytes: usize| Job { work: Work::prompt(None, "x".repeat(bytes)), ..empty.clone() };
        let beside = encode_job(&of(MAX_BYTES / 2)).unwrap().len() - MAX_BYTES / 2;
        for (short, fits) in [(0, false), (25, false), (26, true), (27, true)] {
            let mut job = of(MAX_BYTES - beside - short);
            assert_eq!(small_enough(&job).is_ok(), fits, "{short} bytes below the limit");
            let sent = sending(std::slice::from_mut(&mut job), Some(caller), "memory");
            assert_eq!((encode_job(&job).is_ok(), job.trace), (fits, Some(caller)), "{short}");
            assert_eq!(small_enough(&job).is_ok(), fits, "{short}: what has a place is not given another");
            sent.answered::<()>(&Ok(Vec::new()));
        }
    }
}
