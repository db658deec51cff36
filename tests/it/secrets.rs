//! What must never be said: prompts, answers, keys and passwords are planted, everything is run at the loudest level,
//! and no line of talk or log may hold one.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;

use promptq_common::job::Job;
use promptq_common::work::Work;
use promptq_tests::fixture::job;
use promptq_tests::process::{Home, Said};
use promptq_tests::steps::put;

const PROMPT: &str = "zebra-quartz-prompt";
const KEY: &str = "sk-planted-9f8e7d6c";
const PASSWORD: &str = "hunter2-planted";

/// Runs it as loudly as it can be, with a key in its environment; none of the planted words may be in its talk.
#[track_caller]
fn hushed(command: &mut Command) -> Said {
    let said = Said::of(command.env("PROMPTQ_LOG", "trace").env("OPENAI_API_KEY", KEY));
    assert!(said.stderr.contains("\"level\":"), "nothing was logged: {}", said.stderr);
    quiet(&said.stderr);
    said
}

#[track_caller]
fn quiet(text: &str) {
    for word in [PROMPT, KEY, PASSWORD] {
        let line = text.lines().find(|line| line.contains(word));
        assert!(line.is_none(), "{word} is in {line:?}");
    }
}

fn rows(home: &Home, name: &str) {
    home.write(name, &format!("{{\"prompt\":\"{PROMPT} 1\"}}\n{{\"prompt\":\"{PROMPT} 2\"}}\n"));
}

/// A provider that answers everything with `status` and an echo of all it was sent, key included.
fn echoing(status: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || listener.incoming().flatten().for_each(|peer| echo(peer, status)));
    format!("http://{address}/v1")
}

fn echo(mut peer: TcpStream, status: &str) {
    let (mut got, mut chunk) = (Vec::new(), [0; 4_096]);
    loop {
        let text = String::from_utf8_lossy(&got).to_lowercase();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.and_then(|length| length.trim().parse().ok()).unwrap_or(0) {
                break;
            }
        }
        match peer.read(&mut chunk) {
            Ok(read @ 1..) => got.extend_from_slice(&chunk[..read]),
            Ok(0) | Err(_) => return,
        }
    }
    let body = serde_json::json!({ "error": { "message": String::from_utf8_lossy(&got), "code": "bad" } }).to_string();
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n");
    // A caller that has gone has heard enough.
    let _heard = write!(peer, "{head}connection: close\r\n\r\n{body}");
}

#[test]
fn a_run_that_works_says_none_of_it() {
    let home = Home::new();
    rows(&home, "in.jsonl");
    hushed(&mut home.program("promptq", &["run", "in.jsonl", "-m", "exec:cat", "-o", "out.jsonl"])).ends(0);
    assert!(std::fs::read_to_string(home.path("out.jsonl")).unwrap().contains(PROMPT), "the answer is the prompt here");
    hushed(&mut home.program("promptq", &["run", "in.jsonl", "-m", "mock", "-o", "mock.jsonl"])).ends(0);
}

#[test]
fn a_program_sees_no_keys() {
    let home = Home::new();
    rows(&home, "in.jsonl");
    hushed(&mut home.program("promptq", &["run", "in.jsonl", "-m", "exec:env", "-o", "out.jsonl"])).ends(0);
    let seen = std::fs::read_to_string(home.path("out.jsonl")).unwrap();
    assert!(seen.contains("PATH=/usr/bin") && seen.contains("PROMPTQ_JOB_ID="), "{seen}");
    for name in [KEY, "OPENAI_", "PROMPTQ_BROKER", "PROMPTQ_LOG", "USER="] {
        assert!(!seen.contains(name), "{name} reached the program");
    }
}

#[test]
fn a_run_that_fails_says_none_of_it() {
    let home = Home::new();
    rows(&home, "in.jsonl");
    let loud = "exec:sh -c 'cat >&2; exit 3'";
    hushed(&mut home.program("promptq", &["run", "in.jsonl", "-m", loud, "--attempts", "1", "-o", "a.jsonl"])).ends(3);
    let mut refused = home.program("promptq", &["run", "in.jsonl", "-m", "some", "-o", "b.jsonl"]);
    hushed(refused.env("OPENAI_BASE_URL", echoing("400 Bad Request"))).ends(3);
    let said = hushed(&mut home.program("promptq", &["dead", "list", "--json"])).ends(0);
    quiet(&said.stdout);
    home.write("bad.jsonl", &format!("{{\"prompt\":\"{PROMPT}\"}}\n{{\"prompt\":\"{PROMPT}\n"));
    let said =
        Said::of(home.program("promptq", &["run", "bad.jsonl", "-m", "mock", "-vvv"]).env("OPENAI_API_KEY", KEY));
    assert_eq!(said.code, 2, "{}", said.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_says_none_of_it() {
    let home = Home::new();
    let broker = home.broker().await;
    let ask = |model: &str| Job { work: Work::prompt(Some(model), PROMPT), ..job() };
    put(&broker, &[ask("mock"), ask("exec:cat"), ask("mock:errors=1")]).await;
    home.write("promptq.toml", "worker.allow_exec = true\n");
    // The second refuses the key: what waits for the account to be mended is held back.
    for status in ["400 Bad Request", "401 Unauthorized"] {
        put(&broker, &[ask("some")]).await;
        let mut worker = home.program("promptq-worker", &["--once"]);
        hushed(worker.env("OPENAI_BASE_URL", echoing(status))).ends(0);
    }
    for command in [&["dead", "groups"][..], &["dead", "list", "--json"], &["jobs", "list", "--json"], &["status"]] {
        let said = hushed(&mut home.program("promptq", command)).ends(0);
        quiet(&said.stdout);
    }
}

#[test]
fn settings_are_shown_without_their_secrets() {
    let home = Home::new();
    let config = format!("broker = {{ url = \"redis://me:{PASSWORD}@far\" }}\nproviders.openai.api_key = \"{KEY}\"\n");
    home.write("promptq.toml", &config);
    let ask = |arguments: &[&str]| {
        let mut command = home.program("promptq", arguments);
        let said = Said::of(command.env_remove("PROMPTQ_BROKER").env("PROMPTQ_LOG", "trace"));
        quiet(&said.stdout);
        quiet(&said.stderr);
        said
    };
    ask(&["config", "show", "--origin"]).ends(0).prints(&["redis://me:***@far", "api_key\t***"]);
    ask(&["config", "show", "--json"]).ends(0);
    ask(&["status"]).ends(7).says(&["redis://me:***@far"]);
    ask(&["status", "--json"]).ends(7);
    ask(&["doctor"]).ends(7);
    ask(&["status", "--broker", &format!("far:{PASSWORD}@x:y")]).ends(2);
    home.write("promptq.toml", &format!("providers.openai.api_key = \"{KEY}\"\nproviders.openai.api_ky = \"{KEY}\"\n"));
    ask(&["status"]).ends(2).says(&["promptq.toml:2:", "did you mean providers.openai.api_key?"]);
    home.write(
        "promptq.toml",
        &format!("providers.openai.api_key = [\"{KEY}\"]\n[broker\npassword = \"{PASSWORD}\"\n"),
    );
    ask(&["status"]).ends(2);
}
