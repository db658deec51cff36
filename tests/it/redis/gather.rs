//! Many leases settled at once: how many calls it takes, and what one of them means for the others.

use futures_util::future::join_all;
use promptq_common::broker::{RawDelivery, Settled};
use promptq_common::error::Kind;
use promptq_common::job::Queue;
use promptq_common::record::{End, State};
use promptq_tests::backends::LONG;
use promptq_tests::fixture::{self, jobs};
use promptq_tests::proxy::Network;
use promptq_tests::steps::{eventually, put, state, want};
use tokio::task::JoinSet;

use super::{Setup, subscription};

async fn leased(setup: &Setup, count: usize) -> Vec<RawDelivery> {
    put(&setup.broker, &jobs(count)).await;
    let mut source = subscription(&setup.shaky, &[Queue::standard()], LONG).await;
    let found = source.next(&want(count)).await.unwrap().deliveries;
    assert_eq!(found.len(), count);
    found
}

async fn succeed(job: &RawDelivery) -> promptq_common::error::Result<Settled> {
    job.hold.settle(&fixture::end(&job.head, job.lease, End::Succeeded)).await
}

#[tokio::test]
async fn what_arrives_together_is_settled_in_few_calls() {
    let setup = Setup::new().await;
    let jobs = leased(&setup, 500).await;
    setup.count_anew();
    let settled = join_all(jobs.iter().map(succeed)).await;
    assert!(settled.iter().all(|one| matches!(one, Ok(Settled::Applied))));
    // The first alone or with whoever came meanwhile, the rest at most 200 at a time.
    let calls = setup.calls();
    assert!((3..=6).contains(&calls), "{calls} calls");
    assert_eq!(setup.running().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn whoever_could_ask_now_is_waited_for() {
    let setup = Setup::new().await;
    let jobs = leased(&setup, 30).await;
    setup.count_anew();
    let mut settling = JoinSet::new();
    // All of them are there before the first runs.
    settling.spawn(async move {
        let mut all = JoinSet::new();
        for job in jobs {
            all.spawn(async move { succeed(&job).await });
        }
        while all.join_next().await.is_some() {}
    });
    settling.join_all().await;
    assert_eq!((setup.running().await, setup.calls()), (0, 2), "the depth is the other call");
}

#[tokio::test]
async fn one_that_is_refused_fails_alone() {
    let setup = Setup::new().await;
    let jobs = leased(&setup, 20).await;
    let broken = jobs[11].head.id;
    let script = "return redis.call('HSET', '{pq:default}:jobs', ARGV[1], string.char(0xc1))";
    // Bytes that are no job, under an id that is no text.
    let hex = broken.as_bytes().iter().fold(String::new(), |hex, byte| hex + &format!("\\{byte:03}"));
    setup.server.must(&["EVAL", &script.replace("ARGV[1]", &format!("\"{hex}\"")), "0"]);
    for (job, settled) in jobs.iter().zip(join_all(jobs.iter().map(succeed)).await) {
        if job.head.id == broken {
            assert_eq!(settled.unwrap_err().kind(), Kind::Corrupt);
        } else {
            assert_eq!(settled.unwrap(), Settled::Applied);
            assert_eq!(state(&setup.broker, job.head.id).await, State::Succeeded);
        }
    }
}

#[tokio::test]
async fn what_may_pass_fails_for_all_and_is_asked_once() {
    let setup = Setup::new().await;
    let jobs = leased(&setup, 60).await;
    setup.server.must(&["REPLICAOF", "127.0.0.1", "1"]);
    setup.count_anew();
    for settled in join_all(jobs.iter().map(succeed)).await {
        assert_eq!(settled.unwrap_err().kind(), Kind::Unavailable);
    }
    let calls = setup.calls();
    assert!((1..=4).contains(&calls), "{calls} calls for 60 that could not succeed");
    setup.server.must(&["REPLICAOF", "NO", "ONE"]);
    for settled in join_all(jobs.iter().map(succeed)).await {
        assert_eq!(settled.unwrap(), Settled::Applied);
    }
}

#[tokio::test]
async fn no_more_than_two_calls_full_wait_for_a_server_that_is_silent() {
    let setup = Setup::new().await;
    let jobs = leased(&setup, 600).await;
    setup.proxy.set(Network::Stalled);
    {
        // Polled until whoever can has a place in the line, and given up: who has none yet leaves nothing behind.
        let mut all = std::pin::pin!(join_all(jobs.iter().map(succeed)));
        for _ in 0..50 {
            assert!(futures_util::poll!(all.as_mut()).is_pending());
            tokio::task::yield_now().await;
        }
    }
    setup.proxy.set(Network::Whole);
    eventually("what had a place is done", || async { (setup.running().await < 600).then_some(()) }).await;
    let last = &jobs[jobs.len() - 1];
    assert_eq!(succeed(last).await.unwrap(), Settled::Applied, "and whoever comes is served after it");
    assert!(setup.running().await >= 600 - 401, "{} left", setup.running().await);
}
