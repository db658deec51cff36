//! A worker that is killed or told to leave: how soon others have its jobs, and what that costs them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use promptq_tests::farm::{Farm, LANE};
use promptq_tests::site::{Hand, Setup, jobs, put, until};
use rustix::process::Signal;

use super::{all_end_once, all_paid_once, called};

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

const JOBS: usize = 4;
/// Two heartbeats are in it.
const LEASE: Duration = Duration::from_secs(6);

/// A worker that runs a job for as long as the test says and has another in hand, and one that has started the rest.
/// Nothing when they came to it too late: what a busy worker has in hand for 5 s goes back by itself.
async fn one_in_hand() -> Option<(Farm, [Hand; 2])> {
    let farm = Farm::shared(0..=0).await;
    farm.provider.hold();
    put(&farm.broker().await, &jobs(1..=JOBS as u64)).await;
    let first = farm.worker(1, &Setup { slots: 1, lease: LEASE, ..farm.setup() });
    called(&farm, 1).await;
    until("it has fetched ahead", async || {
        (tokio::task::block_in_place(|| farm.host.counts(LANE)).1 > 1).then_some(())
    })
    .await;
    let second = farm.worker(2, &Setup { slots: 16, lease: LEASE, ..farm.setup() });
    called(&farm, JOBS - 1).await;
    (farm.provider.calls().len() == JOBS - 1).then_some((farm, [first, second]))
}

/// What the first worker has in hand is started by the second before the claim of what the first one runs could have run
/// out, and nothing is called for twice. Gives the job that the first one runs.
async fn others_have_the_rest(signal: Signal) -> (Farm, [Hand; 2], u64) {
    for _ in 0..6 {
        let Some((farm, hands)) = one_in_hand().await else { continue };
        hands[0].signal(signal);
        let began = Instant::now();
        called(&farm, JOBS).await;
        assert!(began.elapsed() < LEASE * 2 / 3, "{:?}", began.elapsed());
        let calls = farm.provider.calls();
        let jobs: BTreeSet<u64> = calls.iter().map(|call| call.job).collect();
        assert_eq!((calls.len(), jobs.len()), (JOBS, JOBS), "one call each: {calls:?}");
        let by: Vec<_> = calls.iter().map(|call| call.generation).collect();
        assert_eq!(by, [1, 2, 2, 2]);
        return (farm, hands, calls[0].job);
    }
    panic!("what a worker had fetched went back before there was another, six times");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_worker_had_not_started_is_with_others_at_once() {
    let (farm, [first, second], running) = others_have_the_rest(Signal::KILL).await;
    drop(first);
    farm.provider.go_on();
    let records = all_end_once(&farm.ledger().await, JOBS).await;
    assert!(records.iter().all(|record| record.worker.as_ref().is_some_and(|worker| worker.starts_with("w2-"))));
    // What it ran is called for again, as often as it was killed and no more.
    let again: Vec<_> = farm.provider.calls()[JOBS..].iter().map(|call| (call.job, call.generation)).collect();
    assert_eq!(again, [(running, 2)]);
    farm.tidy().await;
    second.leaves();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_leaving_worker_had_not_started_is_with_others_at_once() {
    let (farm, [mut first, second], running) = others_have_the_rest(Signal::TERM).await;
    assert!(first.runs(), "it has a job to end: {}", first.log());
    farm.provider.go_on();
    let code = until("it leaves", async || first.code()).await;
    assert_eq!(code, Some(0), "{}", first.log());
    let records = all_paid_once(&farm, JOBS).await;
    for record in records {
        let by = if record.row == Some(running) { "w1-" } else { "w2-" };
        assert!(record.worker.as_ref().is_some_and(|worker| worker.starts_with(by)), "{record:?}");
    }
    second.leaves();
}
