//! A RabbitMQ or a worker that is stopped (SIGSTOP) for longer than two heartbeats, and goes on.

use std::time::Instant;

use promptq_common::job::Queue;
use promptq_common::record::State;
use promptq_tests::farm::{Farm, HEARTBEAT};
use promptq_tests::site::{Hand, Setup, jobs, put, records, see, until};
use rustix::process::Signal;

use super::{SHORT, all_end_once, all_paid_once, called};

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_rabbitmq_is_waited_for() {
    let farm = Farm::private(200..=400).await;
    put(&farm.broker().await, &jobs(1..=60)).await;
    let worker = farm.worker(1, &Setup { slots: 4, ..farm.setup() });
    called(&farm, 8).await;
    farm.rabbit.pause();
    let began = Instant::now();
    until("four heartbeats have passed", async || (began.elapsed() >= HEARTBEAT * 4).then_some(())).await;
    assert!(records(&farm.ledger().await).await.len() < 60);
    farm.rabbit.resume();
    all_paid_once(&farm, 60).await;
    assert!(worker.log().contains("connecting again"), "it noticed nothing: {}", worker.log());
    worker.leaves();
}

/// A job in a worker that was stopped during its call, for longer than the lease and two heartbeats, and has become
/// another's.
async fn stopped_and_taken_over() -> (Farm, Hand, Hand) {
    let farm = Farm::shared(4_000..=4_000).await;
    let hasty = Setup { lease: SHORT, ..farm.setup() };
    let id = put(&farm.broker().await, &jobs(1..=1)).await[0];
    let stopped = farm.worker(1, &hasty);
    called(&farm, 1).await;
    stopped.signal(Signal::STOP);
    let other = farm.worker(2, &hasty);
    called(&farm, 2).await;
    let view = see(&farm.ledger().await, id).await;
    assert_eq!((view.state, view.deaths, view.attempts), (State::Running, 1, 0));
    (farm, stopped, other)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_late_answer_of_a_stopped_worker_is_kept_while_there_is_none() {
    let (farm, stopped, other) = stopped_and_taken_over().await;
    let ledger = farm.ledger().await;
    stopped.signal(Signal::CONT);
    let records = all_end_once(&ledger, 1).await;
    assert!(records[0].worker.as_ref().unwrap().starts_with("w1-"), "{:?}", records[0].worker);
    // The other one is told, drops its call and has room again.
    put(&farm.broker().await, &jobs(2..=3)).await;
    all_end_once(&ledger, 3).await;
    assert_eq!(farm.provider.calls().iter().filter(|call| call.job == 1).count(), 2);
    let depth = farm.broker().await.depth(&Queue::standard()).await.unwrap();
    assert_eq!((depth.running, depth.dead), (0, 0));
    farm.tidy().await;
    stopped.leaves();
    other.leaves();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_late_answer_of_a_stopped_worker_replaces_nothing() {
    let (farm, stopped, other) = stopped_and_taken_over().await;
    let ledger = farm.ledger().await;
    let records = all_end_once(&ledger, 1).await;
    let (worker, lease) = (records[0].worker.clone().unwrap(), records[0].lease);
    assert!(worker.starts_with("w2-"), "{worker}");
    stopped.signal(Signal::CONT);
    other.leaves();
    put(&farm.broker().await, &jobs(2..=2)).await;
    let records = all_end_once(&ledger, 2).await;
    assert_eq!((records[0].worker.as_ref(), records[0].lease), (Some(&worker), lease));
    assert!(records[1].worker.as_ref().unwrap().starts_with("w1-"));
    assert_eq!(farm.provider.calls().iter().filter(|call| call.job == 1).count(), 2, "nothing was started anew");
    farm.tidy().await;
    stopped.leaves();
}
