//! The file as the ledger of another broker, as far as only this backend promises it: what the rows hold, older files,
//! jobs that were its own before.

use std::path::Path;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rusqlite::Connection;

use super::counts::assert_true;
use super::{BatchName, End, Job, LEASE, Sqlite, Verdict, attempt, ending, envelope, job, jobs, open, queue};
use super::{subscribe, used, want};
use crate::broker::backend::{Backend as _, Claim, Head, LeaseId, Retention};
use crate::broker::{Envelope, HoldKey, WorkerId};
use crate::ledger::{Asked, Claims, Ledger as _, Opened, Raised, Registered};
use crate::record::{Record, State};
use crate::time::Timestamp;

fn message(n: usize) -> Envelope {
    let batch = Some(BatchName::new(["x", "y"][n % 2]).unwrap());
    envelope(&Job { batch, ..job(n) }).unwrap()
}

async fn told(sqlite: &Sqlite, head: &Head, length: Duration) -> (LeaseId, Opened) {
    let (lease, worker) = (LeaseId::random(), WorkerId::random("carrier"));
    let asked = Asked { lease, worker: &worker, length, redelivered: false };
    (lease, sqlite.open(head, &asked).await.unwrap())
}

fn end(head: &Head, lease: LeaseId, end: End) -> Verdict {
    let mut record = Record::unrun(head, end, None, Timestamp::now());
    (record.lease, record.attempts) = (lease, head.attempts);
    used(Verdict::End(Box::new(record)))
}

fn alter(folder: &Path, sql: &str) {
    Connection::open(folder.join("q.db")).unwrap().execute_batch(sql).unwrap();
}

#[tokio::test]
async fn counters_stay_true_through_any_story_of_messages() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = open(folder.path()).await;
    let watch = Connection::open(folder.path().join("q.db")).unwrap();
    let mut dice = StdRng::seed_from_u64(4);
    let (mut copies, mut claims): (Vec<Envelope>, Vec<(Envelope, LeaseId)>) = (Vec::new(), Vec::new());
    for step in 0..600 {
        if copies.len() < 4 || dice.random_bool(0.1) {
            copies.push(message(step));
            sqlite.register(&[&copies[copies.len() - 1].head]).await.unwrap();
        }
        let copy = copies[dice.random_range(0..copies.len())].clone();
        let id = copy.head.id;
        match dice.random_range(0..20) {
            0..8 => {
                let length = if dice.random_bool(0.3) { Duration::from_millis(1) } else { LEASE };
                let (lease, opened) = told(&sqlite, &copy.head, length).await;
                if matches!(opened.claim, Claim::Fresh { .. }) {
                    claims.push((copy, lease));
                }
            }
            8..14 if !claims.is_empty() => {
                let (run, lease) = claims.swap_remove(dice.random_range(0..claims.len()));
                let verdict = match dice.random_range(0..6) {
                    0 | 1 => end(&run.head, lease, End::Succeeded),
                    2 | 3 => end(&run.head, lease, End::Dead),
                    4 => Verdict::Release { after: Duration::from_millis(3), hold: None },
                    _ => Verdict::Retry { after: Duration::ZERO, attempt: Box::new(attempt()) },
                };
                let payload = dice.random_bool(0.8).then_some(&*run.payload);
                sqlite.settle(&run.head, lease, &verdict, payload).await.unwrap();
                if matches!(verdict, Verdict::Retry { .. }) {
                    let mut copy = run;
                    copy.head.attempts += 1;
                    copy.head.history.push(attempt());
                    copies.push(copy);
                }
            }
            14 => drop(Claims::cancel(&sqlite, &[id], &[queue()]).await.unwrap()),
            15 => drop(sqlite.keep(&copy.head, &copy.payload).await.unwrap()),
            16 | 17 => {
                if let Raised::Publish(copy) = sqlite.raise(&[id]).await.unwrap().remove(0) {
                    copies.push(*copy);
                }
            }
            18 => {
                let brief = Duration::from_millis(dice.random_range(20..400));
                let retention = Retention { succeeded: brief, dead: brief, bytes: 1 << 20, tombstones: brief * 2 };
                drop(Claims::sweep(&sqlite, &retention).await.unwrap());
            }
            _ => drop(Claims::drop_dead(&sqlite, &[id]).await.unwrap()),
        }
        assert_true(&watch, step);
    }
    assert!(sqlite.lease_nothing().await);
}

