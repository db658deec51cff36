//! What `deploy/` ships, read by the tools that will read it; and copies with a fault in them, which they must refuse.

mod alerts;
mod grafana;
mod helm;
mod keda;
mod pods;

use std::collections::BTreeSet;
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

/// The metrics that an expression names: every word that is neither called, a keyword, a label nor text.
fn metrics(expression: &str) -> BTreeSet<String> {
    const WORDS: [&str; 7] = ["and", "or", "unless", "bool", "offset", "group_left", "group_right"];
    const LISTS: [&str; 4] = ["by", "on", "without", "ignoring"];
    let mut plain = String::new();
    let (mut quoted, mut depth) = (false, 0_u32);
    for c in expression.chars() {
        match c {
            '"' => quoted = !quoted,
            '{' | '[' if !quoted => depth += 1,
            '}' | ']' if !quoted => depth = depth.saturating_sub(1),
            c if !quoted && depth == 0 => plain.push(c),
            _ => {}
        }
    }
    for list in LISTS {
        while let Some((at, _)) =
            plain.match_indices(&format!("{list} (")).find(|(at, _)| *at == 0 || !in_word(&plain, *at))
        {
            let end = plain[at..].find(')').map_or(plain.len(), |end| at + end + 1);
            plain.replace_range(at..end, " ");
        }
    }
    let mut found = BTreeSet::new();
    let mut rest = plain.as_str();
    while let Some(start) = rest.find(|c: char| c.is_ascii_alphabetic() || c == '_') {
        rest = rest.get(start..).unwrap();
        let end = rest.find(|c: char| !is_name(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if !after.trim_start().starts_with('(') && !WORDS.contains(&word) {
            found.insert(word.to_owned());
        }
        rest = after;
    }
    found
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | ':')
}

fn in_word(text: &str, at: usize) -> bool {
    text.get(..at).and_then(|before| before.chars().next_back()).is_some_and(is_name)
}

/// What an expression asks of metrics that the catalogue's line of each says nothing of: labels, and words as values.
fn unheard(expression: &str) -> Vec<String> {
    // A scrape gives the first two to everything, histograms have the third.
    const EVERYWHERE: [&str; 3] = ["job", "instance", "le"];
    let catalogue = read(&deploy("metrics.md"));
    let mut unheard = Vec::new();
    for (name, matchers) in selectors(expression) {
        let base =
            ["_bucket", "_count", "_sum"].iter().find_map(|part| name.strip_suffix(part)).unwrap_or(&name).to_owned();
        let is_its = |line: &&str| line.split(|c: char| !is_name(c)).any(|word| word == base);
        let Some(line) = catalogue.lines().find(is_its).filter(|_| base.starts_with("promptq_")) else { continue };
        let has = |word: &str| line.split(|c: char| !is_name(c)).any(|other| other == word);
        for (label, value) in matchers {
            if !EVERYWHERE.contains(&label.as_str()) && !has(&label) {
                unheard.push(format!("{name} has no {label}"));
            }
            // Queues, providers and models have names of their own.
            if !["queue", "provider", "model", "job", "instance", "le"].contains(&label.as_str()) {
                unheard.extend(
                    value.split('|').filter(|word| !has(word)).map(|word| format!("{name}: no {label} is {word}")),
                );
            }
        }
    }
    unheard
}

type Matchers = Vec<(String, String)>;

/// Each metric that has matchers, with their labels and values.
fn selectors(expression: &str) -> Vec<(String, Matchers)> {
    let mut found = Vec::new();
    for (at, _) in expression.match_indices('{') {
        let before = expression.get(..at).unwrap();
        let name = before.rsplit(|c: char| !is_name(c)).next().unwrap_or_default();
        let mut parts = expression.get(at + 1..).unwrap().split('"');
        let mut matchers = Vec::new();
        // Pieces alternate: label and operator, value.
        while let (Some(label), Some(value)) = (parts.next().filter(|piece| !piece.contains('}')), parts.next()) {
            matchers.push((label.trim_matches([',', ' ', '=', '~', '!']).to_owned(), value.to_owned()));
        }
        if !name.is_empty() {
            found.push((name.to_owned(), matchers));
        }
    }
    found
}

/// Everything that may be asked for: the catalogue with what histograms are made of, our records, and what others count.
fn known(records: &Value) -> BTreeSet<String> {
    const OTHERS: [&str; 5] = [
        "ALERTS",
        "keda_scaler_detail_errors_total",
        "kube_horizontalpodautoscaler_spec_max_replicas",
        "kube_horizontalpodautoscaler_status_current_replicas",
        "up",
    ];
    let catalogue = read(&deploy("metrics.md"));
    let words = catalogue
        .split(|c: char| !is_name(c))
        .filter(|word| word.starts_with("promptq_") || word.starts_with("process_"));
    let with_parts = words.flat_map(|word| ["", "_bucket", "_count", "_sum"].map(|part| format!("{word}{part}")));
    let groups = records["groups"].as_array().unwrap();
    let records =
        groups.iter().flat_map(|group| group["rules"].as_array().unwrap()).filter_map(|rule| rule["record"].as_str());
    with_parts.chain(records.map(str::to_owned)).chain(OTHERS.map(str::to_owned)).collect()
}

#[test]
fn what_no_metric_has_is_seen() {
    let good = r#"sum(promptq_jobs_dead_total{queue=~".*", reason="content", job="x"})"#;
    assert_eq!(unheard(good), Vec::<String>::new());
    let bad = r#"sum(promptq_jobs_dead_total{reason=~"content|contents", outcome="dead"})"#;
    let seen = unheard(bad);
    let said = "promptq_jobs_dead_total";
    let expected =
        [": no reason is contents", " has no outcome", ": no outcome is dead"].map(|end| format!("{said}{end}"));
    assert_eq!(seen, expected);
}

#[test]
fn the_metrics_of_an_expression_are_found() {
    let expression = r#"sum by (queue, le) (rate(a_total{x="}b[", y=~"c"}[5m])) / on (queue) max(q:b:rate5m) > 3 unless on (by) c == 0"#;
    let of_a = ("a_total".to_owned(), vec![("x".to_owned(), "}b[".to_owned()), ("y".to_owned(), "c".to_owned())]);
    assert_eq!(selectors(expression), [of_a]);
    assert_eq!(metrics(expression).into_iter().collect::<Vec<_>>(), ["a_total", "c", "q:b:rate5m"]);
}
