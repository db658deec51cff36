//! Cases: who may run a job, for how long, and what becomes of one whose worker is gone.

use std::collections::HashSet;
use std::time::Duration;

use promptq_common::broker::{Beat, Claim, LEASE_BYTES, Settled};
use promptq_common::error::Kind;
use promptq_common::job::{Job, Queue};
use promptq_common::record::{End, State};
use promptq_common::work::Work;
use promptq_tests::backends::{Fixture, LONG, SHORT, terms};
use promptq_tests::fixture::{job, job_in, jobs, queue, registered};
use promptq_tests::steps::{PATIENCE, Worker, end, put, put_one, see, state, want};
use rand::RngExt;
use tokio::time::{Instant, interval, timeout};

pub(crate) async fn an_unsettled_delivery_comes_back_with_one_death_more(f: Fixture) {
    let id = put_one(&f.broker, job()).await;
    let mut worker = f.hasty_worker().await;
    for deaths in 0..3 {
        let delivery = worker.one().await;
        assert_eq!(delivery.head.id, id);
        assert_eq!(delivery.lease.claim().await.unwrap(), Claim::Fresh { deaths });
        let seen = see(&f.broker, id).await;
        assert_eq!((seen.state, seen.deaths, seen.attempts), (State::Running, deaths, 0));
    }
}

pub(crate) async fn a_lease_dropped_with_its_worker_comes_back(f: Fixture) {
    let id = put_one(&f.broker, job()).await;
    let mut gone = f.hasty_worker().await;
    drop(gone.one().await);
    f.lose(gone).await;
    let delivery = f.worker().await.one().await;
    assert_eq!(delivery.head.id, id);
    assert_eq!(delivery.lease.claim().await.unwrap(), Claim::Fresh { deaths: 1 });
    assert_eq!(end(delivery, End::Succeeded).await, Settled::Applied);
}

pub(crate) async fn a_beaten_lease_does_not_come_back(f: Fixture) {
    let id = put_one(&f.broker, job()).await;
    let (mut worker, mut other) = (f.hasty_worker().await, f.worker().await);
    let delivery = worker.one().await;
    let start = Instant::now();
    let beats = async {
        let mut ticks = interval(SHORT / 6);
        while start.elapsed() < SHORT * 4 {
            ticks.tick().await;
            assert_eq!(delivery.lease.beat().await.unwrap(), Beat::Kept);
        }
    };
    tokio::join!(beats, other.finds_nothing());
    assert_eq!(see(&f.broker, id).await.deaths, 0);
    assert_eq!(end(delivery, End::Succeeded).await, Settled::Applied);
}

pub(crate) async fn a_lease_that_was_taken_over_is_lost(f: Fixture) {
    put_one(&f.broker, job()).await;
    let mut worker = f.hasty_worker().await;
    let lost = worker.one().await;
    f.lose(worker).await;
    let taken = f.worker().await.one().await;
    assert_ne!(lost.lease.id(), taken.lease.id());
    assert_eq!(lost.lease.beat().await.unwrap(), Beat::Lost);
    assert!(!f.claims_when_asked() || matches!(lost.lease.claim().await.unwrap(), Claim::Taken { .. }));
    assert_eq!(taken.lease.beat().await.unwrap(), Beat::Kept);
}

pub(crate) async fn a_job_that_another_copy_ended_is_told_so(f: Fixture) {
    put_one(&f.broker, job()).await;
    let mut worker = f.hasty_worker().await;
    let lost = worker.one().await;
    f.lose(worker).await;
    f.worker().await.ends_one(End::Succeeded).await;
    assert_eq!(lost.lease.beat().await.unwrap(), Beat::Ended);
    if f.claims_when_asked() {
        assert_eq!(lost.lease.claim().await.unwrap(), Claim::Ended(State::Succeeded));
    }
}

