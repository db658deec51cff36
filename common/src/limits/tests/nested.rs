//! Tests of calls under two rules, their account's and their model's: neither is exceeded, nothing stays held, and what one
//! of them keeps back is in nobody's way at the other.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::{lane, reserve, with};
use crate::broker::memory::Memory;
use crate::job::JobId;
use crate::limits::{
    Cap, CapView, Denied, Expected, Heard, Limits, Measure, Per, Pool, PoolView, Rule, Size, change, look,
};
use crate::outcome::{CostSource, Failure, FailureClass, Origin, Outcome, Reply, Usage, Usd};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

fn rule(key: &str, caps: &[(Measure, i64)]) -> Rule {
    let per = |measure| match measure {
        Measure::Concurrent => Per::Moment,
        Measure::Usd => Per::Day,
        Measure::Requests | Measure::InputTokens | Measure::OutputTokens | Measure::Tokens => Per::Minute,
    };
    let caps = caps.iter().map(|(measure, most)| Cap { measure: *measure, per: per(*measure), most: *most });
    Rule { key: key.to_owned(), caps: caps.collect(), adaptive: false }
}

fn answered(input_tokens: u64, usd: i64) -> Outcome {
    let usage = Usage { input_tokens, output_tokens: 10, ..Usage::default() };
    let origin = Some(Box::new(Origin { cost_source: Some(CostSource::PriceTable), ..Origin::default() }));
    Outcome::Success(Reply { status_code: 200, usage, cost: Some(Usd::from_nanos(usd)), origin, ..Reply::default() })
}

fn throttled(seconds: u64) -> Outcome {
    let failure = Failure::new(FailureClass::Throttled, "rate_limit", "slow down");
    Outcome::Failure(Failure { retry_after: Some(Duration::from_secs(seconds)), status_code: Some(429), ..failure })
}

#[derive(Clone, Debug)]
struct Sent {
    at: Instant,
    ended: Option<Instant>,
    model: String,
    tokens: i64,
    usd: i64,
}

/// How a call ends.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Answered,
    Refused,
    /// Its worker gave it up.
    Cut,
}

/// A job to be called.
#[derive(Clone, Debug)]
struct Plan {
    model: &'static str,
    tokens: u64,
    takes: u64,
    /// It waits no longer than this for its reservation.
    patience: u64,
    fate: Fate,
}

/// The most that a call may cost.
const WORST: i64 = 1_000;
type Calls = Arc<Mutex<Vec<Sent>>>;

async fn call(limits: Limits, plan: Plan, expected: Option<Expected>, calls: Calls) -> bool {
    let (lane, key) = (lane(plan.model), format!("acme/{}", plan.model));
    let Ok(pass) = limits.admit(&lane, &key) else { return false };
    drop(expected);
    let size = Size { bytes: usize::try_from(plan.tokens * 36 / 10).unwrap(), max_tokens: Some(10) };
    let reserving = limits.reserve_all(pass, &lane, size, (Some(Usd::from_nanos(WORST)), &[]));
    let Ok(Ok(pass)) = timeout(Duration::from_millis(plan.patience), reserving).await else { return false };
    let all = i64::try_from(plan.tokens).unwrap();
    // A provider takes no tokens of what it refuses.
    let (tokens, usd) = match plan.fate {
        Fate::Answered => (all, WORST / 2),
        Fate::Refused => (0, 0),
        Fate::Cut => (all, WORST),
    };
    let sent = Sent { at: Instant::now(), ended: None, model: plan.model.to_owned(), tokens, usd };
    let place = {
        let mut calls = calls.lock().unwrap();
        calls.push(sent);
        calls.len() - 1
    };
    sleep(Duration::from_millis(plan.takes)).await;
    calls.lock().unwrap()[place].ended = Some(Instant::now());
    match plan.fate {
        Fate::Answered => drop(pass.report(JobId::fresh(), &answered(plan.tokens, usd))),
        Fate::Refused => drop(pass.report(JobId::fresh(), &throttled(1))),
        Fate::Cut => {
            let cut = Failure::new(FailureClass::UnknownBilled, "call_cut", "");
            pass.report(JobId::fresh(), &Outcome::Failure(cut));
        }
    }
    true
}

