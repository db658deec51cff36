//! How a RabbitMQ is reached from outside: over TLS with the right and the wrong certificates and ports, by users whose
//! names and passwords hold any characters, and what it is not to be sent.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use promptq_common::broker::amqp::Amqp;
use promptq_common::broker::memory::Memory;
use promptq_common::broker::{Access, Broker, Enqueued, Refusal};
use promptq_common::error::{Error, Kind};
use promptq_common::job::{Job, Queue};
use promptq_common::record::End;
use promptq_common::work::Work;
use promptq_tests::backends::{LONG, terms};
use promptq_tests::fixture::{job, jobs, registered};
use promptq_tests::process::{Home, Said};
use promptq_tests::rabbit::{Options, RabbitServer};
use promptq_tests::redis::{self, RedisServer};
use promptq_tests::steps::{Worker, put_one};

async fn connect(url: &str, ca: Option<&Path>) -> Result<Broker, Error> {
    let ledger = Arc::new(Memory::new());
    let access = Access { tls_ca: ca.map(Into::into), ..Access::new(url).unwrap() };
    let amqp = Amqp::connect(&access, Arc::clone(&ledger) as _).await?;
    Ok(Broker::new(Arc::new(amqp), ledger))
}

async fn refused(url: &str, ca: Option<&Path>, kind: Kind, word: &str) {
    let begun = Instant::now();
    let error = connect(url, ca).await.unwrap_err();
    let text = error.to_string();
    assert!(error.kind() == kind && text.contains(word) && !text.contains("for-the-harness-alone"), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(8), "at once, not after a time-out");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_logins_and_sizes_of_a_server_are_met() {
    let server = RabbitServer::start(Options::new().tls().with("max_message_size = 20000"));
    tls_wants_a_certificate_that_is_trusted_and_the_right_port(&server).await;
    a_server_that_takes_less_refuses_one_job_alone(&server).await;
    tokio::task::spawn_blocking(move || users_and_passwords_hold_any_characters(&server)).await.unwrap();
}

async fn tls_wants_a_certificate_that_is_trusted_and_the_right_port(server: &RabbitServer) {
    let (ours, other) = (server.folder().join("ca.pem"), server.folder().join("other-ca.pem"));
    let broker = connect(&server.url(), Some(&ours)).await.unwrap();
    let id = put_one(&broker, job()).await;
    let ended = Worker::on(&broker, terms(&[(Queue::standard(), 1)], LONG)).await.ends_one(End::Succeeded).await;
    assert_eq!(ended, id);
    for ca in [Some(other.as_path()), None] {
        refused(&server.url(), ca, Kind::Config, "not trusted (UnknownIssuer); set broker.tls_ca").await;
    }
    let wrong = server.plain_url().replace("amqp://", "amqps://");
    refused(&wrong, Some(&ours), Kind::Config, "the port speaks no TLS; write amqp://").await;
    let wrong = server.url().replace("amqps://", "amqp://");
    refused(&wrong, None, Kind::Unavailable, "if the port speaks TLS, write amqps://").await;
}

/// As each server does whose `max_message_size` is below what is allowed here.
async fn a_server_that_takes_less_refuses_one_job_alone(server: &RabbitServer) {
    let host = server.host();
    let broker = connect(&host.url(), Some(&server.folder().join("ca.pem"))).await.unwrap();
    let large = Job { work: Work::prompt(Some("mock"), "x".repeat(30_000)), ..registered() };
    let sent = [jobs(2), vec![large], jobs(2)].concat();
    let mut answers = broker.enqueue(&sent).await;
    while answers.as_ref().is_err_and(Error::is_transient) {
        answers = broker.enqueue(&sent).await;
    }
    let answers = answers.unwrap();
    let Enqueued::Refused(Refusal::TooLarge(30_000..)) = answers[2] else { panic!("{answers:?}") };
    assert!(answers.iter().enumerate().all(|(place, answer)| place == 2 || *answer == Enqueued::New), "{answers:?}");
}

fn users_and_passwords_hold_any_characters(server: &RabbitServer) {
    let (host, redis, home) = (server.host(), RedisServer::start(redis::Options::cheap()), Home::new());
    let address = format!("amqps://localhost:{}/{}", server.port() + 1, host.name());
    let ca = server.folder().join("ca.pem");
    let declare = |user: &str, password: (&str, &str), code: i32| {
        let mut command = home.program("promptq", &["queues", "declare"]);
        command.env("PROMPTQ_BROKER", &address).env("PROMPTQ_LEDGER", redis.url());
        command.env("PROMPTQ__BROKER__TLS_CA", &ca).env("PROMPTQ__BROKER__USER", user).env(password.0, password.1);
        let said = Said::of(&mut command).ends(code);
        assert!(!said.stderr.contains("seCret") && !said.stdout.contains("seCret"), "{said:?}");
        said
    };
    for (user, password) in [("mé@x:y/z", "p@s:w/%41 ?#\"'\\é"), ("4711", "0012"), ("a b", " [1, 2] ")] {
        let user = format!("{}{user}", host.name());
        server.must(&format!(
            "rabbit_auth_backend_internal:add_user(<<{user:?}/utf8>>, <<{password:?}/utf8>>, <<\"tests\">>), \
             rabbit_auth_backend_internal:set_permissions(<<{user:?}/utf8>>, <<{:?}>>, <<\".*\">>, <<\".*\">>, <<\".*\">>, \
             <<\"tests\">>).",
            host.name()
        ));
        declare(&user, ("PROMPTQ__BROKER__PASSWORD", password), 0);
        let file = home.write("password", &format!("{password}\n"));
        declare(&user, ("PROMPTQ__BROKER__PASSWORD_FILE", file.to_str().unwrap()), 0);
        declare(&user, ("PROMPTQ__BROKER__PASSWORD", "seCret"), 4).says(&["or the password; check broker.user"]);
    }
}
