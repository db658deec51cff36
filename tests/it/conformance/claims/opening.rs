//! Cases: which copy of a message may run, and what becomes of claims without an end.

use std::time::Duration;

use promptq_common::broker::{Beat, Claim, Envelope, LeaseId, Retention, Settled, WorkerId};
use promptq_common::job::Job;
use promptq_common::ledger::Opened;
use promptq_common::outcome::FailureClass;
use promptq_common::record::{End, State};
use promptq_common::time::Timestamp;
use promptq_tests::backends::{Fixture, LONG, SHORT};
use promptq_tests::fixture::{attempt, batch, job, job_of, keyed};
use promptq_tests::messages::{Carrier, Run, ended, message, run_out, stale};
use promptq_tests::steps::{eventually, recount, see, state};

/// Runs a message once its claim has run out, and says after how many deaths. Nothing else may be told of it before.
pub(super) async fn run_when_out<'a>(by: &'a Carrier, message: &Envelope, deaths: u32) -> Run<'a> {
    let opened = eventually("the claim has run out", async || {
        let (lease, opened) = by.open_for(message, LONG).await;
        (!matches!(opened.claim, Claim::Taken { .. })).then_some((lease, opened))
    })
    .await;
    assert_eq!(opened.1.claim, Claim::Fresh { deaths });
    by.again(message, opened.0)
}

pub(crate) async fn a_job_never_seen_is_entered_and_may_run(f: Fixture) {
    let by = Carrier::on(&f);
    let message = message(&Job { custom_id: Some("mine".into()), ..job() });
    let run = by.run(&message).await;
    let seen = see(&f.broker, message.head.id).await;
    assert_eq!((seen.state, seen.worker.as_deref()), (State::Running, Some(by.worker.as_str())));
    assert_eq!((seen.custom_id.as_deref(), seen.epoch, seen.attempts, seen.deaths), (Some("mine"), 0, 0, 0));
    assert_eq!(run.end(End::Succeeded).await, Settled::Applied);
    assert_eq!(state(&f.broker, message.head.id).await, State::Succeeded);
}

pub(crate) async fn a_second_copy_is_told_until_when_it_is_taken(f: Fixture) {
    let by = Carrier::on(&f);
    let message = by.register(&job()).await;
    let before = Timestamp::now();
    let _run = by.run(&message).await;
    let Claim::Taken { until } = by.told(&message).await.claim else { panic!("it may not run") };
    // Two clocks.
    let left = until.since(before);
    assert!(left.abs_diff(LONG) < Duration::from_secs(5), "{left:?}");
    assert_eq!(see(&f.broker, message.head.id).await.deaths, 0);
}

pub(crate) async fn a_copy_of_an_ended_job_is_told_so(f: Fixture) {
    for how in End::ALL {
        let by = Carrier::on(&f);
        let message = by.register(&job_of(&batch("b"))).await;
        by.run(&message).await.end(how).await;
        assert_eq!(by.told(&message).await.claim, Claim::Ended(how.into()));
        assert_eq!(state(&f.broker, message.head.id).await, how.into());
    }
    recount(&f.broker, &batch("b")).await;
}

pub(crate) async fn asking_again_with_the_same_lease_is_the_same_claim(f: Fixture) {
    let by = Carrier::on(&f);
    let message = by.register(&job_of(&batch("b"))).await;
    let run = by.run_for(&message, SHORT, 0).await;
    for _ in 0..3 {
        let again = by.open_as(&message, run.lease, SHORT).await;
        assert_eq!(again.claim, Claim::Fresh { deaths: 0 });
    }
    // Also when the answer was so long in coming that the claim has run out meanwhile.
    run_out(SHORT).await;
    let again = by.open_as(&message, run.lease, LONG).await;
    assert_eq!(again.claim, Claim::Fresh { deaths: 0 });
    assert!(matches!(by.told(&message).await.claim, Claim::Taken { .. }));
    assert_eq!(run.end(End::Succeeded).await, Settled::Applied);
    recount(&f.broker, &batch("b")).await;
}

pub(crate) async fn a_claim_that_ran_out_is_a_death(f: Fixture) {
    let by = Carrier::on(&f);
    let message = by.register(&job_of(&batch("b"))).await;
    let _lost = by.run_for(&message, SHORT, 0).await;
    let second = run_when_out(&by, &message, 1).await;
    assert_eq!(see(&f.broker, message.head.id).await.deaths, 1);
    assert_eq!(second.end(End::Succeeded).await, Settled::Applied);
    recount(&f.broker, &batch("b")).await;
}

