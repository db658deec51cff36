//! Cases: how a claim ends, and what one that is no longer the job's may still do.

use std::time::Duration;

use promptq_common::broker::{Beat, Claim, HoldKey, Settled, Verdict};
use promptq_common::ledger::{Announced, Opened, Raised};
use promptq_common::record::{End, State};
use promptq_tests::backends::{Fixture, LONG};
use promptq_tests::fixture::{self, COST, USAGE, batch, job, job_of, release};
use promptq_tests::messages::{Carrier, ended};
use promptq_tests::steps::{record, recount, results, see, state, view};

use super::opening::{overtaken, told_of};

pub(crate) async fn a_success_is_recorded_counted_and_ends_the_claim(f: Fixture) {
    let by = Carrier::on(&f);
    let message = by.register(&job_of(&batch("b"))).await;
    let run = by.run(&message).await;
    let verdict = fixture::end(&message.head, run.lease, End::Succeeded);
    assert_eq!(run.settle(&verdict).await, Settled::Applied);
    let Verdict::End(written) = verdict else { unreachable!("an end") };
    assert_eq!(record(&f.broker, message.head.id).await, *written);
    assert_eq!(by.claims.beat(&message.head, run.lease, LONG).await.unwrap(), Beat::Ended);
    let found = view(&f.broker, &batch("b")).await;
    assert_eq!((found.counts.succeeded, found.counts.total, found.usage, found.cost), (1, 1, USAGE, Some(COST)));
    assert_eq!(results(&f.broker, &batch("b")).await.len(), 1);
}

pub(crate) async fn repeating_an_end_has_no_second_effect(f: Fixture) {
    for how in End::ALL {
        let by = Carrier::on(&f);
        let message = by.register(&job_of(&batch("b"))).await;
        let run = by.run(&message).await;
        let verdict = fixture::end(&message.head, run.lease, how);
        assert_eq!(run.settle(&verdict).await, Settled::Applied);
        let before = (view(&f.broker, &batch("b")).await, see(&f.broker, message.head.id).await);
        assert_eq!(run.settle(&verdict).await, Settled::Applied, "{how}");
        assert_eq!((view(&f.broker, &batch("b")).await, see(&f.broker, message.head.id).await), before, "{how}");
    }
    recount(&f.broker, &batch("b")).await;
}

pub(crate) async fn a_retry_keeps_its_attempt_and_history(f: Fixture) {
    let by = Carrier::on(&f);
    let mut message = by.register(&job_of(&batch("b"))).await;
    for attempts in 1..=3 {
        let run = by.run(&message).await;
        let (copy, verdict) = run.retry(LONG);
        assert_eq!(run.settle(&verdict).await, Settled::Applied);
        let seen = see(&f.broker, message.head.id).await;
        assert_eq!((seen.state, seen.attempts, seen.deaths), (State::Retrying, attempts, 0));
        assert!(seen.due.is_some());
        message = copy;
    }
    // The copy is what counts: it may surface earlier or later than the ledger thinks.
    by.run(&message).await.end(End::Succeeded).await;
    let record = record(&f.broker, message.head.id).await;
    assert_eq!((record.attempts, record.history.recent.len()), (4, 4));
    let found = view(&f.broker, &batch("b")).await;
    assert_eq!((found.usage.input_tokens, found.cost.unwrap().as_nanos()), (4 * 7, 4 * COST.as_nanos()));
    recount(&f.broker, &batch("b")).await;
}

pub(crate) async fn repeating_a_retry_spends_one_attempt(f: Fixture) {
    let by = Carrier::on(&f);
    let message = by.register(&job_of(&batch("b"))).await;
    let run = by.run(&message).await;
    let (copy, verdict) = run.retry(Duration::ZERO);
    assert_eq!(run.settle(&verdict).await, Settled::Applied);
    assert_eq!(run.settle(&verdict).await, Settled::Applied);
    assert_eq!(see(&f.broker, message.head.id).await.attempts, 1);
    let second = by.run(&copy).await;
    assert!(matches!(run.settle(&verdict).await, Settled::Applied | Settled::Stale));
    assert_eq!(by.claims.beat(&copy.head, second.lease, LONG).await.unwrap(), Beat::Kept);
    assert_eq!(see(&f.broker, message.head.id).await.attempts, 1);
}

