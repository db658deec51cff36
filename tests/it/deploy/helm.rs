//! The chart as Helm renders it: over its modes and toggles, against Kubernetes' schemas; what its values refuse; and that
//! the files for people without Helm are what it renders.

use serde_json::{Value, json};

use super::{chart, deploy, read, yaml};

const REDIS: &str = "redis://redis.redis.svc:6379";
pub(super) const MODES: [&str; 5] = ["none", "keda", "keda-job", "hpa", "external"];
/// The oldest that the chart is for, one between, the newest that is known.
const VERSIONS: [&str; 3] = ["1.30", "1.33", "1.37"];

/// What every installation says, with more laid over it.
pub(super) fn values(more: &Value) -> Value {
    let least = json!({
        "broker": { "url": REDIS },
        "gateway": { "keys": { "existingSecret": "promptq-gateway-keys" } },
        "autoscaling": { "keda": { "apiKey": { "existingSecret": "promptq-keda" } } },
    });
    merged(least, more)
}

/// With `more` laid over it, table by table.
fn merged(mut values: Value, more: &Value) -> Value {
    let (Value::Object(into), Value::Object(from)) = (&mut values, more) else { return more.clone() };
    for (key, value) in from {
        let old = into.remove(key).unwrap_or_default();
        into.insert(key.clone(), merged(old, value));
    }
    values
}

/// Everything that can be switched on, as a site with RabbitMQ would.
pub(super) fn everything() -> Value {
    json!({
        "broker": {
            "url": "amqps://rabbitmq.rabbitmq.svc/promptq",
            "secret": { "name": "promptq-rabbitmq" },
            "ca": { "configMap": "internal-ca" },
        },
        "ledger": { "url": "rediss://redis.redis.svc", "secret": { "name": "promptq-redis" }, "ca": { "configMap": "internal-ca" } },
        "store": { "url": "s3://prompt-results/promptq" },
        "settings": "[queues.default]\nattempts = 3\n",
        "worker": {
            "queues": ["default:5", "vision"],
            "secrets": [{ "variable": "OPENAI_API_KEY", "secret": "llm-keys", "key": "openai" }],
            "extraEnv": [{ "name": "PROMPTQ_LOG", "value": "info" }],
            "tolerations": [{ "key": "spot", "operator": "Exists" }],
        },
        "networkPolicy": {
            "enabled": true,
            "backends": [
                { "namespace": "rabbitmq", "podLabels": { "app.kubernetes.io/name": "rabbitmq" }, "ports": [5671] },
                { "cidr": "10.0.7.9/32", "ports": [6379] },
            ],
            "clients": ["apps"],
        },
        "monitors": { "enabled": true },
        "alerts": { "enabled": true },
        "dashboards": { "enabled": true },
    })
}

/// Renders each case; the answer has its error, or its objects and which of them the schemas refuse.
pub(super) fn render(cases: &[Value], versions: &[&str]) -> Vec<Value> {
    let answer = chart(&json!({ "cases": cases, "versions": versions }));
    answer.as_array().unwrap().clone()
}

/// The objects of a case that renders.
pub(super) fn objects(case: &Value) -> Vec<Value> {
    assert_eq!(case["error"], Value::Null);
    case["objects"].as_array().unwrap().clone()
}

/// Every mode, plain and with everything, by name.
pub(super) fn all_modes() -> Vec<(String, Vec<Value>)> {
    let cases = cases();
    let rendered = render(&cases.iter().map(|(_, values)| values.clone()).collect::<Vec<_>>(), &[]);
    cases.into_iter().zip(rendered).map(|((name, _), case)| (name, objects(&case))).collect()
}

