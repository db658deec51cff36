//! One delivery, step by step: open, claim, run under heartbeat, judge, keep the output, settle.
//! It owns nothing that outlives the job; what is taken and when to leave is `intake.rs`.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use promptq_common::broker::{Delivery, Head, Lease, Settled, Verdict};
use promptq_common::codec::decode_job;
use promptq_common::error::Error;
use promptq_common::job::Job;
use promptq_common::limits::{Denied, Expected, Limits, Pass, Turned};
use promptq_common::outcome::{Failure, FailureClass, Outcome};
use promptq_common::record::End;
use promptq_common::store::Store;
use promptq_common::time::Timestamp;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::claim::claim;
use crate::cost::Bill;
use crate::heartbeat::{self, Fate, Rhythm};
use crate::judge::{Decision, Past, judge};
use crate::money::{Money, money};
use crate::output;
use crate::reuse::{self, Fresh, Shelf};
use crate::runner::{RunContext, Runner, Runners, WhenLost};
use crate::settings::Settings;
use crate::size::size;
use crate::verdict::{Case, hold, release};

/// What every job of a worker shares.
#[derive(Debug)]
pub(crate) struct Desk {
    pub(crate) settings: Settings,
    pub(crate) runners: Arc<Runners>,
    pub(crate) store: Option<Store>,
    pub(crate) limits: Limits,
    pub(crate) shelf: Shelf,
    /// True once running jobs are to be given up: the drain time is over.
    pub(crate) cut: watch::Receiver<bool>,
}

/// What became of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Did {
    /// The job ended here.
    Ended(End),
    /// It spent an attempt, and waits until then.
    Retried(Timestamp),
    /// It was given back.
    Released,
    /// It was cut by the end of the drain time, and given back.
    Cut,
    /// It is not this worker's any more, or can never be settled.
    Dropped,
}

/// The runner keeps its time limit itself; this much later the worker cuts one that does not.
const OVERTIME: Duration = Duration::from_secs(5);

/// Takes a delivery to its end. Panics in the runner are failures; nothing here fails for what a job says. Each slot has
/// one of these: what few jobs need, or only for a moment, is in boxes; an `async fn` would hold the delivery twice.
pub(crate) fn execute(
    delivery: Delivery,
    expected: Option<Expected>,
    desk: Arc<Desk>,
) -> impl Future<Output = Did> + Send + 'static {
    let Delivery { head, payload, lease } = delivery;
    async move {
        let opened = decode_job(&payload).map(Box::new);
        drop(payload);
        let (verdict, was_cut, fresh) = match verdict_on((&head, &lease), opened, expected, &desk).await {
            Step::Settle(verdict) => (verdict, false, None),
            Step::Share(verdict, fresh) => (verdict, false, Some(fresh)),
            Step::Cut(verdict) => (verdict, true, None),
            Step::Go | Step::Drop => return Did::Dropped,
        };
        let did = settle(lease, verdict, was_cut).await;
        if let (Some(fresh), Did::Ended(End::Succeeded)) = (fresh, did) {
            Box::pin(async {
                tokio::select! { () = desk.shelf.keep(*fresh) => {}, () = cut(&desk) => {} }
            })
            .await;
        }
        did
    }
}

/// What is to become of it.
async fn verdict_on(
    (head, lease): (&Head, &Lease),
    opened: Result<Box<Job>, Error>,
    expected: Option<Expected>,
    desk: &Desk,
) -> Step {
    let case = Case { head, lease: lease.id(), worker: &desk.settings.worker, started_at: Timestamp::now() };
    match opened {
        Ok(job) => match claim(&case, lease, desk).await {
            Step::Go => Box::pin(work(job, expected, &case, lease, desk)).await,
            stop @ (Step::Settle(_) | Step::Share(..) | Step::Cut(_) | Step::Drop) => stop,
        },
        Err(error) => Step::Settle(case.dead(FailureClass::Fatal, "undecodable", &error.to_string())),
    }
}

