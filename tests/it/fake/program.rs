//! `fake-provider` as a program: its address, its errors, what `tests/FAKE_PROVIDER.md` shows, and a thousand calls at once.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use promptq_tests::binary::binary;
use promptq_tests::fake::config::Config;
use promptq_tests::site::until;
use tempfile::TempDir;
use tokio::task::JoinSet;

use super::raw::post;
use super::{MESSAGES, fake, message};

const PAGE: &str = include_str!("../../FAKE_PROVIDER.md");

/// The program, killed when dropped.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn blocks(language: &str) -> Vec<&'static str> {
    PAGE.split(&format!("```{language}\n")).skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

#[tokio::test]
async fn it_says_where_it_is_and_writes_its_ledger() {
    let folder = TempDir::new().unwrap();
    let ledger = folder.path().join("calls.jsonl");
    let child = Command::new(binary("fake-provider")).arg("--ledger").arg(&ledger).stdout(Stdio::piped()).spawn();
    let mut program = Program(child.unwrap());
    let mut line = String::new();
    BufReader::new(program.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let body = r#"{"model":"m","input":"x"}"#;
    let url = format!("{}/v1/responses", line.trim());
    let said = Command::new("curl").args(["-sS", "-d", body, &url]).output().unwrap();
    assert!(String::from_utf8_lossy(&said.stdout).contains("\"object\":\"response\""), "{line} {said:?}");
    // A call is written down once its answer has been sent.
    let calls = || std::fs::read_to_string(&ledger).unwrap().lines().count();
    until("the call is in the ledger", async || (calls() == 1).then_some(())).await;
}

#[test]
fn a_wrong_configuration_is_one_error_and_exit_2() {
    let folder = TempDir::new().unwrap();
    let config = folder.path().join("fake.toml");
    std::fs::write(&config, "[[faults]]\nkind = \"earthquake\"\n").unwrap();
    let said = Command::new(binary("fake-provider")).arg("--config").arg(&config).output().unwrap();
    let error = String::from_utf8(said.stderr).unwrap();
    assert_eq!((said.status.code(), said.stdout.len()), (Some(2), 0));
    assert!(error.contains("fake.toml") && error.contains("earthquake") && error.contains("hint:"), "{error}");
    let gone = Command::new(binary("fake-provider")).args(["--config", "/nowhere.toml"]).output().unwrap();
    assert_eq!(gone.status.code(), Some(2));
}

#[test]
fn what_its_page_shows_works() {
    let built = binary("fake-provider").parent().unwrap().to_owned();
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("fake.toml"), blocks("toml")[0]).unwrap();
    let mut script = "cargo() { :; }\n".to_owned();
    for block in blocks("sh") {
        script.push_str(&block.replace("target/release/", ""));
    }
    script.push_str("\nkill $!\n");
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", &script])
        .env("PATH", format!("{}:/usr/bin:/bin", built.display()))
        .current_dir(folder.path())
        .output()
        .unwrap();
    let (said, trouble) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{trouble}");
    for expected in
        ["\"object\":\"chat.completion\"", "overloaded_error", "HTTP/1.1 429", "\"share_429\"", "\"caller\":\"ci\""]
    {
        assert!(said.contains(expected), "{expected} is not in\n{said}\n{trouble}");
    }
}

#[test]
fn every_configuration_of_its_page_is_one() {
    let all = blocks("toml");
    assert!(all.len() >= 2);
    for text in all {
        let config: Config = toml::from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        config.check().unwrap();
    }
    let kinds = promptq_tests::fake::kind::Kind::ALL;
    for kind in kinds {
        assert!(PAGE.contains(&format!("`{}`", kind.name())), "{} is not on the page", kind.name());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_slow_calls_are_open_at_once() {
    promptq_tests::fake::raise_open_files();
    let fake = std::sync::Arc::new(fake("[latency]\nfirst = { fixed = \"3s\" }"));
    let mut calls = JoinSet::new();
    for _ in 0..1_000 {
        let fake = std::sync::Arc::clone(&fake);
        calls.spawn(async move { post(&fake, MESSAGES, "k", &message("x")).await.is_whole });
    }
    let began = Instant::now();
    while fake.bill().open < 1_000 && fake.bill().total.calls == 0 {
        assert!(began.elapsed() < Duration::from_secs(30), "{} open", fake.bill().open);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let mut whole = 0;
    while let Some(answer) = calls.join_next().await {
        whole += usize::from(answer.unwrap());
    }
    let bill = fake.bill();
    assert_eq!((whole, bill.total.calls, bill.open), (1_000, 1_000, 0));
    assert!(bill.most_open >= 900, "only {} were open at once", bill.most_open);
}
