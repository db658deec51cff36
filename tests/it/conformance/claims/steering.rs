//! Cases: what people ask of jobs whose messages are out of the ledger's reach: cancels, pauses, purges, redrives.

use std::time::Duration;

use promptq_common::broker::{Beat, Cancel, Claim, Retention, Settled};
use promptq_common::job::{Job, Queue};
use promptq_common::ledger::{Announced, Opened, Raised};
use promptq_common::record::{End, State};
use promptq_common::time::Timestamp;
use promptq_tests::backends::{Fixture, LONG, SHORT};
use promptq_tests::fixture::{batch, job, job_of, queue, release};
use promptq_tests::messages::{Carrier, message, run_out, stale};
use promptq_tests::steps::{eventually, put, record, recount, see, state, view};

/// So that what is created next is later than what was.
const MOMENT: Duration = Duration::from_millis(1);

/// What the first copy of a message hears whose job was ended while it waited.
fn ended_meanwhile(how: State) -> Opened {
    Opened { claim: Claim::Ended(how), announce: true, keep: true }
}

pub(crate) async fn a_waiting_job_is_cancelled_at_once_and_its_message_meets_it(f: Fixture) {
    let by = Carrier::on(&f);
    let message = by.register(&job_of(&batch("b"))).await;
    let id = message.head.id;
    assert_eq!(by.claims.cancel(&[id], &[]).await.unwrap(), [Cancel::Ended]);
    assert_eq!(by.claims.cancel(&[id], &[]).await.unwrap(), [Cancel::Already(State::Cancelled)]);
    assert_eq!(recount(&f.broker, &batch("b")).await.cancelled, 1);
    assert_eq!(by.told(&message).await, ended_meanwhile(State::Cancelled));
    by.claims.announced(&[Announced::of(&record(&f.broker, id).await)]).await.unwrap();
    assert!(by.claims.keep(&message.head, &message.payload).await.unwrap());
    assert_eq!(by.told(&message).await, promptq_tests::messages::ended(End::Cancelled));
    assert_eq!(f.ledger().payload(id).await.unwrap(), Some(message.payload));
}

pub(crate) async fn a_running_job_learns_of_a_cancel_with_its_next_beat(f: Fixture) {
    let by = Carrier::on(&f);
    let message = by.register(&job_of(&batch("b"))).await;
    let run = by.run(&message).await;
    assert_eq!(by.claims.cancel(&[message.head.id], &[]).await.unwrap(), [Cancel::Flagged]);
    assert!(see(&f.broker, message.head.id).await.cancel_requested);
    assert_eq!(by.claims.beat(&message.head, run.lease, LONG).await.unwrap(), Beat::Cancelled);
    let again = by.open_as(&message, run.lease, LONG).await;
    assert_eq!(again.claim, Claim::Cancelled);
    assert_eq!(run.end(End::Cancelled).await, Settled::Applied);
    assert_eq!(state(&f.broker, message.head.id).await, State::Cancelled);
    recount(&f.broker, &batch("b")).await;
}

pub(crate) async fn a_cancelled_job_given_back_does_not_run_again(f: Fixture) {
    let by = Carrier::on(&f);
    for retried in [false, true] {
        let message = by.register(&job_of(&batch("b"))).await;
        let run = by.run(&message).await;
        by.claims.cancel(&[message.head.id], &[]).await.unwrap();
        let (copy, verdict) = run.retry(Duration::ZERO);
        let (copy, verdict) = if retried { (copy, verdict) } else { (message.clone(), release()) };
        assert_eq!(run.settle(&verdict).await, Settled::Applied);
        assert_eq!(by.told(&copy).await, ended_meanwhile(State::Cancelled));
        assert_eq!(see(&f.broker, message.head.id).await.attempts, u32::from(retried));
    }
    recount(&f.broker, &batch("b")).await;
}

pub(crate) async fn a_cancelled_job_whose_worker_died_ends(f: Fixture) {
    let by = Carrier::on(&f);
    let message = by.register(&job_of(&batch("b"))).await;
    let _lost = by.run_for(&message, SHORT, 0).await;
    by.claims.cancel(&[message.head.id], &[]).await.unwrap();
    let told = eventually("the claim has run out", async || {
        let told = by.told(&message).await;
        (!matches!(told.claim, Claim::Taken { .. })).then_some(told)
    })
    .await;
    assert_eq!(told, ended_meanwhile(State::Cancelled));
    assert_eq!(by.raise(&message).await, Raised::Restored { epoch: 0 });
    assert_eq!(see(&f.broker, message.head.id).await.deaths, u32::from(f.counts_first_death()));
    recount(&f.broker, &batch("b")).await;
}

