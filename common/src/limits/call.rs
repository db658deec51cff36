//! A call under limits: what it will need, its reservation, and what it came to.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::estimate::Asks;
use super::purse::Came;
use super::quota::Denied;
use super::reserve::Reservations;
use super::rules::Rules;
use super::{Limits, Pass, budget};
use crate::job::{Lane, Queue};
use crate::outcome::{Failure, FailureClass, Outcome, Usage, Usd};

/// How a provider counts a call against its limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// The most tokens that the call says it may be answered with, as soon as it is sent, and nothing of them comes back.
    /// Else what it is answered with, as it comes; so too where the call does not say.
    pub output_upfront: bool,
    /// Nothing for tokens that were read from the provider's cache.
    pub cached_free: bool,
}

/// What is known of a call before it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Size {
    /// The bytes of its texts.
    pub bytes: usize,
    /// The most tokens it may be answered with, if it says so.
    pub max_tokens: Option<u64>,
}

/// A job that was leased and has not reserved anything yet: its lane has less room for others.
#[derive(Debug)]
#[must_use = "once it is dropped, the job counts no longer"]
pub struct Expected {
    limits: Limits,
    /// The rules it counts under, and the endpoint.
    rules: Rules,
    endpoint: Option<Arc<str>>,
}

impl Drop for Expected {
    fn drop(&mut self) {
        if !self.rules.is_empty() {
            self.limits.quotas().unexpect(&self.rules);
        }
        if let Some(endpoint) = &self.endpoint {
            self.limits.table().unexpect(endpoint);
        }
    }
}

/// What a call holds of its limits. Dropped unsettled, it counts as consumed: nobody knows.
#[derive(Debug)]
pub(super) struct Reserved {
    limits: Limits,
    held: Option<Reservations>,
    queue: Queue,
    model: String,
    size: Size,
    counts: Counts,
    guess: (i64, i64),
    /// The most that it may cost, in billionths of a dollar.
    worst: i64,
}

impl Limits {
    /// Counts a leased job of this lane, if the lane has limits, or an endpoint that gets fewer calls at once.
    pub fn expect(&self, lane: &Lane) -> Option<Expected> {
        if !self.wants_lanes() {
            return None;
        }
        let (rules, endpoint) = self.expected_at(lane);
        let counts = !rules.is_empty() || endpoint.is_some();
        counts.then(|| Expected { limits: self.clone(), rules, endpoint })
    }

    /// Whether there is nothing to reserve for a call that may cost this: then it counts as sent.
    pub fn asks_nothing(&self, pass: &mut Pass, worst: Option<Usd>) -> bool {
        let nothing = worst.unwrap_or_default() == Usd::default() && self.quotas().rules_of(pass.key()).is_empty();
        pass.money.sent |= nothing;
        nothing
    }

    /// Waits, at most a minute, until what the call will need is reserved under all of its rules; at once where it has none.
    /// Dropping it gives up the places in line.
    ///
    /// # Errors
    /// Why the call may not be made, and the key of the rule that says so.
    pub async fn reserve(&self, mut pass: Pass, lane: &Lane, size: Size) -> Result<Pass, (Denied, String)> {
        let quotas = self.quotas();
        let rules = quotas.rules_for(pass.key());
        if rules.is_empty() {
            return Ok(pass);
        }
        let (queue, model) = (lane.queue.clone(), pass.key().to_owned());
        let (worst, counts) = (pass.money.worst, pass.counts);
        let need = quotas.book().estimates.need(&asks(&queue, &model, &size, counts)).costing(worst);
        let reserved = quotas.reserve(&rules, lane, &need).await;
        let held = Some(reserved.map_err(|(denied, key)| (denied, key.to_string()))?);
        let guess = (need.amounts.input, need.amounts.output);
        let limits = self.clone();
        pass.reserved = Some(Box::new(Reserved { limits, held, queue, model, size, counts, guess, worst }));
        // Only now it is sent.
        pass.ticket.called = pass.ticket.called.map(|_| Instant::now());
        Ok(pass)
    }
}

impl Pass {
    /// Gives back what was reserved of the limits for a call that is not made after all.
    pub(super) fn unsent(&mut self) {
        if let Some(held) = self.reserved.take().and_then(|mut reserved| reserved.held.take()) {
            self.limits.quotas().settle_all(held, Some(0), Came::Unsent);
        }
    }
}

fn asks<'a>(queue: &'a Queue, model: &'a str, size: &Size, counts: Counts) -> Asks<'a> {
    let output_upfront = counts.output_upfront && size.max_tokens.is_some();
    Asks { queue, model, bytes: size.bytes, max_tokens: size.max_tokens, output_upfront }
}

impl Reserved {
    /// The key of the rule that headers and refusals speak of, if one does.
    pub(super) fn hears(&self) -> Option<&Arc<str>> {
        self.held.as_ref()?.hears()
    }

