//! How long a worker drains where nobody has said: as long as its platform leaves it.

use std::time::{Duration, Instant};

use promptq_common::job::{Job, Queue};
use promptq_common::record::State;
use promptq_common::work::Work;
use promptq_tests::process::{Home, Said};
use promptq_tests::site::{Hand, until};
use promptq_tests::steps;
use rustix::process::Signal;

const ALL: [(&str, &str, &str); 5] = [
    ("KUBERNETES_SERVICE_HOST", "Kubernetes", "15s"),
    ("ECS_AGENT_URI", "ECS", "1m45s"),
    ("CLOUD_RUN_WORKER_POOL", "Cloud Run", "8s"),
    ("CONTAINER_APP_NAME", "Azure Container Apps", "25s"),
    ("NOTIFY_SOCKET", "systemd", "5m"),
];

#[test]
fn the_platform_and_what_tells_it_are_in_the_log() {
    let home = Home::new();
    for (variable, platform, length) in ALL {
        let mut command = home.program("promptq-worker", &["--once", "--admin=off", "--log-format=json"]);
        Said::of(command.env(variable, "x")).ends(0).says(&[platform, variable, length]);
        let mut command = home.program("promptq-worker", &["--once", "--admin=off", "--drain-timeout=1s"]);
        let said = Said::of(command.env(variable, "x")).ends(0).stderr;
        assert!(!said.contains(platform), "somebody has said it: {said}");
    }
}

/// Starts a worker with a job that never ends, and asks it to leave: how long that takes, and its exit code.
async fn leaves(variable: &str, arguments: &[&str]) -> (Duration, Option<i32>) {
    let home = Home::new();
    let broker = home.broker().await;
    let job = Job::new(Queue::standard(), Work::prompt(Some("mock:latency=600s..600s"), "a prompt"));
    steps::put(&broker, std::slice::from_ref(&job)).await;
    let mut command = home.program("promptq-worker", arguments);
    command.arg("--admin=off").env(variable, "x");
    let mut worker = Hand::start(command, home.path("worker.log"));
    until("the job runs", async || (steps::see(&broker, job.id).await.state == State::Running).then_some(())).await;
    let asked = Instant::now();
    worker.signal(Signal::TERM);
    let code = until("it has left", async || worker.code()).await;
    let took = asked.elapsed();
    let job = steps::see(&broker, job.id).await;
    assert_eq!((job.state, job.attempts, job.deaths), (State::Queued, 0, 0), "handed back, nothing spent");
    (took, code)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_on_cloud_run_is_gone_before_it_is_killed() {
    let (took, code) = leaves("K_SERVICE", &[]).await;
    assert!((8.0..10.0).contains(&took.as_secs_f64()), "{took:?}");
    assert_eq!(code, Some(124));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_said_wins_over_every_platform() {
    for (variable, ..) in ALL {
        let (took, code) = leaves(variable, &["--drain-timeout=300ms"]).await;
        assert!(took < Duration::from_secs(5), "{variable}: {took:?}");
        assert_eq!(code, Some(124), "{variable}");
    }
}
