//! The ways of a job within one lease, the preferred one first: which failure sends it to the next one, what is kept of the
//! calls before, and what becomes of it when no way is left. What one call comes to is `call.rs`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use promptq_common::broker::{Head, HoldKey, Verdict};
use promptq_common::job::JobId;
use promptq_common::limits::Expected;
use promptq_common::outcome::{Failure, Usage, Usd};
use promptq_common::record::End;
use promptq_common::time::Timestamp;
use tokio::time::Instant;

use crate::call::{Came, Turn, Way, call};
use crate::execute::{Errand, Step, rhythm};
use crate::heartbeat::{self, Fate};
use crate::runner::Runner;
use crate::tier;
use crate::verdict::{Case, cut, release};

/// Failures that say nothing of what another provider or model would do with the job.
const NOT_HERE: [&str; 6] = [
    "context_length_exceeded",
    "request_too_large",
    "http_413",
    Failure::MISSING_MODEL,
    // The tier has none of it.
    "no_quota",
    "larger_than_limit",
];
/// Jobs remembered that some way will never serve, and for how long: models get larger, and limits too.
const REMEMBERED: (usize, Duration) = (1_000, Duration::from_secs(600));

/// Takes a job along its ways until one serves it, or one decides what becomes of it.
pub(crate) async fn go(errand: Errand<'_>, runners: &[Arc<dyn Runner>], expected: Option<Expected>) -> Step {
    let keys: Vec<_> = runners.iter().map(|runner| runner.limit_key(errand.job)).collect();
    let has_others = runners.len() > 1;
    if has_others {
        errand.desk.limits.route(&errand.case.head.lane, &keys);
    }
    let mut trip = Trip::new(errand, has_others);
    let mut turn = Turn { expected, begun: false };
    for (runner, key) in runners.iter().zip(&keys) {
        if let Some(failure) = trip.is_known_to_refuse(key) {
            trip.refusals.push(Refusal { key: key.clone(), failure, called: true });
            continue;
        }
        if let Some(step) = trip.goes_on().await {
            return step;
        }
        let way = Way { runner: &**runner, key, has_others };
        let came = match trip.calls_by(way, &mut turn).await {
            Ok(came) => came,
            Err(step) => return step,
        };
        match came {
            Came::Step(step) => return trip.decided(step),
            Came::Shut { after, hold, failure } => trip.is_shut(key, (after, hold), failure.as_ref()),
            Came::Refused { failure, called } => {
                let is_over = !trip.is_this_ways_own(&failure);
                trip.is_refused(key, failure, called);
                if is_over {
                    return trip.given_up();
                }
            }
        }
    }
    trip.ends()
}

/// One way's word that the job will never work there.
#[derive(Debug)]
struct Refusal {
    key: String,
    failure: Failure,
    called: bool,
}

/// What a job has behind it in this lease.
struct Trip<'a> {
    errand: Errand<'a>,
    has_others: bool,
    /// The job's head with the calls before in its history, once there were some.
    head: Option<Box<Head>>,
    calls: u32,
    /// What they consumed and cost.
    spent: (Usage, Option<Usd>),
    /// When the next call began, or will.
    started_at: Timestamp,
    /// When the lease was kept last.
    kept: Instant,
    refusals: Vec<Refusal>,
    /// The first of the shut ways to open, and what the job waits for until then.
    opens: Option<(Duration, Option<HoldKey>)>,
}

impl<'a> Trip<'a> {
    fn new(errand: Errand<'a>, has_others: bool) -> Self {
        Self {
            errand,
            has_others,
            head: None,
            calls: 0,
            spent: (Usage::default(), None),
            started_at: errand.case.started_at,
            kept: Instant::now(),
            refusals: Vec::new(),
            opens: None,
        }
    }

