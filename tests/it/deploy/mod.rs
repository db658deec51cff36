//! What `deploy/` ships: read by the tools that will read it, run where it can be; and copies with a fault in them, which
//! those tools must refuse.

mod alerting;
mod alerts;
mod backup;
mod cloudrun;
mod compose;
mod drills;
mod ecs;
mod expression;
mod grafana;
mod helm;
mod image;
mod keda;
mod outages;
mod pages;
mod pods;
mod protect;
mod scripts;
mod shipped;
mod systemd;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// A file or folder of `deploy/`.
fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A program that a script of `tests/install` put below `target/tools`.
fn installed(path: &str, script: &str) -> PathBuf {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools").join(path);
    assert!(program.exists(), "{path} is not installed; hint: run tests/install/{script}");
    program
}

/// Runs `promtool` or `amtool`.
fn tool(name: &str, arguments: &[&str]) -> Output {
    let output = Command::new(name).args(arguments).stdin(Stdio::null()).output();
    output.unwrap_or_else(|error| panic!("{name}: {error}; hint: run tests/install/prometheus.sh"))
}

/// What a program said, whichever way.
fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn passes(output: &Output) {
    assert!(output.status.success(), "{}", said(output));
}

/// Refused, and for this reason.
fn refuses(output: &Output, reason: &str) {
    assert!(!output.status.success() && said(output).contains(reason), "no word of {reason:?}: {}", said(output));
}

/// Asks the Python beside Helm about the chart.
fn chart(question: &Value) -> Value {
    let python = installed("helm/bin/python", "helm.sh");
    let folder = deploy("helm/promptq");
    ask(&python, include_str!("../../src/deploy/chart.py"), &[folder.to_str().unwrap()], question)
}

/// Gives JSON to a script of Python and has its answer.
fn ask(python: &Path, script: &str, arguments: &[&str], question: &Value) -> Value {
    let mut command = Command::new(python);
    command.args(["-c", script]).args(arguments);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let question = question.to_string();
    let writer = std::thread::spawn(move || input.write_all(question.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    passes(&output);
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A YAML file as JSON.
fn yaml(path: &Path) -> Value {
    chart(&serde_json::json!({ "yaml": read(path) }))
}

/// The alerting rules of a rules file, each with its name.
fn alerts(rules: &Value) -> Vec<(String, Value)> {
    let groups = rules["groups"].as_array().unwrap();
    let rules = groups.iter().flat_map(|group| group["rules"].as_array().unwrap());
    rules.filter_map(|rule| Some((rule["alert"].as_str()?.to_owned(), rule.clone()))).collect()
}
