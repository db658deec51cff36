//! What the scripts leave in the server: the order within a lane, and that nothing stays behind.

use std::time::Duration;

use promptq_common::broker::{Beat, Claim, HoldKey, Retention, Verdict};
use promptq_common::job::{Job, JobId, Queue};
use promptq_common::record::{End, State};
use promptq_common::time::Timestamp;
use promptq_common::work::Work;
use promptq_tests::backends::{LONG, SHORT, terms};
use promptq_tests::fixture::{batch, job, job_of, jobs, release, retry};
use promptq_tests::steps::{PATIENCE, Worker, end, eventually, put, put_one, state, sweep, want};

use tokio::time::Instant;

use super::Setup;

/// As the broker sends it.
const SWEEP: &str = concat!(
    include_str!("../../../common/src/broker/redis/scripts/book.lua"),
    "\n",
    include_str!("../../../common/src/broker/redis/scripts/moves.lua"),
    "\n",
    include_str!("../../../common/src/broker/redis/scripts/sweep.lua")
);

impl Setup {
    async fn worker(&self, lease: Duration) -> Worker {
        Worker::on(&self.broker, terms(&[(Queue::standard(), 1)], lease)).await
    }

    /// Puts in so many, oldest first.
    async fn put(&self, count: usize) -> Vec<JobId> {
        let jobs = jobs(count);
        put(&self.broker, &jobs).await;
        jobs.iter().map(|job| job.id).collect()
    }

    /// The answer to a command about one of the standard queue's keys.
    fn number(&self, command: &str, key: &str, more: &[&str]) -> i64 {
        let key = format!("{{pq:default}}:{key}");
        let words: Vec<&str> = [command, &key].into_iter().chain(more.iter().copied()).collect();
        self.server.must(&words).number()
    }
}

async fn order(worker: &mut Worker, count: usize) -> Vec<JobId> {
    worker.take(count).await.iter().map(|delivery| delivery.head.id).collect()
}

#[tokio::test]
async fn a_job_that_comes_again_by_its_own_fault_goes_behind() {
    let setup = Setup::new().await;
    let ids = setup.put(3).await;
    let mut worker = setup.worker(LONG).await;
    let first = worker.one().await;
    let again = retry(&first.head, Duration::ZERO);
    first.lease.settle(again).await.unwrap();
    // Its old place in the line is void.
    setup.broker.cancel(&[ids[1]]).await.unwrap();
    setup.broker.redrive(&[ids[1]]).await.unwrap();
    assert_eq!(order(&mut worker, 3).await, [ids[2], ids[0], ids[1]]);
}

#[tokio::test]
async fn jobs_that_were_held_go_ahead_when_they_are_due_or_woken() {
    let setup = Setup::new().await;
    let ids = setup.put(6).await;
    let mut worker = setup.worker(LONG).await;
    let key = HoldKey::Limit("k".into());
    for after in [LONG * 3, LONG * 2] {
        let verdict = Verdict::Release { after, hold: Some(key.clone()) };
        worker.one().await.lease.settle(verdict).await.unwrap();
    }
    // Leased together: whoever leases looks at what is due first.
    let [two, three] = worker.take(2).await.try_into().unwrap();
    let due = Timestamp::now() + SHORT;
    for (delivery, later) in [(two, Duration::ZERO), (three, Duration::from_millis(20))] {
        let after = (due + later).since(Timestamp::now());
        delivery.lease.settle(Verdict::Release { after, hold: None }).await.unwrap();
    }
    eventually("both are due", || async { (Timestamp::now() > due + SHORT / 2).then_some(()) }).await;
    assert_eq!(setup.broker.wake(&key).await.unwrap(), 2);
    assert_eq!(order(&mut worker, 6).await, [ids[2], ids[3], ids[1], ids[0], ids[4], ids[5]]);
}

#[tokio::test]
async fn jobs_of_a_dead_worker_come_back_in_their_order() {
    let setup = Setup::new().await;
    let ids = setup.put(5).await;
    drop(setup.worker(SHORT).await.take(4).await);
    let mut worker = setup.worker(LONG).await;
    setup.broker.pause(&Queue::standard(), Some("until they are all back")).await.unwrap();
    let began = Instant::now();
    while setup.running().await > 0 {
        assert!(began.elapsed() < PATIENCE, "their leases have not run out");
        assert!(worker.consumer.next(&want(1)).await.unwrap().deliveries.is_empty(), "it is paused");
    }
    setup.broker.pause(&Queue::standard(), None).await.unwrap();
    assert_eq!(order(&mut worker, 5).await, ids);
}

#[tokio::test]
async fn a_job_may_be_given_back_more_often_than_a_byte_counts() {
    let setup = Setup::new().await;
    let id = setup.put(1).await[0];
    let mut worker = setup.worker(LONG).await;
    for _ in 0..300 {
        let delivery = worker.one().await;
        assert_eq!(delivery.head.id, id);
        delivery.lease.settle(release()).await.unwrap();
    }
}

#[tokio::test]
async fn the_oldest_ready_job_is_as_old_as_its_last_wait() {
    let setup = Setup::new().await;
    setup.put(1).await;
    let mut worker = setup.worker(LONG).await;
    let delivery = worker.one().await;
    let put_in = Timestamp::now();
    eventually("time passes", || async { (Timestamp::now() > put_in + SHORT).then_some(()) }).await;
    delivery.lease.settle(release()).await.unwrap();
    let oldest = async || setup.broker.depth(&Queue::standard()).await.unwrap().oldest_ready.unwrap();
    assert!(oldest().await >= put_in + SHORT);
    let delivery = worker.one().await;
    let due = Timestamp::now() + SHORT;
    let again = retry(&delivery.head, SHORT);
    delivery.lease.settle(again).await.unwrap();
    eventually("it is due", || async { (Timestamp::now() > due + SHORT / 10).then_some(()) }).await;
    assert_eq!(state(&setup.broker, delivery.head.id).await, State::Queued, "it waits only for a worker to see it");
    assert!(oldest().await.since(due) < SHORT);
    // A look moves it into its lane.
    worker.consumer.next(&want(0)).await.unwrap();
    assert!(oldest().await >= due && oldest().await.since(due) < SHORT);
}

