//! A small installation on RabbitMQ for fault tests: a server, a Redis that keeps its records, a provider that counts
//! its calls, and worker processes around them. Its parts but for RabbitMQ are `site.rs`.

use std::ops::{Deref, RangeInclusive};
use std::time::{Duration, Instant};

use promptq_common::broker::{Access, Beside, Broker};

use crate::rabbit::{QueueSeen, RabbitServer, VirtualHost};
use crate::redis;
use crate::site::{PATIENCE, Setup, Site, until};

/// A connection that is silent for twice as long is given up.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// Where results of the standard queue are announced.
pub const RESULTS: &str = "pq1.results.default";
/// Where jobs of the standard queue wait.
pub const LANE: &str = "pq1.q.default._.normal";

/// The installation; everything in it ends with it. The Redis of its [`Site`] is the ledger.
#[derive(Debug)]
pub struct Farm {
    /// Where the queues are.
    pub host: VirtualHost,
    /// Carries the jobs.
    pub rabbit: RabbitServer,
    site: Site,
}

impl Farm {
    /// On the server that tests share, with calls that take so many milliseconds.
    ///
    /// # Panics
    /// When something of it does not come up; so do its other calls.
    pub async fn shared(latency: RangeInclusive<u64>) -> Self {
        Self::over(tokio::task::block_in_place(RabbitServer::shared), latency).await
    }

    /// On a server of its own, for tests that do something to it.
    pub async fn private(latency: RangeInclusive<u64>) -> Self {
        Self::over(tokio::task::block_in_place(|| RabbitServer::start(crate::rabbit::Options::new())), latency).await
    }

    async fn over(rabbit: RabbitServer, latency: RangeInclusive<u64>) -> Self {
        Self { host: rabbit.host(), rabbit, site: Site::new(redis::Options::durable(), latency).await }
    }

    /// Both, for this process.
    pub async fn broker(&self) -> Broker {
        let beside = Beside::Ledger(Box::new(Access::new(&self.site.server.url()).expect("an address")));
        let access = Access { beside, ..Access::new(&self.host.url()).expect("an address") };
        Broker::connect(&access).await.expect("connects")
    }

    /// The ledger alone, whatever becomes of RabbitMQ.
    pub async fn ledger(&self) -> Broker {
        self.site.broker().await
    }

    /// A worker of one slot that holds its leases for long.
    pub fn setup(&self) -> Setup {
        self.setup_through(self.rabbit.port())
    }

    /// The same, through a proxy on this port.
    pub fn setup_through(&self, port: u16) -> Setup {
        let url = format!("{}?heartbeat={}s", self.host.url_through(port), HEARTBEAT.as_secs());
        let environment = vec![("PROMPTQ_LEDGER".to_owned(), self.site.server.url())];
        Setup { url, environment, ..self.site.setup() }
    }

    /// `promptq` on it.
    pub fn promptq(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = self.site.promptq(arguments);
        command.env("PROMPTQ_BROKER", self.host.url()).env("PROMPTQ_LEDGER", self.site.server.url());
        command
    }

    /// Kills RabbitMQ with -9 and starts it again on its data.
    pub fn restart(&mut self) {
        tokio::task::block_in_place(|| self.rabbit.restart());
    }

    /// The ledger's server, for tests that do something to it.
    pub fn redis(&mut self) -> &mut redis::RedisServer {
        &mut self.site.server
    }

    /// Waits until no message is left but the announcements: none waits, none is delayed, none is with a worker.
    pub async fn tidy(&self) {
        let left = || -> Vec<QueueSeen> {
            let queues = tokio::task::block_in_place(|| self.host.queues()).into_iter();
            queues.filter(|queue| queue.name != RESULTS && queue.ready + queue.unacked > 0).collect()
        };
        let began = Instant::now();
        loop {
            let left = left();
            if left.is_empty() {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "left over: {left:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until a queue has this many messages, ready and with workers.
    pub async fn until_queue(&self, name: &str, ready: u64, unacked: u64) {
        until(&format!("{name} holds {ready} ready and {unacked} unacked"), async || {
            let seen = tokio::task::block_in_place(|| self.host.queue(name));
            seen.filter(|seen| (seen.ready, seen.unacked) == (ready, unacked)).map(drop)
        })
        .await;
    }
}

impl Deref for Farm {
    type Target = Site;

    fn deref(&self) -> &Site {
        &self.site
    }
}
