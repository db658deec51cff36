//! The dashboards: house rules after Grafana's own linter, each seen to catch its fault; every query read by Prometheus'
//! parser, every metric in the catalogue.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::expression::{known, metrics, unheard};
use super::{ask, deploy, installed, passes, read, refuses, tool, yaml};

const BOARDS: [&str; 2] = ["promptq-overview", "promptq-providers"];

fn board(name: &str) -> Value {
    serde_json::from_str(&read(&deploy(&format!("grafana/{name}.json")))).unwrap()
}

fn items<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Its panels without rows.
fn panels(board: &Value) -> Vec<&Value> {
    items(board, "panels").iter().filter(|panel| panel["type"] != "row").collect()
}

/// Every query, of panels and of annotations.
fn queries(board: &Value) -> Vec<String> {
    let targets = panels(board).into_iter().flat_map(|panel| items(panel, "targets"));
    let all =
        targets.chain(items(&board["annotations"], "list")).map(|query| query["expr"].as_str().unwrap_or_default());
    all.map(str::to_owned).collect()
}

/// With something in place of every variable.
fn filled(expression: &str) -> String {
    let filled = expression.replace("$__rate_interval", "5m").replace("$__range", "6h");
    ["$job", "$instance", "$queue", "$provider"].iter().fold(filled, |text, variable| text.replace(variable, ".*"))
}

/// What breaks a house rule.
fn faults(board: &Value, known: &BTreeSet<String>) -> Vec<String> {
    let mut faults = Vec::new();
    let mut demand = |holds: bool, what: String| {
        if !holds {
            faults.push(what);
        }
    };
    let is_text = |value: &Value| value.as_str().is_some_and(|text| !text.trim().is_empty());
    let source = json!({ "type": "prometheus", "uid": "${datasource}" });
    demand(board["editable"] == false, "may be edited where it is provisioned".to_owned());
    demand(is_text(&board["uid"]) && is_text(&board["title"]), "has no uid or title of its own".to_owned());
    demand(board["schemaVersion"] == 36, "is of another form than was checked".to_owned());
    demand(items(board, "tags").contains(&json!("promptq")), "is not found by its tag".to_owned());
    let text = board.to_string();
    demand(!text.contains("__inputs") && !text.contains("${DS_"), "needs an import by hand".to_owned());
    demand(items(board, "links").iter().any(|link| link["title"] == "Runbook"), "leads to no runbook".to_owned());
    demand(
        items(&board["annotations"], "list").iter().any(|one| one["datasource"] == source),
        "shows no alerts".to_owned(),
    );
    for variable in items(&board["templating"], "list") {
        let name = &variable["name"];
        if variable["type"] == "query" {
            let chooses = variable["multi"] == true && variable["includeAll"] == true && variable["refresh"] == 2;
            demand(chooses, format!("variable {name} cannot be several or all, or is not renewed"));
            demand(variable["datasource"] == source, format!("variable {name} has a source of its own"));
        }
    }
    for name in ["datasource", "job", "instance"] {
        let there = items(&board["templating"], "list").iter().any(|variable| variable["name"] == name);
        demand(there, format!("variable {name} is missing"));
    }
    let mut ids = BTreeSet::new();
    for panel in items(board, "panels") {
        demand(ids.insert(panel["id"].as_u64()), format!("panel id {} is there twice", panel["id"]));
    }
    for panel in panels(board) {
        let title = &panel["title"];
        demand(is_text(title) && is_text(&panel["description"]), format!("panel {title} does not say what it shows"));
        demand(is_text(&panel["fieldConfig"]["defaults"]["unit"]), format!("panel {title} has no unit"));
        demand(panel["datasource"] == source, format!("panel {title} has a source of its own"));
        demand(!items(panel, "targets").is_empty(), format!("panel {title} asks for nothing"));
        for target in items(panel, "targets") {
            demand(target["datasource"] == source, format!("a query of panel {title} has a source of its own"));
        }
    }
    for query in queries(board) {
        demand(fixed_range(&query).is_none(), format!("a range of its own: {query}"));
        demand(unrated(&query).is_none(), format!("a counter as it is: {query}"));
        let strange: Vec<_> = metrics(&query).into_iter().filter(|metric| !known.contains(metric)).collect();
        demand(strange.is_empty(), format!("nobody counts {strange:?}"));
        let unheard = unheard(&filled(&query));
        demand(unheard.is_empty(), format!("nobody says so: {unheard:?}"));
    }
    faults
}

/// A range that does not follow what is shown.
fn fixed_range(query: &str) -> Option<&str> {
    query.split('[').skip(1).find(|rest| !rest.starts_with("$__rate_interval]") && !rest.starts_with("$__range]"))
}

