//! The way to a Redis server against a real one: scripts it forgets, restarts, silence, a full memory, a new role.

mod check;
mod damage;
mod inbox;
mod many;
mod server;
mod upkeep;

use std::sync::LazyLock;
use std::time::Duration;

use deadpool_redis::redis::{self, FromRedisValue, Value};
use futures_util::future::join_all;
use rustix::process::{Pid, Signal, kill_process};

use super::address::Target;
use super::link::Link;
use super::script::{Script, When};
use crate::broker::Access;
use crate::error::{Error, Kind, Result};
use server::Server;

const OP: &str = "test";

static SUM: LazyLock<Script> = LazyLock::new(|| Script::new("sum", When::Always, &["return ARGV[1] + ARGV[2]"]));
static KEEP: LazyLock<Script> =
    LazyLock::new(|| Script::new("keep", When::Room, &["return redis.call('SET', KEYS[1], ARGV[1])"]));
static DROP: LazyLock<Script> = LazyLock::new(|| {
    Script::new("drop", When::Always, &["redis.call('SET', KEYS[1], '')", "return redis.call('DEL', KEYS[1])"])
});

async fn link(server: &Server) -> Link {
    Link::connect(&server.access()).await.unwrap()
}

async fn sum(link: &Link, a: i64, b: i64) -> Result<i64> {
    let args = [a, b].map(|number| number.to_string().into_bytes()).to_vec();
    link.call(OP, &SUM, &[], args).await.map(|value| i64::from_redis_value(value).unwrap())
}

async fn ask<T: FromRedisValue>(link: &Link, words: &[&str]) -> Result<T> {
    let mut cmd = redis::cmd(words[0]);
    cmd.arg(&words[1..]);
    link.query(OP, &cmd).await
}

async fn must<T: FromRedisValue>(link: &Link, words: &[&str]) -> T {
    ask(link, words).await.unwrap()
}

async fn until<T>(mut attempt: impl AsyncFnMut() -> Result<T>) -> T {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        match attempt().await {
            Ok(done) => return done,
            Err(error) => assert!(tokio::time::Instant::now() < deadline && error.is_transient(), "{error}"),
        }
    }
}

#[tokio::test]
async fn a_script_that_the_server_forgets_is_loaded_again_by_every_call_in_flight() {
    let server = Server::start(&[]);
    let link = link(&server).await;
    for round in 0..10 {
        let calls = (0..200).map(|n| sum(&link, n, round));
        let flush = must::<Value>(&link, &["SCRIPT", "FLUSH"]);
        let (sums, _) = futures_util::join!(join_all(calls), flush);
        for (n, sum) in (0..200).zip(sums) {
            assert_eq!(sum.unwrap(), n + round);
        }
    }
}

#[tokio::test]
async fn calls_go_on_after_the_server_was_killed_and_started_again() {
    let mut server = Server::start(&[]);
    let link = link(&server).await;
    assert_eq!(sum(&link, 1, 2).await.unwrap(), 3);
    server.kill();
    for failed in join_all((0..100).map(|n| sum(&link, n, n))).await {
        assert_eq!(failed.unwrap_err().kind(), Kind::Unavailable);
    }
    server.restart();
    assert_eq!(until(async || sum(&link, 3, 4).await).await, 7);
    assert_eq!(must::<u64>(&link, &["EXISTS", "nothing"]).await, 0);
}

#[tokio::test]
async fn callers_that_wait_for_one_attempt_to_connect_share_its_failure() {
    // Takes connections and never answers, not even a login.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://:hunter2@{}", listener.local_addr().unwrap());
    let link = Link::new(Target::new(&Access::new(&url).unwrap()).await.unwrap()).unwrap();
    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    for failed in join_all((0..90).map(|n| sum(&link, n, n))).await {
        assert_eq!(failed.unwrap_err().kind(), Kind::TimedOut);
    }
    assert_eq!(begun.elapsed().as_secs(), 5);
}

