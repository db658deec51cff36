//! A RabbitMQ with a ledger beside it, as a storm has it: killed, stopped, cut off and starved, and looked through
//! afterwards.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use promptq_common::broker::{Access, Beside};
use promptq_common::store::Store;
use tokio::task::JoinSet;

use super::trouble::Trouble;
use crate::proxy::{Network, Proxy};
use crate::rabbit::{Alarm, Options as RabbitOptions, QueueSeen, RabbitServer, RawClient, VirtualHost};
use crate::redis::{Options as RedisOptions, RedisServer};

/// The results of the standard queue.
const RESULTS: &str = "pq1.results.default";
/// Short, so that a stopped server is missed soon; see [`Trouble::length`].
pub(super) const HEARTBEAT: Duration = Duration::from_secs(5);

/// What keeps the records beside RabbitMQ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ledger {
    /// A Redis of its own, with every write on the disk before it is answered.
    Redis,
    /// A file of this host.
    Sqlite,
    /// Object storage, which is a folder of this host here.
    Store,
}

/// Both of them, and the network between the workers and RabbitMQ.
#[derive(Debug)]
pub(super) struct Rabbit {
    server: Arc<Mutex<RabbitServer>>,
    host: VirtualHost,
    proxy: Proxy,
    ledger: Beyond,
    /// A server that starts again, while the storm goes on.
    mending: JoinSet<()>,
}

#[derive(Debug)]
enum Beyond {
    Redis(Box<RedisServer>),
    Sqlite(String),
    Store { url: String, store: Store },
}

impl Rabbit {
    pub(super) async fn start(ledger: Ledger, home: &Path) -> Self {
        let server = tokio::task::block_in_place(|| RabbitServer::start(RabbitOptions::new()));
        let (host, proxy) = (server.host(), Proxy::before(server.port()).await);
        let ledger = match ledger {
            Ledger::Redis => Beyond::Redis(Box::new(RedisServer::start(RedisOptions::durable()))),
            Ledger::Sqlite => Beyond::Sqlite(format!("sqlite://{}", home.join("ledger.db").display())),
            Ledger::Store => {
                let url = format!("file://{}", home.join("store").display());
                let store = Store::open(&url).await.expect("a folder");
                Beyond::Store { url, store }
            }
        };
        let server = Arc::new(Mutex::new(server));
        Self { server, host, proxy, ledger, mending: JoinSet::new() }
    }

    /// Past the network that the workers go through.
    pub(super) fn access(&self) -> anyhow::Result<Access> {
        let beside = match &self.ledger {
            Beyond::Redis(server) => Beside::Ledger(Box::new(Access::new(&server.url())?)),
            Beyond::Sqlite(url) => Beside::Ledger(Box::new(Access::new(url)?)),
            Beyond::Store { store, .. } => Beside::Store(store.clone()),
        };
        Ok(Access { beside, ..Access::new(&self.host.url())? })
    }

    /// What tells workers where everything is.
    pub(super) fn environment(&self) -> Vec<(&'static str, String)> {
        let broker = format!("{}?heartbeat={}s", self.host.url_through(self.proxy.port()), HEARTBEAT.as_secs());
        let ledger = match &self.ledger {
            Beyond::Redis(server) => vec![("PROMPTQ_LEDGER", server.url())],
            Beyond::Sqlite(url) => vec![("PROMPTQ_LEDGER", url.clone())],
            Beyond::Store { url, .. } => vec![("PROMPTQ_LEDGER", "store".to_owned()), ("PROMPTQ_STORE", url.clone())],
        };
        [vec![("PROMPTQ_BROKER", broker)], ledger].concat()
    }

    pub(super) fn begin(&mut self, trouble: Trouble) {
        match trouble {
            Trouble::Kill => {
                let server = Arc::clone(&self.server);
                self.mending.spawn_blocking(move || server.lock().unwrap_or_else(PoisonError::into_inner).restart());
            }
            Trouble::Pause => self.server().pause(),
            Trouble::Cut => self.proxy.set(Network::Cut),
            Trouble::Alarm => self.server().raise(Alarm::Memory),
        }
    }

    pub(super) fn end(&mut self, trouble: Trouble) {
        match trouble {
            Trouble::Kill => {}
            Trouble::Pause => self.server().resume(),
            Trouble::Cut => self.proxy.set(Network::Whole),
            Trouble::Alarm => self.server().clear(Alarm::Memory),
        }
    }

    pub(super) async fn rests(&self, patience: Duration) {
        let begun = Instant::now();
        let is_busy = |queue: QueueSeen| queue.name != RESULTS && (queue.ready, queue.unacked) != (0, 0);
        while begun.elapsed() < patience && tokio::task::block_in_place(|| self.host.queues()).into_iter().any(is_busy)
        {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Messages that are left over, and jobs whose result was never announced.
    pub(super) async fn faults(&mut self, jobs: u64) -> Vec<String> {
        while self.mending.join_next().await.is_some() {}
        let mut faults = Vec::new();
        for queue in tokio::task::block_in_place(|| self.host.queues()) {
            if queue.name != RESULTS && (queue.ready, queue.unacked) != (0, 0) {
                faults.push(format!("{} holds {} ready and {} unacked", queue.name, queue.ready, queue.unacked));
            }
            if queue.name.starts_with("pq1.hold.") {
                faults.push(format!("{} is still there", queue.name));
            }
        }
        let announced = RawClient::connect(&self.host.url()).await.drain(RESULTS).await;
        let distinct: HashSet<_> = announced.iter().collect();
        if distinct.len() as u64 != jobs {
            faults.push(format!("{} jobs were announced, {jobs} have ended", distinct.len()));
        }
        if let Beyond::Redis(server) = &self.ledger {
            faults.extend(server.faults());
        }
        faults
    }

    fn server(&self) -> MutexGuard<'_, RabbitServer> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
