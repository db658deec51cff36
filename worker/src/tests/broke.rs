//! Workers whose jobs wait for money alone: how soon they say so, when they leave, and what they leave behind.

use promptq_common::job::Extras;
use promptq_common::limits::{Cap, Measure, Per, Rule, change, look};
use promptq_common::price::Prices;
use promptq_common::time::Timestamp;

use super::money::{KEY, bounded, capped, half, held, put, rig, usd, used};
use super::*;
use crate::StopReason;

/// An account that may cost so much a day.
fn account(most: &str) -> Rule {
    let cap = Cap { measure: Measure::Usd, per: Per::Day, most: usd(most).as_nanos() };
    Rule { key: "acme".into(), caps: vec![cap], adaptive: false }
}

/// Jobs of a cent each at most, and half of one in the end.
async fn cents(rig: &Rig, jobs: usize) -> Vec<JobId> {
    put(rig, &(0..jobs).map(|_| bounded("m", "b", 1_000, Extras::default())).collect::<Vec<_>>()).await
}

#[tokio::test(start_paused = true)]
async fn a_worker_leaves_soon_when_its_accounts_money_alone_is_missing_and_so_does_the_next() {
    let mut rig = rig();
    let runner = half(&mut rig, "m");
    rig.settings.limits = vec![account("0.0475")];
    rig.settings.exit_when_idle = Some(Duration::from_secs(1));
    let ids = cents(&rig, 30).await;
    for _ in 0..2 {
        (rig.stop, rig.settings.worker) = (Stop::new(), WorkerId::random("w"));
        let begun = tokio::time::Instant::now();
        rig.start();
        let drained = rig.left().await;
        assert_eq!((drained.reason, drained.exit_code(), runner.started()), (StopReason::Broke, 9, 8));
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
        assert!(drained.finished.released <= 16, "few are leased in vain: {:?}", drained.finished);
    }
    let view = look(rig.broker.ledger(), "acme").await.unwrap().unwrap();
    assert_eq!(view.lacks.map(|lack| lack.least), Some(usd("0.01").as_nanos()), "told to whoever asks later");
    let raise = |pool: &mut promptq_common::limits::Pool, now| {
        pool.set(now, Measure::Usd, Per::Day, Some(usd("1").as_nanos()));
        pool.view(now).lacks
    };
    assert_eq!(change(rig.broker.ledger(), "acme", raise).await.unwrap(), None, "there is enough now");
    (rig.stop, rig.settings.worker) = (Stop::new(), WorkerId::random("w"));
    rig.start();
    assert_eq!(rig.ends(&ids).await, [End::Succeeded; 30]);
}