fn cases() -> Vec<(String, Value)> {
    let plain = MODES.iter().map(|mode| ((*mode).to_owned(), values(&json!({ "autoscaling": { "mode": mode } }))));
    let full = MODES.iter().map(|mode| {
        let values = merged(values(&everything()), &json!({ "autoscaling": { "mode": mode } }));
        (format!("{mode}, with everything"), values)
    });
    let prometheus =
        json!({ "source": "prometheus", "prometheus": { "serverAddress": "http://prometheus.monitoring.svc:9090" } });
    let asked = ["keda", "keda-job"].map(|mode| {
        let values = values(&json!({ "autoscaling": { "mode": mode, "keda": prometheus } }));
        (format!("{mode}, by prometheus"), values)
    });
    let bare =
        json!({ "gateway": { "insecure": true, "keys": { "existingSecret": "" } }, "exporter": { "enabled": false } });
    let more = [
        ("insecure", bare),
        ("workers alone", json!({ "gateway": { "enabled": false }, "exporter": { "enabled": false } })),
    ];
    let more = more.into_iter().map(|(name, more)| (name.to_owned(), values(&more)));
    plain.chain(full).chain(asked).chain(more).collect()
}

pub(super) fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

#[test]
fn kubernetes_takes_whatever_the_chart_renders() {
    let cases = cases();
    let rendered = render(&cases.iter().map(|(_, values)| values.clone()).collect::<Vec<_>>(), &VERSIONS);
    for ((name, _), case) in cases.iter().zip(&rendered) {
        let objects = objects(case);
        assert_eq!(case["refused"], json!([]), "{name}");
        let count = |kind| of_kind(&objects, kind).len();
        let full = name.contains("everything");
        let seen = [count("NetworkPolicy"), count("PodMonitor"), count("PrometheusRule"), count("PodDisruptionBudget")];
        let budgets = usize::from(!name.contains("keda-job")) + usize::from(name != "workers alone");
        assert_eq!(seen, if full { [5, 3, 1, budgets] } else { [0, 0, 0, budgets] }, "{name}");
        let names: std::collections::BTreeSet<String> =
            objects.iter().map(|object| format!("{} {}", object["kind"], object["metadata"]["name"])).collect();
        assert_eq!(names.len(), objects.len(), "{name}: two objects of one name");
    }
}

#[test]
fn what_kubernetes_would_not_take_is_refused_by_its_schema() {
    // Set after rendering, in the one Deployment of workers.
    let spoilt = |path: &[&str], value: Value| {
        let question = json!({ "cases": [values(&json!({}))], "versions": ["1.33"],
            "spoil": { "name": "promptq-worker", "kind": "Deployment", "path": path, "value": value } });
        chart(&question)[0]["refused"].to_string()
    };
    assert!(spoilt(&["spec", "stratgey"], json!({})).contains("stratgey"));
    assert!(spoilt(&["spec", "replicas"], json!("two")).contains("two"));
    assert!(
        spoilt(&["spec", "template", "spec", "terminationGracePeriod"], json!(9)).contains("terminationGracePeriod")
    );
    assert_eq!(spoilt(&["spec", "replicas"], json!(3)), "[]");
}

#[test]
fn the_chart_passes_helms_own_linter_and_a_broken_one_does_not() {
    let lint =
        |values: Value, broken: &str| chart(&json!({ "lint": values, "broken": broken }))["messages"].to_string();
    assert_eq!(lint(values(&everything()), ""), "[]");
    assert!(
        lint(values(&json!({})), "{{ .Values.gateway.nothing.here }}").contains("nil"),
        "a value that is not there"
    );
}

#[test]
fn the_chart_is_of_the_version_that_it_installs() {
    let chart = yaml(&deploy("helm/promptq/Chart.yaml"));
    assert_eq!(
        (&chart["appVersion"], &chart["version"]),
        (&json!(env!("CARGO_PKG_VERSION")), &json!(env!("CARGO_PKG_VERSION")))
    );
}