    /// The errand as it is by now.
    fn errand(&self) -> Errand<'_> {
        let head = self.head.as_deref().unwrap_or(self.errand.case.head);
        Errand { case: Case { head, started_at: self.started_at, ..self.errand.case }, ..self.errand }
    }

    /// Calls by one way; in the standard tier where the flex tier has no room, and no time is left to wait for it.
    async fn calls_by(&mut self, way: Way<'_>, turn: &mut Turn) -> Result<Came, Step> {
        let Errand { job, desk, .. } = self.errand;
        let moved = match desk.full.turn(job, way.key) {
            tier::Turn::Moved(moved) => moved,
            tier::Turn::Wait(after) => {
                return Ok(Came::Shut { after, hold: Some(HoldKey::of_flex(way.key)), failure: None });
            }
            tier::Turn::As => {
                let begun = Instant::now();
                let came = Box::pin(call(self.errand(), way, turn)).await;
                let Came::Shut { after, hold, failure: Some(failure) } = came else {
                    if is_answer(&came) {
                        desk.full.served(job, way.key, begun);
                    }
                    return Ok(came);
                };
                match desk.full.refused(job, way.key, (&failure, after)) {
                    tier::Turn::As => return Ok(Came::Shut { after, hold, failure: Some(failure) }),
                    tier::Turn::Wait(after) => {
                        let hold = hold.or_else(|| Some(HoldKey::of_flex(way.key)));
                        return Ok(Came::Shut { after, hold, failure: Some(failure) });
                    }
                    tier::Turn::Moved(moved) => {
                        self.note(way.key, &failure);
                        moved
                    }
                }
            }
        };
        if let Some(step) = self.goes_on().await {
            return Err(step);
        }
        let errand = self.errand();
        let case = Case { moved: true, ..errand.case };
        Ok(Box::pin(call(Errand { job: &moved, case, ..errand }, way, turn)).await)
    }

    fn is_known_to_refuse(&self, key: &str) -> Option<Failure> {
        if self.has_others { self.errand.desk.nevers.of(self.errand.case.head, key) } else { None }
    }

    /// Whether another call may begin: a lease that was not kept for a while is, before. Calls that are each shorter than
    /// an interval of heartbeats would together outlive it.
    async fn goes_on(&mut self) -> Option<Step> {
        if self.calls == 0 {
            return None;
        }
        let Errand { lease, desk, .. } = self.errand;
        if *desk.cut.borrow() {
            return Some(self.decided(Step::Cut(release(Duration::ZERO, None))));
        }
        let rhythm = rhythm(desk);
        if self.kept.elapsed() < rhythm.every / 4 {
            return None;
        }
        let asked = Instant::now();
        match heartbeat::once(lease, rhythm, self.kept).await {
            Ok(is_kept) => {
                self.kept = if is_kept { asked } else { self.kept };
                None
            }
            Err(Fate::Cancelled) => Some(Step::Settle(self.errand().case.cancelled(None))),
            Err(Fate::Ended | Fate::Lost) => Some(Step::Drop),
        }
    }

    /// Whether a fatal failure says nothing of the other ways: it is one of a known kind, nothing was sent, or a way that is
    /// preferred may yet take what this one does not.
    fn is_this_ways_own(&self, failure: &Failure) -> bool {
        let may_wait = self.opens.is_some() && failure.usage == Usage::default();
        self.has_others && (may_wait || failure.status_code.is_none() || NOT_HERE.contains(&failure.code.as_str()))
    }

    /// Keeps account of a call that was of no use.
    fn note(&mut self, key: &str, failure: &Failure) {
        let mut attempt = self.errand().case.attempt(Some(failure));
        if self.has_others {
            attempt.detail = Some(cut(format!("{key}: {}", failure.detail)));
        }
        self.spent.0 += attempt.usage;
        if let Some(cost) = attempt.cost {
            *self.spent.1.get_or_insert_default() += cost;
        }
        let head = self.head.get_or_insert_with(|| Box::new(self.errand.case.head.clone()));
        head.history.push(attempt);
        self.calls += 1;
        self.started_at = Timestamp::now();
    }

    fn is_shut(&mut self, key: &str, (after, hold): (Duration, Option<HoldKey>), failure: Option<&Failure>) {
        if let Some(failure) = failure.filter(|_| self.has_others) {
            self.note(key, failure);
        }
        if self.opens.as_ref().is_none_or(|(first, _)| after < *first) {
            self.opens = Some((after, hold));
        }
    }

    fn is_refused(&mut self, key: &str, failure: Failure, called: bool) {
        if called {
            self.note(key, &failure);
        }
        self.refusals.push(Refusal { key: key.to_owned(), failure, called });
    }

    /// No way is left now.
    fn ends(&mut self) -> Step {
        match self.opens.take() {
            Some((after, hold)) => self.decided(Step::Settle(Verdict::Release { after, hold })),
            None => self.given_up(),
        }
    }

    /// One way has decided what becomes of the job. What is tried again keeps what the calls before have taken, and which
    /// ways it need not try.
    fn decided(&mut self, mut step: Step) -> Step {
        let nevers = &self.errand.desk.nevers;
        match &mut step {
            Step::Settle(verdict) | Step::Cut(verdict) => {
                if let Verdict::Retry { attempt, .. } = verdict {
                    attempt.usage += self.spent.0;
                    if let Some(cost) = self.spent.1 {
                        *attempt.cost.get_or_insert_default() += cost;
                    }
                }
                if let Verdict::Retry { .. } | Verdict::Release { .. } = verdict {
                    nevers.keep(self.errand.case.head, &mut self.refusals);
                }
            }
            Step::Go { .. } | Step::Share(..) | Step::Drop => {}
        }
        step
    }

    /// Dead, for the last reason; with those of all ways.
    fn given_up(&self) -> Step {
        let Some(Refusal { failure, .. }) = self.refusals.last() else { return Step::Drop };
        let is_same = self.refusals.iter().all(|refusal| refusal.failure.detail == failure.detail);
        let detail = if is_same {
            failure.detail.clone()
        } else {
            let all = self.refusals.iter().map(|refusal| format!("{}: {}", refusal.key, refusal.failure.detail));
            cut(all.collect::<Vec<_>>().join("; "))
        };
        let failure = Failure { detail, ..failure.clone() };
        let case = self.errand().case;
        Step::Settle(match self.calls {
            0 => case.dead(failure.class, &failure.code, &failure.detail),
            _ => case.tried(&failure),
        })
    }
}

