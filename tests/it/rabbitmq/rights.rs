//! What the users of `deploy/rabbitmq/definitions.json` may do, and everything else that they may not.

use std::time::Duration;

use promptq_common::broker::{Access, Beside, Broker, Enqueued, Retention};
use promptq_common::error::Kind;
use promptq_common::job::{ModelName, Queue};
use promptq_common::record::{End, State};
use promptq_tests::backends::{LONG, terms};
use promptq_tests::fixture::{job, job_in, registered, retry};
use promptq_tests::rabbit::{Options, RabbitServer, RawClient, RawMessage, VirtualHost};
use promptq_tests::redis::{Options as RedisOptions, RedisServer};
use promptq_tests::steps::{Worker, end, eventually, put_one, state};
use tokio::task::JoinSet;

use super::{login, shipped};

/// Short, so that a job outlasts it within a test.
const SERVERS_PATIENCE: Duration = Duration::from_secs(2);

/// A virtual host in which an administrator has declared the standard queue.
struct Place {
    host: VirtualHost,
    redis: RedisServer,
    server: RabbitServer,
}

impl Place {
    async fn new() -> Self {
        let server = RabbitServer::shared();
        let place = Self { host: server.host(), redis: RedisServer::start(RedisOptions::cheap()), server };
        let admin = place.broker("promptq-admin").await;
        let declared = admin.declare(&Queue::standard(), &[], true).await.unwrap().unwrap();
        assert!(!declared.made.is_empty(), "{declared:?}");
        place
    }

    async fn broker(&self, user: &str) -> Broker {
        connect(&self.host, user, &self.redis).await.unwrap()
    }

    /// Whether the server closes the channel over it, which the harness's client takes as a failure.
    async fn refuses<F: Future<Output = ()> + Send + 'static>(
        &self,
        user: &str,
        act: impl FnOnce(RawClient) -> F + Send + 'static,
    ) -> bool {
        let client = RawClient::connect(&login(&self.host, user)).await;
        let mut acting = JoinSet::new();
        acting.spawn(act(client));
        acting.join_next().await.unwrap().is_err()
    }

    async fn refuses_publish(&self, user: &str, exchange: &'static str, key: &'static str) -> bool {
        self.refuses(user, move |client| async move {
            client.publish(&RawMessage { exchange: exchange.into(), routing_key: key.into(), ..message() }).await;
        })
        .await
    }

    async fn refuses_take(&self, user: &str, queue: &'static str) -> bool {
        self.refuses(user, move |client| async move { drop(client.take(queue).await) }).await
    }

    async fn refuses_declare(&self, user: &str, queue: &str) -> bool {
        let client = RawClient::connect(&login(&self.host, user)).await;
        client.declare(queue, &[]).await.is_err_and(|why| why.contains("ACCESS_REFUSED"))
    }
}

async fn connect(host: &VirtualHost, user: &str, ledger: &RedisServer) -> promptq_common::error::Result<Broker> {
    let mut access = Access::new(&login(host, user)).unwrap();
    access.beside = Beside::Ledger(Box::new(Access::new(&ledger.url_of("promptq")).unwrap()));
    access.amqp.consumer_timeout = SERVERS_PATIENCE;
    Broker::connect(&access).await
}

fn message() -> RawMessage {
    RawMessage { body: b"{}".to_vec(), ..RawMessage::default() }
}

#[tokio::test]
async fn a_producer_puts_in_and_a_worker_takes_retries_and_ends() {
    let place = Place::new().await;
    let producer = place.broker("promptq-producer").await;
    let id = put_one(&producer, job()).await;
    let broker = place.broker("promptq-worker").await;
    let mut worker = Worker::on(&broker, terms(&[(Queue::standard(), 1)], LONG)).await;
    let delivery = worker.one().await;
    delivery.lease.claim().await.unwrap();
    let again = retry(&delivery.head, Duration::from_millis(1));
    delivery.lease.settle(again).await.unwrap();
    worker.ends_one(End::Succeeded).await;
    assert_eq!(state(&producer, id).await, State::Succeeded);
    broker.sweep(&Retention::standard()).await.unwrap();
    let told = || async { (place.host.queue("pq1.results.default").unwrap().ready == 1).then_some(()) };
    eventually("an announcement", told).await;
    let late = put_one(&producer, registered()).await;
    assert_eq!(producer.cancel(&[late]).await.unwrap().len(), 1);
    assert_eq!(state(&producer, late).await, State::Cancelled);
}

#[tokio::test]
async fn who_may_not_declare_leaves_what_is_there_to_others() {
    let place = Place::new().await;
    let broker = place.broker("promptq-worker").await;
    let refused = broker.declare(&Queue::standard(), &[ModelName::new("of-its-own")], false).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Denied, "{refused}");
    put_one(&place.broker("promptq-producer").await, job()).await;
    let mut worker = Worker::on(&broker, terms(&[(Queue::standard(), 1)], LONG)).await;
    worker.ends_one(End::Succeeded).await;
}

