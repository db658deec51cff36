//! One fresh broker per test, on each backend, and what the test may do to it. One more is named in `it/conformance/mod.rs`.

mod carried;
mod second;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use promptq_common::broker::memory::Memory;
use promptq_common::broker::redis::Redis;
use promptq_common::broker::sqlite::Sqlite;
use promptq_common::broker::{Access, Backend, Broker, Source, Terms, WorkerId};
use promptq_common::job::{ModelName, Queue};
use promptq_common::ledger::object::{Ages, ObjectLedger};
use promptq_common::ledger::{Claims, Ledger};
use promptq_common::store::Store;
use rand::RngExt;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::carrier::Carrier;
use crate::fixture::release;
use crate::redis::{Options, RedisServer};
use crate::steps::{PATIENCE, Worker, eventually, want};

/// A lease short enough to be waited out.
pub const SHORT: Duration = Duration::from_millis(300);

/// A lease no test outlives.
pub const LONG: Duration = Duration::from_secs(60);

/// A broker that only this test knows.
#[derive(Debug)]
pub struct Fixture {
    /// The facade, as everybody else holds it.
    pub broker: Broker,
    /// Below the facade, for what it makes impossible: unreadable payloads, settling twice.
    pub backend: Arc<dyn Backend>,
    /// The ledger as another broker writes into it, where it can serve one.
    pub claims: Option<Arc<dyn Claims>>,
    home: Home,
}

/// Where the data is.
#[derive(Debug)]
enum Home {
    Memory,
    Sqlite(TempDir),
    Redis { server: RedisServer, _flushing: JoinSet<()> },
    Rabbit(Box<Carrier>),
    Objects { store: Store, _folder: Option<TempDir> },
}

impl Fixture {
    /// On the memory backend.
    pub async fn memory() -> Self {
        let memory = Arc::new(Memory::new());
        let claims: Arc<dyn Claims> = Arc::clone(&memory) as Arc<dyn Claims>;
        let fixture = Self::over(Arc::clone(&memory) as Arc<dyn Backend>, memory, Some(claims), Home::Memory);
        std::future::ready(fixture).await
    }