pub(crate) async fn a_death_is_counted_once(f: Fixture) {
    let by = Carrier::on(&f);
    let message = by.register(&job()).await;
    let lost = by.run_for(&message, SHORT, 0).await;
    eventually("the claim has run out", async || {
        by.claims.sweep(&Retention::standard()).await.unwrap();
        (see(&f.broker, message.head.id).await.state == State::Queued).then_some(())
    })
    .await;
    by.claims.sweep(&Retention::standard()).await.unwrap();
    by.claims.recover(&by.worker).await.unwrap();
    assert_eq!(by.claims.beat(&message.head, lost.lease, LONG).await.unwrap(), Beat::Lost);
    let second = by.run_for(&message, SHORT, 1).await;
    second.retries().await;
    assert_eq!(see(&f.broker, message.head.id).await.deaths, 1);
}

pub(crate) async fn a_beaten_claim_does_not_run_out(f: Fixture) {
    let by = Carrier::on(&f);
    let message = by.register(&job()).await;
    let run = by.run_for(&message, SHORT, 0).await;
    let start = tokio::time::Instant::now();
    while start.elapsed() < SHORT * 3 {
        assert_eq!(by.claims.beat(&message.head, run.lease, SHORT * 2).await.unwrap(), Beat::Kept);
        assert!(matches!(by.told(&message).await.claim, Claim::Taken { .. }));
        tokio::time::sleep(SHORT / 6).await;
    }
    assert_eq!(run.end(End::Succeeded).await, Settled::Applied);
    assert_eq!(by.claims.beat(&message.head, run.lease, SHORT).await.unwrap(), Beat::Ended);
}

pub(crate) async fn a_claim_that_was_taken_over_is_lost(f: Fixture) {
    let by = Carrier::on(&f);
    let message = by.register(&job()).await;
    let lost = by.run_for(&message, SHORT, 0).await;
    let second = run_when_out(&by, &message, 1).await;
    assert_eq!(by.claims.beat(&message.head, lost.lease, LONG).await.unwrap(), Beat::Lost);
    assert_eq!(by.claims.beat(&message.head, second.lease, LONG).await.unwrap(), Beat::Kept);
}

pub(crate) async fn a_claim_that_ran_out_and_was_not_taken_over_still_counts(f: Fixture) {
    let by = Carrier::on(&f);
    let message = by.register(&job()).await;
    let slow = by.run_for(&message, SHORT, 0).await;
    run_out(SHORT).await;
    assert_eq!(slow.end(End::Dead).await, Settled::Applied);
    assert_eq!(state(&f.broker, message.head.id).await, State::Dead);
}

pub(crate) async fn a_copy_of_an_earlier_attempt_is_stale(f: Fixture) {
    let by = Carrier::on(&f);
    let message = by.register(&job()).await;
    let copy = by.run(&message).await.retries().await;
    assert_eq!(by.told(&message).await, stale());
    let run = by.run(&copy).await;
    assert_eq!(by.told(&message).await, stale());
    run.end(End::Succeeded).await;
    assert_eq!(by.told(&message).await.claim, Claim::Ended(State::Succeeded));
}

pub(crate) async fn a_copy_of_an_earlier_epoch_is_stale(f: Fixture) {
    let by = Carrier::on(&f);
    let message = by.register(&job()).await;
    by.run(&message).await.end(End::Dead).await;
    let anew = by.raise_anew(&message).await;
    assert_eq!(by.told(&message).await, stale());
    by.run(&anew).await.end(End::Dead).await;
    assert_eq!(by.told(&message).await.claim, Claim::Stale);
    assert_eq!(by.told(&anew).await.claim, Claim::Ended(State::Dead));
}

pub(crate) async fn a_retry_that_was_published_but_not_noted_runs_when_the_claim_has_run_out(f: Fixture) {
    let by = Carrier::on(&f);
    let message = by.register(&job_of(&batch("b"))).await;
    let died = by.run_for(&message, SHORT, 0).await;
    let (copy, _never_said) = died.retry(Duration::ZERO);
    assert!(matches!(by.told(&copy).await.claim, Claim::Taken { .. }));
    let run = run_when_out(&by, &copy, 1).await;
    let seen = see(&f.broker, message.head.id).await;
    assert_eq!((seen.attempts, seen.deaths), (1, 1));
    assert_eq!(by.told(&message).await, stale());
    run.end(End::Succeeded).await;
    let usage = see(&f.broker, message.head.id).await.record.unwrap().history.usage;
    assert_eq!(usage.input_tokens, 2 * 7, "what the first attempt consumed came with the copy");
    recount(&f.broker, &batch("b")).await;
}

