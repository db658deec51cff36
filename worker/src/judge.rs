//! What an outcome means for its job: pure, one answer per outcome, past, policy and roll of the dice.
//! What holds a whole limit key back is `common/src/limits`.

use std::time::Duration;

use promptq_common::job::{Backoff, Policy};
use promptq_common::outcome::{Failure, FailureClass, History, Outcome};

/// What is to become of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It has its answer.
    Done,
    /// Another attempt, not before this wait; this one is spent.
    Retry {
        /// The least wait.
        after: Duration,
    },
    /// Not its doing: again after this wait, spending nothing.
    Release {
        /// The least wait.
        after: Duration,
    },
    /// Given up.
    Dead,
}

/// What a job has behind it in this epoch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Past {
    /// Attempts spent before this one; those whose answers were put aside have a budget of their own (`repair.rs`).
    pub attempts: u32,
    /// Those of them that may have been billed without an answer.
    pub unknown_billed: u32,
    /// Those of the last ten that failed as this one did, by its code.
    pub alike: u32,
}

impl Past {
    /// What the head of a delivery says of it, before an attempt that ended in `failure`.
    pub fn new(attempts: u32, history: &History, failure: &Failure) -> Self {
        // Of several ways, one that was shut is no attempt.
        let spent = history.recent.iter().filter(|attempt| attempt.class.is_some_and(FailureClass::spends_attempt));
        let alike = spent.filter(|attempt| attempt.code.as_ref() == Some(&failure.code)).count();
        let attempts = attempts.saturating_sub(history.put_aside());
        Self { attempts, unknown_billed: history.unknown_billed, alike: u32::try_from(alike).unwrap_or(u32::MAX) }
    }
}

/// Attempts that may have been billed without an answer are repeated this often: each may cost the price again.
const UNKNOWN_BILLED_RETRIES: u32 = 1;

/// Decides. `dice` is 0 to 1 and spreads the waits; the other side's own wait is a minimum, never cut short.
pub fn judge(outcome: &Outcome, past: Past, policy: &Policy, dice: f64) -> Decision {
    let failure = match outcome {
        Outcome::Success(_) => return Decision::Done,
        Outcome::Failure(failure) => failure,
    };
    match failure.class {
        FailureClass::Throttled | FailureClass::Capacity => release(failure, Duration::from_secs(1), dice),
        FailureClass::Account => release(failure, Duration::from_secs(600), dice),
        FailureClass::Fatal | FailureClass::Content => Decision::Dead,
        FailureClass::UnknownBilled if past.unknown_billed >= UNKNOWN_BILLED_RETRIES => Decision::Dead,
        FailureClass::Transient | FailureClass::TimedOut | FailureClass::UnknownBilled | FailureClass::Crashed => {
            let spent = past.attempts.saturating_add(1);
            let hopeless = failure.tries.is_some_and(|tries| past.alike.saturating_add(1) >= u32::from(tries));
            if spent >= policy.attempts || hopeless {
                return Decision::Dead;
            }
            Decision::Retry { after: asked(failure).max(backoff(&policy.backoff, spent, dice)) }
        }
    }
}

/// Up to twice `least`, so that jobs released together do not come back together.
fn release(failure: &Failure, least: Duration, dice: f64) -> Decision {
    Decision::Release { after: asked(failure).max(least.mul_f64(1.0 + dice.clamp(0.0, 1.0))) }
}

fn asked(failure: &Failure) -> Duration {
    failure.retry_after.unwrap_or_default()
}