    /// Books what the call came to. `wait`: how long its key is shut.
    pub(super) fn settle(mut self, outcome: &Outcome, wait: Option<Duration>) {
        let Some(held) = self.held.take() else { return };
        let quotas = self.limits.quotas();
        if let Outcome::Success(reply) = outcome
            && reply.usage != Usage::default()
        {
            let asks = asks(&self.queue, &self.model, &self.size, self.counts);
            let input = self.counts.input(&reply.usage);
            quotas.book().estimates.learn(&asks, input, reply.usage.output_tokens);
        }
        let cost = budget::cost(outcome, self.worst);
        quotas.settle_all(held, Some(cost), came(outcome, self.counts, self.guess, wait));
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            self.limits.quotas().settle_all(held, None, Came::Unknown);
        }
    }
}

impl Counts {
    /// The tokens sent that count.
    fn input(self, usage: &Usage) -> u64 {
        usage.input_tokens.saturating_sub(if self.cached_free { usage.cached_tokens } else { 0 })
    }
}

/// What an outcome means for what was reserved. A guess stands where nobody said what was consumed.
fn came(outcome: &Outcome, counts: Counts, guess: (i64, i64), wait: Option<Duration>) -> Came {
    let tokens = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let used = |usage: &Usage| Came::Used { input: tokens(counts.input(usage)), output: tokens(usage.output_tokens) };
    let failure = match outcome {
        Outcome::Success(reply) if reply.usage == Usage::default() => {
            return Came::Used { input: guess.0, output: guess.1 };
        }
        Outcome::Success(reply) => return used(&reply.usage),
        Outcome::Failure(failure) => failure,
    };
    let millis = |wait: Duration| i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
    match failure.class {
        FailureClass::Throttled => {
            let wait = failure.retry_after.max(wait).map_or(1_000, millis);
            if failure.code == Failure::TOO_FAST { Came::TooFast(wait) } else { Came::Refused(Some(wait)) }
        }
        FailureClass::Capacity if failure.status_code.is_none() => Came::Unsent,
        FailureClass::Capacity | FailureClass::Account => Came::Refused(None),
        FailureClass::Fatal | FailureClass::Content if failure.usage == Usage::default() => Came::Refused(None),
        FailureClass::Fatal | FailureClass::Content => used(&failure.usage),
        FailureClass::Transient | FailureClass::TimedOut | FailureClass::UnknownBilled | FailureClass::Crashed => {
            Came::Unknown
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Reply;

    #[test]
    fn what_was_not_consumed_is_given_back_and_what_nobody_knows_is_not() {
        let failure = |class, status_code, usage| {
            let failure = Failure::new(class, "code", "");
            came(&Outcome::Failure(Failure { status_code, usage, ..failure }), Counts::default(), (30, 7), None)
        };
        let usage = Usage { input_tokens: 20, output_tokens: 5, ..Usage::default() };
        let (used, none) = (Came::Used { input: 20, output: 5 }, Usage::default());
        let all = Counts::default();
        let answered = |usage| Outcome::Success(Reply { usage, ..Reply::default() });
        assert_eq!(came(&answered(usage), all, (30, 7), None), used);
        let cached = Usage { input_tokens: 900, cached_tokens: 880, ..usage };
        assert_eq!(came(&answered(cached), all, (30, 7), None), Came::Used { input: 900, output: 5 });
        assert_eq!(came(&answered(cached), Counts { cached_free: true, ..all }, (30, 7), None), used);
        let silent = came(&Outcome::Success(Reply::default()), all, (30, 7), None);
        assert_eq!(silent, Came::Used { input: 30, output: 7 });
        for (class, status, usage, means) in [
            (FailureClass::Throttled, Some(429), none, Came::Refused(Some(1_000))),
            (FailureClass::Capacity, None, none, Came::Unsent),
            (FailureClass::Capacity, Some(529), none, Came::Refused(None)),
            (FailureClass::Account, Some(401), none, Came::Refused(None)),
            (FailureClass::Fatal, Some(400), none, Came::Refused(None)),
            (FailureClass::Content, Some(200), usage, used),
            (FailureClass::Transient, Some(500), none, Came::Unknown),
            (FailureClass::UnknownBilled, None, usage, Came::Unknown),
        ] {
            assert_eq!(failure(class, status, usage), means, "{class} {status:?}");
        }
        let too_fast = Failure::new(FailureClass::Throttled, Failure::TOO_FAST, "");
        assert_eq!(came(&Outcome::Failure(too_fast), all, (30, 7), Some(Duration::from_secs(3))), Came::TooFast(3_000));
    }

    #[test]
    fn the_most_an_answer_may_have_counts_at_once_only_where_the_call_says_it() {
        let (queue, upfront) = (Queue::standard(), Counts { output_upfront: true, cached_free: false });
        let upfront_of = |max_tokens, counts| asks(&queue, "m", &Size { bytes: 9, max_tokens }, counts).output_upfront;
        assert!(upfront_of(Some(4_096), upfront));
        assert!(!upfront_of(None, upfront), "or each call would cost what the longest answer does");
        assert!(!upfront_of(Some(4_096), Counts::default()));
    }
}
