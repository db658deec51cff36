//! A job that is submitted by itself, in no batch: made by the rules of a row, refused with the words of one.

use promptq_common::broker::{Broker, Enqueued};
use promptq_common::config::Config;
use promptq_common::job::Job;
use promptq_common::record::State;
use promptq_common::telemetry::trace::Context;

use super::{enqueue_retrying, refused, traced};
use crate::input::{Fault, Key, alone, small_enough};
use crate::problem::{Exit, Problem, Result};

/// What became of one job: it is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is new.
    New,
    /// It was there already, in this state.
    Known(State),
}

/// The job that one line of JSON means.
///
/// # Errors
/// What is wrong with the line.
pub fn make(text: &str, key: &Key<'_>, config: &Config) -> Result<Job, Fault> {
    alone(text, key, config).and_then(|job| small_enough(&job).map(|()| job))
}

/// Enqueues it, as caused by `caller`. Dropped before it returns, or after an error that says nothing else: unknown; the same
/// job again is safe.
///
/// # Errors
/// Its key is that of other content (exit 6), or the broker takes no such job.
pub async fn one(broker: &Broker, job: &mut Job, caller: Option<Context>) -> Result<Taken> {
    let sending = traced::sending(std::slice::from_mut(job), caller, broker.backend_name());
    let answers = enqueue_retrying(broker, std::slice::from_ref(job), false).await;
    sending.answered(&answers);
    match answers?.into_iter().next() {
        Some(Enqueued::New) => Ok(Taken::New),
        Some(Enqueued::Known(state)) => Ok(Taken::Known(state)),
        Some(Enqueued::Refused(refusal)) => Err(refused(job, &refusal)),
        None => Err(Problem::new(Exit::Failed, "failed", "the broker said nothing of the job")),
    }
}
