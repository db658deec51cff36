//! The counters of lanes and batches stay true through any sequence of calls.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rusqlite::Connection;

use super::{BatchName, End, Job, LEASE, Priority, RawDelivery, Sqlite, Verdict, ending, envelope, job, open, queue};
use super::{attempt, subscribe, used, want};
use crate::broker::HoldKey;
use crate::broker::backend::{Backend as _, Retention, Settled, Source};
use crate::job::JobId;
use crate::ledger::Ledger as _;
use crate::outcome::Usd;
use crate::time::Timestamp;

/// What a lane's or batch's counters say, minus what the rows say: everything must be zero.
const DRIFT: &str = "
  SELECT (SELECT count(*) FROM lane l WHERE
     l.ready   <> (SELECT count(*) FROM job WHERE lane = l.id AND state = 0) OR
     l.delayed <> (SELECT count(*) FROM job WHERE lane = l.id AND state = 1) OR
     l.running <> (SELECT count(*) FROM job WHERE lane = l.id AND state = 2) OR
     l.dead    <> (SELECT count(*) FROM job WHERE lane = l.id AND state = 4 AND dropped = 0) OR
     l.jobs    <> (SELECT count(*) FROM job WHERE lane = l.id)),
   (SELECT count(*) FROM batch b WHERE
     b.queued    <> (SELECT count(*) FROM job WHERE batch = b.id AND state < 1) OR
     b.delayed   <> (SELECT count(*) FROM job WHERE batch = b.id AND state = 1) OR
     b.running   <> (SELECT count(*) FROM job WHERE batch = b.id AND state = 2) OR
     b.jobs      <> (SELECT count(*) FROM job WHERE batch = b.id) OR
     b.total     <> b.queued + b.delayed + b.running + b.succeeded + b.dead + b.stopped + b.expired OR
     b.succeeded < (SELECT count(*) FROM job WHERE batch = b.id AND state = 3) OR
     b.dead      < (SELECT count(*) FROM job WHERE batch = b.id AND state = 4) OR
     b.stopped   < (SELECT count(*) FROM job WHERE batch = b.id AND state = 5) OR
     b.expired   < (SELECT count(*) FROM job WHERE batch = b.id AND state = 6) OR
     (b.jobs = b.total AND
      b.input_tokens < 3 * (SELECT ifnull(sum(attempts), 0) FROM job WHERE batch = b.id AND state > 2)) OR
     (b.jobs = b.total AND NOT EXISTS (SELECT 1 FROM job WHERE batch = b.id AND epoch > 0) AND
      b.input_tokens > 3 * (SELECT ifnull(sum(attempts), 0) FROM job WHERE batch = b.id AND state > 2))),
   (SELECT value <> ifnull((SELECT sum(bytes) FROM record), 0) FROM total WHERE name = 'record_bytes'),
   (SELECT count(*) FROM payload WHERE seq NOT IN (SELECT seq FROM job WHERE state <> 3 AND dropped = 0)),
   (SELECT count(*) FROM job WHERE state = 3 AND record NOT IN (SELECT seq FROM record))";

pub(super) fn assert_true(watch: &Connection, step: usize) {
    let drift: [i64; 5] = watch
        .query_row(DRIFT, [], |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?]))
        .unwrap();
    assert_eq!(drift, [0; 5], "lanes, batches, bytes, payloads, records after step {step}");
}

struct Story {
    sqlite: Sqlite,
    source: Box<dyn Source>,
    dice: StdRng,
    ids: Vec<JobId>,
    leased: Vec<RawDelivery>,
}

impl Story {
    fn pick(&mut self) -> Option<JobId> {
        (!self.ids.is_empty()).then(|| self.ids[self.dice.random_range(0..self.ids.len())])
    }

    async fn enqueue(&mut self) {
        let mut batch = Vec::new();
        for n in 0..self.dice.random_range(1..6) {
            let mut job = job(n);
            job.priority = Priority::new(self.dice.random_range(0..10)).unwrap();
            job.batch = self.dice.random_bool(0.7).then(|| BatchName::new(["x", "y"][n % 2]).unwrap());
            job.not_before = self
                .dice
                .random_bool(0.2)
                .then(|| Timestamp::now() + Duration::from_millis(self.dice.random_range(1..40)));
            if self.dice.random_bool(0.1) {
                job.deadline = Timestamp::now() + Duration::from_millis(5);
            }
            self.ids.push(job.id);
            batch.push(envelope(&job).unwrap());
        }
        self.sqlite.enqueue(batch).await.unwrap();
    }

    async fn lease(&mut self) {
        let depth = self.sqlite.depth(&queue()).await.unwrap();
        if depth.ready > 0 {
            let total = self.dice.random_range(1..8);
            let leased = self.source.next(&want(total)).await.unwrap();
            assert!(leased.deliveries.len() <= total as usize);
            self.leased.extend(leased.deliveries);
        }
    }

    async fn settle(&mut self) {
        if self.leased.is_empty() {
            return;
        }
        let place = self.dice.random_range(0..self.leased.len());
        let delivery = &self.leased[place];
        let after = Duration::from_millis(self.dice.random_range(0..30));
        let end = [End::Succeeded, End::Dead, End::Cancelled][self.dice.random_range(0..3)];
        let verdict = match self.dice.random_range(0..10) {
            0..5 => used(ending(delivery, end)),
            5..7 => Verdict::Retry { after, attempt: Box::new(attempt()) },
            7 => Verdict::Release { after: Duration::ZERO, hold: None },
            _ => Verdict::Release { after, hold: Some(HoldKey::Limit("k".into())) },
        };
        delivery.hold.settle(&verdict).await.unwrap();
        // Some leases are kept by the test to be settled again, late.
        if self.dice.random_bool(0.7) {
            self.leased.swap_remove(place);
        }
    }