/// What comes next.
pub(crate) enum Step {
    /// The next step.
    Go,
    /// The end of the lease.
    Settle(Verdict),
    /// The end of the lease by an answer, which is then kept for jobs that ask the same.
    Share(Verdict, Box<Fresh>),
    /// The end of the lease, because the drain time is over.
    Cut(Verdict),
    /// Nothing: the job is somebody else's, or has ended.
    Drop,
}

/// Runs the job, and turns what came of it into a verdict.
async fn work(job: Box<Job>, expected: Option<Expected>, case: &Case<'_>, lease: &Lease, desk: &Desk) -> Step {
    if desk.settings.own_batch.as_ref().is_some_and(|own| case.head.batch.as_ref() != Some(own)) {
        let detail = "this worker runs only the jobs of its own batch";
        return Step::Settle(case.dead(FailureClass::Fatal, "other_batch", detail));
    }
    let runner = match desk.runners.pick(&job) {
        Ok(runner) => runner,
        Err(failure) => return Step::Settle(case.dead(failure.class, &failure.code, &failure.detail)),
    };
    if let Some(step) = reused(&job, std::slice::from_ref(&runner), case, lease, desk).await {
        return step;
    }
    let key = runner.limit_key(&job);
    let lane = &case.head.lane;
    let admitted = match runner.endpoint() {
        Some(counts) => desk.limits.admit_call(lane, &key, counts),
        None => desk.limits.admit(lane, &key),
    };
    let pass = match admitted {
        Ok(pass) => pass,
        Err(refused) => return Step::Settle(release(refused.wait, Some(&key))),
    };
    // From here on the job itself stands in line.
    drop(expected);
    let pass = match reserve(&job, pass, &*runner, case, lease, desk).await {
        Ok(pass) => pass,
        Err(step) => return step,
    };
    let attempt = case.head.attempts.saturating_add(1);
    let context = RunContext { attempt, lease: case.lease, worker: case.worker.clone(), ear: pass.ear() };
    let bill = Bill { prices: &desk.settings.prices, runner: &*runner, job: &job };
    match run(&job, &*runner, &context, lease, desk).await {
        Ran::Done { outcome, lost } => match finish(bill.outcome(outcome), lost, &job, pass, case, lease, desk).await {
            Step::Settle(verdict) => match reuse::fresh(&job, &*runner, &verdict) {
                Some(fresh) => Step::Share(verdict, fresh),
                None => Step::Settle(verdict),
            },
            step @ (Step::Go | Step::Share(..) | Step::Cut(_) | Step::Drop) => step,
        },
        Ran::Cancelled => {
            let cut = runner.billed().then(|| cut_call("cancelled while the call was running", bill));
            Step::Settle(case.cancelled(cut.as_ref()))
        }
        Ran::Cut if runner.billed() => {
            let failure = cut_call("the worker had to leave while the call was running", bill);
            Step::Cut(after(&failure, &job, case, None))
        }
        Ran::Cut => Step::Cut(release(Duration::ZERO, None)),
        Ran::Gone => Step::Drop,
    }
}

/// Ends a job with a stored answer, if it takes one and there is one: nothing is called, and no limit is asked.
async fn reused(job: &Job, runners: &[Arc<dyn Runner>], case: &Case<'_>, lease: &Lease, desk: &Desk) -> Option<Step> {
    job.extras.as_ref()?.reuse?;
    let finding = Box::pin(reuse::found(job, runners, case, desk));
    tokio::select! {
        found = heartbeat::during(lease, rhythm(desk), finding) => found.map(Step::Settle),
        () = cut(desk) => Some(Step::Cut(release(Duration::ZERO, None))),
    }
}

