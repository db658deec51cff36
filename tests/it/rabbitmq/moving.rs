//! Moving jobs between brokers of which one is RabbitMQ: what is refused before anything is connected to, and what a walk
//! through messages has to meet.

use std::time::Duration;

use promptq_common::broker::amqp::QueueType;
use promptq_common::broker::{Broker, MAX_BATCH, Redriven, Retention, Verdict};
use promptq_common::job::{Job, Queue};
use promptq_common::record::State;
use promptq_common::time::Timestamp;
use promptq_tests::backends::{LONG, terms};
use promptq_tests::carrier::Carrier;
use promptq_tests::fixture::{job_at, job_in, queue, registered};
use promptq_tests::process::{Home, Said};
use promptq_tests::rabbit::RawClient;
use promptq_tests::steps::{Worker, eventually, put, put_one, see, state, sweep};

/// A place, and a connection to it.
async fn place() -> (Carrier, Broker) {
    let carrier = Carrier::with_redis(QueueType::Quorum);
    let (backend, ledger) = carrier.connect().await;
    (carrier, Broker::new(backend, ledger))
}

#[tokio::test]
async fn a_job_that_comes_due_while_others_are_looked_at_is_met() {
    let (carrier, broker) = place().await;
    let soon = Timestamp::now() + Duration::from_millis(600);
    let delayed = put_one(&broker, Job { not_before: Some(soon), ..job_at(8) }).await;
    let ready = put_one(&broker, job_at(1)).await;
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = broker.waiting(&Queue::standard(), after.as_deref(), 1).await.unwrap();
        seen.extend(page.items.iter().map(|envelope| envelope.head.id));
        after = page.next;
        if after.is_none() {
            break;
        }
        // Whatever is not in hand by now is in its lane.
        let none_delayed = || async { (carrier.host.counts("pq1.delay.").0 == 0).then_some(()) };
        eventually("nothing is left in a delay queue", none_delayed).await;
    }
    seen.sort_unstable();
    let mut all = [delayed, ready];
    all.sort_unstable();
    assert_eq!(seen, all);
}

#[tokio::test]
async fn other_queues_delayed_jobs_are_walked_past_and_not_held() {
    let carrier = Carrier::with_redis(QueueType::Quorum);
    let broker = carrier.as_people_do().await;
    let (other, later) = (queue("other"), Timestamp::now() + Duration::from_secs(3_600));
    let delayed = |job: Job| Job { not_before: Some(later), ..job };
    let mut others = Vec::new();
    for _ in 0..3 {
        others.push(put_one(&broker, delayed(job_in(&other))).await.to_string());
    }
    let ours = put_one(&broker, delayed(job_at(5))).await;
    others.push(put_one(&broker, delayed(job_in(&other))).await.to_string());
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = broker.waiting(&Queue::standard(), after.as_deref(), 1).await.unwrap();
        seen.extend(page.items.iter().map(|envelope| envelope.head.id));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen, [ours]);
    let held = || async { (carrier.host.counts("pq1.delay.") == (4, 1)).then_some(()) };
    eventually("no other queue's job is in hand", held).await;
    // Each is there once, none has come early, and each says that it may be a copy.
    let client = RawClient::connect(&carrier.host.url()).await;
    let mut left = Vec::new();
    for delay in carrier.host.queues().into_iter().filter(|queue| queue.name.starts_with("pq1.delay.")) {
        for message in client.take_all(&delay.name).await {
            assert!(message.headers.contains_key("pq-dup"), "{message:?}");
            left.push(message.id.unwrap());
        }
    }
    left.sort_unstable();
    others.sort_unstable();
    assert_eq!((left, carrier.host.counts("pq1.q.")), (others, (0, 0)));
}

#[tokio::test]
async fn a_page_ends_where_only_other_queues_jobs_are_met() {
    let carrier = Carrier::with_redis(QueueType::Quorum);
    let broker = carrier.as_people_do().await;
    let later = Timestamp::now() + Duration::from_secs(3_600);
    let others: Vec<Job> = (0..2_001).map(|_| Job { not_before: Some(later), ..job_in(&queue("other")) }).collect();
    for part in others.chunks(MAX_BATCH) {
        put(&broker, part).await;
    }
    let (mut pages, mut after) = (0, None);
    loop {
        let page = broker.waiting(&Queue::standard(), after.as_deref(), 1).await.unwrap();
        assert!(page.items.is_empty(), "{page:?}");
        (pages, after) = (pages + 1, page.next);
        if after.is_none() || pages > 3 {
            break;
        }
    }
    // What waits in the delay queue is met twice, and 2,000 of it for one page.
    assert_eq!((pages, after), (3, None), "whoever moves jobs is to show that it lives, and to come to an end");
}

