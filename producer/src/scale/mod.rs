//! How many workers a queue's jobs want, and how many the limits leave work for: pure arithmetic, for autoscalers. And how
//! fast a queue goes, by what its workers report. What is known of a queue is gathered in `stats/mod.rs`.

#[cfg(test)]
mod simulation;

use std::collections::BTreeMap;
use std::time::Duration;

use promptq_common::job::Queue;
use promptq_common::ledger::{Pace, WorkerReport};
use promptq_common::limits::{CapView, Measure, Per, account_of};

/// What the number of workers follows from.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    /// Jobs that could be leased.
    pub ready: u64,
    /// Of those, behind a limit, an outage or a spent budget.
    pub held: u64,
    /// Of those, waiting for money alone, which no worker brings.
    pub broke: u64,
    /// Whether nothing is leased at all.
    pub paused: bool,
    /// Leased.
    pub running: u64,
    /// Jobs that one worker runs at once.
    pub concurrency: u32,
    /// The most jobs that may run at once by the providers' limits; `None`: no limit says.
    pub most_at_once: Option<f64>,
}

/// How many workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workers {
    /// The most that limits leave work for; `None`: no limit says.
    pub useful: Option<u64>,
    /// As many as unfinished jobs want, each in a slot of its own, no more than are useful. What runs counts: a worker that
    /// is busy is never taken away for being counted as idle.
    pub desired: u64,
}

/// The workers that a load wants.
pub fn workers(load: &Load) -> Workers {
    let slots = u64::from(load.concurrency.max(1));
    let useful = load.most_at_once.map(|jobs| whole((jobs / whole_f64(slots)).ceil()).max(1));
    let ready = if load.paused { 0 } else { load.ready };
    let free = ready.saturating_sub(load.held);
    let wanted = (free + load.running).div_ceil(slots).min(useful.unwrap_or(u64::MAX));
    // One that finds out when what is held opens again, as of money is told without; and whoever runs something stays.
    let least = u64::from(ready > load.broke).max(load.running.div_ceil(slots));
    Workers { useful, desired: wanted.max(least) }
}

/// How fast a queue goes, all its workers together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Speed {
    /// Jobs that end in a second.
    pub ended: f64,
    /// What a call is like; `None` where there was none of late.
    pub call: Option<Call>,
    /// The longest that a job had waited for its start, of late.
    pub waited: Duration,
}

/// A call in the mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Call {
    /// How long it takes, in seconds.
    pub seconds: f64,
    /// Tokens sent.
    pub input_tokens: f64,
    /// Tokens received.
    pub output_tokens: f64,
}

/// What workers report of a queue.
pub fn paces<'a>(workers: &'a [WorkerReport], queue: &'a Queue) -> impl Iterator<Item = &'a Pace> {
    workers.iter().flat_map(|worker| &worker.paces).filter(move |pace| pace.queue == *queue)
}

/// How fast a queue goes by that.
pub fn speed<'a>(paces: impl Iterator<Item = &'a Pace>) -> Speed {
    let (mut speed, mut calls) = (Speed::default(), 0);
    let (mut call_ms, mut input_tokens, mut output_tokens) = (0, 0, 0);
    for pace in paces {
        if pace.over_ms > 0 {
            speed.ended += whole_f64(pace.ended) * 1_000.0 / whole_f64(pace.over_ms);
        }
        speed.waited = speed.waited.max(Duration::from_millis(pace.waited_ms));
        calls += pace.calls;
        call_ms += pace.call_ms;
        input_tokens += pace.input_tokens;
        output_tokens += pace.output_tokens;
    }
    let mean = |sum: u64| whole_f64(sum) / whole_f64(calls);
    speed.call = (calls > 0).then(|| Call {
        seconds: mean(call_ms) / 1_000.0,
        input_tokens: mean(input_tokens),
        output_tokens: mean(output_tokens),
    });
    speed
}