impl Sqlite {
    /// Whether a subscription finds nothing to lease.
    async fn lease_nothing(&self) -> bool {
        subscribe(self, "w", LEASE).await.next(&want(10)).await.unwrap().deliveries.is_empty()
    }
}

#[tokio::test]
async fn a_file_of_an_earlier_build_is_brought_up_to_date() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path()).await.enqueue(jobs(1)).await.unwrap();
    alter(
        folder.path(),
        "DROP INDEX job_away; ALTER TABLE job DROP COLUMN away; ALTER TABLE queue DROP COLUMN used;
         DROP TABLE stop; DROP TABLE purge;
         DELETE FROM total WHERE name IN ('turned', 'swept'); PRAGMA user_version = 1;",
    );
    let old = Connection::open(folder.path().join("q.db")).unwrap();
    let fresh = Connection::open_in_memory().unwrap();
    fresh.execute_batch(include_str!("../schema.sql")).unwrap();
    let tables = "SELECT group_concat(name) FROM (SELECT name FROM sqlite_schema WHERE sql NOT NULL ORDER BY name)";
    let names = |conn: &Connection| conn.query_row(tables, [], |row| row.get::<_, String>(0)).unwrap();
    assert_eq!(names(&old), names(&fresh), "this is how it was");
    drop(old);

    let sqlite = open(folder.path()).await;
    let leased = subscribe(&sqlite, "w", LEASE).await.next(&want(1)).await.unwrap().deliveries.pop().unwrap();
    leased.hold.settle(&ending(&leased, End::Succeeded)).await.unwrap();
    let message = message(0);
    assert_eq!(sqlite.register(&[&message.head]).await.unwrap(), [Registered::New]);
    assert_eq!(told(&sqlite, &message.head, LEASE).await.1.claim, Claim::Fresh { deaths: 0 });
    drop(sqlite);
    let again = open(folder.path()).await;
    assert!(matches!(told(&again, &message.head, LEASE).await.1.claim, Claim::Taken { .. }));
}

#[tokio::test]
async fn a_job_of_the_files_own_whose_message_is_opened_waits_there_from_then_on() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = open(folder.path()).await;
    let watch = Connection::open(folder.path().join("q.db")).unwrap();
    let (runs, later) = (message(0), message(1));
    sqlite.enqueue(vec![runs.clone(), later.clone()]).await.unwrap();
    // Of the second one an epoch is heard that it has not reached, while the queue is paused.
    let mut ahead = later.head.clone();
    ahead.epoch = 1;
    Claims::pause(&sqlite, &queue(), Some("lunch")).await.unwrap();
    assert_eq!(told(&sqlite, &ahead, LEASE).await.1.claim, Claim::Paused { reason: "lunch".into() });
    Claims::pause(&sqlite, &queue(), None).await.unwrap();
    assert_true(&watch, 0);
    let (lease, opened) = told(&sqlite, &runs.head, LEASE).await;
    assert_eq!(opened.claim, Claim::Fresh { deaths: 0 });
    let release = Verdict::Release { after: Duration::ZERO, hold: None };
    sqlite.settle(&runs.head, lease, &release, None).await.unwrap();
    assert!(sqlite.lease_nothing().await);
    assert_true(&watch, 1);
}

