//! Jobs that last longer than the server lets a delivery stay open: their messages change to the worker's own hold queue
//! and back, whatever happens to worker, server and queue meanwhile.

use std::time::{Duration, Instant};

use promptq_common::broker::amqp::Settings;
use promptq_common::broker::{Claim, Retention, Verdict, WorkerId};
use promptq_common::job::Queue;
use promptq_common::record::{End, State};
use promptq_tests::backends::terms;
use promptq_tests::fixture::{job, retry};
use promptq_tests::rabbit::{Options, RabbitServer, RawClient, RawMessage};
use promptq_tests::site::{jobs, put, until};
use promptq_tests::steps::{Worker, end, put_one, state, sweep, want};

use super::{Stand, all_succeed, seen};

const LEASE: Duration = Duration::from_secs(3);

/// Messages change after half of `millis`.
fn patience(millis: u64) -> Settings {
    let levels = [50, 500, 5_000].map(Duration::from_millis).to_vec();
    Settings { consumer_timeout: Duration::from_millis(millis), levels, ..Settings::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_outlast_the_server_are_called_once() {
    let stand = Stand::new(patience(4_000), 10_000).await;
    let watch = stand.watch(&["publish.pq1.hold.#"]).await;
    let broker = stand.broker().await;
    put(&broker, &jobs(1..=4)).await;
    // All of its slots are taken, so that it asks for nothing meanwhile.
    let worker = stand.site.worker(1, &stand.setup(4, LEASE));
    all_succeed(&broker, 4, Duration::from_secs(30)).await;
    assert_eq!(stand.site.provider.calls().len(), 4, "one call each");
    let swaps = seen(&watch).await;
    assert!(swaps.len() == 4 && swaps.values().all(|count| (2..=8).contains(count)), "{:?}", swaps.values());
    stand.is_empty().await;
    worker.leaves();
    sweep(&broker, &Retention::standard()).await;
    assert_eq!(stand.host.queues().iter().filter(|queue| queue.name.starts_with("pq1.hold.")).count(), 0);
}

/// Hours in small: six minutes, run only when asked for, see ARCHITECTURE.md.
#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_minutes_outlast_a_server_that_waits_for_one() {
    let server = RabbitServer::start(Options::new().with("consumer_timeout = 60000"));
    let stand = Stand::on(server, patience(60_000), 300_000).await;
    let watch = stand.watch(&["publish.pq1.hold.#"]).await;
    let broker = stand.broker().await;
    put(&broker, &jobs(1..=8)).await;
    let lease = Duration::from_secs(45);
    let full = stand.site.worker(1, &stand.setup(4, lease));
    let with_room = stand.site.worker(2, &stand.setup(8, lease));
    all_succeed(&broker, 8, Duration::from_secs(400)).await;
    assert_eq!(stand.site.provider.calls().len(), 8, "one call each");
    let swaps = seen(&watch).await;
    assert!(swaps.len() == 8 && swaps.values().all(|count| (2..=12).contains(count)), "{:?}", swaps.values());
    assert!(!stand.server.log().contains("PRECONDITION_FAILED"), "{}", stand.server.log());
    stand.is_empty().await;
    full.leaves();
    with_room.leaves();
}

/// The same for nine minutes, in which a worker is killed whose messages have changed.
#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_minutes_outlast_the_death_of_their_worker_too() {
    let server = RabbitServer::start(Options::new().with("consumer_timeout = 60000"));
    let stand = Stand::on(server, patience(60_000), 300_000).await;
    let watch = stand.watch(&["publish.pq1.hold.#"]).await;
    let broker = stand.broker().await;
    put(&broker, &jobs(1..=4)).await;
    let lease = Duration::from_secs(45);
    let first = stand.site.worker(1, &stand.setup(4, lease));
    swapped(&stand, 4).await;
    let second = stand.site.worker(2, &stand.setup(4, lease));
    until("the other is there", async || (broker.ledger().workers().await.unwrap().len() == 2).then_some(())).await;
    drop(first);
    let killed = Instant::now();
    until("all are called again", async || (stand.site.provider.calls().len() == 8).then_some(())).await;
    assert!(killed.elapsed() < lease + Duration::from_secs(2), "only after {:?}", killed.elapsed());
    all_succeed(&broker, 4, Duration::from_secs(400)).await;
    assert_eq!(stand.site.provider.calls().len(), 8, "one call more for each slot of the dead worker");
    // Not told apart by job: a message that had to wait says until when.
    let swaps: usize = seen(&watch).await.values().sum();
    assert!((4 * 3..=4 * 14).contains(&swaps), "{swaps}");
    assert!(!stand.server.log().contains("PRECONDITION_FAILED"), "{}", stand.server.log());
    stand.is_empty().await;
    second.leaves();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_workers_long_jobs_are_soon_with_another() {
    let stand = Stand::new(patience(2_000), 6_000).await;
    let broker = stand.broker().await;
    put(&broker, &jobs(1..=2)).await;
    let first = stand.site.worker(1, &stand.setup(2, LEASE));
    until("both messages are in the hold queue", async || (stand.held() == (0, 2)).then_some(())).await;
    let dead = broker.ledger().workers().await.unwrap().remove(0).id;
    let second = stand.site.worker(2, &stand.setup(2, LEASE));
    until("the other is there", async || (broker.ledger().workers().await.unwrap().len() == 2).then_some(())).await;
    drop(first);
    let killed = Instant::now();
    until("both are called again", async || (stand.site.provider.calls().len() == 4).then_some(())).await;
    assert!(killed.elapsed() < LEASE + Duration::from_secs(2), "only after {:?}", killed.elapsed());
    all_succeed(&broker, 2, Duration::from_secs(20)).await;
    assert_eq!(stand.site.provider.calls().len(), 4, "one call more for each slot of the dead worker");
    stand.is_empty().await;
    // A minute later.
    broker.ledger().leave(&dead).await.unwrap();
    sweep(&broker, &Retention::standard()).await;
    let hold = format!("pq1.hold.{dead}");
    assert_eq!(stand.host.queue(&hold), None);
    second.leaves();
}

/// A worker in this process whose jobs do not end by themselves.
async fn worker(stand: &Stand, lease: Duration) -> Worker {
    let mut terms = terms(&[(Queue::standard(), 1)], lease);
    terms.worker = WorkerId::random("here");
    Worker::on(&stand.broker().await, terms).await
}

/// Waits until the messages of so many jobs are in the worker's hold queue, and with it.
async fn swapped(stand: &Stand, count: u64) {
    until("the messages have changed", async || (stand.held() == (0, count)).then_some(())).await;
}

/// Waits until every queue is empty. What is left are copies, which somebody has to look at.
async fn nothing_is_left(stand: &Stand, worker: &mut Worker) {
    let looking = async {
        loop {
            assert_eq!(worker.drain().await, [], "a job that has ended is given out again");
        }
    };
    tokio::select! {
        () = stand.is_empty() => {}
        () = looking => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_copy_of_an_earlier_attempt_does_not_stand_for_the_later_one() {
    let stand = Stand::new(patience(1_500), 0).await;
    let watch = stand.watch(&["publish.pq1.hold.#"]).await;
    let broker = stand.broker().await;
    let id = put_one(&broker, job()).await;
    let mut here = worker(&stand, Duration::from_secs(30)).await;
    let hold = format!("pq1.hold.{}", here.id);
    let first = here.one().await;
    swapped(&stand, 1).await;
    let copy = watch.take(super::WATCH).await.unwrap();
    let verdict = retry(&first.head, Duration::ZERO);
    first.lease.settle(verdict).await.unwrap();
    let second = here.one().await;
    assert_eq!((second.head.id, second.head.attempts), (id, 1));
    let late = RawMessage {
        exchange: hold,
        routing_key: "default.mock.normal".to_owned(),
        content_type: Some("application/x-promptq-job".to_owned()),
        durable: true,
        body: copy.body,
        ..RawMessage::default()
    };
    let client = RawClient::connect(&stand.host.url()).await;
    assert!(client.publish(&late).await);
    until("the late copy was looked at", async || (stand.held() == (0, 0)).then_some(())).await;
    // Its worker is gone without a word: the later attempt must come again.
    let Worker { id: gone, consumer } = here;
    drop((second, consumer));
    broker.recover(&gone).await.unwrap();
    let again = worker(&stand, Duration::from_secs(30)).await.one().await;
    assert_eq!((again.head.id, again.head.attempts), (id, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_queue_that_somebody_deletes_is_made_again() {
    let stand = Stand::new(patience(3_000), 0).await;
    let broker = stand.broker().await;
    let id = put_one(&broker, job()).await;
    let mut here = worker(&stand, Duration::from_secs(60)).await;
    let job = here.one().await;
    swapped(&stand, 1).await;
    stand.delete(&format!("pq1.hold.{}", here.id));
    swapped(&stand, 1).await;
    end(job, End::Succeeded).await;
    nothing_is_left(&stand, &mut here).await;
    assert_eq!(state(&broker, id).await, State::Succeeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_becomes_long_while_its_worker_leaves_keeps_its_message() {
    let server = tokio::task::block_in_place(RabbitServer::shared);
    let stand = Stand::on(server, patience(1_500), 0).await;
    let broker = stand.broker().await;
    let id = put_one(&broker, job()).await;
    let mut here = worker(&stand, Duration::from_secs(60)).await;
    let job = here.one().await;
    here.consumer.close().await.unwrap();
    swapped(&stand, 1).await;
    end(job, End::Succeeded).await;
    assert_eq!(state(&broker, id).await, State::Succeeded);
    stand.is_empty().await;
}

/// Whatever becomes of jobs while their messages change, once a quarter of a second.
#[tokio::test(flavor = "multi_thread")]
async fn jobs_end_retry_and_go_back_while_their_messages_change() {
    let mut stand = Stand::new(patience(1_000), 0).await;
    let broker = stand.broker().await;
    let sent: Vec<_> = (0..60).map(|_| job()).collect();
    promptq_tests::steps::put(&broker, &sent).await;
    let mut here = worker(&stand, Duration::from_secs(20)).await;
    let mut taken = here.take(60).await;
    let (mut ended, mut turn) = (0, 0_u64);
    while ended < sent.len() {
        assert!(turn < 2_000, "{ended} jobs have ended");
        turn += 1;
        let tick = tokio::time::Instant::now() + Duration::from_millis(17);
        tokio::time::sleep_until(tick).await;
        if let Some(delivery) = taken.pop() {
            let after = Duration::from_millis(turn % 3 * 40);
            match turn % 4 {
                0 if delivery.head.attempts < 4 => {
                    let verdict = retry(&delivery.head, after);
                    delivery.lease.settle(verdict).await.unwrap();
                }
                1 => {
                    let verdict = Verdict::Release { after, hold: None };
                    delivery.lease.settle(verdict).await.unwrap();
                }
                _ => {
                    assert_eq!(delivery.lease.claim().await.unwrap(), Claim::Fresh { deaths: 0 });
                    end(delivery, End::Succeeded).await;
                    ended += 1;
                }
            }
        }
        for beat in futures_util::future::join_all(taken.iter().map(|delivery| delivery.lease.beat())).await {
            beat.unwrap();
        }
        let wanted = want(60 - taken.len());
        let asked = here.consumer.next(&wanted);
        if let Ok(found) = tokio::time::timeout(Duration::from_millis(20), asked).await {
            taken.splice(0..0, found.unwrap().deliveries);
        }
        if turn == 40 {
            tokio::task::block_in_place(|| stand.server.restart());
        }
    }
    nothing_is_left(&stand, &mut here).await;
    all_succeed(&broker, 60, Duration::from_secs(1)).await;
}