    async fn meddle(&mut self) {
        let Some(id) = self.pick() else { return };
        let sqlite = &self.sqlite;
        match self.dice.random_range(0..13) {
            0..3 => drop(sqlite.cancel(&[id]).await.unwrap()),
            3..6 => drop(sqlite.redrive(&[id]).await.unwrap()),
            6 => drop(sqlite.drop_dead(&[id]).await.unwrap()),
            7 => drop(sqlite.wake(&HoldKey::Limit("k".into())).await.unwrap()),
            8 if self.dice.random_bool(0.2) => drop(sqlite.purge(&queue()).await.unwrap()),
            9 if self.dice.random_bool(0.1) => drop(sqlite.cancel_batch(&BatchName::new("y").unwrap()).await.unwrap()),
            10 => {
                let brief = Duration::from_millis(self.dice.random_range(20..400));
                let bytes = self.dice.random_range(2_000..40_000);
                let retention = Retention { succeeded: brief, dead: brief, bytes, tombstones: brief * 2 };
                drop(sqlite.sweep(&retention).await.unwrap());
            }
            11 => drop(sqlite.forget(&[(id, self.dice.random_range(0..2))]).await.unwrap()),
            _ => {
                if let Some(delivery) = self.leased.last() {
                    delivery.hold.beat().await.unwrap();
                }
            }
        }
    }
}

#[tokio::test]
async fn counters_stay_true_through_any_story() {
    let folder = tempfile::tempdir().unwrap();
    for seed in 0..4 {
        let place = folder.path().join(seed.to_string());
        let sqlite = open(&place).await;
        // Leases of 25 ms run out all the time.
        let lease = if seed % 2 == 0 { LEASE } else { Duration::from_millis(25) };
        let source = subscribe(&sqlite, "w", lease).await;
        let mut story = Story { sqlite, source, dice: StdRng::seed_from_u64(seed), ids: vec![], leased: vec![] };
        let watch = Connection::open(place.join("q.db")).unwrap();
        for step in 0..400 {
            match story.dice.random_range(0..10) {
                0..2 => story.enqueue().await,
                2..5 => story.lease().await,
                5..8 => story.settle().await,
                _ => story.meddle().await,
            }
            assert_true(&watch, step);
        }
    }
}

#[tokio::test]
async fn a_lane_swept_away_within_a_group_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = open(folder.path()).await;
    let sent = envelope(&job(0)).unwrap();
    let work = move |tx: &mut super::super::tx::Tx<'_>| {
        // A lane that was looked up and not used, a sweep, and a job for that lane, all in one transaction.
        tx.lane(&sent.head.lane)?;
        super::super::retention::sweep(tx, &Retention::standard())?;
        super::super::enqueue::enqueue(tx, std::slice::from_ref(&sent))
    };
    sqlite.writer.write("test", 0, work).await.unwrap();
    assert_eq!(sqlite.depth(&queue()).await.unwrap().ready, 1);
}

#[tokio::test]
async fn a_late_success_of_a_dropped_job_is_counted_once() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = open(folder.path()).await;
    let watch = Connection::open(folder.path().join("q.db")).unwrap();
    let sent = Job { batch: Some(BatchName::new("x").unwrap()), ..job(0) };
    sqlite.enqueue(vec![envelope(&sent).unwrap()]).await.unwrap();
    let mut slow = subscribe(&sqlite, "slow", Duration::from_millis(30)).await;
    let late = slow.next(&want(1)).await.unwrap().deliveries.pop().unwrap();
    let mut other = subscribe(&sqlite, "other", LEASE).await;
    let dead = other.next(&want(1)).await.unwrap().deliveries.pop().expect("the lease ran out");
    dead.hold.settle(&used(ending(&dead, End::Dead))).await.unwrap();
    assert_eq!(sqlite.drop_dead(&[sent.id]).await.unwrap(), 1);
    assert_true(&watch, 0);
    assert_eq!(late.hold.settle(&used(ending(&late, End::Succeeded))).await.unwrap(), Settled::Kept);
    assert_true(&watch, 1);
}

#[tokio::test]
async fn an_unknown_cost_that_an_earlier_build_did_not_count_is_not_taken_back() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = open(folder.path()).await;
    let name = BatchName::new("x").unwrap();
    let put = async || {
        let sent = Job { batch: Some(name.clone()), ..job(0) };
        sqlite.enqueue(vec![envelope(&sent).unwrap()]).await.unwrap();
    };
    let unknown = async || sqlite.batch(&name).await.unwrap().unwrap().cost_unknown;
    put().await;
    let mut slow = subscribe(&sqlite, "slow", Duration::from_millis(30)).await;
    let late = slow.next(&want(1)).await.unwrap().deliveries.pop().unwrap();
    let mut other = subscribe(&sqlite, "other", LEASE).await;
    let dead = other.next(&want(1)).await.unwrap().deliveries.pop().expect("the lease ran out");
    dead.hold.settle(&used(ending(&dead, End::Dead))).await.unwrap();
    assert_eq!(unknown().await, 1);
    let file = Connection::open(folder.path().join("q.db")).unwrap();
    file.execute("UPDATE batch SET cost_unknown = 0", []).unwrap();
    let Verdict::End(mut record) = used(ending(&late, End::Succeeded)) else { unreachable!() };
    record.history.cost = Some(Usd::from_nanos(1));
    assert_eq!(late.hold.settle(&Verdict::End(record)).await.unwrap(), Settled::Kept);
    put().await;
    let next = other.next(&want(1)).await.unwrap().deliveries.pop().unwrap();
    next.hold.settle(&used(ending(&next, End::Dead))).await.unwrap();
    assert_eq!(unknown().await, 1, "it was below 0");
}
