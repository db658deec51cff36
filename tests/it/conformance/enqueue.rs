//! Cases: what it means to have put a job in.

use promptq_common::broker::{Enqueued, Envelope, MAX_BATCH, Refusal, Retention};
use promptq_common::codec;
use promptq_common::error::Kind;
use promptq_common::job::Job;
use promptq_common::ledger::Known;
use promptq_common::record::{End, State};
use promptq_tests::backends::{Fixture, LONG};
use promptq_tests::fixture::{batch, job, job_of, jobs, keyed, queue};
use promptq_tests::steps::{put, put_one, see, state, sweep, want};
use std::time::Duration;

pub(crate) async fn an_enqueued_job_waits_and_can_be_seen(f: Fixture) {
    let job = Job { custom_id: Some("row-7".into()), row: Some(7), batch: Some(batch("b")), ..job() };
    put(&f.broker, std::slice::from_ref(&job)).await;
    let seen = see(&f.broker, job.id).await;
    assert_eq!((seen.id, seen.state, seen.queue), (job.id, State::Queued, job.queue));
    assert_eq!((seen.custom_id, seen.row, seen.batch), (job.custom_id, job.row, job.batch));
    assert_eq!((seen.model.as_deref(), seen.priority), (Some("mock"), 5));
    assert_eq!((seen.epoch, seen.attempts, seen.deaths), (0, 0, 0));
    assert_eq!((seen.created_at, seen.deadline), (job.created_at, job.deadline));
    assert!(seen.record.is_none() && seen.worker.is_none() && !seen.cancel_requested);
}

pub(crate) async fn a_job_never_seen_is_nothing(f: Fixture) {
    assert_eq!(f.ledger().fetch(&[job().id]).await.unwrap(), vec![None]);
    assert_eq!(f.ledger().payload(job().id).await.unwrap(), None);
    assert_eq!(f.ledger().batch(&batch("none")).await.unwrap(), None);
}

pub(crate) async fn nothing_enqueued_is_no_error(f: Fixture) {
    assert_eq!(f.broker.enqueue(&[]).await.unwrap(), vec![]);
}

pub(crate) async fn a_confirmed_job_is_delivered_once(f: Fixture) {
    let id = put_one(&f.broker, job()).await;
    let (mut first, mut second) = (f.worker().await, f.worker().await);
    let delivery = first.one().await;
    assert_eq!(delivery.head.id, id);
    second.finds_nothing().await;
    promptq_tests::steps::end(delivery, End::Succeeded).await;
    first.finds_nothing().await;
    assert_eq!(state(&f.broker, id).await, State::Succeeded);
}

pub(crate) async fn a_delivery_carries_what_was_submitted(f: Fixture) {
    let mut job = Job { tenant: Some("acme".into()), custom_id: Some("x".into()), ..job_of(&batch("b")) };
    job.tags.insert("team".into(), "search".into());
    job.row = Some(3);
    put(&f.broker, std::slice::from_ref(&job)).await;
    let delivery = f.worker().await.one().await;
    assert_eq!(delivery.open().unwrap(), job);
    let head = &delivery.head;
    assert_eq!((head.id, &head.lane, head.priority), (job.id, &job.lane(), job.priority));
    assert_eq!((&head.batch, head.row, &head.custom_id), (&job.batch, job.row, &job.custom_id));
    assert_eq!((&head.tenant, &head.tags, head.fingerprint), (&job.tenant, &job.tags, job.fingerprint()));
    assert_eq!((head.created_at, head.deadline, head.keyed), (job.created_at, job.deadline, false));
    assert_eq!((head.epoch, head.attempts), (0, 0));
}

pub(crate) async fn a_keyed_resubmission_is_known(f: Fixture) {
    let id = put_one(&f.broker, keyed("k", "same")).await;
    assert_eq!(f.broker.enqueue(&[keyed("k", "same")]).await.unwrap(), vec![Enqueued::Known(State::Queued)]);
    let mut worker = f.worker().await;
    let delivery = worker.one().await;
    assert_eq!(delivery.head.id, id);
    assert_eq!(f.broker.enqueue(&[keyed("k", "same")]).await.unwrap(), vec![Enqueued::Known(State::Running)]);
    worker.finds_nothing().await;
}

pub(crate) async fn a_key_with_another_body_is_a_conflict(f: Fixture) {
    put_one(&f.broker, keyed("k", "one")).await;
    let answers = f.broker.enqueue(&[keyed("k", "two"), job()]).await.unwrap();
    assert_eq!(answers, vec![Enqueued::Refused(Refusal::Conflict), Enqueued::New]);
    let taken = f.worker().await.take(2).await;
    assert!(!taken.iter().any(|delivery| delivery.open().unwrap().work == keyed("k", "two").work));
}

pub(crate) async fn a_repetition_within_one_call_is_known(f: Fixture) {
    let answers = f.broker.enqueue(&[keyed("k", "a"), keyed("k", "a"), keyed("k", "b")]).await.unwrap();
    let expected = [Enqueued::New, Enqueued::Known(State::Queued), Enqueued::Refused(Refusal::Conflict)];
    assert_eq!(answers, expected);
    assert_eq!(f.broker.depth(&queue("default")).await.unwrap().ready, 1);
}

pub(crate) async fn a_key_stays_known_after_the_job_ended(f: Fixture) {
    put_one(&f.broker, keyed("k", "same")).await;
    f.worker().await.ends_one(End::Succeeded).await;
    let answers = f.broker.enqueue(&[keyed("k", "same"), keyed("k", "other")]).await.unwrap();
    assert_eq!(answers, [Enqueued::Known(State::Succeeded), Enqueued::Refused(Refusal::Conflict)]);
    f.worker().await.finds_nothing().await;
}

