//! The outage of `deploy/runbooks/outages.md` in which alerting is down: a Prometheus and an Alertmanager of the test's own,
//! with the rules that are shipped, are killed under a worker, and told afterwards what happened meanwhile.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use promptq_common::record::End;
use promptq_tests::admin::Admin;
use promptq_tests::process::Home;
use promptq_tests::site::{Hand, records, until};
use serde_json::{Value, json};

use super::{deploy, tool, yaml};

/// The dead jobs that Prometheus knows of.
const DEAD: &str = "sum(promptq_jobs_dead_total)";
/// An alert of the test's own: there have been dead jobs for some looks at the rules.
const LOOKED: &str = "Looked";

/// Prometheus and Alertmanager, on data that outlive them.
struct Alerting {
    prometheus: SocketAddr,
    alertmanager: SocketAddr,
}

impl Alerting {
    /// Sets them up beside a home, to watch this process.
    fn new(home: &Home, watched: Admin) -> Self {
        let new = Self { prometheus: Admin::free().address(), alertmanager: Admin::free().address() };
        // Behind the alert that is looked for, in the same group: once it has come, that one has been looked at.
        let mut rules = yaml(&deploy("alerts/promptq.rules.yaml"));
        let groups = rules["groups"].as_array_mut().unwrap().iter_mut();
        let mut groups = groups.map(|group| group["rules"].as_array_mut().unwrap());
        let group = groups.find(|group| group.iter().any(|rule| rule["alert"] == "DeadLetters")).unwrap();
        group.push(json!({ "alert": LOOKED, "expr": format!("{DEAD} > 0"), "for": "5s" }));
        home.write("promptq.rules.yaml", &rules.to_string());
        let config = json!({
            "global": { "scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s" },
            "rule_files": ["promptq.rules.yaml"],
            "alerting": { "alertmanagers": [{ "static_configs": [{ "targets": [new.alertmanager.to_string()] }] }] },
            "scrape_configs": [{
                "job_name": "promptq", "static_configs": [{ "targets": [watched.address().to_string()] }],
            }],
        });
        home.write("prometheus.yaml", &config.to_string());
        new
    }

    /// Starts both; gone when dropped.
    fn start(&self, home: &Home) -> [Hand; 2] {
        let path = |name: &str| home.path(name).display().to_string();
        let example = deploy("alerts/alertmanager.yaml").display().to_string();
        let start = |name: &str, flags: &[String]| {
            let mut command = Command::new(name);
            command.args(flags).current_dir(home.path(""));
            Hand::start(command, home.path(&format!("{name}.log")))
        };
        [
            start(
                "prometheus",
                &[
                    format!("--config.file={}", path("prometheus.yaml")),
                    format!("--storage.tsdb.path={}", path("series")),
                    format!("--web.listen-address={}", self.prometheus),
                ],
            ),
            start(
                "prometheus-alertmanager",
                &[
                    format!("--config.file={example}"),
                    format!("--storage.path={}", path("alerts")),
                    format!("--web.listen-address={}", self.alertmanager),
                    "--cluster.listen-address=".to_owned(),
                ],
            ),
        ]
    }

    /// What Prometheus knows of this metric now.
    fn knows(&self, metric: &str) -> Option<f64> {
        let output = tool("promtool", &["query", "instant", &format!("http://{}", self.prometheus), metric]);
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().next()?.split("=> ").nth(1)?.split(' ').next()?.parse().ok()
    }

    /// Whether this alert has come to Alertmanager.
    fn fires(&self, name: &str) -> bool {
        let address = format!("--alertmanager.url=http://{}", self.alertmanager);
        let output = tool("amtool", &["alert", "query", &address, "--output=json", &format!("alertname={name}")]);
        let alerts: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        alerts.as_array().is_some_and(|alerts| !alerts.is_empty())
    }
}

fn submit(home: &Home, batch: &str, count: usize, model: &str) {
    let rows: String = (1..=count).flat_map(|row| ["{\"prompt\":\"job ".to_owned(), format!("{row}\"}}\n")]).collect();
    let file = home.write(&format!("{batch}.jsonl"), &rows);
    let words = ["submit", file.to_str().unwrap(), "--batch", batch, "--model", model, "--attempts", "1"];
    home.promptq(&words).ends(0);
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::print_stdout, reason = "how long it took is for people")]
async fn alerting_may_be_down_and_tells_afterwards_what_happened_meanwhile() {
    assert!(Path::new("/usr/bin/prometheus-alertmanager").exists(), "hint: run tests/install/prometheus.sh");
    let (home, admin) = (Home::new(), Admin::free());
    let broker = home.broker().await;
    let worker = home.program("promptq-worker", &["--concurrency=4", &admin.flag()]);
    let worker = Hand::start(worker, home.path("worker.log"));
    let all_ended = async |count: usize| {
        until("every job has ended", async || (records(&broker).await.len() >= count).then_some(())).await;
    };
    submit(&home, "well", 20, "mock:latency=1ms");
    submit(&home, "ill", 1, "mock:latency=1ms,errors=1");
    all_ended(21).await;
    let alerting = Alerting::new(&home, admin);
    let hands = alerting.start(&home);
    until("the rules were looked at", async || alerting.fires(LOOKED).then_some(())).await;
    assert!(!alerting.fires("DeadLetters"), "what was there before is no news");
    drop(hands);

    submit(&home, "meanwhile", 200, "mock:latency=1ms");
    submit(&home, "wrong", 3, "mock:latency=1ms,errors=1");
    all_ended(224).await;
    assert_eq!(alerting.knows(DEAD), None, "it is down");

    let back = Instant::now();
    let hands = alerting.start(&home);
    until("somebody is told of the dead jobs", async || alerting.fires("DeadLetters").then_some(())).await;
    assert_eq!(alerting.knows(DEAD), Some(4.0));
    let records = records(&broker).await;
    let ended = |end: End| records.iter().filter(|record| record.end == end).count();
    assert_eq!((ended(End::Succeeded), ended(End::Dead), records.len()), (220, 4, 224), "nothing is lost");
    println!("alerting told of the outage {:.1} s after it was back", back.elapsed().as_secs_f64());
    drop(hands);
    worker.leaves();
}