#[test]
fn values_that_cannot_work_are_refused() {
    let cases = [
        (json!({ "worker": { "concurency": 8 } }), "concurency"),
        (json!({ "broker": { "url": "" } }), "/broker/url"),
        (json!({ "broker": { "url": "sqlite:///q.db" } }), "/broker/url"),
        (json!({ "broker": { "url": "redis://user:secret@redis" } }), "/broker/url"),
        (json!({ "broker": { "url": "amqp://rabbitmq" } }), "which keeps no records"),
        (json!({ "gateway": { "keys": { "existingSecret": "" } } }), "gateway.keys.existingSecret is not set"),
        (json!({ "image": { "tag": "latest" } }), "/image/tag"),
        (json!({ "worker": { "terminationGracePeriodSeconds": 900 } }), "/worker/terminationGracePeriodSeconds"),
        (json!({ "worker": { "queues": [] } }), "/worker/queues"),
        (json!({ "autoscaling": { "mode": "cpu" } }), "/autoscaling/mode"),
        (json!({ "autoscaling": { "minReplicas": 20 } }), "is above maxReplicas"),
        (json!({ "autoscaling": { "mode": "hpa", "minReplicas": 0 } }), "cannot scale to zero"),
        (json!({ "autoscaling": { "mode": "keda", "keda": { "source": "prometheus" } } }), "serverAddress"),
        (
            json!({ "autoscaling": { "mode": "keda", "keda": { "apiKey": { "existingSecret": "" } } } }),
            "needs a gateway key",
        ),
        (json!({ "autoscaling": { "mode": "keda" }, "gateway": { "enabled": false } }), "asks the gateway"),
        (json!({ "autoscaling": { "scaleDownSeconds": 30 } }), "/autoscaling/scaleDownSeconds"),
        (json!({ "networkPolicy": { "enabled": true } }), "nothing could reach the broker"),
        (json!({ "networkPolicy": { "backends": [{ "ports": [6379] }] } }), "/networkPolicy/backends/0"),
        (json!({ "alerts": { "thresholds": { "sloStartSeconds": 61 } } }), "/alerts/thresholds/sloStartSeconds"),
    ];
    let rendered = render(&cases.each_ref().map(|(more, _)| values(more)), &[]);
    for ((more, says), case) in cases.iter().zip(&rendered) {
        let error = case["error"].as_str().unwrap_or("rendered");
        assert!(error.replace('.', "/").contains(&says.replace('.', "/")), "{more}: {error}");
    }
}

#[test]
fn the_files_for_people_without_helm_are_what_the_chart_renders() {
    let golden = values(&json!({
        "networkPolicy": { "enabled": true, "backends": [{ "namespace": "redis", "ports": [6379] }] },
        "worker": { "secrets": [{ "variable": "OPENAI_API_KEY", "secret": "promptq-providers", "key": "openai" }] },
    }));
    let rules = values(&json!({ "alerts": { "enabled": true } }));
    let rendered = render(&[golden, rules], &[]);
    let text = rendered[0]["text"].as_str().unwrap();
    let path = deploy("kubernetes/promptq.yaml");
    let head = "# What deploy/helm/promptq renders, for those who have no Helm; tests/it/deploy/helm.rs has the values and writes it\n\
                # anew with BLESS=1. deploy/README.md names the secrets that must be there.\n";
    bless(&path, &format!("{head}{text}"));
    assert_eq!(read(&path), format!("{head}{text}"), "run it once more with BLESS=1, and look at the difference");
    let rules = objects(&rendered[1]);
    let rules = &of_kind(&rules, "PrometheusRule")[0]["spec"];
    let path = deploy("alerts/promptq.rules.yaml");
    let text = rendered[1]["rules"].as_str().unwrap();
    let head = "# Written from deploy/helm/promptq/templates/_rules.tpl by tests/it/deploy/helm.rs with BLESS=1. For Prometheus without\n\
                # its operator. runbook_url is to fill in: where you publish deploy/runbooks/README.md.\n";
    bless(&path, &format!("{head}{text}"));
    assert_eq!(&yaml(&path), rules, "run it once more with BLESS=1, and look at the difference");
}

fn bless(path: &std::path::Path, text: &str) {
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(path, text).unwrap();
    }
}

#[test]
fn the_chart_ships_the_dashboards_of_deploy_grafana() {
    let more = merged(values(&everything()), &json!({ "alerts": { "runbook": "https://wiki.example/promptq" } }));
    let rendered = objects(&render(&[more], &[])[0]);
    let map =
        of_kind(&rendered, "ConfigMap").into_iter().find(|map| map["metadata"]["labels"]["grafana_dashboard"] == "1");
    let shipped = map.unwrap()["data"].as_object().unwrap();
    assert_eq!(shipped.len(), 2);
    for (name, text) in shipped {
        let own = read(&deploy(&format!("grafana/{name}")))
            .replace("https://runbooks.example/promptq", "https://wiki.example/promptq");
        assert_eq!(text.as_str().unwrap().trim_end(), own.trim_end(), "{name}");
    }
}