pub(crate) async fn a_job_never_seen_is_cancelled_when_it_surfaces(f: Fixture) {
    let by = Carrier::on(&f);
    let (message, other) = (message(&job()), message(&job()));
    assert_eq!(by.claims.cancel(&[message.head.id], &[]).await.unwrap(), [Cancel::Unknown]);
    let queues = [Queue::standard(), queue("other")];
    assert_eq!(by.claims.cancel(&[message.head.id], &queues).await.unwrap(), [Cancel::Flagged]);
    assert_eq!(by.told(&message).await, ended_meanwhile(State::Cancelled));
    assert_eq!(record(&f.broker, message.head.id).await.cause.unwrap().code, "cancelled_by_user");
    by.run(&other).await;
}

pub(crate) async fn a_cancelled_batch_stops_what_waits_and_what_comes_later(f: Fixture) {
    let by = Carrier::on(&f);
    let (waits, runs) = (by.register(&job_of(&batch("b"))).await, by.register(&job_of(&batch("b"))).await);
    let run = by.run(&runs).await;
    let counts = by.claims.cancel_batch(&batch("b")).await.unwrap();
    assert_eq!((counts.ended, counts.flagged), (1, 1));
    assert_eq!(by.told(&waits).await, ended_meanwhile(State::Cancelled));
    assert_eq!(by.claims.beat(&runs.head, run.lease, LONG).await.unwrap(), Beat::Cancelled);
    run.end(End::Cancelled).await;
    let later = by.register(&job_of(&batch("b"))).await;
    assert_eq!(by.told(&later).await, ended_meanwhile(State::Cancelled));
    assert_eq!(by.claims.cancel_batch(&batch("b")).await.unwrap().ended, 0);
    assert_eq!(recount(&f.broker, &batch("b")).await.cancelled, 3);
}

pub(crate) async fn a_paused_queue_gives_no_claims(f: Fixture) {
    let by = Carrier::on(&f);
    let (ours, other) = (message(&job()), message(&Job { queue: queue("other"), ..job() }));
    let runs = message(&job());
    let run = by.run(&runs).await;
    by.claims.pause(&Queue::standard(), Some("lunch")).await.unwrap();
    for _ in 0..2 {
        assert_eq!(by.told(&ours).await.claim, Claim::Paused { reason: "lunch".into() });
    }
    by.run(&other).await;
    assert_eq!(by.claims.beat(&runs.head, run.lease, LONG).await.unwrap(), Beat::Kept);
    run.retries().await;
    assert_eq!(by.claims.standing(&Queue::standard()).await.unwrap().paused.as_deref(), Some("lunch"));
    by.claims.pause(&Queue::standard(), None).await.unwrap();
    by.run(&ours).await;
}

pub(crate) async fn a_purge_meets_what_was_created_before_it(f: Fixture) {
    let by = Carrier::on(&f);
    let (seen, never_seen) = (by.register(&job_of(&batch("b"))).await, message(&job()));
    let elsewhere = by.register(&Job { queue: queue("other"), ..job() }).await;
    run_out(MOMENT).await;
    assert_eq!(by.claims.purge(&Queue::standard()).await.unwrap(), 1);
    run_out(MOMENT).await;
    assert_eq!(by.claims.purge(&Queue::standard()).await.unwrap(), 0);
    run_out(MOMENT).await;
    let later = [message(&job()), by.register(&job_of(&batch("b"))).await];
    for purged in [&seen, &never_seen] {
        assert_eq!(by.told(purged).await, ended_meanwhile(State::Cancelled));
        assert_eq!(record(&f.broker, purged.head.id).await.cause.unwrap().code, "purged");
    }
    for kept in later.iter().chain([&elsewhere]) {
        by.run(kept).await;
    }
    recount(&f.broker, &batch("b")).await;
}

