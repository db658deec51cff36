//! A process dies at every crash point of a backend, at the first passage and at a later one; a Redis is killed right
//! after it. Afterwards nothing that was confirmed is lost, what it left running comes back with one death more, and
//! every count holds.

use std::collections::{HashMap, HashSet};
use std::process::Stdio;
use std::time::Duration;

use futures_util::future::join_all;
use promptq_common::broker::{Access, Broker, Claim, Enqueued};
use promptq_common::broker::{redis, sqlite};
use promptq_common::job::{JobId, Queue};
use promptq_common::ledger::JobFilter;
use promptq_common::record::{End, State};
use promptq_tests::backends::{LONG, terms};
use promptq_tests::fixture::{self, batch};
use promptq_tests::redis::{Options, RedisServer};
use promptq_tests::steps::{PATIENCE, Worker, end, list, recount, see, want};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::{Instant, timeout};

#[tokio::test]
async fn a_process_may_die_anywhere_in_enqueue() {
    die_everywhere("sqlite.enqueue.", "return").await;
    die_everywhere("sqlite.enqueue.", "7*off->return").await;
}

#[tokio::test]
async fn a_process_may_die_anywhere_in_lease() {
    die_everywhere("sqlite.lease.", "return").await;
    die_everywhere("sqlite.lease.", "2*off->return").await;
}

#[tokio::test]
async fn a_process_may_die_anywhere_in_settle() {
    for passage in ["return", "1*off->return", "2*off->return", "3*off->return"] {
        die_everywhere("sqlite.settle.", passage).await;
    }
}

#[tokio::test]
async fn a_process_and_its_redis_may_die_anywhere_in_enqueue() {
    die_everywhere("redis.enqueue.", "return").await;
    die_everywhere("redis.enqueue.", "2*off->return").await;
}

#[tokio::test]
async fn a_process_and_its_redis_may_die_anywhere_in_lease() {
    die_everywhere("redis.lease.", "return").await;
    die_everywhere("redis.lease.", "2*off->return").await;
}

#[tokio::test]
async fn a_process_and_its_redis_may_die_anywhere_in_settle() {
    for passage in ["return", "1*off->return", "2*off->return", "3*off->return"] {
        die_everywhere("redis.settle.", passage).await;
    }
}

#[test]
fn every_crash_point_is_met() {
    // The inbox's are met in `foreign.rs`.
    let steps = ["enqueue", "lease", "settle", "inbox"];
    let is_met = |point: &str| steps.iter().any(|step| point.contains(&format!(".{step}.")));
    let missed: Vec<_> = crash_points().filter(|point| !is_met(point)).collect();
    assert!(missed.is_empty() && crash_points().count() >= 22, "{missed:?}");
}

fn crash_points() -> impl Iterator<Item = &'static str> {
    sqlite::CRASH_POINTS.iter().chain(redis::CRASH_POINTS).copied()
}

/// All its points at once: much of the time is spent waiting for leases to run out.
async fn die_everywhere(prefix: &str, passage: &str) {
    let points = crash_points().filter(|point| point.starts_with(prefix));
    join_all(points.map(|point| die_at(point, passage))).await;
}

async fn die_at(point: &str, passage: &str) {
    // A group is one transaction, whatever the jobs in it: these points are passed once a call.
    let once = point.contains("begin") || point.contains("commit");
    let passage = if once { passage.replace('7', "2") } else { passage.to_owned() };
    let folder = TempDir::new().unwrap();
    let mut server = point.starts_with("redis.").then(|| RedisServer::start(Options::durable()));
    let url = match &server {
        Some(server) => server.url(),
        None => format!("sqlite://{}/q.db", folder.path().display()),
    };
    let log = folder.path().join("log");
    let armed = format!("{point}={passage}");
    let mut child = Command::new(env!("CARGO_BIN_EXE_crash_child"));
    child.arg(&url).arg(&log).env("FAILPOINTS", &armed).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(PATIENCE, child.output()).await.expect("it dies soon").unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(137), "{armed}: {said}");
    if let Some(server) = &mut server {
        server.restart();
    }
    let told = Told::read(&std::fs::read_to_string(&log).unwrap_or_default());
    check(&url, &told, &armed).await;
}

