//! The alerts: read by promtool, each shown to fire and to stay quiet, and those tests shown to notice when one does not;
//! each with a page of the runbook; the example for Alertmanager.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use super::expression::{known, metrics, unheard};
use super::{alerts, deploy, installed, passes, read, refuses, said, tool, yaml};

const RULES: &str = "alerts/promptq.rules.yaml";
const TESTS: [&str; 2] = ["alerts/promptq.test.yaml", "alerts/promptq-slow.test.yaml"];

fn rules() -> Value {
    yaml(&deploy(RULES))
}

/// The rules with each alert changed.
fn spoilt(spoil: fn(&mut Value)) -> Value {
    let mut rules = rules();
    for group in rules["groups"].as_array_mut().unwrap() {
        for rule in group["rules"].as_array_mut().unwrap().iter_mut().filter(|rule| rule["alert"].is_string()) {
            spoil(rule);
        }
    }
    rules
}

fn check(folder: &Path, rules: &Value) -> Output {
    let path = folder.join("checked.yaml");
    std::fs::write(&path, rules.to_string()).unwrap();
    tool("promtool", &["check", "rules", "--lint=all", "--lint-fatal", path.to_str().unwrap()])
}

/// Runs every test, changed so, against these rules.
fn run(folder: &Path, rules: &Value, change: fn(&str) -> String) -> Output {
    std::fs::write(folder.join("promptq.rules.yaml"), rules.to_string()).unwrap();
    let tests = TESTS.map(|name| {
        let copy = folder.join(Path::new(name).file_name().unwrap());
        std::fs::write(&copy, change(&read(&deploy(name)))).unwrap();
        copy.to_str().unwrap().to_owned()
    });
    tool("promtool", &[&["test", "rules"][..], &tests.each_ref().map(String::as_str)].concat())
}

/// How often each alert is shown to fire, and to stay quiet.
fn shown() -> BTreeMap<String, (u32, u32)> {
    let mut shown = BTreeMap::<String, (u32, u32)>::new();
    for name in TESTS {
        for case in yaml(&deploy(name))["tests"].as_array().unwrap() {
            for test in case["alert_rule_test"].as_array().unwrap() {
                let (fires, quiet) = shown.entry(test["alertname"].as_str().unwrap().to_owned()).or_default();
                *if test["exp_alerts"].as_array().unwrap().is_empty() { quiet } else { fires } += 1;
            }
        }
    }
    shown
}

#[test]
fn promtool_takes_the_rules_and_not_broken_ones() {
    let folder = tempfile::tempdir().unwrap();
    passes(&check(folder.path(), &rules()));
    refuses(&check(folder.path(), &spoilt(|rule| rule["expr"] = "sum(rate(x[5m])".into())), "parse error");
    refuses(&check(folder.path(), &spoilt(|rule| rule["fro"] = "5m".into())), "fro");
    refuses(&check(folder.path(), &spoilt(|rule| rule["alert"] = "Twice".into())), "duplicate");
}

#[test]
fn each_alert_fires_and_stays_quiet() {
    let folder = tempfile::tempdir().unwrap();
    let names: BTreeSet<String> = alerts(&rules()).into_iter().map(|(name, _)| name).collect();
    let shown = shown();
    assert_eq!(shown.keys().cloned().collect::<BTreeSet<_>>(), names);
    assert!(names.len() > 20 && shown.values().all(|(fires, quiet)| *fires > 0 && *quiet > 0), "{shown:?}");
    passes(&run(folder.path(), &rules(), str::to_owned));
}

/// The tests of the alerts are tests: an alert that never fires fails its own, and so does one that always does.
#[test]
fn an_alert_that_does_not_work_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let told = |spoil: fn(&mut Value)| {
        let mut rules = spoilt(spoil);
        for group in rules["groups"].as_array_mut().unwrap() {
            group["rules"].as_array_mut().unwrap().retain(|rule| rule["alert"].is_string());
        }
        // Looked at less often, which is faster and the same to rules without a memory.
        let output = run(folder.path(), &rules, |tests| {
            tests.replace("evaluation_interval: 1m", "evaluation_interval: 5m").replace("interval: 30m", "interval: 2h")
        });
        assert!(!output.status.success());
        said(&output)
    };
    let dumb = told(|rule| rule["expr"] = "vector(0) > 1".into());
    let loud = told(|rule| {
        rule["expr"] = "vector(1)".into();
        rule["for"] = "0s".into();
    });
    for (name, (fires, quiet)) in shown() {
        let count = |text: &str, expected: &str| {
            let failed = text.split("alertname: ").skip(1).filter(|part| part.starts_with(&format!("{name},")));
            u32::try_from(failed.filter(|part| part.contains(expected)).count()).unwrap()
        };
        assert_eq!(count(&dumb, "got:[]"), fires, "{name} never fires and nobody notices");
        assert_eq!(count(&loud, "exp:[]"), quiet, "{name} always fires and nobody notices");
    }
}

