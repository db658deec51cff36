//! A worker that is killed or told to leave: how soon others have its jobs, and what that costs them.

use std::time::{Duration, Instant};

use promptq_tests::farm::{Farm, LANE};
use promptq_tests::site::{Setup, jobs, put, until};

use super::{all_end_once, called};

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_workers_job_runs_again_within_a_lease_and_two_seconds() {
    const LEASE: Duration = Duration::from_secs(5);
    let farm = Farm::shared(3_000..=3_000).await;
    put(&farm.broker().await, &jobs(1..=1)).await;
    let setup = Setup { lease: LEASE, ..farm.setup() };
    let first = farm.worker(1, &setup);
    called(&farm, 1).await;
    let second = farm.worker(2, &setup);
    until("the other one waits", async || second.log().contains("taking jobs").then_some(())).await;
    drop(first);
    let killed = Instant::now();
    called(&farm, 2).await;
    let again = farm.provider.calls()[1].started.duration_since(killed);
    assert!(again < LEASE + Duration::from_secs(2), "{again:?}");
    all_end_once(&farm.ledger().await, 1).await;
    farm.tidy().await;
    second.leaves();
}

/// One worker with all the messages it fetches ahead, one of which runs for long; then what happens to it, and how soon
/// another has the rest.
async fn others_have_the_rest(end: fn(promptq_tests::site::Hand)) {
    const JOBS: u64 = 9;
    let farm = Farm::shared(2_500..=2_500).await;
    put(&farm.broker().await, &jobs(1..=JOBS)).await;
    let first = farm.worker(1, &Setup { slots: 1, ..farm.setup() });
    called(&farm, 1).await;
    until("it has fetched ahead", async || {
        let (_, unacked) = tokio::task::block_in_place(|| farm.host.counts(LANE));
        (unacked > 1).then_some(())
    })
    .await;
    let second = farm.worker(2, &Setup { slots: 16, ..farm.setup() });
    until("the other one takes the rest", async || (farm.provider.calls().len() >= 2).then_some(())).await;
    let began = Instant::now();
    end(first);
    until("it has all that were not started", async || {
        let calls = farm.provider.calls();
        let others = calls.iter().filter(|call| call.generation == 2).count();
        (others >= usize::try_from(JOBS).unwrap() - 1).then_some(())
    })
    .await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    let records = all_end_once(&farm.ledger().await, usize::try_from(JOBS).unwrap()).await;
    assert!(records.iter().all(|record| record.attempts == 1));
    let started = farm.provider.calls();
    for record in &records {
        let calls = started.iter().filter(|call| Some(call.job) == record.row).count();
        assert!(calls == 1 || record.row == Some(1) || calls == 2, "job {:?} was called {calls} times", record.row);
    }
    second.leaves();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_worker_had_not_started_is_with_others_at_once() {
    others_have_the_rest(drop).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_leaving_worker_had_not_started_is_with_others_at_once() {
    others_have_the_rest(promptq_tests::site::Hand::leaves).await;
}