/// Whether a call was answered.
fn is_answer(came: &Came) -> bool {
    match came {
        Came::Step(Step::Share(..)) => true,
        Came::Step(Step::Settle(Verdict::End(record))) => record.end == End::Succeeded,
        Came::Step(_) | Came::Shut { .. } | Came::Refused { .. } => false,
    }
}

/// Which ways have said lately that they will never serve a job which waits for another one: they are not asked each time.
#[derive(Debug, Default)]
pub(crate) struct Nevers(Mutex<HashMap<(JobId, u32), Never>>);

#[derive(Debug)]
struct Never {
    at: Instant,
    ways: Vec<(String, Failure)>,
}

impl Nevers {
    fn of(&self, head: &Head, key: &str) -> Option<Failure> {
        let known = self.known();
        let never = known.get(&(head.id, head.epoch)).filter(|never| never.at.elapsed() < REMEMBERED.1)?;
        never.ways.iter().find(|(way, _)| way == key).map(|(_, failure)| failure.clone())
    }

    /// Remembers what calls were refused for; what was known without one is found out as easily.
    fn keep(&self, head: &Head, refusals: &mut Vec<Refusal>) {
        refusals.retain(|refusal| refusal.called);
        if refusals.is_empty() {
            return;
        }
        let mut known = self.known();
        if known.len() >= REMEMBERED.0 {
            known.retain(|_, never| never.at.elapsed() < REMEMBERED.1);
        }
        if known.len() >= REMEMBERED.0 {
            known.clear();
        }
        let at = known.get(&(head.id, head.epoch)).map(|never| never.at).filter(|at| at.elapsed() < REMEMBERED.1);
        let at = at.unwrap_or_else(Instant::now);
        let ways = refusals.drain(..).map(|refusal| (refusal.key, refusal.failure)).collect();
        known.insert((head.id, head.epoch), Never { at, ways });
    }

    fn known(&self) -> MutexGuard<'_, HashMap<(JobId, u32), Never>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