pub(crate) async fn a_purge_lets_what_runs_go_on(f: Fixture) {
    let by = Carrier::on(&f);
    let message = by.register(&job()).await;
    let run = by.run(&message).await;
    run_out(MOMENT).await;
    assert_eq!(by.claims.purge(&Queue::standard()).await.unwrap(), 0);
    assert_eq!(by.claims.beat(&message.head, run.lease, LONG).await.unwrap(), Beat::Kept);
    run_out(MOMENT).await;
    let copy = run.retries().await;
    by.run(&copy).await.end(End::Dead).await;
    let anew = by.raise_anew(&copy).await;
    by.run(&anew).await;
}

pub(crate) async fn a_redrive_is_published_in_two_steps(f: Fixture) {
    let by = Carrier::on(&f);
    let message = by.register(&job_of(&batch("b"))).await;
    let copy = by.run(&message).await.retries().await;
    by.run(&copy).await.end(End::Dead).await;
    let anew = by.raise_anew(&message).await;
    assert_eq!((anew.head.epoch, anew.head.attempts, anew.head.not_before), (1, 0, None));
    assert_eq!(
        (&anew.payload, &anew.head.lane, &anew.head.batch),
        (&message.payload, &message.head.lane, &message.head.batch)
    );
    assert!(anew.head.history.recent.is_empty());
    let counts = view(&f.broker, &batch("b")).await.counts;
    assert_eq!((counts.total, counts.queued, counts.dead), (1, 1, 0));
    assert!(f.ledger().dead_groups(None).await.unwrap().is_empty());
    by.claims.published(&[&anew.head]).await.unwrap();
    assert_eq!(by.raise(&message).await, Raised::Waiting);
    let run = by.run(&anew).await;
    assert_eq!(by.raise(&message).await, Raised::Waiting);
    run.end(End::Succeeded).await;
    assert_eq!(by.raise(&message).await, Raised::Succeeded);
    let found = view(&f.broker, &batch("b")).await;
    assert_eq!((found.counts.succeeded, found.usage.input_tokens), (1, 3 * 7));
}

pub(crate) async fn a_redrive_that_died_in_the_middle_is_found_again(f: Fixture) {
    let by = Carrier::on(&f);
    let message = by.register(&job_of(&batch("b"))).await;
    by.run(&message).await.end(End::Dead).await;
    let first = by.raise_anew(&message).await;
    let second = by.raise_anew(&message).await;
    assert_eq!(second, first);
    // Both were published: one runs.
    by.claims.published(&[&first.head]).await.unwrap();
    let run = by.run(&first).await;
    assert!(matches!(by.told(&second).await.claim, Claim::Taken { .. }));
    run.end(End::Dead).await;
    // What is said of an earlier epoch's message says nothing of this one's.
    let third = by.raise_anew(&message).await;
    assert_eq!(third.head.epoch, 2);
    by.claims.published(&[&first.head]).await.unwrap();
    assert_eq!(by.raise_anew(&message).await, third);
    recount(&f.broker, &batch("b")).await;
}

pub(crate) async fn a_redriven_message_that_runs_needs_no_second_copy(f: Fixture) {
    let by = Carrier::on(&f);
    let message = by.register(&job()).await;
    by.run(&message).await.end(End::Dead).await;
    let anew = by.raise_anew(&message).await;
    by.run(&anew).await.retries().await;
    assert_eq!(by.raise(&message).await, Raised::Waiting);
}

pub(crate) async fn a_dead_job_of_the_ledgers_own_waits_elsewhere_once_it_is_redriven(f: Fixture) {
    let by = Carrier::on(&f);
    let (job, mut worker) = (job_of(&batch("b")), f.worker().await);
    put(&f.broker, std::slice::from_ref(&job)).await;
    worker.ends_one(End::Dead).await;
    let anew = by.raise_anew(&message(&job)).await;
    worker.finds_nothing().await;
    assert_eq!(by.raise_anew(&message(&job)).await, anew);
    assert!(f.backend.waiting(&anew.head.lane.queue, None, 10).await.unwrap().items.is_empty(), "its payload is here");
    let copy = by.run(&anew).await.retries().await;
    worker.finds_nothing().await;
    by.run(&copy).await.end(End::Succeeded).await;
    assert_eq!(recount(&f.broker, &batch("b")).await.succeeded, 1);
}

