//! A process dies at every crash point of RabbitMQ, at the first passage and at a later one. Afterwards nothing that was
//! confirmed is lost, what had its end keeps it and is not given out again, no message is left over, and counts hold.

use std::collections::HashSet;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use promptq_common::broker::amqp::{CRASH_POINTS, QueueType};
use promptq_common::broker::{Broker, Claim, Enqueued, Retention};
use promptq_common::job::{JobId, Queue};
use promptq_common::record::{End, State};
use promptq_tests::backends::terms;
use promptq_tests::carrier::Carrier;
use promptq_tests::fixture::{self, batch, queue};
use promptq_tests::s3::S3;
use promptq_tests::steps::{PATIENCE, Worker, end, recount, see, view, want};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::{Instant, timeout};

/// A second copy that meets the first one in hand waits for so long.
const LEASE: Duration = Duration::from_secs(2);

/// Met once in the life of the process that dies.
const ONCE: [&str; 2] = ["amqp.purge.", "amqp.dead."];

/// How the points are passed when a process dies: the first time, or the next one.
const FIRST: &str = "return";
const LATER: &str = "1*off->return";

#[tokio::test]
async fn a_process_may_die_anywhere_on_quorum_queues() {
    die_at_each(CRASH_POINTS, FIRST, async || Carrier::with_redis(QueueType::Quorum)).await;
}

#[tokio::test]
async fn a_process_may_die_anywhere_later_on_quorum_queues() {
    die_at_each(&later(), LATER, async || Carrier::with_redis(QueueType::Quorum)).await;
}

#[tokio::test]
async fn a_process_may_die_anywhere_on_classic_queues() {
    die_at_each(CRASH_POINTS, FIRST, async || Carrier::with_sqlite(QueueType::Classic)).await;
}

#[tokio::test]
async fn a_process_may_die_anywhere_over_object_storage() {
    die_at_each(CRASH_POINTS, FIRST, async || Carrier::with_folder(QueueType::Quorum)).await;
}

// The other pairs of queues and ledgers meet in the same calls: every point on one of them.

#[tokio::test]
async fn a_process_may_die_on_classic_queues_with_redis() {
    die_at_each(&third(0), FIRST, async || Carrier::with_redis(QueueType::Classic)).await;
}

#[tokio::test]
async fn a_process_may_die_on_quorum_queues_with_sqlite() {
    die_at_each(&third(1), FIRST, async || Carrier::with_sqlite(QueueType::Quorum)).await;
}

#[tokio::test]
async fn a_process_may_die_on_classic_queues_over_object_storage() {
    die_at_each(&third(2), FIRST, async || Carrier::with_folder(QueueType::Classic)).await;
}

#[tokio::test]
async fn a_process_may_die_once_moto_has_its_word() {
    die_once_written(S3::moto().await).await;
}

#[tokio::test]
async fn a_process_may_die_once_s3s_has_its_word() {
    die_once_written(S3::s3s().await).await;
}

/// More pairs, each point at both passages: many minutes, so only when asked for, as the cases of
/// `conformance/everywhere.rs` are. Classic queues over buckets are left out: what is written there is the ledger's.
mod everywhere {
    use super::{Arc, CRASH_POINTS, Carrier, FIRST, LATER, QueueType, S3, die_at_each, later};

    async fn die_twice_at_each(carrier: impl AsyncFn() -> Carrier) {
        die_at_each(CRASH_POINTS, FIRST, &carrier).await;
        die_at_each(&later(), LATER, &carrier).await;
    }

    #[tokio::test]
    async fn classic_redis() {
        die_twice_at_each(async || Carrier::with_redis(QueueType::Classic)).await;
    }

    #[tokio::test]
    async fn quorum_sqlite() {
        die_twice_at_each(async || Carrier::with_sqlite(QueueType::Quorum)).await;
    }

    #[tokio::test]
    async fn classic_store() {
        die_twice_at_each(async || Carrier::with_folder(QueueType::Classic)).await;
    }

    #[tokio::test]
    async fn classic_sqlite() {
        die_at_each(&later(), LATER, async || Carrier::with_sqlite(QueueType::Classic)).await;
    }

    #[tokio::test]
    async fn quorum_store() {
        die_at_each(&later(), LATER, async || Carrier::with_folder(QueueType::Quorum)).await;
    }

    #[tokio::test]
    async fn quorum_moto() {
        let server = Arc::new(S3::moto().await);
        die_twice_at_each(async || Carrier::with_bucket(QueueType::Quorum, &server).await).await;
    }

    #[tokio::test]
    async fn quorum_s3s() {
        let server = Arc::new(S3::s3s().await);
        die_twice_at_each(async || Carrier::with_bucket(QueueType::Quorum, &server).await).await;
    }
}

/// At the points where the ledger has been written and RabbitMQ has not been told.
async fn die_once_written(server: S3) {
    let server = Arc::new(server);
    let written = points(|point| point.ends_with(".after_ledger") || point.ends_with(".after_raise"));
    assert!(written.len() >= 7, "{written:?}");
    die_at_each(&written, FIRST, async || Carrier::with_bucket(QueueType::Quorum, &server).await).await;
}

/// Those that are met more than once.
fn later() -> Vec<&'static str> {
    points(|point| !ONCE.iter().any(|once| point.starts_with(once)))
}

