//! What `promptq doctor` says of a RabbitMQ server, hop by hop, and that it leaves nothing behind there.

use promptq_tests::process::{Home, Said};
use promptq_tests::rabbit::{self, RabbitServer};
use promptq_tests::redis::{Options, RedisServer};
use serde_json::Value;

use super::login;

/// What it found, by check.
struct Findings(Vec<Value>, i32);

impl Findings {
    #[track_caller]
    fn of(&self, check: &str, health: &str) -> &str {
        let found = self.0.iter().find(|finding| finding["check"] == check);
        let found = found.unwrap_or_else(|| panic!("no {check} in {:?}", self.0));
        assert_eq!(found["health"], health, "{found}");
        found["what"].as_str().unwrap()
    }

    fn has(&self, check: &str) -> bool {
        self.0.iter().any(|finding| finding["check"] == check)
    }
}

fn ask_said(broker: &str, ledger: &str) -> Said {
    let home = Home::new();
    let mut command = home.program("promptq", &["doctor"]);
    Said::of(command.env("PROMPTQ_BROKER", broker).env("PROMPTQ_LEDGER", ledger))
}

fn ask(broker: &str, ledger: &str, settings: &[(&str, &str)]) -> Findings {
    let home = Home::new();
    let mut command = home.program("promptq", &["doctor", "--json"]);
    command.env("PROMPTQ_BROKER", broker).env("PROMPTQ_LEDGER", ledger).envs(settings.iter().copied());
    let said = Said::of(&mut command);
    assert!(!said.stdout.contains("of-a-test") && !said.stderr.contains("of-a-test"), "a password was said");
    let answer: Value = serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{error}: {}", said.stderr));
    Findings(answer["checks"].as_array().unwrap().clone(), said.code)
}

#[test]
fn each_hop_is_tried_and_nothing_stays_behind() {
    let (server, redis) = (RabbitServer::shared(), RedisServer::start(Options::cheap()));
    let host = server.host();
    let found = ask(&host.url(), &redis.url(), &[]);
    assert!(found.of("reach", "ok").contains("connected in"));
    assert!(found.of("login", "ok").contains(host.name()));
    let may = found.of("rights", "ok");
    for right in ["submit jobs", "take and answer them", "keep long ones", "declare queues"] {
        assert!(may.contains(right), "{may}");
    }
    assert!(found.of("topology", "ok").contains("made by whoever uses the queue first"));
    assert!(found.of("ledger", "ok").contains("redis://"));
    assert!(found.of("identity", "ok").contains("is no ledger's yet"));
    assert!(found.of("consumer_timeout", "ok").contains("30m"));
    assert!(!found.has("queue type"));
    let worth = found.of("server", "warning");
    assert!(worth.contains("Redis 7"), "the ledger's server is looked at: {worth}");
    assert_eq!((found.1, host.queues()), (0, Vec::new()));
    assert_eq!(redis.must(&["DBSIZE"]).number(), 0);
    let classic = [("PROMPTQ__BROKER__QUEUE_TYPE", "classic"), ("PROMPTQ__BROKER__CONSUMER_TIMEOUT", "10m")];
    let found = ask(&host.url(), &redis.url(), &classic);
    assert!(found.of("queue type", "warning").contains("may be lost"));
    assert!(found.of("consumer_timeout", "ok").contains("more than 5m"));
}

#[test]
fn what_a_ledger_cannot_promise_is_told() {
    let (server, folder) = (RabbitServer::shared(), tempfile::tempdir().unwrap());
    let host = server.host();
    let store = format!("file://{}", folder.path().display());
    let found = ask(&host.url(), "", &[("PROMPTQ_STORE", &store)]);
    let told = found.of("ledger", "warning");
    for word in ["two copies", "not recognised", "a death later"] {
        assert!(told.contains(word), "{told}");
    }
    assert!(found.1 == 0 && found.of("store", "ok").contains("creates only once"));
    let file = format!("sqlite://{}", folder.path().join("ledger.db").display());
    assert!(
        ask(&host.url(), &file, &[]).of("ledger", "warning").contains("every command for this broker must run here")
    );
    let alone = ask_said(&host.url(), "");
    assert_eq!((alone.code, alone.stderr.contains("error[store-missing]")), (2, true), "{}", alone.stderr);
}

