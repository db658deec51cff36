//! What the users of `deploy/redis/users.acl` may do, and everything else that they may not. That all of promptq works
//! under them is shown by the conformance suite, which runs on Redis as one of them.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use promptq_common::broker::{Access, Broker, Durability, Enqueued};
use promptq_common::error::{Error, Kind};
use promptq_tests::fixture::job;
use promptq_tests::redis::{Connection, Options, PASSWORD, Problem, RedisServer, shipped};

const USER: &str = "promptq";

fn refusal(connection: &mut Connection, words: &[&str]) -> String {
    match connection.call(words) {
        Err(Problem::Refused(why)) => why,
        other => panic!("{words:?} was not refused: {other:?}"),
    }
}

fn login(server: &RedisServer, user: &str) -> Connection {
    let url = server.url_of(user);
    assert!(url.contains(user));
    let mut connection = server.connection().unwrap();
    connection.call(&["AUTH", user, PASSWORD]).unwrap();
    connection
}

async fn connect(url: &str) -> Result<Broker, Error> {
    Broker::connect(&Access::new(url).unwrap()).await
}

/// One error that a person can act on, without the password.
#[track_caller]
fn is_clear(error: &Error, kind: Kind, words: &[&str]) {
    let text = error.to_string();
    assert_eq!(error.kind(), kind, "{text}");
    assert!(!text.contains(PASSWORD) && !text.contains("hunter2"), "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text}");
    }
}

#[test]
fn what_promptq_never_does_is_refused() {
    let server = RedisServer::start(Options::cheap().with("enable-debug-command yes"));
    server.must(&["SET", "other", "theirs"]);
    server.must(&["SET", "pq:old", "theirs"]);
    let mut promptq = login(&server, USER);
    for line in [
        "FLUSHALL",
        "FLUSHDB",
        "KEYS *",
        "SCAN 0",
        "CONFIG SET maxmemory 1",
        "CONFIG GET requirepass",
        "DEBUG SLEEP 0",
        "SHUTDOWN NOSAVE",
        "ACL LIST",
        "ACL SETUSER promptq +@all",
        "SCRIPT FLUSH",
        "FUNCTION FLUSH",
        "CLIENT LIST",
        "MONITOR",
        "SAVE",
        "SWAPDB 0 1",
        "REPLICAOF NO ONE",
        "MODULE LIST",
        "SUBSCRIBE x",
        "GET other",
        "GET pq:old",
        "GET {other}:x",
        "RPUSH other x",
        "BLPOP other 1",
    ] {
        let why = refusal(&mut promptq, &line.split(' ').collect::<Vec<_>>());
        assert!(why.contains("permission"), "{line}: {why}");
    }
    for (script, keys) in [
        ("return redis.call('GET', KEYS[1])", &["1", "other"][..]),
        ("return redis.call('GET', 'other')", &["0"]),
        ("return redis.call('GET', 'other')", &["1", "{pq:default}"]),
        ("return redis.call('FLUSHALL')", &["0"]),
        ("return redis.call('CONFIG', 'SET', 'maxmemory', '1')", &["0"]),
    ] {
        refusal(&mut promptq, &[&["EVAL", script], keys].concat());
    }
    assert_eq!(server.must(&["GET", "other"]).text(), "theirs");
    assert_eq!(
        promptq.call(&["EVAL", "return redis.call('GET', KEYS[1])", "1", "{pq:x}:y"]).unwrap(),
        promptq_tests::redis::Reply::Nil
    );
}

#[test]
fn a_foreign_program_may_push_and_read_and_nothing_else() {
    let server = RedisServer::start(Options::cheap());
    server.must(&["XADD", "{pq:q}:results", "*", "result", "{}"]);
    let mut foreign = login(&server, "promptq-foreign");
    foreign.call(&["RPUSH", "{pq:q}:inbox", "{}"]).unwrap();
    foreign.call(&["RPUSH", "{pq:q}:wake", "1"]).unwrap();
    foreign.call(&["XREAD", "STREAMS", "{pq:q}:results", "0"]).unwrap();
    for line in [
        "RPUSH {pq:q}:0 x",
        "RPUSH {pq:q}:results x",
        "XREAD STREAMS {pq:q}:inbox 0",
        "LPOP {pq:q}:inbox",
        "XADD {pq:q}:results * result x",
        "HGETALL {pq:q}",
        "EVALSHA x 0",
        "EVAL return 0",
        "FLUSHALL",
    ] {
        refusal(&mut foreign, &line.split(' ').collect::<Vec<_>>());
    }
}

