//! What a worker reports of the limit keys that hold its jobs back, and when.

use std::sync::atomic::AtomicBool;

use promptq_common::ledger::HeldKey;
use promptq_common::limits::{Cap, Measure, Per, Rule};

use super::*;

async fn held(rig: &Rig) -> Vec<HeldKey> {
    rig.broker.ledger().workers().await.unwrap().remove(0).held
}

#[tokio::test(start_paused = true)]
async fn an_account_that_fails_is_reported_soon_with_its_lanes_and_so_is_its_recovery() {
    let mut rig = Rig::new();
    let fails = Arc::new(AtomicBool::new(true));
    let seen = Arc::clone(&fails);
    let runs = move |_: &Job, _: &RunContext| {
        if seen.load(Ordering::SeqCst) { failure(FailureClass::Account, 401) } else { Play::Answer("ok".into()) }
    };
    rig.runs("m", Scripted::new("acme/m", runs));
    let ids = rig.submit("m", 3).await;
    rig.start();
    let soon = Duration::from_millis(2_100);
    rig.shows(|status| !status.blocked.is_empty()).await;
    sleep(soon).await;
    let [told] = held(&rig).await.try_into().unwrap();
    assert_eq!(
        (told.key.as_str(), told.class, told.detail.as_str()),
        ("acme", FailureClass::Account, "scripted: as scripted")
    );
    assert_eq!(told.lanes, [(Queue::standard(), Some("m".to_owned()))]);
    assert!(told.until > told.since);
    fails.store(false, Ordering::SeqCst);
    rig.shows(|status| status.blocked.is_empty()).await;
    sleep(soon).await;
    assert_eq!(held(&rig).await, []);
    assert_eq!(rig.ends(&ids).await, [End::Succeeded; 3]);
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_binds_is_reported_under_its_rule() {
    let mut rig = Rig::new();
    let cap = Cap { measure: Measure::Requests, per: Per::Minute, most: 60 };
    rig.settings.limits = vec![Rule { key: "acme".into(), caps: vec![cap], adaptive: false }];
    rig.runs("m", Scripted::new("acme/m", |_, _| Play::Answer("ok".into())));
    rig.submit("m", 200).await;
    rig.start();
    rig.until(async || !rig.broker.ledger().workers().await.unwrap().is_empty() && !held(&rig).await.is_empty()).await;
    let [told] = held(&rig).await.try_into().unwrap();
    assert_eq!((told.key.as_str(), told.class), ("acme", FailureClass::Throttled));
    assert!(told.detail.starts_with("all of 60 requests/min is used"), "{}", told.detail);
    assert_eq!(told.cap, Some(cap));
    assert_eq!(told.lanes, [(Queue::standard(), Some("m".to_owned()))]);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_with_too_much_to_do_is_reported_with_how_many_calls_it_gets() {
    let mut rig = Rig::new();
    rig.settings.concurrency = 64;
    let mut runner = Scripted::new("acme/m", |_, _| Play::After(Duration::from_secs(1)));
    runner.takes = Some(8);
    rig.runs("m", runner);
    rig.submit("m", 2_000).await;
    rig.start();
    let bounded = async || {
        let workers = rig.broker.ledger().workers().await.unwrap();
        workers.into_iter().flat_map(|worker| worker.held).find(|held| held.at_once.is_some())
    };
    rig.until(async || bounded().await.is_some()).await;
    let told = bounded().await.unwrap();
    assert_eq!((told.key.as_str(), told.class), ("acme/m", FailureClass::Capacity));
    assert!(told.at_once.is_some_and(|most| most <= 32), "{told:?}");
    assert_eq!(told.lanes, [(Queue::standard(), Some("m".to_owned()))]);
}
