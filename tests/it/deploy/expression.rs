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

/// What an expression asks of metrics that the catalogue says nothing of: labels, and words as their values.
pub(super) fn unheard(expression: &str) -> Vec<String> {
    /// A scrape gives two of them to everything, histograms have the third.
    const SCRAPED: [&str; 3] = ["job", "instance", "le"];
    let catalogue = read(&deploy("metrics.md"));
    let rows = catalogue.lines().filter(|line| line.starts_with("| `"));
    let rows: Vec<Vec<&str>> = rows.map(|line| line.split('|').skip(1).map(str::trim).collect()).collect();
    let quoted = |word: &str| format!("`{word}`");
    let mut unheard = Vec::new();
    for (name, matchers) in selectors(expression) {
        let part = ["_bucket", "_count", "_sum"].iter().find_map(|part| name.strip_suffix(part));
        let metric = quoted(part.unwrap_or(&name));
        let Some(own) = rows.iter().find(|row| row[0] == metric) else { continue };
        for (label, value) in matchers.iter().filter(|(label, _)| !SCRAPED.contains(&label.as_str())) {
            if !own[2].contains(&quoted(label)) {
                unheard.push(format!("{name} has no {label}"));
                continue;
            }
            // Others are names that somebody gave: of queues, providers, models.
            let is_listed =
                |row: &&Vec<&str>| row[0] == quoted(label) && row[1].contains(&metric) && row[2].starts_with('`');
            let Some(listed) = rows.iter().find(is_listed).map(|row| row[2]) else { continue };
            let strange = value.split('|').filter(|word| !listed.contains(&quoted(word)));
            unheard.extend(strange.map(|word| format!("{name}: no {label} is {word}")));
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
    let seen = [": no reason is contents", " has no outcome"].map(|end| format!("promptq_jobs_dead_total{end}"));
    assert_eq!(unheard(bad), seen);
}

#[test]
fn the_metrics_of_an_expression_are_found() {
    let expression = r#"sum by (queue, le) (rate(a_total{x="}b[", y=~"c"}[5m])) / on (queue) max(q:b:rate5m) > 3 unless on (by) c == 0"#;
    let of_a = ("a_total".to_owned(), vec![("x".to_owned(), "}b[".to_owned()), ("y".to_owned(), "c".to_owned())]);
    assert_eq!(selectors(expression), [of_a]);
    assert_eq!(metrics(expression).into_iter().collect::<Vec<_>>(), ["a_total", "c", "q:b:rate5m"]);
}
