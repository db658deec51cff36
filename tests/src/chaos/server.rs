//! What stands behind the queue in a storm, and how it is killed.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::redis::{Options, RedisServer};

/// Which broker a storm goes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The embedded file.
    Sqlite,
    /// A Redis of its own, with every write on the disk before it is answered.
    Redis,
}

/// The broker of one storm.
#[derive(Debug)]
pub(super) enum Server {
    Sqlite(PathBuf),
    Redis(Box<RedisServer>),
}

impl FromStr for Stage {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> anyhow::Result<Self> {
        match name {
            "sqlite" => Ok(Self::Sqlite),
            "redis" => Ok(Self::Redis),
            _ => anyhow::bail!("{name:?} is no backend of the storm; there are sqlite and redis"),
        }
    }
}

impl Server {
    pub(super) fn start(stage: Stage, home: &Path) -> Self {
        match stage {
            Stage::Sqlite => Self::Sqlite(home.join("q.db")),
            Stage::Redis => Self::Redis(Box::new(RedisServer::start(Options::durable()))),
        }
    }

    pub(super) fn url(&self) -> String {
        match self {
            Self::Sqlite(path) => format!("sqlite://{}", path.display()),
            Self::Redis(server) => server.url(),
        }
    }

    /// What does not fit together in it, where one can look.
    pub(super) fn faults(&self) -> Vec<String> {
        match self {
            Self::Sqlite(_) => Vec::new(),
            Self::Redis(server) => server.faults(),
        }
    }

    /// Kills it with -9 and starts it again on its data; a file is no process.
    pub(super) fn kill_and_restart(&mut self) {
        match self {
            Self::Sqlite(_) => {}
            Self::Redis(server) => tokio::task::block_in_place(|| server.restart()),
        }
    }
}
