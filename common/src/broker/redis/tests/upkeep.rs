//! What a sweep forgets when nobody needs it any more, and leases given back while there are many.

use std::time::Duration;

use deadpool_redis::redis::Value;

use super::super::call::DISOWN;
use super::super::global::{act, claim_batch, owner, queues};
use super::super::hold::text;
use super::super::sweep::SWEEP;
use super::super::wire::prefix;
use super::super::{Redis, sweep};
use super::{OP, must};
use crate::broker::backend::{Backend, Cancel, RawDelivery, Retention, Source, Terms, Want, WorkerId};
use crate::broker::envelope;
use crate::broker::redis::tests::server::Server;
use crate::job::{BatchName, Job, Queue};
use crate::ledger::Ledger;
use crate::record::State;
use crate::work::Work;

const NONE: Retention =
    Retention { succeeded: Duration::ZERO, dead: Duration::ZERO, bytes: 1 << 40, tombstones: Duration::ZERO };

fn job(queue: &Queue) -> Job {
    Job::new(queue.clone(), Work::prompt(Some("mock"), "say something"))
}

async fn put(redis: &Redis, jobs: &[Job]) {
    redis.enqueue(jobs.iter().map(|job| envelope(job).unwrap()).collect()).await.unwrap();
}

async fn run(redis: &Redis, queue: &Queue, words: &[&str]) -> Value {
    let args = words.iter().map(|word| word.as_bytes().to_vec()).collect();
    redis.link.call(OP, &SWEEP, &[prefix(queue)], args).await.unwrap()
}

async fn subscribe(redis: &Redis, worker: &WorkerId, queue: &Queue) -> Box<dyn Source> {
    let terms = Terms { worker: worker.clone(), queues: vec![(queue.clone(), 1)], lease: Duration::from_secs(60) };
    redis.subscribe(terms).await.unwrap()
}

async fn lease(source: &mut Box<dyn Source>, total: u32) -> Vec<RawDelivery> {
    source.next(&Want { total, caps: Vec::new(), rest: total }).await.unwrap().deliveries
}

async fn state(redis: &Redis, job: &Job) -> State {
    redis.fetch(&[job.id]).await.unwrap()[0].as_ref().unwrap().state
}

#[tokio::test]
async fn a_job_cancelled_before_its_lost_lease_is_given_back_does_not_wait_again() {
    let server = Server::start(&[]);
    let redis = Redis::connect(&server.access()).await.unwrap();
    let (queue, worker) = (Queue::new("q").unwrap(), WorkerId::random("lost"));
    let jobs = [job(&queue), job(&queue)];
    put(&redis, &jobs).await;
    let leased = lease(&mut subscribe(&redis, &worker, &queue).await, 2).await;
    assert_eq!(redis.cancel(&[jobs[0].id]).await.unwrap(), [Cancel::Flagged]);
    let lost_ids = leased.iter().flat_map(|job| *job.lease.as_bytes()).collect();
    let args = vec![worker.as_str().into(), lost_ids, text(0)];
    redis.link.call(OP, &DISOWN, &[prefix(&queue)], args).await.unwrap();
    assert_eq!((state(&redis, &jobs[0]).await, state(&redis, &jobs[1]).await), (State::Cancelled, State::Queued));
    let depth = redis.depth(&queue).await.unwrap();
    assert_eq!((depth.ready, depth.running), (1, 0));
}

#[tokio::test]
async fn announcements_that_have_no_place_keep_no_job_from_its_way() {
    let server = Server::start(&[]);
    let redis = Redis::connect(&server.access()).await.unwrap();
    let queue = Queue::new("q").unwrap();
    must::<Value>(&redis.link, &["SET", "{pq:q}:results", "of somebody else"]).await;
    let [first, mut late, last] = [job(&queue), job(&queue), job(&queue)];
    late.deadline = late.created_at;
    put(&redis, &[first.clone(), late.clone(), last.clone()]).await;
    let leased = lease(&mut subscribe(&redis, &WorkerId::random("w"), &queue).await, 3).await;
    let ids: Vec<_> = leased.iter().map(|job| job.head.id).collect();
    assert_eq!(ids, [first.id, last.id]);
    assert_eq!(state(&redis, &late).await, State::Expired);
    assert_eq!(redis.depth(&queue).await.unwrap().ready, 0);
}

