//! Lanes that somebody deletes at RabbitMQ while workers take from them: made again by who may, asked for by who may not.

use std::time::Duration;

use promptq_common::broker::amqp::Settings;
use promptq_tests::rabbit::RabbitServer;
use promptq_tests::site::{Hand, Setup, jobs, put, until};

use super::{Stand, all_succeed};

const LANE: &str = "pq1.q.default._.normal";

/// Waits until a worker takes from the lane.
async fn consumed(stand: &Stand) {
    until("somebody takes from the lane", async || stand.host.queue(LANE).filter(|lane| lane.consumers > 0).map(drop))
        .await;
}

/// How often the worker has spoken of the lane so.
fn told(worker: &Hand, what: &str) -> usize {
    worker.log().lines().filter(|line| line.contains(LANE) && line.contains(what)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_somebody_deletes_is_made_again_by_a_worker_that_may() {
    let stand = Stand::on(RabbitServer::shared(), Settings::default(), 20).await;
    let broker = stand.broker().await;
    put(&broker, &jobs(1..=1)).await;
    let worker = stand.site.worker(1, &stand.setup(1, Duration::from_secs(45)));
    all_succeed(&broker, 1, Duration::from_secs(30)).await;
    for deleted in 1..=2 {
        stand.delete(LANE);
        consumed(&stand).await;
        until("it says so once", async || (told(&worker, "it is made again") == deleted).then_some(())).await;
    }
    put(&broker, &jobs(2..=3)).await;
    all_succeed(&broker, 3, Duration::from_secs(30)).await;
    assert_eq!(told(&worker, "hint"), 0, "{}", worker.log());
    worker.leaves();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_somebody_deletes_is_asked_for_once_by_a_worker_that_may_not_make_it() {
    let stand = Stand::on(RabbitServer::shared(), Settings::default(), 20).await;
    let broker = stand.broker().await;
    put(&broker, &jobs(1..=1)).await;
    let url = stand.host.url_of("worker", ["^pq1\\.hold\\.", ".*", ".*"]);
    let worker = stand.site.worker(1, &Setup { url, ..stand.setup(1, Duration::from_secs(45)) });
    all_succeed(&broker, 1, Duration::from_secs(30)).await;
    stand.delete(LANE);
    let asked = || told(&worker, "promptq queues declare default");
    until("it asks for the lane", async || (asked() > 0).then_some(())).await;
    // It goes on looking once a second.
    tokio::time::sleep_until(tokio::time::Instant::now() + Duration::from_secs(3)).await;
    assert_eq!((asked(), stand.host.queue(LANE)), (1, None), "{}", worker.log());
    // A producer of another process makes it, and the worker goes on by itself.
    let other = stand.broker().await;
    put(&other, &jobs(2..=3)).await;
    consumed(&stand).await;
    all_succeed(&other, 3, Duration::from_secs(30)).await;
    assert_eq!(asked(), 1, "{}", worker.log());
    worker.leaves();
}
