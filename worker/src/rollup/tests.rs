//! The roll-up over the memory backend, with a death after each of its steps.

use std::collections::BTreeSet;

use promptq_common::broker::{LeaseId, Retention, Terms, Verdict, Want};
use promptq_common::job::{Job, Queue};
use promptq_common::outcome::{Body, History};
use promptq_common::record::{Answer, End};
use promptq_common::work::Work;

use super::*;

struct Bench {
    broker: Broker,
    store: Store,
    batch: BatchName,
}

impl Bench {
    fn new() -> Self {
        Self { broker: Broker::memory(), store: Store::memory(), batch: BatchName::new("nov/1").unwrap() }
    }

    async fn submit(&self, n: u64) {
        let jobs: Vec<_> = (0..n)
            .map(|row| {
                let mut job = Job::new(Queue::standard(), Work::prompt(Some("mock"), format!("p{row}")));
                job.batch = Some(self.batch.clone());
                job
            })
            .collect();
        self.broker.enqueue(&jobs).await.unwrap();
    }

    async fn seal(&self) {
        self.broker.ledger().seal(&self.batch, &Queue::standard()).await.unwrap();
    }

    /// Ends `n` waiting jobs, the first of them with an answer in the store when `stored`.
    async fn finish(&self, n: u32, end: End, mut stored: bool) {
        let terms = Terms {
            worker: WorkerId::random("w"),
            queues: vec![(Queue::standard(), 1)],
            lease: Duration::from_secs(45),
        };
        let mut consumer = self.broker.consume(terms).await.unwrap();
        let mut left = n;
        while left > 0 {
            let want = Want { total: left, caps: Vec::new(), rest: left };
            for delivery in consumer.next(&want).await.unwrap().deliveries {
                left -= 1;
                let mut record = Record::unrun(&delivery.head, end, None, Timestamp::now());
                record.lease = delivery.lease.id();
                record.history = History::default();
                if end == End::Succeeded {
                    record.answer = Some(self.answer(&record, std::mem::take(&mut stored)).await);
                }
                delivery.lease.settle(Verdict::End(Box::new(record))).await.unwrap();
            }
        }
        consumer.close().await.unwrap();
    }

    async fn answer(&self, record: &Record, stored: bool) -> Answer {
        let body = Body::Text("large and elsewhere".into());
        let output = if stored {
            Output::Stored(self.store.put_output(record.id, record.lease, &body).await.unwrap())
        } else {
            Output::Inline(Body::Text("small".into()))
        };
        Answer::plain(output)
    }

    fn roller<'a>(&'a self, worker: &'a WorkerId, now: Timestamp) -> Roller<'a> {
        Roller { ledger: self.broker.ledger(), store: &self.store, worker, now }
    }

    async fn view(&self) -> BatchView {
        self.broker.ledger().batch(&self.batch).await.unwrap().unwrap()
    }

    async fn lock_runs_out(&self, worker: &WorkerId) {
        self.broker.ledger().unlock(LOCK.0, worker).await.unwrap();
    }

    /// Reads an object and removes it, to see whether it is written again.
    async fn take(&self, name: &str) -> Vec<String> {
        let lines = self.lines(name).await.unwrap();
        self.store.delete(&[format!("batches/nov%2F1/{name}")]).await.unwrap();
        lines
    }

    async fn lines(&self, name: &str) -> Option<Vec<String>> {
        let bytes = self.store.get(&format!("batches/nov%2F1/{name}"), 1 << 30).await.unwrap()?;
        Some(String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect())
    }
}

fn later() -> Timestamp {
    Timestamp::now() + EVERY
}

fn job_ids(lines: &[String]) -> BTreeSet<String> {
    lines
        .iter()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["promptq"]["job_id"].to_string())
        .collect()
}

