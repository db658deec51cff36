//! RabbitMQ as a broker for one case: a virtual host of its own on the server that tests share, and a ledger of its own
//! beside it. What a case may do to it is `backends/mod.rs`'s affair.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use promptq_common::broker::amqp::{Amqp, QueueType, Settings};
use promptq_common::broker::redis::Redis;
use promptq_common::broker::sqlite::Sqlite;
use promptq_common::broker::{self, Access, Backend, Broker, Terms, WorkerId};
use promptq_common::ledger::Claims;
use promptq_common::ledger::object::{Ages, ObjectLedger};
use tempfile::TempDir;

use crate::proxy::{Network, Proxy};
use crate::rabbit::{RabbitServer, VirtualHost};
use crate::redis::{Options, RedisServer};
use crate::s3::{self, S3};
use crate::steps::{PATIENCE, Worker};

/// Short enough that a test can wait for several.
const LEVELS: [Duration; 4] =
    [Duration::from_millis(20), Duration::from_millis(100), Duration::from_millis(500), Duration::from_secs(2)];

/// RabbitMQ and its ledger.
#[derive(Debug)]
pub struct Carrier {
    /// Where its queues are.
    pub host: VirtualHost,
    server: RabbitServer,
    /// Of which type its queues are.
    pub queues: QueueType,
    beside: Beside,
    /// The networks between workers and the server.
    lines: Mutex<HashMap<WorkerId, Proxy>>,
}

/// What keeps the records.
#[derive(Debug)]
enum Beside {
    Redis(RedisServer),
    Sqlite(TempDir),
    Folder(TempDir),
    Bucket { url: String, settings: Vec<(&'static str, String)>, _server: Arc<S3> },
}

impl Carrier {
    /// With a ledger on a Redis of its own, which keeps nothing over a restart.
    pub fn with_redis(queues: QueueType) -> Self {
        Self::over(queues, Beside::Redis(RedisServer::start(Options::cheap())))
    }

    /// With a ledger in a SQLite file.
    pub fn with_sqlite(queues: QueueType) -> Self {
        Self::over(queues, Beside::Sqlite(TempDir::new().expect("a temporary folder")))
    }

    /// With a ledger in object storage, which is a local folder here.
    pub fn with_folder(queues: QueueType) -> Self {
        Self::over(queues, Beside::Folder(TempDir::new().expect("a temporary folder")))
    }

    /// With a ledger in object storage, in a bucket of its own on this server.
    pub async fn with_bucket(queues: QueueType, server: &Arc<S3>) -> Self {
        let (url, settings) = (server.bucket().await, server.settings());
        Self::over(queues, Beside::Bucket { url, settings, _server: Arc::clone(server) })
    }

    fn over(queues: QueueType, beside: Beside) -> Self {
        let server = RabbitServer::shared();
        Self { host: server.host(), server, queues, beside, lines: Mutex::default() }
    }

    /// A connection of its own to both.
    pub async fn connect(&self) -> (Arc<dyn Backend>, Arc<dyn Claims>) {
        self.connect_through(self.server.port()).await
    }

    async fn connect_through(&self, port: u16) -> (Arc<dyn Backend>, Arc<dyn Claims>) {
        let claims = self.ledger().await;
        let access = access(&self.host.url_through(port), &self.ledger_url(), self.settings(), self.queues).await;
        let amqp = Amqp::connect(&access, Arc::clone(&claims)).await;
        let amqp = amqp.unwrap_or_else(|error| panic!("connects: {error:?}\n{}", self.server.log()));
        (Arc::new(amqp), claims)
    }

    /// A connection with the settings that programs have as they come.
    pub async fn as_people_do(&self) -> Broker {
        let ledger = Access::new(&self.ledger_url()).expect("an address");
        let beside = broker::Beside::Ledger(Box::new(ledger));
        let access = Access { beside, ..Access::new(&self.host.url()).expect("an address") };
        Broker::connect(&access).await.expect("connects")
    }

    /// Whether its ledger can say that a job is taken.
    pub fn claims(&self) -> bool {
        !matches!(self.beside, Beside::Folder(_) | Beside::Bucket { .. })
    }

    /// The ledger's address.
    pub fn ledger_url(&self) -> String {
        match &self.beside {
            Beside::Redis(server) => server.url_of("promptq"),
            Beside::Sqlite(folder) => format!("sqlite://{}", folder.path().join("ledger.db").display()),
            Beside::Folder(folder) => format!("file://{}", folder.path().display()),
            Beside::Bucket { url, .. } => url.clone(),
        }
    }

    /// What a client of the ledger is told besides; in capitals, the variables of a process.
    pub fn settings(&self) -> &[(&'static str, String)] {
        if let Beside::Bucket { settings, .. } = &self.beside { settings } else { &[] }
    }

    /// The ledger, over a connection of its own.
    async fn ledger(&self) -> Arc<dyn Claims> {
        match &self.beside {
            Beside::Redis(_) => {
                let access = Access::new(&self.ledger_url()).expect("an address");
                Arc::new(Redis::connect(&access).await.expect("connects"))
            }
            Beside::Sqlite(folder) => {
                let path = folder.path().join("ledger.db");
                Arc::new(Sqlite::open(&path).await.expect("the file opens"))
            }
            Beside::Folder(_) | Beside::Bucket { .. } => {
                let store = s3::open(&self.ledger_url(), self.settings()).await;
                Arc::new(ObjectLedger::open_with(store, Ages::NONE).await.expect("a store that can be written to"))
            }
        }
    }

    /// A worker with connections of its own, as a process has them.
    pub async fn worker(&self, terms: Terms) -> Worker {
        let line = Proxy::before(self.server.port()).await;
        let (backend, ledger) = self.connect_through(line.port()).await;
        let worker = Worker::on(&Broker::new(backend, ledger), terms).await;
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).insert(worker.id.clone(), line);
        worker
    }

    /// Breaks the connections of a worker, once; what it had goes back. It may connect again.
    pub async fn cut(&self, worker: &WorkerId) {
        let before = self.host.connections();
        let line = self.lines.lock().unwrap_or_else(PoisonError::into_inner).remove(worker).expect("a worker of ours");
        line.set(Network::Cut);
        let start = Instant::now();
        while self.host.connections() + 2 > before {
            assert!(start.elapsed() < PATIENCE, "RabbitMQ does not notice that a worker is gone");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        line.set(Network::Whole);
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).insert(worker.clone(), line);
    }

    /// What does not fit together; empty is good.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = match &self.beside {
            Beside::Redis(server) => server.faults(),
            Beside::Sqlite(_) | Beside::Folder(_) | Beside::Bucket { .. } => Vec::new(),
        };
        let (ready, unacked) = self.host.counts("pq1.dead");
        if ready + unacked > 0 {
            faults.push(format!("{} messages were thrown out of their lanes", ready + unacked));
        }
        faults
    }
}

/// Access to RabbitMQ with a ledger beside it (`file://` and `s3://` are stores, the latter with `settings`), and delays
/// as short as tests can wait for.
///
/// # Panics
/// When one of them is no address.
pub async fn access(url: &str, ledger: &str, settings: &[(&'static str, String)], queues: QueueType) -> Access {
    let mut access = Access::new(url).expect("an address");
    access.beside = if ledger.starts_with("file://") || ledger.starts_with("s3://") {
        broker::Beside::Store(s3::open(ledger, settings).await)
    } else {
        broker::Beside::Ledger(Box::new(Access::new(ledger).expect("an address")))
    };
    access.amqp = Settings { queues, levels: LEVELS.to_vec(), ..Settings::default() };
    access
}
