//! Tests of what a worker's limits learn while calls run: from headers, freezes, overload, and from people.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{lane, reserve, with};
use crate::broker::memory::Memory;
use crate::job::JobId;
use crate::limits::{Cap, Counts, Denied, Heard, Limits, Measure, Per, Pool, Rule, change, look};
use crate::outcome::{Failure, FailureClass, Outcome, Reply, Usage};

const SECOND: Duration = Duration::from_secs(1);

fn ruled(measure: Measure, per: Per, most: i64) -> Limits {
    Limits::ruled(vec![Rule { key: "acme".to_owned(), caps: vec![Cap { measure, per, most }], adaptive: false }])
}

fn failed(class: FailureClass, wait: Option<Duration>) -> Outcome {
    Outcome::Failure(Failure { retry_after: wait, status_code: Some(429), ..Failure::new(class, "code", "said so") })
}

fn answered(input_tokens: u64) -> Outcome {
    let usage = Usage { input_tokens, output_tokens: 1, ..Usage::default() };
    Outcome::Success(Reply { status_code: 200, usage, ..Reply::default() })
}

#[tokio::test(start_paused = true)]
async fn a_header_is_heard_by_the_fleet_while_its_call_still_runs() {
    let ledger = Memory::new();
    let (a, b) = (ruled(Measure::Requests, Per::Minute, 600), ruled(Measure::Requests, Per::Minute, 600));
    let said = |most| Heard { measure: Measure::Requests, per: Per::Minute, most, left: Some(most / 4) };
    let now = async || look(&ledger, "acme").await.unwrap().unwrap().caps[0];
    with(&ledger, 0.125, &[&a, &b], async {
        let running = reserve(&a, "fast").await.unwrap();
        for _ in 0..2 {
            running.ear().unwrap().hear([said(200)]);
            sleep(2 * SECOND).await;
        }
        assert_eq!((now().await.cap.most, now().await.learned), (200, Some(200)));
        assert!((150..=151).contains(&now().await.used), "{:?}", now().await);
        let other = reserve(&b, "fast").await.unwrap();
        other.ear().unwrap().hear([said(300)]);
        sleep(2 * SECOND).await;
        assert_eq!(now().await.cap.most, 300, "each says how it is now");
        // Another model under the same rule: what either of them says is not about the rule.
        let second = reserve(&a, "slow").await.unwrap();
        second.ear().unwrap().hear([said(10)]);
        running.ear().unwrap().hear([said(20)]);
        sleep(2 * SECOND).await;
        assert_eq!(now().await.cap.most, 300);
    })
    .await;
    let free = Limits::new();
    assert!(free.admit_call(&lane("fast"), "acme/fast", Counts::default()).unwrap().ear().is_none());
}