#[tokio::test]
async fn a_running_batch_gets_a_part_every_five_minutes_and_only_for_new_ends() {
    let bench = Bench::new();
    let worker = WorkerId::random("w");
    bench.submit(250).await;
    bench.finish(120, End::Succeeded, true).await;
    step(&bench.broker, &bench.store, &worker).await.unwrap();
    assert_eq!(bench.lines("part-1.jsonl").await, None, "five minutes have not passed");

    bench.roller(&worker, later()).step().await.unwrap();
    let first = bench.lines("part-1.jsonl").await.unwrap();
    assert_eq!(job_ids(&first).len(), 120);
    assert!(first[0].contains("large and elsewhere"), "a stored answer is in its line");

    bench.roller(&worker, later() + EVERY).step().await.unwrap();
    assert_eq!(bench.lines("part-2.jsonl").await, None, "nothing has ended since");
    bench.finish(10, End::Dead, false).await;
    bench.roller(&worker, later() + EVERY).step().await.unwrap();
    let second = bench.lines("part-2.jsonl").await.unwrap();
    assert_eq!(second.len(), 10);
    assert!(job_ids(&first).is_disjoint(&job_ids(&second)));
    assert_eq!(bench.lines("results.jsonl").await, None, "the batch still runs");
}

#[tokio::test]
async fn a_finished_batch_gets_its_results_at_once_and_again_after_a_redrive() {
    let bench = Bench::new();
    let worker = WorkerId::random("w");
    bench.submit(130).await;
    bench.finish(1, End::Dead, false).await;
    bench.finish(129, End::Succeeded, false).await;
    step(&bench.broker, &bench.store, &worker).await.unwrap();
    assert_eq!(bench.lines("results.jsonl").await, None, "not sealed: more may come");
    bench.seal().await;
    step(&bench.broker, &bench.store, &worker).await.unwrap();
    let before = bench.lines("results.jsonl").await.unwrap();
    assert_eq!((before.len(), job_ids(&before).len()), (130, 130));
    assert_eq!(before.iter().filter(|line| line.contains("\"dead\"")).count(), 1);

    let dead = bench.broker.ledger().dead_groups(None).await.unwrap()[0].sample;
    bench.broker.redrive(&[dead]).await.unwrap();
    bench.finish(1, End::Succeeded, false).await;
    step(&bench.broker, &bench.store, &worker).await.unwrap();
    let after = bench.lines("results.jsonl").await.unwrap();
    assert_eq!((after.len(), job_ids(&after)), (130, job_ids(&before)));
    assert!(!after.iter().any(|line| line.contains("\"dead\"")), "the end that counts");
    let summary = bench.lines("summary.json").await.unwrap().join("\n");
    let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
    assert_eq!((&summary["lines"], &summary["counts"]["succeeded"]), (&130.into(), &130.into()));
    assert_eq!(summary["classes"], serde_json::json!({}));
}

#[tokio::test]
async fn results_are_never_replaced_by_less_once_records_are_forgotten() {
    let bench = Bench::new();
    let worker = WorkerId::random("w");
    bench.submit(10).await;
    bench.finish(1, End::Dead, false).await;
    bench.finish(9, End::Succeeded, false).await;
    bench.seal().await;
    step(&bench.broker, &bench.store, &worker).await.unwrap();
    let before = bench.lines("results.jsonl").await.unwrap();
    let retention = Retention { bytes: 0, ..Retention::standard() };
    while bench.broker.sweep(&retention).await.unwrap().more {}
    bench.submit(1).await;
    bench.finish(1, End::Succeeded, false).await;
    step(&bench.broker, &bench.store, &worker).await.unwrap();
    assert_eq!(bench.lines("results.jsonl").await.unwrap(), before);
    assert_eq!(bench.lines("part-2.jsonl").await.unwrap().len(), 1, "the new end");
}

#[tokio::test]
async fn dead_after_the_plan_a_successor_writes_the_same_part() {
    let bench = Bench::new();
    let (dead, heir) = (WorkerId::random("dead"), WorkerId::random("heir"));
    bench.submit(20).await;
    bench.finish(5, End::Succeeded, false).await;
    let roller = bench.roller(&dead, later());
    let view = bench.view().await;
    roller.plan(&view, roller.progress(&view).await.unwrap()).await.unwrap();
    bench.finish(5, End::Succeeded, false).await;
    bench.roller(&heir, later()).step().await.unwrap();
    assert_eq!(bench.lines("part-1.jsonl").await.unwrap().len(), 5, "what was planned, not what is there by now");
    bench.roller(&heir, later() + EVERY).step().await.unwrap();
    assert_eq!(bench.lines("part-2.jsonl").await.unwrap().len(), 5);
}