pub(crate) async fn a_redrive_of_a_job_whose_message_still_waits_takes_its_end_back(f: Fixture) {
    let by = Carrier::on(&f);
    let message = by.register(&job_of(&batch("b"))).await;
    let copy = by.run(&message).await.retries().await;
    by.claims.cancel(&[message.head.id], &[]).await.unwrap();
    assert_eq!(by.raise(&message).await, Raised::Restored { epoch: 0 });
    assert_eq!(by.raise(&message).await, Raised::Waiting);
    let counts = recount(&f.broker, &batch("b")).await;
    assert_eq!((counts.queued, counts.cancelled), (1, 0));
    by.claims.cancel(&[message.head.id], &[]).await.unwrap();
    assert_eq!(view(&f.broker, &batch("b")).await.usage.input_tokens, 7, "what it consumed is not forgotten");
    assert_eq!(by.raise(&message).await, Raised::Restored { epoch: 0 });
    by.run(&copy).await.end(End::Succeeded).await;
    let found = view(&f.broker, &batch("b")).await;
    assert_eq!((found.counts.succeeded, found.usage.input_tokens), (1, 2 * 7));
    // One that is delayed comes when it would have come, and says so.
    let due = Timestamp::now() + Duration::from_secs(3_600);
    let later = by.register(&Job { not_before: Some(due), ..job_of(&batch("b")) }).await;
    for _ in 0..2 {
        by.claims.cancel(&[later.head.id], &[]).await.unwrap();
        assert_eq!(by.raise(&later).await, Raised::Restored { epoch: 0 });
        let seen = see(&f.broker, later.head.id).await;
        assert_eq!((seen.state, seen.due), (State::Scheduled, Some(due)));
    }
    recount(&f.broker, &batch("b")).await;
}

pub(crate) async fn a_job_of_a_cancelled_batch_that_is_put_back_runs(f: Fixture) {
    let by = Carrier::on(&f);
    let messages = [by.register(&job_of(&batch("b"))).await, by.register(&job_of(&batch("b"))).await];
    by.claims.cancel_batch(&batch("b")).await.unwrap();
    // One message has met its end and handed over its payload, the other still waits.
    assert!(by.claims.keep(&messages[0].head, &messages[0].payload).await.unwrap());
    let anew = by.raise_anew(&messages[0]).await;
    assert_eq!(by.raise(&messages[1]).await, Raised::Restored { epoch: 0 });
    for message in [&anew, &messages[1]] {
        let run = by.run(message).await;
        assert_eq!(by.claims.beat(&message.head, run.lease, LONG).await.unwrap(), Beat::Kept);
        let copy = run.retries().await;
        by.run(&copy).await.end(End::Succeeded).await;
    }
    recount(&f.broker, &batch("b")).await;
}

pub(crate) async fn a_payload_handed_over_too_late_says_that_the_message_is_needed(f: Fixture) {
    let by = Carrier::on(&f);
    let message = by.register(&job()).await;
    by.claims.cancel(&[message.head.id], &[]).await.unwrap();
    assert!(by.told(&message).await.keep);
    assert_eq!(by.raise(&message).await, Raised::Restored { epoch: 0 });
    assert!(!by.claims.keep(&message.head, &message.payload).await.unwrap());
    by.run(&message).await.end(End::Dead).await;
    let anew = by.raise_anew(&message).await;
    assert!(by.claims.keep(&message.head, &message.payload).await.unwrap(), "an epoch later it is not");
    by.run(&anew).await;
}

pub(crate) async fn what_cannot_be_redriven_is_said(f: Fixture) {
    let by = Carrier::on(&f);
    assert_eq!(by.raise(&message(&job())).await, Raised::Unknown);
    let message = by.register(&job()).await;
    assert_eq!(by.raise(&message).await, Raised::Waiting);
    by.run(&message).await.end(End::Dead).await;
    assert_eq!(by.claims.drop_dead(&[message.head.id]).await.unwrap(), 1);
    assert_eq!(by.raise(&message).await, Raised::Gone);
    assert!(see(&f.broker, message.head.id).await.dropped);
    assert!(!by.told(&message).await.keep, "what was dropped stays so");
}

pub(crate) async fn a_sweep_ends_what_passed_its_deadline(f: Fixture) {
    let by = Carrier::on(&f);
    let soon = Job { deadline: Timestamp::now() + SHORT, batch: Some(batch("b")), ..job() };
    let message = by.register(&soon).await;
    eventually("its deadline has passed", async || {
        (by.claims.sweep(&Retention::standard()).await.unwrap().expired == 1).then_some(())
    })
    .await;
    assert_eq!(view(&f.broker, &batch("b")).await.counts.expired, 1);
    assert_eq!(by.told(&message).await, ended_meanwhile(State::Expired));
}

