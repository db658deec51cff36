//! The Compose file under each of its profiles, what its containers are told, and the passwords that real servers take.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use promptq_common::broker::{Access, Beside, Broker, Enqueued};
use promptq_common::job::Queue;
use promptq_tests::fixture::job;
use promptq_tests::process::{Home, Said};
use promptq_tests::rabbit::{Options as RabbitOptions, RabbitServer};
use promptq_tests::redis::{Options, RedisServer};
use serde_json::Value;

use super::shipped::{as_said, finds, passes_and_finds, shipped, text, tool};

const FILE: &str = "compose/compose.yaml";
/// The profiles, each with the file that chooses it.
const WAYS: [(&str, Option<&str>); 4] =
    [("", None), ("redis", Some("redis.env")), ("rabbitmq", Some("rabbitmq.env")), ("observability", None)];
const OURS: [&str; 3] = ["worker", "gateway", "exporter"];

/// Asks Compose for a file as it understands it, seen from the folder of the shipped one.
fn config(path: &Path, (profile, variables): (&str, Option<&str>)) -> Said {
    let mut command = tool("docker-compose");
    command.env_clear().env("PATH", "/usr/bin:/bin").args(["--project-directory"]).arg(shipped("compose"));
    if let Some(variables) = variables {
        command.arg("--env-file").arg(shipped("compose").join(variables));
    } else if !profile.is_empty() {
        command.args(["--profile", profile]);
    }
    Said::of(command.arg("--file").arg(path).args(["config", "--format", "json"]))
}

fn services(path: &Path, way: (&str, Option<&str>)) -> Value {
    config(path, way).ends(0).json()["services"].take()
}

/// A length such as `5m30s` in seconds.
fn seconds(value: &Value) -> u64 {
    let mut rest = value.as_str().unwrap_or_default();
    let mut total = 0;
    for (unit, length) in [('h', 3_600), ('m', 60), ('s', 1)] {
        if let Some((number, more)) = rest.split_once(unit) {
            total += number.parse::<u64>().unwrap() * length;
            rest = more;
        }
    }
    total
}

/// What Compose takes and nobody wants.
fn unwanted(services: &Value) -> Vec<String> {
    let mut complaints = Vec::new();
    for (name, service) in services.as_object().unwrap() {
        let ours = OURS.contains(&name.as_str());
        let mut demand = |holds: bool, what: &str| {
            if !holds {
                complaints.push(format!("{name}: {what}"));
            }
        };
        demand(service["cap_drop"] == serde_json::json!(["ALL"]), "keeps rights of root");
        demand(service["security_opt"] == serde_json::json!(["no-new-privileges:true"]), "may gain rights");
        demand(service["container_name"].is_null(), "can run once only");
        demand(service["init"] == true, "nobody reaps its children");
        demand(!ours || service["read_only"] == true, "its file system may be written");
        let image = service["image"].as_str().unwrap_or_default();
        demand(image.rsplit_once(':').is_some_and(|(_, tag)| tag != "latest"), "its image is whichever is latest");
        let ports = service["ports"].as_array();
        let is_open = ports.is_some_and(|ports| ports.iter().any(|port| port["host_ip"] != "127.0.0.1"));
        demand(!is_open, "other hosts reach it");
        let variables = service["environment"].as_object();
        let is_plain = |name: &str| name.ends_with("PASSWORD") || name.ends_with("_KEY");
        demand(!variables.is_some_and(|all| all.keys().any(|name| is_plain(name))), "has a secret in a variable");
        if ours {
            demand(service["healthcheck"]["test"][0] == "CMD", "its health check wants a shell");
        }
        if name == "worker" {
            let drain = seconds(&service["environment"]["PROMPTQ__WORKER__DRAIN_TIMEOUT"]);
            demand(drain > 0 && seconds(&service["stop_grace_period"]) >= drain + 30, "is killed while it drains");
        }
        if name == "redis" {
            let command = service["command"].to_string();
            for words in ["\"--appendonly\",\"yes\"", "\"--appendfsync\",\"always\"", "\"noeviction\""] {
                demand(command.contains(words), &format!("runs without {words}"));
            }
        }
        if name == "rabbitmq" {
            let test = service["healthcheck"]["test"].to_string();
            demand(test.contains("check_port_connectivity"), "is healthy before it takes connections");
            demand(service["hostname"] == "rabbitmq", "finds its data no more when it is made anew");
        }
    }
    complaints
}

