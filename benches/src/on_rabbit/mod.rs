//! What promptq takes from a RabbitMQ of its own with a ledger beside it: `pairs` beside the least that a queue could do
//! (`limit`); `single` what one job, an idle fleet or a backlog takes. Here: the servers and their accounts.

mod limit;
mod pairs;
mod single;

use std::fmt;

pub use pairs::pairs;
pub use single::{backlog, idle, latency};

use promptq_common::broker::amqp::QueueType;
use promptq_common::broker::{Access, Beside};
use promptq_common::store::Store;
use tempfile::TempDir;

use crate::meter::time_of;
use crate::on_redis::server_time;
use crate::rabbit::{self, RabbitServer};
use crate::redis::{self, RedisServer};

/// What stands behind the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage {
    queues: QueueType,
    ledger: Ledger,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ledger {
    /// A Redis that writes to its disk every second.
    Redis,
    /// A local folder, synced at every write.
    Store,
}

impl Stage {
    /// Quorum queues, the ledger on Redis.
    pub const QUORUM: Self = Self { queues: QueueType::Quorum, ledger: Ledger::Redis };
    /// Classic queues, the ledger on Redis.
    pub const CLASSIC: Self = Self { queues: QueueType::Classic, ledger: Ledger::Redis };
    /// Quorum queues, the ledger in object storage.
    pub const STORE: Self = Self { queues: QueueType::Quorum, ledger: Ledger::Store };
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queues = match self.queues {
            QueueType::Quorum => "quorum queues",
            QueueType::Classic => "classic queues",
        };
        let ledger = match self.ledger {
            Ledger::Redis => "Redis (everysec)",
            Ledger::Store => "a synced folder as store",
        };
        write!(f, "{queues}, records in {ledger}")
    }
}

/// The servers of one measurement, fresh.
struct Servers {
    rabbit: RabbitServer,
    ledger: Kept,
    queues: QueueType,
}

enum Kept {
    Redis(RedisServer),
    Store { store: Store, _folder: TempDir },
}

impl Servers {
    async fn start(stage: Stage) -> anyhow::Result<Self> {
        let ledger = match stage.ledger {
            Ledger::Redis => Kept::Redis(RedisServer::start(redis::Options::every_second())),
            Ledger::Store => {
                let folder = TempDir::new()?;
                let store = Store::open(&format!("file://{}", folder.path().display())).await?;
                Kept::Store { store, _folder: folder }
            }
        };
        Ok(Self { rabbit: RabbitServer::start(rabbit::Options::new()), ledger, queues: stage.queues })
    }

    fn access(&self) -> anyhow::Result<Access> {
        let mut access = Access::new(&self.rabbit.url())?;
        access.amqp.queues = self.queues;
        access.beside = match &self.ledger {
            Kept::Redis(server) => Beside::Ledger(Box::new(Access::new(&server.url())?)),
            Kept::Store { store, .. } => Beside::Store(store.clone()),
        };
        Ok(access)
    }

    /// Processor time of RabbitMQ and of the ledger's server, in seconds.
    fn time(&self) -> anyhow::Result<f64> {
        let ledger = match &self.ledger {
            Kept::Redis(server) => server_time(server)?,
            Kept::Store { .. } => 0.0,
        };
        Ok(time_of(self.rabbit.pid())? + ledger)
    }
}
