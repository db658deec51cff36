//! What shakes a limit: a provider that says no, a worker that dies, a store that is away.

use std::time::{Duration, Instant};

use promptq_tests::fake::fault::FaultRule;
use promptq_tests::fake::kind::Kind;
use promptq_tests::fake::ledger::Call;
use promptq_tests::fake::random::Span;
use promptq_tests::metered::{Metered, Place, jobs};
use promptq_tests::site::{put, until};

use super::{allowed, of, wait_for};

const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn one_429_freezes_every_worker_once() {
    const FREEZE: i64 = 4_000;
    // How soon the worker that was not refused hears of it: with its next question, on a machine that runs other tests.
    const HEARD: i64 = 1_500;
    let metered = Metered::new(Place::redis(), "", "[limits.openai]\nrequests = \"600/min\"\n");
    put(&metered.broker().await, &jobs("default", "gpt-4o", 600)).await;
    let _workers = [1, 2].map(|number| metered.worker(number, &[]));
    let both_call = async |from: i64| {
        until(&format!("both call after {from}"), async || {
            let calls: Vec<Call> = metered.fake.calls(0).into_iter().filter(|call| call.started_ms > from).collect();
            ["w1", "w2"].iter().all(|worker| of(&calls, worker).len() >= 3).then_some(())
        })
        .await;
    };
    both_call(0).await;
    let told = Some(Span(Duration::from_millis(FREEZE.unsigned_abs())));
    let fault = FaultRule { first: Some(1), retry_after: told, ..FaultRule::new(Kind::RateLimited) };
    metered.fake.set_faults(&[fault]).unwrap();
    let refused = until("one is refused", async || {
        metered.fake.calls(0).into_iter().find(|call| call.status == 429).map(|call| call.ended_ms)
    })
    .await;
    both_call(refused + HEARD).await;
    let calls = metered.fake.calls(0);
    // To a tenth of a second, which is what its length is told to at the least.
    let frozen = refused + HEARD..refused + FREEZE - 100;
    let within: Vec<_> = calls.iter().filter(|call| frozen.contains(&call.started_ms)).collect();
    assert!(within.is_empty(), "{within:?} within {frozen:?}");
    assert_eq!(calls.iter().filter(|call| call.status == 429).count(), 1);
    // Half of it, once, and a twentieth more every three seconds.
    let rate = metered.believed("openai").await.rate;
    assert!((0.49..0.75).contains(&rate), "{rate}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_worker_had_comes_back() {
    let slow = "[latency]\nfirst = { fixed = \"60s\" }\n";
    let metered = Metered::new(Place::redis(), slow, "[limits.openai]\nconcurrent = 4\n");
    put(&metered.broker().await, &jobs("default", "gpt-4o", 20)).await;
    let open = async |count: u64| {
        until(&format!("{count} calls are open"), async || (metered.fake.bill().open == count).then_some(())).await;
    };
    let first = metered.worker(1, &[]);
    open(4).await;
    let _second = metered.worker(2, &[]);
    wait_for(Duration::from_secs(3)).await;
    assert_eq!(metered.fake.bill().open, 4, "all four are the first one's");
    let killed = Instant::now();
    drop(first);
    open(0).await;
    // Its silence is noticed after 10 s; until then its calls may still be open.
    open(4).await;
    let waited = killed.elapsed();
    assert!((6..=PATIENCE.as_secs()).contains(&waited.as_secs()), "{waited:?}");
    assert_eq!(metered.fake.bill().most_open, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_called_while_the_store_is_away_and_no_more_than_allowed_afterwards() {
    const LIMIT: usize = 120;
    let provider = format!("[[limits]]\nminute = {{ requests = {LIMIT} }}\n");
    let config = format!("[limits.openai]\nrequests = \"{LIMIT}/min\"\n");
    let metered = Metered::new(Place::redis(), &provider, &config);
    put(&metered.broker().await, &jobs("default", "gpt-4o", 200)).await;
    let _workers = [1, 2].map(|number| metered.worker(number, &[]));
    metered.called(15).await;
    let Place::Redis(server) = &metered.place else { unreachable!("it was started on one") };
    server.pause();
    // What was granted is void after 2 s.
    wait_for(Duration::from_secs(3)).await;
    let used_up = metered.fake.calls(0).len();
    wait_for(Duration::from_secs(3)).await;
    let still = metered.fake.calls(0).len();
    server.resume();
    assert_eq!(still, used_up, "called while the store was away");
    let calls = metered.called(still + 15).await;
    for (nth, call) in calls.iter().enumerate() {
        let most = allowed(LIMIT, call.started_ms - calls[0].started_ms);
        assert!(call.status == 200 && nth < most, "number {nth} of at most {most}: {call:?}");
    }
}