#[test]
fn compose_takes_the_file_under_every_profile() {
    for way in WAYS {
        config(&shipped(FILE), way).ends(0);
    }
    let names = |way| services(&shipped(FILE), way).as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(WAYS[0]), ["exporter", "gateway", "worker"], "without a profile nothing but promptq");
    assert_eq!(names(WAYS[1]), ["exporter", "gateway", "redis", "worker"]);
    assert_eq!(names(WAYS[2]), ["exporter", "gateway", "rabbitmq", "redis", "worker"]);
    assert_eq!(names(WAYS[3]), ["exporter", "gateway", "grafana", "prometheus", "worker"]);
    passes_and_finds(
        FILE,
        &[
            ("stop_grace_period", "stop_grace_perid", "stop_grace_perid"),
            ("secrets: [openai-api-key,", "secrets: [openai-key,", "openai-key"),
            ("volumes: [\"state:", "volumes: [\"stats:", "stats"),
            ("condition: service_healthy", "condition: service_is_healthy", "depends_on.redis.condition"),
            ("service_healthy, required: false", "service_healthy, required: true", "depends on undefined service"),
            ("${BROKER_URL:-", "${BROKER_URL:?name a broker}${X:-", "name a broker"),
            ("*promptq\n", "*promtq\n", "promtq"),
        ],
        |path| config(path, WAYS[0]),
    );
}

#[test]
fn the_file_says_what_compose_does_not_ask() {
    for way in WAYS {
        assert_eq!(unwanted(&services(&shipped(FILE), way)), Vec::<String>::new(), "{way:?}");
    }
    let ask = |way: (&'static str, Option<&'static str>)| move |path: &Path| as_said(&unwanted(&services(path, way)));
    finds(
        &text(FILE),
        FILE,
        &[
            ("  cap_drop: [ALL]\n", "", "keeps rights of root"),
            ("  security_opt: [\"no-new-privileges:true\"]\n", "", "may gain rights"),
            ("  worker:\n", "  worker:\n    container_name: worker\n", "worker: can run once only"),
            ("  init: true\n", "", "nobody reaps"),
            ("  read_only: true\n", "", "may be written"),
            ("promptq:local", "promptq:latest", "whichever is latest"),
            ("\"127.0.0.1:${GATEWAY", "\"${GATEWAY", "gateway: other hosts reach it"),
            ("PASSWORD_FILE: ${BROKER", "PASSWORD: ${BROKER", "has a secret in a variable"),
            ("[\"CMD\", \"/usr/local/bin/promptq-worker\"", "[\"CMD-SHELL\", \"promptq-worker\"", "wants a shell"),
            ("stop_grace_period: 330s", "stop_grace_period: 10s", "killed while it drains"),
        ],
        ask(WAYS[0]),
    );
    finds(
        &text(FILE),
        FILE,
        &[
            ("noeviction", "allkeys-lru", "redis: runs without"),
            ("      - always\n", "      - everysec\n", "redis: runs without"),
            ("check_port_connectivity", "ping", "before it takes connections"),
            ("    hostname: rabbitmq\n", "", "finds its data no more"),
        ],
        ask(WAYS[2]),
    );
}

#[test]
fn prometheus_takes_its_configuration() {
    let check = |path: &Path| Said::of(Command::new("promtool").args(["check", "config"]).arg(path));
    let seeds = [
        ("dns_sd_configs", "dns_sd_config", "dns_sd_config"),
        ("scrape_interval: 15s", "scrape_interval: often", "often"),
    ];
    passes_and_finds("compose/observability/prometheus.yaml", &seeds, check);
    for service in OURS {
        assert!(text("compose/observability/prometheus.yaml").contains(service), "{service} is not scraped");
    }
}

/// What is set in the environment of a program with a home of its own, and what that says of it.
fn told(home: &Home, variables: &[(&str, &str)]) -> Said {
    let secret = home.write("secret", "of-a-test-and-nothing-else");
    let mut command = home.program("promptq", &["config", "show"]);
    command.env_remove("PROMPTQ_BROKER");
    for (name, value) in variables {
        // Secrets are elsewhere in containers.
        let value = if name.ends_with("_FILE") && !value.is_empty() { secret.to_str().unwrap() } else { value };
        command.env(name, value);
    }
    Said::of(&mut command)
}

#[test]
fn promptq_understands_what_its_containers_are_told() {
    let home = Home::new();
    for way in WAYS {
        let services = services(&shipped(FILE), way);
        for name in OURS {
            let variables = services[name]["environment"].as_object().unwrap();
            let mut variables: Vec<_> =
                variables.iter().map(|(name, value)| (name.as_str(), value.as_str().unwrap_or_default())).collect();
            told(&home, &variables).ends(0);
            variables.push(("PROMPTQ_BROKR", "memory://"));
            told(&home, &variables).ends(2).says(&["no such variable"]);
        }
    }
}

