//! What the chart's pods may do, how they end, who sets their number, whom they may talk to, and that the programs
//! understand what they are started with.

use std::process::Stdio;

use clap::Parser;
use promptq_tests::process::{Home, Said};
use serde_json::{Value, json};

use super::helm::{MODES, all_modes, everything, objects, of_kind, render, values};

/// The pod of an object that starts some.
fn pod(object: &Value) -> Option<&Value> {
    match object["kind"].as_str()? {
        "Deployment" => Some(&object["spec"]["template"]),
        "ScaledJob" => Some(&object["spec"]["jobTargetRef"]["template"]),
        "Pod" => Some(object),
        _ => None,
    }
}

/// All pods of a release, by component.
fn pods(objects: &[Value]) -> Vec<(String, &Value)> {
    let component =
        |object: &Value| object["metadata"]["labels"]["app.kubernetes.io/component"].as_str().unwrap().to_owned();
    objects.iter().filter_map(|object| pod(object).map(|pod| (component(object), pod))).collect()
}

fn worker(objects: &[Value]) -> &Value {
    let workers: Vec<_> = pods(objects).into_iter().filter(|(component, _)| component == "worker").collect();
    assert_eq!(workers.len(), 1);
    workers[0].1
}

fn one(more: &Value) -> Vec<Value> {
    objects(&render(&[values(more)], &[])[0])
}

fn named<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found: Vec<_> =
        of_kind(objects, kind).into_iter().filter(|object| object["metadata"]["name"] == name).collect();
    assert_eq!(found.len(), 1, "{kind} {name}");
    found[0]
}

fn arguments(pod: &Value) -> Vec<String> {
    let container = &pod["spec"]["containers"][0];
    let all = [&container["command"], &container["args"]].into_iter().filter_map(Value::as_array).flatten();
    all.map(|word| word.as_str().unwrap().to_owned()).collect()
}