/// What the dead process was told, by job.
#[derive(Debug, Default)]
struct Told {
    enqueued: HashSet<JobId>,
    /// The last verdict it was told is durable.
    settled: HashMap<JobId, String>,
    /// The one it was waiting to be told of.
    settling: Option<JobId>,
}

impl Told {
    fn read(log: &str) -> Self {
        let mut told = Self::default();
        for line in log.lines() {
            let mut words = line.split(' ');
            let (what, id, how) = (words.next().unwrap(), words.next().unwrap().parse().unwrap(), words.next());
            match what {
                "enqueued" => drop(told.enqueued.insert(id)),
                "settling" => told.settling = Some(id),
                "settled" => {
                    told.settling = None;
                    told.settled.insert(id, how.unwrap().to_owned());
                }
                _ => {}
            }
        }
        told
    }
}

async fn check(url: &str, told: &Told, armed: &str) {
    let broker = Broker::connect(&Access::new(url).unwrap()).await.unwrap();
    let filter = JobFilter::default();
    let found: HashMap<JobId, State> =
        list(&broker, &filter, 100).await.into_iter().map(|job| (job.id, job.state)).collect();
    let running: HashSet<_> = found.iter().filter(|(_, state)| **state == State::Running).map(|(id, _)| *id).collect();
    for (id, how) in &told.settled {
        let seen = see(&broker, *id).await;
        // A job given back may be leased again, and settled a second time without being told.
        let again = running.contains(id) || told.settling == Some(*id);
        match how.as_str() {
            "succeeded" => assert_eq!(seen.state, State::Succeeded, "{armed}: {id}"),
            "dead" => assert_eq!(seen.state, State::Dead, "{armed}: {id}"),
            "retried" => assert!(seen.attempts >= 1, "{armed}: {id} forgot an attempt"),
            _ => assert!(again || !seen.state.is_ended(), "{armed}: {id} was given back and is {}", seen.state),
        }
    }
    repeat(&broker, told, &found, armed).await;
    recount(&broker, &batch("b")).await;
    drain(&broker, &running, armed).await;
    for (id, was) in &found {
        let now = see(&broker, *id).await.state;
        let kept = if was.is_ended() { *was } else { State::Succeeded };
        assert_eq!(now, kept, "{armed}: {id}");
    }
    let counts = recount(&broker, &batch("b")).await;
    assert_eq!((counts.ended(), counts.total), (12, 12), "{armed}");
}

/// Whoever put the jobs in does so again: what was there is known, what was confirmed was there, all of a call or none.
async fn repeat(broker: &Broker, told: &Told, found: &HashMap<JobId, State>, armed: &str) {
    for jobs in fixture::rounds() {
        let answers = broker.enqueue(&jobs).await.unwrap();
        for (job, answer) in jobs.iter().zip(&answers) {
            assert_eq!(matches!(answer, Enqueued::Known(_)), found.contains_key(&job.id), "{armed}: {answer:?}");
            assert!(found.contains_key(&job.id) || !told.enqueued.contains(&job.id), "{armed}: {} is lost", job.id);
        }
        let new = answers.iter().filter(|answer| **answer == Enqueued::New).count();
        assert!(new == 0 || new == jobs.len(), "{armed}: a part of a call was put in");
    }
}

/// Answers everything that is left; what was left running comes with the death of its worker, the rest without.
async fn drain(broker: &Broker, running: &HashSet<JobId>, armed: &str) {
    let mut worker = Worker::on(broker, terms(&[(Queue::standard(), 1)], LONG)).await;
    let start = Instant::now();
    loop {
        let depth = broker.depth(&Queue::standard()).await.unwrap();
        if depth.ready + depth.delayed + depth.running == 0 {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{armed}: {depth:?} cannot be drained");
        let found = timeout(Duration::from_secs(3), worker.consumer.next(&want(50))).await.expect("answers").unwrap();
        for delivery in found.deliveries {
            let deaths = u32::from(running.contains(&delivery.head.id));
            assert_eq!(delivery.lease.claim().await.unwrap(), Claim::Fresh { deaths }, "{armed}");
            assert!(delivery.open().is_ok(), "{armed}: its payload came through");
            end(delivery, End::Succeeded).await;
        }
    }
}
