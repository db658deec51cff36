//! What is spared on a job's way changes nothing: statements read no table through, what turns is met by the next claim,
//! older files are brought up to date, and results and retention find what they look for without their indexes.

use std::time::Duration;

use futures_util::future::join_all;
use rusqlite::Connection;

use super::super::hot::Hot;
use super::super::ready::NEXT;
use super::{LEASE, ending, jobs, open, queue, subscribe, want};
use crate::broker::HoldKey;
use crate::broker::backend::{Backend as _, Claim, Retention, Settled, Verdict};
use crate::job::Queue;
use crate::ledger::{Cursor, Ledger as _, Scope};
use crate::record::End;

#[tokio::test]
async fn no_statement_that_every_job_meets_reads_a_table_through() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()).await);
    let conn = Connection::open(folder.path().join("q.db")).unwrap();
    for sql in Hot::ALL.map(Hot::sql).into_iter().chain([NEXT]) {
        let mut statement = conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let places = statement.parameter_count();
        let nulls = vec![rusqlite::types::Null; places];
        let steps: Vec<String> = statement
            .query_map(rusqlite::params_from_iter(nulls), |row| row.get("detail"))
            .unwrap()
            .collect::<rusqlite::Result<_>>()
            .unwrap();
        let is_long = |step: &String| step.contains("SCAN") && !step.ends_with("VALUES CLAUSE");
        assert!(!steps.iter().any(|step| is_long(step) || step.contains("TEMP B-TREE")), "{sql}: {steps:?}");
    }
}

#[tokio::test]
async fn a_claim_meets_what_this_process_or_another_did_since_the_lease() {
    for elsewhere in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let (ours, theirs) = (open(folder.path()).await, open(folder.path()).await);
        let other = if elsewhere { &theirs } else { &ours };
        ours.enqueue(jobs(4)).await.unwrap();
        let mut source = subscribe(&ours, "w", LEASE).await;
        let leased = source.next(&want(4)).await.unwrap().deliveries;
        // What the file says is taken as read for a moment: of another process a claim right after this might not hear.
        if !elsewhere {
            assert_eq!(leased[0].hold.claim().await.unwrap(), Claim::Fresh { deaths: 0 });
        }
        other.cancel(&[leased[1].head.id]).await.unwrap();
        assert_eq!(leased[1].hold.claim().await.unwrap(), Claim::Cancelled, "elsewhere: {elsewhere}");
        assert_eq!(leased[2].hold.claim().await.unwrap(), Claim::Fresh { deaths: 0 });
        other.pause(&queue(), Some("why")).await.unwrap();
        assert_eq!(leased[3].hold.claim().await.unwrap(), Claim::Paused { reason: "why".into() });
    }
}

#[tokio::test]
async fn a_claim_on_a_lease_that_was_taken_over_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = open(folder.path()).await;
    sqlite.enqueue(jobs(2)).await.unwrap();
    let mut slow = subscribe(&sqlite, "slow", Duration::from_millis(30)).await;
    let leased = slow.next(&want(2)).await.unwrap().deliveries;
    let mut other = subscribe(&sqlite, "other", LEASE).await;
    assert_eq!(other.next(&want(2)).await.unwrap().deliveries.len(), 2);
    for delivery in leased {
        assert!(matches!(delivery.hold.claim().await.unwrap(), Claim::Taken { .. }));
    }
}