/// Waits in line, under heartbeat, until there is money for the job's call and the limits of its key have room.
#[expect(clippy::too_many_arguments, reason = "one of a row of steps: each argument is what an earlier one gave")]
async fn reserve(
    job: &Job,
    mut pass: Pass,
    runner: &dyn Runner,
    case: &Case<'_>,
    lease: &Lease,
    desk: &Desk,
) -> Result<Pass, Step> {
    let size = size(&job.work);
    let (worst, budgets) = match money(job, runner, &size, (case, desk, &pass)) {
        Money::Costs(worst, budgets) => (worst, budgets),
        Money::Never(code, detail) => return Err(Step::Settle(case.dead(FailureClass::Fatal, code, &detail))),
        Money::Waits(key, detail) => {
            let wait = desk.limits.complain(&key.to_string(), &detail);
            return Err(Step::Settle(hold(wait, key)));
        }
    };
    if desk.limits.asks_nothing(&mut pass, &case.head.lane, worst) {
        return Ok(pass);
    }
    let reserving = Box::pin(desk.limits.reserve_all(pass, &case.head.lane, size, (worst, &budgets)));
    let denied = tokio::select! {
        biased;
        reserved = reserving => match reserved {
            Ok(pass) => return Ok(pass),
            Err(denied) => denied,
        },
        fate = heartbeat::keep(lease, rhythm(desk)) => return Err(match fate {
            Fate::Cancelled => Step::Settle(case.cancelled(None)),
            Fate::Ended | Fate::Lost => Step::Drop,
        }),
        () = cut(desk) => return Err(Step::Cut(release(Duration::ZERO, None))),
    };
    Err(Step::Settle(match denied {
        Turned::Short { hold: key, wait } => hold(wait, key),
        Turned::Limit(Denied::Later(wait), key) => release(wait, Some(&key)),
        Turned::Limit(Denied::Never(cap), key) => {
            let detail =
                format!("it needs more than {cap}, all that {key} may use; hint: make it smaller, or raise the limit");
            case.dead(FailureClass::Fatal, "larger_than_limit", &detail)
        }
    }))
}

/// How a run ended.
#[expect(clippy::large_enum_variant, reason = "one at a time, and nearly all are the large one")]
enum Ran {
    /// By itself; the lease may be lost meanwhile.
    Done { outcome: Outcome, lost: bool },
    /// A user cancelled it.
    Cancelled,
    /// The drain time is over.
    Cut,
    /// The job is somebody else's, or has ended.
    Gone,
}

/// Runs under heartbeat. Returning drops the runner's future, which stops the work.
async fn run(job: &Job, runner: &dyn Runner, context: &RunContext, lease: &Lease, desk: &Desk) -> Ran {
    let running = AssertUnwindSafe(runner.run(job, context)).catch_unwind();
    let mut running = std::pin::pin!(timeout(runner.longest(job).saturating_add(OVERTIME), running));
    let mut keeping = std::pin::pin!(heartbeat::keep(lease, rhythm(desk)));
    let mut cutting = std::pin::pin!(cut(desk));
    let mut lost = false;
    loop {
        let fate = tokio::select! {
            biased;
            done = &mut running => {
                let outcome = match done {
                    Ok(Ok(outcome)) => outcome,
                    Ok(Err(_)) => panicked(),
                    Err(_) => overran(job, runner),
                };
                return Ran::Done { outcome, lost };
            }
            fate = &mut keeping, if !lost => fate,
            () = &mut cutting => return if lost { Ran::Gone } else { Ran::Cut },
        };
        match fate {
            Fate::Cancelled => return Ran::Cancelled,
            Fate::Ended => return Ran::Gone,
            Fate::Lost if runner.when_lost() == WhenLost::Stop => return Ran::Gone,
            Fate::Lost => lost = true,
        }
    }
}