fn points(which: impl Fn(&&str) -> bool) -> Vec<&'static str> {
    CRASH_POINTS.iter().copied().filter(which).collect()
}

/// Every third point, from this one on.
fn third(first: usize) -> Vec<&'static str> {
    CRASH_POINTS.iter().copied().skip(first).step_by(3).collect()
}

/// A few points at once: much of the time is spent waiting for claims to run out.
async fn die_at_each(points: &[&str], passage: &str, carrier: impl AsyncFn() -> Carrier) {
    let carrier = &carrier;
    let deaths = points.iter().map(|point| async move { die_at(point, passage, carrier().await).await });
    futures_util::stream::iter(deaths).buffer_unordered(4).count().await;
}

async fn die_at(point: &str, passage: &str, carrier: Carrier) {
    let folder = TempDir::new().unwrap();
    let (log, armed) = (folder.path().join("log"), format!("{point}={passage}"));
    let mut child = Command::new(env!("CARGO_BIN_EXE_crash_carried"));
    child.args([carrier.host.url(), carrier.ledger_url()]).arg(&log).arg(carrier.queues.as_str());
    child.envs(carrier.settings().iter().map(|(name, value)| (name.to_ascii_uppercase(), value)));
    child.env("FAILPOINTS", &armed).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(PATIENCE * 2, child.output()).await.expect("it dies soon").unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(137), "{armed}: {said}");
    let told = Told(std::fs::read_to_string(&log).unwrap_or_default());
    check(&carrier, &told, &armed).await;
}

/// What the dead process was told.
struct Told(String);

impl Told {
    /// The jobs of lines that begin so and hold `how`.
    fn jobs(&self, what: &str, how: &str) -> HashSet<JobId> {
        let lines = self.0.lines().filter(|line| line.split(' ').next() == Some(what) && line.contains(how));
        lines.map(|line| line.split(' ').nth(1).unwrap().parse().unwrap()).collect()
    }
}

async fn check(carrier: &Carrier, told: &Told, armed: &str) {
    let (backend, ledger) = carrier.connect().await;
    let broker = Broker::new(backend, ledger);
    let succeeded = told.jobs("settled", "succeeded Applied");
    for id in &succeeded {
        assert_eq!(see(&broker, *id).await.state, State::Succeeded, "{armed}: {id}");
    }
    // A redrive that died is finished by the same command.
    let redriving: Vec<_> = told.jobs("redriving", "").into_iter().collect();
    broker.redrive(&redriving).await.unwrap();
    // So is a submission: what was confirmed is known.
    let confirmed = told.jobs("enqueued", "");
    for jobs in fixture::rounds() {
        for (job, answer) in jobs.iter().zip(broker.enqueue(&jobs).await.unwrap()) {
            // Object storage knows of what has ended.
            let may_be_new = !confirmed.contains(&job.id) || !carrier.claims() && !succeeded.contains(&job.id);
            let known = matches!(answer, Enqueued::Known(_));
            assert!(known || answer == Enqueued::New && may_be_new, "{armed}: {answer:?}");
        }
    }
    while broker.sweep(&Retention::standard()).await.unwrap().more {}
    let worker = carrier.worker(terms(&[(Queue::standard(), 1), (queue("abroad"), 1)], LEASE)).await;
    drain(&broker, carrier, worker, (&succeeded, armed)).await;
    for id in &succeeded {
        assert_eq!(see(&broker, *id).await.state, State::Succeeded, "{armed}: {id}");
    }
    // A foreign client's job that was registered and not opened is itself when it comes again, and nobody's rival.
    for id in told.jobs("sent", "") {
        assert_eq!(see(&broker, id).await.state, State::Succeeded, "{armed}: {id}, a foreign client's");
    }
    for id in told.jobs("settled", "retried Applied") {
        assert!(see(&broker, id).await.attempts >= 1, "{armed}: {id} forgot an attempt");
    }
    let counts = recount(&broker, &batch("b")).await;
    assert_eq!((counts.ended(), counts.total), (12, 12), "{armed}");
    assert_eq!(carrier.faults(), [""; 0], "{armed}");
}

/// Answers everything that is left, until no message is anywhere.
async fn drain(broker: &Broker, carrier: &Carrier, mut worker: Worker, (ended, armed): (&HashSet<JobId>, &str)) {
    let start = Instant::now();
    loop {
        let left = ["pq1.q.", "pq1.delay.", "pq1.hold."].map(|prefix| carrier.host.counts(prefix));
        let ended_now = view(broker, &batch("b")).await.counts.ended();
        if ended_now == 12 && left == [(0, 0); 3] {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{armed}: {ended_now} of 12 have ended; messages left: {left:?}");
        let found = timeout(Duration::from_secs(3), worker.consumer.next(&want(50))).await.expect("answers").unwrap();
        for delivery in found.deliveries {
            let claim = delivery.lease.claim().await.unwrap();
            assert!(matches!(claim, Claim::Fresh { deaths: 0 | 1 }), "{armed}: {claim:?}");
            assert!(!ended.contains(&delivery.head.id), "{armed}: a job was given out after its success");
            assert!(delivery.open().is_ok(), "{armed}: its payload came through");
            end(delivery, End::Succeeded).await;
        }
    }
}
