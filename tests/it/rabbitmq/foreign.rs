//! The example of `deploy/rabbitmq/FOREIGN.md`, run as the user that is shipped for clients that are not ours.

use std::path::Path;
use std::process::Command;

use promptq_common::broker::{Access, Beside, Broker};
use promptq_common::job::Queue;
use promptq_tests::process::{Home, Said};
use promptq_tests::rabbit::RabbitServer;
use promptq_tests::redis::{Options, RedisServer};

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

#[test]
fn the_job_line_of_the_page_is_one() {
    let home = Home::new();
    home.write("job.jsonl", &example("json"));
    home.promptq(&["submit", "job.jsonl", "--dry-run"]).ends(0);
}
