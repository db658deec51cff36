//! Cases: what is leased from which lane, and whose turn it is.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use promptq_common::broker::Want;
use promptq_common::job::{Band, Job, Lane, Queue};
use promptq_common::record::{End, State};
use promptq_tests::backends::{Fixture, LONG};
use promptq_tests::fixture::{batch, job, job_at, job_for, job_in, jobs, queue};
use promptq_tests::steps::{Worker, end, put, put_one, state, want};

pub(crate) async fn a_held_back_lane_is_never_leased_and_an_open_one_beside_it_always_is(f: Fixture) {
    f.declare(&["closed", "open"]).await;
    let closed: Vec<_> = (0..30).map(|_| Job { batch: Some(batch("b")), ..job_for(Some("closed")) }).collect();
    put(&f.broker, &closed).await;
    put(&f.broker, &jobs_for("open", 30)).await;
    let mut worker = f.worker().await;
    let want = Want { total: 5, caps: vec![(lane("closed"), 0)], rest: 5 };
    let (mut open, mut told) = (0, false);
    while open < 30 {
        let found = worker.consumer.next(&want).await.unwrap();
        assert!(!found.deliveries.is_empty(), "an open lane with ready jobs gave none");
        told |= found.lanes_seen.contains(&lane("closed"));
        assert!(told || !f.leases_at_once(), "a closed lane with jobs is still told of");
        for delivery in found.deliveries {
            assert_eq!(delivery.head.lane, lane("open"));
            open += 1;
            end(delivery, End::Succeeded).await;
        }
    }
    let last = worker.consumer.next(&want).await.unwrap();
    assert!(last.deliveries.is_empty() && last.lanes_seen.contains(&lane("closed")), "{:?}", last.lanes_seen);
    assert_eq!(state(&f.broker, closed[0].id).await, State::Queued);
}

pub(crate) async fn never_more_than_the_total_is_leased(f: Fixture) {
    f.declare(&["a", "b"]).await;
    put(&f.broker, &jobs_for("a", 5)).await;
    put(&f.broker, &jobs_for("b", 5)).await;
    let mut worker = f.worker().await;
    let caps = vec![(lane("a"), 5), (lane("b"), 5)];
    for total in [3, 1, 4, 2] {
        let want = Want { total, caps: caps.clone(), rest: 9 };
        let mut found = worker.consumer.next(&want).await.unwrap();
        for _ in 0..10 {
            // What a busy server pushes may come later than one call waits.
            if f.leases_at_once() || !found.deliveries.is_empty() {
                break;
            }
            found = worker.consumer.next(&want).await.unwrap();
        }
        assert!(!found.deliveries.is_empty() && found.deliveries.len() <= total as usize);
    }
}

pub(crate) async fn never_more_than_a_lanes_cap_is_leased(f: Fixture) {
    f.declare(&["a", "b"]).await;
    put(&f.broker, &jobs_for("a", 9)).await;
    put(&f.broker, &jobs_for("b", 9)).await;
    let mut worker = f.worker().await;
    let caps = vec![(lane("a"), 2), (lane("b"), 3)];
    for _ in 0..3 {
        let found = worker.consumer.next(&Want { total: 20, caps: caps.clone(), rest: 20 }).await.unwrap();
        let counts = by_lane(&found.deliveries.iter().map(|one| one.head.lane.clone()).collect::<Vec<_>>());
        assert!(counts.get(&lane("a")).is_none_or(|n| *n <= 2) && counts.get(&lane("b")).is_none_or(|n| *n <= 3));
        assert!(!found.deliveries.is_empty());
    }
}

pub(crate) async fn the_rest_bounds_each_lane_that_is_not_named(f: Fixture) {
    f.declare(&["a", "b", "named"]).await;
    for model in ["a", "b", "named"] {
        put(&f.broker, &jobs_for(model, 6)).await;
    }
    let mut worker = f.worker().await;
    let want = Want { total: 20, caps: vec![(lane("named"), 1)], rest: 2 };
    let found = worker.consumer.next(&want).await.unwrap();
    let counts = by_lane(&found.deliveries.iter().map(|one| one.head.lane.clone()).collect::<Vec<_>>());
    let most = BTreeMap::from([(lane("a"), 2), (lane("b"), 2), (lane("named"), 1)]);
    assert!(counts == most || !f.leases_at_once() && counts.iter().all(|(lane, n)| n <= &most[lane]), "{counts:?}");
    let none = Want { rest: 0, ..want };
    let found = worker.consumer.next(&none).await.unwrap();
    assert!(found.deliveries.iter().all(|one| one.head.lane == lane("named")), "rest 0 closes unnamed lanes");
}