pub(crate) async fn the_old_copy_of_a_retry_that_was_not_noted_may_run_first(f: Fixture) {
    let by = Carrier::on(&f);
    let message = by.register(&job_of(&batch("b"))).await;
    let died = by.run_for(&message, SHORT, 0).await;
    let (copy, _never_said) = died.retry(Duration::ZERO);
    let run = run_when_out(&by, &message, 1).await;
    assert!(matches!(by.told(&copy).await.claim, Claim::Taken { .. }));
    run.end(End::Succeeded).await;
    assert_eq!(by.told(&copy).await.claim, Claim::Ended(State::Succeeded));
    recount(&f.broker, &batch("b")).await;
}

pub(crate) async fn a_message_of_a_later_epoch_than_known_begins_that_epoch(f: Fixture) {
    let by = Carrier::on(&f);
    let mut message = by.register(&Job { batch: Some(batch("b")), ..keyed("k", "hi") }).await;
    let died = by.run_for(&message, SHORT, 0).await;
    run_when_out(&by, &message, 1).await.end(End::Dead).await;
    drop(died);
    message.head.epoch = 2;
    message.head.attempts = 1;
    message.head.history.push(attempt(&message.head, Some(FailureClass::Transient)));
    let run = by.run(&message).await;
    let seen = see(&f.broker, message.head.id).await;
    assert_eq!((seen.epoch, seen.attempts, seen.deaths), (2, 1, 0));
    assert!(f.ledger().dead_groups(None).await.unwrap().is_empty());
    run.end(End::Succeeded).await;
    recount(&f.broker, &batch("b")).await;
}

pub(crate) async fn a_job_past_its_deadline_ends_when_it_is_opened(f: Fixture) {
    let by = Carrier::on(&f);
    for known in [false, true] {
        let deadline = Timestamp::from_millis(Timestamp::now().as_millis() - 1_000);
        let late = Job { deadline, batch: Some(batch("b")), ..job() };
        let message = if known { by.register(&late).await } else { message(&late) };
        let told = by.told(&message).await;
        assert_eq!(told, Opened { claim: Claim::Ended(State::Expired), announce: true, keep: true });
        assert_eq!(see(&f.broker, message.head.id).await.record.unwrap().cause.unwrap().code, "deadline_passed");
    }
}

pub(crate) async fn recover_ends_a_workers_claims_with_a_death_each(f: Fixture) {
    let (by, other) = (Carrier::on(&f), Carrier::on(&f));
    let messages = [by.register(&job()).await, by.register(&job()).await, by.register(&job()).await];
    let lost = [by.run(&messages[0]).await, by.run(&messages[1]).await];
    let kept = other.run(&messages[2]).await;
    assert_eq!(other.claims.recover(&by.worker).await.unwrap(), 2);
    assert_eq!(other.claims.recover(&by.worker).await.unwrap(), 0);
    assert_eq!(other.claims.recover(&WorkerId::random("nobody")).await.unwrap(), 0);
    for (message, lost) in messages.iter().zip(&lost) {
        assert_eq!(by.claims.beat(&message.head, lost.lease, LONG).await.unwrap(), Beat::Lost);
        other.run_for(message, LONG, 1).await;
    }
    assert_eq!(other.claims.beat(&messages[2].head, kept.lease, LONG).await.unwrap(), Beat::Kept);
}

pub(crate) async fn a_sweep_ends_claims_that_ran_out(f: Fixture) {
    let by = Carrier::on(&f);
    let message = by.register(&job_of(&batch("b"))).await;
    let _lost = by.run_for(&message, SHORT, 0).await;
    assert_eq!(recount(&f.broker, &batch("b")).await.running, 1);
    eventually("the claim has run out", async || {
        by.claims.sweep(&Retention::standard()).await.unwrap();
        let counts = recount(&f.broker, &batch("b")).await;
        (counts.queued == 1).then_some(())
    })
    .await;
    by.run_for(&message, LONG, 1).await;
    assert_eq!(by.claims.beat(&message.head, LeaseId::random(), LONG).await.unwrap(), Beat::Lost);
}

pub(super) async fn overtaken<'a>(by: &'a Carrier, f: &Fixture) -> (Run<'a>, Run<'a>) {
    let message = by.register(&job_of(&batch("b"))).await;
    let late = by.run(&message).await;
    by.claims.recover(&by.worker).await.unwrap();
    let running = by.run_for(&message, LONG, 1).await;
    assert_eq!(state(&f.broker, message.head.id).await, State::Running);
    (late, running)
}

pub(super) fn told_of(how: End) -> Opened {
    Opened { announce: true, ..ended(how) }
}
