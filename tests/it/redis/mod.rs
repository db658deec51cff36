//! A subscription and its leases on Redis, watched from the server's side: what happens to jobs when an answer is lost,
//! who is woken, and how many calls it takes.

mod book;
mod gather;
mod source;

use std::sync::Arc;
use std::time::Duration;

use promptq_common::broker::redis::Redis;
use promptq_common::broker::{Access, Backend, Broker, Claim, RawDelivery, Source};
use promptq_common::job::{JobId, Queue};
use promptq_tests::backends::terms;
use promptq_tests::proxy::{Network, Proxy};
use promptq_tests::redis::{Options, RedisServer, Reply};
use promptq_tests::steps::{eventually, want};
use tokio::task::JoinHandle;

/// A server, a way to it through a network in trouble, and a sound one beside it.
struct Setup {
    server: RedisServer,
    proxy: Proxy,
    /// Through the proxy.
    shaky: Redis,
    /// Straight to the server.
    broker: Broker,
    backend: Arc<Redis>,
}

impl Setup {
    async fn new() -> Self {
        let server = RedisServer::start(Options::cheap());
        let proxy = Proxy::before(server.port()).await;
        let shaky = connect(&format!("redis://127.0.0.1:{}", proxy.port())).await;
        let backend = Arc::new(connect(&server.url()).await);
        let broker = Broker::new(Arc::clone(&backend) as Arc<dyn Backend>, Arc::clone(&backend) as _);
        Self { server, proxy, shaky, broker, backend }
    }

    /// A subscription through the proxy that knows the lanes there are.
    async fn shaky_source(&self, lease: Duration) -> Box<dyn Source> {
        subscription(&self.shaky, &[Queue::standard()], lease).await
    }

    /// What runs now.
    async fn running(&self) -> u64 {
        self.broker.depth(&Queue::standard()).await.unwrap().running
    }

    /// Until the server has leased so many.
    async fn until_running(&self, count: u64) {
        eventually("so many are leased", || async { (self.running().await == count).then_some(()) }).await;
    }

    /// Until so many wait at the server for tokens.
    async fn until_waiting(&self, count: usize) {
        let wanted = format!("blocked_clients:{count}");
        eventually("so many wait for tokens", || async {
            let said = self.server.must(&["INFO", "clients"]).text();
            said.lines().any(|line| line.trim() == wanted).then_some(())
        })
        .await;
    }

    /// Takes the next token of the standard queue from those who come later to wait for it.
    async fn steal_a_token(&self) -> JoinHandle<Reply> {
        let mut connection = self.server.connection().unwrap();
        let thief = tokio::task::spawn_blocking(move || {
            connection.call(&["BLPOP", "{pq:default}:wake", "15"]).expect("a token within 15 s")
        });
        self.until_waiting(1).await;
        thief
    }

    /// How often the server was asked to run a script since [`Setup::count_anew`].
    fn calls(&self) -> u64 {
        let said = self.server.must(&["INFO", "commandstats"]).text();
        let after = said.split_once("cmdstat_evalsha:calls=").map_or("0", |(_, after)| after);
        after.split(',').next().unwrap().parse().unwrap()
    }

    fn count_anew(&self) {
        self.server.must(&["CONFIG", "RESETSTAT"]);
    }
}

async fn connect(url: &str) -> Redis {
    Redis::connect(&Access::new(url).unwrap()).await.unwrap()
}

/// A subscription that has looked once, so that it knows the lanes there are.
async fn subscription(redis: &Redis, queues: &[Queue], lease: Duration) -> Box<dyn Source> {
    let queues: Vec<_> = queues.iter().map(|queue| (queue.clone(), 1)).collect();
    let mut source = redis.subscribe(terms(&queues, lease)).await.unwrap();
    source.next(&want(0)).await.unwrap();
    source
}

fn ids(jobs: &[RawDelivery]) -> Vec<JobId> {
    jobs.iter().map(|job| job.head.id).collect()
}

/// None of them ever counted as lost.
async fn are_fresh(jobs: &[RawDelivery]) {
    for job in jobs {
        assert_eq!(job.hold.claim().await.unwrap(), Claim::Fresh { deaths: 0 });
    }
}

/// Delivers requests until the server has done what they ask for, then cuts the connections before it can be heard.
async fn eat_the_answer(setup: &Setup, done: impl Future<Output = ()>) {
    done.await;
    setup.proxy.set(Network::Cut);
}