pub(crate) async fn a_job_given_back_goes_ahead_of_its_lane(f: Fixture) {
    let first = put_one(&f.broker, job()).await;
    let mut gone = f.hasty_worker().await;
    drop(gone.one().await);
    let second = put_one(&f.broker, job()).await;
    let gone = f.lose(gone).await;
    f.broker.recover(&gone).await.unwrap();
    let order: Vec<_> = f.worker().await.take(2).await.iter().map(|delivery| delivery.head.id).collect();
    assert!(order == [first, second] || !f.keeps_order() && order == [second, first], "{order:?}");
}

pub(crate) async fn recover_gives_a_workers_jobs_back_at_once(f: Fixture) {
    // In a queue of its own: on RabbitMQ a worker is given a job more than it has begun, which another cannot get.
    let apart = queue("apart");
    put(&f.broker, &[job_in(&apart), job_in(&apart)]).await;
    let mut alive = f.worker_on(&[(apart, 1)], LONG).await;
    let kept = alive.take(2).await;
    put(&f.broker, &jobs(3)).await;
    let mut gone = f.worker().await;
    let lost: HashSet<_> = gone.take(3).await.iter().map(|delivery| delivery.head.id).collect();
    let gone = f.lose(gone).await;
    assert_eq!(f.second().await.recover(&gone).await.unwrap(), 3);
    let mut successor = f.worker().await;
    for delivery in successor.take(3).await {
        assert!(lost.contains(&delivery.head.id));
        assert_eq!(delivery.lease.claim().await.unwrap(), Claim::Fresh { deaths: 1 });
        end(delivery, End::Succeeded).await;
    }
    assert_eq!(f.broker.recover(&gone).await.unwrap(), 0);
    for delivery in kept {
        assert_eq!(delivery.lease.beat().await.unwrap(), Beat::Kept);
    }
}

pub(crate) async fn next_with_nothing_to_lease_answers_soon(f: Fixture) {
    let mut worker = f.worker().await;
    let found = timeout(Duration::from_secs(3), worker.consumer.next(&want(1))).await.expect("answers").unwrap();
    assert!(found.deliveries.is_empty() && found.lanes_seen.is_empty());
    put_one(&f.broker, job()).await;
    let closed = timeout(Duration::from_secs(3), worker.consumer.next(&want(0))).await.expect("answers").unwrap();
    assert!(closed.deliveries.is_empty());
    assert_eq!(closed.lanes_seen, [job().lane()]);
}

pub(crate) async fn an_answer_is_bounded_in_bytes(f: Fixture) {
    for mib in [7, 7, 7, 10, 1, 0] {
        put_one(&f.broker, Job { work: Work::prompt(Some("mock"), "x".repeat(mib << 20)), ..job() }).await;
    }
    let mut worker = f.worker().await;
    let mut answers = Vec::new();
    while answers.iter().sum::<usize>() < 6 {
        let found = worker.consumer.next(&want(100)).await.unwrap().deliveries;
        let bytes: usize = found.iter().map(|delivery| delivery.payload.len()).sum();
        assert!(bytes <= LEASE_BYTES || found.len() == 1, "{bytes} bytes at once");
        answers.push(found.len());
    }
    assert!(answers == [2, 1, 3] || !f.leases_at_once(), "{answers:?}: nothing is leased that is not handed out");
}

pub(crate) async fn next_survives_cancellation(f: Fixture) {
    const JOBS: usize = 200;
    put(&f.broker, &jobs(JOBS)).await;
    let mut worker = f.worker().await;
    let mut seen = HashSet::new();
    let start = Instant::now();
    while seen.len() < JOBS {
        assert!(start.elapsed() < PATIENCE, "{} of {JOBS} jobs came", seen.len());
        let patience = Duration::from_micros(rand::rng().random_range(0..3_000));
        let Ok(found) = timeout(patience, worker.consumer.next(&want(3))).await else { continue };
        let found = found.unwrap().deliveries;
        assert!(found.len() <= 3);
        for delivery in found {
            assert!(seen.insert(delivery.head.id), "delivered twice");
            assert_eq!(end(delivery, End::Succeeded).await, Settled::Applied);
        }
    }
    assert_eq!(f.broker.depth(&Queue::standard()).await.unwrap(), promptq_common::broker::Depth::default());
}