/// The wait after `spent` failed attempts: between half of it and all of it, by the dice.
fn backoff(backoff: &Backoff, spent: u32, dice: f64) -> Duration {
    let growth = backoff.factor.max(1.0).powi(i32::try_from(spent.saturating_sub(1)).unwrap_or(i32::MAX));
    // Compared as numbers: the product may be too large for a Duration.
    let seconds = (backoff.first.as_secs_f64() * growth).min(backoff.max.as_secs_f64());
    Duration::try_from_secs_f64(seconds * (0.5 + dice.clamp(0.0, 1.0) / 2.0)).unwrap_or(backoff.max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use promptq_common::outcome::{Attempt, Reply, Usage};
    use promptq_common::time::Timestamp;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn decide(class: FailureClass, attempts: u32, unknown_billed: u32) -> Decision {
        let outcome = Outcome::Failure(Failure::new(class, "code", ""));
        judge(&outcome, Past { attempts, unknown_billed, alike: 0 }, &Policy::standard(), 1.0)
    }

    #[test]
    fn every_class_has_its_answer() {
        use Decision::{Dead, Release, Retry};
        use FailureClass as F;
        let cases = [
            (F::Throttled, 0, Release { after: seconds(2) }),
            (F::Throttled, 99, Release { after: seconds(2) }),
            (F::Capacity, 99, Release { after: seconds(2) }),
            (F::Account, 99, Release { after: seconds(1_200) }),
            (F::Transient, 0, Retry { after: seconds(1) }),
            (F::Transient, 1, Retry { after: seconds(2) }),
            (F::Transient, 3, Retry { after: seconds(8) }),
            (F::Transient, 4, Dead),
            (F::TimedOut, 0, Retry { after: seconds(1) }),
            (F::TimedOut, 4, Dead),
            (F::UnknownBilled, 0, Retry { after: seconds(1) }),
            (F::Crashed, 0, Retry { after: seconds(1) }),
            (F::Crashed, 4, Dead),
            (F::Fatal, 0, Dead),
            (F::Content, 0, Dead),
        ];
        for (class, attempts, decision) in cases {
            assert_eq!(decide(class, attempts, 0), decision, "{class} after {attempts}");
            let spends = !matches!(decision, Release { .. });
            assert_eq!(class.spends_attempt(), spends, "{class}");
        }
        assert!(FailureClass::ALL.iter().all(|class| cases.iter().any(|case| case.0 == *class)));
        let answer = Outcome::Success(Reply::default());
        assert_eq!(
            judge(&answer, Past { attempts: 99, unknown_billed: 9, alike: 9 }, &Policy::standard(), 0.5),
            Decision::Done
        );
    }

    #[test]
    fn what_may_have_been_billed_is_repeated_once() {
        assert_eq!(decide(FailureClass::UnknownBilled, 1, 1), Decision::Dead);
        assert_eq!(decide(FailureClass::Transient, 1, 1), Decision::Retry { after: seconds(2) });
    }

    fn attempt(class: Option<FailureClass>, code: &str) -> Attempt {
        let at = Timestamp::from_millis(0);
        Attempt {
            n: 1,
            worker: "w".to_owned(),
            started_at: at,
            ended_at: at,
            class,
            code: Some(code.to_owned()),
            detail: None,
            status_code: None,
            usage: Usage::default(),
            cost: None,
        }
    }

    #[test]
    fn a_fault_that_may_be_the_requests_own_is_met_so_often_and_no_other_counts() {
        let failure = Failure { tries: Some(2), ..Failure::new(FailureClass::Transient, "http_500", "") };
        let after = |codes: &[&str]| {
            let mut history = History::default();
            for code in codes {
                history.push(attempt(Some(FailureClass::Transient), code));
            }
            let past = Past::new(u32::try_from(codes.len()).unwrap(), &history, &failure);
            judge(&Outcome::Failure(failure.clone()), past, &Policy::standard(), 1.0)
        };
        assert_eq!(after(&[]), Decision::Retry { after: seconds(1) });
        assert_eq!(after(&["http_502", "connection_lost"]), Decision::Retry { after: seconds(4) });
        assert_eq!(after(&["http_502", "http_500"]), Decision::Dead);
    }

    #[test]
    fn answers_that_were_put_aside_are_no_failed_attempts() {
        let mut history = History::default();
        for _ in 0..4 {
            history.push(attempt(None, "truncated"));
        }
        let failure = Failure::new(FailureClass::Transient, "http_500", "");
        let decide = |attempts| {
            let past = Past::new(attempts, &history, &failure);
            judge(&Outcome::Failure(failure.clone()), past, &Policy::standard(), 1.0)
        };
        assert_eq!(decide(4), Decision::Retry { after: seconds(1) }, "the first that failed");
        assert_eq!((decide(7), decide(8)), (Decision::Retry { after: seconds(8) }, Decision::Dead));
    }

    #[test]
    fn the_other_sides_wait_is_a_minimum() {
        let after = |class, asked| {
            let mut failure = Failure::new(class, "code", "");
            failure.retry_after = Some(asked);
            judge(&Outcome::Failure(failure), Past::default(), &Policy::standard(), 1.0)
        };
        assert_eq!(after(FailureClass::Transient, seconds(90)), Decision::Retry { after: seconds(90) });
        assert_eq!(after(FailureClass::Transient, seconds(0)), Decision::Retry { after: seconds(1) });
        assert_eq!(after(FailureClass::Throttled, seconds(3_600)), Decision::Release { after: seconds(3_600) });
    }

    #[test]
    fn waits_are_spread_and_end_at_the_ceiling() {
        let standard = Backoff::standard();
        assert_eq!((backoff(&standard, 1, 0.0), backoff(&standard, 1, 1.0)), (seconds(1) / 2, seconds(1)));
        assert_eq!(backoff(&standard, u32::MAX, 1.0), seconds(300));
        let odd = Backoff { factor: f64::NAN, ..standard };
        assert_eq!(backoff(&odd, 7, 1.0), seconds(1));
    }
}
