//! The gateway as a process, asked over HTTP: what each route answers, who may ask, what is bounded, what holds when
//! something dies.

mod auth;
mod away;
mod bounds;
mod crash;
mod leaving;
mod routes;
mod watched;

use promptq_tests::admin::Admin;
use promptq_tests::gateway::Gateway;
use promptq_tests::process::Home;
use promptq_tests::site::{Hand, until};
use serde_json::{Value, json};

/// A worker in the home that leaves when it has nothing left to do.
fn worker(home: &Home) -> Hand {
    let command = home.program("promptq-worker", &["--exit-when-idle", "20s", "--allow-exec"]);
    Hand::start(command, home.path("worker.log"))
}

/// A gateway that shows its numbers, with these variables.
async fn shown(home: &Home, admin: Admin, variables: &[(&str, &str)]) -> Gateway {
    Gateway::listening(home, &["serve", "--listen", "127.0.0.1:0", &admin.flag()], variables).await.ready().await
}

/// Waits until it has heard of so many requests that it has not answered.
async fn until_under_way(admin: Admin, count: f64) {
    let seen = async || admin.page()?.value("promptq_http_requests_in_flight");
    until("so many are under way", async || seen().await.filter(|seen| (seen - count).abs() < 1e-9)).await;
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