pub(crate) async fn close_releases_what_was_not_handed_out(f: Fixture) {
    const JOBS: usize = 40;
    put(&f.broker, &jobs(JOBS)).await;
    let mut worker = f.worker().await;
    let mut held = Vec::new();
    for micros in (0..30).map(|n| n * 40) {
        if let Ok(found) = timeout(Duration::from_micros(micros), worker.consumer.next(&want(1))).await {
            held.extend(found.unwrap().deliveries);
        }
    }
    worker.consumer.close().await.unwrap();
    let mut rest = f.worker().await;
    let others = rest.take(JOBS - held.len()).await;
    let ids: HashSet<_> = held.iter().chain(&others).map(|delivery| delivery.head.id).collect();
    assert_eq!(ids.len(), JOBS);
    for delivery in others {
        assert_eq!(delivery.lease.claim().await.unwrap(), Claim::Fresh { deaths: 0 });
    }
}

pub(crate) async fn a_queue_named_twice_is_refused(f: Fixture) {
    let twice = [(Queue::standard(), 1), (queue("a"), 2), (Queue::standard(), 3)];
    let error = f.broker.consume(terms(&twice, LONG)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Config);
}

pub(crate) async fn jobs_of_other_queues_are_not_leased(f: Fixture) {
    let stray = put_one(&f.broker, Job { queue: queue("elsewhere"), ..registered() }).await;
    let id = put_one(&f.broker, job()).await;
    let mut worker = f.worker().await;
    assert_eq!(worker.take(1).await[0].head.id, id);
    worker.finds_nothing().await;
    assert_eq!(state(&f.broker, stray).await, State::Queued);
}

pub(crate) async fn a_queue_may_be_subscribed_to_before_it_exists(f: Fixture) {
    let late = queue("late");
    let mut worker = f.worker_on(&[(late.clone(), 1)], LONG).await;
    worker.finds_nothing().await;
    let id = put_one(&f.broker, job_in(&late)).await;
    assert_eq!(worker.one().await.head.id, id);
}

pub(crate) async fn two_handles_drain_everything_exactly_once(f: Fixture) {
    const JOBS: usize = 2_000;
    put(&f.broker, &jobs(JOBS)).await;
    let other = f.second().await;
    let mut first = f.worker().await;
    let mut second = Worker::on(&other, terms(&[(Queue::standard(), 1)], LONG)).await;
    let (mut a, mut b) = (Vec::new(), Vec::new());
    tokio::join!(drain_gently(&mut first, &mut a), drain_gently(&mut second, &mut b));
    let once: HashSet<_> = a.iter().chain(&b).collect();
    assert_eq!((a.len() + b.len(), once.len()), (JOBS, JOBS));
    let depth = f.broker.depth(&Queue::standard()).await.unwrap();
    assert_eq!((depth.ready, depth.delayed, depth.running, depth.dead), (0, 0, 0, 0));
}

/// Ends what it leases all at once, so that a backend may gather.
async fn drain_gently(worker: &mut Worker, answered: &mut Vec<promptq_common::job::JobId>) {
    loop {
        let found = worker.consumer.next(&want(50)).await.unwrap().deliveries;
        if found.is_empty() {
            return;
        }
        answered.extend(found.iter().map(|delivery| delivery.head.id));
        let settled = futures_util::future::join_all(found.into_iter().map(|one| end(one, End::Succeeded))).await;
        assert!(settled.iter().all(|one| *one == Settled::Applied));
    }
}

pub(crate) async fn an_idle_worker_gets_a_dead_ones_job_when_its_lease_ends(f: Fixture) {
    put_one(&f.broker, job()).await;
    let mut gone = f.hasty_worker().await;
    drop(gone.one().await);
    f.lose(gone).await;
    let since = Instant::now();
    let _again = f.worker().await.one().await;
    assert!(since.elapsed() < SHORT + Duration::from_secs(2), "{:?}", since.elapsed());
}
