//! Messages that somebody else's consumer threw out of a lane: they become dead jobs, and none is lost on the way.

use promptq_common::broker::Retention;
use promptq_common::broker::amqp::Settings;
use promptq_common::job::Queue;
use promptq_common::record::State;
use promptq_tests::backends::{LONG, terms};
use promptq_tests::fixture::job;
use promptq_tests::rabbit::{RabbitServer, RawClient, RawMessage};
use promptq_tests::steps::{Worker, put_one, record, state, sweep};

use super::Stand;

const LANE: &str = "pq1.q.default._.normal";

/// Puts what waits in the lane where the server puts what was rejected, with what the server says of it.
async fn throw_out(stand: &Stand) {
    let client = RawClient::connect(&stand.host.url()).await;
    let mut thrown = client.take(LANE).await.unwrap();
    let death = [("x-first-death-reason", "rejected"), ("x-first-death-queue", LANE)];
    thrown.headers.extend(death.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let thrown = RawMessage { exchange: String::new(), routing_key: "pq1.dead".to_owned(), ..thrown };
    assert!(client.publish(&thrown).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_was_thrown_out_of_a_paused_queue_is_kept_until_it_can_be_told_dead() {
    let stand = Stand::on(RabbitServer::shared(), Settings::default(), 0).await;
    let broker = stand.broker().await;
    let id = put_one(&broker, job()).await;
    throw_out(&stand).await;
    broker.pause(&Queue::standard(), Some("for a while")).await.unwrap();
    sweep(&broker, &Retention::standard()).await;
    assert_eq!(stand.host.counts("pq1.dead"), (1, 0), "nobody knows of the job but this message");
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