pub(crate) async fn an_expired_job_that_is_redriven_may_run(f: Fixture) {
    let by = Carrier::on(&f);
    let brief = |n: u64| Job {
        created_at: Timestamp::now(),
        deadline: Timestamp::now() + Duration::from_millis(400),
        batch: Some(batch("b")),
        row: Some(n),
        ..job()
    };
    let (met, waits, unswept) =
        (by.register(&brief(1)).await, by.register(&brief(2)).await, by.register(&brief(3)).await);
    run_out(Duration::from_millis(450)).await;
    assert_eq!(by.told(&met).await, ended_meanwhile(State::Expired));
    assert!(by.claims.keep(&met.head, &met.payload).await.unwrap());
    by.claims.cancel(&[waits.head.id], &[]).await.unwrap();
    let anew = by.raise_anew(&met).await;
    assert!(anew.head.deadline > Timestamp::now());
    by.run(&anew).await;
    for message in [&waits, &unswept] {
        assert_eq!(by.raise(message).await, Raised::Restored { epoch: 0 });
        by.run(message).await;
    }
    recount(&f.broker, &batch("b")).await;
}

pub(crate) async fn a_forgotten_job_was_never_there(f: Fixture) {
    let by = Carrier::on(&f);
    let (waits, runs) = (by.register(&job_of(&batch("b"))).await, by.register(&job_of(&batch("b"))).await);
    let run = by.run(&runs).await;
    let jobs = [(waits.head.id, 0), (runs.head.id, 0)];
    assert_eq!(by.claims.forget(&[(waits.head.id, 1)]).await.unwrap(), 0);
    assert_eq!(by.claims.forget(&jobs).await.unwrap(), 1);
    assert_eq!(by.claims.forget(&jobs).await.unwrap(), 0);
    assert!(f.ledger().fetch(&[waits.head.id]).await.unwrap()[0].is_none());
    assert_eq!(view(&f.broker, &batch("b")).await.counts.total, 1);
    run.end(End::Succeeded).await;
    by.register(&job_of(&batch("b"))).await;
    assert_eq!(by.told(&runs).await.claim, Claim::Ended(State::Succeeded));
    assert_ne!(by.told(&waits).await, stale());
}

pub(crate) async fn queues_stand_with_what_runs_and_what_is_dead(f: Fixture) {
    let by = Carrier::on(&f);
    for how in [Some(End::Dead), None, Some(End::Succeeded)] {
        let message = by.register(&job()).await;
        let run = by.run(&message).await;
        if let Some(how) = how {
            run.end(how).await;
        }
    }
    by.register(&job()).await;
    by.register(&Job { queue: queue("other"), ..job() }).await;
    let depth = by.claims.standing(&Queue::standard()).await.unwrap().depth;
    assert_eq!((depth.running, depth.dead, depth.ready, depth.delayed), (1, 1, 0, 0));
    let names: Vec<_> = by.claims.standings().await.unwrap().into_iter().map(|one| one.queue.to_string()).collect();
    assert_eq!(names, ["default", "other"]);
}

pub(crate) async fn a_queue_that_is_used_stands_before_it_has_jobs(f: Fixture) {
    let by = Carrier::on(&f);
    for _ in 0..2 {
        by.claims.touch(&queue("b")).await.unwrap();
        by.claims.touch(&queue("a")).await.unwrap();
    }
    let standings = by.claims.standings().await.unwrap();
    let names: Vec<_> = standings.iter().map(|one| one.queue.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    let depth = &standings[0].depth;
    assert_eq!((depth.running, depth.dead, depth.ready, depth.delayed), (0, 0, 0, 0));
}

pub(crate) async fn claims_run_out_by_the_ledgers_clock(f: Fixture) {
    let by = Carrier::on(&f);
    let message = by.register(&job()).await;
    let before = by.claims.now().await.unwrap();
    let _run = by.run(&message).await;
    let after = by.claims.now().await.unwrap();
    let Claim::Taken { until } = by.told(&message).await.claim else { panic!("it may not run") };
    assert!((before + LONG..=after + LONG).contains(&until), "{before} {until} {after}");
}
