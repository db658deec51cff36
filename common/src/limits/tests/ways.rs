//! The ways of lanes: which one decides, who tries the others, what an account shuts, and what is woken when one opens.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::job::{Band, JobId, ModelName, Queue};
use crate::limits::{Cap, Measure, Pass, Per, Rule};
use crate::outcome::{Failure, Reply};

const SECOND: Duration = Duration::from_secs(1);

fn lane(model: &str) -> Lane {
    Lane { queue: Queue::standard(), model: Some(ModelName::new(model)), band: Band::Normal }
}

fn failure(class: FailureClass) -> Outcome {
    Outcome::Failure(Failure { status_code: Some(500), ..Failure::new(class, "code", "said so") })
}

fn success() -> Outcome {
    Outcome::Success(Reply::default())
}

/// The lane `fast`, which goes to `one/a`, else to `two/b`.
fn fast(limits: &Limits) -> Lane {
    let lane = lane("fast");
    limits.route(&lane, &["one/a", "two/b"]);
    lane
}

fn pass(limits: &Limits, lane: &Lane, key: &str) -> Pass {
    limits.admit(lane, key).expect("it is open")
}

fn tell(limits: &Limits, lane: &Lane, key: &str, outcome: &Outcome) {
    pass(limits, lane, key).report(JobId::fresh(), outcome);
}

/// An outage of a way.
fn break_down(limits: &Limits, lane: &Lane, key: &str) {
    for _ in 0..super::super::breaker::TRIP {
        tell(limits, lane, key, &failure(FailureClass::Capacity));
    }
}

