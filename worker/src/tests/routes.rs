//! Several routes of one model: which failure sends a job to the next, what it keeps of the calls before, and how it comes
//! back to the first.

use std::sync::atomic::AtomicBool;

use promptq_common::broker::HoldKey;
use promptq_common::job::Extras;
use promptq_common::limits::{Cap, Measure, Per, Pool, Rule, change};
use promptq_common::price::{Price, Prices};
use promptq_common::record::Answer;

use super::*;
use crate::status::BlockedBy;

/// A route that answers with its own name.
fn well(key: &'static str) -> Scripted {
    Scripted::new(key, move |_, _| Play::Answer(key.to_owned()))
}

/// A route that always does this.
fn always(key: &'static str, play: Play) -> Scripted {
    Scripted::new(key, move |_, _| play.clone())
}

/// A call that was refused with this code.
fn refused(code: &str) -> Play {
    let fatal = Failure::new(FailureClass::Fatal, code, &format!("{code} it said"));
    Play::Fail(Failure { status_code: Some(400), ..fatal })
}

/// A route that fails so while it is down.
fn switched(key: &'static str, class: FailureClass) -> (Scripted, Arc<AtomicBool>) {
    let down = Arc::new(AtomicBool::new(true));
    let seen = Arc::clone(&down);
    let script = move |_: &Job, _: &RunContext| {
        if seen.load(Ordering::SeqCst) { failure(class, 529) } else { Play::Answer(key.to_owned()) }
    };
    (Scripted::new(key, script), down)
}

fn answer(record: &Record) -> &Answer {
    record.answer.as_ref().expect("it has succeeded")
}

fn route(record: &Record) -> Option<&str> {
    answer(record).origin.as_ref()?.route.as_deref()
}