#[test]
fn variables_in_every_file_are_settings() {
    let home = Home::new();
    let files = [
        FILE,
        "ecs/promptq.yaml",
        "cloudrun/service.json",
        "cloudrun/worker-pool.json",
        "cloudrun/job.json",
        "systemd/promptq-worker@.service",
        "systemd/README.md",
    ];
    let texts: Vec<_> = files.iter().map(|name| text(name)).collect();
    let words = texts.iter().flat_map(|text| text.split(|c: char| !c.is_ascii_uppercase() && c != '_'));
    let names: BTreeSet<_> = words.filter(|word| word.starts_with("PROMPTQ_")).collect();
    assert!(names.len() >= 10, "{names:?}");
    for name in names.into_iter().filter(|name| *name != "PROMPTQ_IMAGE") {
        let said = told(&home, &[(name, "1")]);
        for words in ["no such variable", "unknown setting"] {
            assert!(!said.stderr.contains(words), "{name}: {}", said.stderr);
        }
    }
}

/// Passwords as `secrets.sh` makes them.
fn secrets(home: &Home) -> Said {
    let mut command = Command::new(shipped("compose/secrets.sh"));
    command.arg(home.path("secrets")).env_clear().env("PATH", "/usr/bin:/bin").env("OPENAI_API_KEY", "a-key");
    Said::of(&mut command)
}

fn secret(home: &Home, name: &str) -> String {
    std::fs::read_to_string(home.path("secrets").join(name)).unwrap()
}

#[test]
fn secrets_are_made_once_and_for_nobody_else() {
    let home = Home::new();
    let said = secrets(&home).ends(0);
    let before = secret(&home, "redis-password");
    assert!(before.len() == 48 && !said.stdout.contains(&before) && !said.stderr.contains(&before));
    assert_eq!(secret(&home, "openai-api-key"), "a-key");
    for name in ["redis-users", "rabbitmq-definitions"] {
        let told = secret(&home, name);
        assert!(
            !told.contains(&before) && !told.contains(&secret(&home, "rabbitmq-password")),
            "{name} holds a password"
        );
    }
    let mode = std::fs::metadata(home.path("secrets")).unwrap().permissions();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o700);
    secrets(&home).ends(1).says(&["is there already"]);
    assert_eq!(secret(&home, "redis-password"), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_lets_in_who_has_the_password() {
    let home = Home::new();
    secrets(&home).ends(0);
    let users = home.path("secrets/redis-users");
    let server = RedisServer::start(Options::durable());
    // The harness needs its own account, which an aclfile in its configuration would take away.
    for line in std::fs::read_to_string(users).unwrap().lines() {
        let words: Vec<_> = line.split(' ').collect();
        assert_eq!(words[0], "user");
        server.must(&[&["ACL", "SETUSER"][..], &words[1..]].concat());
    }
    let url = |password: &str| server.url().replace("://", &format!("://promptq:{password}@"));
    let broker = Broker::connect(&Access::new(&url(&secret(&home, "redis-password"))).unwrap()).await.unwrap();
    assert_eq!(broker.enqueue(&[job()]).await.unwrap(), [Enqueued::New]);
    let wrong = Broker::connect(&Access::new(&url("another")).unwrap()).await.unwrap_err();
    assert!(wrong.to_string().contains("refuses the password"), "{wrong}");
    let nobody = Broker::connect(&Access::new(&server.url()).unwrap()).await;
    assert!(nobody.is_err(), "the default user is off");
}

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_takes_the_definitions_at_its_start() {
    let home = Home::new();
    secrets(&home).ends(0);
    let definitions = home.path("secrets/rabbitmq-definitions");
    let options = RabbitOptions::new().with(&format!("load_definitions = {}", definitions.display()));
    let redis = RedisServer::start(Options::cheap());
    let server = tokio::task::block_in_place(|| RabbitServer::start(options));
    let access = |password: &str| {
        let url = format!("amqp://promptq:{password}@127.0.0.1:{}/promptq", server.port());
        Access { beside: Beside::Ledger(Box::new(Access::new(&redis.url()).unwrap())), ..Access::new(&url).unwrap() }
    };
    let broker = Broker::connect(&access(&secret(&home, "rabbitmq-password"))).await.unwrap();
    broker.declare(&Queue::standard(), &[], false).await.unwrap();
    assert_eq!(broker.enqueue(&[job()]).await.unwrap(), [Enqueued::New]);
    assert!(Broker::connect(&access("another")).await.is_err(), "another password");
}