#[tokio::test]
async fn a_connection_that_was_closed_while_idle_costs_nobody_an_error() {
    let server = Server::start(&[]);
    let link = link(&server).await;
    let other = Link::connect(&server.access()).await.unwrap();
    assert_eq!(sum(&link, 1, 2).await.unwrap(), 3);
    let old: u64 = must(&link, &["CLIENT", "ID"]).await;
    must::<u64>(&other, &["CLIENT", "KILL", "ID", &old.to_string()]).await;
    // As if it had been quiet for a while.
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(6)).await;
    tokio::time::resume();
    assert_eq!(sum(&link, 3, 4).await.unwrap(), 7);
    assert_ne!(must::<u64>(&link, &["CLIENT", "ID"]).await, old);
}

#[tokio::test]
async fn one_caller_stays_on_one_connection_and_many_share_three() {
    let server = Server::start(&[]);
    let link = link(&server).await;
    let id = async || must::<u64>(&link, &["CLIENT", "ID"]).await;
    let first = id().await;
    for _ in 0..5 {
        assert_eq!(id().await, first);
    }
    let mut ids = join_all((0..50).map(|_| id())).await;
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 3, "{ids:?}");
    assert!(ids.contains(&first));
}

#[tokio::test]
async fn a_server_that_falls_silent_is_left_for_a_new_connection() {
    let server = Server::start(&[]);
    let link = link(&server).await;
    let info: String = must(&link, &["INFO", "server"]).await;
    let pid = info.lines().find_map(|line| line.trim().strip_prefix("process_id:")).unwrap();
    let process = Pid::from_raw(pid.parse().unwrap()).unwrap();
    let old: u64 = must(&link, &["CLIENT", "ID"]).await;
    kill_process(process, Signal::STOP).unwrap();
    // The clock runs on by itself while nothing else does.
    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    let silent = sum(&link, 1, 2).await.unwrap_err();
    assert_eq!((silent.kind(), begun.elapsed().as_secs()), (Kind::TimedOut, 10), "{silent}");
    tokio::time::resume();
    kill_process(process, Signal::CONT).unwrap();
    assert_eq!(until(async || sum(&link, 3, 4).await).await, 7);
    assert_ne!(must::<u64>(&link, &["CLIENT", "ID"]).await, old);
}

#[tokio::test]
async fn a_full_server_refuses_what_adds_and_runs_what_makes_room() {
    let server = Server::start(&[]);
    let link = link(&server).await;
    let keep = async || link.call(OP, &KEEP, &[b"key".to_vec()], vec![b"value".to_vec()]).await;
    keep().await.unwrap();
    must::<Value>(&link, &["CONFIG", "SET", "maxmemory", "1"]).await;
    let full = keep().await.unwrap_err();
    assert_eq!(full.kind(), Kind::Unavailable);
    assert!(full.to_string().contains("the Redis server is full (maxmemory)"), "{full}");
    let dropped = link.call(OP, &DROP, &[b"key".to_vec()], vec![]).await.unwrap();
    assert_eq!(u64::from_redis_value(dropped).unwrap(), 1);
}

#[tokio::test]
async fn a_server_that_became_a_replica_is_asked_again_over_a_new_connection() {
    let server = Server::start(&[]);
    let link = link(&server).await;
    let keep = async || link.call(OP, &KEEP, &[b"key".to_vec()], vec![b"value".to_vec()]).await;
    let old: u64 = must(&link, &["CLIENT", "ID"]).await;
    must::<Value>(&link, &["REPLICAOF", "127.0.0.1", "1"]).await;
    let refused = keep().await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Unavailable, "{refused}");
    assert!(refused.to_string().contains("replica"), "{refused}");
    must::<Value>(&link, &["REPLICAOF", "NO", "ONE"]).await;
    keep().await.unwrap();
    assert_ne!(must::<u64>(&link, &["CLIENT", "ID"]).await, old);
}

