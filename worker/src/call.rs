//! One call for a job by one of its ways: admitted, paid for in advance, run under heartbeat, judged, its output kept. Which
//! way is next is `route.rs`; how a lease ends, `execute.rs`.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use promptq_common::broker::{HoldKey, Verdict};
use promptq_common::job::Job;
use promptq_common::limits::{Denied, Expected, Pass, Turned, account_of};
use promptq_common::outcome::{Failure, FailureClass, Outcome};
use tokio::time::{Instant, timeout};

use crate::cost::Bill;
use crate::execute::{Errand, Step, cut, rhythm};
use crate::heartbeat::{self, Fate};
use crate::judge::{Decision, Past, judge};
use crate::meter::Interrupted;
use crate::money::{Money, money};
use crate::output;
use crate::repair;
use crate::reuse;
use crate::runner::{RunContext, Runner, WhenLost};
use crate::size::size;
use crate::tier;
use crate::traced;
use crate::verdict::{hold, release};

/// One of the ways of a job.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way<'a> {
    pub(crate) runner: &'a dyn Runner,
    pub(crate) key: &'a str,
    /// Whether there are others.
    pub(crate) has_others: bool,
}

/// Where a job stands in its lease.
#[derive(Debug)]
pub(crate) struct Turn {
    /// Its place in line, until it stands there itself.
    pub(crate) expected: Option<Expected>,
    /// Whether a call of it has begun.
    pub(crate) begun: bool,
}

/// What a way has come to.
#[derive(Debug)]
pub(crate) enum Came {
    /// To this, whatever other ways there are.
    Step(Step),
    /// It is shut, or has no room for anybody: by this way again after so long. With the failure of a call, if there was one.
    Shut { after: Duration, hold: Option<HoldKey>, failure: Option<Failure> },
    /// The job will never work as it is, by this way at least. Whether it was called.
    Refused { failure: Failure, called: bool },
}

impl Came {
    fn settle(verdict: Verdict) -> Self {
        Self::Step(Step::Settle(verdict))
    }
}

/// Tries one way to its end.
pub(crate) async fn call(errand: Errand<'_>, way: Way<'_>, turn: &mut Turn) -> Came {
    let Errand { job, case, desk, .. } = errand;
    let (runner, lane) = (way.runner, &case.head.lane);
    let admitted = match runner.endpoint() {
        Some(counts) => desk.limits.admit_call(lane, way.key, counts),
        None => desk.limits.admit(lane, way.key),
    };
    let pass = match admitted {
        Ok(pass) => pass,
        Err(refused) if refused.class == FailureClass::Throttled => {
            return Came::settle(release(refused.wait, Some(way.key)));
        }
        Err(refused) => {
            let key = if refused.class == FailureClass::Account { account_of(way.key) } else { way.key };
            return Came::Shut { after: refused.wait, hold: Some(HoldKey::Limit(key.to_owned())), failure: None };
        }
    };
    // From here on the job itself stands in line.
    drop(turn.expected.take());
    let pass = match reserve(errand, pass, runner).await {
        Ok(pass) => pass,
        Err(came) => return came,
    };
    let attempt = case.head.attempts.saturating_add(1);
    let stream = case.head.history.recent.last().is_some_and(|last| last.status_code == Some(GATEWAY_TIMEOUT));
    let span = traced::call(job, way, case.place.copied());
    let trace = span.as_ref().map_or(case.place.copied(), |span| span.place());
    let context =
        RunContext { attempt, lease: case.lease, worker: case.worker.clone(), ear: pass.ear(), stream, trace };
    let bill = Bill { prices: &desk.settings.prices, runner, job };
    if !std::mem::replace(&mut turn.begun, true) {
        desk.meter.starts(case.head, case.deaths);
    }
    let (queue, begun) = (&lane.queue, Instant::now());
    let ran = run(errand, runner, &context).await;
    if let Some(why) = ran.interrupted() {
        desk.meter.interrupted(queue, why);
    }
    match ran {
        Ran::Done { outcome, lost } => {
            let outcome = bill.outcome(told(outcome, job, way));
            traced::called(span, &outcome);
            desk.meter.called(queue, way.key, &outcome, begun.elapsed());
            finish(errand, way, pass, bill, (outcome, lost)).await
        }
        Ran::Cancelled => {
            let cut = runner.billed().then(|| cut_call("cancelled while the call was running", bill));
            Came::settle(case.cancelled(cut.as_ref()))
        }
        Ran::Cut if runner.billed() => {
            let failure = cut_call("the worker had to leave while the call was running", bill);
            Came::Step(Step::Cut(after(&failure, errand, None)))
        }
        Ran::Cut => Came::Step(Step::Cut(release(Duration::ZERO, None))),
        Ran::Gone => Came::Step(Step::Drop),
    }
}