#[tokio::test]
async fn an_end_that_is_too_late_leaves_no_record_behind() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = open(folder.path()).await;
    sqlite.enqueue(jobs(1)).await.unwrap();
    let mut slow = subscribe(&sqlite, "slow", Duration::from_millis(20)).await;
    let late = slow.next(&want(1)).await.unwrap().deliveries.pop().unwrap();
    let mut other = subscribe(&sqlite, "other", LEASE).await;
    let taken = other.next(&want(1)).await.unwrap().deliveries.pop().unwrap();
    assert_eq!(late.hold.settle(&ending(&late, End::Dead)).await.unwrap(), Settled::Stale);
    let watch = Connection::open(folder.path().join("q.db")).unwrap();
    let records = || watch.query_row("SELECT count(*) FROM record", [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(records(), 0);
    assert_eq!(taken.hold.settle(&ending(&taken, End::Succeeded)).await.unwrap(), Settled::Applied);
    assert_eq!(taken.hold.settle(&ending(&taken, End::Succeeded)).await.unwrap(), Settled::Applied);
    assert_eq!(late.hold.settle(&ending(&late, End::Succeeded)).await.unwrap(), Settled::Stale);
    assert_eq!(records(), 1);
    super::counts::assert_true(&watch, 0);
}

#[tokio::test]
async fn a_queues_results_are_found_behind_those_of_others() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = open(folder.path()).await;
    sqlite.enqueue(jobs(3)).await.unwrap();
    let mut source = subscribe(&sqlite, "w", LEASE).await;
    for delivery in source.next(&want(3)).await.unwrap().deliveries {
        delivery.hold.settle(&ending(&delivery, End::Succeeded)).await.unwrap();
    }
    let conn = Connection::open(folder.path().join("q.db")).unwrap();
    // Two of them far behind the first, and others' in between.
    conn.execute_batch(
        "UPDATE record SET seq = seq + 25000 WHERE seq > 1;
         INSERT INTO record (seq, job, end, queue, ended_at, bytes, body) VALUES (12000, 9, 3, 99, 1, 0, x'');",
    )
    .unwrap();
    let scope = Scope::Queue(queue());
    let (mut cursor, mut places, mut pages) = (Cursor(0), Vec::new(), 0);
    loop {
        let page = sqlite.results(&scope, cursor, 10).await.unwrap();
        places.extend(page.records.iter().map(|(at, _)| at.0));
        pages += 1;
        assert!(!page.more || page.next > cursor, "who goes on gets on");
        cursor = page.next;
        if !page.more {
            break;
        }
    }
    assert_eq!((places, pages, cursor), (vec![1, 25_002, 25_003], 3, Cursor(25_003)));
    let none = sqlite.results(&Scope::Queue(Queue::new("none").unwrap()), Cursor(25_003), 10).await.unwrap();
    assert!(none.records.is_empty() && !none.more);
}

#[tokio::test]
async fn retention_passes_what_stays_and_meets_every_success() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = open(folder.path()).await;
    let mut source = subscribe(&sqlite, "w", LEASE).await;
    // More dead ones in front than one step looks at.
    for (count, end) in [(700, End::Dead), (600, End::Succeeded)] {
        sqlite.enqueue(jobs(count)).await.unwrap();
        let leased = source.next(&want(1_000)).await.unwrap().deliveries;
        assert_eq!(leased.len(), count);
        join_all(leased.iter().map(|delivery| async {
            delivery.hold.settle(&ending(delivery, end)).await.unwrap();
        }))
        .await;
    }
    let conn = Connection::open(folder.path().join("q.db")).unwrap();
    let left = || {
        let sql = "SELECT sum(end = 3), sum(end = 4), (SELECT value FROM total WHERE name = 'swept') FROM record";
        conn.query_row(sql, [], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?)))
            .unwrap()
    };
    // One in the middle is young yet.
    conn.execute("UPDATE record SET ended_at = ended_at + 1000000000 WHERE seq = 1000", []).unwrap();
    let day = Duration::from_secs(86_400);
    let retention = Retention { succeeded: Duration::ZERO, dead: day, bytes: u64::MAX, tombstones: day };
    while sqlite.sweep(&retention).await.unwrap().more {}
    assert_eq!(left(), (1, 700, 999));
    conn.execute("UPDATE record SET ended_at = 1 WHERE seq = 1000", []).unwrap();
    while sqlite.sweep(&retention).await.unwrap().more {}
    assert_eq!(left(), (0, 700, 1_000));
    super::counts::assert_true(&conn, 0);
}

#[tokio::test]
async fn a_release_gives_back_what_the_next_lease_takes() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = open(folder.path()).await;
    sqlite.enqueue(jobs(1)).await.unwrap();
    let mut source = subscribe(&sqlite, "w", LEASE).await;
    let first = source.next(&want(1)).await.unwrap().deliveries.pop().unwrap();
    let back = Verdict::Release { after: Duration::ZERO, hold: Some(HoldKey::Limit("k".into())) };
    assert_eq!(first.hold.settle(&back).await.unwrap(), Settled::Applied);
    let again = source.next(&want(1)).await.unwrap().deliveries.pop().unwrap();
    assert_eq!(again.head, first.head);
    assert_eq!(again.hold.claim().await.unwrap(), Claim::Fresh { deaths: 0 });
    assert_eq!(first.hold.claim().await.unwrap(), Claim::Taken { until: taken_until(folder.path()) });
}

fn taken_until(folder: &std::path::Path) -> crate::time::Timestamp {
    let conn = Connection::open(folder.join("q.db")).unwrap();
    let sql = "SELECT expires_at FROM job WHERE state = 2";
    crate::time::Timestamp::from_millis(conn.query_row(sql, [], |row| row.get(0)).unwrap())
}
