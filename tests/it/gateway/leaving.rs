//! How it leaves: requests are finished, nobody is left without an answer, the door is shut first.

use std::time::{Duration, Instant};

use promptq_tests::admin::Admin;
use promptq_tests::gateway::{Ask, Gateway};
use promptq_tests::process::Home;
use promptq_tests::proxy::{Network, Proxy};
use promptq_tests::redis::{Options, RedisServer};
use promptq_tests::site::until;
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{job, lines, shown, until_under_way};

async fn shut(gateway: &Gateway) {
    until("the door is shut", async || TcpStream::connect(gateway.address).await.is_err().then_some(())).await;
}

#[tokio::test]
async fn a_request_under_way_is_finished_and_a_waiting_client_is_answered_at_once() {
    let (home, admin) = (Home::new(), Admin::free());
    let mut gateway = shown(&home, admin, &[]).await;
    let waited = gateway.ask(Ask::post("/v1/jobs", job("waited for"))).await.is(201);
    let path = format!("{}/result?wait=50s", waited.header("location"));
    let mut half = TcpStream::connect(gateway.address).await.unwrap();
    let body = job("late");
    let head = format!(
        "POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let (first, second) = body.split_at(10);
    half.write_all((head + first).as_bytes()).await.unwrap();
    let leave = async {
        until_under_way(admin, 2.0).await;
        gateway.hand.signal(Signal::TERM);
        shut(&gateway).await;
        half.write_all(second.as_bytes()).await.unwrap();
        let mut text = String::new();
        half.read_to_string(&mut text).await.unwrap();
        text
    };
    let begun = Instant::now();
    let (pending, late) = tokio::join!(gateway.ask(Ask::get(&path)), leave);
    assert_eq!(pending.is(202).text("state"), "queued");
    assert!(late.starts_with("HTTP/1.1 201") && late.contains("connection: close"), "{late}");
    assert!(begun.elapsed() < Duration::from_secs(20), "nobody waits for the drain time: {:?}", begun.elapsed());
    assert_eq!(until("it has left", async || gateway.hand.code()).await, Some(0));
}

#[tokio::test]
async fn what_the_broker_has_not_confirmed_is_answered_with_its_key() {
    let server = RedisServer::start(Options::durable());
    let (home, admin, network) = (Home::new(), Admin::free(), Proxy::before(server.port()).await);
    let url = format!("redis://127.0.0.1:{}", network.port());
    let start = async || {
        shown(&home, admin, &[("PROMPTQ_BROKER", url.as_str()), ("PROMPTQ__GATEWAY__DRAIN_TIMEOUT", "3s")]).await
    };
    let mut gateway = start().await;
    network.set(Network::Deaf);
    let leave = async {
        // There are two seconds more until the last moment, for what they ask to be handed on.
        until_under_way(admin, 2.0).await;
        gateway.hand.signal(Signal::TERM);
    };
    let (one, batch, ()) = tokio::join!(
        gateway.ask(Ask::post("/v1/jobs", job("x"))),
        gateway.ask(Ask::post("/v1/batches?batch=b", lines(1..=10))),
        leave
    );
    let (one, batch) = (one.fails(503, "stopping"), batch.fails(503, "stopping"));
    assert_eq!((one.header("retry-after"), batch.text("idempotency_key").as_str()), ("1", "b"));
    let key = one.text("idempotency_key");
    assert_eq!(until("it has left", async || gateway.hand.code()).await, Some(0));
    network.set(Network::Whole);
    let gateway = start().await;
    let again = gateway.ask(Ask::post("/v1/jobs", job("x")).with("idempotency-key", key.clone())).await;
    assert!([200, 201].contains(&again.status) && again.text("id") == one.text("id"), "{}", again.body);
    let once_more = gateway.ask(Ask::post("/v1/jobs", job("x")).with("idempotency-key", key)).await.is(200);
    assert_eq!(once_more.text("id"), one.text("id"));
}

#[tokio::test]
async fn who_still_sends_at_the_last_moment_is_answered() {
    let (home, admin) = (Home::new(), Admin::free());
    let mut gateway = shown(&home, admin, &[("PROMPTQ__GATEWAY__DRAIN_TIMEOUT", "3s")]).await;
    let mut halves = Vec::new();
    for (path, kind) in [("jobs", "json"), ("batches", "x-ndjson")] {
        let mut half = TcpStream::connect(gateway.address).await.unwrap();
        let head = format!(
            "POST /v1/{path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/{kind}\r\ncontent-length: 9\r\n\r\n{{"
        );
        half.write_all(head.as_bytes()).await.unwrap();
        halves.push(half);
    }
    until_under_way(admin, 2.0).await;
    gateway.hand.signal(Signal::TERM);
    for mut half in halves {
        let mut text = String::new();
        half.read_to_string(&mut text).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 503") && text.contains("\"stopping\""), "{text}");
    }
    assert_eq!(until("it has left", async || gateway.hand.code()).await, Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let home = Home::new();
    let mut gateway = Gateway::start(&home, &[]).await.ready().await;
    let mut half = TcpStream::connect(gateway.address).await.unwrap();
    let head =
        "POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{";
    half.write_all(head.as_bytes()).await.unwrap();
    // By its answer the request before it has begun as well.
    gateway.ask(Ask::get("/openapi.json")).await.is(200);
    gateway.hand.signal(Signal::INT);
    shut(&gateway).await;
    gateway.hand.signal(Signal::INT);
    let code = until("it ends", async || gateway.hand.code()).await;
    assert_eq!(code, Some(130));
}
