//! Many queues: a call is sent to those that have a turn or were stirred, and to no other.

use std::time::Duration;

use futures_util::FutureExt as _;

use super::super::Redis;
use super::super::link::Link;
use super::super::waker::Waker;
use super::must;
use super::server::Server;
use crate::broker::backend::{Backend as _, Terms, Want};
use crate::broker::{WorkerId, envelope};
use crate::job::{Job, Queue};
use crate::work::Work;

const QUEUES: u64 = 50;

fn queues() -> Vec<Queue> {
    (0..QUEUES).map(|n| Queue::new(&format!("line-{n}")).unwrap()).collect()
}

async fn put(redis: &Redis, queues: &[Queue], each: u64) {
    for queue in queues {
        let job = || envelope(&Job::new(queue.clone(), Work::prompt(Some("mock"), "say something"))).unwrap();
        redis.enqueue((0..each).map(|_| job()).collect()).await.unwrap();
    }
}

/// Scripts that the server has run.
async fn scripts(link: &Link) -> u64 {
    let told: String = must(link, &["INFO", "commandstats"]).await;
    let of = |name: &str| -> Option<u64> {
        let calls = told.lines().find_map(|each| each.strip_prefix(name))?;
        calls.split(',').next()?.parse().ok()
    };
    of("cmdstat_evalsha:calls=").unwrap_or(0) + of("cmdstat_eval:calls=").unwrap_or(0)
}

#[tokio::test]
async fn a_job_in_one_queue_stirs_no_other_and_a_call_takes_from_few() {
    let server = Server::start(&[]);
    let (redis, link) =
        (Redis::connect(&server.access()).await.unwrap(), Link::connect(&server.access()).await.unwrap());
    // A look at all of them comes after a third of a lease at the latest, and after some seconds.
    let terms = Terms {
        worker: WorkerId::random("w"),
        queues: queues().into_iter().map(|queue| (queue, 1)).collect(),
        lease: Duration::from_secs(60),
    };
    let mut source = redis.subscribe(terms).await.unwrap();
    let want = Want { total: 40, caps: Vec::new(), rest: 40 };
    assert!(source.next(&want).await.unwrap().deliveries.is_empty());

    let before = scripts(&link).await;
    put(&redis, &queues()[7..8], 1).await;
    while source.next(&want).await.unwrap().deliveries.is_empty() {}
    let calls = scripts(&link).await - before;
    assert!(calls < QUEUES / 2, "one job took {calls} calls");

    put(&redis, &queues(), 10).await;
    let (before, mut had) = (scripts(&link).await, 0);
    while had < 10 * QUEUES {
        had += source.next(&want).await.unwrap().deliveries.len() as u64;
    }
    let calls = scripts(&link).await - before;
    assert!(calls < 5 * QUEUES, "{had} jobs took {calls} calls");
}

#[tokio::test]
async fn every_queue_has_its_token_looked_at() {
    let server = Server::start(&[]);
    let link = Link::connect(&server.access()).await.unwrap();
    let leave = async |queue: &str| must::<i64>(&link, &["RPUSH", &format!("{queue}:wake"), "8"]).await;
    let mut waker = Waker::start(link.clone(), vec![b"a".to_vec(), b"b".to_vec()]);

    // Somebody who is idle, and slow to look.
    let mut first = Box::pin(waker.token());
    assert!(first.as_mut().now_or_never().is_none());
    leave("a").await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while must::<i64>(&link, &["LLEN", "a:wake"]).await > 0 {
        assert!(tokio::time::Instant::now() < deadline, "nobody waits for tokens");
    }
    leave("b").await;
    for _ in 0..100 {
        // Time enough to take a token that nobody would hear of.
        must::<i64>(&link, &["LLEN", "b:wake"]).await;
    }
    assert_eq!(first.await.unwrap().key, b"a");
    // Of two, the one that was not just looked at.
    leave("a").await;
    for queue in [b"b", b"a"] {
        let token = tokio::time::timeout(Duration::from_secs(20), waker.token()).await;
        assert_eq!(token.expect("a token was lost").unwrap().key, queue);
    }
}
