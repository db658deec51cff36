//! A worker whose clock is an hour off (libfaketime): delays go by the ledger's.

use std::time::{Duration, Instant};

use promptq_common::job::Job;
use promptq_common::record::State;
use promptq_common::time::Timestamp;
use promptq_tests::farm::Farm;
use promptq_tests::site::{Setup, jobs, put, see, until};

use super::super::clock::clock;
use super::called;

/// The first delay level, and what a machine that runs other tests adds.
const STEP: Duration = Duration::from_secs(1 + 2);

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_an_hour_ahead_runs_jobs_when_they_are_due() {
    due_and_overdue("+1h").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_an_hour_behind_runs_jobs_when_they_are_due() {
    due_and_overdue("-1h").await;
}

async fn due_and_overdue(offset: &str) {
    let farm = Farm::shared(20..=20).await;
    let broker = farm.broker().await;
    let (now, begun) = (Timestamp::now(), Instant::now());
    let job = |number: u64| jobs(number..=number).remove(0);
    let wait = Duration::from_secs(7);
    let delayed = Job { not_before: Some(now + wait), ..job(1) };
    let far_off = Job { deadline: now + Duration::from_secs(1_800), ..job(2) };
    let overdue = Job { not_before: Some(now + wait), deadline: now + Duration::from_secs(1), ..job(3) };
    let ids = put(&broker, &[delayed, far_off, overdue]).await;
    let mut setup = Setup { slots: 4, ..farm.setup() };
    setup.environment.extend(clock(offset));
    let worker = farm.worker(1, &setup);
    called(&farm, 2).await;
    for id in [ids[0], ids[1]] {
        until("it has succeeded", async || (see(&broker, id).await.state == State::Succeeded).then_some(())).await;
    }
    until("it has expired", async || (see(&broker, ids[2]).await.state == State::Expired).then_some(())).await;
    let calls = farm.provider.calls();
    let started = |job| calls.iter().find(|call| call.job == job).map(|call| call.started.duration_since(begun));
    let ran = started(1).unwrap();
    assert!(ran >= wait && ran < wait + STEP, "due after {wait:?}, started after {ran:?}");
    assert_eq!((calls.len(), started(3)), (2, None), "what was over is not run");
    farm.tidy().await;
    worker.leaves();
}