pub(crate) async fn a_release_spends_nothing(f: Fixture) {
    let by = Carrier::on(&f);
    let message = by.register(&job_of(&batch("b"))).await;
    for _ in 0..3 {
        let run = by.run(&message).await;
        assert_eq!(run.settle(&release()).await, Settled::Applied);
        assert_eq!(run.settle(&release()).await, Settled::Applied);
        let seen = see(&f.broker, message.head.id).await;
        assert_eq!((seen.state, seen.attempts, seen.deaths, seen.due), (State::Queued, 0, 0, None));
    }
    let key = HoldKey::Limit("acme/gpt".into());
    let held = Verdict::Release { after: LONG, hold: Some(key.clone()) };
    by.run(&message).await.settle(&held).await;
    let seen = see(&f.broker, message.head.id).await;
    assert_eq!((seen.state, seen.hold, seen.due.is_some()), (State::Queued, Some(key), true));
    by.run(&message).await;
    recount(&f.broker, &batch("b")).await;
}

pub(crate) async fn a_late_success_ends_a_job_that_waits(f: Fixture) {
    let by = Carrier::on(&f);
    let (late, running) = overtaken(&by, &f).await;
    running.retries().await;
    assert_eq!(late.end(End::Succeeded).await, Settled::Kept);
    assert_eq!(late.end(End::Succeeded).await, Settled::Kept);
    assert_eq!(by.told(&late.message).await, told_of(End::Succeeded));
    assert_eq!(record(&f.broker, late.message.head.id).await.lease, late.lease);
    recount(&f.broker, &batch("b")).await;
}

pub(crate) async fn a_late_success_ends_a_job_that_another_runs(f: Fixture) {
    let by = Carrier::on(&f);
    let (late, running) = overtaken(&by, &f).await;
    assert_eq!(late.end(End::Succeeded).await, Settled::Kept);
    assert_eq!(by.claims.beat(&running.message.head, running.lease, LONG).await.unwrap(), Beat::Ended);
    assert_eq!(running.end(End::Dead).await, Settled::Stale);
    assert_eq!(running.end(End::Succeeded).await, Settled::Stale);
    assert_eq!(record(&f.broker, late.message.head.id).await.lease, late.lease);
    recount(&f.broker, &batch("b")).await;
}

pub(crate) async fn a_late_success_replaces_every_other_end(f: Fixture) {
    let by = Carrier::on(&f);
    for how in [End::Dead, End::Cancelled, End::Expired] {
        let (late, running) = overtaken(&by, &f).await;
        assert_eq!(running.end(how).await, Settled::Applied);
        assert_eq!(late.end(End::Succeeded).await, Settled::Kept);
        assert_eq!(state(&f.broker, late.message.head.id).await, State::Succeeded);
        assert!(f.ledger().dead_groups(None).await.unwrap().is_empty());
        assert!(f.ledger().payload(late.message.head.id).await.unwrap().is_none());
        recount(&f.broker, &batch("b")).await;
    }
}

pub(crate) async fn a_late_success_of_an_earlier_epoch_is_kept(f: Fixture) {
    let by = Carrier::on(&f);
    let (late, running) = overtaken(&by, &f).await;
    running.end(End::Dead).await;
    let anew = by.raise_anew(&late.message).await;
    assert_eq!(late.end(End::Succeeded).await, Settled::Kept);
    assert_eq!(by.told(&anew).await.claim, Claim::Ended(State::Succeeded));
    by.claims.announced(&[Announced::of(&record(&f.broker, anew.head.id).await)]).await.unwrap();
    assert_eq!(by.told(&anew).await, ended(End::Succeeded));
    recount(&f.broker, &batch("b")).await;
}

pub(crate) async fn a_stale_settle_changes_nothing(f: Fixture) {
    let by = Carrier::on(&f);
    let (late, running) = overtaken(&by, &f).await;
    let before = see(&f.broker, late.message.head.id).await;
    for how in [End::Dead, End::Cancelled, End::Expired] {
        assert_eq!(late.end(how).await, Settled::Stale);
    }
    assert_eq!(late.settle(&late.retry(Duration::ZERO).1).await, Settled::Stale);
    assert_eq!(late.settle(&release()).await, Settled::Stale);
    assert_eq!(see(&f.broker, late.message.head.id).await, before);
    assert_eq!(running.end(End::Succeeded).await, Settled::Applied);
    assert!(f.ledger().payload(late.message.head.id).await.unwrap().is_none());
    recount(&f.broker, &batch("b")).await;
}