pub(crate) async fn a_lane_is_first_in_first_out(f: Fixture) {
    let jobs = jobs(20);
    put(&f.broker, &jobs).await;
    let mut order: Vec<_> = f.worker().await.take(20).await.iter().map(|one| one.head.id).collect();
    assert_eq!(order[0], jobs[0].id);
    if !f.keeps_order() {
        // While a lane's share at a worker changes, its old consumer and its new one deliver side by side.
        order.sort_by_key(|id| jobs.iter().position(|job| job.id == *id));
    }
    assert_eq!(order, jobs.iter().map(|job| job.id).collect::<Vec<_>>());
}

pub(crate) async fn bands_are_served_8_to_3_to_1(f: Fixture) {
    f.declare(&["mock"]).await;
    for priority in [1, 5, 8] {
        put(&f.broker, &(0..ENOUGH).map(|_| job_at(priority)).collect::<Vec<_>>()).await;
    }
    let mut worker = f.worker().await;
    learn(&f, &mut worker).await;
    let mut served = BTreeMap::new();
    for _ in 0..12 {
        for delivery in worker.take(10).await {
            *served.entry(delivery.head.lane.band).or_insert(0) += 1;
            end(delivery, End::Succeeded).await;
        }
    }
    // 120 leases, 80 : 30 : 10 when exact; a tenth of them either way.
    let share = |band| served.get(&band).copied().unwrap_or(0);
    assert!((68..=92).contains(&share(Band::High)), "{served:?}");
    assert!((18..=42).contains(&share(Band::Normal)), "{served:?}");
    assert!((4..=22).contains(&share(Band::Low)), "{served:?}");
}

pub(crate) async fn queues_are_served_by_their_weight(f: Fixture) {
    let (heavy, light) = (queue("heavy"), queue("light"));
    for queue in [&heavy, &light] {
        put(&f.broker, &(0..ENOUGH).map(|_| job_in(queue)).collect::<Vec<_>>()).await;
    }
    let mut worker = f.worker_on(&[(heavy.clone(), 5), (light, 1)], LONG).await;
    learn(&f, &mut worker).await;
    let mut from_heavy = 0;
    for _ in 0..12 {
        for delivery in worker.take(10).await {
            from_heavy += u32::from(delivery.head.lane.queue == heavy);
            end(delivery, End::Succeeded).await;
        }
    }
    // 120 leases, 100 : 20 when exact; a tenth of them either way.
    assert!((88..=112).contains(&from_heavy), "{from_heavy} of 120");
}

pub(crate) async fn an_empty_queues_share_goes_to_the_others(f: Fixture) {
    put(&f.broker, &jobs(20)).await;
    let both = [(queue("empty"), 1_000), (Queue::standard(), 1)];
    let mut worker = f.worker_on(&both, LONG).await;
    if f.leases_at_once() {
        assert_eq!(worker.consumer.next(&want(20)).await.unwrap().deliveries.len(), 20);
    } else {
        worker.take(20).await;
    }
}

pub(crate) async fn a_job_without_a_model_has_a_lane_of_its_own(f: Fixture) {
    let named = put_one(&f.broker, job_for(Some("_"))).await;
    let unnamed = put_one(&f.broker, job_for(None)).await;
    let lane = Lane { model: None, ..job().lane() };
    let mut worker = f.worker().await;
    let found = worker.consumer.next(&Want { total: 9, caps: vec![(lane.clone(), 9)], rest: 0 }).await.unwrap();
    assert_eq!(found.deliveries.iter().map(|one| one.head.id).collect::<Vec<_>>(), [unnamed]);
    assert_eq!(found.deliveries[0].head.lane, lane);
    assert_eq!(worker.one().await.head.id, named);
}

/// That no lane is empty after [`learn`] and 120 leases.
const ENOUGH: usize = 400;

/// A worker of RabbitMQ learns from what is delivered which lanes have jobs, and shares itself among them anew a few
/// times a second at most: what it leases before is in no proportion.
async fn learn(f: &Fixture, worker: &mut Worker) {
    let (began, mut leased) = (Instant::now(), 0);
    while !f.leases_at_once() && began.elapsed() < Duration::from_millis(500) && leased < 200 {
        leased += 10;
        for delivery in worker.take(10).await {
            end(delivery, End::Succeeded).await;
        }
    }
}

fn lane(model: &str) -> Lane {
    job_for(Some(model)).lane()
}

fn jobs_for(model: &str, count: usize) -> Vec<Job> {
    (0..count).map(|_| job_for(Some(model))).collect()
}

fn by_lane(lanes: &[Lane]) -> BTreeMap<Lane, u32> {
    let mut counts = BTreeMap::new();
    for lane in lanes {
        *counts.entry(lane.clone()).or_insert(0) += 1;
    }
    counts
}