#[tokio::test]
async fn a_worker_makes_a_queue_of_its_own_for_long_jobs_and_removes_it() {
    let place = Place::new().await;
    put_one(&place.broker("promptq-producer").await, job()).await;
    let broker = place.broker("promptq-worker").await;
    let mut worker = Worker::on(&broker, terms(&[(Queue::standard(), 1)], LONG)).await;
    let delivery = worker.one().await;
    delivery.lease.claim().await.unwrap();
    let held = || async { place.host.queues().into_iter().find(|queue| queue.name.starts_with("pq1.hold.")) };
    eventually("a queue for long jobs", held).await;
    // Its copy is on the way just now, and comes when the worker has left.
    end(delivery, End::Succeeded).await;
    worker.consumer.close().await.unwrap();
    let gone = || async {
        broker.sweep(&Retention::standard()).await.unwrap();
        held().await.is_none().then_some(())
    };
    eventually("no queue for long jobs", gone).await;
    let mut other = Worker::on(&broker, terms(&[(Queue::standard(), 1)], LONG)).await;
    let empty = || async { (place.host.counts("pq1.q.") == (0, 0)).then_some(()) };
    assert_eq!(other.drain().await, []);
    eventually("no message", empty).await;
}

#[tokio::test]
async fn nobody_does_anothers_work() {
    let place = Place::new().await;
    for user in ["promptq-producer", "promptq-foreign"] {
        assert!(place.refuses_take(user, "pq1.q.default._.normal").await, "{user}");
        assert!(place.refuses_take(user, "pq1.dead").await, "{user}");
        assert!(place.refuses_publish(user, "", "pq1.results.default").await, "{user}");
    }
    assert!(place.refuses_publish("promptq-foreign", "pq1.delay", "default").await);
    assert!(place.refuses_take("promptq-worker", "pq1.results.default").await);
    assert!(place.refuses_publish("promptq-worker", "amq.fanout", "x").await);
    for user in ["promptq-worker", "promptq-producer", "promptq-foreign"] {
        for queue in ["pq1.q.default._.normal2", "pq1.dead2", "pq1.ledger2", "pq1.ledger.x", "other"] {
            assert!(place.refuses_declare(user, queue).await, "{user} {queue}");
        }
    }
    assert!(place.refuses_declare("promptq-admin", "other").await, "what is not promptq's is not its users'");
    assert!(place.refuses_declare("promptq-producer", "pq1.hold.x").await);
    assert!(place.refuses_declare("promptq-foreign", "pq1.ledger").await, "it speaks to no ledger");
    assert!(place.refuses_publish("promptq-foreign", "pq1.ledger", "x").await);
    // And what they may do was not refused for another reason.
    assert!(!place.refuses_publish("promptq-foreign", "pq1.in", "nobody").await);
    assert!(!place.refuses_take("promptq-worker", "pq1.dead").await);
    assert!(!place.refuses_declare("promptq-worker", "pq1.hold.x").await);
}

#[tokio::test]
async fn every_user_with_a_ledger_is_told_of_a_second_one_and_may_name_the_first() {
    let (place, second) = (Place::new().await, RedisServer::start(RedisOptions::cheap()));
    for user in ["promptq-admin", "promptq-worker", "promptq-producer"] {
        let error = connect(&place.host, user, &second).await.unwrap_err();
        assert!(error.kind() == Kind::Config && error.to_string().contains("another ledger"), "{user}: {error}");
    }
    for user in ["promptq-worker", "promptq-producer"] {
        // Nobody has declared anything here: the job finds no queue, and the virtual host has its ledger.
        let fresh = place.server.host();
        let broker = connect(&fresh, user, &second).await.unwrap();
        broker.enqueue(&[job()]).await.unwrap_err();
        let error = connect(&fresh, user, &place.redis).await.unwrap_err();
        assert!(error.to_string().contains("another ledger"), "{user}: {error}");
    }
}

#[tokio::test]
async fn a_queue_that_only_an_administrator_can_make_is_asked_for() {
    let place = Place::new().await;
    let elsewhere = Queue::new("elsewhere").unwrap();
    let producer = place.broker("promptq-producer").await;
    let strange = job_in(&elsewhere);
    let answer = producer.enqueue(std::slice::from_ref(&strange)).await.unwrap();
    assert!(matches!(answer[..], [Enqueued::Refused(_)]), "{answer:?}");
    let worker = place.broker("promptq-worker").await;
    let error = worker.consume(terms(&[(elsewhere.clone(), 1)], LONG)).await.unwrap_err();
    assert!(
        error.kind() == Kind::Denied && error.to_string().contains("`promptq queues declare elsewhere`"),
        "{error}"
    );
    place.broker("promptq-admin").await.declare(&elsewhere, &[], false).await.unwrap();
    assert_eq!(producer.enqueue(&[strange]).await.unwrap(), [Enqueued::New]);
}

#[tokio::test]
async fn a_server_takes_the_file_as_it_is_and_lets_nobody_in() {
    let server = RabbitServer::start(Options::new());
    let file = std::fs::read_to_string(shipped("definitions.json")).unwrap();
    server.must(&format!("ok = rabbit_definitions:import_raw(<<{file:?}/utf8>>)."));
    let known = server.must("[proplists:get_value(user, P) || P <- rabbit_auth_backend_internal:list_permissions()].");
    let users: serde_json::Value = serde_json::from_str(&file).unwrap();
    for user in users["users"].as_array().unwrap() {
        let name = user["name"].as_str().unwrap();
        assert!(known.contains(name), "{name} is not in {known}");
        for password in ["", "x", "guest"] {
            let login = format!("rabbit_access_control:check_user_pass_login(<<{name:?}>>, <<{password:?}>>).");
            assert!(server.must(&login).contains("refused"), "{name}");
        }
    }
}