/// A counter that is neither rated nor increased.
fn unrated(query: &str) -> Option<String> {
    let mut counters = metrics(query).into_iter().filter(|name| name.ends_with("_total") || name.ends_with("_bucket"));
    let is_rated = |name: &String| {
        let mut uses = query.match_indices(name.as_str()).map(|(at, _)| query.get(..at).unwrap_or_default());
        uses.all(|before| before.ends_with("rate(") || before.ends_with("increase("))
    };
    counters.find(|name| !is_rated(name))
}

fn all_known() -> BTreeSet<String> {
    known(&yaml(&deploy("alerts/promptq.rules.yaml")))
}

#[test]
fn the_dashboards_keep_every_rule() {
    let (known, mut uids) = (all_known(), BTreeSet::new());
    for name in BOARDS {
        let board = board(name);
        assert_eq!(faults(&board, &known), Vec::<String>::new(), "{name}");
        assert!(uids.insert(board["uid"].to_string()), "{name} has the uid of another");
    }
}

#[test]
fn each_fault_of_a_dashboard_is_seen() {
    type Spoil = fn(&mut Value);
    let known = all_known();
    let cases: [(&str, Spoil); 17] = [
        ("may be edited", |b| b["editable"] = true.into()),
        ("no uid", |b| b["uid"] = "".into()),
        ("another form", |b| b["schemaVersion"] = 39.into()),
        ("by its tag", |b| b["tags"] = json!([])),
        ("import by hand", |b| b["__inputs"] = json!([])),
        ("no runbook", |b| b["links"] = json!([])),
        ("shows no alerts", |b| b["annotations"]["list"] = json!([])),
        ("several or all", |b| b["templating"]["list"][1]["multi"] = false.into()),
        ("variable job is missing", |b| b["templating"]["list"][1]["name"] = "jobs".into()),
        ("is there twice", |b| b["panels"][2]["id"] = b["panels"][1]["id"].clone()),
        ("what it shows", |b| b["panels"][1]["description"] = " ".into()),
        ("no unit", |b| b["panels"][1]["fieldConfig"]["defaults"]["unit"] = Value::Null),
        ("a source of its own", |b| b["panels"][1]["targets"][0]["datasource"]["uid"] = "prometheus".into()),
        ("a range of its own", |b| {
            b["panels"][1]["targets"][0]["expr"] = "rate(promptq_jobs_started_total[5m])".into();
        }),
        ("a counter as it is", |b| b["panels"][1]["targets"][0]["expr"] = "sum(promptq_jobs_started_total)".into()),
        ("nobody says so", |b| {
            b["panels"][1]["targets"][0]["expr"] = "sum(promptq_queue_messages{state=\"red\"})".into();
        }),
        ("nobody counts", |b| b["panels"][1]["targets"][0]["expr"] = "sum(promptq_job_slo)".into()),
    ];
    for (says, spoil) in cases {
        let mut board = board(BOARDS[0]);
        spoil(&mut board);
        let faults = faults(&board, &known);
        assert!(faults.len() == 1 && faults[0].contains(says), "{says}: {faults:?}");
    }
}

#[test]
fn grafana_knows_every_key() {
    let lost = |board: &Value| {
        let python = installed("grafana/bin/python", "grafana.sh");
        ask(&python, include_str!("../../src/deploy/dashboard.py"), &[], board)
    };
    for name in BOARDS {
        let mut board = board(name);
        assert_eq!(lost(&board), json!([]), "{name}");
        board["panels"][2]["fieldConfig"]["defaults"]["unti"] = "s".into();
        board["templating"]["list"][1]["mutli"] = true.into();
        let unknown = json!([".templating.list[1].mutli", ".panels[2].fieldConfig.defaults.unti"]);
        assert_eq!(lost(&board), unknown, "{name}");
    }
}

#[test]
fn prometheus_reads_every_query() {
    let folder = tempfile::tempdir().unwrap();
    let check = |name: &str, queries: &[String]| {
        let rules = queries.iter().enumerate();
        let rules: Vec<_> =
            rules.map(|(at, query)| json!({ "record": format!("q{at}"), "expr": filled(query) })).collect();
        let path = folder.path().join(name);
        std::fs::write(&path, json!({ "groups": [{ "name": "queries", "rules": rules }] }).to_string()).unwrap();
        tool("promtool", &["check", "rules", "--lint=none", path.to_str().unwrap()])
    };
    for name in BOARDS {
        let mut queries = queries(&board(name));
        assert!(queries.len() > 20, "{name}: {queries:?}");
        let left: Vec<_> = queries.iter().map(|query| filled(query)).filter(|query| query.contains('$')).collect();
        assert_eq!(left, Vec::<String>::new(), "variables that nobody fills in");
        passes(&check(name, &queries));
        queries.push("sum(rate(promptq_jobs_started_total[$__rate_interval])".to_owned());
        refuses(&check(name, &queries), "parse error");
    }
}
