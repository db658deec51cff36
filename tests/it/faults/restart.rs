//! A Redis that is killed and comes back: under workers without jobs, under a producer that submits, and while it
//! loads its data.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use promptq_common::job::Queue;
use promptq_tests::redis::Options;
use promptq_tests::site::{Site, jobs, put, until};

use super::{all_end_once, called};

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_jobs_outlives_its_redis() {
    let mut site = Site::new(Options::durable(), 20..=20).await;
    let worker = site.worker(1, &site.setup());
    put(&site.broker().await, &jobs(1..=1)).await;
    called(&site, 1).await;
    all_end_once(&site.broker().await, 1).await;
    for round in 2..=3 {
        site.server.restart();
        put(&site.broker().await, &jobs(round..=round)).await;
        let began = Instant::now();
        called(&site, usize::try_from(round).unwrap()).await;
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}: {}", began.elapsed(), worker.log());
    }
    all_end_once(&site.broker().await, 3).await;
    worker.leaves();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submission_that_met_a_restart_is_whole_when_repeated() {
    const ROWS: u64 = 30_000;
    let mut site = Site::new(Options::durable(), 20..=20).await;
    let rows = (1..=ROWS).fold(String::new(), |mut text, row| {
        writeln!(text, r#"{{"prompt":"job {row}"}}"#).unwrap();
        text
    });
    std::fs::write(site.path("rows.jsonl"), rows).unwrap();
    let command = ["submit", "rows.jsonl", "--batch", "b", "--model", "storm"];
    let child = site.promptq(&command).spawn().unwrap();
    let ready = async |site: &Site| site.broker().await.depth(&Queue::standard()).await.unwrap().ready;
    until("some are in", async || (ready(&site).await > 1_000).then_some(())).await;
    site.server.restart();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    // Either it got through by itself, or it says once what happened.
    match output.status.code() {
        Some(0) => {}
        Some(7) => assert!(said.contains("edis") && said.contains("hint"), "{said}"),
        code => panic!("{code:?}: {said}"),
    }
    let again = site.promptq(&command).output().unwrap();
    assert_eq!(again.status.code(), Some(0), "{}", String::from_utf8_lossy(&again.stderr));
    assert_eq!(ready(&site).await, ROWS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_loads_its_data_is_waited_for_and_named() {
    let mut site = Site::new(Options::durable(), 20..=20).await;
    let worker = site.worker(1, &site.setup());
    put(&site.broker().await, &jobs(1..=1)).await;
    called(&site, 1).await;
    let mut connection = site.server.connection().unwrap();
    for n in 0..2_000 {
        connection.call(&["SET", &format!("something else {n}"), "x"]).unwrap();
    }
    // 4 s, command by command.
    site.server.start_again(&["key-load-delay 2000"]);
    let refused = site.promptq(&["queues", "list"]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(7), "{said}");
    assert!(said.contains("loading its data"), "{said}");
    site.server.until_loaded();
    put(&site.broker().await, &jobs(2..=2)).await;
    all_end_once(&site.broker().await, 2).await;
    worker.leaves();
}
