//! How a Redis server is reached from outside: over TLS with the right and the wrong certificates, and what the doctor
//! says of it.

use std::time::{Duration, Instant};

use promptq_common::broker::{Access, Fsync, Survey, survey};
use promptq_common::error::{Kind, Result};
use promptq_tests::process::{Home, Said};
use promptq_tests::redis::{Options, RedisServer};

async fn look(url: &str, ca: Option<&std::path::Path>) -> Result<Survey> {
    let access = Access { tls_ca: ca.map(Into::into), ..Access::new(url).unwrap() };
    survey(&access).await.map(|survey| survey.expect("a server"))
}

#[track_caller]
fn refused(result: Result<Survey>, kinds: &[Kind], words: &str) {
    let error = result.unwrap_err();
    assert!(kinds.contains(&error.kind()) && error.to_string().contains(words), "{error:?}");
}

#[tokio::test]
async fn tls_wants_a_certificate_that_is_trusted() {
    let server = RedisServer::start(Options::durable().tls());
    let (ours, other) = (server.folder().join("ca.pem"), server.folder().join("other-ca.pem"));
    let survey = look(&server.url(), Some(&ours)).await.unwrap();
    assert_eq!((survey.policy.as_str(), survey.fsync), ("noeviction", Fsync::Always));
    for ca in [Some(other.as_path()), None] {
        let begun = Instant::now();
        refused(look(&server.url(), ca).await, &[Kind::Config], "certificate is not trusted");
        assert!(begun.elapsed() < Duration::from_secs(4), "at once, not after a time-out");
    }
    // The certificate is for localhost and 127.0.0.1, not for every name of this machine.
    let elsewhere = server.url().replace("localhost", "127.0.0.2");
    refused(look(&elsewhere, Some(&ours)).await, &[Kind::Config, Kind::Unavailable], "");
}

#[tokio::test]
async fn tls_spoken_to_a_plain_port_and_plain_to_one_with_tls_are_one_clear_error() {
    let server = RedisServer::start(Options::cheap().tls());
    let ca = server.folder().join("ca.pem");
    let wrong = server.plain_url().replace("redis://", "rediss://");
    refused(look(&wrong, Some(&ca)).await, &[Kind::Config, Kind::TimedOut], "speaks no TLS");
    let wrong = server.url().replace("rediss://", "redis://");
    refused(look(&wrong, None).await, &[Kind::Unavailable], "if it speaks TLS, write rediss://");
}

#[tokio::test]
async fn the_doctor_says_what_the_server_is_worth() {
    let server = RedisServer::start(Options::every_second().tls());
    let home = Home::new();
    let seen = |settings: &[(&str, &str)]| {
        let mut command = home.program("promptq", &["doctor", "--json", "--store", "memory:"]);
        command.envs(settings.iter().copied());
        let said = String::from_utf8(command.output().unwrap().stdout).unwrap();
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        let checks = said["checks"].as_array().unwrap().clone();
        checks.into_iter().find(|check| check["check"] == "server").unwrap_or_default()
    };
    let plain = server.plain_url();
    let unasked = seen(&[("PROMPTQ_BROKER", &plain)]);
    let what = unasked["what"].as_str().unwrap();
    assert_eq!(unasked["health"], "warning");
    for word in ["Redis 7", "noeviction", "up to 2 s of confirmed jobs", "round trip", "clock"] {
        assert!(what.contains(word), "{what}");
    }
    assert!(unasked["hint"].as_str().unwrap().contains("appendfsync always"));
    // The system's own certificates, which a variable may replace.
    let ca = server.folder().join("ca.pem");
    let secure = server.url();
    let system = [("PROMPTQ_BROKER", secure.as_str()), ("SSL_CERT_FILE", ca.to_str().unwrap())];
    let accepted = [&system[..], &[("PROMPTQ__BROKER__DURABILITY", "relaxed")]].concat();
    assert_eq!(seen(&accepted)["health"], "ok");
    let named = [("PROMPTQ_BROKER", secure.as_str()), ("PROMPTQ__BROKER__TLS_CA", ca.to_str().unwrap())];
    assert_eq!(seen(&named)["health"], "warning");
}

#[test]
fn a_promise_smaller_than_it_seems_is_told_once_to_those_who_rely_on_it() {
    let server = RedisServer::start(Options::every_second());
    let (home, url) = (Home::new(), server.url());
    let warned = |arguments: &[&str], durability: &str| {
        let mut command = home.program("promptq", arguments);
        command.env("PROMPTQ_BROKER", &url).env("PROMPTQ__BROKER__DURABILITY", durability);
        let said = Said::of(&mut command);
        (said.code, said.stderr.matches("up to 2 s of confirmed jobs").count())
    };
    home.write("prompts.txt", "one\n\ntwo\n");
    let submit = ["submit", "prompts.txt", "--in", "lines", "-m", "mock"];
    assert_eq!(warned(&submit, ""), (0, 1));
    assert_eq!(warned(&["queues", "list"], ""), (0, 0));
    assert_eq!(warned(&submit, "relaxed"), (0, 0));
    assert_eq!(warned(&submit, "strict"), (2, 1));
}

#[test]
fn a_doctor_that_lacks_a_right_leaves_no_job_behind() {
    let server = RedisServer::start(Options::durable());
    let (home, url) = (Home::new(), server.url_of("promptq"));
    let ask = |arguments: &[&str]| Said::of(home.program("promptq", arguments).env("PROMPTQ_BROKER", &url));
    server.must(&["ACL", "SETUSER", "promptq", "-lpop"]);
    ask(&["doctor"]).ends(1).prints(&["FAILED  broker: ", "too few rights: lpop"]);
    server.must(&["ACL", "SETUSER", "promptq", "+lpop"]);
    ask(&["doctor"]).ends(0).prints(&["connected, and may be used"]);
    assert_eq!(server.must(&["DBSIZE"]).number(), 0);
}