#[tokio::test]
async fn a_pipeline_has_one_answer_for_each_of_its_commands() {
    let server = Server::start(&[]);
    let link = link(&server).await;
    let cmds = ["SET key value", "LPUSH key x", "GET key"].map(|line| {
        let mut words = line.split(' ');
        let mut cmd = redis::cmd(words.next().unwrap());
        words.for_each(|word| _ = cmd.arg(word));
        cmd
    });
    let answers = link.pipe(OP, &cmds).await.unwrap();
    assert_eq!(answers.len(), 3);
    let kinds: Vec<_> = answers.iter().map(|answer| answer.as_ref().map_err(Error::kind)).collect();
    assert_eq!(kinds[1].as_ref().unwrap_err(), &Kind::Corrupt);
    assert_eq!(kinds[2], Ok(&Value::BulkString(b"value".to_vec())));
    assert!(link.pipe(OP, &[]).await.unwrap().is_empty());
    let wrong = ask::<u64>(&link, &["GET", "key"]).await.unwrap_err();
    assert_eq!(wrong.kind(), Kind::Corrupt, "{wrong}");
}

#[tokio::test]
async fn a_wait_ends_with_a_token_or_with_its_patience() {
    let server = Server::start(&[]);
    let link = link(&server).await;
    let mut blocker = link.blocker();
    let keys = [b"a".to_vec(), b"b".to_vec()];
    let (token, _) = futures_util::join!(blocker.pop(&keys, Duration::from_secs(10)), async {
        until(async || blocked(&link, 1).await).await;
        must::<u64>(&link, &["RPUSH", "b", "token"]).await
    });
    assert_eq!(token.unwrap(), Some((b"b".to_vec(), b"token".to_vec())));
    assert_eq!(blocker.pop(&keys, Duration::from_millis(10)).await.unwrap(), None);
    assert_eq!(blocker.pop(&keys, Duration::ZERO).await.unwrap(), None);
}

#[tokio::test]
async fn a_dropped_wait_takes_no_token() {
    let server = Server::start(&[]);
    let link = link(&server).await;
    let mut blocker = link.blocker();
    let keys = [b"a".to_vec()];
    {
        let wait = blocker.pop(&keys, Duration::from_secs(60));
        tokio::select! {
            token = wait => panic!("{token:?}"),
            () = until(async || blocked(&link, 1).await) => {}
        }
    }
    until(async || blocked(&link, 0).await).await;
    must::<u64>(&link, &["RPUSH", "a", "token"]).await;
    assert_eq!(must::<u64>(&link, &["LLEN", "a"]).await, 1);
    assert!(blocker.pop(&keys, Duration::from_secs(10)).await.unwrap().is_some());
}

#[tokio::test]
async fn a_wait_connects_anew_after_a_restart_and_leaves_time_between_attempts() {
    let mut server = Server::start(&[]);
    let link = link(&server).await;
    let mut blocker = link.blocker();
    let keys = [b"a".to_vec()];
    assert_eq!(blocker.pop(&keys, Duration::from_millis(1)).await.unwrap(), None);
    server.kill();
    let begun = tokio::time::Instant::now();
    for _ in 0..4 {
        let error = blocker.pop(&keys, Duration::from_secs(1)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    }
    // Half of 50, 100 and 200 ms at the least.
    assert!(begun.elapsed() >= Duration::from_millis(175), "{:?}", begun.elapsed());
    server.restart();
    until(async || ask::<u64>(&link, &["RPUSH", "a", "token"]).await).await;
    assert!(until(async || blocker.pop(&keys, Duration::from_secs(10)).await).await.is_some());
}

/// Whether so many clients wait on lists.
async fn blocked(link: &Link, count: usize) -> Result<()> {
    let info: String = ask(link, &["INFO", "clients"]).await?;
    let wanted = format!("blocked_clients:{count}");
    if info.lines().any(|line| line.trim() == wanted) {
        return Ok(());
    }
    Err(Error::new(Kind::Unavailable, OP, format!("not {wanted}")))
}