    /// On the embedded backend, in a folder that goes with the fixture.
    pub async fn sqlite() -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let sqlite = Arc::new(Sqlite::open(&folder.path().join("q.db")).await.expect("a fresh file opens"));
        let claims: Arc<dyn Claims> = Arc::clone(&sqlite) as Arc<dyn Claims>;
        Self::over(Arc::clone(&sqlite) as Arc<dyn Backend>, sqlite, Some(claims), Home::Sqlite(folder))
    }

    /// On a Redis of its own. It keeps nothing over a restart: what is tested here are the steps, not the disk.
    pub async fn redis() -> Self {
        Self::on_redis(JoinSet::new(), RedisServer::start(Options::cheap())).await
    }

    /// On a Redis that forgets every script that was loaded, every few milliseconds.
    pub async fn redis_flushed() -> Self {
        let server = RedisServer::start(Options::cheap());
        let mut connection = server.connection().expect("a server that answers");
        let mut flushing = JoinSet::new();
        flushing.spawn(async move {
            while connection.call(&["SCRIPT", "FLUSH"]).is_ok() {
                let deadline = Instant::now() + Duration::from_micros(rand::rng().random_range(0..5_000));
                tokio::time::sleep_until(deadline).await;
            }
        });
        Self::on_redis(flushing, server).await
    }

    /// Messages of nowhere over a ledger in object storage, which is asked anew each time. There is no broker: what is
    /// below the facade is an empty memory.
    pub async fn object_memory() -> Self {
        Self::on_objects(Store::memory()).await
    }

    /// The same in a local folder.
    pub async fn object_folder() -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let store = Store::open(&format!("file://{}", folder.path().display())).await.expect("a folder");
        Self::over_objects(store, Some(folder)).await
    }

    /// The same over this store.
    pub async fn on_objects(store: Store) -> Self {
        Self::over_objects(store, None).await
    }

    async fn over_objects(store: Store, folder: Option<TempDir>) -> Self {
        let ledger = Arc::new(objects(&store).await);
        let claims: Arc<dyn Claims> = Arc::clone(&ledger) as Arc<dyn Claims>;
        Self::over(Arc::new(Memory::new()), ledger, Some(claims), Home::Objects { store, _folder: folder })
    }

    async fn on_redis(flushing: JoinSet<()>, server: RedisServer) -> Self {
        let redis = Arc::new(redis(&server).await);
        let home = Home::Redis { server, _flushing: flushing };
        let claims: Arc<dyn Claims> = Arc::clone(&redis) as Arc<dyn Claims>;
        Self::over(Arc::clone(&redis) as Arc<dyn Backend>, redis, Some(claims), home)
    }

    fn over(backend: Arc<dyn Backend>, ledger: Arc<dyn Ledger>, claims: Option<Arc<dyn Claims>>, home: Home) -> Self {
        Self { broker: Broker::new(Arc::clone(&backend), ledger), backend, claims, home }
    }

    /// Whether what waits can be looked at from the first: when it is due, its payload, how many jobs of it there are.
    /// RabbitMQ keeps messages: its ledger knows a job that has a key or a batch, and everything else of it once it is
    /// met; messages of ended jobs are counted until then.
    pub fn sees_waiting(&self) -> bool {
        !self.is_carried()
    }

    /// Whether one call leases all that it may. RabbitMQ's gives what has been delivered by then, more with each call.
    pub fn leases_at_once(&self) -> bool {
        !self.is_carried()
    }

    /// Whether a claim says what is so when it is asked; on RabbitMQ, what was so when the job was handed out. A beat
    /// says what is so now.
    pub fn claims_when_asked(&self) -> bool {
        !self.is_carried()
    }

    /// Whether a job that is given back goes ahead of its lane. On RabbitMQ it goes behind what workers hold already.
    pub fn keeps_order(&self) -> bool {
        !self.is_carried()
    }

    /// Whether a worker's first death counts. Object storage learns of it only when the message comes again.
    pub fn counts_first_death(&self) -> bool {
        !matches!(&self.home, Home::Objects { .. }) && !matches!(&self.home, Home::Rabbit(carrier) if !carrier.claims())
    }

    /// Whether released jobs can be woken. On RabbitMQ they come back by themselves.
    pub fn wakes_holds(&self) -> bool {
        !self.is_carried()
    }

    fn is_carried(&self) -> bool {
        matches!(self.home, Home::Rabbit(_))
    }

    /// Gives these models lanes of their own where they have none otherwise.
    pub async fn declare(&self, models: &[&str]) {
        let models: Vec<_> = models.iter().map(|model| ModelName::new(model)).collect();
        self.broker.declare(&Queue::standard(), &models, false).await.expect("declares");
    }

    /// Waits until RabbitMQ has back what workers that are gone had, when there is nobody else.
    pub async fn all_given_back(&self) {
        if let Home::Rabbit(carrier) = &self.home {
            let given_back = || async {
                let back = carrier.host.gone_consumers() == 0 && carrier.host.counts("pq1.q.").1 == 0;
                back.then_some(())
            };
            eventually("RabbitMQ has every message back", given_back).await;
        }
    }

    /// Waits until the standard queue holds so many jobs ready, delayed, running and dead: at once, save where messages
    /// of ended jobs have to be met by a worker first.
    pub async fn depth_is(&self, expected: [u64; 4]) {
        let depth = async || {
            let depth = self.broker.depth(&Queue::standard()).await.expect("counts");
            [depth.ready, depth.delayed, depth.running, depth.dead]
        };
        if self.sees_waiting() {
            return assert_eq!(depth().await, expected, "ready, delayed, running, dead");
        }
        let start = Instant::now();
        while depth().await != expected {
            assert!(
                start.elapsed() < PATIENCE,
                "{:?} are ready, delayed, running, dead, not {expected:?}",
                depth().await
            );
            let mut worker = self.worker().await;
            for delivery in worker.consumer.next(&want(100)).await.expect("leases").deliveries {
                delivery.lease.settle(release()).await.expect("gives back what has not ended");
            }
            worker.consumer.close().await.expect("closes");
        }
    }

    /// The embedded file, if there is one.
    pub fn path(&self) -> Option<PathBuf> {
        match &self.home {
            Home::Memory | Home::Redis { .. } | Home::Rabbit(_) | Home::Objects { .. } => None,
            Home::Sqlite(folder) => Some(folder.path().join("q.db")),
        }
    }

    /// What does not fit together below the facade, where the fixture can look there; empty is good.
    pub fn faults(&self) -> Vec<String> {
        match &self.home {
            _ if std::thread::panicking() => Vec::new(),
            Home::Redis { server, .. } => server.faults(),
            Home::Rabbit(carrier) => carrier.faults(),
            Home::Memory | Home::Sqlite(_) | Home::Objects { .. } => Vec::new(),
        }
    }

    /// What is known of jobs.
    pub fn ledger(&self) -> &dyn Ledger {
        self.broker.ledger()
    }

    /// A worker on the standard queue whose leases outlive the test.
    pub async fn worker(&self) -> Worker {
        self.worker_with(LONG).await
    }

    /// A worker on the standard queue whose leases run out while the test waits.
    pub async fn hasty_worker(&self) -> Worker {
        self.worker_with(SHORT).await
    }

    async fn worker_with(&self, lease: Duration) -> Worker {
        self.worker_on(&[(Queue::standard(), 1)], lease).await
    }

    /// A worker on these queues. On RabbitMQ it has a connection of its own, as a process would.
    pub async fn worker_on(&self, queues: &[(Queue, u32)], lease: Duration) -> Worker {
        match &self.home {
            Home::Rabbit(carrier) => carrier.worker(terms(queues, lease)).await,
            Home::Memory | Home::Sqlite(_) | Home::Redis { .. } | Home::Objects { .. } => {
                Worker::on(&self.broker, terms(queues, lease)).await
            }
        }
    }

    /// A worker is gone without a word: RabbitMQ, which gives messages and not leases, takes back what it had. Jobs that
    /// it ran are leased to it until that runs out or [`Broker::recover`] ends it.
    pub async fn lose(&self, worker: Worker) -> WorkerId {
        let Worker { id, consumer } = worker;
        drop(consumer);
        if let Home::Rabbit(carrier) = &self.home {
            carrier.cut(&id).await;
        }
        id
    }

    /// A subscription below the facade, on the standard queue.
    pub async fn source(&self, lease: Duration) -> Box<dyn Source> {
        self.backend.subscribe(terms(&[(Queue::standard(), 1)], lease)).await.expect("subscribes")
    }
}