#[tokio::test(start_paused = true)]
async fn a_way_that_is_down_is_passed_by_and_one_job_at_a_time_tries_it() {
    let limits = Limits::new();
    let fast = fast(&limits);
    assert_eq!(limits.room(&fast), u32::MAX);
    break_down(&limits, &fast, "one/a");
    assert_eq!(limits.room(&fast), u32::MAX, "the other way has room for all");
    break_down(&limits, &fast, "two/b");
    assert_eq!((limits.room(&fast), limits.caps()), (0, vec![(fast.clone(), 0)]));
    tokio::time::advance(SECOND).await;
    assert_eq!(limits.room(&fast), 2, "a probe each");
    let probe = pass(&limits, &fast, "one/a");
    assert!(probe.is_probe() && limits.admit(&fast, "one/a").unwrap_err().class == FailureClass::Capacity);
    assert_eq!(limits.room(&fast), 1);
    tell(&limits, &fast, "two/b", &success());
    assert_eq!(limits.room(&fast), u32::MAX);
    probe.report(JobId::fresh(), &success());
    assert!(limits.caps().is_empty(), "all is well");
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_is_waited_for_on_every_way() {
    let limits = Limits::new();
    let fast = fast(&limits);
    tell(&limits, &fast, "one/a", &failure(FailureClass::Throttled));
    assert_eq!(limits.room(&fast), 0, "what it costs elsewhere is another price");
    assert!(limits.opens_soon(std::slice::from_ref(&fast)));
    limits.open("one");
    limits.take_opened();
    break_down(&limits, &fast, "one/a");
    let mut slow = Failure::new(FailureClass::Throttled, "rate_limit", "");
    slow.retry_after = Some(SECOND * 30);
    tell(&limits, &fast, "two/b", &Outcome::Failure(slow));
    assert_eq!(limits.room(&fast), 0);
    tokio::time::advance(SECOND).await;
    assert_eq!(limits.room(&fast), 1, "the probe of the way before it");
    let probe = pass(&limits, &fast, "one/a");
    assert_eq!(limits.room(&fast), 0);
    drop(probe);
    assert_eq!(limits.room(&fast), 1);
}

#[tokio::test(start_paused = true)]
async fn an_account_that_is_refused_shuts_all_of_its_models_once_until_it_is_tried_or_released() {
    let limits = Limits::new();
    let (a, b, other) = (lane("a"), lane("b"), lane("other"));
    for (lane, key) in [(&a, "one/a"), (&b, "one/b"), (&other, "two/a")] {
        tell(&limits, lane, key, &success());
    }
    let running = pass(&limits, &b, "one/b");
    tell(&limits, &a, "one/a", &failure(FailureClass::Account));
    assert_eq!([&a, &b, &other].map(|lane| limits.room(lane)), [0, 0, u32::MAX]);
    let [held] = limits.held().try_into().unwrap();
    assert_eq!((held.key.as_str(), held.class, held.detail.as_str()), ("one", FailureClass::Account, "code: said so"));
    assert_eq!(limits.lanes_behind("one", 9).len(), 2);
    let refused = limits.admit(&b, "one/b").unwrap_err();
    assert_eq!((refused.class, refused.wait), (FailureClass::Account, SECOND * 600));
    running.report(JobId::fresh(), &success());
    assert_eq!(limits.room(&b), 0, "it began before");
    tokio::time::advance(SECOND * 600).await;
    assert_eq!([&a, &b].map(|lane| limits.room(lane)), [1, 1]);
    let probe = pass(&limits, &b, "one/b");
    assert!(probe.is_probe() && limits.held()[0].probing);
    assert_eq!([&a, &b].map(|lane| limits.room(lane)), [0, 0], "one for all models");
    let ruling = probe.report(JobId::fresh(), &failure(FailureClass::Account));
    assert_eq!((ruling.account, ruling.wait, limits.room(&a)), (Some(SECOND * 600), None, 0));
    limits.open("one/a");
    assert_eq!(limits.room(&a), 0, "a model of it is not the account");
    limits.take_opened();
    limits.open("one");
    assert_eq!(limits.take_opened(), ["one"]);
    assert_eq!([&a, &b].map(|lane| limits.room(lane)), [u32::MAX; 2]);
    assert!(limits.held().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_its_model_turns_away_leaves_the_accounts_to_another() {
    let limits = Limits::new();
    let a = lane("a");
    break_down(&limits, &a, "one/a");
    tell(&limits, &lane("b"), "one/b", &failure(FailureClass::Account));
    tokio::time::advance(SECOND * 600).await;
    let probe = pass(&limits, &a, "one/a");
    assert_eq!((limits.room(&a), limits.room(&lane("b"))), (0, 0));
    drop(probe);
    assert_eq!((limits.room(&a), limits.room(&lane("b"))), (1, 1), "it never came to anything");
    let probe = pass(&limits, &lane("b"), "one/b");
    assert!(limits.admit(&a, "one/a").is_err());
    probe.report(JobId::fresh(), &success());
    assert_eq!((limits.room(&a), limits.room(&lane("b"))), (1, u32::MAX));
}

#[tokio::test(start_paused = true)]
async fn a_model_that_is_throttled_as_well_is_passed_by_with_its_account() {
    let limits = Limits::new();
    let fast = fast(&limits);
    let late = pass(&limits, &fast, "one/a");
    tell(&limits, &fast, "one/a", &failure(FailureClass::Account));
    tokio::time::advance(SECOND * 600).await;
    late.report(JobId::fresh(), &failure(FailureClass::Throttled));
    assert_eq!(limits.room(&fast), u32::MAX);
    let refused = limits.admit(&fast, "one/a").unwrap_err();
    assert_eq!(refused.class, FailureClass::Account, "or its jobs were leased and given back for ever");
}

#[tokio::test(start_paused = true)]
async fn whichever_way_opens_wakes_what_waits_for_the_others() {
    let limits = Limits::new();
    let fast = fast(&limits);
    tell(&limits, &lane("b"), "two/c", &success());
    tell(&limits, &fast, "one/a", &failure(FailureClass::Account));
    assert_eq!(limits.take_opened(), ["one", "one/a", "two", "two/b"], "what waits for it may go the other way");
    break_down(&limits, &fast, "two/b");
    assert!(limits.take_opened().is_empty(), "nothing is open");
    tokio::time::advance(SECOND).await;
    tell(&limits, &fast, "two/b", &success());
    assert_eq!(limits.take_opened(), ["one", "one/a", "two", "two/b"]);
    tokio::time::advance(SECOND * 600).await;
    tell(&limits, &fast, "one/a", &success());
    assert_eq!(limits.take_opened(), ["one", "one/a", "two", "two/b"]);
    let single = lane("b");
    tell(&limits, &single, "two/c", &failure(FailureClass::Throttled));
    tokio::time::advance(SECOND).await;
    assert_eq!(limits.take_opened(), ["two/c"], "of the others nobody waits for it");
}

#[tokio::test(start_paused = true)]
async fn the_rule_of_the_way_that_decides_says_how_much_room_there_is() {
    let rule = |key: &str, most| {
        let cap = Cap { measure: Measure::Requests, per: Per::Minute, most };
        Rule { key: key.into(), caps: vec![cap], adaptive: false }
    };
    let limits = Limits::ruled(vec![rule("one", 600), rule("two/b", 600)]);
    let fast = fast(&limits);
    limits.rest(64);
    let seen = || limits.seen(std::iter::once(&fast), |_| None);
    seen();
    assert_eq!(limits.room(&fast), 0, "nothing is granted yet");
    assert_eq!([limits.lanes_behind("one", 9).len(), limits.lanes_behind("two/b", 9).len()], [1, 0]);
    let ledger = crate::broker::Broker::memory();
    let _granted = tokio::time::timeout(SECOND, limits.keep_asking(ledger.ledger(), 1.0)).await;
    assert!(limits.room(&fast) > 0);
    tell(&limits, &fast, "one/a", &failure(FailureClass::Account));
    assert_eq!(limits.room(&fast), 0, "nor of the other rule");
    seen();
    let _granted = tokio::time::timeout(SECOND, limits.keep_asking(ledger.ledger(), 1.0)).await;
    assert!((1..=60).contains(&limits.room(&fast)), "{}", limits.room(&fast));
    assert_eq!([limits.lanes_behind("one", 9).len(), limits.lanes_behind("two/b", 9).len()], [0, 1]);
    tokio::time::advance(SECOND * 600).await;
    seen();
    let _granted = tokio::time::timeout(SECOND, limits.keep_asking(ledger.ledger(), 1.0)).await;
    assert!(pass(&limits, &fast, "one/a").is_probe());
}

/// What happens at a way.
#[derive(Clone, Debug)]
enum Step {
    Admit(usize),
    Report(usize, Option<FailureClass>),
    Leave(usize),
    Wait(u64),
    Release(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    use FailureClass::{Account, Capacity, Fatal, Throttled};
    let outcome = prop::sample::select(vec![None, Some(Account), Some(Capacity), Some(Fatal), Some(Throttled)]);
    let step = prop_oneof![
        6 => (0_usize..3).prop_map(Step::Admit),
        6 => (0_usize..9, outcome).prop_map(|(at, outcome)| Step::Report(at, outcome)),
        1 => (0_usize..9).prop_map(Step::Leave),
        2 => (0_u64..700).prop_map(Step::Wait),
        1 => any::<bool>().prop_map(Step::Release),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    /// A lane with room whose jobs are all refused would be leased from for ever, and one without room that would take a
    /// job never again.
    #[test]
    fn a_lane_has_room_exactly_when_a_job_of_it_is_admitted_somewhere(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (limits, lane) = (Limits::new(), lane("fast"));
            let keys = ["one/a", "one/b", "two/c"];
            limits.route(&lane, &keys);
            let mut passes = Vec::new();
            for step in steps {
                match step {
                    Step::Admit(at) => passes.extend(limits.admit(&lane, keys[at])),
                    Step::Report(at, outcome) if at < passes.len() => {
                        passes.swap_remove(at).report(JobId::fresh(), &outcome.map_or_else(success, failure));
                    }
                    Step::Leave(at) if at < passes.len() => drop(passes.swap_remove(at)),
                    Step::Report(..) | Step::Leave(_) => {}
                    Step::Wait(seconds) => tokio::time::advance(SECOND * u32::try_from(seconds).unwrap()).await,
                    Step::Release(all) => limits.open(if all { "one" } else { "two/c" }),
                }
                limits.take_opened();
                let room = limits.room(&lane);
                let admitted = keys.iter().find_map(|key| match limits.admit(&lane, key) {
                    Err(refused) if refused.class != FailureClass::Throttled => None,
                    decided => Some(decided.is_ok()),
                });
                assert_eq!(room > 0, admitted == Some(true), "room {room}");
            }
        });
    }
}
