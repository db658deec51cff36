//! A network that cuts, stalls or loses connections between a worker and RabbitMQ while jobs run.

use std::time::{Duration, Instant};

use promptq_tests::farm::{Farm, HEARTBEAT};
use promptq_tests::proxy::{Network, Proxy};
use promptq_tests::site::{Setup, jobs, put, records, until};

use super::{RECOVERY, all_paid_once};

const JOBS: usize = 150;

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_goes_on_after_a_cut() {
    weathers(Network::Cut, Duration::from_millis(1_500)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_goes_on_after_a_stall_of_several_heartbeats() {
    weathers(Network::Stalled, HEARTBEAT * 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_leaves_connections_that_dangle() {
    weathers(Network::HalfOpen, HEARTBEAT * 3).await;
}

/// Trouble in the middle of the work: afterwards the worker goes on by itself soon, and nothing was called for twice.
async fn weathers(network: Network, length: Duration) {
    let farm = Farm::shared(20..=200).await;
    let proxy = Proxy::before(farm.rabbit.port()).await;
    put(&farm.broker().await, &jobs(1..=JOBS as u64)).await;
    let worker = farm.worker(1, &Setup { slots: 4, ..farm.setup_through(proxy.port()) });
    let ledger = farm.ledger().await;
    until("it works", async || (records(&ledger).await.len() >= 20).then_some(())).await;
    proxy.set(network);
    let began = Instant::now();
    until("the trouble is over", async || (began.elapsed() >= length).then_some(())).await;
    let before = records(&ledger).await.len();
    assert!(before < JOBS, "it had nothing to do any more");
    proxy.set(Network::Whole);
    let over = Instant::now();
    until("it goes on", async || (records(&ledger).await.len() > before).then_some(())).await;
    assert!(over.elapsed() < RECOVERY, "it took {:?} to go on: {}", over.elapsed(), worker.log());
    all_paid_once(&farm, JOBS).await;
    assert!(worker.log().contains("connecting again"), "it noticed nothing: {}", worker.log());
    worker.leaves();
}
