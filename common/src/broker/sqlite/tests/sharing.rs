//! One file, many handles: nothing leased twice, nothing lost when a call is dropped, nobody failed by a neighbour.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;

use super::{End, LEASE, ending, jobs, open, queue, subscribe, want};
use crate::broker::backend::{Backend as _, Claim, RawDelivery, Settled};
use crate::error::{Error, Kind};
use crate::job::JobId;
use crate::ledger::{Cursor, Ledger as _, Scope};

#[tokio::test]
async fn two_handles_never_lease_the_same_job() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (open(folder.path()).await, open(folder.path()).await);
    one.enqueue(jobs(400)).await.unwrap();
    let mut seen = HashSet::new();
    let (mut first, mut second) = (subscribe(&one, "a", LEASE).await, subscribe(&two, "b", LEASE).await);
    while seen.len() < 400 {
        let (ours, theirs) = (want(7), want(5));
        let (a, b) = futures_util::join!(first.next(&ours), second.next(&theirs));
        for delivery in a.unwrap().deliveries.into_iter().chain(b.unwrap().deliveries) {
            assert!(seen.insert(delivery.head.id), "leased twice");
        }
    }
    assert_eq!(one.depth(&queue()).await.unwrap().running, 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_jobs_are_drained_by_three_handles_once_each() {
    let folder = tempfile::tempdir().unwrap();
    let producer = open(folder.path()).await;
    for _ in 0..10 {
        producer.enqueue(jobs(1_000)).await.unwrap();
    }
    let drains = (0..3).map(|n| drain(folder.path(), n));
    let done: Vec<JobId> = join_all(drains).await.into_iter().flatten().collect();
    assert_eq!((done.len(), done.iter().collect::<HashSet<_>>().len()), (10_000, 10_000));
    let (mut cursor, mut records) = (Cursor(0), 0);
    loop {
        let page = producer.results(&Scope::Queue(queue()), cursor, 1_000).await.unwrap();
        cursor = page.next;
        records += page.records.len();
        if !page.more {
            break;
        }
    }
    assert_eq!(records, 10_000);
}

/// Leases and settles until nothing is left; which jobs it did.
async fn drain(folder: &Path, n: usize) -> Vec<JobId> {
    let sqlite = open(folder).await;
    let mut source = subscribe(&sqlite, &format!("w{n}"), LEASE).await;
    let mut done = Vec::new();
    loop {
        let leased = source.next(&want(100)).await.unwrap();
        if leased.deliveries.is_empty() {
            return done;
        }
        let settled = join_all(leased.deliveries.iter().map(run)).await;
        assert!(settled.iter().all(|settled| *settled == Settled::Applied));
        done.extend(leased.deliveries.iter().map(|delivery| delivery.head.id));
    }
}

async fn run(delivery: &RawDelivery) -> Settled {
    assert_eq!(delivery.hold.claim().await.unwrap(), Claim::Fresh { deaths: 0 });
    delivery.hold.settle(&ending(delivery, End::Succeeded)).await.unwrap()
}

#[tokio::test]
async fn a_dropped_call_keeps_its_answer_for_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = open(folder.path()).await;
    let mut source = subscribe(&sqlite, "w", LEASE).await;
    sqlite.enqueue(jobs(6)).await.unwrap();
    assert!(source.next(&want(6)).now_or_never().is_none(), "a lease is in flight");
    // The new call has room for two; the others go back and spend nothing.
    let leased = source.next(&want(2)).await.unwrap();
    assert_eq!(leased.deliveries.len(), 2);
    let rest = source.next(&want(6)).await.unwrap();
    assert_eq!(rest.deliveries.len(), 4);
    for delivery in leased.deliveries.iter().chain(&rest.deliveries) {
        assert_eq!(delivery.hold.claim().await.unwrap(), Claim::Fresh { deaths: 0 });
    }
}

#[tokio::test]
async fn closing_gives_back_what_was_never_handed_out() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = open(folder.path()).await;
    let mut source = subscribe(&sqlite, "w", LEASE).await;
    let (mut fresh, mut handed) = (jobs(60).into_iter(), 0);
    loop {
        sqlite.enqueue(fresh.by_ref().take(3).collect()).await.unwrap();
        // The writer may have answered before anybody looked.
        let Some(leased) = source.next(&want(3)).now_or_never() else { break };
        handed += leased.unwrap().deliveries.len() as u64;
    }
    source.close().await.unwrap();
    let depth = sqlite.depth(&queue()).await.unwrap();
    assert_eq!((depth.ready, depth.running), (3, handed));
}

#[tokio::test]
async fn a_request_that_fails_fails_alone() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = open(folder.path()).await;
    let writes = (0..50).map(|n| {
        sqlite.writer.write("test", 0, move |tx| {
            tx.sql("INSERT INTO note VALUES (?1, 'x')")?.execute([n])?;
            if n == 20 { Err(Error::new(Kind::Corrupt, "test", "no").into()) } else { Ok(()) }
        })
    });
    let answers = join_all(writes).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_err()).count(), 1);
    assert_eq!(answers[20].as_ref().unwrap_err().kind(), Kind::Corrupt);
    assert_eq!(sqlite.note("20").await.unwrap(), None);
    assert_eq!(sqlite.note("49").await.unwrap().as_deref(), Some("x"));
}

#[tokio::test]
async fn an_enqueue_of_another_handle_wakes_an_idle_source() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (open(folder.path()).await, open(folder.path()).await);
    let mut source = subscribe(&one, "w", LEASE).await;
    let one_job = want(1);
    let idle = source.next(&one_job);
    futures_util::pin_mut!(idle);
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut idle).await.is_err(), "nothing to lease yet");
    two.enqueue(jobs(1)).await.unwrap();
    let leased = tokio::time::timeout(Duration::from_millis(700), idle).await.expect("woken well within a second");
    assert_eq!(leased.unwrap().deliveries.len(), 1);
}