#[test]
fn nobody_comes_in_before_a_password_is_set() {
    let server = RedisServer::start(Options::cheap());
    for (user, rules) in shipped() {
        let words = ["ACL", "SETUSER", &user].into_iter().chain(rules.iter().map(String::as_str));
        server.must(&words.collect::<Vec<_>>());
        let mut connection = server.connection().unwrap();
        for password in ["", "x"] {
            assert!(refusal(&mut connection, &["AUTH", &user, password]).contains("WRONGPASS"));
        }
    }
}

#[tokio::test]
async fn a_wrong_password_and_every_missing_right_are_one_clear_error() {
    let server = RedisServer::start(Options::durable());
    let url = server.url_of(USER);
    let wrong = connect(&url.replace(PASSWORD, "hunter2")).await.unwrap_err();
    is_clear(&wrong, Kind::Denied, &["refuses the password of user promptq", "broker.password"]);
    let nobody = connect(&server.url()).await.map(drop);
    assert!(nobody.is_ok(), "the default user of a test's server may do everything: {nobody:?}");
    server.must(&["ACL", "SETUSER", USER, "-info"]);
    is_clear(
        &connect(&url).await.unwrap_err(),
        Kind::Denied,
        &["user promptq has too few rights", "info", "users.acl"],
    );
    server.must(&["ACL", "SETUSER", USER, "+info"]);
    let broker = connect(&url).await.unwrap();
    assert_eq!(broker.enqueue(&[job()]).await.unwrap(), [Enqueued::New]);
    // Asked for outside a script, inside one, and the key.
    for (take, give) in [("-evalsha", "+evalsha"), ("-hset", "+hset"), ("resetkeys", "~{pq:*")] {
        server.must(&["ACL", "SETUSER", USER, take]);
        is_clear(&broker.enqueue(&[job()]).await.unwrap_err(), Kind::Denied, &["user promptq has too few rights"]);
        server.must(&["ACL", "SETUSER", USER, give]);
    }
}

#[tokio::test]
async fn strict_durability_takes_one_right_more() {
    let server = RedisServer::start(Options::durable());
    let access = Access { durability: Some(Durability::Strict), ..Access::new(&server.url_of(USER)).unwrap() };
    is_clear(&Broker::connect(&access).await.unwrap_err(), Kind::Config, &["durability is strict", "+config|get"]);
    server.must(&["ACL", "SETUSER", USER, "+config|get"]);
    Broker::connect(&access).await.unwrap();
}

#[test]
fn the_shipped_rights_are_exactly_the_commands_that_the_code_names() {
    // The driver's own: a sign of life, and the choice of a database.
    let mut used: BTreeSet<String> = ["ping", "unwatch", "select"].map(str::to_owned).into();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../common/src/broker/redis");
    for folder in [folder.join("scripts"), folder] {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let Ok(text) = std::fs::read_to_string(&path) else { continue };
            for opening in ["call('", "cmd(\"", "command(\""] {
                let names = text.split(opening).skip(1).filter_map(|rest| rest.split(['\'', '"']).next());
                let names = names.filter(|name| name.bytes().all(|byte| byte.is_ascii_uppercase()));
                used.extend(names.map(str::to_ascii_lowercase));
            }
        }
    }
    assert!(used.remove("config"), "asked only where it may be; see deploy/redis/README.md");
    assert!(used.remove("memory") && used.insert("memory|usage".to_owned()));
    let (_, rules) = shipped().into_iter().find(|(name, _)| name == USER).unwrap();
    let granted: BTreeSet<String> = rules.iter().filter_map(|rule| rule.strip_prefix('+')).map(str::to_owned).collect();
    let differ: Vec<_> = used.symmetric_difference(&granted).collect();
    assert!(differ.is_empty(), "in one of the code and deploy/redis/users.acl only: {differ:?}");
}

#[test]
fn a_server_takes_the_file_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/redis/users.acl");
    let mut command = Command::new("redis-server");
    command.args(["--port", "0", "--unixsocket", "socket", "--logfile", "log", "--aclfile"]).arg(file);
    let mut server =
        command.current_dir(&folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    let log = loop {
        let log = std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
        let is_over = log.contains("ready to accept") || server.try_wait().unwrap().is_some();
        if is_over || begun.elapsed() > Duration::from_secs(20) {
            break log;
        }
        std::thread::yield_now();
    };
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(log.contains("ready to accept"), "{log}");
}
