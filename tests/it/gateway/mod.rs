//! The gateway as a process, asked over HTTP: what each route answers, who may ask, what is bounded, what holds when
//! something dies.

mod auth;
mod away;
mod bounds;
mod crash;
mod leaving;
mod routes;
mod watched;

use promptq_tests::process::Home;
use promptq_tests::site::Hand;
use serde_json::{Value, json};

/// A worker in the home that leaves when it has nothing left to do.
fn worker(home: &Home) -> Hand {
    let command = home.program("promptq-worker", &["--exit-when-idle", "20s", "--allow-exec"]);
    Hand::start(command, home.path("worker.log"))
}

/// A job for the mock provider.
fn job(prompt: &str) -> String {
    json!({ "prompt": prompt, "model": "mock" }).to_string()
}

/// Job lines with ids, numbered.
fn lines(numbers: impl IntoIterator<Item = u64>) -> String {
    numbers.into_iter().fold(String::new(), |text, n| {
        let line: Value = json!({ "prompt": format!("row {n}"), "model": "mock", "id": format!("r{n}") });
        text + &line.to_string() + "\n"
    })
}
