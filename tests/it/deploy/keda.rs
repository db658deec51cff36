//! KEDA's objects, which no schema at hand checks to the end: its own types every trigger's settings as text to text, and
//! lets unknown keys pass. So here is a list of what may be said, after its manual (2.19).

use promptq_tests::admin::Admin;
use promptq_tests::gateway::{Ask, Gateway};
use promptq_tests::process::Home;
use promptq_tests::redis::{Options, RedisServer};
use promptq_tests::site::{Hand, until};
use serde_json::{Value, json};

use super::helm::{all_modes, objects, of_kind, render, values};

#[derive(Clone, Copy, PartialEq)]
enum Is {
    Text,
    Number,
    Truth,
    /// One of these words.
    Word(&'static [&'static str]),
    /// Whatever: checked as what it is elsewhere.
    Free,
}

type Keys = &'static [(&'static str, Is)];

const SHARED: Keys = &[
    ("pollingInterval", Is::Number),
    ("minReplicaCount", Is::Number),
    ("maxReplicaCount", Is::Number),
    ("triggers[].type", Is::Word(&["metrics-api", "prometheus"])),
    ("triggers[].name", Is::Text),
    ("triggers[].metadata", Is::Free),
    ("triggers[].authenticationRef.name", Is::Text),
];

const OBJECT: Keys = &[
    ("scaleTargetRef.name", Is::Text),
    ("cooldownPeriod", Is::Number),
    ("fallback.failureThreshold", Is::Number),
    ("fallback.replicas", Is::Number),
    (
        "fallback.behavior",
        Is::Word(&["static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower"]),
    ),
    ("advanced.restoreToOriginalReplicaCount", Is::Truth),
    // The behaviour of a HorizontalPodAutoscaler, which mode hpa has word for word and Kubernetes' schema checks.
    ("advanced.horizontalPodAutoscalerConfig.behavior", Is::Free),
    ("advanced.scalingModifiers.formula", Is::Text),
    ("advanced.scalingModifiers.target", Is::Text),
    ("advanced.scalingModifiers.activationTarget", Is::Text),
    ("advanced.scalingModifiers.metricType", Is::Word(&["AverageValue", "Value"])),
    ("triggers[].useCachedMetrics", Is::Truth),
];

const JOB: Keys = &[
    ("successfulJobsHistoryLimit", Is::Number),
    ("failedJobsHistoryLimit", Is::Number),
    ("rollout.strategy", Is::Word(&["default", "gradual"])),
    ("scalingStrategy.strategy", Is::Word(&["default", "custom", "accurate", "eager"])),
    ("scalingStrategy.multipleScalersCalculation", Is::Word(&["max", "min", "avg", "sum"])),
    // The tests of the chart hand it to Kubernetes' schema as a Job.
    ("jobTargetRef", Is::Free),
];

const AUTHENTICATION: Keys = &[
    ("secretTargetRef[].parameter", Is::Text),
    ("secretTargetRef[].name", Is::Text),
    ("secretTargetRef[].key", Is::Text),
];

/// What each trigger takes; the first three it must have.
const TRIGGERS: [(&str, &[&str]); 2] = [
    (
        "metrics-api",
        &["url", "valueLocation", "targetValue", "activationTargetValue", "format", "authMode", "unsafeSsl"],
    ),
    ("prometheus", &["serverAddress", "query", "threshold", "activationThreshold", "ignoreNullValues", "unsafeSsl"]),
];

/// What KEDA would not understand, or silently not do.
fn faults(object: &Value) -> Vec<String> {
    let keys: Vec<(&str, Is)> = match object["kind"].as_str().unwrap() {
        "ScaledObject" => [SHARED, OBJECT].concat(),
        "ScaledJob" => [SHARED, JOB].concat(),
        "TriggerAuthentication" => AUTHENTICATION.to_vec(),
        other => return vec![format!("kind {other}")],
    };
    let mut faults = Vec::new();
    walk("", &object["spec"], &keys, &mut faults);
    for trigger in object["spec"]["triggers"].as_array().into_iter().flatten() {
        let Some((_, known)) = TRIGGERS.iter().find(|(name, _)| trigger["type"] == *name) else { continue };
        let settings = trigger["metadata"].as_object().unwrap();
        faults.extend(
            settings
                .iter()
                .filter(|(key, _)| !known.contains(&key.as_str()))
                .map(|(key, _)| format!("trigger key {key}")),
        );
        faults.extend(
            settings.iter().filter(|(_, value)| !value.is_string()).map(|(key, _)| format!("{key} is no text")),
        );
        faults.extend(known[..3].iter().filter(|key| !settings.contains_key(**key)).map(|key| format!("no {key}")));
    }
    faults
}

