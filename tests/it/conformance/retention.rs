//! Cases: what is kept how long, and what is left of it afterwards.

use std::time::Duration;

use promptq_common::broker::{Cancel, Enqueued, Redriven, Retention, Verdict};
use promptq_common::ledger::Known;
use promptq_common::record::{End, State};
use promptq_tests::backends::Fixture;
use promptq_tests::fixture::{self, batch, job_of, keyed};
use promptq_tests::steps::{put, put_one, see, sweep, view};

/// Everything that has ended is past it.
const NONE: Retention = Retention {
    succeeded: Duration::ZERO,
    dead: Duration::ZERO,
    bytes: 1 << 40,
    tombstones: Duration::from_secs(3_600),
};

pub(crate) async fn what_is_younger_than_retention_is_kept(f: Fixture) {
    put_one(&f.broker, job_of(&batch("b"))).await;
    let id = f.worker().await.ends_one(End::Succeeded).await;
    let swept = sweep(&f.broker, &Retention::standard()).await;
    assert_eq!((swept.forgotten, swept.expired, swept.outputs.len()), (0, 0, 0));
    assert!(see(&f.broker, id).await.record.unwrap().answer.is_some());
}

pub(crate) async fn what_is_older_than_retention_is_forgotten_by_its_kind(f: Fixture) {
    let name = batch("b");
    put(&f.broker, &(0..5).map(|_| job_of(&name)).collect::<Vec<_>>()).await;
    let mut worker = f.worker().await;
    let answered = worker.ends_one(End::Succeeded).await;
    let mut others = Vec::new();
    for how in [End::Dead, End::Cancelled, End::Expired] {
        others.push(worker.ends_one(how).await);
    }
    older(&f).await;
    let counts = view(&f.broker, &name).await;
    let day = Duration::from_secs(86_400);
    assert_eq!(sweep(&f.broker, &Retention { dead: day, ..NONE }).await.forgotten, 1);
    forgotten(&f, answered).await;
    for id in &others {
        assert!(see(&f.broker, *id).await.record.is_some());
    }
    assert_eq!(sweep(&f.broker, &NONE).await.forgotten, 3);
    for id in others {
        forgotten(&f, id).await;
    }
    let after = view(&f.broker, &name).await;
    assert_eq!((after.counts, after.usage, after.cost), (counts.counts, counts.usage, counts.cost));
    assert_eq!(worker.one().await.head.batch, Some(name), "a waiting job is never forgotten");
}

pub(crate) async fn a_forgotten_id_is_still_known(f: Fixture) {
    put(&f.broker, &[keyed("k", "same")]).await;
    let id = f.worker().await.ends_one(End::Dead).await;
    older(&f).await;
    sweep(&f.broker, &NONE).await;
    let ask = [(id, keyed("k", "same").fingerprint()), (id, keyed("k", "other").fingerprint())];
    assert_eq!(f.ledger().known(&ask).await.unwrap(), [Known::Same(State::Dead), Known::Conflict(State::Dead)]);
    assert_eq!(f.broker.enqueue(&[keyed("k", "same")]).await.unwrap(), [Enqueued::Known(State::Dead)]);
    assert_eq!(f.broker.redrive(&[id]).await.unwrap(), [Redriven::Gone]);
    assert_eq!(f.broker.cancel(&[id]).await.unwrap(), [Cancel::Already(State::Dead)]);
}

pub(crate) async fn a_tombstone_goes_too_in_the_end(f: Fixture) {
    put(&f.broker, &[keyed("k", "same")]).await;
    let id = f.worker().await.ends_one(End::Succeeded).await;
    older(&f).await;
    sweep(&f.broker, &Retention { tombstones: Duration::ZERO, ..NONE }).await;
    sweep(&f.broker, &Retention { tombstones: Duration::ZERO, ..NONE }).await;
    let ask = [(id, keyed("k", "same").fingerprint())];
    assert_eq!(f.ledger().known(&ask).await.unwrap(), [Known::New]);
    assert_eq!(f.broker.enqueue(&[keyed("k", "same")]).await.unwrap(), [Enqueued::New]);
}

pub(crate) async fn over_the_bytes_the_oldest_go_first(f: Fixture) {
    const SIZE: usize = 10_000;
    put(&f.broker, &(0..6).map(|_| job_of(&batch("b"))).collect::<Vec<_>>()).await;
    let mut ids = Vec::new();
    for delivery in f.worker().await.take(6).await {
        ids.push(delivery.head.id);
        let mut record = fixture::record(&delivery.head, delivery.lease.id(), End::Succeeded);
        record.answer = Some(fixture::answer(&"x".repeat(SIZE)));
        delivery.lease.settle(Verdict::End(Box::new(record))).await.unwrap();
    }
    // Room for three with what stands beside their answers, not for four.
    let retention = Retention { bytes: 35_000, ..Retention::standard() };
    assert_eq!(sweep(&f.broker, &retention).await.forgotten, 3);
    assert_eq!(sweep(&f.broker, &retention).await.forgotten, 0);
    for id in &ids[3..] {
        assert!(see(&f.broker, *id).await.record.unwrap().answer.is_some());
    }
    assert_eq!(view(&f.broker, &batch("b")).await.counts.succeeded, 6);
}

pub(crate) async fn outputs_nothing_names_any_more_are_given_back(f: Fixture) {
    put(&f.broker, &(0..2).map(|_| job_of(&batch("b"))).collect::<Vec<_>>()).await;
    for (n, delivery) in f.worker().await.take(2).await.into_iter().enumerate() {
        let mut record = fixture::record(&delivery.head, delivery.lease.id(), End::Succeeded);
        record.answer = Some(fixture::stored_answer(&format!("out/{n}")));
        delivery.lease.settle(Verdict::End(Box::new(record))).await.unwrap();
    }
    older(&f).await;
    let mut outputs = sweep(&f.broker, &NONE).await.outputs;
    outputs.sort_unstable();
    assert_eq!(outputs, ["out/0", "out/1"]);
    assert!(sweep(&f.broker, &NONE).await.outputs.is_empty());
}

/// No answer is to be had from it any more.
async fn forgotten(f: &Fixture, id: promptq_common::job::JobId) {
    let seen = f.ledger().fetch(&[id]).await.unwrap().pop().flatten();
    assert!(seen.is_none_or(|job| job.record.is_none_or(|record| record.answer.is_none())));
    assert_eq!(f.ledger().payload(id).await.unwrap(), None);
}

/// Waits until what has just ended is a few milliseconds old, on any clock.
async fn older(f: &Fixture) {
    let start = std::time::Instant::now();
    promptq_tests::steps::eventually("time passes", || async {
        f.ledger().note("tick").await.unwrap();
        (start.elapsed() > Duration::from_millis(5)).then_some(())
    })
    .await;
}
