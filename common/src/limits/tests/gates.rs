//! Tests of gates: which lanes a failure closes, and when they open.

use std::time::Duration;

use tokio::time::Instant;

use crate::job::{Band, JobId, Lane, ModelName, Queue};
use crate::limits::Limits;
use crate::outcome::{Failure, FailureClass, Outcome, Reply};

fn lane(model: &str, band: Band) -> Lane {
    Lane { queue: Queue::standard(), model: Some(ModelName::new(model)), band }
}

fn throttled(seconds: u64) -> Outcome {
    let mut failure = Failure::new(FailureClass::Throttled, "rate_limit", "slow down");
    failure.retry_after = Some(Duration::from_secs(seconds));
    Outcome::Failure(failure)
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_closes_the_lanes_of_its_key_alone_and_opens_them_in_time() {
    let limits = Limits::new();
    let (a, b) = (lane("a", Band::Normal), lane("b", Band::Normal));
    let a_high = lane("a", Band::High);
    for (lane, key) in [(&a, "acme"), (&a_high, "acme"), (&b, "other")] {
        let pass = limits.admit(lane, key).unwrap();
        pass.report(JobId::fresh(), &Outcome::Success(Reply::default()));
    }
    limits.admit(&a, "acme").unwrap().report(JobId::fresh(), &throttled(9));
    assert_eq!((limits.room(&a), limits.room(&a_high), limits.room(&b)), (0, 0, u32::MAX));
    assert_eq!(limits.caps(), [(a_high.clone(), 0), (a.clone(), 0)]);
    assert_eq!(limits.admit(&a, "acme").unwrap_err().wait, Duration::from_secs(9));
    assert_eq!((limits.held()[0].key.as_str(), limits.held().len()), ("acme", 1));
    limits.changed().await;
    let before = Instant::now();
    limits.changed().await;
    assert_eq!(before.elapsed().as_secs(), 9);
    assert_eq!(limits.take_opened(), ["acme"]);
    assert_eq!((limits.room(&a), limits.take_opened().len(), limits.caps().len()), (u32::MAX, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_vanishes_makes_way_for_another() {
    let limits = Limits::new();
    let a = lane("a", Band::Normal);
    let down = Outcome::Failure(Failure::new(FailureClass::Capacity, "connect", "refused"));
    for _ in 0..super::super::breaker::TRIP {
        limits.admit(&a, "acme").unwrap().report(JobId::fresh(), &down);
    }
    assert_eq!(limits.room(&a), 0);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(limits.room(&a), 1);
    let probe = limits.admit(&a, "acme").unwrap();
    assert!(probe.is_probe() && limits.room(&a) == 0);
    drop(probe);
    assert_eq!(limits.room(&a), 1);
}
