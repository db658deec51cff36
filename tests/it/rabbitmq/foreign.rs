//! The example of `deploy/rabbitmq/FOREIGN.md`, run as the user that is shipped for clients that are not ours.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use promptq_common::broker::amqp::QueueType;
use promptq_common::broker::{Access, Beside, Broker};
use promptq_common::job::Queue;
use promptq_common::ledger::DeadGroup;
use promptq_common::record::End;
use promptq_tests::backends::terms;
use promptq_tests::carrier::Carrier;
use promptq_tests::process::{Home, Said};
use promptq_tests::rabbit::{RabbitServer, RawClient, RawMessage};
use promptq_tests::redis::{Options, RedisServer};
use promptq_tests::steps::Worker;

use super::{login, shipped};

/// The one example in that language.
fn example(language: &str) -> String {
    let text = std::fs::read_to_string(shipped("FOREIGN.md")).unwrap();
    let fence = format!("```{language}\n");
    let mut found = text.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned());
    let (example, more) = (found.next().unwrap(), found.next());
    assert_eq!(more, None, "one example in {language}");
    example
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_gets_its_answer() {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/pika/bin/python");
    assert!(python.exists(), "pika is not installed (target/tools/pika); hint: run tests/install/pika.sh");
    let (server, redis, home) = (RabbitServer::shared(), RedisServer::start(Options::cheap()), Home::new());
    let host = server.host();
    let mut access = Access::new(&login(&host, "promptq-admin")).unwrap();
    access.beside = Beside::Ledger(Box::new(Access::new(&redis.url()).unwrap()));
    Broker::connect(&access).await.unwrap().declare(&Queue::standard(), &[], false).await.unwrap();
    let mut worker = home.program("promptq-worker", &["--max-jobs", "1"]);
    worker.env("PROMPTQ_BROKER", login(&host, "promptq-worker")).env("PROMPTQ_LEDGER", redis.url());
    let mut worker = worker.stderr(std::process::Stdio::null()).spawn().unwrap();
    let script = home.write("client.py", &example("python"));
    let mut client = Command::new(python);
    client.arg(script).arg(login(&host, "promptq-foreign"));
    let said = tokio::task::spawn_blocking(move || Said::of(&mut client)).await.unwrap();
    worker.kill().unwrap();
    worker.wait().unwrap();
    said.ends(0).prints(&["succeeded "]);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_job_under_a_used_id_is_dead_and_not_gone() {
    let carrier = Carrier::with_redis(QueueType::Quorum);
    let (host, broker) = (&carrier.host, carrier.as_people_do().await);
    broker.declare(&Queue::standard(), &[], false).await.unwrap();
    let client = RawClient::connect(&host.url()).await;
    let say = async |prompt: &str| {
        let message = RawMessage {
            exchange: "pq1.in".into(),
            routing_key: "default".into(),
            id: Some("one".into()),
            content_type: Some("application/json".into()),
            durable: true,
            body: format!(r#"{{"prompt":"{prompt}"}}"#).into_bytes(),
            ..RawMessage::default()
        };
        assert!(client.publish(&message).await, "{prompt}");
    };
    // Copies that come while another is looked at wait for a lease.
    let mut worker = Worker::on(&broker, terms(&[(Queue::standard(), 1)], Duration::from_secs(3))).await;
    say("first").await;
    worker.ends_one(End::Succeeded).await;
    for prompt in ["first", "second", "second"] {
        say(prompt).await;
    }
    // Each is answered for as soon as the worker asks.
    let mut dead: Vec<DeadGroup> = Vec::new();
    for _ in 0..30 {
        worker.finds_nothing().await;
        dead = broker.ledger().dead_groups(None).await.unwrap();
        if host.counts("pq1.q.") == (0, 0) && !dead.is_empty() {
            break;
        }
    }
    let told: Vec<_> = dead.iter().map(|group| (group.code.as_str(), group.count)).collect();
    assert_eq!(told, [("id_conflict", 1)], "the repetitions are told from it");
}

#[test]
fn the_job_line_of_the_page_is_one() {
    let home = Home::new();
    home.write("job.jsonl", &example("json"));
    home.promptq(&["submit", "job.jsonl", "--dry-run"]).ends(0);
}
