//! Rows that cannot be read: they end as dead, and hold up nobody.

use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;

use super::{End, LEASE, Sqlite, Verdict, attempt, ending, envelope, job, open, queue, subscribe, want};
use crate::broker::backend::{Backend as _, Envelope};
use crate::job::{BatchName, JobId};
use crate::ledger::{JobFilter, JobView, Ledger as _};
use crate::outcome::FailureClass;
use crate::record::State;

/// One lane: the first of them stands at its head.
fn lane_of(count: usize) -> Vec<Envelope> {
    let one = |n| {
        let mut job = job(2 * n);
        job.batch = Some("b".parse().unwrap());
        job.custom_id = Some(format!("c{n}"));
        envelope(&job).unwrap()
    };
    (0..count).map(one).collect()
}

fn damage(folder: &Path, id: JobId, sql: &str) {
    let conn = Connection::open(folder.join("q.db")).unwrap();
    assert_eq!(conn.execute(sql, [id.as_bytes()]).unwrap(), 1, "{sql}");
}

async fn see(sqlite: &Sqlite, id: JobId) -> JobView {
    sqlite.fetch(&[id]).await.unwrap().remove(0).unwrap()
}

#[tokio::test]
async fn an_unreadable_job_at_the_head_of_a_lane_is_ended_and_the_others_go_on() {
    let damages = [
        "UPDATE job SET history = x'6e6f' WHERE id = ?1",
        "UPDATE job SET tags = 'no labels' WHERE id = ?1",
        "UPDATE job SET priority = 12, fingerprint = x'00' WHERE id = ?1",
        "UPDATE job SET tenant = CAST(x'ff' AS TEXT), attempts = -3, deadline = 'never' WHERE id = ?1",
        "DELETE FROM payload WHERE seq = (SELECT seq FROM job WHERE id = ?1)",
        "UPDATE payload SET bytes = 7 WHERE seq = (SELECT seq FROM job WHERE id = ?1)",
    ];
    for sql in damages {
        let folder = tempfile::tempdir().unwrap();
        let sqlite = open(folder.path()).await;
        let jobs = lane_of(3);
        let ids: Vec<_> = jobs.iter().map(|job| job.head.id).collect();
        sqlite.enqueue(jobs).await.unwrap();
        damage(folder.path(), ids[0], sql);
        let waiting = sqlite.waiting(&queue(), None, 10).await.unwrap().items;
        assert_eq!(waiting.iter().map(|job| job.head.id).collect::<Vec<_>>(), ids[1..], "to move: {sql}");
        let mut source = subscribe(&sqlite, "w", LEASE).await;
        let leased = source.next(&want(10)).await.unwrap().deliveries;
        let leased_ids: Vec<_> = leased.iter().map(|job| job.head.id).collect();
        assert_eq!(leased_ids, ids[1..], "{sql}");
        for delivery in leased {
            delivery.hold.settle(&ending(&delivery, End::Succeeded)).await.unwrap();
        }
        let dead = see(&sqlite, ids[0]).await;
        let cause = dead.record.unwrap().cause.unwrap();
        assert_eq!((dead.state, cause.class, &*cause.code), (State::Dead, Some(FailureClass::Fatal), "corrupt_job"));
        assert_eq!(dead.custom_id.as_deref(), Some("c0"), "what can be read stays: {sql}");
        assert_eq!(sqlite.list(&JobFilter::default(), None, 10).await.unwrap().items.len(), 3, "{sql}");
        let depth = sqlite.depth(&queue()).await.unwrap();
        assert_eq!((depth.ready, depth.delayed, depth.running, depth.dead), (0, 0, 0, 1), "{sql}");
        let batch = sqlite.batch(&BatchName::new("b").unwrap()).await.unwrap().unwrap();
        assert_eq!((batch.counts.succeeded, batch.counts.dead), (2, 1), "{sql}");
    }
}

#[tokio::test]
async fn a_job_that_became_unreadable_while_it_ran_holds_up_no_lease() {
    let spoil = "UPDATE job SET tags = 'no labels', expires_at = 1 WHERE id = ?1";
    let overdue = "UPDATE job SET tags = 'no labels', deadline = 1 WHERE id = ?1";
    for (sql, lease_first) in [(spoil, true), (overdue, false)] {
        let folder = tempfile::tempdir().unwrap();
        let sqlite = open(folder.path()).await;
        let jobs = lane_of(2);
        let ids: Vec<_> = jobs.iter().map(|job| job.head.id).collect();
        sqlite.enqueue(jobs).await.unwrap();
        let mut source = subscribe(&sqlite, "w", LEASE).await;
        let _first = if lease_first { Some(source.next(&want(1)).await.unwrap()) } else { None };
        damage(folder.path(), ids[0], sql);
        let leased = source.next(&want(10)).await.unwrap().deliveries;
        assert_eq!(leased.iter().map(|job| job.head.id).collect::<Vec<_>>(), ids[1..], "{sql}");
        assert_eq!(see(&sqlite, ids[0]).await.state, State::Dead, "{sql}");
    }
}

#[tokio::test]
async fn a_job_that_became_unreadable_can_be_settled() {
    let retry = Verdict::Retry { after: Duration::ZERO, attempt: Box::new(attempt()) };
    for verdict in [retry, Verdict::Release { after: Duration::ZERO, hold: None }] {
        let folder = tempfile::tempdir().unwrap();
        let sqlite = open(folder.path()).await;
        sqlite.enqueue(lane_of(1)).await.unwrap();
        let mut source = subscribe(&sqlite, "w", LEASE).await;
        let delivery = source.next(&want(1)).await.unwrap().deliveries.remove(0);
        damage(folder.path(), delivery.head.id, "UPDATE job SET tags = 'no labels' WHERE id = ?1");
        delivery.hold.settle(&verdict).await.unwrap();
        assert_eq!(see(&sqlite, delivery.head.id).await.state, State::Dead);
    }
}
