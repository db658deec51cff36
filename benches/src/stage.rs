//! The brokers that contestants meet on: private, empty at the start, with their accounts. RabbitMQ itself is started once
//! for a contest, and each contestant has a virtual host of its own, with a Redis beside it for records and results.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{anyhow, ensure};
use promptq_common::broker::amqp::QueueType;
use promptq_common::broker::{Access, Beside};
use rusqlite::{OpenFlags, OptionalExtension as _};
use tempfile::TempDir;

use crate::machine::said;
use crate::process::{Home, LOOK, PATIENCE, Running};
use crate::rabbit::{self, RabbitServer, VirtualHost};
use crate::redis::{Connection, Options, RedisServer, Reply};

/// A kind of broker, with how surely it keeps what it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Redis, `appendfsync everysec`.
    Redis,
    /// Redis, `appendfsync always`.
    RedisAlways,
    /// RabbitMQ's quorum queues on one node.
    Quorum,
    /// RabbitMQ's classic queues.
    Classic,
    /// An SQLite file, `synchronous = FULL`.
    Sqlite,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Redis, Self::RedisAlways, Self::Quorum, Self::Classic, Self::Sqlite];

    /// What its contest is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::RedisAlways => "redis-always",
            Self::Quorum => "quorum",
            Self::Classic => "classic",
            Self::Sqlite => "sqlite",
        }
    }

    fn is_rabbit(self) -> bool {
        matches!(self, Self::Quorum | Self::Classic)
    }
}

/// Where stages of one kind are set up.
#[derive(Debug)]
pub(crate) struct Hall {
    pub(crate) kind: Kind,
    rabbit: Option<RabbitServer>,
}

impl Hall {
    pub(crate) fn open(kind: Kind) -> Self {
        Self { kind, rabbit: kind.is_rabbit().then(|| RabbitServer::start(rabbit::Options::new())) }
    }

    /// An empty one.
    pub(crate) fn stage(&self) -> anyhow::Result<Stage> {
        let place = match (&self.rabbit, self.kind) {
            (Some(server), _) => {
                let host = server.host();
                Place::Rabbit { pid: server.pid(), host, ledger: Watched::start(Options::every_second())? }
            }
            (None, Kind::Sqlite) => Place::File(TempDir::new()?),
            (None, Kind::RedisAlways) => Place::Redis(Watched::start(Options::durable())?),
            (None, _) => Place::Redis(Watched::start(Options::every_second())?),
        };
        Ok(Stage { kind: self.kind, place })
    }
}

/// A broker with nothing in it, gone with this value.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) kind: Kind,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Redis(Watched),
    Rabbit { host: VirtualHost, pid: u32, ledger: Watched },
    File(TempDir),
}

/// A server, and a connection of its own to look at it without a login each time.
#[derive(Debug)]
struct Watched {
    server: RedisServer,
    connection: std::cell::RefCell<Connection>,
}

impl Watched {
    /// One that never rewrites its file meanwhile.
    fn start(options: Options) -> anyhow::Result<Self> {
        let server = RedisServer::start(options.with("auto-aof-rewrite-percentage 0"));
        let connection = server.connection().map_err(|why| anyhow!("{why:?}"))?;
        Ok(Self { server, connection: connection.into() })
    }

    fn call(&self, words: &[&str]) -> anyhow::Result<Reply> {
        self.connection.borrow_mut().call(words).map_err(|why| anyhow!("{words:?}: {why:?}"))
    }

    /// Processor time of all its threads, in seconds.
    fn cpu(&self) -> anyhow::Result<f64> {
        let info = self.call(&["INFO", "cpu"])?.text();
        let of = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
        Ok(of("used_cpu_sys:").unwrap_or(0.0) + of("used_cpu_user:").unwrap_or(0.0))
    }

    /// How many records promptq has written there.
    fn ended(&self) -> anyhow::Result<u64> {
        let cursor = self.call(&["HGET", "{pq:default}:c", "cursor"])?;
        if cursor == Reply::Nil { Ok(0) } else { Ok(u64::try_from(cursor.number())?) }
    }
}

impl Stage {
    /// Where the broker is; of a file, in the form that promptq and the peers share.
    pub(crate) fn url(&self) -> String {
        match &self.place {
            Place::Redis(redis) => redis.server.url(),
            Place::Rabbit { host, .. } => host.url(),
            Place::File(_) => format!("sqlite://{}", self.file().display()),
        }
    }

    /// The Redis beside RabbitMQ.
    pub(crate) fn ledger(&self) -> Option<String> {
        match &self.place {
            Place::Rabbit { ledger, .. } => Some(ledger.server.url()),
            Place::Redis(_) | Place::File(_) => None,
        }
    }

