//! The documents for Cloud Run, as its own models read them, and the script that sends them.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use promptq_tests::process::{Home, Said};
use serde_json::Value;

use super::shipped::{Seed, finds, script, shipped};

/// What people set.
const SET: [(&str, &str); 12] = [
    ("PROJECT", "of-a-test"),
    ("REGION", "europe-west1"),
    ("IMAGE", "registry.example/promptq@sha256:0"),
    ("BROKER_URL", "rediss://10.0.0.3:6378"),
    ("BROKER_PASSWORD_SECRET", "promptq-broker"),
    ("PROVIDER_KEY_SECRET", "openai-key"),
    ("STORE_URL", "gs://bucket/promptq"),
    ("WORKER_ACCOUNT", "worker@of-a-test.iam.gserviceaccount.com"),
    ("GATEWAY_ACCOUNT", "gateway@of-a-test.iam.gserviceaccount.com"),
    ("KEYS_SECRET", "promptq-keys"),
    ("NETWORK", "net"),
    ("SUBNETWORK", "subnet"),
];

fn apply(kind: &str) -> Command {
    let mut command = Command::new(shipped("cloudrun/apply.sh"));
    command.arg(kind).env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").envs(SET);
    command
}

/// A document as it is sent.
fn filled(kind: &str) -> String {
    Said::of(apply(kind).env("PRINT", "1")).ends(0).stdout
}

fn is_read_strictly(kind: &str, seeds: &[Seed<'_>]) {
    let (home, document) = (Home::new(), filled(kind));
    let ask = |path: &Path| Said::of(script("cloudrun.py").arg(kind).arg(path));
    ask(&home.write("document.json", &document)).ends(0);
    let common: [Seed<'_>; 3] = [
        ("\"containers\"", "\"container\"", "container"),
        ("\"image\"", "\"imageUri\"", "imageUri"),
        ("rediss://10.0.0.3:6378", "sqlite:///tmp/queue.db", "goes with the instance"),
    ];
    finds(&document, "document.json", &[&common[..], seeds].concat(), ask);
}

#[test]
fn a_worker_pool_is_one() {
    is_read_strictly(
        "worker-pool",
        &[
            ("\"manualInstanceCount\": 1", "\"manualInstanceCount\": \"many\"", "manualInstanceCount"),
            ("\"value\": \"5s\"", "\"value\": \"25s\"", "drains for 25s, and is killed after 10 s"),
            ("\"/livez\"", "\"/readyz\"", "its probes are"),
            ("\"failureThreshold\": 24", "\"failureThreshold\": 100", "longer than the 240 s"),
            ("\"serviceAccount\"", "\"revision\"", "the project's own account"),
            ("\"name\": \"PROMPTQ_STORE\"", "\"name\": \"OTHER_API_KEY\"", "OTHER_API_KEY is a secret"),
        ],
    );
}

#[test]
fn a_service_is_one() {
    is_read_strictly(
        "service",
        &[
            ("\"cpuIdle\": false", "\"cpuIdle\": true", "the broker hears nothing"),
            ("\"minInstanceCount\": 1", "\"minInstanceCount\": 0", "there may be none of it"),
            ("\"value\": \"8s\"", "\"value\": \"30s\"", "drains for 30s"),
            ("INGRESS_TRAFFIC_INTERNAL_LOAD_BALANCER", "INGRESS_TRAFFIC_NONE_AT_ALL", "INGRESS_TRAFFIC_NONE_AT_ALL"),
        ],
    );
}

#[test]
fn a_job_is_one() {
    is_read_strictly(
        "job",
        &[
            ("\"--exit-when-idle\"", "\"--max-jobs\"", "never ends"),
            ("\"maxRetries\": 0", "\"maxRetries\": 3", "is started again by Cloud Run"),
        ],
    );
}

#[test]
fn what_is_missing_or_cannot_be_is_refused_before_anything_is_sent() {
    let without = |name: &str| Said::of(apply("service").env("PRINT", "1").env_remove(name)).ends(1);
    without("IMAGE").says(&["error[cloud-run]: not set: IMAGE"]);
    without("KEYS_SECRET").says(&["not set: KEYS_SECRET"]);
    without("BROKER_URL").says(&["BROKER_URL is not set"]);
    let with = |name: &str, value: &str| Said::of(apply("service").env("PRINT", "1").env(name, value)).ends(1);
    with("BROKER_URL", "sqlite:///queue.db").says(&["a file goes with its instance"]);
    with("BROKER_URL", "redis://me:secret@10.0.0.3").says(&["a URL holds a user"]);
    Said::of(&mut apply("deployment")).ends(1).says(&["deployment is none of these"]);
}

#[test]
fn a_document_is_sent_whole_with_the_token_and_a_refusal_is_told() {
    let home = Home::new();
    let gcloud = home.write("gcloud", "#!/bin/sh\necho of-a-test-and-nothing-else\n");
    std::fs::set_permissions(&gcloud, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:/usr/local/bin:/usr/bin:/bin", home.path("").display());
    for (status, code) in [("200 OK", 0), ("403 Forbidden", 1)] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let api = format!("http://{}", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream);
            let (mut head, mut length) = (Vec::new(), 0);
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                let line = line.trim().to_owned();
                if line.is_empty() {
                    break;
                }
                if let Some(said) = line.to_lowercase().strip_prefix("content-length: ") {
                    length = said.parse().unwrap();
                }
                head.push(line);
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            write!(reader.get_mut(), "HTTP/1.1 {status}\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}")
                .unwrap();
            (head, body)
        });
        let said = Said::of(apply("worker-pool").env("PATH", &path).env("RUN_API", api)).ends(code);
        let (head, body) = server.join().unwrap();
        let target = "/v2/projects/of-a-test/locations/europe-west1/workerPools/promptq-worker";
        let first = format!("PATCH {target}?allowMissing=true HTTP/1.1");
        assert_eq!(head[0], first);
        assert!(head.contains(&"Authorization: Bearer of-a-test-and-nothing-else".to_owned()), "{head:?}");
        let sent: Value = serde_json::from_slice(&body).unwrap();
        let printed: Value = serde_json::from_str(&filled("worker-pool")).unwrap();
        assert_eq!(sent, printed);
        assert_eq!(said.stderr.contains("Cloud Run refused promptq-worker"), code == 1, "{}", said.stderr);
    }
}