pub(crate) async fn a_success_is_never_replaced(f: Fixture) {
    let by = Carrier::on(&f);
    let (late, running) = overtaken(&by, &f).await;
    running.end(End::Succeeded).await;
    for how in End::ALL {
        assert_eq!(late.end(how).await, Settled::Stale, "{how}");
    }
    assert_eq!(record(&f.broker, late.message.head.id).await.lease, running.lease);
    recount(&f.broker, &batch("b")).await;
}

pub(crate) async fn an_end_is_announced_once_and_a_later_one_again(f: Fixture) {
    let by = Carrier::on(&f);
    let (late, running) = overtaken(&by, &f).await;
    running.end(End::Dead).await;
    assert_eq!(by.told(&late.message).await, told_of(End::Dead));
    let dead = record(&f.broker, late.message.head.id).await;
    by.claims.announced(&[Announced::of(&dead)]).await.unwrap();
    assert_eq!(by.told(&late.message).await, ended(End::Dead));
    late.end(End::Succeeded).await;
    // Whoever announced the earlier end only now has not announced this one.
    by.claims.announced(&[Announced::of(&dead)]).await.unwrap();
    assert_eq!(by.told(&late.message).await, told_of(End::Succeeded));
    by.claims.announced(&[Announced::of(&record(&f.broker, late.message.head.id).await)]).await.unwrap();
    assert_eq!(by.told(&late.message).await, ended(End::Succeeded));
}

pub(crate) async fn a_dead_job_keeps_its_payload(f: Fixture) {
    let by = Carrier::on(&f);
    for (key, text) in [("short", "hi".to_owned()), ("long", "hi ".repeat(5_000))] {
        let message = by.register(&fixture::keyed(key, &text)).await;
        assert!(f.ledger().payload(message.head.id).await.unwrap().is_none());
        by.run(&message).await.end(End::Dead).await;
        assert_eq!(f.ledger().payload(message.head.id).await.unwrap(), Some(message.payload.clone()));
    }
    let groups = f.ledger().dead_groups(None).await.unwrap();
    assert_eq!((groups.len(), groups[0].count), (1, 2));
}

pub(crate) async fn a_payload_is_not_kept_of_a_success(f: Fixture) {
    let by = Carrier::on(&f);
    let message = by.register(&job()).await;
    let run = by.run(&message).await;
    run.end(End::Succeeded).await;
    assert!(f.ledger().payload(message.head.id).await.unwrap().is_none());
    assert!(by.claims.keep(&message.head, &message.payload).await.unwrap());
    assert!(f.ledger().payload(message.head.id).await.unwrap().is_none());
}

pub(crate) async fn a_job_that_died_without_its_payload_is_not_among_the_dead(f: Fixture) {
    let by = Carrier::on(&f);
    let message = by.register(&job_of(&batch("b"))).await;
    let run = by.run(&message).await;
    let verdict = fixture::end(&message.head, run.lease, End::Dead);
    by.claims.settle(&message.head, run.lease, &verdict, None).await.unwrap();
    assert!(f.ledger().dead_groups(None).await.unwrap().is_empty());
    assert_eq!(by.claims.standing(&message.head.lane.queue).await.unwrap().depth.dead, 0);
    assert_eq!(by.told(&message).await, told_of(End::Dead), "what ran is not asked for its payload again");
    assert_eq!(by.raise(&message).await, Raised::Gone);
    assert_eq!(recount(&f.broker, &batch("b")).await.dead, 1);
}

pub(crate) async fn batch_counts_follow_every_path(f: Fixture) {
    let by = Carrier::on(&f);
    let mut last = None;
    for how in End::ALL {
        let message = by.register(&job_of(&batch("b"))).await;
        let copy = by.run(&message).await.retries().await;
        recount(&f.broker, &batch("b")).await;
        let run = by.run(&copy).await;
        recount(&f.broker, &batch("b")).await;
        run.settle(&release()).await;
        by.run(&copy).await.end(how).await;
        recount(&f.broker, &batch("b")).await;
        last = Some(copy);
    }
    let expired = last.unwrap();
    let anew = by.raise_anew(&expired).await;
    let counts = view(&f.broker, &batch("b")).await.counts;
    assert_eq!((counts.total, counts.queued, counts.expired), (4, 1, 0));
    let Opened { claim, .. } = by.told(&expired).await;
    assert_eq!(claim, Claim::Stale);
    by.run(&anew).await.end(End::Succeeded).await;
    let counts = view(&f.broker, &batch("b")).await.counts;
    assert_eq!((counts.succeeded, counts.dead, counts.cancelled, counts.expired), (2, 1, 1, 0));
}
