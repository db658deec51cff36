//! Cases: jobs whose messages wait at another broker, and how the ledger comes to know them.

use std::time::Duration;

use promptq_common::broker::{Claim, MAX_BATCH, Retention, Verdict};
use promptq_common::error::Kind;
use promptq_common::job::Job;
use promptq_common::ledger::{JobFilter, Registered};
use promptq_common::record::{End, State};
use promptq_common::time::Timestamp;
use promptq_tests::backends::{Fixture, LONG, SHORT};
use promptq_tests::fixture::{batch, job, job_of, jobs, keyed, queue};
use promptq_tests::messages::{Carrier, ended, heads, message, run_out};
use promptq_tests::steps::{list, recount, see, state, sweep};

pub(crate) async fn a_registered_job_is_new_then_again_then_known(f: Fixture) {
    let by = Carrier::on(&f);
    let (one, other) = (message(&job_of(&batch("b"))), message(&Job { batch: Some(batch("b")), ..keyed("k", "hi") }));
    let both = [&one.head, &other.head];
    assert_eq!(by.claims.register(&both).await.unwrap(), [Registered::New, Registered::New]);
    assert_eq!(by.claims.register(&both).await.unwrap(), [Registered::Again, Registered::Again]);
    by.claims.confirm(&[&one.head]).await.unwrap();
    by.claims.confirm(&[&one.head]).await.unwrap();
    let known = Registered::Known(State::Queued);
    assert_eq!(by.claims.register(&both).await.unwrap(), [known, Registered::Again]);
    let counts = recount(&f.broker, &batch("b")).await;
    assert_eq!((counts.total, counts.queued), (2, 2));
    by.run(&one).await.end(End::Succeeded).await;
    assert_eq!(by.claims.register(&[&one.head]).await.unwrap(), [Registered::Known(State::Succeeded)]);
}

pub(crate) async fn a_registration_with_another_body_is_a_conflict(f: Fixture) {
    let by = Carrier::on(&f);
    by.register(&keyed("k", "one")).await;
    let other = message(&keyed("k", "other"));
    assert_eq!(by.claims.register(&[&other.head]).await.unwrap(), [Registered::Conflict]);
}

pub(crate) async fn a_registration_into_a_batch_of_another_queue_says_whose_it_is(f: Fixture) {
    let by = Carrier::on(&f);
    let ours = by.register(&job_of(&batch("b"))).await.head.lane.queue;
    let other = message(&Job { queue: queue("other"), ..job_of(&batch("b")) });
    assert_eq!(by.claims.register(&[&other.head]).await.unwrap(), [Registered::OtherQueue(ours)]);
    assert!(f.ledger().fetch(&[other.head.id]).await.unwrap()[0].is_none());
}

pub(crate) async fn opening_a_message_says_that_it_was_published(f: Fixture) {
    let by = Carrier::on(&f);
    let message = message(&keyed("k", "hi"));
    by.claims.register(&[&message.head]).await.unwrap();
    by.run(&message).await.retries().await;
    assert_eq!(by.claims.register(&[&message.head]).await.unwrap(), [Registered::Known(State::Queued)]);
}

pub(crate) async fn an_id_whose_record_is_gone_is_still_known(f: Fixture) {
    let by = Carrier::on(&f);
    let message = by.register(&keyed("k", "hi")).await;
    by.run(&message).await.end(End::Succeeded).await;
    let retention = Retention { succeeded: Duration::ZERO, ..Retention::standard() };
    promptq_tests::steps::eventually("the record is gone", async || {
        sweep(&f.broker, &retention).await;
        f.ledger().fetch(&[message.head.id]).await.unwrap()[0].is_none().then_some(())
    })
    .await;
    assert_eq!(by.told(&message).await, ended(End::Succeeded));
    assert_eq!(by.claims.register(&[&message.head]).await.unwrap(), [Registered::Known(State::Succeeded)]);
    assert!(f.ledger().fetch(&[message.head.id]).await.unwrap()[0].is_none(), "it is not entered again");
}

