//! What the expressions of alerts and dashboards ask for, and whether the catalogue of metrics knows of it.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{deploy, read};

/// The metrics that an expression names: every word that is neither called, a keyword, a label nor text.
pub(super) fn metrics(expression: &str) -> BTreeSet<String> {
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
    let mut found = BTreeSet::new();
    let mut rest = plain.as_str();
    while let Some(start) = rest.find(|c: char| c.is_ascii_alphabetic() || c == '_') {
        let (_, word) = rest.split_at(start);
        let (word, after) = word.split_at(word.find(|c: char| !is_name(c)).unwrap_or(word.len()));
        rest = after;
        let after = after.trim_start();
        let is_called = ["(", "by (", "without ("].iter().any(|next| after.starts_with(next));
        if is_called {
            if LISTS.contains(&word) {
                rest = after.split_once(')').map_or("", |(_, rest)| rest);
            }
        } else if !WORDS.contains(&word) {
            found.insert(word.to_owned());
        }
    }
    found
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | ':')
}

/// What an expression asks of metrics that the catalogue's line of each says nothing of: labels, and words as values.
pub(super) fn unheard(expression: &str) -> Vec<String> {
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
pub(super) fn known(records: &Value) -> BTreeSet<String> {
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