#[test]
fn every_metric_of_a_rule_is_counted_by_somebody() {
    let rules = rules();
    let known = known(&rules);
    let groups = rules["groups"].as_array().unwrap();
    for rule in groups.iter().flat_map(|group| group["rules"].as_array().unwrap()) {
        let used = metrics(rule["expr"].as_str().unwrap());
        assert!(!used.is_empty(), "{rule}");
        let strange: Vec<_> = used.difference(&known).collect();
        assert_eq!(strange, Vec::<&String>::new(), "{rule}");
        assert_eq!(unheard(rule["expr"].as_str().unwrap()), Vec::<String>::new(), "{rule}");
    }
}

#[test]
fn each_alert_says_how_bad_it_is_and_where_to_read_on() {
    let runbook = read(&deploy("runbooks/README.md"));
    let sections: Vec<&str> = runbook.split("\n## ").skip(1).collect();
    let names: Vec<&str> = sections.iter().map(|section| section.lines().next().unwrap()).collect();
    let alerts = alerts(&rules());
    let of_rules: BTreeSet<&str> = alerts.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names.iter().copied().collect::<BTreeSet<_>>(), of_rules, "a section for each alert and no other");
    for section in &sections {
        assert!(section.contains("\n- Look: ") && section.contains("\n- Mend: "), "{section}");
    }
    for (name, rule) in &alerts {
        let severity = rule["labels"]["severity"].as_str().unwrap();
        assert!(matches!(severity, "page" | "ticket"), "{name}: {severity}");
        let annotation = |key: &str| rule["annotations"][key].as_str().unwrap_or_default();
        assert!(!annotation("summary").is_empty() && !annotation("description").is_empty(), "{name}");
        // A heading's anchor is its text in small letters.
        let anchor = annotation("runbook_url").split_once('#').map(|(_, anchor)| anchor);
        assert_eq!(anchor, Some(name.to_lowercase().as_str()));
    }
}

fn alertmanager(config: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("alertmanager.yml");
    std::fs::write(&path, config).unwrap();
    (folder, path.to_str().unwrap().to_owned())
}

#[test]
fn the_example_for_alertmanager_sends_each_alert_where_it_belongs() {
    let path = deploy("alerts/alertmanager.yaml");
    let path = path.to_str().unwrap();
    passes(&tool("amtool", &["check-config", path]));
    let route = |receiver: &str, labels: &[&str]| {
        let config = format!("--config.file={path}");
        let verify = format!("--verify.receivers={receiver}");
        tool("amtool", &[&["config", "routes", "test", &config, &verify][..], labels].concat())
    };
    for (name, rule) in alerts(&rules()) {
        let severity = rule["labels"]["severity"].as_str().unwrap();
        let receiver = if severity == "page" { "pager" } else { "tickets" };
        let labels = [format!("alertname={name}"), format!("severity={severity}"), "service=promptq".to_owned()];
        passes(&route(receiver, &labels.each_ref().map(String::as_str)));
    }
    assert!(!route("pager", &["alertname=DeadLetters", "severity=ticket", "service=promptq"]).status.success());
}

#[test]
fn what_alertmanager_or_its_linter_would_not_take_is_refused() {
    let good = read(&deploy("alerts/alertmanager.yaml"));
    let rules = deploy(RULES);
    let lint = |config: &str| {
        let (_folder, path) = alertmanager(config);
        let mut lint = Command::new(installed("amlint/bin/amlint", "prometheus.sh"));
        // Two rules silence across queues on purpose, and it takes lists of names that share none for a circle.
        lint.args(["check", "--strict", "--ignore", "circular-inhibition,inhibit-no-equal", "--rules"]);
        lint.args([rules.to_str().unwrap(), &path]).output().unwrap()
    };
    passes(&lint(&good));
    refuses(&lint(&good.replace("BrokerDown", "BrokerGone")), "did you mean 'BrokerDown'");
    let (_folder, path) = alertmanager(&good.replace("receiver: pager", "receiver: pagre"));
    refuses(&tool("amtool", &["check-config", &path]), "pagre");
    // amtool has nothing against a receiver that tells nobody.
    let empty = good.replace("    webhook_configs:\n      - url: http://pager.example/promptq\n", "");
    let (_folder, path) = alertmanager(&empty);
    passes(&tool("amtool", &["check-config", &path]));
    refuses(&lint(&empty), "empty-receiver");
}