/// Judges an outcome, tells the limits, and keeps the output.
#[expect(clippy::too_many_arguments, reason = "the last of a row of steps: each argument is what an earlier one gave")]
async fn finish(
    outcome: Outcome,
    lost: bool,
    job: &Job,
    pass: Pass,
    case: &Case<'_>,
    lease: &Lease,
    desk: &Desk,
) -> Step {
    let key = matches!(outcome, Outcome::Failure(_)).then(|| pass.key().to_owned());
    let ruling = pass.report(job.id, &outcome);
    let reply = match outcome {
        Outcome::Success(reply) => reply,
        // Whoever has the job now spends its attempts.
        Outcome::Failure(_) if lost => return Step::Drop,
        Outcome::Failure(mut failure) => {
            if ruling.outage {
                failure.class = FailureClass::Capacity;
            }
            failure.retry_after = failure.retry_after.max(ruling.wait);
            return Step::Settle(after(&failure, job, case, key.as_deref().filter(|_| ruling.wait.is_some())));
        }
    };
    let mut reply = reply;
    let place = (job.id, case.lease);
    let body = std::mem::take(&mut reply.body);
    let kept = if output::is_stored(desk.store.as_ref(), &desk.settings, &body) {
        let keeping = output::keep(desk.store.as_ref(), &desk.settings, place, body);
        let beating =
            async { if lost { keeping.await } else { heartbeat::during(lease, rhythm(desk), keeping).await } };
        Box::pin(beating).await
    } else {
        output::inline(&desk.settings, body)
    };
    Step::Settle(match kept {
        Ok(output) => case.succeeded(reply, output),
        Err(mut failure) => {
            (failure.usage, failure.cost, failure.status_code) = (reply.usage, reply.cost, Some(reply.status_code));
            case.failed(&failure)
        }
    })
}

/// The verdict on a failure. `held_by` is the limit key that is shut now.
fn after(failure: &Failure, job: &Job, case: &Case<'_>, held_by: Option<&str>) -> Verdict {
    let past = Past::new(case.head.attempts, &case.head.history, failure);
    match judge(&Outcome::Failure(failure.clone()), past, &job.policy, rand::random()) {
        Decision::Retry { after } => case.retry(after, failure),
        // A shut key lets jobs through one at a time or at its time: they need no spreading of their own.
        Decision::Release { after } if held_by.is_some() => release(failure.retry_after.unwrap_or(after), held_by),
        Decision::Release { after } => release(after, None),
        Decision::Dead | Decision::Done => case.failed(failure),
    }
}

/// Ends the lease; waits for as long as that takes, keeping its slot.
async fn settle(lease: Lease, verdict: Verdict, was_cut: bool) -> Did {
    let id = lease.id();
    let did = match &verdict {
        Verdict::End(record) => Did::Ended(record.end),
        Verdict::Retry { .. } | Verdict::Release { .. } if was_cut => Did::Cut,
        Verdict::Retry { after, .. } => Did::Retried(Timestamp::now() + *after),
        Verdict::Release { .. } => Did::Released,
    };
    match lease.settle(verdict).await {
        Ok(Settled::Applied | Settled::Kept) => did,
        Ok(Settled::Stale) => Did::Dropped,
        Err(error) => {
            tracing::error!(%error, lease = %id, "a job's end can never be stored; it will run again");
            Did::Dropped
        }
    }
}

/// Waits until running jobs are to be given up.
pub(crate) async fn cut(desk: &Desk) {
    // An error means that nobody can ask for it any more.
    if desk.cut.clone().wait_for(|cut| *cut).await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn rhythm(desk: &Desk) -> Rhythm {
    Rhythm { every: desk.settings.heartbeat, lease: desk.settings.lease }
}

/// A call that may have been paid for, with what it has probably consumed and cost.
fn cut_call(detail: &str, bill: Bill<'_>) -> Failure {
    let failure = Failure::new(FailureClass::UnknownBilled, "call_cut", detail);
    bill.failure(Failure { usage: bill.runner.estimate(bill.job), ..failure })
}

fn panicked() -> Outcome {
    Outcome::Failure(Failure::new(FailureClass::Crashed, "panic", "the runner broke; see the worker's log"))
}

fn overran(job: &Job, runner: &dyn Runner) -> Outcome {
    let class = if runner.billed() { FailureClass::UnknownBilled } else { FailureClass::TimedOut };
    let detail = format!("ran longer than {}", promptq_common::time::format_duration(runner.longest(job)));
    Outcome::Failure(Failure { usage: runner.estimate(job), ..Failure::new(class, "timed_out", &detail) })
}
