//! Another handle onto a fixture's data, as another process would hold it.

use std::sync::Arc;

use promptq_common::broker::memory::Memory;
use promptq_common::broker::sqlite::Sqlite;
use promptq_common::broker::{Backend, Broker};
use promptq_common::ledger::Claims;

use super::{Fixture, Home, objects, redis};

impl Fixture {
    /// Another handle onto the same data, as another process would hold it; on memory, which has no other process,
    /// the same one.
    pub async fn second(&self) -> Broker {
        match &self.home {
            Home::Memory => self.broker.clone(),
            Home::Sqlite(folder) => {
                let path = folder.path().join("q.db");
                let sqlite = Arc::new(Sqlite::open(&path).await.expect("the file opens a second time"));
                Broker::new(Arc::clone(&sqlite) as Arc<dyn Backend>, sqlite)
            }
            Home::Redis { server, .. } => {
                let redis = Arc::new(redis(server).await);
                Broker::new(Arc::clone(&redis) as Arc<dyn Backend>, redis)
            }
            Home::Rabbit(carrier) => {
                let (backend, claims) = carrier.connect().await;
                Broker::new(backend, claims)
            }
            Home::Objects { store, .. } => Broker::new(Arc::new(Memory::new()), Arc::new(objects(store).await)),
        }
    }

    /// The same of its claims.
    pub async fn second_claims(&self) -> Arc<dyn Claims> {
        match &self.home {
            Home::Memory => self.claims.clone().expect("memory can serve another broker"),
            Home::Sqlite(folder) => {
                let path = folder.path().join("q.db");
                Arc::new(Sqlite::open(&path).await.expect("the file opens a second time"))
            }
            Home::Redis { server, .. } => Arc::new(redis(server).await),
            Home::Rabbit(carrier) => carrier.connect().await.1,
            Home::Objects { store, .. } => Arc::new(objects(store).await),
        }
    }
}
