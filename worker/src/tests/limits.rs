//! What holds lanes back, and what does not.

use std::sync::atomic::AtomicBool;

use promptq_common::limits::{Cap, Heard, Measure, Per, Pool, Rule, change};

use crate::StopReason;
use crate::status::BlockedBy;

use super::*;

#[tokio::test(start_paused = true)]
async fn a_rate_limit_closes_its_lane_while_another_runs_on() {
    let mut rig = Rig::new();
    let limited = AtomicU32::new(0);
    let slow = rig.runs(
        "slow",
        Scripted::new("slow", move |_, _| {
            if limited.fetch_add(1, Ordering::SeqCst) > 0 {
                return Play::Answer("ok".into());
            }
            let mut failure = Failure::new(FailureClass::Throttled, "rate_limit", "slow down");
            failure.retry_after = Some(Duration::from_secs(300));
            Play::Fail(failure)
        }),
    );
    let quick = rig.runs("quick", Scripted::new("quick", |_, _| Play::Answer("ok".into())));
    let first = rig.submit("slow", 1).await;
    rig.start();
    rig.until(async || slow.started() == 1).await;
    let status = rig.shows(|status| !status.blocked.is_empty()).await;
    let by = BlockedBy::Limit { key: "slow".into(), class: FailureClass::Throttled };
    assert_eq!(status.blocked[0].by, by);
    let more = rig.submit("slow", 20).await;
    let others = rig.submit("quick", 20).await;
    assert_eq!(rig.ends(&others).await, [End::Succeeded; 20]);
    sleep(Duration::from_secs(200)).await;
    let released = rig.board.now().finished.released;
    assert_eq!((slow.started(), quick.started(), released), (1, 20, 1), "nothing is leased from a closed lane");
    assert_eq!(rig.view(first[0]).await.attempts, 0);
    assert!(rig.view(first[0]).await.hold.is_some());
    assert_eq!(rig.ends(&more).await, [End::Succeeded; 20]);
    assert_eq!(rig.ends(&first).await, [End::Succeeded]);
    assert_eq!(rig.record(first[0]).await.attempts, 1, "being throttled spends nothing");
    assert!(rig.faults.woken.load(Ordering::SeqCst) > 0, "held jobs are woken in one step");
}