#[tokio::test]
async fn a_job_that_cannot_be_read_is_told_to_be_dead() {
    for damage in ["history = x'6e6f', deadline = 1", "attempts = -3", "away = 'lost', deadline = 1"] {
        let folder = tempfile::tempdir().unwrap();
        let sqlite = open(folder.path()).await;
        let message = message(0);
        sqlite.register(&[&message.head]).await.unwrap();
        alter(folder.path(), &format!("UPDATE job SET {damage}"));
        assert_eq!(told(&sqlite, &message.head, LEASE).await.1.claim, Claim::Ended(State::Dead), "{damage}");
        let seen = sqlite.fetch(&[message.head.id]).await.unwrap().remove(0).unwrap();
        assert_eq!(seen.record.unwrap().cause.unwrap().code, "corrupt_job");
    }
}

#[tokio::test]
async fn a_cancel_of_what_was_never_seen_is_forgotten_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = open(folder.path()).await;
    let (met, swept) = (message(0), message(1));
    let count = "SELECT count(*) FROM stop";
    let watch = Connection::open(folder.path().join("q.db")).unwrap();
    let stops = || watch.query_row(count, [], |row| row.get::<_, i64>(0)).unwrap();
    Claims::cancel(&sqlite, &[met.head.id, swept.head.id], &[queue()]).await.unwrap();
    Claims::sweep(&sqlite, &Retention::standard()).await.unwrap();
    let days = |day: i64| (Timestamp::now() + Duration::from_secs(86_400) * u32::try_from(day).unwrap()).as_millis();
    let until: i64 = watch.query_row("SELECT min(until) FROM stop", [], |row| row.get(0)).unwrap();
    assert!(stops() == 2 && (days(36)..=days(37)).contains(&until));
    watch.execute("UPDATE stop SET until = 1", []).unwrap();
    assert_eq!(told(&sqlite, &met.head, LEASE).await.1.claim, Claim::Fresh { deaths: 0 });
    assert_eq!(stops(), 1);
    Claims::sweep(&sqlite, &Retention::standard()).await.unwrap();
    assert_eq!(stops(), 0);
}

#[tokio::test]
async fn an_empty_queue_stands_while_it_is_said_to_be_used() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = open(folder.path()).await;
    sqlite.touch(&queue()).await.unwrap();
    Claims::purge(&sqlite, &queue()).await.unwrap();
    Claims::sweep(&sqlite, &Retention::standard()).await.unwrap();
    assert_eq!(sqlite.standings().await.unwrap().len(), 1);
    alter(folder.path(), "UPDATE queue SET used = 1");
    Claims::sweep(&sqlite, &Retention::standard()).await.unwrap();
    assert_eq!(sqlite.standings().await.unwrap(), []);
    // Its purge is remembered all the same.
    let mut message = envelope(&job(0)).unwrap();
    message.head.created_at = Timestamp::from_millis(message.head.created_at.as_millis() - 1_000);
    assert_eq!(told(&sqlite, &message.head, LEASE).await.1.claim, Claim::Ended(State::Cancelled));
}

#[tokio::test]
async fn what_a_released_message_waits_for_is_told_while_it_does() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = open(folder.path()).await;
    let message = message(0);
    let hold = Some(HoldKey::of_flex("acme/m"));
    for (after, waits_for) in [(LEASE, &hold), (Duration::ZERO, &None)] {
        let (lease, opened) = told(&sqlite, &message.head, LEASE).await;
        assert_eq!(opened.claim, Claim::Fresh { deaths: 0 });
        let release = Verdict::Release { after, hold: hold.clone() };
        sqlite.settle(&message.head, lease, &release, None).await.unwrap();
        let seen = sqlite.fetch(&[message.head.id]).await.unwrap().remove(0).unwrap();
        assert_eq!((seen.state, &seen.hold), (State::Queued, waits_for));
    }
    assert_eq!(sqlite.payload(message.head.id).await.unwrap(), None, "so nobody can tell until when");
}