#[test]
fn the_hop_that_fails_is_named() {
    let (server, redis) = (RabbitServer::shared(), RedisServer::start(Options::cheap()));
    let host = server.host();
    // Port 9 answers nobody here.
    let nobody = ask("amqp://me:of-a-test@127.0.0.1:9", &redis.url(), &[]);
    assert!(nobody.of("reach", "failed").contains("nothing listens there"));
    assert!(!nobody.has("login") && nobody.1 == 7);
    let url = host.url_of("me", ["^$", "^$", "^$"]);
    let stranger = ask(&url.replace("of-a-test-and-nothing-else", "of-a-test"), &redis.url(), &[]);
    assert!(stranger.of("login", "failed").contains("or the password") && stranger.1 == 1);
    let lost = ask(&host.url().replace(host.name(), "nowhere"), &redis.url(), &[]);
    assert!(lost.of("login", "failed").contains("no virtual host \"nowhere\""));
    let powerless = ask(&url, &redis.url(), &[]);
    assert!(powerless.of("rights", "failed").contains("may do nothing here"));
    let alone = ask(&host.url(), "redis://127.0.0.1:9", &[]);
    assert!(alone.of("ledger", "failed").contains("redis://127.0.0.1:9") && alone.1 == 7);
    assert_eq!(host.queues(), []);
}

#[test]
fn it_knows_each_kind_of_user() {
    let (server, redis) = (RabbitServer::shared(), RedisServer::start(Options::cheap()));
    let host = server.host();
    let may = |user: &str| {
        let found = ask(&login(&host, user), &redis.url(), &[]);
        let missing = if user == "promptq-admin" { "ok" } else { "failed" };
        assert!(found.of("topology", missing).contains("others are missing for default"), "{user}");
        found.of("rights", "ok").split_once(" may ").unwrap().1.to_owned()
    };
    assert_eq!(may("promptq-admin"), "submit jobs, take and answer them, keep long ones, declare queues");
    assert_eq!(may("promptq-worker"), "submit jobs, take and answer them, keep long ones; not declare queues");
    assert_eq!(may("promptq-producer"), "submit jobs; not take and answer them, keep long ones, declare queues");
    assert_eq!(host.queues(), []);
}

#[test]
fn lanes_that_the_settings_ask_for_are_missed() {
    let (server, redis) = (RabbitServer::shared(), RedisServer::start(Options::cheap()));
    let host = server.host();
    let home = Home::new();
    let run = |arguments: &[&str], url: &str| {
        let mut command = home.program("promptq", arguments);
        Said::of(command.env("PROMPTQ_BROKER", url).env("PROMPTQ_LEDGER", redis.url()))
    };
    home.write("promptq.toml", "[queues.default]\nattempts = 5\n[queues.other]\nattempts = 5\n");
    run(&["queues", "declare"], &host.url()).ends(0);
    run(&["doctor"], &host.url()).ends(0).prints(&["ok      topology: everything that default, other needs is there"]);
    home.write("promptq.toml", "[queues.default]\nattempts = 5\n[queues.other]\nmodels = [\"gpt-5\"]\n");
    run(&["doctor"], &host.url()).ends(0).prints(&[
        "warn    topology: pq1.q.other.gpt-5.high and 2 others are missing for other: models that have no lanes",
        "hint: `promptq queues declare other` makes them",
    ]);
    let said = run(&["doctor"], &login(&host, "promptq-worker")).ends(1);
    said.prints(&["FAILED  topology: ", "hint: run `promptq queues declare other` as a user that may declare"]);
    run(&["queues", "declare", "other"], &host.url()).ends(0);
    run(&["doctor"], &host.url()).ends(0).prints(&["ok      topology: everything"]);
}

#[test]
fn a_server_without_memory_is_told_of_and_tls_is_not_to_blame() {
    let (server, redis) = (RabbitServer::start(rabbit::Options::new()), RedisServer::start(Options::cheap()));
    server.raise(rabbit::Alarm::Memory);
    let said = ask_said(&server.url(), &redis.url()).ends(7).prints(&[
        "ok      login: ",
        "FAILED  alarm: ",
        "blocks everybody who publishes: low on memory",
        "hint: until",
    ]);
    assert!(!said.stdout.contains("TLS;") && !said.stdout.contains("amqps://"), "{}", said.stdout);
}

#[test]
fn a_ledger_that_was_never_used_is_not_made_by_a_look() {
    let (server, folder) = (RabbitServer::shared(), tempfile::tempdir().unwrap());
    let host = server.host();
    let file = folder.path().join("deep/ledger.db");
    let found = ask(&host.url(), &format!("sqlite://{}", file.display()), &[]);
    assert!(
        found.of("ledger", "warning").contains("not there yet; its first use makes it; records are kept in a file")
    );
    let store = format!("file://{}", folder.path().join("deep/store").display());
    let found = ask(&host.url(), "", &[("PROMPTQ_STORE", &store)]);
    assert!(
        found.of("ledger", "warning").contains("not there yet; its first use makes it; records are kept in object")
    );
    assert!(found.1 == 0 && std::fs::read_dir(folder.path()).unwrap().next().is_none());
}