    /// Its Redis, for measures that do something to it.
    pub(crate) fn redis(&mut self) -> Option<&mut RedisServer> {
        match &mut self.place {
            Place::Redis(redis) | Place::Rabbit { ledger: redis, .. } => Some(&mut redis.server),
            Place::File(_) => None,
        }
    }

    /// Which queues RabbitMQ is to make, as programs are told.
    pub(crate) fn queue(&self) -> Option<&'static str> {
        self.kind.is_rabbit().then(|| self.kind.name())
    }

    /// Processor time of its servers so far, in seconds.
    pub(crate) fn cpu(&self) -> anyhow::Result<f64> {
        match &self.place {
            Place::Redis(redis) => redis.cpu(),
            Place::Rabbit { pid, ledger, .. } => Ok(crate::process::time_of(*pid)? + ledger.cpu()?),
            Place::File(_) => Ok(0.0),
        }
    }

    /// As [`Stage::home`], for promptq as a library.
    pub(crate) fn access(&self) -> anyhow::Result<Access> {
        let mut access = Access::new(&self.url())?;
        if let Some(ledger) = self.ledger() {
            access.beside = Beside::Ledger(Box::new(Access::new(&ledger)?));
        }
        if self.kind == Kind::Classic {
            access.amqp.queues = QueueType::Classic;
        }
        Ok(access)
    }

    /// A home whose promptq uses this broker.
    pub(crate) fn home(&self, config: &str) -> anyhow::Result<Home> {
        let mut environment = vec![("PROMPTQ_BROKER".to_owned(), self.url())];
        if let (Some(ledger), Some(queue)) = (self.ledger(), self.queue()) {
            environment.push(("PROMPTQ_LEDGER".to_owned(), ledger));
            environment.push(("PROMPTQ__BROKER__QUEUE_TYPE".to_owned(), queue.to_owned()));
        }
        Home::new(config, environment)
    }

    /// Waits until so many of promptq's jobs have a record while this worker runs; how many have by now.
    pub(crate) async fn until_ended(&self, jobs: u64, worker: &mut Running) -> anyhow::Result<u64> {
        let began = Instant::now();
        let mut reader = None;
        loop {
            let ended = match &self.place {
                Place::Redis(redis) | Place::Rabbit { ledger: redis, .. } => redis.ended()?,
                Place::File(_) => self.records(&mut reader)?,
            };
            if ended >= jobs {
                return Ok(ended);
            }
            ensure!(!worker.has_left()?, "the worker has left: {}", worker.tail());
            ensure!(began.elapsed() < PATIENCE, "{ended} of {jobs} jobs have ended");
            tokio::time::sleep(LOOK).await;
        }
    }

    fn file(&self) -> PathBuf {
        match &self.place {
            Place::File(folder) => folder.path().join("q.db"),
            Place::Redis(_) | Place::Rabbit { .. } => PathBuf::new(),
        }
    }

    /// Those in the file.
    fn records(&self, reader: &mut Option<rusqlite::Connection>) -> anyhow::Result<u64> {
        let connection = match reader {
            Some(connection) => connection,
            None => reader.insert(rusqlite::Connection::open_with_flags(
                self.file(),
                OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
            )?),
        };
        let mut newest = connection.prepare_cached("SELECT seq FROM record ORDER BY seq DESC LIMIT 1")?;
        Ok(u64::try_from(newest.query_row([], |row| row.get::<_, i64>(0)).optional()?.unwrap_or(0))?)
    }
}

/// What the servers here call themselves.
pub(crate) fn versions(kind: Kind) -> Vec<(String, String)> {
    let redis = || {
        let text = said("redis-server", &["--version"]);
        let version = text.split_whitespace().find_map(|word| word.strip_prefix("v=")).unwrap_or("unknown").to_owned();
        ("redis".to_owned(), version)
    };
    match kind {
        Kind::Redis | Kind::RedisAlways => vec![redis()],
        Kind::Quorum | Kind::Classic => vec![redis(), ("rabbitmq".to_owned(), rabbit_version())],
        Kind::Sqlite => vec![("sqlite".to_owned(), rusqlite::version().to_owned())],
    }
}

/// From where the package puts it: to ask the program takes a second and a running server.
fn rabbit_version() -> String {
    let folders = std::fs::read_dir("/usr/lib/rabbitmq/lib").into_iter().flatten().flatten();
    let names = folders.map(|folder| folder.file_name().to_string_lossy().into_owned());
    names.filter_map(|name| Some(name.strip_prefix("rabbitmq_server-")?.to_owned())).max().unwrap_or_default()
}
