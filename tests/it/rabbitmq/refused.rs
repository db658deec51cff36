//! Messages of foreign clients that are no jobs: each becomes a dead job that says why, and its client is told.

use std::collections::BTreeMap;
use std::time::Duration;

use promptq_common::broker::amqp::QueueType;
use promptq_common::job::Queue;
use promptq_tests::backends::terms;
use promptq_tests::carrier::Carrier;
use promptq_tests::rabbit::{RawClient, RawMessage};
use promptq_tests::steps::Worker;
use serde_json::Value;

/// A body, a header, and what the client is told: state,
/// code and a part of the reason.
type Case = (&'static [u8], Option<(&'static str, &'static str)>, [&'static str; 3]);

const UNREADABLE: &str = "unreadable_job";

const CASES: &[Case] = &[
    (br#"{"prompt":"a"}"#, Some(("priority", "high")), ["dead", UNREADABLE, "priority"]),
    (br#"{"prompt":"b"}"#, Some(("priority", "10")), ["dead", UNREADABLE, "priority"]),
    (br#"{"prompt":"c"}"#, Some(("not_before", "soon")), ["dead", UNREADABLE, "header"]),
    (br#"{"prompt":"say","promptq":{"priority":"high"}}"#, None, ["dead", UNREADABLE, "priority"]),
    (br#"{"prompt":"say","promptq":{"priority":10}}"#, None, ["dead", UNREADABLE, "priority"]),
    (br#"{"prompt":"say","colour":1}"#, None, ["dead", UNREADABLE, "colour"]),
    (br#"{"prompt":"say","promptq":{"colour":1}}"#, None, ["dead", UNREADABLE, "colour"]),
    (br#"{"prompt":7}"#, None, ["dead", UNREADABLE, "prompt"]),
    (br#"{"prompt":"say","max_tokens":"many"}"#, None, ["dead", UNREADABLE, "max_tokens"]),
    (br#"{"prompt":"say","promptq":{"queue":"other"}}"#, None, ["dead", UNREADABLE, "queue other"]),
    (b"{\"prompt\":\"\xff\"}", None, ["dead", UNREADABLE, "UTF-8"]),
    (b"say", None, ["dead", UNREADABLE, ""]),
    (b"", None, ["dead", UNREADABLE, ""]),
    (br#"{"prompt":"say","promptq":{"deadline":"2020-01-01T00:00:00Z"}}"#, None, ["expired", "deadline_passed", ""]),
];

fn message(name: &str, body: &[u8]) -> RawMessage {
    RawMessage {
        exchange: "pq1.in".into(),
        routing_key: "default".into(),
        content_type: Some("application/json".into()),
        id: Some(name.to_owned()),
        correlation_id: Some(name.to_owned()),
        reply_to: Some("replies".into()),
        durable: true,
        body: body.to_vec(),
        ..RawMessage::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_job_is_dead_for_a_reason_and_its_client_is_told() {
    let carrier = Carrier::with_redis(QueueType::Quorum);
    let (host, broker) = (&carrier.host, carrier.as_people_do().await);
    broker.declare(&Queue::standard(), &[], false).await.unwrap();
    let client = RawClient::connect(&host.url()).await;
    client.declare("replies", &[("x-queue-type", "classic")]).await.unwrap();
    let mut expected: BTreeMap<String, [&str; 3]> = BTreeMap::new();
    for (n, (body, header, told)) in CASES.iter().enumerate() {
        let mut sent = message(&format!("case {n}"), body);
        sent.headers.extend(header.map(|(name, value)| (name.to_owned(), value.to_owned())));
        expected.insert(format!("case {n}"), *told);
        assert!(client.publish(&sent).await);
    }
    let text = RawMessage { content_type: Some("text/plain".into()), ..message("text", br#"{"prompt":"d"}"#) };
    let same = RawMessage { content_type: text.content_type.clone(), ..message("the same", &text.body) };
    let large = [br#"{"prompt":""#.as_slice(), &vec![b'x'; 17 << 20], br#""}"#].concat();
    for (sent, told) in [
        (text, ["dead", UNREADABLE, "text/plain"]),
        (same, ["dead", UNREADABLE, "text/plain"]),
        (message("large", &large), ["dead", UNREADABLE, "larger than"]),
    ] {
        expected.insert(sent.id.clone().unwrap(), told);
        assert!(client.publish(&sent).await);
    }
    // Nobody could say which request it answers.
    assert!(client.publish(&RawMessage { id: None, correlation_id: None, ..message("", br#"{"prompt":"e"}"#) }).await);
    let mut worker = Worker::on(&broker, terms(&[(Queue::standard(), 1)], Duration::from_secs(45))).await;
    let (mut told, mut rounds) = (BTreeMap::new(), 0);
    while told.len() <= expected.len() {
        assert!(rounds < 30, "{:?} of {} are told", told.keys(), expected.len() + 1);
        rounds += 1;
        worker.finds_nothing().await;
        for reply in client.take_all("replies").await {
            let line: Value = serde_json::from_slice(&reply.body).unwrap();
            told.insert(reply.correlation_id.unwrap_or_default(), line);
        }
    }
    assert_eq!(told.remove("").unwrap()["error"]["code"], "no_id");
    for (name, [state, code, part]) in expected {
        let line = &told[&name];
        let why = line["error"]["message"].as_str().unwrap();
        let found = (line["promptq"]["state"].as_str(), line["error"]["code"].as_str());
        assert_eq!(found, (Some(state), Some(code)), "{name}: {line}");
        assert!(why.contains(part) && !why.contains("xxxx"), "{name}: {why}");
    }
    assert_eq!((host.counts("pq1.q."), host.counts("pq1.dead")), ((0, 0), (0, 0)));
}