/// The most calls like this one that may be under way at once by the caps of one limit key, of which `share` is used. What
/// a minute allows is spread over it; what is counted by the day or for ever, and money, says nothing of a moment.
pub fn most_at_once<'a>(caps: impl Iterator<Item = &'a CapView>, share: f64, call: Option<Call>) -> Option<f64> {
    let of = |view: &CapView| {
        #[expect(clippy::cast_precision_loss, reason = "a limit for an estimate")]
        let most = view.cap.most as f64 * share;
        let spread = |each: f64| call.filter(|_| each > 0.0).map(|call| most / 60.0 / each * call.seconds);
        match (view.cap.measure, view.cap.per) {
            (Measure::Concurrent, _) => Some(most),
            (Measure::Requests, Per::Minute) => spread(1.0),
            (Measure::InputTokens, Per::Minute) => spread(call?.input_tokens),
            (Measure::OutputTokens, Per::Minute) => spread(call?.output_tokens),
            (Measure::Tokens, Per::Minute) => spread(call?.input_tokens + call?.output_tokens),
            (_, Per::Moment | Per::Minute | Per::Day | Per::Ever) => None,
        }
    };
    caps.filter_map(of).min_by(f64::total_cmp)
}

/// The most calls that may be under way at once by the limits of these keys of provider and model, each with what its
/// model's rule leaves and its account's. `None` where one has no limit that says.
pub fn together<'a>(keys: impl IntoIterator<Item = (&'a str, [Option<(&'a str, f64)>; 2])>) -> Option<f64> {
    // Of each account its own, and its models', once for each rule.
    let mut accounts = BTreeMap::<_, (Option<f64>, BTreeMap<_, Option<f64>>)>::new();
    for (key, [model, account]) in keys {
        let (own, models) = accounts.entry(account_of(key)).or_default();
        *own = account.map(|(_, most)| most);
        let (rule, most) = model.map_or((key, None), |(rule, most)| (rule, Some(most)));
        models.insert(rule, most);
    }
    if accounts.is_empty() {
        return None;
    }
    let of = |(own, models): (Option<f64>, BTreeMap<_, Option<f64>>)| {
        let models: Option<f64> = models.into_values().sum();
        own.into_iter().chain(models).min_by(f64::total_cmp)
    };
    accounts.into_values().map(of).sum()
}

#[expect(clippy::cast_precision_loss, reason = "counts for an estimate")]
pub(crate) fn whole_f64(count: u64) -> f64 {
    count as f64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, which will do")]
fn whole(number: f64) -> u64 {
    number as u64
}

#[cfg(test)]
mod tests {
    use promptq_common::limits::Cap;

    use super::*;

    fn load() -> Load {
        Load { concurrency: 4, ..Load::default() }
    }

    fn desired(load: Load) -> u64 {
        workers(&load).desired
    }

    #[test]
    fn unfinished_jobs_want_a_slot_each() {
        assert_eq!(desired(load()), 0);
        assert_eq!(desired(Load { ready: 1, ..load() }), 1);
        assert_eq!(desired(Load { ready: 9, ..load() }), 3);
        assert_eq!(desired(Load { ready: 4, running: 8, ..load() }), 3, "what runs is unfinished");
        assert_eq!(desired(Load { running: 8, ..load() }), 2, "nobody who runs something goes");
        assert_eq!(desired(Load { ready: 5, concurrency: 0, ..load() }), 5);
    }

    #[test]
    fn what_cannot_run_wants_no_worker_but_one_that_finds_out() {
        assert_eq!(desired(Load { ready: 100, held: 92, ..load() }), 2);
        assert_eq!(desired(Load { ready: 100, held: 100, ..load() }), 1);
        assert_eq!(desired(Load { ready: 100, held: 100, broke: 99, ..load() }), 1);
        assert_eq!(desired(Load { ready: 100, held: 100, broke: 100, ..load() }), 0, "only money helps");
        assert_eq!(desired(Load { ready: 100, paused: true, ..load() }), 0);
        assert_eq!(desired(Load { ready: 100, paused: true, running: 5, ..load() }), 2);
    }

    #[test]
    fn no_more_workers_than_the_limits_leave_work_for() {
        let bound = |most| workers(&Load { ready: 1_000, most_at_once: Some(most), ..load() });
        assert_eq!(bound(10.0), Workers { useful: Some(3), desired: 3 });
        assert_eq!(bound(0.5), Workers { useful: Some(1), desired: 1 });
        assert_eq!(desired(Load { running: 20, most_at_once: Some(4.0), ..load() }), 5, "a limit that came later");
        assert_eq!(workers(&Load { ready: 1, ..load() }).useful, None);
    }

    #[test]
    fn the_tightest_cap_bounds_what_may_be_under_way() {
        let cap = |measure, per, most| CapView {
            cap: Cap { measure, per, most },
            configured: most,
            set: None,
            learned: None,
            used: 0,
            held: 0,
            in_calls: 0,
        };
        let call = Some(Call { seconds: 6.0, input_tokens: 900.0, output_tokens: 100.0 });
        let requests = cap(Measure::Requests, Per::Minute, 600);
        let tokens = cap(Measure::Tokens, Per::Minute, 300_000);
        let most = |caps: &[CapView], share, call| most_at_once(caps.iter(), share, call);
        assert_eq!(most(&[requests], 1.0, call), Some(60.0), "ten a second, each of 6 s");
        assert_eq!(most(&[requests, tokens], 1.0, call), Some(30.0), "300 calls a minute");
        assert_eq!(most(&[requests], 0.5, call), Some(30.0), "after refusals");
        assert_eq!(most(&[cap(Measure::Concurrent, Per::Moment, 8), requests], 1.0, None), Some(8.0));
        assert_eq!(most(&[cap(Measure::Requests, Per::Day, 5), cap(Measure::Usd, Per::Day, 5)], 1.0, call), None);
        assert_eq!(most(&[requests], 1.0, None), None, "nobody knows how long a call takes");
    }

    #[test]
    fn an_accounts_limit_is_that_of_all_its_models_together() {
        let key = |key, model, account| (key, [model, account]);
        assert_eq!(together([]), None);
        assert_eq!(together([key("a/m", None, None)]), None);
        assert_eq!(together([key("a/m", Some(("a/m", 3.0)), None)]), Some(3.0));
        let both = [key("a/m", Some(("a/m", 3.0)), Some(("a", 4.0))), key("a/n", Some(("a/n", 2.0)), Some(("a", 4.0)))];
        assert_eq!(together(both), Some(4.0));
        assert_eq!(together([both[0], key("b/m", Some(("b", 5.0)), None)]), Some(8.0));
        assert_eq!(together([both[0], key("a/free", None, Some(("a", 9.0)))]), Some(9.0), "one of them has no own");
        assert_eq!(together([both[0], key("b/free", None, None)]), None);
        let one_rule = [key("a/m", Some(("a/m", 3.0)), None), key("a/m-2", Some(("a/m", 3.0)), None)];
        assert_eq!(together(one_rule), Some(3.0), "which both share");
    }

    #[test]
    fn a_queue_is_as_fast_as_all_its_workers_together() {
        let pace = |ended, calls, call_ms, waited_ms| Pace {
            queue: Queue::standard(),
            over_ms: 10_000,
            ended,
            calls,
            call_ms,
            input_tokens: calls * 9,
            output_tokens: calls,
            waited_ms,
            keys: Vec::new(),
        };
        let speed = speed([pace(10, 10, 5_000, 70), pace(20, 30, 35_000, 3_000), pace(0, 0, 0, 0)].iter());
        assert_eq!((speed.ended, speed.waited), (3.0, Duration::from_secs(3)));
        assert_eq!(speed.call, Some(Call { seconds: 1.0, input_tokens: 9.0, output_tokens: 1.0 }));
        assert_eq!(super::speed(std::iter::empty()), Speed::default());
    }
}
