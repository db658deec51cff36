//! Outages of `deploy/runbooks/outages.md` that no other test plays: object storage, and who reads results. Each ends
//! with every job ended and paid for once, within five minutes.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use promptq_common::record::{Output, Record};
use promptq_tests::farm::{Farm, RESULTS};
use promptq_tests::process::Said;
use promptq_tests::proxy::{Network, Proxy};
use promptq_tests::rabbit::RawClient;
use promptq_tests::redis::Options;
use promptq_tests::s3::S3;
use promptq_tests::site::{Setup, Site, jobs, put, records, until};
use serde_json::Value;

const JOBS: u64 = 60;
/// What every outage ends within, from its end on.
const RECOVERED: Duration = Duration::from_secs(300);

/// That every job has ended and was called for once.
#[expect(clippy::print_stdout, reason = "how long it took is for people")]
async fn all_paid_once(site: &Site, since: Instant) {
    let broker = site.broker().await;
    let count = usize::try_from(JOBS).unwrap();
    until("every job has ended", async || (records(&broker).await.len() >= count).then_some(())).await;
    let ids: BTreeSet<_> = records(&broker).await.into_iter().map(|record| record.id).collect();
    assert_eq!((ids.len(), records(&broker).await.len(), site.provider.calls().len()), (count, count, count));
    assert!(since.elapsed() < RECOVERED, "{:?}", since.elapsed());
    println!("all of {JOBS} jobs had ended {:.1} s after the outage", since.elapsed().as_secs_f64());
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_wait_for_object_storage_that_is_away() {
    let site = Site::new(Options::durable(), 5..=5).await;
    let s3 = S3::moto().await;
    let bucket = s3.bucket().await;
    let of = |name: &str| s3.settings().into_iter().find(|(known, _)| *known == name).unwrap().1;
    let port = of("aws_endpoint").rsplit(':').next().unwrap().parse().unwrap();
    let proxy = Proxy::before(port).await;
    let mut environment: Vec<_> = s3.settings().into_iter().map(|(name, value)| (name.to_uppercase(), value)).collect();
    environment.retain(|(name, _)| name != "AWS_ENDPOINT");
    environment.push(("AWS_ENDPOINT".to_owned(), format!("http://127.0.0.1:{}", proxy.port())));
    environment.push(("PROMPTQ_STORE".to_owned(), bucket));
    environment.push(("PROMPTQ__STORE__INLINE_UP_TO".to_owned(), "0".to_owned()));
    let setup = Setup { slots: 4, environment, ..site.setup() };
    let broker = site.broker().await;
    put(&broker, &jobs(1..=JOBS)).await;
    let worker = site.worker(1, &setup);
    until("some answers are stored", async || (records(&broker).await.len() >= 8).then_some(())).await;

    proxy.set(Network::Cut);
    // Each slot has an answer in hand by then, and asks for no other.
    let mut last = (0, Instant::now());
    until("nothing is called any more", async || {
        let calls = site.provider.calls().len();
        if calls != last.0 {
            last = (calls, Instant::now());
        }
        (last.1.elapsed() > Duration::from_secs(2)).then_some(())
    })
    .await;
    let called = site.provider.calls().len();
    assert!(called < usize::try_from(JOBS).unwrap(), "answers were not waited for: {called} calls");
    proxy.set(Network::Whole);
    all_paid_once(&site, Instant::now()).await;
    let is_stored =
        |record: &Record| record.answer.as_ref().is_some_and(|answer| matches!(answer.output, Output::Stored(_)));
    assert!(records(&broker).await.iter().all(is_stored), "every answer is in the store");
    worker.leaves();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_results_may_be_away_and_misses_none() {
    let site = Site::new(Options::durable(), 20..=20).await;
    let broker = site.broker().await;
    let rows: String = (1..=JOBS).flat_map(|row| ["{\"prompt\":\"job ".to_owned(), format!("{row}\"}}\n")]).collect();
    std::fs::write(site.path("rows.jsonl"), rows).unwrap();
    Said::of(&mut site.promptq(&["submit", "rows.jsonl", "--batch", "b", "--model", "storm"])).ends(0);
    let worker = site.worker(1, &site.setup());
    let follow = || site.promptq(&["results", "b", "--follow", "-o", "out.jsonl"]);
    let lines = || std::fs::read_to_string(site.path("out.jsonl")).unwrap_or_default().lines().count();
    let mut reader = follow().spawn().unwrap();
    until("some results are read", async || (lines() >= 5).then_some(())).await;
    reader.kill().unwrap();
    reader.wait().unwrap();
    let read = lines();

    // Nobody waits for a reader.
    let count = usize::try_from(JOBS).unwrap();
    until("every job has ended", async || (records(&broker).await.len() >= count).then_some(())).await;
    assert!(lines() < count && lines() >= read, "{} were read by whom?", lines());
    let back = Instant::now();
    Said::of(&mut follow()).ends(0);
    let text = std::fs::read_to_string(site.path("out.jsonl")).unwrap();
    let ids: BTreeSet<String> =
        text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].to_string()).collect();
    assert_eq!((ids.len(), text.lines().count()), (count, count), "each result, once");
    all_paid_once(&site, back).await;
    worker.leaves();
}

#[tokio::test(flavor = "multi_thread")]
async fn announcements_wait_for_who_reads_them() {
    let farm = Farm::shared(5..=5).await;
    let broker = farm.broker().await;
    put(&broker, &jobs(1..=JOBS)).await;
    let worker = farm.worker(1, &farm.setup());
    let count = usize::try_from(JOBS).unwrap();
    until("every job has ended", async || (records(&broker).await.len() >= count).then_some(())).await;
    farm.tidy().await;
    worker.leaves();
    let client = RawClient::connect(&farm.host.url()).await;
    let told: BTreeSet<Vec<u8>> = client.take_all(RESULTS).await.into_iter().map(|message| message.body).collect();
    assert!(told.len() >= count, "{} of {JOBS} announcements", told.len());
}
