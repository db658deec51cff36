//! A RabbitMQ without memory, with a queue that is full or gone, or one that no longer lets a worker in.

use std::time::{Duration, Instant};

use promptq_tests::farm::{Farm, LANE, RESULTS};
use promptq_tests::rabbit::{Alarm, RawClient};
use promptq_tests::site::{Setup, jobs, put, records, until};

use super::{RECOVERY, all_end_once, all_paid_once, called, running};

/// How long "for as long as it lasts" is looked at.
const WHILE: Duration = Duration::from_secs(6);

async fn passes(length: Duration) {
    let began = Instant::now();
    until("a while has passed", async || (began.elapsed() >= length).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_memory_gives_out_nothing_new_and_hears_of_results_afterwards() {
    const JOBS: usize = 40;
    let farm = Farm::private(1_500..=1_500).await;
    put(&farm.broker().await, &jobs(1..=JOBS as u64)).await;
    let worker = farm.worker(1, &Setup { slots: 4, ..farm.setup() });
    called(&farm, 4).await;
    farm.rabbit.raise(Alarm::Memory);
    until("it takes no more", async || {
        let before = farm.provider.calls().len();
        passes(WHILE / 2).await;
        (farm.provider.calls().len() == before).then_some(())
    })
    .await;
    running(&farm, 0).await;
    let had = farm.provider.calls().len();
    // It notices after 5 s, in which it takes 16.
    assert!((4..=28).contains(&had), "{had} calls");
    passes(WHILE).await;
    assert_eq!(farm.provider.calls().len(), had, "nothing new is taken: {}", worker.log());
    assert_eq!(records(&farm.ledger().await).await.len(), had, "what was paid for is kept");
    farm.rabbit.clear(Alarm::Memory);
    all_paid_once(&farm, JOBS).await;
    let mut announced = RawClient::connect(&farm.host.url()).await.drain(RESULTS).await;
    announced.sort_unstable();
    announced.dedup();
    assert_eq!(announced.len(), JOBS);
    worker.leaves();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_results_queue_that_is_full_stops_the_taking_until_there_is_room() {
    const JOBS: usize = 400;
    let farm = Farm::shared(100..=100).await;
    let broker = farm.broker().await;
    put(&broker, &jobs(1..=1)).await;
    let worker = farm.worker(1, &Setup { slots: 4, ..farm.setup() });
    all_paid_once(&farm, 1).await;
    let client = RawClient::connect(&farm.host.url()).await;
    client.delete(RESULTS).await;
    client.declare(RESULTS, &[("x-max-length", "1"), ("x-overflow", "reject-publish")]).await.unwrap();
    put(&broker, &jobs(2..=JOBS as u64)).await;
    until("it takes no more", async || {
        let before = farm.provider.calls().len();
        passes(Duration::from_secs(3)).await;
        (before > 1 && farm.provider.calls().len() == before).then_some(())
    })
    .await;
    assert!(farm.provider.calls().len() < JOBS, "{}", farm.provider.calls().len());
    client.delete(RESULTS).await;
    client.declare(RESULTS, &[]).await.unwrap();
    all_paid_once(&farm, JOBS).await;
    worker.leaves();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_results_queue_that_is_gone_keeps_nobody_from_working() {
    let farm = Farm::shared(20..=20).await;
    let broker = farm.broker().await;
    put(&broker, &jobs(1..=1)).await;
    let worker = farm.worker(1, &farm.setup());
    all_paid_once(&farm, 1).await;
    RawClient::connect(&farm.host.url()).await.delete(RESULTS).await;
    put(&broker, &jobs(2..=20)).await;
    all_paid_once(&farm, 20).await;
    worker.leaves();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_may_not_announce_says_so_and_works_on() {
    let farm = Farm::shared(20..=20).await;
    put(&farm.broker().await, &jobs(1..=3)).await;
    // Results go to their queue by the exchange without a name, `amq.default`.
    let url = farm.host.url_of("mute", [".*", "^pq1\\..*$", ".*"]);
    let worker = farm.worker(1, &Setup { slots: 2, url, ..farm.setup() });
    all_paid_once(&farm, 3).await;
    assert_eq!(worker.log().matches("a result is not announced").count(), 3, "{}", worker.log());
    worker.leaves();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_was_deleted_is_consumed_again_once_it_is_back() {
    let farm = Farm::shared(1_000..=1_000).await;
    put(&farm.broker().await, &jobs(1..=1)).await;
    let mut worker = farm.worker(1, &farm.setup());
    called(&farm, 1).await;
    RawClient::connect(&farm.host.url()).await.delete(LANE).await;
    all_end_once(&farm.ledger().await, 1).await;
    // A broker of a new process finds it missing, and makes it.
    put(&farm.broker().await, &jobs(2..=3)).await;
    let began = Instant::now();
    called(&farm, 2).await;
    assert!(began.elapsed() < RECOVERY && worker.runs(), "{}", worker.log());
    all_paid_once(&farm, 3).await;
    worker.leaves();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_may_read_no_more_says_so_and_goes_on_when_it_may() {
    let farm = Farm::shared(300..=300).await;
    let all = [".*", ".*", ".*"];
    let url = farm.host.url_of("worker", all);
    put(&farm.broker().await, &jobs(1..=1)).await;
    let mut worker = farm.worker(1, &Setup { url, ..farm.setup() });
    all_paid_once(&farm, 1).await;
    farm.host.url_of("worker", [".*", ".*", "^$"]);
    farm.host.close_connections();
    put(&farm.broker().await, &jobs(2..=5)).await;
    until("it says so", async || worker.log().contains("too few rights").then_some(())).await;
    assert!(worker.runs());
    let lines = worker.log().lines().count();
    passes(WHILE).await;
    assert!(worker.log().lines().count() - lines < 60, "it says so endlessly: {}", worker.log());
    assert_eq!(farm.provider.calls().len(), 1);
    farm.host.url_of("worker", all);
    all_paid_once(&farm, 5).await;
    worker.leaves();
}
