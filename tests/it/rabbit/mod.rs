//! Jobs on RabbitMQ that last for long, wait for long, or come from clients that are not ours: real servers with a Redis
//! as ledger beside them, and worker processes around both.

mod delays;
mod gone;
mod long;
mod thrown;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use promptq_common::broker::amqp::Settings;
use promptq_common::broker::{Access, Beside, Broker};
use promptq_common::record::End;
use promptq_tests::rabbit::{Options, RabbitServer, RawClient, VirtualHost};
use promptq_tests::redis;
use promptq_tests::site::{PATIENCE, Setup, Site, records};

/// The queue that [`Stand::watch`] fills.
const WATCH: &str = "watch";

/// An installation on RabbitMQ; everything in it ends with it.
struct Stand {
    host: VirtualHost,
    server: RabbitServer,
    /// The ledger, the provider and the workers.
    site: Site,
    settings: Settings,
}

impl Stand {
    /// With a server of its own, and calls that take so many milliseconds.
    async fn new(settings: Settings, latency: u64) -> Self {
        Self::on(RabbitServer::start(Options::new()), settings, latency).await
    }

    async fn on(server: RabbitServer, settings: Settings, latency: u64) -> Self {
        let host = server.host();
        let site = Site::new(redis::Options::cheap(), latency..=latency).await;
        Self { host, server, site, settings }
    }

    fn access(&self) -> Access {
        let ledger = Access::new(&self.site.server.url()).unwrap();
        let beside = Beside::Ledger(Box::new(ledger));
        Access { amqp: self.settings.clone(), beside, ..Access::new(&self.host.url()).unwrap() }
    }

    /// The broker, for this process.
    async fn broker(&self) -> Broker {
        Broker::connect(&self.access()).await.unwrap()
    }

    /// A worker process of so many slots.
    fn setup(&self, slots: u32, lease: Duration) -> Setup {
        let levels: Vec<_> = self.settings.levels.iter().map(|level| format!("{}ms", level.as_millis())).collect();
        let environment = [
            ("PROMPTQ_LEDGER", self.site.server.url()),
            ("PROMPTQ__BROKER__CONSUMER_TIMEOUT", format!("{}ms", self.settings.consumer_timeout.as_millis())),
            ("PROMPTQ__BROKER__DELAY_LEVELS", levels.join(",")),
        ];
        let environment = environment.map(|(name, value)| (name.to_owned(), value)).to_vec();
        Setup { url: self.host.url(), slots, lease, environment }
    }

    /// Evaluates Erlang expressions in the server, with `V` the name of the virtual host.
    fn must(&self, expressions: &str) -> String {
        self.server.must(&format!("V = <<\"{}\">>,{expressions}", self.host.name()))
    }

    /// From now on the server copies whatever passes it under one of these keys (`publish.EXCHANGE`, `deliver.QUEUE`)
    /// to a queue of its own. For servers that no other test uses.
    async fn watch(&self, keys: &[&str]) -> RawClient {
        let client = RawClient::connect(&self.host.url()).await;
        client.declare(WATCH, &[("x-queue-type", "classic")]).await.unwrap();
        for key in keys {
            self.must(&format!(
                "rabbit_binding:add({{binding, {{resource, V, exchange, <<\"amq.rabbitmq.trace\">>}}, <<\"{key}\">>, \
                 {{resource, V, queue, <<\"{WATCH}\">>}}, []}}, <<\"tests\">>)."
            ));
        }
        self.must("rabbit_trace:start(V).");
        client
    }

    /// What is in hold queues: waiting, and with workers.
    fn held(&self) -> (u64, u64) {
        self.host.counts("pq1.hold.")
    }

    /// Deletes a queue with everything in it, as an operator may.
    fn delete(&self, queue: &str) {
        self.must(&format!(
            "{{ok, Q}} = rabbit_amqqueue:lookup({{resource, V, queue, <<\"{queue}\">>}}), \
             rabbit_amqqueue:delete(Q, false, false, <<\"tests\">>)."
        ));
    }

    /// That nothing is left in any queue but for announcements, nor with any worker.
    async fn is_empty(&self) {
        let began = Instant::now();
        loop {
            let queues = self.host.queues().into_iter().filter(|queue| queue.ready + queue.unacked > 0);
            let queues = queues.filter(|queue| !queue.name.starts_with("pq1.results.") && queue.name != WATCH);
            let left: Vec<_> = queues.map(|queue| (queue.name, queue.ready, queue.unacked)).collect();
            if left.is_empty() {
                return;
            }
            // A copy may wait for a lease, more than once.
            assert!(began.elapsed() < PATIENCE * 2, "{left:?} is left");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// How often each message was seen, by its body.
async fn seen(watch: &RawClient) -> BTreeMap<Vec<u8>, usize> {
    let mut seen = BTreeMap::new();
    for message in watch.take_all(WATCH).await {
        *seen.entry(message.body).or_default() += 1;
    }
    seen
}

/// Waits until so many jobs have ended, and checks that each did once, as a success.
async fn all_succeed(broker: &Broker, count: usize, patience: Duration) {
    let began = Instant::now();
    while records(broker).await.len() < count {
        assert!(began.elapsed() < patience, "{} of {count} jobs have ended", records(broker).await.len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let records = records(broker).await;
    let mut ids: Vec<_> = records.iter().map(|record| record.id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!((ids.len(), records.len()), (count, count), "one record for each job");
    assert!(records.iter().all(|record| record.end == End::Succeeded), "{records:?}");
}
