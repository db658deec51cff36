//! What the harness promises of its servers, shown on real ones.

use std::time::{Duration, Instant};

use super::node::wait_a_little;
use super::*;

fn message(queue: &str, body: &str) -> RawMessage {
    RawMessage {
        routing_key: queue.to_owned(),
        id: Some("an id".to_owned()),
        headers: [("a-header".to_owned(), "its value".to_owned())].into(),
        durable: true,
        body: body.as_bytes().to_vec(),
        ..RawMessage::default()
    }
}

/// Waits until something is so.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(30), "{what}");
        wait_a_little();
    }
}

#[tokio::test]
async fn everybody_shares_one_and_has_a_host_of_their_own() {
    let (one, other) = (RabbitServer::shared(), RabbitServer::shared());
    assert_eq!(one.port(), other.port());
    let (mine, yours) = (one.host(), other.host());
    let client = RawClient::connect(&mine.url()).await;
    client.declare("q", &[("x-delivery-limit", "-1")]).await.unwrap();
    client.declare("c", &[("x-queue-type", "classic")]).await.unwrap();
    for queue in ["q", "q", "c", "c"] {
        assert!(client.publish(&message(queue, "body")).await);
    }
    assert!(!client.publish(&message("nowhere", "body")).await);
    assert_eq!(client.take("c").await, Some(message("c", "body")));
    let seen = mine.queue("q").unwrap();
    assert_eq!((seen.quorum, seen.ready, seen.unacked, seen.consumers), (true, 2, 0, 0));
    assert_eq!(seen.arguments["x-delivery-limit"], "-1");
    assert_eq!((mine.counts(""), mine.connections()), ((3, 0), 1));
    assert_eq!((yours.queues(), yours.connections()), (Vec::new(), 0));
    assert_eq!(client.take_all("q").await.len(), 2);
    let name = mine.name().to_owned();
    drop(mine);
    until("the host is removed", || one.must(&format!("rabbit_vhost:exists(<<\"{name}\">>).")) == "false");
}

#[tokio::test]
async fn it_has_read_what_is_shipped_for_servers() {
    let asked = "application:get_env(rabbit, dead_letter_worker_publisher_confirm_timeout).";
    assert_eq!(RabbitServer::shared().must(asked), "{ok,10000}");
}

#[tokio::test]
async fn users_may_do_what_they_were_permitted() {
    let server = RabbitServer::shared();
    let host = server.host();
    let client = RawClient::connect(&host.url_of("reader", ["", "^amq\\.default$", "^q\\."])).await;
    assert!(client.declare("q.1", &[]).await.unwrap_err().contains("ACCESS_REFUSED"));
    let client = RawClient::connect(&host.url_of("reader", ["^q\\.", "", ""])).await;
    client.declare("q.1", &[]).await.unwrap();
}

#[tokio::test]
async fn a_private_one_keeps_its_data_and_goes_with_the_test() {
    let mut server = RabbitServer::start(Options::new().tls().with("consumer_timeout = 60000"));
    let host = server.host();
    assert!(host.url().starts_with("amqps://harness:"), "{}", host.url());
    let plain =
        host.url().replace("amqps", "amqp").replace(&(server.port() + 1).to_string(), &server.port().to_string());
    let client = RawClient::connect(&plain).await;
    client.declare("q", &[]).await.unwrap();
    assert!(client.publish(&message("q", "kept")).await);
    let port = server.port();
    server.kill();
    assert!(server.evaluate("ok.").is_err());
    server.restart();
    assert_eq!(server.port(), port);
    let kept = RawClient::connect(&plain).await.take("q").await.expect("the message is still there");
    assert_eq!((kept.body, &*kept.headers["x-delivery-count"]), (b"kept".to_vec(), "0"));
    assert_eq!(server.must("application:get_env(rabbit, consumer_timeout)."), "{ok,60000}");

    // As the system does when this process is killed.
    let Owned::Private { keeper, .. } = &mut server.owned else { panic!("it is private") };
    let mut keeper = keeper.take().unwrap();
    drop(keeper.stdin.take());
    keeper.wait().unwrap();
    assert!(server.evaluate("ok.").is_err());
}

#[tokio::test]
async fn an_alarm_and_a_pause_hold_publishers_until_they_end() {
    let server = RabbitServer::start(Options::new());
    let client = RawClient::connect(&server.url()).await;
    client.declare("q", &[]).await.unwrap();
    let held = Duration::from_millis(300);
    for hold in [|server: &RabbitServer| server.raise(Alarm::Memory), RabbitServer::pause] {
        hold(&server);
        let began = Instant::now();
        // Connections hear of an alarm a moment after it is up.
        while tokio::time::timeout(held, client.publish(&message("q", "late"))).await.is_ok() {
            assert!(began.elapsed() < Duration::from_secs(10), "published");
        }
        server.resume();
        server.clear(Alarm::Memory);
        assert!(client.publish(&message("q", "now")).await);
    }
}
