//! A RabbitMQ that is killed right after it has confirmed something for a queue that is new: what it keeps where, it
//! may not have on disk yet by itself.

use std::sync::Arc;
use std::time::Duration;

use promptq_common::broker::amqp::{Amqp, Settings};
use promptq_common::broker::memory::Memory;
use promptq_common::broker::{Access, Broker};
use promptq_common::job::{Job, ModelName, Priority, Queue};
use promptq_tests::backends::{LONG, terms};
use promptq_tests::fixture::{job, job_for};
use promptq_tests::rabbit::{Options, RabbitServer, VirtualHost};
use promptq_tests::steps::{Worker, eventually, put_one};

/// A process that has lanes for these models.
async fn broker(host: &VirtualHost, ledger: &Arc<Memory>, models: &[&str]) -> Broker {
    let models: Vec<_> = models.iter().map(|model| ModelName::new(model)).collect();
    let mut access = Access::new(&host.url()).unwrap();
    access.amqp = Settings { consumer_timeout: Duration::from_millis(800), ..Settings::default() };
    access.amqp.models = [(Queue::standard(), models)].into();
    let amqp = Amqp::connect(&access, Arc::clone(ledger) as _).await.unwrap();
    Broker::new(Arc::new(amqp), Arc::clone(ledger) as _)
}

/// How many messages there are whose names begin so.
fn held(host: &VirtualHost, prefix: &str) -> u64 {
    let (ready, unacked) = host.counts(prefix);
    ready + unacked
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_confirmed_for_a_new_queue_outlives_a_kill_at_once() {
    let mut server = RabbitServer::start(Options::new());
    let (host, ledger) = (server.host(), Arc::new(Memory::new()));
    put_one(&broker(&host, &ledger, &[]).await, job()).await;
    // The last lane of those that are made now.
    let last = Job { priority: Priority::new(0).unwrap(), ..job_for(Some("m")) };
    put_one(&broker(&host, &ledger, &["m"]).await, last).await;
    server.kill_rashly();
    server.restart();
    assert_eq!((held(&host, "pq1.q.default._."), held(&host, "pq1.q.default.m.low")), (1, 1));

    // A long job's message goes to a queue that its worker makes then and there.
    let broker = broker(&host, &ledger, &["m"]).await;
    let mut worker = Worker::on(&broker, terms(&[(Queue::standard(), 1)], LONG)).await;
    let jobs = worker.take(2).await;
    eventually("the messages are held", || async { (held(&host, "pq1.hold.") == 2).then_some(()) }).await;
    server.kill_rashly();
    server.restart();
    let all = ["pq1.q.", "pq1.hold."];
    eventually("both are there", || async {
        (all.iter().map(|prefix| held(&host, prefix)).sum::<u64>() >= 2).then_some(())
    })
    .await;
    drop(jobs);
}
