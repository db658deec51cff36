//! A broker that cannot be reached is an answer of 503, never a zero; and the gateway is there before its broker is.

use promptq_tests::gateway::{Ask, Gateway};
use promptq_tests::process::Home;
use promptq_tests::redis::{Options, RedisServer};
use promptq_tests::site::until;

use super::{job, lines};

#[tokio::test]
async fn while_the_broker_is_away_nothing_is_zero_and_after_it_everything_goes_on() {
    let mut server = RedisServer::start(Options::durable());
    let home = Home::new();
    let gateway = Gateway::start(&home, &[("PROMPTQ_BROKER", &server.url())]).await.ready().await;
    let id = gateway.ask(Ask::post("/v1/jobs", job("x"))).await.is(201).text("id");
    server.kill();
    let inner = server.port().to_string();
    let (show, result) = (format!("/v1/jobs/{id}"), format!("/v1/jobs/{id}/result?wait=1s"));
    for ask in [
        Ask::get("/v1/queues/default/stats"),
        Ask::get(&show),
        Ask::get(&result),
        Ask::post("/v1/jobs", job("x")),
        Ask::post("/v1/batches?batch=b", lines(1..=3)),
        Ask::post(&format!("{show}/cancel"), ""),
    ] {
        let told = gateway.ask(ask).await.fails(503, "unreachable");
        assert!(told.header("retry-after") == "1" && !told.body.to_string().contains(&inner), "{}", told.body);
        assert!(told.body["ready"].is_null());
    }
    let told =
        gateway.ask(Ask::post("/v1/jobs", job("y")).with("idempotency-key", "k")).await.fails(503, "unreachable");
    assert_eq!(told.text("idempotency_key"), "k");
    server.restart();
    until("it is back", async || (gateway.ask(Ask::get("/v1/queues/default/stats")).await.status == 200).then_some(()))
        .await;
    let again = gateway.ask(Ask::post("/v1/jobs", job("y")).with("idempotency-key", "k")).await;
    assert!([200, 201].contains(&again.status) && again.text("id") == told.text("id"), "{}", again.body);
    gateway.ask(Ask::get(&show)).await.is(200);
    let batch = gateway.ask(Ask::post("/v1/batches?batch=b", lines(1..=3))).await;
    assert_eq!(batch.body["new"].as_u64().unwrap() + batch.body["known"].as_u64().unwrap(), 3, "{}", batch.body);
}

#[tokio::test]
async fn it_serves_before_its_broker_is_there() {
    let mut server = RedisServer::start(Options::durable());
    let (home, url) = (Home::new(), server.url());
    server.kill();
    let gateway = Gateway::start(&home, &[("PROMPTQ_BROKER", &url)]).await;
    gateway.ask(Ask::get("/openapi.json")).await.is(200);
    gateway.ask(Ask::get("/v1/queues/default/stats")).await.fails(503, "unreachable");
    server.restart();
    let gateway = gateway.ready().await;
    gateway.ask(Ask::post("/v1/jobs", job("x"))).await.is(201);
}

#[tokio::test]
async fn what_a_person_must_mend_ends_it_at_once() {
    let home = Home::new();
    let mut command = home.program("promptq", &["serve", "--listen", "127.0.0.1:0"]);
    let said = promptq_tests::process::Said::of(command.env("PROMPTQ_BROKER", "nonsense://x"));
    said.ends(2).says(&["no broker speaks nonsense://"]);
}