/// A worker with jobs of these models; it leaves a job that could not be called for later.
async fn work(limits: Limits, plans: Vec<Plan>, calls: Calls) {
    let (mut left, mut running) = (plans, JoinSet::new());
    let ends = Instant::now() + 3 * MINUTE;
    while (!left.is_empty() || !running.is_empty()) && Instant::now() < ends {
        let mut models: Vec<_> = left.iter().map(|plan| plan.model).collect();
        models.sort_unstable();
        models.dedup();
        for model in models {
            limits.seen(std::iter::once(&lane(model)), |lane| {
                Some(format!("acme/{}", lane.model.as_ref().unwrap().as_str()))
            });
            limits.rest(8_u32.saturating_sub(u32::try_from(running.len()).unwrap()));
            let room = limits.room(&lane(model)).min(8_u32.saturating_sub(u32::try_from(running.len()).unwrap()));
            for _ in 0..room {
                let Some(next) = left.iter().position(|plan| plan.model == model) else { break };
                let plan = left.swap_remove(next);
                let (limits, calls, again) = (limits.clone(), Arc::clone(&calls), plan.clone());
                let expected = limits.expect(&lane(model));
                running.spawn(async move { (!call(limits, plan, expected, calls).await).then_some(again) });
            }
        }
        tokio::select! {
            () = limits.changed() => drop(limits.take_opened()),
            Some(done) = running.join_next() => left.extend(done.unwrap()),
            () = sleep(SECOND) => {}
        }
    }
    running.shutdown().await;
}

fn amount(call: &Sent, measure: Measure) -> i64 {
    match measure {
        Measure::Requests | Measure::Concurrent => 1,
        // Calls that were cut off at the end may have cost all that they were to.
        Measure::Usd => call.ended.map_or(WORST, |_| call.usd),
        Measure::InputTokens => call.tokens,
        Measure::OutputTokens | Measure::Tokens => unreachable!("not among the rules"),
    }
}

/// The most that was ever used of a cap, by the calls it counts.
fn worst(calls: &[Sent], cap: &Cap) -> i64 {
    let of = |call: &Sent| amount(call, cap.measure);
    let counts = |call: &Sent, at: Instant| match cap.per {
        Per::Moment => call.at <= at && call.ended.is_none_or(|ended| ended > at),
        Per::Minute => call.at <= at && call.at + MINUTE > at,
        Per::Day | Per::Ever => call.at <= at,
    };
    let at = |at: Instant| calls.iter().filter(|call| counts(call, at)).map(of).sum::<i64>();
    calls.iter().map(|call| at(call.at)).max().unwrap_or_default()
}

async fn view(ledger: &Memory, key: &str) -> PoolView {
    look(ledger, key).await.unwrap().expect("somebody has asked")
}

async fn caps(ledger: &Memory, key: &str) -> Vec<CapView> {
    look(ledger, key).await.unwrap().map(|view| view.caps).unwrap_or_default()
}

fn plans() -> impl Strategy<Value = Vec<Vec<Plan>>> {
    let fate = prop_oneof![8 => Just(Fate::Answered), 1 => Just(Fate::Refused), 1 => Just(Fate::Cut)];
    let model = prop_oneof![Just("fast"), Just("slow"), Just("free")];
    let plan = (model, 50_u64..900, 10_u64..4_000, prop_oneof![Just(100_u64), Just(70_000)], fate);
    let plan = plan.prop_map(|(model, tokens, takes, patience, fate)| Plan { model, tokens, takes, patience, fate });
    prop::collection::vec(prop::collection::vec(plan, 1..30), 1..4)
}