#[test]
fn every_pod_may_do_as_little_as_it_can() {
    for (case, objects) in all_modes() {
        let pods = pods(&objects);
        assert!(pods.len() > 1, "{case}");
        for (component, pod) in pods {
            let (spec, container) = (&pod["spec"], &pod["spec"]["containers"][0]);
            assert_eq!(spec["containers"].as_array().unwrap().len(), 1);
            let own = json!({ "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532,
                "seccompProfile": { "type": "RuntimeDefault" } });
            assert_eq!(spec["securityContext"], own, "{case}: {component}");
            let own = json!({ "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] } });
            assert_eq!(container["securityContext"], own, "{case}: {component}");
            assert_eq!(
                (&spec["automountServiceAccountToken"], &spec["enableServiceLinks"]),
                (&json!(false), &json!(false))
            );
            assert!(container["resources"]["limits"]["memory"].is_string(), "{case}: {component}");
            assert!(!container["image"].as_str().unwrap().ends_with(":latest"));
            if component != "test" {
                let probes = [
                    ("startupProbe", "/startupz", 30),
                    ("livenessProbe", "/livez", 6),
                    ("readinessProbe", "/readyz", 2),
                ];
                for (probe, path, failures) in probes {
                    let probe = &container[probe];
                    let seen = (&probe["httpGet"]["path"], &probe["failureThreshold"]);
                    assert_eq!(seen, (&json!(path), &json!(failures)), "{case}: {component}");
                }
            }
        }
        for account in of_kind(&objects, "ServiceAccount") {
            assert_eq!(account["automountServiceAccountToken"], false);
        }
    }
}

#[test]
fn secrets_come_as_files_and_stand_in_nothing_that_is_rendered() {
    let objects = one(&everything());
    for (component, pod) in pods(&objects) {
        let container = &pod["spec"]["containers"][0];
        let environment = container["env"].as_array().unwrap();
        let given = |name: &str| {
            environment.iter().find(|variable| variable["name"] == name).map(|variable| &variable["value"])
        };
        let mut files = vec![
            "PROMPTQ__BROKER__USER",
            "PROMPTQ__BROKER__PASSWORD",
            "PROMPTQ__LEDGER__USER",
            "PROMPTQ__LEDGER__PASSWORD",
        ];
        if component == "worker" || component == "test" {
            files.push("OPENAI_API_KEY");
        }
        let volumes = pod["spec"]["volumes"].as_array().unwrap();
        let secrets = volumes.iter().find(|volume| volume["name"] == "secrets").unwrap();
        let sources = secrets["projected"]["sources"].as_array().unwrap();
        assert_eq!(sources.len(), files.len(), "{component}");
        for file in files {
            assert_eq!(
                given(&format!("{file}_FILE")),
                Some(&json!(format!("/run/secrets/promptq/{file}"))),
                "{component}"
            );
            assert!(sources.iter().any(|source| source["secret"]["items"][0]["path"] == file), "{component}: {file}");
            assert_eq!(given(file), None);
        }
        assert_eq!(secrets["projected"]["defaultMode"], 0o440);
    }
    assert!(of_kind(&objects, "Secret").is_empty());
    // A component's own goes before what is for all.
    let mut more = everything();
    more["gateway"] =
        json!({ "secrets": [{ "variable": "PROMPTQ__BROKER__USER", "secret": "producer", "key": "name" }] });
    let objects = one(&more);
    let sources = pods(&objects).into_iter().find(|(component, _)| component == "gateway").unwrap().1.to_string();
    assert!(
        sources.contains(r#""secret":{"name":"producer","items":[{"key":"name","path":"PROMPTQ__BROKER__USER"}]}"#),
        "{sources}"
    );
    assert_eq!(sources.matches("PROMPTQ__BROKER__USER_FILE").count(), 1);
}

#[test]
fn a_worker_is_given_the_time_that_its_jobs_need_to_end() {
    let grace = |more: &Value| {
        let objects = one(more);
        let worker = worker(&objects);
        let drain = arguments(worker).into_iter().find(|word| word.starts_with("--drain-timeout"));
        (worker["spec"]["terminationGracePeriodSeconds"].clone(), drain.unwrap())
    };
    let seen = |seconds: u64, drain: &str| (json!(seconds), format!("--drain-timeout={drain}"));
    assert_eq!(grace(&json!({})), seen(300, "285s"));
    assert_eq!(grace(&json!({ "worker": { "jobTimeoutSeconds": 60 } })), seen(90, "75s"));
    assert_eq!(grace(&json!({ "worker": { "jobTimeoutSeconds": 3600 } })), seen(600, "585s"), "nodes wait no longer");
    assert_eq!(grace(&json!({ "worker": { "terminationGracePeriodSeconds": 45 } })), seen(45, "30s"));
}

#[test]
fn notes_warn_of_what_the_schema_lets_pass() {
    let cases = [
        (json!({}), None),
        (json!({ "worker": { "jobTimeoutSeconds": 3600 } }), Some("may be paid twice")),
        (json!({ "worker": { "jobTimeoutSeconds": 3600 }, "autoscaling": { "mode": "keda-job" } }), None),
        (json!({ "autoscaling": { "target": 64 } }), Some("fewer pods may be asked for than are busy")),
        (
            json!({ "autoscaling": { "mode": "keda" }, "worker": { "jobTimeoutSeconds": 500 } }),
            Some("may be taken away"),
        ),
        (json!({ "gateway": { "insecure": true } }), Some("whoever reaches the gateway")),
    ];
    let rendered = render(&cases.each_ref().map(|(more, _)| values(more)), &[]);
    for ((more, warning), case) in cases.iter().zip(&rendered) {
        let notes = case["notes"].as_str().unwrap();
        assert!(notes.contains("helm test promptq"), "{notes}");
        assert_eq!(notes.contains("WARNING"), warning.is_some(), "{more}: {notes}");
        assert!(notes.contains(warning.unwrap_or_default()), "{more}: {notes}");
    }
}

#[test]
fn rollouts_and_drained_nodes_take_no_worker_before_its_successor_works() {
    let objects = one(&json!({}));
    for name in ["promptq-worker", "promptq-gateway"] {
        let deployment = named(&objects, "Deployment", name);
        assert_eq!(deployment["spec"]["strategy"]["rollingUpdate"], json!({ "maxUnavailable": 0, "maxSurge": "25%" }));
        let budget = &named(&objects, "PodDisruptionBudget", name)["spec"];
        assert_eq!((&budget["maxUnavailable"], &budget["minAvailable"]), (&json!("25%"), &Value::Null));
        assert_eq!(budget["unhealthyPodEvictionPolicy"], "AlwaysAllow");
        let labels = &deployment["spec"]["template"]["metadata"]["labels"];
        for (key, value) in budget["selector"]["matchLabels"].as_object().unwrap() {
            assert_eq!(&labels[key], value);
        }
        for spread in deployment["spec"]["template"]["spec"]["topologySpreadConstraints"].as_array().unwrap() {
            assert_eq!(
                (&spread["whenUnsatisfiable"], &spread["matchLabelKeys"]),
                (&json!("ScheduleAnyway"), &json!(["pod-template-hash"]))
            );
        }
    }
    assert_eq!(named(&objects, "Deployment", "promptq-exporter")["spec"]["strategy"], json!({ "type": "Recreate" }));
    let evicted = |objects: &[Value]| {
        let annotations = &worker(objects)["metadata"]["annotations"];
        [&annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"], &annotations["karpenter.sh/do-not-disrupt"]]
            .map(Value::clone)
    };
    assert_eq!(evicted(&objects), [json!("false"), json!("true")]);
    assert_eq!(evicted(&one(&json!({ "worker": { "protectFromEviction": false } }))), [Value::Null, Value::Null]);
}

#[test]
fn the_number_of_workers_has_one_owner() {
    for mode in MODES {
        let objects = one(&json!({ "autoscaling": { "mode": mode } }));
        let deployments = of_kind(&objects, "Deployment");
        let worker = deployments.into_iter().find(|one| one["metadata"]["name"] == "promptq-worker");
        let replicas = worker.map(|worker| worker["spec"].get("replicas").cloned());
        let scalers: Vec<_> = ["ScaledObject", "ScaledJob", "HorizontalPodAutoscaler"]
            .into_iter()
            .filter(|kind| !of_kind(&objects, kind).is_empty())
            .collect();
        let owner = match mode {
            "none" => (Some(Some(json!(2))), vec![]),
            "external" => (Some(None), vec![]),
            "keda" => (Some(None), vec!["ScaledObject"]),
            "hpa" => (Some(None), vec!["HorizontalPodAutoscaler"]),
            _ => (None, vec!["ScaledJob"]),
        };
        assert_eq!((replicas, scalers), owner, "{mode}");
    }
}

#[test]
fn workers_are_counted_by_unfinished_work() {
    let keda = |more: &Value| {
        let objects =
            one(&json!({ "autoscaling": more, "worker": { "concurrency": 8, "queues": ["default:5", "vision"] } }));
        of_kind(&objects, "ScaledObject")[0]["spec"].clone()
    };
    let spec = keda(&json!({ "mode": "keda" }));
    let urls: Vec<_> = spec["triggers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|trigger| trigger["metadata"]["url"].as_str().unwrap())
        .collect();
    let url = |queue: &str| format!("http://promptq-gateway.promptq.svc:80/v1/queues/{queue}/stats");
    assert_eq!(urls, [url("default"), url("vision")]);
    for trigger in spec["triggers"].as_array().unwrap() {
        let metadata = &trigger["metadata"];
        assert_eq!(
            (&metadata["valueLocation"], &metadata["targetValue"]),
            (&json!("unfinished"), &json!("8")),
            "a worker's slots"
        );
        assert_eq!((&trigger["useCachedMetrics"], &metadata["authMode"]), (&json!(true), &json!("bearer")));
    }
    // Several triggers would count by the largest alone.
    assert_eq!(spec["advanced"]["scalingModifiers"]["formula"], "queue0 + queue1");
    assert_eq!(spec["advanced"]["scalingModifiers"]["target"], "8");
    assert_eq!(spec["fallback"]["behavior"], "currentReplicasIfHigher");
    assert_eq!(spec["cooldownPeriod"], 300);
    let prometheus = json!({ "serverAddress": "http://p:9090", "selector": "namespace=\"q\"" });
    let spec = keda(&json!({ "mode": "keda", "keda": { "source": "prometheus", "prometheus": prometheus } }));
    let trigger = &spec["triggers"][0];
    let query = r#"sum(max by (queue, state) (promptq_queue_messages{queue=~"default|vision", state=~"ready|running", namespace="q"}))"#;
    assert_eq!(
        (&trigger["metadata"]["query"], &trigger["metadata"]["ignoreNullValues"]),
        (&json!(query), &json!("false"))
    );
    let objects = one(&json!({ "autoscaling": { "mode": "keda" } }));
    assert_eq!(of_kind(&objects, "ScaledObject")[0]["spec"]["advanced"]["scalingModifiers"], Value::Null);
    let behaviour =
        of_kind(&objects, "ScaledObject")[0]["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"].clone();
    let objects = one(&json!({ "autoscaling": { "mode": "hpa" } }));
    let spec = &of_kind(&objects, "HorizontalPodAutoscaler")[0]["spec"];
    assert_eq!(spec["behavior"], behaviour, "what KEDA's copy says is checked by Kubernetes' schema");
    assert_eq!(
        (&behaviour["scaleUp"]["stabilizationWindowSeconds"], &behaviour["scaleDown"]["stabilizationWindowSeconds"]),
        (&json!(0), &json!(300))
    );
    assert_eq!(spec["metrics"][0]["external"]["target"], json!({ "type": "AverageValue", "averageValue": "16" }));
}

#[test]
fn a_long_job_has_a_pod_of_its_own() {
    let objects = one(&json!({ "autoscaling": { "mode": "keda-job" } }));
    let spec = &of_kind(&objects, "ScaledJob")[0]["spec"];
    let job = &spec["jobTargetRef"];
    assert_eq!(
        (&job["parallelism"], &job["backoffLimit"], &job["activeDeadlineSeconds"]),
        (&json!(1), &json!(0), &json!(690))
    );
    assert_eq!(
        (&spec["rollout"]["strategy"], &spec["triggers"][0]["metadata"]["targetValue"]),
        (&json!("gradual"), &json!("1"))
    );
    assert!(arguments(worker(&objects)).ends_with(&["--max-jobs=1".to_owned(), "--exit-when-idle=30s".to_owned()]));
}

#[test]
fn pods_reach_what_they_need_and_nothing_else() {
    let mut more = everything();
    more["autoscaling"] = json!({ "mode": "keda" });
    let objects = one(&more);
    let policies = of_kind(&objects, "NetworkPolicy");
    let deny = named(&objects, "NetworkPolicy", "promptq-deny");
    assert_eq!((&deny["spec"]["ingress"], &deny["spec"]["egress"]), (&Value::Null, &Value::Null));
    for policy in &policies {
        assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
    }
    for (component, pod) in pods(&objects) {
        let policy = named(&objects, "NetworkPolicy", &format!("promptq-{component}"));
        for policy in [policy, deny] {
            for (key, value) in policy["spec"]["podSelector"]["matchLabels"].as_object().unwrap() {
                assert_eq!(&pod["metadata"]["labels"][key], value, "{component}");
            }
        }
        let egress = policy["spec"]["egress"].as_array().unwrap();
        let ports: Vec<_> = egress.iter().map(|rule| rule["ports"][0]["port"].as_u64().unwrap()).collect();
        assert_eq!(ports, [53, 5671, 6379, 443], "{component}");
        let outside = &egress[3]["to"][0]["ipBlock"];
        assert_eq!(outside["cidr"], "0.0.0.0/0", "a provider may be anywhere");
        for private in ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"] {
            assert!(outside["except"].as_array().unwrap().contains(&json!(private)), "{component} reaches {private}");
        }
    }
    let ingress = &named(&objects, "NetworkPolicy", "promptq-gateway")["spec"]["ingress"];
    let spaces: Vec<_> = ingress[1]["from"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|from| from["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"].as_str())
        .collect();
    assert_eq!(spaces, ["apps", "keda"]);
}

/// The very words and variables of the pods, given to the programs.
#[test]
fn the_programs_understand_what_they_are_started_with() {
    let mut more = everything();
    more["autoscaling"] = json!({ "mode": "keda-job" });
    for objects in [one(&json!({})), one(&more)] {
        for (component, pod) in pods(&objects) {
            let words = arguments(pod);
            let parsed = match words[0].as_str() {
                "promptq-worker" => promptq_worker::cli::Cli::try_parse_from(&words).map(drop),
                _ => promptq::cli::Cli::try_parse_from(&words).map(drop),
            };
            parsed.unwrap_or_else(|error| panic!("{component}: {error}"));
            let home = Home::new();
            for (file, text) in
                [("promptq.toml", "[queues.default]\nattempts = 3\n"), ("ca.pem", ""), ("secret", "word")]
            {
                home.write(file, text);
            }
            let mut command = home.program("promptq", &["config", "check"]);
            for variable in pod["spec"]["containers"][0]["env"].as_array().unwrap() {
                let (name, value) = (variable["name"].as_str().unwrap(), variable["value"].as_str().unwrap());
                let file = match value {
                    path if path.starts_with("/run/secrets/") => Some("secret"),
                    path if path.starts_with("/etc/promptq/") => path.rsplit('/').next(),
                    _ => None,
                };
                let value = file.map_or(value.to_owned(), |file| home.path(file).display().to_string());
                command.env(name, value);
            }
            Said::of(command.stdin(Stdio::null())).ends(0);
        }
    }
}
