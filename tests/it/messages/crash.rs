//! A process dies at every crash point of claims; a Redis is killed right after it. Afterwards what it was told is so,
//! what it left claimed comes back with one death more, and every message that is still about leads to one end.

use std::collections::{HashMap, HashSet};
use std::process::Stdio;

use futures_util::future::join_all;
use promptq_common::broker::{Access, Broker, Claim, Envelope, LeaseId, WorkerId, redis, sqlite};
use promptq_common::job::JobId;
use promptq_common::ledger::{Asked, Claims, JobFilter, Registered};
use promptq_common::outcome::FailureClass;
use promptq_common::record::{End, State};
use promptq_tests::backends::LONG;
use promptq_tests::fixture::{self, batch};
use promptq_tests::messages::{heads, ledger, message};
use promptq_tests::redis::{Options, RedisServer};
use promptq_tests::steps::{PATIENCE, eventually, list, recount, see};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::timeout;

#[tokio::test]
async fn a_worker_and_its_redis_may_die_anywhere_in_opening_a_message() {
    assert_eq!(redis::CLAIMS_CRASH_POINTS.len(), 2);
    die_everywhere("redis.open.", &OPENED).await;
}

#[tokio::test]
async fn a_worker_and_its_redis_may_die_anywhere_in_ending_a_claim() {
    die_everywhere("redis.settle.", &VERDICTS).await;
}

#[tokio::test]
async fn a_worker_may_die_anywhere_in_opening_a_message() {
    assert_eq!(sqlite::CLAIMS_CRASH_POINTS.len(), 6);
    die_everywhere("sqlite.open.", &OPENED).await;
}

#[tokio::test]
async fn a_worker_may_die_anywhere_in_ending_a_claim() {
    die_everywhere("sqlite.settle.", &VERDICTS).await;
}

/// At the first, second and fifth message.
const OPENED: [&str; 3] = ["return", "1*off->return", "4*off->return"];

/// At the first, second, third or fourth verdict: a success, a retry, a release, a death.
const VERDICTS: [&str; 4] = ["return", "1*off->return", "2*off->return", "3*off->return"];

async fn die_everywhere(prefix: &str, passages: &[&str]) {
    let points = [redis::CRASH_POINTS, redis::CLAIMS_CRASH_POINTS, sqlite::CRASH_POINTS, sqlite::CLAIMS_CRASH_POINTS];
    let points: Vec<&str> = points.concat().into_iter().filter(|point| point.starts_with(prefix)).collect();
    assert!(points.len() >= 2, "{points:?}");
    for (place, passage) in passages.iter().enumerate() {
        let met = points.iter().filter(|point| place < 2 || !RARE.contains(point));
        join_all(met.map(|point| die_at(point, passage))).await;
    }
}

/// Not every message meets these: it is the first that is heard of its job, or its job dies.
const RARE: [&str; 2] = ["sqlite.open.after_entry", "sqlite.settle.after_payload"];

async fn die_at(point: &str, passage: &str) {
    let folder = TempDir::new().unwrap();
    let mut server = point.starts_with("redis.").then(|| RedisServer::start(Options::durable()));
    let url = match &server {
        Some(server) => server.url(),
        None => format!("sqlite://{}/q.db", folder.path().display()),
    };
    let (log, armed) = (folder.path().join("log"), format!("{point}={passage}"));
    let mut child = Command::new(env!("CARGO_BIN_EXE_crash_messages"));
    child.arg(&url).arg(&log).env("FAILPOINTS", &armed).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(PATIENCE, child.output()).await.expect("it dies soon").unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(137), "{armed}: {said}");
    if let Some(server) = &mut server {
        server.restart();
    }
    check(&url, &std::fs::read_to_string(&log).unwrap_or_default(), &armed).await;
}

async fn check(url: &str, log: &str, armed: &str) {
    let broker = Broker::connect(&Access::new(url).unwrap()).await.unwrap();
    let ledger = ledger(url).await;
    let found: HashMap<JobId, State> =
        list(&broker, &JobFilter::default(), 100).await.into_iter().map(|job| (job.id, job.state)).collect();
    let mut copied = HashSet::new();
    for line in log.lines() {
        let (what, id) = line.split_once(' ').unwrap();
        let id: JobId = id.parse().unwrap();
        match what {
            "copied" => drop(copied.insert(id)),
            "retried" => assert_eq!(see(&broker, id).await.attempts, 1, "{armed}: {id} forgot an attempt"),
            "released" => assert!(!found[&id].is_ended(), "{armed}: {id} was given back and is {}", found[&id]),
            end => assert_eq!(found[&id].as_str(), end, "{armed}: {id}"),
        }
    }
    recount(&broker, &batch("b")).await;
    let messages: Vec<Envelope> = fixture::rounds().iter().flatten().map(message).collect();
    for (message, answer) in messages.iter().zip(ledger.register(&heads(&messages)).await.unwrap()) {
        let known = found.contains_key(&message.head.id);
        assert_eq!(matches!(answer, Registered::Known(_)), known, "{armed}: {answer:?}");
    }
    for message in &messages {
        surface(&*ledger, message, (&found, copied.contains(&message.head.id)), armed).await;
        let was = found.get(&message.head.id).filter(|state| state.is_ended());
        let now = see(&broker, message.head.id).await.state;
        assert_eq!(now, *was.unwrap_or(&State::Succeeded), "{armed}: {}", message.head.id);
    }
    let counts = recount(&broker, &batch("b")).await;
    assert_eq!((counts.ended(), counts.total), (12, 12), "{armed}");
}

/// Every copy that was not acknowledged comes back, the newest first or last: one runs unless the job has ended.
async fn surface(
    ledger: &dyn Claims,
    message: &Envelope,
    (found, retried): (&HashMap<JobId, State>, bool),
    armed: &str,
) {
    let id = message.head.id;
    let worker = WorkerId::random("heir");
    let mut copies = vec![message.clone()];
    if retried {
        let mut copy = message.clone();
        let attempt = fixture::attempt(&copy.head, Some(FailureClass::Transient));
        copy.head.attempts += 1;
        copy.head.history.push(attempt);
        copies.push(copy);
    }
    for copy in copies {
        let lease = LeaseId::random();
        let opened = eventually("no dead worker claims it", async || {
            let asked = Asked { lease, worker: &worker, length: LONG, redelivered: true };
            let opened = ledger.open(&copy.head, &asked).await.unwrap();
            (!matches!(opened.claim, Claim::Taken { .. })).then_some(opened)
        })
        .await;
        match opened.claim {
            Claim::Fresh { deaths } => {
                let left = found.get(&id) == Some(&State::Running);
                assert_eq!(deaths, u32::from(left), "{armed}: {id}");
                let verdict = fixture::end(&copy.head, lease, End::Succeeded);
                ledger.settle(&copy.head, lease, &verdict, Some(&copy.payload)).await.unwrap();
            }
            Claim::Ended(_) | Claim::Stale => {}
            Claim::Cancelled | Claim::Paused { .. } | Claim::Taken { .. } => panic!("{armed}: {id} is told {opened:?}"),
        }
    }
}
