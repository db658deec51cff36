//! What is written several rows at a time: ids that are used are met all the same, and whoever reads a record of the same
//! transaction finds it.

use rusqlite::Connection;

use super::*;
use crate::broker::answer::{Enqueued, Refusal};
use crate::broker::backend::Settled;
use crate::codec;
use crate::job::Fingerprint;
use crate::ledger::{Cursor, Ledger as _, Scope};
use crate::record::State;

#[tokio::test]
async fn used_ids_are_met_among_new_ones() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = open(folder.path()).await;
    let mut batch = jobs(20);
    let again = batch[3].clone();
    let mut changed = again.clone();
    changed.head.fingerprint = Fingerprint([9; 16]);
    batch.splice(15..15, [again, changed]);
    let answers = sqlite.enqueue(batch).await.unwrap();
    assert_eq!(answers[15..17], [Enqueued::Known(State::Queued), Enqueued::Refused(Refusal::Conflict)]);
    assert_eq!(answers.iter().filter(|answer| **answer == Enqueued::New).count(), 20);
    let mut source = subscribe(&sqlite, "w", LEASE).await;
    let leased = source.next(&want(50)).await.unwrap().deliveries;
    assert_eq!(leased.len(), 20);
    for delivery in leased {
        assert_eq!(codec::decode_job(&delivery.payload).unwrap().id, delivery.head.id, "each has its own payload");
    }
    // Of a job past retention only its id is left.
    let mut batch = jobs(3);
    let conn = Connection::open(folder.path().join("q.db")).unwrap();
    let mark = (batch[1].head.id.as_bytes(), batch[1].head.fingerprint.0);
    conn.execute("INSERT INTO past (id, fingerprint, state, ended_at) VALUES (?1, ?2, 3, 1)", mark).unwrap();
    batch[2].head.lane = batch[0].head.lane.clone();
    let answers = sqlite.enqueue(batch).await.unwrap();
    assert_eq!(answers, [Enqueued::New, Enqueued::Known(State::Succeeded), Enqueued::New]);
    counts::assert_true(&conn, 20);
}

#[tokio::test]
async fn an_end_finds_the_record_of_one_right_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = open(folder.path()).await;
    let batch = BatchName::new("b").unwrap();
    sqlite.enqueue(vec![envelope(&Job { batch: Some(batch.clone()), ..job(0) }).unwrap()]).await.unwrap();
    let mut slow = subscribe(&sqlite, "slow", Duration::from_millis(20)).await;
    let late = slow.next(&want(1)).await.unwrap().deliveries.pop().unwrap();
    let mut other = subscribe(&sqlite, "other", LEASE).await;
    let taken = other.next(&want(1)).await.unwrap().deliveries.pop().unwrap();
    let (dead, success) = (used(ending(&taken, End::Dead)), used(ending(&late, End::Succeeded)));
    // Whoever keeps the file locked has both wait for one transaction.
    let lock = Connection::open(folder.path().join("q.db")).unwrap();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (entered, dead, kept, ()) =
        tokio::join!(sqlite.enqueue(jobs(1)), taken.hold.settle(&dead), late.hold.settle(&success), async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            lock.execute_batch("ROLLBACK").unwrap();
        });
    assert_eq!((entered.unwrap().len(), dead.unwrap(), kept.unwrap()), (1, Settled::Applied, Settled::Kept));
    let view = sqlite.batch(&batch).await.unwrap().unwrap();
    assert_eq!((view.usage, view.counts.succeeded, view.counts.dead), (TOKENS, 1, 0), "what both share counts once");
    let page = sqlite.results(&Scope::Batch(batch), Cursor(0), 10).await.unwrap();
    let ends: Vec<_> = page.records.iter().map(|(at, record)| (at.0, record.end)).collect();
    assert_eq!(ends, [(1, End::Dead), (2, End::Succeeded)]);
}