fn both(account: (i64, i64, i64, i64), model: (i64, i64)) -> Vec<Rule> {
    use Measure::{Concurrent, InputTokens, Requests, Usd};
    let (requests, tokens, at_once, usd) = account;
    vec![
        rule("acme", &[(Requests, requests), (InputTokens, tokens), (Concurrent, at_once), (Usd, usd)]),
        rule("acme/fast", &[(Requests, model.0), (InputTokens, model.1)]),
        rule("acme/slow", &[(Requests, model.0 / 2 + 1), (Concurrent, 2)]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]
    #[test]
    fn neither_of_two_rules_is_ever_exceeded_and_nothing_stays_held(
        plans in plans(),
        account in (10_i64..90, 3_000_i64..40_000, 1_i64..8, 8 * WORST..120 * WORST),
        model in (2_i64..20, 1_500_i64..6_000),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let (calls, rules) = (Calls::default(), both(account, model));
        let (left, ended) = runtime.block_on(async {
            let (ledger, mut working, mut asking) = (Arc::new(Memory::new()), JoinSet::new(), JoinSet::new());
            for plans in plans {
                let (limits, ledger) = (Limits::ruled(rules.clone()), Arc::clone(&ledger));
                working.spawn(work(limits.clone(), plans, Arc::clone(&calls)));
                asking.spawn(async move { limits.keep_asking(&*ledger, 1.0).await });
            }
            while let Some(left) = working.join_next().await {
                left.unwrap();
            }
            sleep(5 * SECOND).await;
            let mut left = Vec::new();
            for rule in &rules {
                left.push(caps(&ledger, &rule.key).await);
            }
            (left, Instant::now())
        });
        let calls = calls.lock().unwrap();
        for (rule, left) in rules.iter().zip(left) {
            let theirs: Vec<_> =
                calls.iter().filter(|call| format!("acme/{}", call.model).starts_with(&rule.key)).cloned().collect();
            for cap in &rule.caps {
                let worst = worst(&theirs, cap);
                prop_assert!(worst <= cap.most, "{worst} of {cap} under {}", rule.key);
            }
            for view in left {
                prop_assert_eq!(view.held, 0, "{} under {}", view.cap, rule.key);
                let since = |call: &Sent| call.ended.unwrap_or(call.at);
                let of = |call: &&Sent| view.cap.per == Per::Day || since(call) + MINUTE + 2 * SECOND > ended;
                let most: i64 = theirs.iter().filter(of).map(|call| amount(call, view.cap.measure)).sum();
                // Of a call that was cut, or under way when its worker left, the guess stays.
                let is_cut = |call: &Sent| call.usd == WORST || call.ended.is_none();
                let guessed = view.cap.measure == Measure::InputTokens && theirs.iter().any(is_cut);
                prop_assert!(guessed || view.used <= most, "{} of {most} kept of {} under {}", view.used, view.cap, rule.key);
            }
        }
    }
}

/// Workers of one account, each with jobs of these models without an end.
struct Fleet {
    ledger: Arc<Memory>,
    calls: Calls,
    tasks: JoinSet<()>,
}

impl Fleet {
    fn new() -> Self {
        Self { ledger: Arc::new(Memory::new()), calls: Calls::default(), tasks: JoinSet::new() }
    }

    fn hire(&mut self, rules: &[Rule], models: &[&'static str], takes: u64) -> Limits {
        let limits = Limits::ruled(rules.to_vec());
        let (asking, ledger) = (limits.clone(), Arc::clone(&self.ledger));
        self.tasks.spawn(async move { asking.keep_asking(&*ledger, 1.0).await });
        let plan = |model| Plan { model, tokens: 100, takes, patience: 70_000, fate: Fate::Answered };
        let plans = (0..20_000).map(|n| plan(models[n % models.len()])).collect();
        self.tasks.spawn(work(limits.clone(), plans, Arc::clone(&self.calls)));
        limits
    }

    fn lately(&self, model: &str) -> usize {
        let calls = self.calls.lock().unwrap();
        calls.iter().filter(|call| call.model == model && call.at.elapsed() < MINUTE).count()
    }
}

#[tokio::test(start_paused = true)]
async fn an_account_is_used_up_by_models_that_each_have_less() {
    let rules = [("acme", 300), ("acme/fast", 200), ("acme/slow", 200)];
    let rules = rules.map(|(key, most)| rule(key, &[(Measure::Requests, most)]));
    let mut fleet = Fleet::new();
    for models in [["fast"], ["slow"], ["fast"], ["slow"]] {
        fleet.hire(&rules, &models, 300);
    }
    sleep(150 * SECOND).await;
    let (fast, slow) = (fleet.lately("fast"), fleet.lately("slow"));
    assert!((280..=300).contains(&(fast + slow)), "{fast} and {slow}");
    assert!([fast, slow].iter().all(|calls| (90..=200).contains(calls)), "{fast} and {slow}");
    let one = fleet.hire(&rules, &["fast"], 300);
    sleep(20 * SECOND).await;
    assert!(one.held().iter().any(|held| held.key == "acme"), "the one that binds: {:?}", one.held());
}

#[tokio::test(start_paused = true)]
async fn a_model_that_is_used_up_holds_nothing_of_its_account() {
    let rules = [rule("acme", &[(Measure::Concurrent, 4)]), rule("acme/slow", &[(Measure::Requests, 6)])];
    let mut fleet = Fleet::new();
    let slow = fleet.hire(&rules, &["slow"], 1_000);
    sleep(10 * SECOND).await;
    fleet.hire(&rules, &["fast"], 1_000);
    fleet.hire(&rules, &["fast", "slow"], 1_000);
    sleep(100 * SECOND).await;
    assert!(fleet.lately("fast") >= 200 && fleet.lately("slow") <= 6, "{} calls", fleet.lately("fast"));
    assert!((5..=6).contains(&fleet.lately("slow")), "{} calls of the slow one", fleet.lately("slow"));
    assert_eq!(slow.held().into_iter().map(|held| held.key).collect::<Vec<_>>(), ["acme/slow"]);
}

#[tokio::test(start_paused = true)]
async fn on_a_denial_of_one_nothing_stays_held_at_the_other() {
    let ledger = Memory::new();
    let rules = vec![rule("acme", &[(Measure::Concurrent, 1)]), rule("acme/fast", &[(Measure::Requests, 60)])];
    let limits = Limits::ruled(rules);
    with(&ledger, 1.0, &[&limits], async {
        let other = reserve(&limits, "slow").await.unwrap();
        let begun = Instant::now();
        let (denied, key) = reserve(&limits, "fast").await.unwrap_err();
        assert!(matches!(denied, Denied::Later(_)) && key == "acme", "{denied:?} by {key}");
        assert_eq!(begun.elapsed().as_secs(), 60);
        sleep(5 * SECOND).await;
        let [fast] = caps(&ledger, "acme/fast").await.try_into().unwrap();
        assert_eq!((fast.used, fast.held), (0, 0));
        let (waits, size) = (limits.clone(), Size { bytes: 9, max_tokens: Some(1) });
        let pass = waits.admit(&lane("fast"), "acme/fast").unwrap();
        let given_up = timeout(5 * SECOND, waits.reserve(pass, &lane("fast"), size)).await;
        assert!(given_up.is_err(), "it still waits");
        drop(other);
        reserve(&limits, "slow").await.expect("nobody is before it in any line");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_a_model_is_refused_and_told_is_its_own_affair() {
    let ledger = Memory::new();
    let requests = |key: &str, most| rule(key, &[(Measure::Requests, most)]);
    let rules = [requests("acme", 600), requests("acme/fast", 300), rule("acme/dear", &[(Measure::Usd, 9_000)])];
    let (a, b) = (Limits::ruled(rules.to_vec()), Limits::ruled(rules.to_vec()));
    with(&ledger, 1.0, &[&a, &b], async {
        let pass = reserve(&a, "fast").await.unwrap();
        pass.ear().unwrap().hear([Heard { measure: Measure::Requests, per: Per::Minute, most: 200, left: None }]);
        pass.report(JobId::fresh(), &throttled(30));
        sleep(SECOND).await;
        let (fast, account) = (view(&ledger, "acme/fast").await, view(&ledger, "acme").await);
        assert!(fast.frozen_for > 25_000 && fast.caps[0].learned == Some(200), "{fast:?}");
        assert!(account.frozen_for == 0 && account.rate >= 1.0 && account.caps[0].learned.is_none(), "{account:?}");
        assert_eq!(account.caps[0].used, 1, "it counts there all the same");
        let (Denied::Later(wait), key) = reserve(&b, "fast").await.unwrap_err() else { panic!("it is frozen") };
        assert!(wait > 25 * SECOND && key == "acme/fast");
        reserve(&b, "slow").await.expect("another model").report(JobId::fresh(), &throttled(20));
        sleep(SECOND).await;
        assert!(view(&ledger, "acme").await.frozen_for > 15_000, "no rule but the account's is for that one");
        sleep(30 * SECOND).await;
        reserve(&a, "dear").await.unwrap().report(JobId::fresh(), &throttled(10));
        sleep(SECOND).await;
        assert!(view(&ledger, "acme").await.frozen_for > 5_000, "a cap on money alone hears of no rate");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_large_account_that_grew_too_fast_comes_back_slowly() {
    for (tokens, after) in [(2_000_000, 0.5), (900_000, 0.9)] {
        let ledger = Memory::new();
        let limits = Limits::ruled(vec![rule("acme", &[(Measure::InputTokens, tokens)])]);
        with(&ledger, 1.0, &[&limits], async {
            let failure = Failure::new(FailureClass::Throttled, "slow_down", "your traffic has grown too fast");
            let failure = Failure { retry_after: Some(SECOND), status_code: Some(503), ..failure };
            reserve(&limits, "fast").await.unwrap().report(JobId::fresh(), &Outcome::Failure(failure));
            sleep(80 * SECOND).await;
            let rate = view(&ledger, "acme").await.rate;
            assert!((rate - after).abs() < 0.01, "{rate} of {tokens}");
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_larger_than_one_of_its_rules_is_told_by_which() {
    let ledger = Memory::new();
    let rules = [rule("acme", &[(Measure::InputTokens, 100)]), rule("acme/fast", &[(Measure::Requests, 60)])];
    let limits = Limits::ruled(rules.to_vec());
    with(&ledger, 1.0, &[&limits], async {
        let (never, key) = reserve(&limits, "fast").await.unwrap_err();
        assert!(matches!(never, Denied::Never(cap) if cap.most == 100) && key == "acme", "{never:?} by {key}");
        let raise = |pool: &mut Pool, now: i64| pool.set(now, Measure::InputTokens, Per::Minute, Some(10_000));
        change(&ledger, "acme", raise).await.unwrap();
        sleep(5 * SECOND).await;
        reserve(&limits, "fast").await.expect("a person allows it");
    })
    .await;
}