#[tokio::test]
async fn a_batch_that_was_cancelled_by_a_process_that_died_right_after_is_cancelled() {
    let setup = Setup::new().await;
    let name = batch("b");
    put(&setup.broker, &(0..3).map(|_| job_of(&name)).collect::<Vec<_>>()).await;
    let mut worker = setup.worker(LONG).await;
    let [runs, is_released] = worker.take(2).await.try_into().unwrap();
    setup.server.must(&["EVAL", SWEEP, "1", "{pq:default}", "stop", "b"]);
    assert_eq!(runs.lease.beat().await.unwrap(), Beat::Cancelled);
    assert_eq!(runs.lease.claim().await.unwrap(), Claim::Cancelled);
    let id = is_released.head.id;
    is_released.lease.settle(release()).await.unwrap();
    assert_eq!(state(&setup.broker, id).await, State::Cancelled);
    worker.finds_nothing().await;
    end(runs, End::Cancelled).await;
    assert_eq!(promptq_tests::steps::view(&setup.broker, &name).await.counts.cancelled, 3);
}

#[tokio::test]
async fn void_places_in_a_lane_cost_no_call_each() {
    let setup = Setup::new().await;
    let ids = setup.put(301).await;
    let mut worker = setup.worker(LONG).await;
    worker.consumer.next(&want(0)).await.unwrap();
    setup.broker.cancel(&ids[..300]).await.unwrap();
    setup.count_anew();
    assert_eq!(order(&mut worker, 1).await, ids[300..]);
    let calls = setup.calls();
    assert!(calls <= 5, "{calls} calls");
}

#[tokio::test]
async fn tokens_do_not_pile_up() {
    let setup = Setup::new().await;
    for _ in 0..5 {
        setup.put(1).await;
    }
    assert_eq!(setup.number("LLEN", "wake", &[]), 1);
}

#[tokio::test]
async fn a_worker_that_can_take_nothing_leaves_the_job_to_another() {
    let setup = Setup::new().await;
    let mut shut = super::subscription(&setup.backend, &[Queue::standard()], LONG).await;
    let closed = promptq_common::broker::Want { caps: vec![(job().lane(), 0)], ..want(1) };
    let mut open = setup.worker(LONG).await;
    let shut_asks = async {
        for _ in 0..2 {
            assert!(shut.next(&closed).await.unwrap().deliveries.is_empty());
        }
    };
    let open_asks = async {
        setup.until_waiting(1).await;
        let put_at = async {
            setup.until_waiting(2).await;
            setup.put(1).await;
            Instant::now()
        };
        let (_delivery, put_at) = tokio::join!(open.one(), put_at);
        assert!(put_at.elapsed() < Duration::from_secs(2), "{:?}", put_at.elapsed());
    };
    tokio::join!(shut_asks, open_asks);
}

#[tokio::test]
async fn what_a_job_left_of_an_earlier_end_goes_with_it() {
    let setup = Setup::new().await;
    let large = Job { work: Work::prompt(Some("mock"), "x".repeat(10_000)), ..job() };
    let id = put_one(&setup.broker, large).await;
    let mut worker = setup.worker(LONG).await;
    worker.ends_one(End::Dead).await;
    assert!(setup.number("HGET", "c", &["bytes"]) > 0);
    setup.broker.redrive(&[id]).await.unwrap();
    assert_eq!(setup.number("HGET", "c", &["bytes"]), 0);
    assert_eq!((setup.number("HLEN", "body", &[]), setup.number("ZCARD", "dead", &[])), (0, 0));
    assert_eq!(setup.number("HLEN", "big", &[]), 1);
    worker.ends_one(End::Succeeded).await;
    assert_eq!(setup.number("HLEN", "big", &[]), 0);
}

#[tokio::test]
async fn numbers_that_no_job_has_any_more_are_forgotten() {
    let setup = Setup::new().await;
    let large = Job { work: Work::prompt(Some("mock"), "x".repeat(10_000)), ..job() };
    let id = put_one(&setup.broker, large).await;
    setup.put(299).await;
    setup.broker.purge(&Queue::standard()).await.unwrap();
    let went = Timestamp::now();
    eventually("time passes", || async { (Timestamp::now() > went + SHORT / 10).then_some(()) }).await;
    let (none, tombstones) = (Duration::ZERO, Duration::from_secs(60));
    sweep(&setup.broker, &Retention { succeeded: none, dead: none, bytes: 1 << 40, tombstones }).await;
    assert_eq!(state_is_gone(&setup, id).await, None);
    for key in ["jobs", "state", "big", "body"] {
        assert_eq!(setup.number("HLEN", key, &[]), 0, "{key}");
    }
    // The newest 256 numbers are kept for jobs still to come.
    assert_eq!((setup.number("HEXISTS", "alive", &["0"]), setup.number("EXISTS", "o:0", &[])), (0, 0));
    let overdue = setup.server.must(&["ZRANGE", "{pq:default}:overdue", "0", "-1"]);
    assert!(!overdue.list().iter().any(|chunk| chunk.text() == "0"), "{overdue:?}");
}

async fn state_is_gone(setup: &Setup, id: JobId) -> Option<State> {
    setup.broker.ledger().fetch(&[id]).await.unwrap().pop().flatten().map(|job| job.state)
}