pub(crate) async fn too_many_at_once_are_refused_whole(f: Fixture) {
    let by = Carrier::on(&f);
    let messages: Vec<_> = jobs(MAX_BATCH + 1).iter().map(message).collect();
    let (heads, ids): (_, Vec<_>) = (heads(&messages), messages.iter().map(|message| message.head.id).collect());
    assert_eq!(by.claims.register(&heads).await.unwrap_err().kind(), Kind::TooLarge);
    assert_eq!(by.claims.raise(&ids).await.unwrap_err().kind(), Kind::TooLarge);
    assert_eq!(by.claims.cancel(&ids, &[]).await.unwrap_err().kind(), Kind::TooLarge);
    assert!(f.ledger().fetch(&ids[..1]).await.unwrap()[0].is_none());
    let answers = by.claims.register(&heads[..MAX_BATCH]).await.unwrap();
    assert!(answers.len() == MAX_BATCH && answers.iter().all(|answer| *answer == Registered::New));
}

pub(crate) async fn a_delayed_job_is_shown_as_scheduled(f: Fixture) {
    let by = Carrier::on(&f);
    let due = Timestamp::now() + LONG;
    let message = by.register(&Job { not_before: Some(due), ..keyed("k", "hi") }).await;
    let seen = see(&f.broker, message.head.id).await;
    assert_eq!((seen.state, seen.due), (State::Scheduled, Some(due)));
    // Whoever has the message knows best.
    let _run = by.run(&message).await;
    assert_eq!(state(&f.broker, message.head.id).await, State::Running);
}

pub(crate) async fn what_waits_elsewhere_is_leased_to_nobody_here(f: Fixture) {
    let by = Carrier::on(&f);
    let message = by.register(&job()).await;
    let mut worker = f.worker().await;
    worker.finds_nothing().await;
    let run = by.run(&message).await;
    run.retries().await;
    worker.finds_nothing().await;
    let page = f.backend.waiting(&message.head.lane.queue, None, 10).await.unwrap();
    assert!(page.items.is_empty() && page.next.is_none());
    assert!(matches!(by.told(&message).await.claim, Claim::Stale));
}

pub(crate) async fn what_waits_elsewhere_is_listed_by_its_state(f: Fixture) {
    let by = Carrier::on(&f);
    let in_batch = || job_of(&batch("b"));
    let due = Timestamp::now() + LONG;
    let scheduled = by.register(&Job { not_before: Some(due), ..in_batch() }).await;
    let queued = by.register(&in_batch()).await;
    let (retrying, held) = (by.register(&in_batch()).await, by.register(&in_batch()).await);
    let run = by.run(&retrying).await;
    run.settle(&run.retry(LONG).1).await;
    by.run(&held).await.settle(&Verdict::Release { after: LONG, hold: None }).await;
    let late = by.register(&Job { deadline: Timestamp::now() + SHORT, ..in_batch() }).await;
    run_out(SHORT).await;
    let [scheduled, queued, retrying, held, late] = [scheduled, queued, retrying, held, late].map(|one| one.head.id);
    for (state, expected) in [
        (State::Scheduled, vec![scheduled]),
        (State::Queued, vec![held, queued]),
        (State::Retrying, vec![retrying]),
        (State::Expired, vec![late]),
        (State::Running, vec![]),
    ] {
        let filter = JobFilter { states: vec![state], ..JobFilter::default() };
        for page in [1, 10] {
            let listed = list(&f.broker, &filter, page).await;
            assert_eq!(listed.iter().map(|job| job.id).collect::<Vec<_>>(), expected, "{state}");
            assert!(listed.iter().all(|job| job.state == state), "{state}");
        }
    }
    assert_eq!(list(&f.broker, &JobFilter::default(), 10).await.len(), 5);
    recount(&f.broker, &batch("b")).await;
}

pub(crate) async fn a_ledger_is_the_same_to_everybody_and_no_other(f: Fixture) {
    let first = f.claims.clone().unwrap();
    let told = first.identity().await.unwrap();
    assert_eq!(told, f.second_claims().await.identity().await.unwrap());
    assert_eq!(told, first.identity().await.unwrap());
    for other in [Fixture::memory().await, Fixture::sqlite().await, Fixture::object_memory().await] {
        assert_ne!(told, other.claims.clone().unwrap().identity().await.unwrap());
    }
}

pub(crate) async fn two_who_ask_first_are_told_of_the_same_ledger(f: Fixture) {
    let (first, second) = (f.claims.clone().unwrap(), f.second_claims().await);
    let (told, too) = tokio::join!(first.identity(), second.identity());
    assert_eq!(told.unwrap(), too.unwrap());
}