#[tokio::test(start_paused = true)]
async fn a_worker_told_to_run_once_leaves_with_9_where_money_alone_is_missing() {
    for (rules, extras) in [(vec![account("0.0475")], Extras::default()), (vec![], capped("0.0475"))] {
        let mut rig = rig();
        let runner = half(&mut rig, "m");
        (rig.settings.limits, rig.settings.once) = (rules, true);
        put(&rig, &(0..30).map(|_| bounded("m", "b", 1_000, extras.clone())).collect::<Vec<_>>()).await;
        let begun = tokio::time::Instant::now();
        rig.start();
        let drained = rig.left().await;
        assert_eq!((drained.reason, drained.exit_code(), runner.started()), (StopReason::Broke, 9, 8), "{extras:?}");
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_told_to_run_once_is_done_where_other_jobs_are_left_too() {
    let mut rig = rig();
    half(&mut rig, "m");
    rig.settings.once = true;
    let mut jobs: Vec<_> = (0..30).map(|_| bounded("m", "b", 1_000, capped("0.0475"))).collect();
    jobs[0].not_before = Some(Timestamp::now() + Duration::from_secs(3_600));
    put(&rig, &jobs).await;
    rig.start();
    let drained = rig.left().await;
    assert_eq!((drained.reason, drained.exit_code()), (StopReason::Once, 0), "one is to run later");
}

#[tokio::test(start_paused = true)]
async fn whether_money_alone_is_missing_is_no_guess_however_many_jobs_are_left() {
    let later = Timestamp::now() + Duration::from_secs(86_400);
    for (once, scheduled, reason) in [
        (true, true, StopReason::Once),
        (true, false, StopReason::Broke),
        (false, true, StopReason::Idle),
        (false, false, StopReason::Broke),
    ] {
        let mut rig = rig();
        half(&mut rig, "m");
        rig.settings.once = once;
        rig.settings.exit_when_idle = (!once).then_some(Duration::from_secs(1));
        let over = (0..20).map(|_| bounded("m", "b", 1_000, capped("0.0475")));
        let many = (0..2_000).map(|_| Job {
            not_before: scheduled.then_some(later),
            ..bounded("m", if scheduled { "c" } else { "b" }, 1_000, capped("0.0475"))
        });
        for some in over.chain(many).collect::<Vec<_>>().chunks(1_000) {
            put(&rig, some).await;
        }
        rig.start();
        let drained = rig.left().await;
        assert_eq!(drained.reason, reason, "once: {once}, scheduled: {scheduled}");
        assert_eq!(drained.exit_code(), if scheduled { 0 } else { 9 });
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_leaves_what_waits_for_a_price_as_it_does_what_waits_for_money() {
    let mut rig = rig();
    rig.settings.prices = Prices::new([], BTreeMap::new());
    half(&mut rig, "m");
    rig.settings.exit_when_idle = Some(Duration::from_secs(1));
    put(&rig, &[bounded("m", "b", 1_000, capped("1"))]).await;
    let begun = tokio::time::Instant::now();
    rig.start();
    assert_eq!(rig.left().await.reason, StopReason::Broke);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_leaves_when_idle_leaves_what_only_money_helps_and_says_so() {
    let budget = Cap { measure: Measure::Usd, per: Per::Day, most: 50_000_000 };
    for (budget, extras) in [(Some(budget), Extras::default()), (None, capped("0.05"))] {
        let mut rig = rig();
        half(&mut rig, "m");
        rig.settings.exit_when_idle = Some(Duration::from_secs(5));
        rig.settings.budgets.extend(budget.map(|cap| (Queue::standard(), cap)));
        let jobs: Vec<_> = (0..60).map(|_| bounded("m", "b", 1_000, extras.clone())).collect();
        put(&rig, &jobs).await;
        let begun = tokio::time::Instant::now();
        rig.start();
        let drained = rig.left().await;
        assert_eq!((drained.reason, drained.exit_code()), (StopReason::Broke, 9), "{budget:?}");
        assert!((8..=10).contains(&drained.finished.succeeded), "{drained:?}");
        assert!(begun.elapsed() < Duration::from_secs(45), "not a lease later: {:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_stays_for_what_waits_for_more_than_money() {
    let mut rig = rig();
    half(&mut rig, "m");
    rig.settings.exit_when_idle = Some(Duration::from_secs(5));
    let budget = Cap { measure: Measure::Usd, per: Per::Day, most: 50_000_000 };
    rig.settings.budgets.insert(Queue::standard(), budget);
    let other = Queue::new("other").unwrap();
    rig.settings.queues.push((other.clone(), 1));
    let mended_at = tokio::time::Instant::now() + Duration::from_secs(400);
    let refused = move |_: &Job, _: &RunContext| {
        if tokio::time::Instant::now() < mended_at {
            failure(FailureClass::Account, 401)
        } else {
            Play::Answer("ok".into())
        }
    };
    rig.runs("refused", Scripted::new("dead/m", refused));
    put(&rig, &(0..60).map(|_| bounded("m", "b", 1_000, Extras::default())).collect::<Vec<_>>()).await;
    let waiting: Vec<_> = (0..20).map(|_| Job { queue: other.clone(), ..job("refused", "x") }).collect();
    let ids = put(&rig, &waiting).await;
    rig.start();
    sleep(Duration::from_secs(300)).await;
    assert!(rig.workers.try_join_next().is_none(), "an account may be mended");
    assert_eq!(rig.ends(&ids).await, [End::Succeeded; 20]);
    assert_eq!(rig.left().await.reason, StopReason::Broke);
}

#[tokio::test(start_paused = true)]
async fn an_accounts_cap_counts_beside_what_its_models_may_use() {
    let mut rig = rig();
    let rule = |key: &str, measure, per, most| Rule {
        key: key.to_owned(),
        caps: vec![Cap { measure, per, most }],
        adaptive: false,
    };
    rig.settings.limits = vec![
        rule("acme", Measure::Usd, Per::Day, usd("0.05").as_nanos()),
        rule(KEY, Measure::Requests, Per::Minute, 6_000),
    ];
    let runner = half(&mut rig, "m");
    let jobs: Vec<_> = (0..40).map(|_| bounded("m", "b", 1_000, Extras::default())).collect();
    put(&rig, &jobs).await;
    rig.start();
    let status = rig.shows(|status| !status.spent.is_empty()).await;
    assert_eq!((status.spent.as_slice(), &status.blocked[0].by), (&["acme".to_owned()][..], &held("acme")));
    // A cent each at most, and half of one in the end: the tenth could be one too many.
    sleep(Duration::from_secs(30)).await;
    assert_eq!((runner.started(), used(&rig, "acme").await), (9, (usd("0.045").as_nanos(), 0)));
    assert_eq!(used(&rig, KEY).await.0, 9, "what was not called took nothing of its model's limit");
}
