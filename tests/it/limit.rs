//! The limit programs of the benches, small: they look themselves at what they left behind, so that one which loses jobs
//! fails, and nobody is measured against it.

use std::fmt::Write as _;
use std::process::{Command, Output};

use promptq_tests::binary::binary;
use promptq_tests::rabbit::RabbitServer;
use promptq_tests::redis::{Options, RedisServer};
use serde_json::Value;
use tempfile::TempDir;

fn limit(words: &str) -> Output {
    Command::new(binary("limit")).args(words.split_whitespace()).output().unwrap()
}

/// What it printed.
fn line(words: &str) -> Value {
    let output = limit(words);
    assert!(output.status.success(), "limit {words}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Puts 600 in and works them off, then lets 600 live, each time 100 of them before the clock starts.
fn thrice(contestant: &str, rest: &str) {
    for (verb, number) in [("enqueue", "--jobs"), ("work", "--until"), ("live", "--jobs")] {
        let line = line(&format!("{contestant} {verb} {rest} {number} 500 --warmup 100"));
        assert_eq!(line["jobs"], 500, "{contestant} {verb}");
        let above_0 =
            ["seconds", "per_second", "cpu_us_per_job", "peak_kib"].map(|name| line[name].as_f64() > Some(0.0));
        assert_eq!(above_0, [true; 4], "{line}");
        assert_eq!(line["last_settled"].as_f64() > line["first_start"].as_f64(), verb == "work", "{line}");
    }
}

#[test]
fn every_job_ends_on_redis() {
    for (contestant, writes) in [("redis", "bare"), ("redis", "promptq"), ("redis-raw", "bare")] {
        let server = RedisServer::start(Options::every_second());
        thrice(contestant, &format!("--url {} --writes {writes} --batch 70", server.plain_url()));
    }
}

#[test]
fn every_job_ends_on_rabbitmq() {
    let (server, ledger) = (RabbitServer::shared(), RedisServer::start(Options::every_second()));
    for (contestant, queue) in [("rabbit", "quorum"), ("rabbit", "classic"), ("rabbit-raw", "quorum")] {
        let host = server.host();
        thrice(contestant, &format!("--url {} --queue {queue} --batch 70", host.url()));
    }
    let host = server.host();
    thrice("rabbit", &format!("--url {} --writes promptq --ledger {}", host.url(), ledger.plain_url()));
}

#[test]
fn every_job_ends_on_sqlite() {
    let folder = TempDir::new().unwrap();
    for writes in ["bare", "promptq"] {
        let file = folder.path().join(writes);
        thrice("sqlite", &format!("--url sqlite://{} --writes {writes} --batch 70", file.display()));
    }
}

#[test]
fn every_row_comes_out_with_a_broker_and_without() {
    let folder = TempDir::new().unwrap();
    let mut rows = "id,text\n".to_owned();
    for row in 0..450 {
        writeln!(rows, "r{row},\"this is, \"\"quoted\"\", number {row}\"").unwrap();
    }
    let here = folder.path().display();
    std::fs::write(folder.path().join("rows.csv"), rows).unwrap();
    let paths = format!("--input {here}/rows.csv --output {here}/out.jsonl");
    for contestant in ["plain".to_owned(), format!("sqlite --url sqlite://{here}/q.db")] {
        let (name, rest) = contestant.split_once(' ').unwrap_or((contestant.as_str(), ""));
        assert_eq!(line(&format!("{name} run {rest} {paths}"))["jobs"], 450);
        let lines = std::fs::read_to_string(folder.path().join("out.jsonl")).unwrap();
        let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
        assert_eq!(last["response"]["body"], "Sentiment of: this is, \"quoted\", number 449");
        assert_eq!(line(&format!("{name} run {rest} {paths} --rows 7"))["jobs"], 7);
    }
}

#[test]
fn one_that_finds_too_few_jobs_or_cannot_be_meant_says_so() {
    let folder = TempDir::new().unwrap();
    let url = format!("--url sqlite://{}/q.db", folder.path().display());
    line(&format!("sqlite enqueue {url} --jobs 10 --warmup 0"));
    let server = RedisServer::start(Options::every_second());
    let redis = format!("--url {} --idle 1", server.plain_url());
    line(&format!("redis enqueue {redis} --jobs 10 --warmup 0"));
    for words in
        [format!("sqlite work {url} --until 11 --warmup 0"), format!("redis work {redis} --until 11 --warmup 0")]
    {
        let output = limit(&words);
        assert_eq!(output.status.code(), Some(1), "{words}");
        assert!(String::from_utf8_lossy(&output.stderr).starts_with("limit: "), "{output:?}");
    }
    for words in [
        "redis work --until 1",
        "redis enqueue --url redis://h --until 1",
        "plain work --url x --until 1",
        "redis run",
        "x y",
    ] {
        assert_eq!(limit(words).status.code(), Some(2), "{words}");
    }
}
