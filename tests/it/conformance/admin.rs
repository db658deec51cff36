//! Cases: queues paused, resumed, purged and listed, and the bounds of every call.

use promptq_common::broker::{Claim, MAX_BATCH, Settled};
use promptq_common::error::Kind;
use promptq_common::job::{Job, Queue};
use promptq_common::record::{End, State};
use promptq_common::time::Timestamp;
use promptq_tests::backends::{Fixture, LONG};
use promptq_tests::fixture::{batch, job, job_in, job_of, jobs, queue, registered};
use promptq_tests::steps::{end, eventually, put, put_one, recount, see, state, want};

pub(crate) async fn a_paused_queue_gives_no_leases_until_resumed(f: Fixture) {
    let id = put_one(&f.broker, registered()).await;
    let other = f.second().await;
    other.pause(&Queue::standard(), Some("provider is down")).await.unwrap();
    assert_eq!(see(&f.broker, id).await.paused.as_deref(), Some("provider is down"));
    let mut worker = f.worker().await;
    worker.finds_nothing().await;
    put_one(&f.broker, job()).await;
    worker.finds_nothing().await;
    assert_eq!(f.broker.depth(&Queue::standard()).await.unwrap().ready, 2, "paused jobs are still ready");
    other.pause(&Queue::standard(), None).await.unwrap();
    worker.take(2).await;
    assert_eq!(see(&f.broker, id).await.paused, None);
}

pub(crate) async fn jobs_that_run_when_their_queue_is_paused_go_on(f: Fixture) {
    let id = put_one(&f.broker, job()).await;
    let delivery = f.worker().await.one().await;
    f.broker.pause(&Queue::standard(), Some("a")).await.unwrap();
    f.broker.pause(&Queue::standard(), Some("b")).await.unwrap();
    assert_eq!(see(&f.broker, id).await.paused.as_deref(), Some("b"));
    assert_eq!(delivery.lease.beat().await.unwrap(), promptq_common::broker::Beat::Kept);
    assert_eq!(end(delivery, End::Succeeded).await, Settled::Applied);
}

pub(crate) async fn a_lease_of_a_queue_paused_meanwhile_is_told_by_its_claim(f: Fixture) {
    put_one(&f.broker, job()).await;
    let mut worker = f.worker().await;
    let delivery = worker.one().await;
    f.broker.pause(&Queue::standard(), Some("maintenance")).await.unwrap();
    let lease = &delivery.lease;
    if !f.claims_when_asked() {
        assert_eq!(lease.claim().await.unwrap(), Claim::Fresh { deaths: 0 }, "it was handed out before");
        put_one(&f.broker, job()).await;
        return worker.finds_nothing().await;
    }
    let claim = eventually("the claim says so", || async {
        let claim = lease.claim().await.unwrap();
        (!matches!(claim, Claim::Fresh { .. })).then_some(claim)
    });
    assert_eq!(claim.await, Claim::Paused { reason: "maintenance".into() });
}

pub(crate) async fn pausing_one_queue_leaves_the_others(f: Fixture) {
    f.broker.pause(&queue("other"), Some("x")).await.unwrap();
    let id = put_one(&f.broker, job()).await;
    assert_eq!(f.worker().await.one().await.head.id, id);
}

pub(crate) async fn purge_cancels_only_what_waits(f: Fixture) {
    let name = batch("b");
    for _ in 0..4 {
        put_one(&f.broker, job_of(&name)).await;
    }
    put_one(&f.broker, Job { not_before: Some(Timestamp::now() + LONG), ..job_of(&name) }).await;
    let stranger = put_one(&f.broker, Job { queue: queue("other"), ..job_of(&batch("c")) }).await;
    let mut worker = f.worker().await;
    worker.ends_one(End::Dead).await;
    let running = worker.one().await;
    assert_eq!(f.second().await.purge(&Queue::standard()).await.unwrap(), 3);
    assert_eq!(f.broker.purge(&Queue::standard()).await.unwrap(), 0);
    assert_eq!(running.lease.beat().await.unwrap(), promptq_common::broker::Beat::Kept);
    assert_eq!(end(running, End::Succeeded).await, Settled::Applied);
    let counts = recount(&f.broker, &name).await;
    assert_eq!((counts.cancelled, counts.dead, counts.succeeded), (3, 1, 1));
    assert_eq!(state(&f.broker, stranger).await, State::Queued);
    let after = put_one(&f.broker, job()).await;
    assert_eq!(worker.one().await.head.id, after, "what comes after a purge is not purged");
}

pub(crate) async fn queues_are_listed_by_name_with_their_depth(f: Fixture) {
    put(&f.broker, &[job_in(&queue("b")), job_in(&queue("b")), job_in(&queue("a")), job()]).await;
    f.broker.pause(&queue("c"), Some("not yet")).await.unwrap();
    let found = f.second().await.queues().await.unwrap();
    let brief: Vec<_> =
        found.iter().map(|view| (view.queue.as_str(), view.depth.ready, view.paused.as_deref())).collect();
    assert_eq!(brief, [("a", 1, None), ("b", 2, None), ("c", 0, Some("not yet")), ("default", 1, None)]);
    for view in &found {
        assert_eq!(view.depth, f.broker.depth(&view.queue).await.unwrap());
    }
    let names: Vec<_> = ["c", "nowhere", "b", "default"].map(queue).into();
    let several = f.broker.several(&names).await.unwrap();
    for (name, view) in names.iter().zip(&several) {
        assert_eq!(*view, f.broker.queue(name).await.unwrap(), "{name}");
        assert_eq!(view.as_ref(), found.iter().find(|view| view.queue == *name), "{name}");
    }
}

pub(crate) async fn every_call_over_many_jobs_has_a_bound(f: Fixture) {
    let ids: Vec<_> = jobs(MAX_BATCH + 1).iter().map(|job| job.id).collect();
    assert_eq!(f.broker.cancel(&ids).await.unwrap_err().kind(), Kind::TooLarge);
    assert_eq!(f.broker.redrive(&ids).await.unwrap_err().kind(), Kind::TooLarge);
    assert_eq!(f.broker.drop_dead(&ids).await.unwrap_err().kind(), Kind::TooLarge);
    assert_eq!(f.broker.cancel(&ids[..MAX_BATCH]).await.unwrap().len(), MAX_BATCH);
    assert_eq!(f.broker.redrive(&ids[..MAX_BATCH]).await.unwrap().len(), MAX_BATCH);
}

pub(crate) async fn a_purge_of_many_ends_them_all(f: Fixture) {
    // More than one step ends; messages are met one by one, however many there are.
    let count = if f.sees_waiting() { 2_500 } else { 1_100 };
    put(&f.broker, &jobs(count)).await;
    assert_eq!(f.broker.purge(&Queue::standard()).await.unwrap(), count as u64);
    assert!(f.worker().await.consumer.next(&want(9)).await.unwrap().deliveries.is_empty());
}

pub(crate) async fn a_worker_that_saw_jobs_before_a_pause_gets_none(f: Fixture) {
    f.declare(&["mock"]).await;
    put_one(&f.broker, job()).await;
    let mut worker = f.worker().await;
    assert_eq!(worker.consumer.next(&want(0)).await.unwrap().lanes_seen, [job().lane()]);
    f.broker.pause(&Queue::standard(), Some("x")).await.unwrap();
    worker.finds_nothing().await;
}