/// A case is not over before everything that it left behind fits together.
impl Drop for Fixture {
    fn drop(&mut self) {
        let faults = self.faults();
        assert!(std::thread::panicking() || faults.is_empty(), "what is left does not fit together: {faults:#?}");
    }
}

async fn redis(server: &RedisServer) -> Redis {
    // With the rights that are shipped and no other: so every case shows that they are enough.
    let access = Access::new(&server.url_of("promptq")).expect("an address");
    Redis::connect(&access).await.unwrap_or_else(|error| panic!("connects: {error:?}\n{}", server.log()))
}

async fn objects(store: &Store) -> ObjectLedger {
    ObjectLedger::open_with(store.clone(), Ages::NONE).await.expect("a store that can be written to")
}

/// What a fresh worker subscribes with.
pub fn terms(queues: &[(Queue, u32)], lease: Duration) -> Terms {
    Terms { worker: WorkerId::random("test"), queues: queues.to_vec(), lease }
}

#[cfg(test)]
mod tests {
    use promptq_common::broker::Verdict;
    use promptq_common::outcome::Body;
    use promptq_common::record::{End, Output};

    use super::*;
    use crate::fixture::{batch, job_of, record, retry};
    use crate::steps::{end, put};

    #[tokio::test]
    async fn whatever_is_damaged_is_seen() {
        let server = RedisServer::start(Options::cheap());
        let broker = Broker::connect(&Access::new(&server.url()).unwrap()).await.unwrap();
        put(&broker, &(0..7).map(|_| job_of(&batch("b"))).collect::<Vec<_>>()).await;
        let mut worker = Worker::on(&broker, terms(&[(Queue::standard(), 1)], LONG)).await;
        let mut taken = worker.take(5).await;
        end(taken.pop().unwrap(), End::Succeeded).await;
        end(taken.pop().unwrap(), End::Dead).await;
        let long = taken.pop().unwrap();
        let mut success = record(&long.head, long.lease.id(), End::Succeeded);
        success.answer.as_mut().unwrap().output = Output::Inline(Body::Text("a".repeat(2_000)));
        long.lease.settle(Verdict::End(Box::new(success))).await.unwrap();
        let late = taken.pop().unwrap();
        late.lease.settle(retry(&late.head, Duration::from_secs(600))).await.unwrap();
        assert_eq!(server.faults(), [""; 0]);
        let mut seen = Vec::new();
        for damage in [
            "HINCRBY :c dead 1",
            "HINCRBY :c bytes 1",
            "HINCRBY :b:b queued 1",
            "HINCRBY :alive 0 1",
            "HINCRBY :lanes 1:mock 1",
            "RPUSH :r:9:none x",
            "ZADD :lease 1 nobody",
            "ZADD :h:limit:k 1 nobody",
            "DEL :r:1:mock",
            "DEL :delayed",
            "DEL :lease",
            "DEL :dead",
            "DEL :overdue",
            "DEL :body",
            "DEL :log:0",
            "DEL :bl:b:0",
            "DEL :o:0",
            "DEL :b:b",
        ] {
            let damage = damage.replacen(' ', " {pq:default}", 1);
            server.must(&damage.split(' ').collect::<Vec<_>>());
            let faults = server.faults();
            assert_ne!(faults, seen, "{damage}");
            seen = faults;
        }
    }
}
