//! Messages that somebody else's consumer threw out of a lane: they become dead jobs, and none is lost on the way.

use std::time::Duration;

use promptq_common::broker::amqp::Settings;
use promptq_common::broker::redis::Redis;
use promptq_common::broker::{Access, Beside, Broker, LeaseId, Retention, Settled};
use promptq_common::job::Queue;
use promptq_common::ledger::Claims as _;
use promptq_common::record::{End, State};
use promptq_tests::backends::{LONG, terms};
use promptq_tests::fixture::{self, head, job, registered};
use promptq_tests::proxy::{Network, Proxy};
use promptq_tests::rabbit::{RabbitServer, RawClient, RawMessage};
use promptq_tests::steps::{Worker, eventually, put_one, record, state, sweep};
use tokio::task::JoinSet;

use super::Stand;

const LANE: &str = "pq1.q.default._.normal";

/// Puts what waits in the lane where the server puts what was rejected, with what the server says of it.
async fn throw_out(stand: &Stand) {
    let client = RawClient::connect(&stand.host.url()).await;
    let thrown = client.take(LANE).await.unwrap();
    assert!(client.publish(&rejected(thrown, LANE)).await);
}

fn rejected(mut message: RawMessage, lane: &str) -> RawMessage {
    let death = [("x-first-death-reason", "rejected"), ("x-first-death-queue", lane)];
    message.headers.extend(death.map(|(name, value)| (name.to_owned(), value.to_owned())));
    RawMessage { exchange: String::new(), routing_key: "pq1.dead".to_owned(), ..message }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_was_thrown_out_of_a_paused_queue_is_kept_until_it_can_be_told_dead() {
    let stand = Stand::on(RabbitServer::shared(), Settings::default(), 0).await;
    let broker = stand.broker().await;
    let id = put_one(&broker, job()).await;
    throw_out(&stand).await;
    broker.pause(&Queue::standard(), Some("for a while")).await.unwrap();
    sweep(&broker, &Retention::standard()).await;
    let kept = || async { (stand.host.counts("pq1.dead") == (1, 0)).then_some(()) };
    eventually("it is back: nobody knows of the job but this message", kept).await;
    broker.pause(&Queue::standard(), None).await.unwrap();
    sweep(&broker, &Retention::standard()).await;
    assert_eq!((state(&broker, id).await, stand.host.counts("pq1.dead")), (State::Dead, (0, 0)));
    let cause = record(&broker, id).await.cause.unwrap();
    assert_eq!(cause.code, "rejected");
    assert!(cause.detail.contains(LANE) && cause.detail.contains("rejected"), "{cause:?}");
    broker.redrive(&[id]).await.unwrap();
    let again = Worker::on(&broker, terms(&[(Queue::standard(), 1)], LONG)).await.one().await;
    assert_eq!((again.head.id, again.head.epoch), (id, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_of_a_job_that_was_thrown_out_is_told() {
    let stand = Stand::on(RabbitServer::shared(), Settings::default(), 0).await;
    let broker = stand.broker().await;
    broker.declare(&Queue::standard(), &[], false).await.unwrap();
    let client = RawClient::connect(&stand.host.url()).await;
    client.declare("replies", &[("x-queue-type", "classic")]).await.unwrap();
    let request = |name: &str, prompt: &str| RawMessage {
        id: Some(name.to_owned()),
        correlation_id: Some(name.to_owned()),
        reply_to: Some("replies".to_owned()),
        content_type: Some("application/json".to_owned()),
        body: format!("{{\"prompt\":\"{prompt}\"}}").into_bytes(),
        ..RawMessage::default()
    };
    for sent in [request("good", "say"), request("bad", ""), request("good", "something else")] {
        assert!(client.publish(&rejected(sent, LANE)).await);
    }
    // Nobody threw that out of anywhere: it was put there.
    assert!(client.publish(&RawMessage { routing_key: "pq1.dead".to_owned(), ..request("by hand", "say") }).await);
    sweep(&broker, &Retention::standard()).await;
    assert_eq!(stand.host.counts("pq1.dead"), (0, 0));
    let mut told = Vec::new();
    for reply in client.take_all("replies").await {
        let line: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(line["promptq"]["state"], "dead", "{line}");
        told.push((reply.correlation_id.unwrap(), line["error"]["code"].as_str().unwrap().to_owned()));
    }
    let expected = [("good", "rejected"), ("bad", "unreadable_job"), ("good", "id_conflict")];
    assert_eq!(told, expected.map(|(name, code)| (name.to_owned(), code.to_owned())));
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_have_to_stay_hide_none_behind_them() {
    let stand = Stand::on(RabbitServer::shared(), Settings::default(), 0).await;
    let broker = stand.broker().await;
    let id = put_one(&broker, job()).await;
    let paused = Queue::new("paused").unwrap();
    broker.pause(&paused, Some("for a while")).await.unwrap();
    let client = RawClient::connect(&stand.host.url()).await;
    let strange = RawMessage {
        id: Some("strange".to_owned()),
        content_type: Some("application/json".to_owned()),
        body: br#"{"prompt":"say something"}"#.to_vec(),
        ..RawMessage::default()
    };
    let strange = rejected(strange, "pq1.q.paused._.normal");
    // More than one call takes in.
    for _ in 0..120 {
        assert!(client.publish(&strange).await);
    }
    throw_out(&stand).await;
    sweep(&broker, &Retention::standard()).await;
    assert_eq!(state(&broker, id).await, State::Dead);
    eventually("the others are back", || async { (stand.host.counts("pq1.dead") == (120, 0)).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_success_that_comes_as_its_job_is_given_up_is_all_that_is_announced() {
    let stand = Stand::on(RabbitServer::shared(), Settings::default(), 0).await;
    let broker = stand.broker().await;
    let sent = registered();
    let lost = put_one(&broker, sent.clone()).await;
    throw_out(&stand).await;
    let far = Proxy::before(stand.site.server.port()).await;
    let ledger = Access::new(&format!("redis://127.0.0.1:{}", far.port())).unwrap();
    let sweeper =
        Broker::connect(&Access { beside: Beside::Ledger(Box::new(ledger)), ..stand.access() }).await.unwrap();
    far.set(Network::Slow(Duration::from_millis(200)));
    let mut sweeping = JoinSet::new();
    sweeping.spawn(async move { sweeper.sweep(&Retention::standard()).await });
    eventually("it is being given up", || async { (state(&broker, lost).await == State::Running).then_some(()) }).await;
    // From a worker that was thought dead.
    let ledger = Redis::connect(&Access::new(&stand.site.server.url()).unwrap()).await.unwrap();
    let lease = LeaseId::random();
    let head = head(&sent);
    let late = ledger.settle(&head, lease, &fixture::end(&head, lease, End::Succeeded), None).await.unwrap();
    assert_eq!(late, Settled::Kept);
    sweeping.join_next().await.unwrap().unwrap().unwrap();
    let told = || stand.host.counts("pq1.results.default").0;
    assert_eq!((state(&broker, lost).await, told()), (State::Succeeded, 0));
    // The message is still there to have it announced.
    sweep(&broker, &Retention::standard()).await;
    assert_eq!((state(&broker, lost).await, told(), stand.host.counts("pq1.dead")), (State::Succeeded, 1, (0, 0)));
}

/// An operator's policy on any version, and from 4.0 on the default of queues that say nothing.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_servers_own_limit_throws_out_is_a_dead_job_that_may_be_put_back() {
    let stand = Stand::on(RabbitServer::shared(), Settings::default(), 0).await;
    stand.must(
        "rabbit_policy:set(V, <<\"limit\">>, <<\"^pq1[.]q[.]\">>, [{<<\"delivery-limit\">>, 1}], 0, <<\"queues\">>, \
         <<\"tests\">>).",
    );
    let broker = stand.broker().await;
    let id = put_one(&broker, job()).await;
    let mut worker = Worker::on(&broker, terms(&[(Queue::standard(), 1)], LONG)).await;
    for _ in 0..2 {
        worker.one().await.lease.settle(fixture::release()).await.unwrap();
    }
    eventually("it is thrown out", || async { (stand.host.counts("pq1.dead") == (1, 0)).then_some(()) }).await;
    sweep(&broker, &Retention::standard()).await;
    let cause = record(&broker, id).await.cause.unwrap();
    assert!(cause.detail.contains("delivery_limit"), "{cause:?}");
    broker.redrive(&[id]).await.unwrap();
    assert_eq!(worker.one().await.head.id, id);
}