/// An answer says by which of several ways it came.
fn told(mut outcome: Outcome, job: &Job, way: Way<'_>) -> Outcome {
    if let Outcome::Success(reply) = &mut outcome
        && way.has_others
    {
        let priced = way.runner.priced_as(job).map(|(provider, model)| format!("{provider}/{model}"));
        reply.origin.get_or_insert_default().route = Some(priced.unwrap_or_else(|| way.key.to_owned()));
    }
    outcome
}

/// Waits in line, under heartbeat, until there is money for the job's call and the limits of its key have room.
async fn reserve(errand: Errand<'_>, mut pass: Pass, runner: &dyn Runner) -> Result<Pass, Came> {
    let Errand { job, case, lease, desk } = errand;
    let size = size(&job.work);
    let refused = |code: &str, detail: &str| {
        let failure = Failure::new(FailureClass::Fatal, code, detail);
        Came::Refused { failure, called: false }
    };
    let (worst, budgets) = match money(job, runner, (&case, desk, &pass)) {
        Money::Costs(worst, budgets) => (worst, budgets),
        Money::Never(code, detail) => return Err(refused(code, &detail)),
        Money::Waits(key, detail) => {
            let wait = desk.limits.complain(&key.limit_key(), &detail);
            return Err(Came::settle(hold(wait, key)));
        }
    };
    if desk.limits.asks_nothing(&mut pass, worst) {
        return Ok(pass);
    }
    let asked = Instant::now();
    let reserving = Box::pin(desk.limits.reserve_all(pass, &case.head.lane, size, (worst, &budgets)));
    let denied = tokio::select! {
        biased;
        reserved = reserving => match reserved {
            Ok(pass) => {
                desk.meter.waited(pass.key(), asked.elapsed());
                return Ok(pass);
            }
            Err(denied) => denied,
        },
        fate = heartbeat::keep(lease, rhythm(desk)) => return Err(Came::Step(match fate {
            Fate::Cancelled => Step::Settle(case.cancelled(None)),
            Fate::Ended | Fate::Lost => Step::Drop,
        })),
        () = cut(desk) => return Err(Came::Step(Step::Cut(release(Duration::ZERO, None)))),
    };
    Err(match denied {
        Turned::Short { hold: key, wait } => Came::settle(hold(wait, key)),
        Turned::Limit(Denied::Later(wait), key) => Came::settle(release(wait, Some(&key))),
        Turned::Limit(Denied::Never(cap), key) => {
            let detail =
                format!("it needs more than {cap}, all that {key} may use; hint: make it smaller, or raise the limit");
            refused("larger_than_limit", &detail)
        }
    })
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

impl Ran {
    /// Why it was given up in the middle, if it was.
    fn interrupted(&self) -> Option<Interrupted> {
        match self {
            Self::Done { outcome: Outcome::Failure(failure), .. } if failure.code == PANIC => {
                Some(Interrupted::Crashed)
            }
            Self::Done { .. } | Self::Cancelled => None,
            Self::Cut => Some(Interrupted::DrainDeadline),
            Self::Gone => Some(Interrupted::LeaseLost),
        }
    }
}

/// Runs under heartbeat. Returning drops the runner's future, which stops the work.
async fn run(errand: Errand<'_>, runner: &dyn Runner, context: &RunContext) -> Ran {
    let Errand { job, lease, desk, .. } = errand;
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

/// The runner keeps its time limit itself; this much later the worker cuts one that does not.
const OVERTIME: Duration = Duration::from_secs(5);

/// What is said in place of an answer that took too long to be whole.
const GATEWAY_TIMEOUT: u16 = 504;

/// Judges an outcome, tells the limits, and keeps the output, unless it is put aside.
async fn finish(
    errand: Errand<'_>,
    way: Way<'_>,
    pass: Pass,
    bill: Bill<'_>,
    (outcome, lost): (Outcome, bool),
) -> Came {
    let Errand { job, case, lease, desk } = errand;
    let ruling = pass.report(job.id, tier::heard(job, &outcome).as_ref().unwrap_or(&outcome));
    let reply = match outcome {
        // A late one is kept: whoever has the job now has none yet.
        Outcome::Success(reply) if !lost && repair::again(&reply, bill, &case) => {
            return Came::settle(case.put_aside(&reply));
        }
        Outcome::Success(reply) => reply,
        // Whoever has the job now spends its attempts.
        Outcome::Failure(_) if lost => return Came::Step(Step::Drop),
        Outcome::Failure(mut failure) => {
            if ruling.outage {
                failure.class = FailureClass::Capacity;
            }
            let shut = match ruling.account {
                Some(wait) => Some((account_of(way.key), wait)),
                None => ruling.wait.map(|wait| (way.key, wait)),
            };
            return judged(failure, errand, way, shut);
        }
    };
    let class = reply.class;
    let mut reply = reply;
    let place = (job.id, case.lease);
    let body = std::mem::take(&mut reply.body);
    let kept = if output::is_stored(desk.store.as_ref(), &desk.settings, &body) {
        let keeping = output::keep(desk.store.as_ref(), &desk.settings, place, body);
        let asked = Instant::now();
        let beating =
            async { if lost { keeping.await } else { heartbeat::during(lease, rhythm(desk), keeping).await } };
        let kept = Box::pin(beating).await;
        desk.meter.stored(kept.as_ref().ok(), asked.elapsed());
        kept
    } else {
        output::inline(&desk.settings, body)
    };
    let verdict = match kept {
        Ok(output) => case.succeeded(reply, output),
        Err(mut failure) => {
            (failure.usage, failure.cost, failure.status_code) = (reply.usage, reply.cost, Some(reply.status_code));
            case.failed(&failure)
        }
    };
    Came::Step(match reuse::fresh(job, way.runner, class, &verdict) {
        Some(fresh) => Step::Share(verdict, fresh),
        None => Step::Settle(verdict),
    })
}

/// What a failure means for its way. `shut`: what is shut now, and for how long.
fn judged(mut failure: Failure, errand: Errand<'_>, way: Way<'_>, shut: Option<(&str, Duration)>) -> Came {
    let is_ways_own = !failure.class.spends_attempt();
    // A job that failed by itself may go another way meanwhile.
    if is_ways_own || !way.has_others {
        failure.retry_after = failure.retry_after.max(shut.map(|(_, wait)| wait));
    }
    match failure.class {
        FailureClass::Fatal => Came::Refused { failure, called: true },
        FailureClass::Capacity | FailureClass::Account => match after(&failure, errand, shut.map(|(key, _)| key)) {
            Verdict::Release { after, hold } => Came::Shut { after, hold, failure: Some(failure) },
            verdict @ (Verdict::End(_) | Verdict::Retry { .. }) => Came::settle(verdict),
        },
        FailureClass::Throttled
        | FailureClass::Transient
        | FailureClass::TimedOut
        | FailureClass::UnknownBilled
        | FailureClass::Content
        | FailureClass::Crashed => Came::settle(after(&failure, errand, shut.map(|(key, _)| key))),
    }
}

/// The verdict on a failure. `held_by` is what is shut now.
fn after(failure: &Failure, errand: Errand<'_>, held_by: Option<&str>) -> Verdict {
    let Errand { job, case, .. } = errand;
    let past = Past::new(case.head.attempts, &case.head.history, failure);
    match judge(&Outcome::Failure(failure.clone()), past, &job.policy, rand::random()) {
        Decision::Retry { after } => case.retry(after, failure),
        // A shut key lets jobs through one at a time or at its time: they need no spreading of their own.
        Decision::Release { after } if held_by.is_some() => release(failure.retry_after.unwrap_or(after), held_by),
        Decision::Release { after } => release(after, None),
        Decision::Dead | Decision::Done => case.failed(failure),
    }
}

/// A call that may have been paid for, with what it has probably consumed and cost.
fn cut_call(detail: &str, bill: Bill<'_>) -> Failure {
    let failure = Failure::new(FailureClass::UnknownBilled, "call_cut", detail);
    bill.failure(Failure { usage: bill.runner.estimate(bill.job), ..failure })
}

/// The code of a runner that broke.
const PANIC: &str = "panic";

fn panicked() -> Outcome {
    Outcome::Failure(Failure::new(FailureClass::Crashed, PANIC, "the runner broke; see the worker's log"))
}

fn overran(job: &Job, runner: &dyn Runner) -> Outcome {
    let class = if runner.billed() { FailureClass::UnknownBilled } else { FailureClass::TimedOut };
    let detail = format!("ran longer than {}", promptq_common::time::format_duration(runner.longest(job)));
    Outcome::Failure(Failure { usage: runner.estimate(job), ..Failure::new(class, "timed_out", &detail) })
}
