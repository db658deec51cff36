//! The exporter against real brokers: what it shows of queues, and what when it cannot see them.

use promptq_common::broker::{Access, Broker};
use promptq_common::job::{Job, Queue};
use promptq_common::work::Work;
use promptq_tests::admin::{Admin, Page};
use promptq_tests::process::Home;
use promptq_tests::redis::{Options, RedisServer};
use promptq_tests::site::{Hand, until};
use promptq_tests::{fixture, steps};
use rustix::process::Signal;

use super::passes_promtool;

fn start(home: &Home, admin: Admin, url: &str) -> Hand {
    let mut command = home.program("promptq", &["exporter", "--interval=1s", &admin.flag()]);
    command.env("PROMPTQ_BROKER", url);
    Hand::start(command, home.path("exporter.log"))
}

/// Waits until a series has this value; the page it is on.
async fn until_value(admin: Admin, series: &str, value: f64) -> Page {
    let what = format!("{series} is {value}");
    let is_so = |page: &Page| page.value(series).is_some_and(|found| (found - value).abs() < 1e-9);
    until(&what, async || admin.page().filter(is_so)).await
}

fn job(queue: &Queue) -> Job {
    Job::new(queue.clone(), Work::prompt(Some("mock"), "a prompt"))
}

#[tokio::test(flavor = "multi_thread")]
async fn depth_age_and_workers_of_every_queue_are_shown() {
    let (home, admin) = (Home::new(), Admin::free());
    let (busy, paused) = (fixture::queue("busy"), fixture::queue("paused"));
    let broker = home.broker().await;
    let old = Job { created_at: promptq_common::time::Timestamp::now(), ..job(&busy) };
    let jobs: Vec<_> = (0..33).map(|_| job(&busy)).chain([old, job(&paused)]).collect();
    steps::put(&broker, &jobs).await;
    broker.pause(&paused, Some("maintenance")).await.unwrap();
    let exporter = start(&home, admin, &home.url());
    let ready = "promptq_queue_messages{queue=\"busy\",backend=\"sqlite\",state=\"ready\"}";
    let page = until_value(admin, ready, 34.0).await;
    let value = |series: &str| page.value(series);
    assert_eq!(value("promptq_queue_messages{queue=\"busy\",backend=\"sqlite\",state=\"running\"}"), Some(0.0));
    let age = value("promptq_queue_oldest_message_age_seconds{queue=\"busy\",state=\"ready\",source=\"exact\"}");
    assert!(age.is_some_and(|age| age < 60.0), "{}", page.text);
    assert_eq!(value("promptq_queue_desired_workers{queue=\"busy\"}"), Some(3.0), "34 jobs, 16 at once");
    assert_eq!(
        (value("promptq_queue_paused{queue=\"busy\"}"), value("promptq_queue_paused{queue=\"paused\"}")),
        (Some(0.0), Some(1.0))
    );
    assert_eq!(value("promptq_queue_desired_workers{queue=\"paused\"}"), Some(0.0));
    assert_eq!(value("promptq_queue_blocked_jobs{queue=\"paused\",reason=\"paused\"}"), Some(1.0));
    assert_eq!(value("promptq_queue_scrape_success{backend=\"sqlite\"}"), Some(1.0));
    assert_eq!(value("promptq_queue_drain_seconds{queue=\"busy\"}"), None, "nothing moves");
    assert_eq!(page.strange(), Vec::<&String>::new());
    passes_promtool(&page);
    broker.pause(&paused, None).await.unwrap();
    let mut command = home.program("promptq-worker", &["--queues=busy,paused", "--concurrency=4", "--admin=off"]);
    command.env("PROMPTQ__MOCK__LATENCY", "1ms,2ms");
    let worker = Hand::start(command, home.path("worker.log"));
    let page = until_value(admin, "promptq_queue_consumers{queue=\"busy\"}", 1.0).await;
    assert_eq!(page.value("promptq_queue_paused{queue=\"paused\"}"), Some(0.0));
    let page = until_value(admin, ready, 0.0).await;
    assert_eq!(page.value("promptq_queue_drain_seconds{queue=\"busy\"}"), Some(0.0));
    assert_eq!(page.value("promptq_queue_desired_workers{queue=\"busy\"}"), Some(0.0));
    assert_eq!(admin.probe("readyz").unwrap().0, 200);
    worker.leaves();
    exporter.leaves();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_is_no_empty_queue() {
    let mut server = RedisServer::start(Options::durable());
    let (home, admin) = (Home::new(), Admin::free());
    let broker = Broker::connect(&Access::new(&server.url()).unwrap()).await.unwrap();
    steps::put(&broker, &[job(&Queue::standard())]).await;
    let exporter = start(&home, admin, &server.url());
    let ready = "promptq_queue_messages{queue=\"default\",backend=\"redis\",state=\"ready\"}";
    until_value(admin, ready, 1.0).await;
    server.kill();
    let page = until_value(admin, "promptq_queue_scrape_success{backend=\"redis\"}", 0.0).await;
    assert!(!page.has("promptq_queue_messages") && !page.has("promptq_queue_desired_workers"), "{}", page.text);
    assert!(page.has("promptq_queue_last_scrape_success_timestamp_seconds"), "{}", page.text);
    let unready = admin.probe("readyz").unwrap();
    assert_eq!((unready.0, admin.probe("livez").unwrap().0), (503, 200), "{}", unready.1);
    server.restart();
    until_value(admin, ready, 1.0).await;
    exporter.leaves();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exporter_that_nobody_could_ask_does_not_start() {
    let home = Home::new();
    drop(home.broker().await);
    home.promptq(&["exporter", "--admin=off"]).ends(2).says(&["nowhere to show"]);
    home.promptq(&["exporter", "--admin=9091"]).ends(2).says(&["127.0.0.1:9091"]);
    home.promptq(&["exporter", "--interval=10ms", &Admin::free().flag()]).ends(2).says(&["at least 1s"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_first_job_there_is_no_queue_to_show() {
    let (home, admin) = (Home::new(), Admin::free());
    let exporter = start(&home, admin, &home.url());
    until_value(admin, "promptq_queue_scrape_success{backend=\"sqlite\"}", 0.0).await;
    assert!(!home.path("q.db").exists(), "looking makes nothing");
    steps::put(&home.broker().await, &[job(&Queue::standard())]).await;
    until_value(admin, "promptq_queue_scrape_success{backend=\"sqlite\"}", 1.0).await;
    exporter.signal(Signal::INT);
    let mut exporter = exporter;
    let code = until("it has left", async || exporter.code()).await;
    assert_eq!(code, Some(0));
}
