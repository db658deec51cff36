//! What it shows of itself: its requests and jobs in numbers, and whether it can do its work.

use promptq_common::broker::{Access, Broker};
use promptq_common::job::Queue;
use promptq_tests::admin::{Admin, Page};
use promptq_tests::gateway::Ask;
use promptq_tests::process::Home;
use promptq_tests::proxy::{Network, Proxy};
use promptq_tests::rabbit::RabbitServer;
use promptq_tests::redis::{Options, RedisServer};
use promptq_tests::site::until;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::{job, lines, shown, until_under_way};

/// What a series says; 0 where there is none.
fn value(page: &Page, series: &str) -> f64 {
    page.value(series).unwrap_or(0.0)
}

fn near(one: f64, other: f64) -> bool {
    (one - other).abs() < 1e-9
}

fn page(admin: Admin) -> Page {
    admin.page().expect("there is a page")
}

/// Whether a probe says yes.
fn says(admin: Admin, probe: &str) -> Option<bool> {
    admin.probe(probe).map(|(status, _)| status == 200)
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_counted_once_by_route_and_by_what_was_wrong() {
    let (home, admin) = (Home::new(), Admin::free());
    let gateway = shown(&home, admin, &[]).await;
    let before = page(admin);
    let zero = "promptq_http_requests_total{route=\"/v1/batches\",method=\"POST\",code=\"200\"}";
    assert_eq!(before.value(zero), Some(0.0), "{}", before.text);
    let made = gateway.ask(Ask::post("/v1/jobs", job("x"))).await.is(201);
    gateway.ask(Ask::get(made.header("location"))).await.is(200);
    gateway.ask(Ask::post("/v1/jobs", "{")).await.fails(422, "bad-row");
    gateway.ask(Ask::get("/nowhere/at/all")).await.fails(404, "not-found");
    gateway.ask(Ask::post("/v1/jobs", job(&"x".repeat(17 << 20)))).await.fails(413, "too-large");
    let connected = "promptq_broker_connected{backend=\"sqlite\"}";
    until("the broker was looked at", async || near(value(&page(admin), connected), 1.0).then_some(())).await;
    let page = page(admin);
    for (series, count) in [
        ("promptq_http_requests_total{route=\"/v1/jobs\",method=\"POST\",code=\"201\"}", 1.0),
        ("promptq_http_requests_total{route=\"/v1/jobs\",method=\"POST\",code=\"413\"}", 1.0),
        ("promptq_http_requests_total{route=\"/v1/jobs/{id}\",method=\"GET\",code=\"200\"}", 1.0),
        ("promptq_http_requests_total{route=\"unknown\",method=\"GET\",code=\"404\"}", 1.0),
        ("promptq_http_requests_in_flight", 0.0),
        ("promptq_publish_total{queue=\"default\",backend=\"sqlite\",outcome=\"confirmed\"}", 1.0),
        ("promptq_admission_rejected_total{queue=\"_\",reason=\"invalid\"}", 1.0),
        ("promptq_admission_rejected_total{queue=\"_\",reason=\"too_large\"}", 1.0),
    ] {
        assert!(near(value(&page, series), count), "{series} is not {count} in {}", page.text);
    }
    assert_eq!(page.strange(), Vec::<&String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_only_the_broker_refuses_is_counted_once() {
    let (rabbit, redis) = (RabbitServer::shared(), RedisServer::start(Options::durable()));
    let (host, home, admin) = (rabbit.host(), Home::new(), Admin::free());
    let (broker, ledger) = (host.url(), redis.url());
    let gateway = shown(&home, admin, &[("PROMPTQ_BROKER", &*broker), ("PROMPTQ_LEDGER", &*ledger)]).await;
    // A body that is taken, and a message with no room for its head.
    let large = job(&"x".repeat((16 << 20) - (100 << 10)));
    gateway.ask(Ask::post("/v1/jobs", large)).await.fails(413, "too-large");
    let page = page(admin);
    for (series, count) in [
        ("promptq_publish_total{queue=\"default\",backend=\"rabbitmq\",outcome=\"refused\"}", 1.0),
        ("promptq_admission_rejected_total{queue=\"default\",reason=\"too_large\"}", 1.0),
        ("promptq_admission_rejected_total{queue=\"_\",reason=\"too_large\"}", 0.0),
    ] {
        assert!(near(value(&page, series), count), "{series} is not {count} in {}", page.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_a_client_that_left_before_the_broker_answered_are_counted() {
    let server = RedisServer::start(Options::durable());
    let network = Proxy::before(server.port()).await;
    let (home, admin) = (Home::new(), Admin::free());
    let url = format!("redis://127.0.0.1:{}", network.port());
    let gateway = shown(&home, admin, &[("PROMPTQ_BROKER", &url)]).await;
    let beside = Broker::connect(&Access::new(&server.url()).unwrap()).await.unwrap();
    gateway.ask(Ask::post("/v1/jobs", job("taken"))).await.is(201);
    network.set(Network::Deaf);
    let body = job("left");
    let head = format!(
        "POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut client = TcpStream::connect(gateway.address).await.unwrap();
    client.write_all((head + &body).as_bytes()).await.unwrap();
    let ready = async || beside.depth(&Queue::standard()).await.unwrap().ready;
    until("its job is there, and nobody is told", async || (ready().await == 2).then_some(())).await;
    drop(client);
    let cut = "promptq_publish_total{queue=\"default\",backend=\"redis\",outcome=\"timeout\"}";
    until("it is counted", async || near(value(&page(admin), cut), 1.0).then_some(())).await;
    until_under_way(admin, 0.0).await;
    let seen = page(admin);
    let confirmed = "promptq_publish_total{queue=\"default\",backend=\"redis\",outcome=\"confirmed\"}";
    assert!(near(value(&seen, confirmed), 1.0), "{}", seen.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_ready_while_the_broker_answers_and_alive_all_the_time() {
    let mut server = RedisServer::start(Options::durable());
    let (home, admin) = (Home::new(), Admin::free());
    let gateway = shown(&home, admin, &[("PROMPTQ_BROKER", &server.url())]).await;
    let connected = "promptq_broker_connected{backend=\"redis\"}";
    until("it is ready", async || says(admin, "readyz").filter(|yes| *yes)).await;
    assert!(near(value(&page(admin), connected), 1.0));
    server.kill();
    until("it is not ready", async || says(admin, "readyz").filter(|yes| !yes)).await;
    assert!(near(value(&page(admin), connected), 0.0));
    assert_eq!((says(admin, "livez"), says(admin, "startupz")), (Some(true), Some(true)));
    server.restart();
    until("it is ready again", async || says(admin, "readyz").filter(|yes| *yes)).await;
    gateway.ask(Ask::post("/v1/batches?batch=b", lines(1..=2))).await.is(201);
}