fn walk(path: &str, value: &Value, keys: &[(&str, Is)], faults: &mut Vec<String>) {
    if let Some((_, is)) = keys.iter().find(|(key, _)| *key == path) {
        let fits = match is {
            Is::Text => value.is_string(),
            Is::Number => value.is_u64(),
            Is::Truth => value.is_boolean(),
            Is::Word(words) => value.as_str().is_some_and(|word| words.contains(&word)),
            Is::Free => value.is_object(),
        };
        faults.extend((!fits).then(|| format!("{path} is {value}")));
        return;
    }
    match value {
        Value::Object(inner) => {
            for (key, value) in inner {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                walk(&path, value, keys, faults);
            }
        }
        Value::Array(items) => {
            for item in items {
                walk(&format!("{path}[]"), item, keys, faults);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => faults.push(format!("unknown: {path}")),
    }
}

#[test]
fn keda_understands_every_object() {
    let mut seen = 0;
    for (case, objects) in all_modes() {
        for object in objects.iter().filter(|object| object["apiVersion"] == "keda.sh/v1alpha1") {
            assert_eq!(faults(object), Vec::<String>::new(), "{case}: {object:#}");
            seen += 1;
        }
    }
    assert!(seen > 4, "{seen}");
}

#[test]
fn what_keda_would_not_understand_is_seen() {
    type Spoil = fn(&mut Value);
    let objects = all_modes().into_iter().find(|(case, _)| case == "keda").unwrap().1;
    let good = of_kind(&objects, "ScaledObject")[0].clone();
    let cases: [(&str, Spoil); 7] = [
        ("unknown: cooldown", |spec| spec["cooldown"] = 300.into()),
        ("pollingInterval is \"15\"", |spec| spec["pollingInterval"] = "15".into()),
        ("fallback.behavior is", |spec| spec["fallback"]["behavior"] = "keep".into()),
        ("triggers[].type is", |spec| spec["triggers"][0]["type"] = "metric-api".into()),
        ("trigger key valuelocation", |spec| spec["triggers"][0]["metadata"]["valuelocation"] = "unfinished".into()),
        ("targetValue is no text", |spec| spec["triggers"][0]["metadata"]["targetValue"] = 16.into()),
        ("no url", |spec| drop(spec["triggers"][0]["metadata"].as_object_mut().unwrap().remove("url"))),
    ];
    for (says, spoil) in cases {
        let mut object = good.clone();
        spoil(&mut object["spec"]);
        let faults = faults(&object);
        assert!(faults.len() == 1 && faults[0].contains(says), "{says}: {faults:?}");
    }
    assert_eq!(faults(&json!({ "kind": "ScaledThing" })), ["kind ScaledThing"]);
}

/// What the chart gives to this deployment, but for the files that are there in a pod alone.
fn variables(objects: &[Value], name: &str) -> Vec<(String, String)> {
    let deployment = of_kind(objects, "Deployment").into_iter().find(|one| one["metadata"]["name"] == name).unwrap();
    let all = deployment["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap().iter();
    let pairs = all.map(|one| (one["name"].as_str().unwrap().to_owned(), one["value"].as_str().unwrap().to_owned()));
    pairs.filter(|(name, _)| name.starts_with("PROMPTQ__")).collect()
}

/// Asked as KEDA and Prometheus ask what the chart installs, where there has never been a job.
#[tokio::test(flavor = "multi_thread")]
async fn in_a_fresh_installation_there_is_no_work_and_nothing_fails() {
    let server = RedisServer::start(Options::cheap());
    let url = server.url();
    let scaling = json!({ "mode": "keda", "minReplicas": 0 });
    let more = json!({ "worker": { "queues": ["reviews:5", "vision"] }, "gateway": { "insecure": true }, "autoscaling": scaling });
    let objects = objects(&render(&[values(&more)], &[])[0]);
    let (home, admin) = (Home::new(), Admin::free());
    let told = variables(&objects, "promptq-gateway");
    let told = told.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let told: Vec<_> = told.chain([("PROMPTQ_BROKER", url.as_str())]).collect();
    let gateway = Gateway::start(&home, &told).await.ready().await;
    let triggers = of_kind(&objects, "ScaledObject")[0]["spec"]["triggers"].as_array().unwrap();
    assert_eq!(triggers.len(), 2);
    for trigger in triggers.iter().map(|trigger| &trigger["metadata"]) {
        let (_, path) = trigger["url"].as_str().unwrap().split_once("/v1/").unwrap();
        let answer = gateway.ask(Ask::get(&format!("/v1/{path}"))).await.is(200);
        assert_eq!(answer.body[trigger["valueLocation"].as_str().unwrap()], 0, "{}", answer.body);
    }
    gateway.ask(Ask::get("/v1/queues/reviewes/stats")).await.fails(404, "no-queue");
    let mut exporter = home.program("promptq", &["exporter", "--interval=1s", &admin.flag()]);
    exporter.envs(variables(&objects, "promptq-exporter")).env("PROMPTQ_BROKER", &url);
    let exporter = Hand::start(exporter, home.path("exporter.log"));
    for queue in ["reviews", "vision"] {
        let series = format!("promptq_queue_messages{{queue=\"{queue}\",backend=\"redis\",state=\"ready\"}}");
        let shown = until("it is shown", async || admin.page()?.value(&series)).await;
        assert!(shown.abs() < 1e-9, "{series} is {shown}");
    }
    exporter.leaves();
}