#[tokio::test(start_paused = true)]
async fn while_a_key_is_frozen_nobody_waits_in_a_slot() {
    let ledger = Memory::new();
    let (a, b) = (ruled(Measure::Requests, Per::Minute, 600), ruled(Measure::Requests, Per::Minute, 600));
    with(&ledger, 0.125, &[&a, &b], async {
        let throttled = failed(FailureClass::Throttled, Some(30 * SECOND));
        reserve(&a, "fast").await.unwrap().report(JobId::fresh(), &throttled);
        sleep(SECOND).await;
        let begun = Instant::now();
        let Err((Denied::Later(wait), key)) = reserve(&b, "fast").await else { panic!("it is frozen") };
        assert!(begun.elapsed() < 2 * SECOND, "{:?}", begun.elapsed());
        assert!(wait > 25 * SECOND && wait <= 30 * SECOND && key == "acme", "{wait:?}");
        sleep(wait + 5 * SECOND).await;
        a.take_opened();
        reserve(&b, "fast").await.expect("it is over");
        reserve(&a, "fast")
            .await
            .expect("here too")
            .report(JobId::fresh(), &failed(FailureClass::Throttled, Some(3 * SECOND)));
        sleep(SECOND).await;
        reserve(&b, "fast").await.expect("a short one is waited for");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_job_that_a_days_limit_keeps_back_gives_its_slot_back_at_once() {
    let ledger = Memory::new();
    let limits = ruled(Measure::InputTokens, Per::Day, 1_000);
    with(&ledger, 0.125, &[&limits], async {
        reserve(&limits, "fast").await.unwrap().report(JobId::fresh(), &answered(950));
        let begun = Instant::now();
        let denied = reserve(&limits, "fast").await.err().map(|(denied, _)| denied);
        assert_eq!(denied, Some(Denied::Later(600 * SECOND)), "it looks again in ten minutes, for people raise limits");
        assert!(begun.elapsed() < 5 * SECOND, "{:?}", begun.elapsed());
        assert!(!limits.opens_soon(&[lane("fast")]));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_people_release_opens_in_every_worker_also_without_a_rule() {
    let ledger = Memory::new();
    let (a, b, ruled) = (Limits::new(), Limits::new(), ruled(Measure::Requests, Per::Minute, 600));
    let release = async |key: &str| change(&ledger, key, Pool::release).await.unwrap();
    let workers = [&a, &b, &ruled];
    with(&ledger, 0.125, &workers, async {
        let (refused, slow) = (FailureClass::Account, FailureClass::Throttled);
        for (key, class, shut) in
            [("acme", refused, "acme"), ("acme/fast", slow, "acme/fast"), ("acme/fa", slow, "acme/fast")]
        {
            release(key).await;
            sleep(SECOND).await;
            for limits in workers {
                let pass = limits.admit(&lane("fast"), "acme/fast").unwrap();
                pass.report(JobId::fresh(), &failed(class, Some(600 * SECOND)));
                limits.take_opened();
            }
            sleep(20 * SECOND).await;
            assert!(workers.iter().all(|limits| limits.room(&lane("fast")) == 0), "it was released before that");
            release(key).await;
            sleep(SECOND + SECOND / 4).await;
            // Nobody asks for names that stand nowhere.
            let asked = key != "acme/fa";
            for limits in [&a, &b] {
                assert_eq!(limits.room(&lane("fast")) > 0, asked, "{key}");
                assert_eq!(limits.take_opened().iter().any(|opened| opened == shut), asked, "{key}");
            }
            assert_eq!(ruled.held().is_empty(), asked);
            for limits in workers {
                limits.open("acme/fa");
            }
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn only_what_is_closed_for_a_moment_opens_soon() {
    for (class, wait, soon) in [
        (FailureClass::Throttled, Some(30), true),
        (FailureClass::Throttled, Some(90), false),
        (FailureClass::Account, None, false),
    ] {
        let limits = Limits::new();
        assert!(!limits.opens_soon(&[lane("fast")]), "nothing holds it back");
        let pass = limits.admit(&lane("fast"), "acme/fast").unwrap();
        pass.report(JobId::fresh(), &failed(class, wait.map(Duration::from_secs)));
        assert_eq!(limits.opens_soon(&[lane("slow"), lane("fast")]), soon, "{class} {wait:?}");
    }
    let limits = ruled(Measure::Requests, Per::Minute, 60);
    limits.seen(std::iter::once(&lane("fast")), |_| Some("acme/fast".to_owned()));
    assert!(limits.opens_soon(&[lane("fast")]) && !limits.opens_soon(&[lane("slow")]) && !limits.opens_soon(&[]));
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_with_too_much_to_do_gets_what_its_lanes_may_take_together() {
    let limits = Limits::new();
    let (fast, other) = (lane("fast"), lane("other"));
    let begin = || limits.admit_call(&fast, "acme/fast", Counts::default()).unwrap();
    let calls: Vec<_> = (0..20).map(|_| begin()).collect();
    assert!(!limits.wants_lanes() && limits.caps().is_empty() && limits.expect(&fast).is_none());
    limits.admit(&other, "mock").unwrap().report(JobId::fresh(), &answered(1));
    sleep(SECOND).await;
    for (n, call) in calls.into_iter().enumerate() {
        let full = Failure { status_code: Some(529), ..Failure::new(FailureClass::Capacity, "overloaded_error", "") };
        call.report(JobId::fresh(), &if n % 3 == 0 { Outcome::Failure(full) } else { answered(1) });
    }
    assert!(limits.wants_lanes());
    limits.seen([&fast, &other].into_iter(), |_| None);
    assert_eq!(limits.caps(), [(fast.clone(), 10)], "others are not bounded");
    assert!(limits.held().is_empty(), "nothing is held back");
    let bounded = || limits.bounded().into_iter().map(|bounded| (bounded.key, bounded.at_once)).collect::<Vec<_>>();
    assert_eq!(bounded(), [("acme/fast".to_owned(), 10)]);
    let expected: Vec<_> = (0..4).map(|_| limits.expect(&fast).unwrap()).collect();
    let running: Vec<_> = (0..5).map(|_| begin()).collect();
    assert_eq!(limits.caps(), [(fast.clone(), 1)], "what is leased counts like what runs");
    drop(expected);
    drop(running);
    assert_eq!(limits.room(&fast), 10);
    let ledger = Memory::new();
    with(&ledger, 0.125, &[&limits], async {
        sleep(SECOND).await;
        change(&ledger, "acme/fast", Pool::release).await.unwrap();
        sleep(6 * SECOND).await;
    })
    .await;
    assert!(limits.caps().is_empty() && bounded().is_empty(), "a person knows better");
}
