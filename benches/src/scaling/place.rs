//! A broker of a measurement's own, fresh: how it is reached, and what its servers take of the machine.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, anyhow};
use promptq_common::broker::{Access, Beside};
use tempfile::TempDir;

use crate::account::number;
use crate::process::{memory_of, time_of};
use crate::rabbit::{self, RabbitServer};
use crate::redis::{self, RedisServer};

/// What stands behind the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An embedded file, `synchronous = FULL`.
    Sqlite,
    /// A Redis that writes to its disk every second.
    Redis,
    /// Quorum queues on one node, the ledger on such a Redis.
    Rabbit,
}

impl Kind {
    /// All.
    pub const ALL: [Self; 3] = [Self::Sqlite, Self::Redis, Self::Rabbit];

    /// Its word on the command line and in the figures.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Redis => "redis",
            Self::Rabbit => "rabbit",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sqlite => "SQLite",
            Self::Redis => "Redis",
            Self::Rabbit => "RabbitMQ",
        })
    }
}

impl FromStr for Kind {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> anyhow::Result<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).with_context(|| format!("no backend is called {name}"))
    }
}

/// The servers of one measurement, gone with it.
#[derive(Debug)]
pub enum Place {
    /// A file in a folder of its own.
    Sqlite(TempDir),
    /// A server.
    Redis(RedisServer),
    /// Two servers.
    Rabbit {
        /// The broker.
        server: RabbitServer,
        /// Where its records are.
        ledger: RedisServer,
    },
}

impl Place {
    /// Starts what this kind needs.
    pub fn start(kind: Kind) -> anyhow::Result<Self> {
        // Its file is never rewritten meanwhile: that would be counted to whichever job comes by; and clients enough for
        // the largest fleet.
        let server = || {
            let options = redis::Options::every_second();
            RedisServer::start(options.with("auto-aof-rewrite-percentage 0").with("maxclients 15000"))
        };
        Ok(match kind {
            Kind::Sqlite => Self::Sqlite(TempDir::new()?),
            Kind::Redis => Self::Redis(server()),
            Kind::Rabbit => Self::Rabbit { server: RabbitServer::start(rabbit::Options::new()), ledger: server() },
        })
    }

    /// How it is reached.
    pub fn access(&self) -> anyhow::Result<Access> {
        Ok(match self {
            Self::Sqlite(folder) => Access::new(&format!("sqlite://{}/q.db", folder.path().display()))?,
            Self::Redis(server) => Access::new(&server.url())?,
            Self::Rabbit { server, ledger } => {
                let mut access = Access::new(&server.url())?;
                access.beside = Beside::Ledger(Box::new(Access::new(&ledger.url())?));
                access
            }
        })
    }

    /// How a program is told: its broker's URL, and the ledger's where it has one.
    pub(super) fn urls(&self) -> (String, Option<String>) {
        match self {
            Self::Sqlite(folder) => (format!("sqlite://{}/q.db", folder.path().display()), None),
            Self::Redis(server) => (server.url(), None),
            Self::Rabbit { server, ledger } => (server.url(), Some(ledger.url())),
        }
    }

    /// Processor time of the servers so far, in seconds; 0 where the broker is a file.
    pub fn time(&self) -> anyhow::Result<f64> {
        let redis = |server| Ok(figure(server, "cpu", "used_cpu_sys:")? + figure(server, "cpu", "used_cpu_user:")?);
        match self {
            Self::Sqlite(_) => Ok(0.0),
            Self::Redis(server) => redis(server),
            Self::Rabbit { server, ledger } => {
                let broker: anyhow::Result<f64> = redis(ledger);
                Ok(broker? + time_of(server.pid())?)
            }
        }
    }

    /// Memory of the servers in bytes: what Redis and RabbitMQ have allocated, once RabbitMQ has collected
    /// its garbage.
    pub(super) fn memory(&self) -> anyhow::Result<f64> {
        let redis = |server| figure(server, "memory", "used_memory:");
        match self {
            Self::Sqlite(_) => Ok(0.0),
            Self::Redis(server) => redis(server),
            Self::Rabbit { server, ledger } => {
                let broker = server.must("[erlang:garbage_collect(P) || P <- processes()], erlang:memory(total).");
                Ok(redis(ledger)? + broker.trim().parse::<f64>()?)
            }
        }
    }

    /// What lies on the disk, in bytes.
    pub(super) fn disk(&self) -> anyhow::Result<f64> {
        match self {
            Self::Sqlite(folder) => size_of(folder.path().to_owned()),
            Self::Redis(server) => size_of(server.folder().to_owned()),
            Self::Rabbit { server, ledger } => {
                Ok(size_of(server.folder().to_owned())? + size_of(ledger.folder().to_owned())?)
            }
        }
    }

    /// Connections that are open: at Redis, and at RabbitMQ.
    pub(super) fn connections(&self) -> anyhow::Result<(f64, f64)> {
        let redis = |server| figure(server, "clients", "connected_clients:");
        Ok(match self {
            Self::Sqlite(_) => (0.0, 0.0),
            Self::Redis(server) => (redis(server)?, 0.0),
            Self::Rabbit { server, ledger } => {
                let all = server.must("length(rabbit_networking:connections()).");
                (redis(ledger)?, all.trim().parse()?)
            }
        })
    }

    /// Calls of clients so far: those that Redis was sent, without the commands inside scripts, and what RabbitMQ's sockets
    /// have received, in packets.
    pub(super) fn calls(&self) -> anyhow::Result<(f64, f64)> {
        Ok(match self {
            Self::Sqlite(_) => (0.0, 0.0),
            Self::Redis(server) => (redis_calls(server)?, 0.0),
            Self::Rabbit { server, ledger } => {
                let packets = "lists:sum([N || [{recv_cnt, N}] <- rabbit_networking:connection_info_all([recv_cnt])]).";
                (redis_calls(ledger)?, server.must(packets).trim().parse()?)
            }
        })
    }
}

/// The commands that our clients send; others are called by scripts alone.
const SENT: [&str; 5] = ["evalsha", "eval", "blpop", "ping", "script|load"];

fn redis_calls(server: &RedisServer) -> anyhow::Result<f64> {
    let stats = server.command(&["INFO", "commandstats"]).map_err(|why| anyhow!(why))?.text();
    let calls = stats.lines().filter_map(|line| line.strip_prefix("cmdstat_")?.split_once(":calls="));
    let sent = calls.filter(|(name, _)| SENT.contains(name));
    sent.map(|(_, rest)| Ok(rest.split(',').next().unwrap_or_default().parse::<f64>()?)).sum()
}

fn figure(server: &RedisServer, section: &str, name: &str) -> anyhow::Result<f64> {
    let info = server.command(&["INFO", section]).map_err(|why| anyhow!(why))?.text();
    let value = info.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
    Ok(value.trim().parse()?)
}

/// Memory of a process that is its own, in bytes.
pub(super) fn resident(pid: u32) -> anyhow::Result<f64> {
    Ok(number(usize::try_from(memory_of(pid, "VmRSS:")?)?) * 1024.0)
}

fn size_of(folder: PathBuf) -> anyhow::Result<f64> {
    let (mut folders, mut bytes) = (vec![folder], 0.0);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)?.flatten() {
            // A file may go while it is looked at.
            match entry.metadata() {
                Ok(data) if data.is_dir() => folders.push(entry.path()),
                Ok(data) if data.is_file() => bytes += f64::from(u32::try_from(data.len() / 1024)?) * 1024.0,
                Ok(_) | Err(_) => {}
            }
        }
    }
    Ok(bytes)
}
