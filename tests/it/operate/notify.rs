//! What a worker tells systemd, as systemd hears it: datagrams on a socket.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use promptq_common::job::{Job, Queue};
use promptq_common::record::State;
use promptq_common::work::Work;
use promptq_tests::admin::Admin;
use promptq_tests::process::Home;
use promptq_tests::site::{Hand, until};
use promptq_tests::steps;
use rustix::process::Signal;

/// Hears until one of the lines begins so; all that was heard until then.
#[track_caller]
fn heard(socket: &UnixDatagram, wanted: &str) -> Vec<String> {
    let (began, mut all) = (Instant::now(), Vec::new());
    let mut buffer = [0; 4096];
    while began.elapsed() < Duration::from_secs(30) {
        let Ok(length) = socket.recv(&mut buffer) else { continue };
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        all.extend(text.lines().map(str::to_owned));
        if all.iter().any(|line| line.starts_with(wanted)) {
            return all;
        }
    }
    panic!("{wanted} was not among {all:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_hears_of_the_start_the_pulse_and_the_end() {
    let home = Home::new();
    let broker = home.broker().await;
    let job = Job::new(Queue::standard(), Work::prompt(Some("mock:latency=4s..4s"), "a prompt"));
    steps::put(&broker, std::slice::from_ref(&job)).await;
    let place = home.path("notify");
    let socket = UnixDatagram::bind(&place).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut command = home.program("promptq-worker", &[&Admin::free().flag()]);
    command.env("NOTIFY_SOCKET", &place).env("WATCHDOG_USEC", "2000000");
    let worker = Hand::start(command, home.path("worker.log"));
    let before = heard(&socket, "READY=1");
    assert!(!before.iter().any(|line| line.starts_with("WATCHDOG")), "{before:?}");
    heard(&socket, "WATCHDOG=1");
    until("the job runs", async || (steps::see(&broker, job.id).await.state == State::Running).then_some(())).await;
    worker.signal(Signal::TERM);
    heard(&socket, "STOPPING=1");
    let leaving = heard(&socket, "EXTEND_TIMEOUT_USEC=");
    assert!(leaving.iter().any(|line| line == "EXTEND_TIMEOUT_USEC=30000000"), "{leaving:?}");
    heard(&socket, "WATCHDOG=1");
    until("it has left", async || (steps::see(&broker, job.id).await.state == State::Succeeded).then_some(())).await;
    assert!(worker.log().contains("systemd"), "the preset is told: {}", worker.log());
}
