//! What holds when the gateway is killed: nothing that was acknowledged is lost, and the same request again completes
//! what was cut short.

use std::collections::BTreeSet;
use std::sync::Arc;

use promptq_common::broker::{Access, Broker};
use promptq_tests::gateway::{Ask, Gateway};
use promptq_tests::process::Home;
use promptq_tests::redis::{Options, RedisServer};
use promptq_tests::site::until;
use rustix::process::Signal;
use tokio::task::JoinSet;

use super::{job, lines};

const ROWS: u64 = 30_000;

async fn on(home: &Home, url: &str) -> Gateway {
    Gateway::start(home, &[("PROMPTQ_BROKER", url)]).await.ready().await
}

async fn ready(broker: &Broker) -> u64 {
    let views = broker.queues().await.unwrap();
    views.iter().map(|view| view.depth.ready).sum()
}

async fn killed_in_a_batch(home: &Home, url: &str) {
    let gateway = on(home, url).await;
    let broker = Broker::connect(&Access::new(url).unwrap()).await.unwrap();
    let ask = || Ask::post("/v1/batches?batch=nov", lines(1..=ROWS));
    let dies = async {
        until("some of it is in", async || (ready(&broker).await > 0).then_some(())).await;
        gateway.hand.signal(Signal::KILL);
    };
    let (answer, ()) = tokio::join!(gateway.try_ask(ask()), dies);
    let there = ready(&broker).await;
    assert!(answer.is_none() && there < ROWS, "it was to die in the middle: {there} of {ROWS} jobs, {answer:?}");
    let again = on(home, url).await.ask(ask()).await.is(201).body;
    assert_eq!(again["known"].as_u64().unwrap(), there, "what was durable is known: {again}");
    assert_eq!(again["new"].as_u64().unwrap() + there, ROWS, "{again}");
    assert_eq!(ready(&broker).await, ROWS);
}

#[tokio::test]
async fn killed_in_the_middle_of_a_batch_the_same_request_enqueues_what_is_missing_on_sqlite() {
    let home = Home::new();
    killed_in_a_batch(&home, &home.url()).await;
}

#[tokio::test]
async fn killed_in_the_middle_of_a_batch_the_same_request_enqueues_what_is_missing_on_redis() {
    let (home, server) = (Home::new(), RedisServer::start(Options::durable()));
    killed_in_a_batch(&home, &server.url()).await;
}

async fn killed_while_jobs_come(home: &Home, url: &str) {
    let gateway = Arc::new(on(home, url).await);
    let mut clients = JoinSet::new();
    for client in 0..8 {
        let gateway = Arc::clone(&gateway);
        clients.spawn(async move {
            let mut taken = Vec::new();
            for n in 0.. {
                let key = format!("{client}-{n}");
                let ask = Ask::post("/v1/jobs", job(&key)).with("idempotency-key", key.clone());
                match gateway.try_ask(ask).await {
                    Some(answer) => taken.push((key, answer.is(201).text("id"))),
                    None => break,
                }
            }
            taken
        });
    }
    let broker = Broker::connect(&Access::new(url).unwrap()).await.unwrap();
    until("many are in", async || (ready(&broker).await > 200).then_some(())).await;
    gateway.hand.signal(Signal::KILL);
    let taken: Vec<(String, String)> = clients.join_all().await.concat();
    assert!(taken.len() > 200 - 8, "each client missed one answer at most: {}", taken.len());
    let gateway = on(home, url).await;
    for (key, id) in &taken {
        let known = gateway.ask(Ask::post("/v1/jobs", job(key)).with("idempotency-key", key)).await.is(200);
        assert_eq!(&known.text("id"), id, "{key}");
    }
    let ids: BTreeSet<&String> = taken.iter().map(|(_, id)| id).collect();
    assert_eq!(ids.len(), taken.len());
    assert!(ready(&broker).await <= taken.len() as u64 + 8, "at most one of each client was not told");
}

#[tokio::test]
async fn a_job_that_was_acknowledged_outlives_the_gateway_on_sqlite() {
    let home = Home::new();
    killed_while_jobs_come(&home, &home.url()).await;
}

#[tokio::test]
async fn a_job_that_was_acknowledged_outlives_the_gateway_on_redis() {
    let (home, server) = (Home::new(), RedisServer::start(Options::durable()));
    killed_while_jobs_come(&home, &server.url()).await;
}
