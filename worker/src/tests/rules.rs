//! An account's limits beside its models', and rate limits that no rule tells of, as whole workers keep them.

use std::sync::atomic::AtomicBool;

use promptq_common::limits::{Cap, Measure, Per, Pool, Rule, change, look};

use super::*;
use crate::status::BlockedBy;

fn rule(key: &str, measure: Measure, per: Per, most: i64) -> Rule {
    Rule { key: key.to_owned(), caps: vec![Cap { measure, per, most }], adaptive: false }
}

fn held(key: &str) -> BlockedBy {
    BlockedBy::Limit { key: key.into(), class: FailureClass::Throttled }
}

fn shows(status: &Status, key: &str) -> bool {
    status.blocked.iter().any(|blocked| blocked.by == held(key))
}

#[tokio::test(start_paused = true)]
async fn a_model_keeps_to_its_own_limit_and_all_of_them_to_their_accounts() {
    let mut rig = Rig::new();
    rig.settings.limits =
        vec![rule("acme", Measure::Requests, Per::Minute, 120), rule("acme/slow", Measure::Requests, Per::Minute, 30)];
    let slow = rig.runs("slow", Scripted::new("acme/slow", |_, _| Play::Answer("ok".into())));
    let fast = rig.runs("fast", Scripted::new("acme/fast", |_, _| Play::Answer("ok".into())));
    let first = rig.submit("slow", 100).await;
    rig.start();
    sleep(Duration::from_secs(60)).await;
    assert!((27..=30).contains(&slow.started()), "{}", slow.started());
    let status = rig.shows(|status| !status.blocked.is_empty()).await;
    assert!(shows(&status, "acme/slow") && !shows(&status, "acme"), "the one that binds: {:?}", status.blocked);
    rig.submit("fast", 400).await;
    let begun = slow.started();
    sleep(Duration::from_secs(120)).await;
    let (fast, slow) = (fast.started(), slow.started() - begun);
    assert!((215..=240).contains(&(fast + slow)) && (50..=60).contains(&slow), "{fast} and {slow}");
    let status = rig.shows(|status| shows(status, "acme")).await;
    assert!(status.blocked.iter().any(|blocked| blocked.detail.contains("120 requests/min")), "{:?}", status.blocked);
    assert_eq!(rig.ends(&first).await, [End::Succeeded; 100]);
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_of_a_model_without_a_rule_is_the_fleets_and_a_person_ends_it() {
    let mut rig = Rig::new();
    let (limited, refused) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let (seen, counted) = (Arc::clone(&limited), Arc::clone(&refused));
    let runner = rig.runs(
        "m",
        Scripted::new("acme/m", move |_, _| {
            if !seen.load(Ordering::SeqCst) {
                return Play::After(Duration::from_secs(1));
            }
            counted.fetch_add(1, Ordering::SeqCst);
            let mut failure = Failure::new(FailureClass::Throttled, "rate_limit", "slow down");
            failure.retry_after = Some(Duration::from_secs(300));
            Play::Fail(failure)
        }),
    );
    rig.settings.concurrency = 2;
    rig.submit("m", 2_000).await;
    for _ in 0..3 {
        rig.settings.worker = WorkerId::random("w");
        rig.start();
    }
    rig.until(async || runner.started() > 20).await;
    limited.store(true, Ordering::SeqCst);
    sleep(Duration::from_secs(20)).await;
    let first = refused.load(Ordering::SeqCst);
    assert!((3..=6).contains(&first), "each meets its first, what it had under way included: {first}");
    let view = look(rig.broker.ledger(), "acme/m").await.unwrap().unwrap();
    assert!(view.frozen_for > 270_000 && view.why.as_deref() == Some("rate_limit: slow down"), "{view:?}");
    limited.store(false, Ordering::SeqCst);
    change(rig.broker.ledger(), "acme/m", Pool::release).await.unwrap();
    let before = runner.started();
    sleep(Duration::from_secs(15)).await;
    assert!(runner.started() >= before + 30, "they go on: {}", runner.started() - before);
    // Now they know the key: whoever is refused next tells the others before they are.
    refused.store(0, Ordering::SeqCst);
    limited.store(true, Ordering::SeqCst);
    rig.until(async || refused.load(Ordering::SeqCst) > 0).await;
    limited.store(false, Ordering::SeqCst);
    sleep(Duration::from_secs(4)).await;
    let before = runner.started();
    sleep(Duration::from_secs(100)).await;
    assert_eq!(runner.started(), before, "one was refused, and nobody calls");
}