pub(crate) async fn a_key_stays_known_after_its_answer_was_forgotten(f: Fixture) {
    put_one(&f.broker, keyed("k", "same")).await;
    f.worker().await.ends_one(End::Succeeded).await;
    let soon = Retention { bytes: 0, ..Retention::standard() };
    assert_eq!(sweep(&f.broker, &soon).await.forgotten, 1);
    let answers = f.broker.enqueue(&[keyed("k", "same"), keyed("k", "other")]).await.unwrap();
    assert_eq!(answers, [Enqueued::Known(State::Succeeded), Enqueued::Refused(Refusal::Conflict)]);
    f.worker().await.finds_nothing().await;
}

pub(crate) async fn known_tells_new_same_and_conflict(f: Fixture) {
    put_one(&f.broker, keyed("k", "same")).await;
    let ask = [keyed("k", "same"), keyed("k", "other"), keyed("l", "same")];
    let ask = ask.map(|job| (job.id, job.fingerprint()));
    let expected = [Known::Same(State::Queued), Known::Conflict(State::Queued), Known::New];
    assert_eq!(f.ledger().known(&ask).await.unwrap(), expected);
    f.worker().await.ends_one(End::Dead).await;
    let expected = [Known::Same(State::Dead), Known::Conflict(State::Dead), Known::New];
    assert_eq!(f.ledger().known(&ask).await.unwrap(), expected);
}

pub(crate) async fn a_batch_belongs_to_one_queue(f: Fixture) {
    put_one(&f.broker, job_of(&batch("b"))).await;
    let stray = Job { queue: queue("elsewhere"), ..job_of(&batch("b")) };
    let answers = f.broker.enqueue(&[stray, job_of(&batch("b"))]).await.unwrap();
    assert_eq!(answers, [Enqueued::Refused(Refusal::OtherQueue(queue("default"))), Enqueued::New]);
    let error = f.ledger().seal(&batch("b"), &queue("elsewhere")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict);
}

pub(crate) async fn too_many_at_once_are_refused_whole(f: Fixture) {
    assert!(f.broker.enqueue(&jobs(MAX_BATCH)).await.unwrap().iter().all(|answer| *answer == Enqueued::New));
    let error = f.broker.enqueue(&jobs(MAX_BATCH + 1)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::TooLarge);
    assert!(!error.is_transient());
    assert_eq!(f.broker.depth(&queue("default")).await.unwrap().ready, MAX_BATCH as u64);
}

pub(crate) async fn an_oversized_payload_is_refused_alone(f: Fixture) {
    let mut envelopes = Vec::new();
    for (job, size) in jobs(3).into_iter().zip([10, codec::MAX_BYTES + 1, 10]) {
        envelopes.push(raw(&job, vec![1; size]));
    }
    let answers = f.backend.enqueue(envelopes).await.unwrap();
    let refused = Enqueued::Refused(Refusal::TooLarge(codec::MAX_BYTES + 1));
    assert_eq!(answers, [Enqueued::New, refused, Enqueued::New]);
}

pub(crate) async fn a_payload_nobody_can_read_is_delivered_as_it_is(f: Fixture) {
    let job = job();
    f.backend.enqueue(vec![raw(&job, b"\xffnot a job".to_vec())]).await.unwrap();
    let delivery = f.worker().await.one().await;
    assert_eq!((delivery.head.id, delivery.payload.as_slice()), (job.id, b"\xffnot a job".as_slice()));
    assert!(delivery.open().is_err());
    promptq_tests::steps::end(delivery, End::Dead).await;
    assert_eq!(state(&f.broker, job.id).await, State::Dead);
}

pub(crate) async fn a_payload_is_kept_until_its_job_succeeds(f: Fixture) {
    let job = job();
    put(&f.broker, std::slice::from_ref(&job)).await;
    let kept = f.ledger().payload(job.id).await.unwrap();
    assert_eq!(kept.is_some(), f.sees_waiting(), "kept while it waits, here or with its message");
    assert!(kept.iter().all(|kept| codec::decode_job(kept).unwrap() == job));
    let mut source = f.source(LONG).await;
    let delivery = source.next(&want(1)).await.unwrap().deliveries.pop().unwrap();
    assert_eq!(f.ledger().payload(job.id).await.unwrap(), kept, "kept while it runs");
    let verdict = promptq_tests::fixture::end(&delivery.head, delivery.lease, End::Succeeded);
    delivery.hold.settle(&verdict).await.unwrap();
    assert_eq!(f.ledger().payload(job.id).await.unwrap(), None);
    let dead = put_one(&f.broker, self::job()).await;
    drop(source);
    f.worker().await.ends_one(End::Dead).await;
    assert!(f.ledger().payload(dead).await.unwrap().is_some(), "kept for a redrive");
}

pub(crate) async fn a_worker_that_waits_gets_a_new_job_at_once(f: Fixture) {
    let other = f.second().await;
    let mut worker = f.worker().await;
    let waiting = async {
        let since = std::time::Instant::now();
        (worker.one().await, since.elapsed())
    };
    let job = job();
    let ((), (delivery, took)) = tokio::join!(put(&other, std::slice::from_ref(&job)), waiting);
    assert_eq!(delivery.head.id, job.id);
    assert!(took < Duration::from_secs(1), "took {took:?}");
}

fn raw(job: &Job, payload: Vec<u8>) -> Envelope {
    let head = promptq_tests::fixture::head(job);
    Envelope { head, payload }
}
