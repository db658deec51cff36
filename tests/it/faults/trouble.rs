//! A Redis that is full, or has become a replica: what it can still do is done, what it cannot is one clear error.

use promptq_common::broker::Broker;
use promptq_common::error::{Error, Kind};
use promptq_common::job::{Job, Queue};
use promptq_common::work::Work;
use promptq_tests::redis::Options;
use promptq_tests::site::{Setup, Site, batch, jobs, put, until};

use super::{all_end_once, called};

/// Jobs of 32 KiB each until the server takes no more; says how many it took.
async fn fill(broker: &Broker) -> (usize, Error) {
    let mut count = 0;
    loop {
        count += 1;
        let text = format!("{}job {count}", " ".repeat(32 << 10));
        let work = Work::prompt(Some("mock:latency=0"), text);
        let job = Job { batch: Some(batch()), row: Some(count), ..Job::new(Queue::standard(), work) };
        if let Err(error) = broker.enqueue(&[job]).await {
            return (usize::try_from(count).unwrap() - 1, error);
        }
        assert!(count < 10_000, "it is never full");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_takes_no_jobs_and_gives_out_those_it_has() {
    let site = Site::new(Options::durable().with("maxmemory 12mb"), 20..=20).await;
    let broker = site.broker().await;
    let (count, error) = fill(&broker).await;
    assert!(count > 20, "{count} jobs, then {error}");
    assert!(error.to_string().contains("maxmemory"), "{error}");
    // Full all the while: what is freed is taken by somebody else, down to the last byte.
    site.server.must(&["CONFIG", "SET", "maxmemory", "1mb"]);
    std::fs::write(site.path("row.jsonl"), "{\"prompt\":\"one more\"}\n").unwrap();
    let said = site.promptq(&["submit", "-m", "mock", "row.jsonl"]).output().unwrap();
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert_eq!(said.matches("error").count(), 1, "one error: {said}");
    assert!(said.contains("maxmemory"), "{said}");
    let worker = site.worker(1, &Setup { slots: 8, ..site.setup() });
    all_end_once(&broker, count).await;
    site.server.must(&["CONFIG", "SET", "maxmemory", "0"]);
    put(&broker, &jobs(20_000..=20_000)).await;
    all_end_once(&broker, count + 1).await;
    worker.leaves();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_became_a_replica_is_named_and_left_alone() {
    let site = Site::new(Options::durable(), 20..=20).await;
    let broker = site.broker().await;
    let mut worker = site.worker(1, &site.setup());
    put(&broker, &jobs(1..=1)).await;
    called(&site, 1).await;
    all_end_once(&broker, 1).await;
    // Nobody listens on port 1: it keeps its data and waits for its master.
    site.server.must(&["REPLICAOF", "127.0.0.1", "1"]);
    let error = broker.enqueue(&jobs(2..=2)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    assert!(error.to_string().contains("replica"), "{error}");
    until("the worker has met it", async || worker.log().contains("replica").then_some(())).await;
    assert!(worker.runs(), "{}", worker.log());
    site.server.must(&["REPLICAOF", "NO", "ONE"]);
    put(&broker, &jobs(3..=3)).await;
    all_end_once(&broker, 2).await;
    worker.leaves();
}
