//! What a `promptq run` leaves at a RabbitMQ: nothing once it has all its results, and nothing is lost by that.

use promptq_common::broker::Remark;
use promptq_common::broker::amqp::QueueType;
use promptq_tests::backends::{LONG, terms};
use promptq_tests::carrier::Carrier;
use promptq_tests::fixture::{job_in, queue};
use promptq_tests::process::{Home, Said};
use promptq_tests::rabbit::{RabbitServer, VirtualHost};
use promptq_tests::redis::{Options, RedisServer};
use promptq_tests::steps::{eventually, put_one};

/// The queues there that belong to a run.
fn of_runs(host: &VirtualHost) -> Vec<String> {
    host.queues().into_iter().map(|queue| queue.name).filter(|name| name.contains("run-")).collect()
}

#[test]
fn a_run_takes_its_queues_away_and_makes_them_again_when_they_are_needed() {
    let (server, redis, home) = (RabbitServer::shared(), RedisServer::start(Options::cheap()), Home::new());
    let host = server.host();
    home.write("prompts.txt", "good\nbad\n");
    let bad = home.path("bad");
    home.write("bad", "");
    // Fails for one of them, until it is told otherwise.
    let script = format!("exec:sh -c 'read x; test $x = good || ! test -e {} || exit 9; echo $x'", bad.display());
    let words = ["run", "prompts.txt", "--in", "lines", "-m", &script, "-o", "out.jsonl"];
    let run = |more: &[&str]| {
        let mut command = home.program("promptq", &[&words[..], more].concat());
        Said::of(command.env("PROMPTQ_BROKER", host.url()).env("PROMPTQ_LEDGER", redis.url()))
    };
    let lines = || std::fs::read_to_string(home.path("out.jsonl")).unwrap().lines().count();
    let said = run(&["--max-attempts", "1"]).ends(3);
    assert!(!said.stderr.contains("left at the broker"), "{}", said.stderr);
    assert_eq!((lines(), of_runs(&host)), (2, Vec::new()));
    // What died goes back into lanes that are gone, and a run with nothing to do leaves nothing either.
    std::fs::remove_file(bad).unwrap();
    run(&["--max-attempts", "1", "--retry-dead"]).ends(0).says(&["1 job of an earlier run tried again", "2 succeeded"]);
    assert_eq!((lines(), of_runs(&host)), (2, Vec::new()));
    run(&["--max-attempts", "1"]).ends(0);
    assert_eq!((lines(), of_runs(&host)), (2, Vec::new()));
}

#[test]
fn a_run_leaves_its_queues_while_delayed_jobs_may_come_back_to_them() {
    let (server, redis, home) = (RabbitServer::shared(), RedisServer::start(Options::cheap()), Home::new());
    let host = server.host();
    let promptq = |words: &[&str]| {
        let mut command = home.program("promptq", words);
        Said::of(command.env("PROMPTQ_BROKER", host.url()).env("PROMPTQ_LEDGER", redis.url()))
    };
    home.write("prompts.txt", "good\n");
    let run = ["run", "prompts.txt", "--in", "lines", "-m", "mock", "-o", "out.jsonl"];
    promptq(&["submit", "prompts.txt", "--in", "lines", "-m", "mock", "--queue", "other", "--delay", "1h"]).ends(0);
    promptq(&run).ends(0).says(&["is left at the broker: delayed jobs wait in pq1.delay.600000"]);
    assert_eq!(of_runs(&host).len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_use_is_not_taken_away() {
    let (carrier, own) = (Carrier::with_redis(QueueType::Quorum), queue("run-x"));
    let (people, broker) = (carrier.as_people_do().await, carrier.as_people_do().await);
    let first = put_one(&broker, job_in(&own)).await;
    let ready = || async { (carrier.host.counts("pq1.q.run-x.") == (1, 0)).then_some(()) };
    eventually("it waits", ready).await;
    let left = |remarks: Vec<Remark>| remarks.into_iter().map(|left| (left.name, left.why)).collect::<Vec<_>>();
    let waits = ("pq1.q.run-x._.normal".to_owned(), "jobs wait in it".to_owned());
    assert_eq!(left(people.retire(&own).await.unwrap()), [waits]);
    assert_eq!(of_runs(&carrier.host).len(), 4);
    let mut worker = carrier.worker(terms(&[(own.clone(), 1)], LONG)).await;
    assert_eq!(worker.drain().await, [first]);
    let asking = async {
        loop {
            worker.finds_nothing().await;
        }
    };
    let retired = tokio::select! {
        retired = people.retire(&own) => left(retired.unwrap()),
        () = asking => unreachable!("it asks on"),
    };
    let taken = ["high", "normal", "low"].map(|band| format!("pq1.q.run-x._.{band}"));
    assert_eq!(retired, taken.map(|name| (name, "somebody takes from it".to_owned())));
    let second = put_one(&carrier.as_people_do().await, job_in(&own)).await;
    assert_eq!(worker.drain().await, [second]);
}