#[tokio::test(start_paused = true)]
async fn an_overload_and_an_account_send_a_job_to_the_next_route_in_the_same_lease() {
    for class in [FailureClass::Capacity, FailureClass::Account] {
        let mut rig = Rig::new();
        let [first, second] = rig.goes("fast", [always("one/a", failure(class, 529)), well("two/b")]);
        let ids = rig.submit("fast", 30).await;
        rig.start();
        assert_eq!(rig.ends(&ids).await, [End::Succeeded; 30], "{class}");
        let record = rig.record(ids[29]).await;
        assert_eq!((record.attempts, route(&record), second.started()), (1, Some("two/b"), 30));
        assert!(first.started() <= 8, "once it is seen nobody calls it but a probe: {}", first.started());
        assert_eq!(rig.board.now().finished.released, 0, "{class}");
        let record = rig.record(ids[0]).await;
        let [before, after] = record.history.recent.try_into().expect("two calls");
        assert_eq!((before.class, before.n, after.class, after.n), (Some(class), 1, None, 1));
        assert_eq!(before.detail.as_deref(), Some("one/a: as scripted"));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_the_jobs_own_or_soon_over_sends_it_nowhere() {
    for (class, end) in [
        (FailureClass::Throttled, End::Succeeded),
        (FailureClass::Transient, End::Succeeded),
        (FailureClass::UnknownBilled, End::Succeeded),
        (FailureClass::Content, End::Dead),
        (FailureClass::Fatal, End::Dead),
    ] {
        let mut rig = Rig::new();
        let calls = AtomicU32::new(0);
        let once = move |_: &Job, _: &RunContext| {
            if calls.fetch_add(1, Ordering::SeqCst) > 0 { Play::Answer("one".into()) } else { failure(class, 400) }
        };
        let [first, second] = rig.goes("fast", [Scripted::new("one/a", once), well("two/b")]);
        let ids = rig.submit("fast", 1).await;
        rig.start();
        assert_eq!(rig.ends(&ids).await, [end], "{class}");
        assert_eq!((first.started(), second.started()), (if end == End::Dead { 1 } else { 2 }, 0), "{class}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_of_a_route_is_waited_for() {
    let mut rig = Rig::new();
    let limited = AtomicU32::new(0);
    let slow = move |_: &Job, _: &RunContext| {
        if limited.fetch_add(1, Ordering::SeqCst) > 0 {
            return Play::Answer("ok".into());
        }
        let failure = Failure::new(FailureClass::Throttled, "rate_limit", "slow down");
        Play::Fail(Failure { retry_after: Some(Duration::from_secs(60)), status_code: Some(429), ..failure })
    };
    let [first, second] = rig.goes("fast", [Scripted::new("one/a", slow), well("two/b")]);
    let ids = rig.submit("fast", 1).await;
    rig.start();
    rig.shows(|status| !status.blocked.is_empty()).await;
    let more = rig.submit("fast", 20).await;
    sleep(Duration::from_secs(50)).await;
    assert_eq!((first.started(), second.started(), rig.board.now().finished.released), (1, 0, 1));
    rig.ends(&ids).await;
    rig.ends(&more).await;
    assert_eq!((first.started(), second.started()), (22, 0));
}

#[tokio::test(start_paused = true)]
async fn what_one_route_cannot_take_another_may_and_what_none_can_is_dead_for_all_reasons() {
    for code in ["context_length_exceeded", "request_too_large", "model_not_found", "no_quota"] {
        let mut rig = Rig::new();
        rig.goes("fast", [always("one/a", refused(code)), well("two/b")]);
        let [last, _] = rig.goes("none", [always("three/a", refused(code)), always("four/b", refused("too_long"))]);
        let (ids, dead) = (rig.submit("fast", 2).await, rig.submit("none", 1).await);
        rig.start();
        assert_eq!(rig.ends(&ids).await, [End::Succeeded; 2], "{code}");
        assert_eq!(rig.ends(&dead).await, [End::Dead], "{code}");
        let record = rig.record(dead[0]).await;
        let cause = record.cause.expect("it is dead for something");
        assert_eq!((cause.code.as_str(), cause.status_code), ("too_long", Some(400)));
        assert_eq!(cause.detail, format!("three/a: {code} it said; four/b: too_long it said"));
        assert_eq!((record.attempts, record.history.recent.len(), last.started()), (1, 2, 1));
        assert!(record.started_at.is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_larger_than_a_routes_limit_takes_the_other() {
    let mut rig = Rig::new();
    let cap = Cap { measure: Measure::InputTokens, per: Per::Minute, most: 1 };
    rig.settings.limits = vec![Rule { key: "one".into(), caps: vec![cap], adaptive: false }];
    let [first, second] = rig.goes("fast", [well("one/a"), well("two/b")]);
    let large = job("fast", "more than one token");
    rig.broker.enqueue(std::slice::from_ref(&large)).await.unwrap();
    rig.start();
    assert_eq!(rig.ends(&[large.id]).await, [End::Succeeded]);
    assert_eq!((first.started(), second.started()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_job_that_only_a_shut_route_can_take_waits_for_it_and_asks_the_other_once() {
    let mut rig = Rig::new();
    let (second, down) = switched("two/b", FailureClass::Account);
    let [first, second] = rig.goes("fast", [always("one/a", refused("context_length_exceeded")), second]);
    let ids = rig.submit("fast", 1).await;
    rig.start();
    rig.until(async || rig.view(ids[0]).await.hold == Some(HoldKey::Limit("two".into()))).await;
    let released = rig.board.now().finished.released;
    rig.broker.wake(&HoldKey::Limit("two".into())).await.unwrap();
    rig.until(async || rig.board.now().finished.released > released).await;
    assert_eq!((first.started(), second.started()), (1, 1), "it has said never");
    down.store(false, Ordering::SeqCst);
    change(rig.broker.ledger(), "two", Pool::release).await.unwrap();
    assert_eq!(rig.ends(&ids).await, [End::Succeeded]);
    assert_eq!((first.started(), second.started()), (1, 2));
    assert_eq!(rig.record(ids[0]).await.attempts, 1);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_the_second_route_is_no_end_while_the_first_is_only_shut() {
    let mut rig = Rig::new();
    let (first, down) = switched("one/a", FailureClass::Capacity);
    let [_, second] = rig.goes("fast", [first, always("two/b", refused("unknown_parameter"))]);
    let ids = rig.submit("fast", 10).await;
    rig.start();
    sleep(Duration::from_secs(30)).await;
    assert_eq!((second.started(), rig.board.now().finished.dead), (10, 0), "each has asked it once");
    down.store(false, Ordering::SeqCst);
    assert_eq!(rig.ends(&ids).await, [End::Succeeded; 10]);
    assert_eq!(second.started(), 10);
}

#[tokio::test(start_paused = true)]
async fn with_all_routes_shut_jobs_wait_for_the_first_that_opens_spending_nothing() {
    let mut rig = Rig::new();
    let (first, _) = switched("one/a", FailureClass::Account);
    let (second, down) = switched("two/b", FailureClass::Capacity);
    let [first, second] = rig.goes("fast", [first, second]);
    let ids = rig.submit("fast", 200).await;
    rig.start();
    sleep(Duration::from_secs(300)).await;
    assert!(first.started() <= 8, "an account that is refused is not asked by every job: {}", first.started());
    assert!((10..=20).contains(&second.started()), "probes, up to a minute apart: {}", second.started());
    let released = rig.board.now().finished.released;
    assert!(released <= 30, "nothing else is leased in vain: {released}");
    let by = |key: &str, class| BlockedBy::Limit { key: key.into(), class };
    let blocked: Vec<_> = rig.board.now().blocked.into_iter().map(|blocked| blocked.by).collect();
    assert_eq!(blocked, [by("one", FailureClass::Account), by("two/b", FailureClass::Capacity)]);
    down.store(false, Ordering::SeqCst);
    let opened = tokio::time::Instant::now();
    assert_eq!(rig.ends(&ids).await, [End::Succeeded; 200]);
    assert!(opened.elapsed() < Duration::from_secs(90), "also those that wait for the first: {:?}", opened.elapsed());
    assert_eq!(rig.record(ids[0]).await.attempts, 1);
}

#[tokio::test(start_paused = true)]
async fn jobs_come_back_to_the_first_route_when_it_is_well_by_one_probe_at_a_time() {
    let mut rig = Rig::new();
    let (first, down) = switched("one/a", FailureClass::Capacity);
    let second = Scripted::new("two/b", |_, _| Play::After(Duration::from_secs(1)));
    let [first, second] = rig.goes("fast", [first, second]);
    let ids = rig.submit("fast", 1_000).await;
    rig.start();
    sleep(Duration::from_secs(60)).await;
    let (probes, served) = (first.started(), second.started());
    assert!((8..=25).contains(&probes), "{probes}");
    assert!(served >= 440, "a probe takes no job from the other route: {served}");
    assert_eq!(rig.board.now().finished.released, 0);
    down.store(false, Ordering::SeqCst);
    assert_eq!(rig.ends(&ids).await, [End::Succeeded; 1_000]);
    assert!(second.started() <= served + 8 * 61, "{} after {served}", second.started());
    assert!(first.started() > 400, "{}", first.started());
    assert_eq!(route(&rig.record(ids[999]).await), Some("one/a"));
}

#[tokio::test(start_paused = true)]
async fn three_jobs_without_such_a_model_pause_its_route() {
    let mut rig = Rig::new();
    rig.settings.concurrency = 1;
    let [first, second] = rig.goes("fast", [always("one/a", refused(Failure::MISSING_MODEL)), well("two/b")]);
    let typo = rig.runs("typo", always("three/c", refused(Failure::MISSING_MODEL)));
    let ids = rig.submit("fast", 20).await;
    rig.start();
    assert_eq!(rig.ends(&ids).await, [End::Succeeded; 20]);
    assert_eq!((first.started(), second.started()), (3, 20));
    let held = rig.shows(|status| !status.blocked.is_empty()).await.blocked.remove(0);
    assert_eq!(held.detail, "model_not_found: model_not_found it said");
    let lost = rig.submit("typo", 10).await;
    rig.until(async || typo.started() == 3).await;
    sleep(Duration::from_secs(50)).await;
    assert_eq!((typo.started(), rig.board.now().finished.dead), (3, 2), "the others wait for the model to be there");
    assert_eq!(rig.view(lost[9]).await.attempts, 0);
}

/// Routes of which a thousand tokens of an answer cost a cent and five.
fn priced(rig: &mut Rig) {
    let price = |output: &str| Price::flat(Usd::default(), output.parse().unwrap());
    let prices = [("one/a".to_owned(), price("10")), ("two/b".to_owned(), price("50"))];
    rig.settings.prices = Prices::new(prices, BTreeMap::new());
}

fn usd(text: &str) -> Usd {
    text.parse().unwrap()
}

/// A job that may be answered with a thousand tokens, and cost so much.
fn bounded(most: &str) -> Job {
    let mut job = job("fast", "x");
    if let promptq_common::work::Input::Prompt(prompt) = &mut job.work.input {
        prompt.params = r#"{"max_tokens":1000}"#.to_owned();
    }
    Job { extras: Extras { max_cost: Some(usd(most)), ..Extras::default() }.kept(), ..job }
}

#[tokio::test(start_paused = true)]
async fn what_the_calls_before_have_cost_is_kept_and_counts_for_what_a_job_may_cost() {
    let mut rig = Rig::new();
    priced(&mut rig);
    let usage = Usage { input_tokens: 7, ..Usage::default() };
    let overloaded = Failure::new(FailureClass::Capacity, "overloaded", "on its way");
    let overloaded = Failure { usage, cost: Some(usd("0.004")), status_code: Some(529), ..overloaded };
    let [_, second] = rig.goes(
        "fast",
        [
            always("one/a", Play::Fail(overloaded)),
            Scripted::new("two/b", |_, cx| match cx.attempt {
                1 => Play::Fail(Failure {
                    status_code: Some(500),
                    ..Failure::new(FailureClass::Transient, "http_500", "")
                }),
                _ => Play::Costs(usd("0.03")),
            }),
        ],
    );
    let jobs = [bounded("1"), bounded("0.0539")];
    let [ids @ .., too_dear] = jobs.each_ref().map(|job| job.id);
    rig.broker.enqueue(&jobs[..1]).await.unwrap();
    rig.start();
    assert_eq!(rig.ends(&ids).await, [End::Succeeded]);
    let record = rig.record(ids[0]).await;
    assert_eq!((record.attempts, record.history.cost, record.history.usage.input_tokens), (2, Some(usd("0.038")), 14));
    let called = second.started();
    rig.broker.enqueue(&jobs[1..]).await.unwrap();
    rig.until(async || rig.board.now().finished.released > 0 || rig.view(too_dear).await.record.is_some()).await;
    assert_eq!(second.started(), called, "with the five cents that it may cost there it would be too much");
}

#[tokio::test(start_paused = true)]
async fn a_job_too_dear_for_one_route_takes_the_cheaper_and_a_budget_is_spent_once() {
    let mut rig = Rig::new();
    priced(&mut rig);
    let [dear, cheap] = rig.goes("fast", [well("two/b"), always("one/a", Play::Costs(usd("0.005")))]);
    let job = bounded("0.02");
    rig.broker.enqueue(std::slice::from_ref(&job)).await.unwrap();
    rig.start();
    assert_eq!(rig.ends(&[job.id]).await, [End::Succeeded]);
    assert_eq!((dear.started(), cheap.started()), (0, 1));
    assert_eq!(rig.record(job.id).await.history.cost, Some(usd("0.005")));
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_kept_over_many_short_calls() {
    let mut rig = Rig::new();
    let slow = |key| {
        let script = |_: &Job, _: &RunContext| {
            Play::Wait(Duration::from_secs(7), Box::new(failure(FailureClass::Capacity, 529)))
        };
        Scripted::new(key, script)
    };
    let keys = ["a/1", "b/2", "c/3", "d/4", "e/5", "f/6", "g/7"];
    let routes: Vec<_> = keys.into_iter().map(slow).chain([well("h/8")]).collect();
    let routes: [Scripted; 8] = routes.try_into().unwrap_or_else(|_| panic!("eight"));
    rig.goes("fast", routes);
    let ids = rig.submit("fast", 1).await;
    rig.start();
    assert_eq!(rig.ends(&ids).await, [End::Succeeded]);
    let record = rig.record(ids[0]).await;
    assert_eq!((record.history.recent.len(), rig.view(ids[0]).await.deaths), (8, 0));
    assert!(rig.faults.beats.load(Ordering::SeqCst) >= 5);
}
