//! What stands behind the queue in a storm, and what is done to it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use promptq_common::broker::Access;

use super::rabbit::{Ledger, Rabbit};
use super::trouble::Trouble;
use crate::redis::{Options, RedisServer};

/// Which broker a storm goes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The embedded file.
    Sqlite,
    /// A Redis of its own, with every write on the disk before it is answered.
    Redis,
    /// A RabbitMQ of its own, and what keeps its records.
    RabbitMq(Ledger),
}

/// The broker of one storm.
#[derive(Debug)]
pub(super) enum Server {
    Sqlite(PathBuf),
    Redis(Box<RedisServer>),
    RabbitMq(Box<Rabbit>),
}

impl Server {
    pub(super) async fn start(stage: Stage, home: &Path) -> Self {
        match stage {
            Stage::Sqlite => Self::Sqlite(home.join("q.db")),
            Stage::Redis => Self::Redis(Box::new(RedisServer::start(Options::durable()))),
            Stage::RabbitMq(ledger) => Self::RabbitMq(Box::new(Rabbit::start(ledger, home).await)),
        }
    }

    /// For the storm itself, which no network is between.
    pub(super) fn access(&self) -> anyhow::Result<Access> {
        Ok(match self {
            Self::Sqlite(path) => Access::new(&format!("sqlite://{}", path.display()))?,
            Self::Redis(server) => Access::new(&server.url())?,
            Self::RabbitMq(rabbit) => rabbit.access()?,
        })
    }

    /// What tells workers where it is.
    pub(super) fn environment(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Sqlite(path) => vec![("PROMPTQ_BROKER", format!("sqlite://{}", path.display()))],
            Self::Redis(server) => vec![("PROMPTQ_BROKER", server.url())],
            Self::RabbitMq(rabbit) => rabbit.environment(),
        }
    }

    /// What does not fit together in it after so many jobs, where one can look.
    pub(super) async fn faults(&mut self, jobs: u64) -> Vec<String> {
        match self {
            Self::Sqlite(_) => Vec::new(),
            Self::Redis(server) => server.faults(),
            Self::RabbitMq(rabbit) => rabbit.faults(jobs).await,
        }
    }

    /// Waits until its workers have nothing more in hand, for this long at the most. What they hold when they leave comes back.
    pub(super) async fn rests(&self, patience: Duration) {
        if let Self::RabbitMq(rabbit) = self {
            rabbit.rests(patience).await;
        }
    }

    /// Does it to the broker; a file is no process, and only RabbitMQ knows more than being killed.
    pub(super) fn begin(&mut self, trouble: Trouble) {
        match (self, trouble) {
            (Self::Redis(server), Trouble::Kill) => tokio::task::block_in_place(|| server.restart()),
            (Self::RabbitMq(rabbit), trouble) => rabbit.begin(trouble),
            (Self::Sqlite(_) | Self::Redis(_), _) => {}
        }
    }

    pub(super) fn end(&mut self, trouble: Trouble) {
        if let Self::RabbitMq(rabbit) = self {
            rabbit.end(trouble);
        }
    }
}
