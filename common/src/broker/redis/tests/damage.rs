//! A server that came back with less than it had, and jobs whose bytes nobody can read.

use std::time::Duration;

use deadpool_redis::redis::{Value, cmd};

use super::super::Redis;
use super::super::link::Link;
use super::{OP, must};
use crate::broker::backend::{Backend, Claim, Enqueued, RawDelivery, Refusal, Source, Terms, Verdict, Want, WorkerId};
use crate::broker::envelope;
use crate::broker::redis::tests::server::Server;
use crate::job::{Job, JobId, Queue};
use crate::work::Work;

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(100);

fn queue() -> Queue {
    Queue::new("q").unwrap()
}

async fn put(redis: &Redis, count: usize) -> Vec<Job> {
    let jobs: Vec<Job> = (0..count).map(|_| Job::new(queue(), Work::prompt(Some("mock"), "say something"))).collect();
    redis.enqueue(jobs.iter().map(|job| envelope(job).unwrap()).collect()).await.unwrap();
    jobs
}

async fn subscribe(redis: &Redis, lease: Duration) -> Box<dyn Source> {
    let terms = Terms { worker: WorkerId::random("w"), queues: vec![(queue(), 1)], lease };
    redis.subscribe(terms).await.unwrap()
}

/// So many jobs, in as many calls as they take.
async fn lease(source: &mut Box<dyn Source>, count: usize) -> Vec<RawDelivery> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    let mut leased = Vec::new();
    while leased.len() < count {
        assert!(tokio::time::Instant::now() < deadline, "{} of {count} jobs", leased.len());
        let total = u32::try_from(count - leased.len() + 1).unwrap();
        let want = Want { total, caps: Vec::new(), rest: total };
        leased.extend(source.next(&want).await.unwrap().deliveries);
    }
    leased
}

fn ids(leased: &[RawDelivery]) -> Vec<JobId> {
    leased.iter().map(|job| job.head.id).collect()
}

/// All that the queue holds, as the server would write it down.
async fn dump(link: &Link) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut held = Vec::new();
    for key in must::<Vec<Vec<u8>>>(link, &["KEYS", "{pq:q}*"]).await {
        let bytes = link.query(OP, cmd("DUMP").arg(&key)).await.unwrap();
        held.push((key, bytes));
    }
    held
}

/// The server comes back with what it held then.
async fn go_back(link: &Link, held: Vec<(Vec<u8>, Vec<u8>)>) {
    for key in must::<Vec<Vec<u8>>>(link, &["KEYS", "{pq:q}*"]).await {
        link.query::<Value>(OP, cmd("DEL").arg(&key)).await.unwrap();
    }
    for (key, bytes) in held {
        link.query::<Value>(OP, cmd("RESTORE").arg(&key).arg(0).arg(&bytes)).await.unwrap();
    }
}

async fn damage(link: &Link, job: &Job, bytes: &[u8]) {
    let set = cmd("HSET").arg("{pq:q}:jobs").arg(job.id.as_bytes()).arg(bytes).to_owned();
    assert_eq!(link.query::<i64>(OP, &set).await.unwrap(), 0, "it was there");
}

/// The first so many bytes of what is there.
async fn cut(link: &Link, job: &Job, length: usize) {
    let bytes: Vec<u8> = link.query(OP, cmd("HGET").arg("{pq:q}:jobs").arg(job.id.as_bytes())).await.unwrap();
    damage(link, job, &bytes[..length]).await;
}

#[tokio::test]
async fn a_lease_that_the_server_has_forgotten_runs_no_job() {
    let server = Server::start(&[]);
    let redis = Redis::connect(&server.access()).await.unwrap();
    let jobs = put(&redis, 2).await;
    let held = dump(&redis.link).await;
    let forgotten = lease(&mut subscribe(&redis, LONG).await, 2).await;
    go_back(&redis.link, held).await;
    let claim = forgotten[0].hold.claim().await.unwrap();
    assert!(matches!(claim, Claim::Stale), "nobody has it: {claim:?}");
    // Ends later than the forgotten lease would have.
    let again = lease(&mut subscribe(&redis, LONG * 2).await, 2).await;
    assert_eq!(ids(&again), [jobs[0].id, jobs[1].id]);
    let claim = forgotten[1].hold.claim().await.unwrap();
    assert!(matches!(claim, Claim::Taken { .. }), "another has it: {claim:?}");
    for job in &again {
        let claim = job.hold.claim().await.unwrap();
        assert!(matches!(claim, Claim::Fresh { deaths: 0 }), "{claim:?}");
    }
}

#[tokio::test]
async fn a_lease_that_was_extended_is_as_good_as_before() {
    let server = Server::start(&[]);
    let redis = Redis::connect(&server.access()).await.unwrap();
    put(&redis, 2).await;
    let leased = lease(&mut subscribe(&redis, LONG).await, 2).await;
    leased[0].hold.beat().await.unwrap();
    for job in &leased {
        let claim = job.hold.claim().await.unwrap();
        assert!(matches!(claim, Claim::Fresh { deaths: 0 }), "{claim:?}");
    }
}

#[tokio::test]
async fn a_waiting_job_that_nobody_can_read_takes_no_other_with_it() {
    let server = Server::start(&[]);
    let redis = Redis::connect(&server.access()).await.unwrap();
    let jobs = put(&redis, 5).await;
    damage(&redis.link, &jobs[1], b"no job").await;
    // In the middle of what a lease reads of a job that has only ever waited.
    cut(&redis.link, &jobs[3], 26).await;
    let leased = lease(&mut subscribe(&redis, LONG).await, 3).await;
    assert_eq!(ids(&leased), [jobs[0].id, jobs[2].id, jobs[4].id]);
    let mut other = subscribe(&redis, LONG).await;
    assert!(other.next(&Want { total: 9, caps: Vec::new(), rest: 9 }).await.unwrap().deliveries.is_empty());
    let depth = redis.depth(&queue()).await.unwrap();
    assert_eq!((depth.ready, depth.running), (0, 3));
    // It may have run, for all anybody can tell.
    let again = redis.enqueue(vec![envelope(&jobs[1]).unwrap()]).await.unwrap();
    assert_eq!(again, [Enqueued::Refused(Refusal::Conflict)]);
}

#[tokio::test]
async fn a_leased_and_a_delayed_job_that_nobody_can_read_hold_up_no_lease() {
    let server = Server::start(&[]);
    let redis = Redis::connect(&server.access()).await.unwrap();
    let jobs = put(&redis, 6).await;
    let mut source = subscribe(&redis, SHORT).await;
    let leased = lease(&mut source, 6).await;
    for job in &leased[3..] {
        job.hold.settle(&Verdict::Release { after: SHORT, hold: None }).await.unwrap();
    }
    for job in [&jobs[1], &jobs[4]] {
        cut(&redis.link, job, 20).await;
    }
    drop(source);
    let mut back = ids(&lease(&mut subscribe(&redis, LONG).await, 4).await);
    let mut sound = [0, 2, 3, 5].map(|place: usize| jobs[place].id);
    back.sort_unstable();
    sound.sort_unstable();
    assert_eq!(back, sound);
    let depth = redis.depth(&queue()).await.unwrap();
    assert_eq!((depth.ready, depth.delayed, depth.running), (0, 0, 4));
}