#[tokio::test]
async fn an_empty_batch_is_forgotten_unless_somebody_fills_it_meanwhile() {
    let server = Server::start(&[]);
    let redis = Redis::connect(&server.access()).await.unwrap();
    let (queue, name) = (Queue::new("q").unwrap(), BatchName::new("b").unwrap());
    redis.seal(&name, &queue).await.unwrap();
    let forget = ["batches", "0", "0", "b"];
    let nothing = Value::Array(vec![]);
    assert_eq!(run(&redis, &queue, &forget).await, nothing, "marked only");
    let jobs = [Job { batch: Some(name.clone()), ..job(&queue) }, Job { batch: Some(name.clone()), ..job(&queue) }];
    put(&redis, &jobs[..1]).await;
    assert_eq!(redis.forget(&[(jobs[0].id, 0)]).await.unwrap(), 1);
    assert_eq!(run(&redis, &queue, &forget).await, nothing, "a job has been put in since it was marked");
    put(&redis, &jobs[1..]).await;
    assert_eq!(run(&redis, &queue, &forget).await, nothing, "it holds a job");
    assert_eq!(redis.forget(&[(jobs[1].id, 0)]).await.unwrap(), 1);
    assert_eq!(run(&redis, &queue, &forget).await, nothing, "marked anew");
    assert!(redis.batch(&name).await.unwrap().unwrap().sealed);
    assert_eq!(run(&redis, &queue, &forget).await, Value::Array(vec![Value::BulkString(b"b".to_vec())]));
    assert!(redis.batch(&name).await.unwrap().is_none());
    let old = Queue::new("other").unwrap();
    assert_eq!(claim_batch(&redis.link, &name, &old).await.unwrap(), queue);
    act(&redis.link, OP, vec!["drop".into(), "b".into(), "q".into()]).await.unwrap();
    assert_eq!(owner(&redis.link, &name).await.unwrap(), None);
    assert_eq!(claim_batch(&redis.link, &name, &old).await.unwrap(), old);
}

#[tokio::test]
async fn a_queue_nobody_uses_leaves_nothing_behind() {
    let server = Server::start(&[]);
    let redis = Redis::connect(&server.access()).await.unwrap();
    let queue = Queue::new("q").unwrap();
    let jobs: Vec<Job> = (0..600).map(|_| job(&queue)).collect();
    put(&redis, &jobs).await;
    assert_eq!(run(&redis, &queue, &["close"]).await, Value::Int(0), "it holds jobs");
    assert_eq!(redis.purge(&queue).await.unwrap(), 600);
    while sweep::sweep(&redis, &NONE).await.unwrap().more {}
    assert_eq!(queues(&redis.link).await.unwrap(), std::slice::from_ref(&queue), "it was used just now");
    redis.pause(&queue, Some("later")).await.unwrap();
    assert_eq!(run(&redis, &queue, &["close"]).await, Value::Int(0), "a pause is kept");
    redis.pause(&queue, None).await.unwrap();
    redis.seal(&BatchName::new("b").unwrap(), &queue).await.unwrap();
    assert_eq!(run(&redis, &queue, &["close"]).await, Value::Int(0), "a batch is kept");
    for _ in 0..2 {
        run(&redis, &queue, &["batches", "0", "0", "b"]).await;
    }
    assert_eq!(run(&redis, &queue, &["close"]).await, Value::Int(1));
    let left: Vec<String> = must(&redis.link, &["KEYS", "{pq:q}*"]).await;
    assert!(left.is_empty(), "{left:?}");
    act(&redis.link, OP, vec!["lose".into(), text(0), "q".into()]).await.unwrap();
    assert!(queues(&redis.link).await.unwrap().is_empty());
    put(&redis, &jobs[..1]).await;
    assert_eq!(redis.depth(&queue).await.unwrap().ready, 1);
}

#[tokio::test]
async fn of_many_leases_just_those_of_the_lost_worker_are_given_back() {
    let server = Server::start(&[]);
    let redis = Redis::connect(&server.access()).await.unwrap();
    let queue = Queue::new("q").unwrap();
    let mut leased = Vec::new();
    let [lost, other] = ["lost", "other"].map(WorkerId::random);
    for (worker, lease) in [(&lost, 60), (&other, 30), (&lost, 20)] {
        let jobs: Vec<Job> = (0..700).map(|_| job(&queue)).collect();
        put(&redis, &jobs).await;
        let lease = Duration::from_secs(lease);
        let terms = Terms { worker: worker.clone(), queues: vec![(queue.clone(), 1)], lease };
        let mut source = redis.subscribe(terms).await.unwrap();
        let mut taken = Vec::new();
        while taken.len() < 700 {
            let left = u32::try_from(700 - taken.len()).unwrap();
            let want = Want { total: left, caps: Vec::new(), rest: left };
            taken.extend(source.next(&want).await.unwrap().deliveries);
        }
        leased.push((source, taken));
    }
    assert_eq!(redis.recover(&lost).await.unwrap(), 1_400);
    let depth = redis.depth(&queue).await.unwrap();
    assert_eq!((depth.ready, depth.running), (1_400, 700));
    assert_eq!(redis.recover(&lost).await.unwrap(), 0);
}
