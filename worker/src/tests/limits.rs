//! What holds lanes back, and what does not.

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
    let down = Arc::new(std::sync::atomic::AtomicBool::new(true));
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
