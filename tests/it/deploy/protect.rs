//! A worker as a task of ECS: what its agent hears of it, and that a deployment's stop still leaves it its drain time.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::Child;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use promptq_tests::process::Home;
use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(30);

/// An agent of ECS that says the same to everybody: its address, and what it was asked.
fn agent(answer: &'static str) -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (see, seen) = sync_channel(16);
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let (mut request, mut bytes) = (String::new(), [0; 1_024]);
            while !request.ends_with('}') {
                let count = stream.read(&mut bytes).unwrap();
                request.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
            }
            let length = answer.len();
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{answer}").unwrap();
            if see.send(request).is_err() {
                return;
            }
        }
    });
    (address, seen)
}

fn worker(home: &Home, agent: &str) -> Child {
    home.write("row.jsonl", "{\"prompt\":\"hello\"}\n");
    home.promptq(&["submit", "row.jsonl", "--batch", "b", "--model", "mock:latency=3s..3s"]).ends(0);
    let mut command = home.program("promptq-worker", &[]);
    command.env("ECS_AGENT_URI", agent).stderr(std::process::Stdio::null()).spawn().unwrap()
}

fn leaves(worker: &mut Child) -> Option<i32> {
    kill_process(Pid::from_child(worker), Signal::TERM).unwrap();
    worker.wait().unwrap().code()
}

#[test]
fn a_task_with_a_job_is_protected() {
    let home = Home::new();
    let (address, seen) = agent(r#"{"protection":{"ProtectionEnabled":true}}"#);
    let mut worker = worker(&home, &address);
    let asked = seen.recv_timeout(PATIENCE).unwrap();
    assert!(asked.starts_with("PUT /task-protection/v1/state HTTP/1.1\r\n"), "{asked}");
    assert!(asked.ends_with(r#"{"ProtectionEnabled":true,"ExpiresInMinutes":10}"#), "{asked}");
    assert_eq!(leaves(&mut worker), Some(0));
    home.promptq(&["status", "b"]).ends(0).prints(&["succeeded 1"]);
}

#[test]
fn a_job_that_a_deployment_waits_for_is_finished() {
    let home = Home::new();
    let (address, seen) = agent(r#"{"failure":{"Reason":"DEPLOYMENT_BLOCKED"}}"#);
    let mut worker = worker(&home, &address);
    seen.recv_timeout(PATIENCE).unwrap();
    assert_eq!(leaves(&mut worker), Some(0), "the first signal is no second one");
    home.promptq(&["status", "b"]).ends(0).prints(&["succeeded 1"]);
}
