//! A worker whose clock is an hour off (libfaketime): leases, delays and deadlines go by the server's.

use std::process::Command;
use std::time::{Duration, Instant};

use promptq_common::job::Job;
use promptq_common::record::{End, State};
use promptq_common::time::Timestamp;
use promptq_tests::redis::Options;
use promptq_tests::site::{Setup, Site, jobs, put, see, until};

use super::{SHORT, all_end_once, called};

/// The variables that put a program's clock off by so much; its sense of how time passes stays right.
pub(super) fn clock(offset: &str) -> Vec<(String, String)> {
    let output = Command::new("faketime").args(["-f", "+0", "env"]).output();
    let output = output.unwrap_or_else(|error| panic!("faketime: {error}; run: apt-get install faketime"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let library = said.lines().find_map(|line| line.strip_prefix("LD_PRELOAD=")).expect("faketime names its library");
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    vec![pair("LD_PRELOAD", library), pair("FAKETIME", offset), pair("DONT_FAKE_MONOTONIC", "1")]
}

#[test]
fn the_clock_is_off_indeed() {
    let date = |environment: Vec<(String, String)>| {
        let output = Command::new("date").arg("+%s").envs(environment).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().parse::<i64>().unwrap()
    };
    let (right, wrong) = (date(Vec::new()), date(clock("+1h")));
    assert!((3_595..3_605).contains(&(wrong - right)), "{right} {wrong}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_an_hour_ahead_runs_jobs_when_they_are_due() {
    due_and_overdue("+1h").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_an_hour_behind_runs_jobs_when_they_are_due() {
    due_and_overdue("-1h").await;
}

async fn due_and_overdue(offset: &str) {
    let site = Site::new(Options::durable(), 20..=20).await;
    let broker = site.broker().await;
    let (now, begun) = (Timestamp::now(), Instant::now());
    let job = |number: u64| jobs(number..=number).remove(0);
    let delayed = Job { not_before: Some(now + Duration::from_secs(2)), ..job(1) };
    let far_off = Job { deadline: now + Duration::from_secs(1_800), ..job(2) };
    let overdue =
        Job { not_before: Some(now + Duration::from_secs(2)), deadline: now + Duration::from_secs(1), ..job(3) };
    let ids = put(&broker, &[delayed, far_off, overdue]).await;
    let worker = site.worker(1, &Setup { environment: clock(offset), slots: 4, ..site.setup() });
    called(&site, 2).await;
    for id in [ids[0], ids[1]] {
        until("it has succeeded", async || (see(&broker, id).await.state == State::Succeeded).then_some(())).await;
    }
    until("it has expired", async || (see(&broker, ids[2]).await.state == State::Expired).then_some(())).await;
    let calls = site.provider.calls();
    let started = |job| calls.iter().find(|call| call.job == job).map(|call| call.started.duration_since(begun));
    assert!(started(1).unwrap() >= Duration::from_secs(2), "early: {:?}", started(1));
    assert_eq!((calls.len(), started(3)), (2, None), "what was over is not run");
    worker.leaves();
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_with_clocks_that_differ_keep_their_leases() {
    let site = Site::new(Options::durable(), 2_500..=2_500).await;
    let broker = site.broker().await;
    put(&broker, &jobs(1..=8)).await;
    let setup = Setup { slots: 2, lease: SHORT, ..site.setup() };
    let ahead = site.worker(1, &Setup { environment: clock("+1h"), ..setup.clone() });
    let behind = site.worker(2, &Setup { environment: clock("-1h"), ..setup.clone() });
    let right = site.worker(3, &setup);
    let records = all_end_once(&broker, 8).await;
    assert!(records.iter().all(|record| record.end == End::Succeeded));
    let calls = site.provider.calls();
    assert_eq!(calls.len(), 8, "no lease was taken from anybody");
    assert!((1..=3).all(|worker| calls.iter().any(|call| call.generation == worker)), "all of them worked");
    for worker in [ahead, behind, right] {
        worker.leaves();
    }
}
