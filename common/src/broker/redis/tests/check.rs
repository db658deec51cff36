//! What is refused before a server is used, and what its errors become; each against a real server that gives cause.

use deadpool_redis::redis::Value;

use super::super::Redis;
use super::super::check::{Fsync, lacking, survey};
use super::super::global::touch;
use super::super::link::Link;
use super::must;
use super::server::Server;
use crate::broker::{Access, Durability};
use crate::error::{Error, Kind};
use crate::job::Queue;

fn strict(server: &Server) -> Access {
    Access { durability: Some(Durability::Strict), ..server.access() }
}

fn as_user(server: &Server, login: &str) -> Access {
    Access::new(&format!("redis://{login}@127.0.0.1:{}", server.port)).unwrap()
}

async fn refused(access: &Access) -> Error {
    let error = Link::connect(access).await.unwrap_err();
    assert!(!error.to_string().contains("hunter2"), "{error}");
    error
}

#[tokio::test]
async fn a_server_that_evicts_is_refused() {
    let server = Server::start(&["--maxmemory-policy", "allkeys-lru"]);
    let error = refused(&server.access()).await;
    assert_eq!(error.kind(), Kind::Config);
    assert!(error.to_string().contains("maxmemory-policy is allkeys-lru"), "{error}");
    assert_eq!(survey(&server.access()).await.unwrap().policy, "allkeys-lru");
}

#[tokio::test]
async fn a_member_of_a_cluster_is_refused() {
    let server = Server::start(&["--cluster-enabled", "yes"]);
    let error = refused(&server.access()).await;
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.to_string().contains("Cluster is not supported"), "{error}");
}

#[tokio::test]
async fn a_replica_is_refused_for_now() {
    let server = Server::start(&["--replicaof", "127.0.0.1 1"]);
    assert_eq!(refused(&server.access()).await.kind(), Kind::Unavailable);
}

#[tokio::test]
async fn strict_durability_takes_nothing_less_than_always() {
    for (settings, fsync) in [
        (["--appendonly", "yes", "--appendfsync", "always"], Fsync::Always),
        (["--appendonly", "yes", "--appendfsync", "everysec"], Fsync::EverySecond),
        (["--appendonly", "yes", "--appendfsync", "no"], Fsync::Never),
        (["--appendonly", "no", "--appendfsync", "always"], Fsync::NoLog),
    ] {
        let server = Server::start(&settings);
        assert_eq!(survey(&server.access()).await.unwrap().fsync, fsync);
        Link::connect(&server.access()).await.unwrap();
        if fsync == Fsync::Always {
            Link::connect(&strict(&server)).await.unwrap();
            continue;
        }
        let error = refused(&strict(&server)).await;
        assert_eq!(error.kind(), Kind::Config);
        assert!(error.to_string().contains("durability is strict, but"), "{error}");
    }
}

#[tokio::test]
async fn strict_durability_is_refused_to_a_user_who_cannot_find_out() {
    let server = Server::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let admin = Link::connect(&server.access()).await.unwrap();
    let rights = ["ACL", "SETUSER", "me", "on", ">hunter2", "~*", "+@all", "-config"];
    must::<Value>(&admin, &rights).await;
    let access = as_user(&server, "me:hunter2");
    assert_eq!(survey(&access).await.unwrap().fsync, Fsync::Unknown);
    Link::connect(&access).await.unwrap();
    let error = refused(&Access { durability: Some(Durability::Strict), ..access }).await;
    assert!(error.to_string().contains("+config|get"), "{error}");
}

#[tokio::test]
async fn wrong_and_missing_passwords_are_one_clear_error() {
    let server = Server::start(&["--requirepass", "hunter2"]);
    let missing = refused(&server.access()).await;
    assert_eq!(missing.kind(), Kind::Denied);
    assert!(missing.to_string().contains("wants a password"), "{missing}");
    let database = Access::new(&format!("redis://127.0.0.1:{}/3", server.port)).unwrap();
    assert!(refused(&database).await.to_string().contains("wants a password"));
    for login in [":hunter22", "me:hunter2"] {
        let wrong = refused(&as_user(&server, login)).await;
        assert_eq!(wrong.kind(), Kind::Denied);
        assert!(wrong.to_string().contains("refuses the password of user"), "{wrong}");
    }
    Link::connect(&as_user(&server, ":hunter2")).await.unwrap();
}

