//! Every shell example of README.md is run, and its configuration is checked, so that what a newcomer copies works.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use promptq_tests::binary::binary;
use promptq_tests::llm::Llm;
use promptq_tests::rabbit::RabbitServer;
use promptq_tests::redis::{Options, RedisServer};
use tempfile::TempDir;

use crate::providers::{KEY, Server};

/// Stands in for cargo: what it would build is built, so it only runs it.
const CARGO: &str = r#"#!/bin/sh
[ "$1" = build ] && exit 0
[ "$1 $2 $3" = "run --release --" ] || { echo "unexpected: cargo $*" >&2; exit 64; }
shift 3
exec promptq "$@"
"#;

/// The server the README talks to.
const SERVER: &str = "http://127.0.0.1:8081/v1";

/// The Redis the README talks to.
const REDIS: &str = "redis://127.0.0.1:6379";

/// The RabbitMQ the README talks to.
const RABBIT: &str = "amqp://127.0.0.1:5672";

/// A newcomer's machine: the checked-out tree, an empty home.
struct Machine {
    home: TempDir,
}

impl Machine {
    fn new() -> Self {
        let home = TempDir::new().unwrap();
        std::os::unix::fs::symlink(top().join("producer"), home.path().join("producer")).unwrap();
        let tools = home.path().join("tools");
        std::fs::create_dir(&tools).unwrap();
        std::fs::write(tools.join("cargo"), CARGO).unwrap();
        std::fs::set_permissions(tools.join("cargo"), std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { home }
    }

    fn run(&self, script: &str) -> Output {
        let built = binary("promptq").parent().unwrap().to_owned();
        Command::new("bash")
            .args(["-euo", "pipefail", "-c", script])
            .env_clear()
            .env("HOME", self.home.path())
            .env("PATH", format!("{}/tools:{}:/usr/bin:/bin", self.home.path().display(), built.display()))
            .current_dir(self.home.path())
            .output()
            .unwrap()
    }

    fn succeed(&self, script: &str) -> String {
        let output = self.run(script);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{} of\n{script}\n{stderr}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    fn lines(&self, name: &str) -> usize {
        std::fs::read_to_string(self.home.path().join(name)).unwrap().lines().count()
    }
}

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The README's fenced blocks of one language.
fn blocks(language: &str) -> Vec<String> {
    let readme = std::fs::read_to_string(top().join("README.md")).unwrap();
    let fence = format!("```{language}\n");
    readme.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

/// The one block that holds `words`.
fn block(words: &str) -> String {
    let mut found: Vec<_> = blocks("sh").into_iter().filter(|block| block.contains(words)).collect();
    assert_eq!(found.len(), 1, "one shell example holds {words:?}");
    found.remove(0)
}

/// The rows of the example: each begins with its id, and some go over several lines.
fn rows() -> usize {
    let reviews = std::fs::read_to_string(top().join("producer/examples/reviews.csv")).unwrap();
    reviews.lines().filter(|line| line.starts_with("r-")).count()
}

#[test]
fn no_shell_example_is_left_out() {
    assert_eq!(blocks("sh").len(), 8, "a new example needs a test here");
}

#[test]
fn the_first_command_gives_a_line_for_each_row() {
    let machine = Machine::new();
    machine.succeed(&block("-m mock -o out.jsonl"));
    assert_eq!(machine.lines("out.jsonl"), rows());
}

#[test]
fn any_program_can_be_run() {
    let machine = Machine::new();
    machine.succeed(&block("exec:wc -w"));
    assert_eq!(machine.lines("words.jsonl"), rows());
}

#[tokio::test]
async fn any_openai_compatible_server_can_be_asked() {
    let server = Llm::start().await.unwrap();
    let script = block(SERVER).replace(SERVER, &server.base_url());
    let machine = Machine::new();
    tokio::task::spawn_blocking(move || {
        machine.succeed(&script);
        assert_eq!(machine.lines("answers.jsonl"), 2);
    })
    .await
    .unwrap();
}

#[test]
fn anthropic_is_asked_in_its_own_api() {
    let (server, machine) = (Server::start(), Machine::new());
    let script = block("ANTHROPIC_API_KEY").replace("sk-ant-fill-in", KEY);
    machine.succeed(&format!("export ANTHROPIC_BASE_URL={}\n{script}", server.url()));
    assert_eq!((machine.lines("claude.jsonl"), server.requests().len()), (2, 2));
}

#[test]
fn submitter_and_worker_are_two_processes() {
    let machine = Machine::new();
    let said = machine.succeed(&block("promptq-worker --concurrency 8"));
    assert!(said.contains("reviews"), "{said}");
    assert_eq!(machine.lines("results.jsonl"), rows());
}

#[test]
fn a_fleet_meets_on_redis() {
    let server = RedisServer::start(Options::durable());
    let machine = Machine::new();
    machine.succeed(&block(&format!("PROMPTQ_BROKER={REDIS}")).replace(REDIS, &server.url()));
    assert_eq!(machine.lines("fleet.jsonl"), rows());
}

#[test]
fn a_fleet_meets_on_rabbitmq() {
    let (rabbit, redis) = (RabbitServer::shared(), RedisServer::start(Options::durable()));
    let (host, machine) = (rabbit.host(), Machine::new());
    machine.succeed(&block(RABBIT).replace(RABBIT, &host.url()).replace(REDIS, &redis.url()));
    assert_eq!(machine.lines("rabbits.jsonl"), rows());
}

#[test]
fn the_gateway_is_asked_with_curl() {
    let machine = Machine::new();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let script = block("promptq serve &").replace("promptq serve", "PORT= promptq serve --listen 127.0.0.1:8080");
    let said = machine.succeed(&script.replace("8080", &port));
    assert!(said.contains("\"new\":4") && said.contains("\"unfinished\""), "{said}");
    let answer = std::fs::read_to_string(machine.home.path().join("answer.json")).unwrap();
    assert!(answer.contains("\"state\":\"succeeded\""), "{answer}");
    let rest = machine.succeed("promptq-worker --exit-when-idle 1s && promptq status examples --json");
    assert!(rest.contains("\"succeeded\": 4"), "each line names a model that works: {rest}");
}

#[test]
fn the_configuration_is_one() {
    let machine = Machine::new();
    let [config] = blocks("toml").try_into().unwrap();
    std::fs::write(machine.home.path().join("promptq.toml"), config).unwrap();
    machine.succeed("promptq config check && promptq doctor");
    // What is to be filled in is right as well.
    let path = machine.home.path().join("promptq.toml");
    let filled = std::fs::read_to_string(&path).unwrap().replace("# store", "store").replace("# reuse", "reuse");
    let filled = filled.replace("# [prov", "[prov").replace("# base", "base").replace("# api", "api");
    let filled =
        filled.replace("# [models", "[models").replace("# model", "model").replace("# provider =", "provider =");
    let filled = filled.replace("# routes", "routes");
    let filled = filled.replace("# [runners", "[runners").replace("# argv", "argv").replace("# limit_t", "limit_t");
    let filled = filled.replace("# [prices", "[prices").replace("# input", "input").replace("# output", "output");
    let filled = filled.replace("# cached", "cached").replace("# as_of", "as_of");
    let filled = filled.replace("# [limits", "[limits").replace("# requests", "requests").replace("# tokens", "tokens");
    std::fs::write(&path, filled).unwrap();
    let shown = machine.succeed("export OPENAI_API_KEY=none; promptq config check && promptq config show");
    assert!(shown.contains("s3://BUCKET") && shown.contains("api.openai.com"), "{shown}");
    assert!(shown.contains("queues.default.reuse"), "{shown}");
    assert!(shown.contains("claude-haiku-4-5") && shown.contains("api.anthropic.com"), "{shown}");
    assert!(shown.contains("models.safe.routes") && shown.contains("openai/gpt-4o-mini"), "{shown}");
    assert!(shown.contains("runners.claude.limit_texts") && shown.contains("stream-json"), "{shown}");
    assert!(shown.contains("prices.acme/fast-2.cache_write") && shown.contains("2026-11-03"), "{shown}");
    assert!(shown.contains("500/min") && shown.contains("150000/min"), "{shown}");
}