#[tokio::test]
async fn dead_after_the_part_a_successor_writes_the_same_part() {
    let bench = Bench::new();
    let (dead, heir) = (WorkerId::random("dead"), WorkerId::random("heir"));
    bench.submit(20).await;
    bench.finish(5, End::Succeeded, false).await;
    let roller = bench.roller(&dead, later());
    let view = bench.view().await;
    let planned = roller.plan(&view, roller.progress(&view).await.unwrap()).await.unwrap();
    roller.write_part(&view.name, &planned, planned.open.unwrap()).await.unwrap();
    let written = bench.take("part-1.jsonl").await;
    bench.finish(5, End::Succeeded, false).await;
    bench.lock_runs_out(&dead).await;
    bench.roller(&heir, later()).step().await.unwrap();
    assert_eq!(bench.lines("part-1.jsonl").await.unwrap(), written);
    assert_eq!(bench.lines("part-2.jsonl").await, None);
}

#[tokio::test]
async fn dead_after_the_results_a_successor_writes_them_again() {
    let bench = Bench::new();
    let (dead, heir) = (WorkerId::random("dead"), WorkerId::random("heir"));
    bench.submit(3).await;
    bench.finish(3, End::Succeeded, false).await;
    bench.seal().await;
    bench.roller(&dead, later()).write_results(&bench.view().await, false).await.unwrap();
    let written = bench.take("results.jsonl").await;
    bench.lock_runs_out(&dead).await;
    step(&bench.broker, &bench.store, &heir).await.unwrap();
    assert_eq!(bench.lines("results.jsonl").await.unwrap(), written);
    assert_eq!(bench.lines("part-1.jsonl").await.unwrap().len(), 3, "the last part is written too");
}

#[tokio::test]
async fn one_worker_rolls_up_at_a_time() {
    let bench = Bench::new();
    let (first, second) = (WorkerId::random("first"), WorkerId::random("second"));
    bench.submit(3).await;
    bench.finish(3, End::Succeeded, false).await;
    bench.seal().await;
    assert!(bench.broker.ledger().lock(LOCK.0, &first, LOCK.1).await.unwrap());
    step(&bench.broker, &bench.store, &second).await.unwrap();
    assert_eq!(bench.lines("results.jsonl").await, None);
    bench.broker.ledger().unlock(LOCK.0, &first).await.unwrap();
    step(&bench.broker, &bench.store, &second).await.unwrap();
    assert_eq!(bench.lines("results.jsonl").await.unwrap().len(), 3);
}

#[tokio::test]
async fn an_answer_that_is_gone_leaves_a_line_without_it() {
    let bench = Bench::new();
    let worker = WorkerId::random("w");
    bench.submit(1).await;
    bench.finish(1, End::Succeeded, true).await;
    bench.seal().await;
    let record = bench.broker.ledger().results(&Scope::Batch(bench.batch.clone()), Cursor(0), 1).await.unwrap().records;
    let Some(Output::Stored(stored)) = record[0].1.answer.as_ref().map(|answer| answer.output.clone()) else {
        panic!("the answer was stored")
    };
    bench.store.delete(std::slice::from_ref(&stored.key)).await.unwrap();
    step(&bench.broker, &bench.store, &worker).await.unwrap();
    let lines = bench.lines("results.jsonl").await.unwrap();
    assert!(lines[0].contains(&stored.key) && !lines[0].contains("large and elsewhere"));
    assert_ne!(record[0].1.lease, LeaseId::NONE);
}

#[tokio::test]
async fn of_two_records_of_a_job_the_current_one_counts() {
    let bench = Bench::new();
    bench.submit(1).await;
    bench.finish(1, End::Dead, false).await;
    let scope = Scope::Batch(bench.batch.clone());
    let old = bench.broker.ledger().results(&scope, Cursor(0), 1).await.unwrap().records.remove(0).1;
    bench.broker.redrive(&[old.id]).await.unwrap();
    let view = async || bench.broker.ledger().fetch(&[old.id]).await.unwrap().remove(0);
    assert!(!counts(&old, view().await.as_ref()), "it runs again");
    bench.finish(1, End::Succeeded, false).await;
    let new = bench.broker.ledger().results(&scope, Cursor(0), 9).await.unwrap().records.pop().unwrap().1;
    assert!(!counts(&old, view().await.as_ref()) && counts(&new, view().await.as_ref()));
    assert!(counts(&old, None));
}