#[tokio::test(start_paused = true)]
async fn an_outage_spends_no_more_attempts_once_it_is_seen_and_is_probed() {
    let mut rig = Rig::new();
    rig.settings.concurrency = 4;
    let down = Arc::new(AtomicBool::new(true));
    let seen = Arc::clone(&down);
    let runner = rig.runs(
        "m",
        Scripted::new("m", move |_, _| {
            if seen.load(Ordering::SeqCst) { failure(FailureClass::Transient, 503) } else { Play::Answer("ok".into()) }
        }),
    );
    let ids = rig.submit("m", 50).await;
    rig.start();
    sleep(Duration::from_secs(1_200)).await;
    let calls = runner.started();
    assert!((20..=40).contains(&calls), "probes come one at a time, up to a minute apart: {calls}");
    let status = rig.board.now();
    let by = BlockedBy::Limit { key: "m".into(), class: FailureClass::Capacity };
    assert_eq!(status.blocked[0].by, by);
    let later = promptq_common::time::Timestamp::now() + Duration::from_secs(60);
    assert!(status.stuck(Duration::from_secs(60), later).is_some(), "{status:?}");
    let mut spent = 0;
    for id in &ids {
        spent += rig.view(*id).await.attempts;
    }
    assert!(spent <= 8, "only what ran before the breaker saw it: {spent}");
    down.store(false, Ordering::SeqCst);
    assert_eq!(rig.ends(&ids).await, [End::Succeeded; 50]);
    rig.shows(|status| status.blocked.is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn an_account_that_does_not_work_is_probed_every_ten_minutes() {
    let mut rig = Rig::new();
    let runner = rig.runs("m", Scripted::new("m", |_, _| failure(FailureClass::Account, 401)));
    rig.settings.concurrency = 1;
    rig.submit("m", 5).await;
    rig.start();
    sleep(Duration::from_secs(500)).await;
    assert_eq!(runner.started(), 1);
    sleep(Duration::from_secs(3_000)).await;
    assert!((5..=6).contains(&runner.started()), "{}", runner.started());
}

#[tokio::test(start_paused = true)]
async fn one_job_alone_probes_its_account_in_time_and_a_new_worker_tries_at_once() {
    let mut rig = Rig::new();
    let runner = rig.runs("m", Scripted::new("m", |_, _| failure(FailureClass::Account, 401)));
    let ids = rig.submit("m", 1).await;
    rig.start();
    sleep(Duration::from_secs(2_450)).await;
    assert_eq!((runner.started(), rig.view(ids[0]).await.attempts), (5, 0));
    rig.drain().await;
    let mended = rig.runs("m", Scripted::new("m", |_, _| Play::Answer("ok".into())));
    rig.stop = Stop::new();
    rig.start();
    let started = tokio::time::Instant::now();
    assert_eq!(rig.ends(&ids).await, [End::Succeeded]);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert_eq!(mended.started(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_account_with_a_time_is_tried_then_and_holds_no_other_model() {
    let mut rig = Rig::new();
    let limited = AtomicU32::new(0);
    let agent = rig.runs(
        "agent",
        Scripted::new("agent", move |_, _| {
            if limited.fetch_add(1, Ordering::SeqCst) > 0 {
                return Play::Answer("ok".into());
            }
            let failure = Failure::new(FailureClass::Account, "usage_limit", "it resets at one");
            Play::Fail(Failure { retry_after: Some(Duration::from_secs(3 * 3_600)), ..failure })
        }),
    );
    rig.runs("other", Scripted::new("other", |_, _| Play::Answer("ok".into())));
    let first = rig.submit("agent", 1).await;
    rig.start();
    rig.until(async || agent.started() == 1).await;
    let more = rig.submit("agent", 9).await;
    let others = rig.submit("other", 9).await;
    assert_eq!(rig.ends(&others).await, [End::Succeeded; 9]);
    sleep(Duration::from_secs(3 * 3_600 - 60)).await;
    assert_eq!((agent.started(), rig.view(first[0]).await.attempts), (1, 0));
    sleep(Duration::from_secs(120)).await;
    assert_eq!(rig.ends(&more).await, [End::Succeeded; 9]);
    assert_eq!(rig.ends(&first).await, [End::Succeeded]);
    assert_eq!(rig.record(first[0]).await.attempts, 1);
}

#[tokio::test(start_paused = true)]
async fn an_account_that_a_person_releases_is_tried_within_seconds() {
    let mut rig = Rig::new();
    let broken = Arc::new(AtomicBool::new(true));
    let seen = Arc::clone(&broken);
    let script = move |_: &Job, _: &RunContext| {
        if seen.load(Ordering::SeqCst) { failure(FailureClass::Account, 401) } else { Play::Answer("ok".into()) }
    };
    rig.runs("m", Scripted::new("m", script));
    let ids = rig.submit("m", 20).await;
    rig.start();
    let status = rig.shows(|status| !status.blocked.is_empty()).await;
    let by = BlockedBy::Limit { key: "m".into(), class: FailureClass::Account };
    assert_eq!((&status.blocked[0].by, status.blocked[0].detail.as_str()), (&by, "scripted: as scripted"));
    broken.store(false, Ordering::SeqCst);
    sleep(Duration::from_secs(30)).await;
    assert_eq!(rig.board.now().finished.succeeded, 0);
    change(rig.broker.ledger(), "m", Pool::release).await.unwrap();
    let released = tokio::time::Instant::now();
    assert_eq!(rig.ends(&ids).await, [End::Succeeded; 20]);
    assert!(released.elapsed() < Duration::from_secs(10), "{:?}", released.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_takes_few_at_once_is_not_run_over() {
    let mut rig = Rig::new();
    rig.settings.concurrency = 64;
    let mut runner = Scripted::new("m", |_, _| Play::After(Duration::from_secs(1)));
    runner.takes = Some(8);
    let runner = rig.runs("m", runner);
    let ids = rig.submit("m", 400).await;
    rig.start();
    let begun = tokio::time::Instant::now();
    assert_eq!(rig.ends(&ids).await, [End::Succeeded; 400]);
    let refused = runner.started() - 400;
    assert!(refused <= 200 && begun.elapsed() < Duration::from_secs(200), "{refused} in {:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn once_stays_for_what_is_held_back_for_a_moment_alone() {
    let mut rig = Rig::new();
    rig.settings.once = true;
    rig.settings.limits = rule(Measure::Requests, 60);
    rig.runs("m", Scripted::new("m", |_, _| Play::Answer("ok".into())));
    rig.submit("m", 90).await;
    rig.start();
    let drained = rig.left().await;
    assert_eq!((drained.reason, drained.finished.succeeded), (StopReason::Once, 90));
    let mut rig = Rig::new();
    rig.settings.once = true;
    rig.runs("m", Scripted::new("m", |_, _| failure(FailureClass::Account, 401)));
    rig.submit("m", 20).await;
    let begun = tokio::time::Instant::now();
    rig.start();
    assert_eq!(rig.left().await.reason, StopReason::Once);
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
}

fn rule(measure: Measure, most: i64) -> Vec<Rule> {
    vec![Rule { key: "m".into(), caps: vec![Cap { measure, per: Per::Minute, most }], adaptive: false }]
}

#[tokio::test(start_paused = true)]
async fn a_limit_is_kept_and_delays_no_other_lane() {
    let mut rig = Rig::new();
    rig.settings.limits = rule(Measure::Requests, 60);
    let limited = rig.runs("m", Scripted::new("m", |_, _| Play::Answer("ok".into())));
    rig.runs("free", Scripted::new("free", |_, _| Play::Answer("ok".into())));
    let many = rig.submit("m", 200).await;
    let others = rig.submit("free", 50).await;
    rig.start();
    let begun = tokio::time::Instant::now();
    assert_eq!(rig.ends(&others).await, [End::Succeeded; 50]);
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    for minute in 1..=3 {
        sleep(Duration::from_secs(60 * minute).saturating_sub(begun.elapsed())).await;
        let (least, most) = (55 * minute, 60 * minute);
        let started = u64::from(limited.started());
        assert!((least..=most).contains(&started), "{started} after {minute} minutes");
    }
    let by = BlockedBy::Limit { key: "m".into(), class: FailureClass::Throttled };
    let status = rig.shows(|status| !status.blocked.is_empty()).await;
    assert_eq!(status.blocked[0].by, by);
    assert!(status.blocked[0].detail.contains("60 requests/min"), "{:?}", status.blocked);
    assert_eq!(rig.ends(&many).await, [End::Succeeded; 200]);
    assert_eq!(rig.record(many[0]).await.attempts, 1);
}

#[tokio::test(start_paused = true)]
async fn what_a_header_says_binds_the_next_calls() {
    let mut rig = Rig::new();
    rig.settings.limits = rule(Measure::Requests, 600);
    let said = Heard { measure: Measure::Requests, per: Per::Minute, most: 60, left: None };
    let script = move |_: &Job, cx: &RunContext| {
        cx.ear.as_ref().expect("a limit is kept for it").hear([said]);
        Play::Answer("ok".into())
    };
    let limited = rig.runs("m", Scripted::new("m", script));
    rig.runs(
        "free",
        Scripted::new("free", |_, cx| {
            assert!(cx.ear.is_none(), "nobody keeps a limit for it");
            Play::Answer("ok".into())
        }),
    );
    rig.submit("m", 400).await;
    let free = rig.submit("free", 3).await;
    rig.start();
    assert_eq!(rig.ends(&free).await, [End::Succeeded; 3]);
    sleep(Duration::from_secs(120)).await;
    assert!((100..=130).contains(&limited.started()), "{}", limited.started());
}

#[tokio::test(start_paused = true)]
async fn two_workers_keep_one_limit_and_a_job_that_is_larger_never_runs() {
    let mut rig = Rig::new();
    rig.settings.limits = rule(Measure::Requests, 120);
    let runner = rig.runs("m", Scripted::new("m", |_, _| Play::After(Duration::from_secs(1))));
    rig.submit("m", 500).await;
    for _ in 0..2 {
        rig.settings.worker = WorkerId::random("w");
        rig.start();
    }
    sleep(Duration::from_secs(120)).await;
    assert!((225..=240).contains(&runner.started()), "{}", runner.started());
    rig.stop.drain();
    rig.left().await;
    rig.left().await;
    rig.settings.limits = rule(Measure::InputTokens, 1);
    rig.stop = Stop::new();
    let large = job("m", "more than one token");
    rig.broker.purge(&Queue::standard()).await.unwrap();
    rig.broker.enqueue(std::slice::from_ref(&large)).await.unwrap();
    rig.start();
    assert_eq!(rig.ends(&[large.id]).await, [End::Dead]);
    let cause = rig.record(large.id).await.cause.unwrap();
    assert_eq!(cause.code, "larger_than_limit");
    assert!(cause.detail.contains("1 input_tokens/min"), "{}", cause.detail);
}

#[tokio::test(start_paused = true)]
async fn nothing_new_is_leased_while_settling_fails() {
    let mut rig = Rig::new();
    rig.settings.concurrency = 4;
    let runner = rig.runs("m", Scripted::new("m", |_, _| Play::After(Duration::from_secs(2))));
    Faults::set(&rig.faults.settle, true);
    let first = rig.submit("m", 1).await;
    rig.start();
    sleep(Duration::from_secs(10)).await;
    let more = rig.submit("m", 10).await;
    sleep(Duration::from_secs(10)).await;
    assert_eq!(runner.started(), 1, "what is done must be stored first");
    assert_eq!(rig.board.now().blocked[0].by, BlockedBy::Settling);
    Faults::set(&rig.faults.settle, false);
    assert_eq!(rig.ends(&first).await, [End::Succeeded]);
    assert_eq!(rig.ends(&more).await, [End::Succeeded; 10]);
    assert_eq!(runner.started(), 11, "nothing was run twice");
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_jobs_run_at_once() {
    let mut rig = Rig::new();
    rig.settings.concurrency = 10_000;
    let runner = rig.runs("m", Scripted::new("m", |_, _| Play::After(Duration::from_secs(5))));
    let ids = rig.submit("m", 10_000).await;
    rig.start();
    rig.until(async || rig.board.now().finished.succeeded == 10_000).await;
    assert_eq!(runner.most.load(Ordering::SeqCst), 10_000);
    assert_eq!(rig.faults.beats.load(Ordering::SeqCst), 0, "short jobs cost no beat");
    assert_eq!(rig.ends(&ids[9_990..]).await, [End::Succeeded; 10]);
}
