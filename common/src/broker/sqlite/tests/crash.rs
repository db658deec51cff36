//! A process that dies at any step of enqueue, lease or settle: whoever opens the file next finds it whole, repeats
//! the call, and every job ends once.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::super::CRASH_POINTS;
use super::counts::assert_true;
use super::{
    BatchName, End, Envelope, Job, RawDelivery, Sqlite, Verdict, Work, ending, envelope, open, queue, subscribe,
};
use super::{attempt, used, want};
use crate::broker::backend::{Backend as _, Claim, Enqueued, Settled};
use crate::ledger::{Counts, Cursor, Ledger as _, Scope};

/// Short, so that what a victim had leased comes back while the test waits.
const LEASE: Duration = Duration::from_millis(150);

/// Marks the folder of a victim.
const MARK: &str = "victim";

/// The same three jobs in every process.
fn three() -> Vec<Envelope> {
    let job = |n| Job {
        batch: Some(batch()),
        ..Job::new(queue(), Work::prompt(Some("m"), format!("say {n}"))).with_key(&format!("k{n}"))
    };
    (0..3).map(|n| envelope(&job(n)).unwrap()).collect()
}

fn batch() -> BatchName {
    BatchName::new("b").unwrap()
}

/// The life of a process that is made to die somewhere in here: one job done, one to be tried again, one dead. The
/// tests below run it by itself, in a folder that is marked; anywhere else it does nothing.
#[tokio::test]
async fn a_victim() {
    if !Path::new(MARK).exists() {
        return;
    }
    let sqlite = open(Path::new(".")).await;
    sqlite.enqueue(three()).await.unwrap();
    let mut source = subscribe(&sqlite, "victim", LEASE).await;
    let leased = source.next(&want(3)).await.unwrap().deliveries;
    let retry = Verdict::Retry { after: Duration::ZERO, attempt: Box::new(attempt()) };
    leased[0].hold.settle(&used(ending(&leased[0], End::Succeeded))).await.unwrap();
    leased[1].hold.settle(&retry).await.unwrap();
    leased[2].hold.settle(&used(ending(&leased[2], End::Dead))).await.unwrap();
}

#[tokio::test]
async fn a_process_may_die_anywhere_in_enqueue() {
    die_at_each("sqlite.enqueue.").await;
}

#[tokio::test]
async fn a_process_may_die_anywhere_in_lease() {
    die_at_each("sqlite.lease.").await;
}

#[tokio::test]
async fn a_process_may_die_anywhere_in_settle() {
    die_at_each("sqlite.settle.").await;
}

async fn die_at_each(step: &str) {
    let points: Vec<_> = CRASH_POINTS.iter().filter(|point| point.starts_with(step)).collect();
    assert!(points.len() > 3, "{points:?}");
    for point in points {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(MARK), "").unwrap();
        let victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "broker::sqlite::tests::crash::a_victim"])
            .current_dir(folder.path())
            .env("FAILPOINTS", format!("{point}=return"))
            .output()
            .unwrap();
        assert_eq!(victim.status.code(), Some(137), "{point}: {}", String::from_utf8_lossy(&victim.stdout));
        successor(folder.path(), point).await;
    }
}

/// Repeats the enqueue and runs what is left.
async fn successor(folder: &Path, point: &str) {
    let sqlite = open(folder).await;
    let watch = Connection::open(folder.join("q.db")).unwrap();
    assert_true(&watch, 0);
    let confirmed = !point.starts_with("sqlite.enqueue") || point.ends_with("after_commit");
    for answer in sqlite.enqueue(three()).await.unwrap() {
        assert_eq!(matches!(answer, Enqueued::Known(_)), confirmed, "{point}: {answer:?}");
    }
    let answered_before = answers(&sqlite).await;
    assert_eq!(answered_before, usize::from(point == "sqlite.settle.after_commit"), "{point}");

    let mut source = subscribe(&sqlite, "successor", Duration::from_secs(60)).await;
    let start = Instant::now();
    while sqlite.batch(&batch()).await.unwrap().unwrap().counts.ended() < 3 {
        assert!(start.elapsed() < Duration::from_secs(10), "{point}: a job never came back");
        for delivery in source.next(&want(3)).await.unwrap().deliveries {
            run(&delivery, point).await;
        }
    }
    let counts = sqlite.batch(&batch()).await.unwrap().unwrap().counts;
    assert_eq!(counts, Counts { total: 3, succeeded: 3, ..Counts::default() }, "{point}");
    assert_eq!(answers(&sqlite).await, 3, "{point}");
    assert_true(&watch, 1);
}

async fn run(delivery: &RawDelivery, point: &str) {
    // Only a lease that had been committed can have been lost with its holder.
    let lost = point.starts_with("sqlite.settle") || point == "sqlite.lease.after_commit";
    assert_eq!(delivery.hold.claim().await.unwrap(), Claim::Fresh { deaths: u32::from(lost) }, "{point}");
    let settled = delivery.hold.settle(&used(ending(delivery, End::Succeeded))).await.unwrap();
    assert_eq!(settled, Settled::Applied, "{point}");
}

async fn answers(sqlite: &Sqlite) -> usize {
    let records = sqlite.results(&Scope::Batch(batch()), Cursor(0), 1_000).await.unwrap();
    records.iter().filter(|(_, record)| record.end == End::Succeeded).count()
}
