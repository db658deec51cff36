//! Stored answers given again: whether a job may have one, looking for it, and keeping new ones. A store in trouble makes
//! calls of what could have been free, and nothing else. Where answers lie is `common/src/store/reuse.rs`.

mod canonical;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use promptq_common::broker::Verdict;
use promptq_common::error::Kind;
use promptq_common::job::{Job, JobId};
use promptq_common::outcome::{AnswerClass, Origin, Reply, Usd};
use promptq_common::record::{Answer, Output, Record};
use promptq_common::store::{Kept, REUSE_BYTES, ReuseKey, Store};
use promptq_common::time::Timestamp;
use promptq_common::work::{Input, Work};
use tokio::time::{Instant, timeout};

pub(crate) use canonical::canonical;

use crate::execute::Desk;
use crate::output;
use crate::runner::Runner;
use crate::verdict::Case;

/// The longest that an answer is looked for: some twenty times what a bucket far away takes, and little beside a call.
const LOOK: Duration = Duration::from_secs(2);
/// The longest that keeping or copying one may take: 8 MiB at 1 MiB/s, and as long for its request.
const WRITE: Duration = Duration::from_secs(10);
/// A store that failed is left alone for so long: jobs do not each wait for it in turn.
const REST: Duration = Duration::from_secs(30);

/// What a worker knows of the place where answers are kept.
#[derive(Debug, Default)]
pub(crate) struct Shelf {
    store: Option<Store>,
    /// It has failed: nobody asks it before.
    rests_until: Mutex<Option<Instant>>,
    /// Whether it was said that there is none.
    told: AtomicBool,
}

/// A new answer that others may be given.
#[derive(Debug)]
pub(crate) struct Fresh {
    key: ReuseKey,
    job: JobId,
    at: Timestamp,
    answer: Answer,
}

/// The success of a job that a stored answer will do for, where there is one of any of its runners, the first first: free,
/// and saying where it came from.
pub(crate) async fn found(job: &Job, runners: &[Arc<dyn Runner>], case: &Case<'_>, desk: &Desk) -> Option<Verdict> {
    let oldest = oldest(job)?;
    let mut kept = None;
    for key in runners.iter().filter_map(|runner| runner.reuse_key(job)) {
        kept = desk.shelf.find(&key, oldest).await;
        if kept.is_some() {
            break;
        }
    }
    let kept = kept?;
    let origin = Origin { reused_from: Some(kept.job), ..Origin::default() };
    let reply = Reply {
        status_code: kept.status_code,
        model: kept.model,
        finish_reason: kept.finish_reason,
        cost: Some(Usd::default()),
        origin: origin.kept(),
        ..Reply::default()
    };
    // A copy of its own, which lives and goes with this job's record.
    let copying = output::keep(desk.store.as_ref(), &desk.settings, (job.id, case.lease), kept.body);
    match timeout(WRITE, copying).await {
        Ok(Ok(output)) => {
            tracing::debug!(job = %job.id, from = %kept.job, "answered with a stored answer");
            Some(case.succeeded(reply, output))
        }
        Ok(Err(_)) => None,
        Err(_) => {
            desk.shelf.rest("copying an answer took too long");
            None
        }
    }
}

/// What is to be kept of a job's end: nothing, unless the job takes stored answers and has come to one of its own, of which
/// nothing is missing. `verdict` is what ends it.
pub(crate) fn fresh(job: &Job, runner: &dyn Runner, class: AnswerClass, verdict: &Verdict) -> Option<Box<Fresh>> {
    oldest(job).filter(|_| class == AnswerClass::Complete)?;
    let Verdict::End(record) = verdict else { return None };
    let Record { id, ended_at, answer: Some(answer), .. } = &**record else { return None };
    let key = runner.reuse_key(job)?;
    Some(Box::new(Fresh { key, job: *id, at: *ended_at, answer: answer.clone() }))
}

fn oldest(job: &Job) -> Option<Duration> {
    job.extras.as_ref()?.reuse
}

/// The key of work that is asked of nobody in particular, by the model as it was submitted.
pub(crate) fn plain_key(job: &Job) -> ReuseKey {
    let Work { model, input } = &job.work;
    let (model, tenant) = (model.as_deref().unwrap_or_default(), job.tenant.as_deref());
    match input {
        Input::Prompt(prompt) => {
            let system = prompt.system.as_deref().map_or_else(String::new, |system| format!("+{system}"));
            ReuseKey::new(tenant, &["prompt", model, &prompt.text, &system, &canonical(&prompt.params)])
        }
        Input::Request { url, body } => ReuseKey::new(tenant, &["request", model, url, &canonical(body)]),
    }
}

impl Shelf {
    pub(crate) fn new(store: Option<Store>) -> Self {
        Self { store, ..Self::default() }
    }

    /// The store, unless there is none or it has just failed.
    fn open(&self) -> Option<&Store> {
        if self.store.is_none() && !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "jobs would take stored answers, but this worker has no store: each is called; hint: --store"
            );
        }
        let rests_until = *self.rests_until();
        self.store.as_ref().filter(|_| rests_until.is_none_or(|until| until <= Instant::now()))
    }

    /// The answer under this key, if it is no older than `oldest`.
    async fn find(&self, key: &ReuseKey, oldest: Duration) -> Option<Kept> {
        match timeout(LOOK, self.open()?.reusable(key)).await {
            Ok(Ok(kept)) => kept.filter(|kept| Timestamp::now().since(kept.at) <= oldest),
            Ok(Err(error)) if matches!(error.kind(), Kind::Corrupt | Kind::TooLarge) => {
                tracing::warn!(%error, "what was kept is no answer; calling anew");
                None
            }
            Ok(Err(error)) => {
                self.rest(&error.to_string());
                None
            }
            Err(_) => {
                self.rest("it does not answer");
                None
            }
        }
    }

    /// Keeps an answer for others, if it is not too large. Comes after its record: should the worker die before it
    /// is done, the job has its answer, and the next that asks the same is called.
    pub(crate) async fn keep(&self, fresh: Fresh) {
        let Some(store) = self.open() else { return };
        let Fresh { key, job, at, answer } = fresh;
        let Answer { status_code, model, finish_reason, output, .. } = answer;
        let keeping = async {
            let body = match output {
                Output::Inline(body) => body,
                Output::Stored(stored) if stored.bytes <= REUSE_BYTES => store.get_output(&stored).await?,
                Output::Stored(_) => return Ok(()),
            };
            store.keep_reusable(&key, &Kept { job, at, status_code, model, finish_reason, body }).await
        };
        match timeout(WRITE, keeping).await {
            Ok(Ok(())) => {}
            // Retention or a person was faster, or it is beyond what is kept.
            Ok(Err(error)) if matches!(error.kind(), Kind::NotFound | Kind::Corrupt | Kind::TooLarge) => {
                tracing::debug!(%error, %job, "an answer is not kept for others");
            }
            Ok(Err(error)) => self.rest(&error.to_string()),
            Err(_) => self.rest("keeping an answer took too long"),
        }
    }

    /// Leaves the store alone for a while, and says so; once, where many jobs find it in trouble together.
    fn rest(&self, why: &str) {
        let before = self.rests_until().replace(Instant::now() + REST);
        if before.is_none_or(|until| until <= Instant::now()) {
            let length = REST.as_secs();
            tracing::warn!(why, "stored answers cannot be read or kept; for {length} s every job is called");
        }
    }

    fn rests_until(&self) -> MutexGuard<'_, Option<Instant>> {
        self.rests_until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
