//! A throttled model beside one that is not: whoever waits for a limit is in nobody's way.

use std::time::{Duration, Instant};

use promptq_tests::metered::{Metered, Place, jobs};
use promptq_tests::site::{put, until};

/// How long 30 calls of a model may take that answers at once, on a machine that runs other tests. The limit of the other
/// one would let its backlog through in half an hour.
const SOON: Duration = Duration::from_secs(5);

async fn nobody_waits_for_a_throttled_model(place: Place) {
    let config = "[limits.\"openai/slow\"]\nrequests = \"6/min\"\n[queues.default]\nmodels = [\"slow\", \"free\"]\n";
    let metered = Metered::new(place, "[[limits]]\nmodel = \"slow\"\nminute = { requests = 6 }\n", config);
    // Makes the lanes of both models; who asked before would not know of them for a while.
    let _worker = metered.worker(1, &["--concurrency", "4"]);
    put(&metered.broker().await, &jobs("default", "free", 1)).await;
    metered.called(1).await;
    let broker = metered.broker().await;
    put(&broker, &jobs("default", "slow", 200)).await;
    metered.called(2).await;
    let began = Instant::now();
    put(&broker, &jobs("default", "free", 30)).await;
    let calls = until("the free model has been called for all", async || {
        let calls = metered.fake.calls(0);
        (calls.iter().filter(|call| call.model == "free").count() == 31).then_some(calls)
    })
    .await;
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    let slow: Vec<_> = calls.iter().filter(|call| call.model == "slow").collect();
    assert!((1..=3).contains(&slow.len()) && slow.iter().all(|call| call.status == 200), "{slow:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttled_model_delays_no_other_on_redis() {
    nobody_waits_for_a_throttled_model(Place::redis()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttled_model_delays_no_other_on_rabbitmq() {
    nobody_waits_for_a_throttled_model(Place::rabbit()).await;
}