#[tokio::test]
async fn what_a_worker_passes_on_while_others_are_looked_at_is_met() {
    let carrier = Carrier::with_redis(QueueType::Quorum);
    let broker = carrier.as_people_do().await;
    let passed = put_one(&broker, registered()).await;
    let mut worker = Worker::on(&broker, terms(&[(Queue::standard(), 1)], LONG)).await;
    let delivery = worker.one().await;
    worker.consumer.close().await.unwrap();
    let ready = put_one(&broker, registered()).await;
    let first = broker.waiting(&Queue::standard(), None, 1).await.unwrap();
    let is_delayed = || async { (carrier.host.counts("pq1.delay.").0 == 1).then_some(()) };
    delivery.lease.settle(Verdict::Release { after: LONG, hold: None }).await.unwrap();
    eventually("it waits elsewhere", is_delayed).await;
    let (mut seen, mut after) = (first.items, first.next);
    while after.is_some() {
        let page = broker.waiting(&Queue::standard(), after.as_deref(), 1).await.unwrap();
        seen.extend(page.items);
        after = page.next;
    }
    let seen: Vec<_> = seen.iter().map(|envelope| envelope.head.id).collect();
    assert_eq!(seen, [ready, passed]);
}

#[tokio::test]
async fn a_job_whose_end_was_taken_back_is_met_with_its_deadline_of_today() {
    let (_carrier, broker) = place().await;
    let now = Timestamp::now();
    let late = Job { created_at: now - Duration::from_secs(3_600), deadline: now - LONG, ..registered() };
    let id = put_one(&broker, late).await;
    sweep(&broker, &Retention::standard()).await;
    assert_eq!(broker.redrive(&[id]).await.unwrap(), [Redriven::Queued { epoch: 0 }]);
    let page = broker.waiting(&Queue::standard(), None, MAX_BATCH).await.unwrap();
    let found: Vec<_> = page.items.iter().map(|item| (item.head.id, item.head.deadline)).collect();
    assert_eq!(found, [(id, see(&broker, id).await.deadline)]);
}

#[tokio::test]
async fn what_no_walk_has_in_hand_is_not_forgotten_and_runs() {
    let (carrier, broker) = place().await;
    let id = put_one(&broker, registered()).await;
    assert_eq!(broker.forget(&[(id, 0)]).await.unwrap(), 0);
    assert_eq!(state(&broker, id).await, State::Queued, "its message would run, and nobody would know it");
    let page = broker.waiting(&Queue::standard(), None, MAX_BATCH).await.unwrap();
    assert_eq!((page.items.len(), page.next), (1, None));
    assert_eq!(broker.forget(&[(id, 0)]).await.unwrap(), 1);
    let other = put_one(&broker, registered()).await;
    let mut worker = carrier.worker(terms(&[(Queue::standard(), 1)], LONG)).await;
    assert_eq!(worker.drain().await, [other]);
}

#[test]
fn one_ledger_cannot_serve_both_ends() {
    let home = Home::new();
    let moving = |from: &str, to: &str, ledger: &str| {
        let mut command = home.program("promptq", &["broker", "move", "--from", from, "--to", to, "--yes"]);
        let rabbit = if from.starts_with("amqp") { from } else { to };
        Said::of(command.env("PROMPTQ_BROKER", rabbit).env("PROMPTQ_LEDGER", ledger).env("PROMPTQ_STORE", "s3://none"))
    };
    // Port 9 answers nobody here.
    let (rabbit, other) = ("amqp://127.0.0.1:9/one", "amqp://127.0.0.1:9/two");
    let redis = "redis://127.0.0.1:9";
    moving(rabbit, other, redis).ends(2).says(&["same-ledger"]);
    moving("redis://me:x@127.0.0.1:9/0", rabbit, redis).ends(2).says(&["same-ledger"]);
    moving(rabbit, redis, redis).ends(2).says(&["same-ledger"]);
    moving("redis://127.0.0.1:9/1", rabbit, redis).ends(7);
}