#[tokio::test]
async fn a_missing_right_names_the_user_and_the_command() {
    let server = Server::start(&[]);
    let admin = Link::connect(&server.access()).await.unwrap();
    must::<Value>(&admin, &["ACL", "SETUSER", "me", "on", ">hunter2", "~*", "+@all", "-info"]).await;
    let error = refused(&as_user(&server, "me:hunter2")).await;
    assert_eq!(error.kind(), Kind::Denied);
    assert!(error.to_string().contains("user me has too few rights") && error.to_string().contains("info"), "{error}");
}

/// What the shipped user may, word by word.
fn shipped() -> Vec<&'static str> {
    let file = include_str!("../../../../../deploy/redis/users.acl");
    let user = file.lines().find(|line| line.starts_with("user promptq on")).unwrap();
    user.split(' ').skip(3).collect()
}

#[tokio::test]
async fn each_right_that_is_missing_is_found_and_nothing_stays_behind() {
    let server = Server::start(&[]);
    let admin = Link::connect(&server.access()).await.unwrap();
    let begin = ["ACL", "SETUSER", "me", "on"];
    must::<Value>(&admin, &[&begin[..], &shipped(), &[">hunter2"]].concat()).await;
    let access = as_user(&server, "me:hunter2");
    assert_eq!(lacking(&access).await.unwrap(), Vec::<String>::new());
    // Without these nothing can be asked at all, or not under the name of the right.
    let others = ["eval", "evalsha", "info", "ping", "select", "unwatch"];
    for right in shipped().iter().filter_map(|word| word.strip_prefix('+')).filter(|right| !others.contains(right)) {
        let (taken, given) = (format!("-{right}"), format!("+{right}"));
        must::<Value>(&admin, &["ACL", "SETUSER", "me", &taken]).await;
        let command = right.split('|').next().unwrap();
        assert_eq!(lacking(&access).await.unwrap(), [command]);
        must::<Value>(&admin, &["ACL", "SETUSER", "me", &given]).await;
    }
    assert_eq!(must::<i64>(&admin, &["DBSIZE"]).await, 0);
}

#[tokio::test]
async fn a_database_that_is_not_there_and_a_port_that_is_closed() {
    let mut server = Server::start(&[]);
    let access = Access::new(&format!("redis://127.0.0.1:{}/99", server.port)).unwrap();
    let error = refused(&access).await;
    assert_eq!(error.kind(), Kind::Config, "{error}");
    server.kill();
    assert_eq!(refused(&server.access()).await.kind(), Kind::Unavailable);
    assert!(server.folder().exists());
}

#[tokio::test]
async fn the_clock_and_the_round_trip_are_measured() {
    let server = Server::start(&[]);
    let survey = survey(&server.access()).await.unwrap();
    assert!(survey.clock_ahead_ms.abs() < 1_000 && survey.round_trip.as_secs() < 1, "{survey:?}");
    assert!(survey.version.starts_with(|first: char| first.is_ascii_digit()));
}

#[tokio::test]
async fn queues_in_another_form_are_refused_and_left_alone() {
    let server = Server::start(&[]);
    let admin = Link::connect(&server.access()).await.unwrap();
    let early = Redis::connect(&server.access()).await.unwrap();
    assert_eq!(must::<i64>(&admin, &["DBSIZE"]).await, 0, "connecting leaves nothing");
    let (ours, other) = (Queue::new("ours").unwrap(), Queue::new("other").unwrap());
    touch(&early.link, &ours).await.unwrap();
    Redis::connect(&server.access()).await.unwrap();
    for (form, named) in [(None, "an older form"), (Some("1"), "form \"1\""), (Some("3"), "form \"3\"")] {
        match form {
            None => must::<Value>(&admin, &["DEL", "{pq}:form"]).await,
            Some(form) => must::<Value>(&admin, &["SET", "{pq}:form", form]).await,
        };
        let met = [Redis::connect(&server.access()).await.map(drop), touch(&early.link, &other).await];
        for error in met.map(Result::unwrap_err) {
            assert_eq!(error.kind(), Kind::Config, "{error}");
            let text = error.to_string();
            assert!(text.contains(named) && text.contains("name another database"), "{text}");
        }
    }
    assert_eq!(must::<Vec<String>>(&admin, &["ZRANGE", "{pq}:queues", "0", "-1"]).await, ["ours"]);
    // Nobody keeps anything there any more.
    must::<Value>(&admin, &["DEL", "{pq}:queues"]).await;
    Redis::connect(&server.access()).await.unwrap();
    touch(&early.link, &other).await.unwrap();
    assert_eq!(must::<String>(&admin, &["GET", "{pq}:form"]).await, "2");
}
