//! The exporter against real brokers: what it shows of queues, and what when it cannot see them.

use std::time::Duration;

use promptq_common::broker::{Access, Broker, WorkerId};
use promptq_common::job::{Job, Queue};
use promptq_common::ledger::{HeldKey, WorkerReport};
use promptq_common::outcome::FailureClass;
use promptq_common::time::Timestamp;
use promptq_common::work::Work;
use promptq_tests::admin::{Admin, Page};
use promptq_tests::process::Home;
use promptq_tests::proxy::{Network, Proxy};
use promptq_tests::redis::{Options, RedisServer};
use promptq_tests::site::{Hand, until};
use promptq_tests::{fixture, steps};
use rustix::process::Signal;

use super::passes_promtool;

fn start(home: &Home, admin: Admin, url: &str) -> Hand {
    looking(home, admin, url, &[])
}

fn looking(home: &Home, admin: Admin, url: &str, more: &[&str]) -> Hand {
    let flag = admin.flag();
    let mut command = home.program("promptq", &[&["exporter", "--interval=1s", &flag], more].concat());
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
    let old = Job { created_at: Timestamp::now(), ..job(&busy) };
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

/// A worker that has met a rate limit, for jobs of these queues.
fn held_back(queues: &[Queue]) -> WorkerReport {
    let now = Timestamp::now();
    let held = HeldKey {
        key: "mock/mock".into(),
        class: FailureClass::Throttled,
        detail: "a rate limit".into(),
        since: now,
        until: now + Duration::from_secs(600),
        probing: false,
        lanes: queues.iter().map(|queue| (queue.clone(), Some("mock".into()))).collect(),
        at_once: None,
        cap: None,
    };
    WorkerReport {
        id: WorkerId::random("w"),
        host: "h".into(),
        pid: 1,
        version: "0".into(),
        started_at: now,
        seen_at: now,
        slots: 4,
        running: 0,
        queues: queues.iter().map(|queue| format!("{queue}:1")).collect(),
        draining: false,
        blocked: None,
        held: vec![held],
        paces: vec![],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_queues_behind_a_limit_are_not_asked_about_one_after_the_other() {
    const QUEUES: usize = 100;
    const LATER: Duration = Duration::from_millis(10);
    let server = RedisServer::start(Options::durable());
    let network = Proxy::before(server.port()).await;
    let (home, admin) = (Home::new(), Admin::free());
    let broker = Broker::connect(&Access::new(&server.url()).unwrap()).await.unwrap();
    let queues: Vec<Queue> = (0..QUEUES).map(|n| fixture::queue(&format!("many-{n}"))).collect();
    steps::put(&broker, &queues.iter().map(job).collect::<Vec<_>>()).await;
    broker.ledger().report(&held_back(&queues)).await.unwrap();
    network.set(Network::Slow(LATER));
    let names = queues.iter().map(Queue::as_str).collect::<Vec<_>>().join(",");
    let url = format!("redis://127.0.0.1:{}", network.port());
    let exporter = looking(&home, admin, &url, &["--queues", &names]);
    let page = until_value(admin, "promptq_queue_scrape_success{backend=\"redis\"}", 1.0).await;
    let held = "promptq_queue_blocked_jobs{queue=\"many-99\",reason=\"throttled\"}";
    assert_eq!(page.value(held), Some(1.0), "{}", page.text);
    let took = page.value("promptq_queue_scrape_duration_seconds{backend=\"redis\"}").unwrap();
    // Each is asked about twice: how it stands, and what its jobs are. Both ways take that much longer.
    let in_turn = LATER.as_secs_f64() * 2.0 * 2.0 * 100.0;
    assert!(took < in_turn / 2.0, "{took} s; one after the other takes {in_turn} s at least");
    exporter.leaves();
}
