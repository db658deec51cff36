//! A worker's probes and metrics, from its start to its end.

use std::process::Stdio;

use promptq_common::job::{Job, JobId, Queue};
use promptq_common::record::State;
use promptq_common::work::Work;
use promptq_tests::admin::Admin;
use promptq_tests::process::{Home, Said};
use promptq_tests::redis::{Options, RedisServer};
use promptq_tests::site::{Hand, until};
use promptq_tests::steps;
use rustix::process::Signal;

use super::{passes_promtool, promtool};

/// A worker of this home that shows itself.
fn start(home: &Home, admin: Admin, arguments: &[&str], environment: &[(&str, &str)]) -> Hand {
    let mut command = home.program("promptq-worker", arguments);
    command.arg(admin.flag()).envs(environment.iter().copied());
    Hand::start(command, home.path("worker.log"))
}

async fn submit(home: &Home, model: &str) -> JobId {
    let job = Job::new(Queue::standard(), Work::prompt(Some(model), "a prompt"));
    steps::put(&home.broker().await, std::slice::from_ref(&job)).await;
    job.id
}

async fn until_state(home: &Home, id: JobId, state: State) {
    let broker = home.broker().await;
    until("the job's state", async || (steps::see(&broker, id).await.state == state).then_some(())).await;
}

/// Waits until a probe has this status; what it says then.
async fn until_probe(admin: Admin, name: &str, status: u16) -> serde_json::Value {
    let what = format!("{name} is {status}");
    until(&what, async || admin.probe(name).filter(|(found, _)| *found == status).map(|(_, body)| body)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workers_life_can_be_followed_from_outside() {
    let (home, admin) = (Home::new(), Admin::free());
    let running = submit(&home, "mock:latency=3s..3s").await;
    let mut worker = start(&home, admin, &[], &[]);
    let ready = until_probe(admin, "readyz", 200).await;
    assert_eq!((&ready["status"], &ready["checks"]["consuming"]["ok"]), (&"ok".into(), &true.into()));
    until_probe(admin, "startupz", 200).await;
    until_state(&home, running, State::Running).await;
    let page = admin.page().unwrap();
    assert_eq!(page.value("promptq_worker_jobs_running{queue=\"default\"}"), Some(1.0), "{}", page.text);
    assert_eq!(page.value("promptq_worker_state{state=\"running\"}"), Some(1.0));
    let dead = "promptq_jobs_dead_total{queue=\"default\",reason=\"fatal\"}";
    assert_eq!(page.value(dead), Some(0.0), "there before the first");
    let other = submit(&home, "mock").await;
    until_state(&home, other, State::Succeeded).await;
    worker.signal(Signal::TERM);
    let drains = until_probe(admin, "readyz", 503).await;
    assert_eq!((&drains["draining"], &drains["checks"]["draining"]["ok"]), (&true.into(), &false.into()));
    assert_eq!(admin.probe("livez").unwrap().0, 200, "it leaves, and is well");
    let page = admin.page().unwrap();
    let done = "promptq_jobs_completed_total{queue=\"default\",outcome=\"succeeded\"}";
    assert_eq!((page.value(done), page.value("promptq_jobs_started_total{queue=\"default\"}")), (Some(1.0), Some(2.0)));
    assert_eq!(page.value("promptq_worker_state{state=\"draining\"}"), Some(1.0));
    assert_eq!(page.strange(), Vec::<&String>::new());
    passes_promtool(&page);
    until("it is gone", async || (!worker.runs()).then_some(())).await;
    assert_eq!(worker.code(), Some(Some(0)), "{}", worker.log());
    until_state(&home, running, State::Succeeded).await;
}

#[test]
fn promtool_rejects_a_page_that_is_wrong() {
    let (is_ok, said) = promtool("# TYPE promptq_jobs gauge\npromptq_jobs_total 1\n# TYPE x_total gauge\nx_total 1\n");
    assert!(!is_ok, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_broker_is_away_lives_and_is_not_ready() {
    let mut server = RedisServer::start(Options::durable());
    let (home, admin) = (Home::new(), Admin::free());
    let worker = start(&home, admin, &[], &[("PROMPTQ_BROKER", &server.url())]);
    until_probe(admin, "readyz", 200).await;
    server.kill();
    let away = until_probe(admin, "readyz", 503).await;
    assert_eq!(away["checks"]["consuming"]["ok"], false, "{away}");
    assert_eq!(admin.probe("livez").unwrap().0, 200, "an outage elsewhere restarts nobody");
    let page = admin.page().unwrap();
    assert_eq!(page.value("promptq_broker_connected{backend=\"redis\"}"), Some(0.0), "{}", page.text);
    assert_eq!(page.value("promptq_worker_blocked{reason=\"broker\"}"), Some(1.0));
    server.restart();
    until_probe(admin, "readyz", 200).await;
    let again = "promptq_broker_reconnects_total{backend=\"redis\"}";
    assert_eq!(admin.page().unwrap().value(again), Some(1.0));
    worker.leaves();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_of_paused_queues_alone_is_not_ready() {
    let (home, admin) = (Home::new(), Admin::free());
    let broker = home.broker().await;
    broker.pause(&Queue::standard(), Some("maintenance")).await.unwrap();
    let worker = start(&home, admin, &[], &[]);
    let paused = until_probe(admin, "readyz", 503).await;
    assert_eq!(admin.probe("livez").unwrap().0, 200, "{paused}");
    let says = async || {
        let (_, body) = admin.probe("readyz")?;
        body["checks"]["queues"]["detail"].as_str()?.contains("paused: default").then_some(())
    };
    until("it says so", says).await;
    broker.pause(&Queue::standard(), None).await.unwrap();
    until_probe(admin, "readyz", 200).await;
    worker.leaves();
}

#[tokio::test(flavor = "multi_thread")]
async fn healthcheck_asks_the_worker_on_this_machine() {
    let (home, admin) = (Home::new(), Admin::free());
    let ask = |name: &str, probe: &str| Said::of(&mut home.program(name, &["healthcheck", probe, &admin.flag()]));
    ask("promptq-worker", "livez").ends(1).says(&["nothing listens at", "--admin ADDR"]);
    let worker = start(&home, admin, &[], &[]);
    until_probe(admin, "readyz", 200).await;
    ask("promptq-worker", "readyz").ends(0).prints(&["\"status\":\"ok\""]);
    ask("promptq", "livez").ends(0).prints(&["came round"]);
    let by_variable = |value: &str| {
        let mut command = home.program("promptq-worker", &["healthcheck"]);
        Said::of(command.env("PROMPTQ_ADMIN", value))
    };
    let line = by_variable(&admin.address().to_string()).ends(0).stdout;
    assert_eq!(line.lines().count(), 1, "{line}");
    by_variable("off").ends(1).says(&["telemetry.admin is off"]);
    worker.leaves();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_taken_is_an_error_only_where_it_was_asked_for() {
    let (home, admin) = (Home::new(), Admin::free());
    let first = start(&home, admin, &[], &[]);
    until_probe(admin, "livez", 200).await;
    let mut second = home.program("promptq-worker", &["--once", &admin.flag()]);
    Said::of(second.stdout(Stdio::null())).ends(2).says(&["cannot be had", "--admin"]);
    // Whoever has the standard port, this test cannot know; two that want it both work.
    let standard = [(); 2].map(|()| {
        let mut command = home.program("promptq-worker", &["--exit-when-idle", "2s"]);
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    });
    let said = standard.map(|child| {
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        said
    });
    let without = said.iter().filter(|said| said.contains("no metrics and no probes here")).count();
    assert!(without >= 1, "{said:?}");
    first.leaves();
}
