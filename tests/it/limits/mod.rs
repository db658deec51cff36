//! Limits as a fleet of real workers keeps them, over each store that can share them; counted by the provider.

mod beside;
mod money;
mod routes;
mod rules;
mod trouble;

use std::time::{Duration, Instant};

use promptq_tests::fake::ledger::Call;
use promptq_tests::metered::{Metered, Place, jobs};
use promptq_tests::site::{put, until};

/// A request a second: a tenth of it may go at once, and that comes back a tenth faster than the limit itself.
const RULE: &str = "[limits.openai]\nrequests = \"60/min\"\n";
const PROVIDER: &str = "[[limits]]\nminute = { requests = 60 }\n";

/// The most that may be called within so many milliseconds of a limit by the minute: a tenth of it at once, and what comes
/// back meanwhile. Two that do not share it call twice as much.
fn allowed(limit: usize, millis: i64) -> usize {
    let millis = usize::try_from(millis.max(0)).unwrap();
    // Two for calls that were on their way when the first one came.
    limit / 10 + limit * 11 * millis / 600_000 + 2
}

async fn wait_for(length: Duration) {
    let began = Instant::now();
    until(&format!("{length:?} have passed"), async || (began.elapsed() >= length).then_some(())).await;
}

fn of<'a>(calls: &'a [Call], caller: &str) -> Vec<&'a Call> {
    calls.iter().filter(|call| call.caller.as_deref() == Some(caller)).collect()
}

/// Two workers, one for each of these queues, either of which could use up the limit alone.
async fn two_keep_one_limit(place: Place, queues: [&str; 2]) {
    const LOOKED_AT: i64 = 10_000;
    let metered = Metered::new(place, PROVIDER, RULE);
    let broker = metered.broker().await;
    for queue in queues {
        put(&broker, &jobs(queue, "gpt-4o", 60)).await;
    }
    let _workers = [1, 2].map(|number| metered.worker(number, &["--queues", queues[number - 1]]));
    let first = metered.called(1).await[0].started_ms;
    wait_for(Duration::from_millis(LOOKED_AT.unsigned_abs())).await;
    let mut calls = metered.fake.calls(0);
    calls.retain(|call| call.started_ms < first + LOOKED_AT);
    let most = allowed(60, LOOKED_AT);
    assert!((most / 2..=most).contains(&calls.len()), "{} calls, not {} to {most}", calls.len(), most / 2);
    assert!(calls.iter().all(|call| call.status == 200), "{calls:?}");
    for worker in ["w1", "w2"] {
        assert!(of(&calls, worker).len() >= 2, "{worker} has had {} of {}", of(&calls, worker).len(), calls.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_keep_a_limit_that_each_alone_would_use_up_over_a_file() {
    two_keep_one_limit(Place::File, ["default"; 2]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_keep_a_limit_that_each_alone_would_use_up_on_rabbitmq() {
    two_keep_one_limit(Place::rabbit(), ["default"; 2]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_queues_of_one_account_share_its_limit_on_redis() {
    two_keep_one_limit(Place::redis(), ["reviews", "letters"]).await;
}
