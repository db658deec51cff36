//! Fixtures on RabbitMQ: each pair of a kind of queues and a ledger beside it.

use std::sync::Arc;

use promptq_common::broker::Broker;
use promptq_common::broker::amqp::QueueType;
use promptq_common::job::Queue;
use promptq_common::ledger::Ledger;

use super::{Fixture, Home};
use crate::carrier::Carrier;
use crate::s3::S3;

impl Fixture {
    /// On RabbitMQ with quorum queues, and a Redis of its own beside it.
    pub async fn quorum_redis() -> Self {
        Self::on_rabbit(Carrier::with_redis(QueueType::Quorum)).await
    }

    /// On RabbitMQ with classic queues, and a ledger in a SQLite file beside it.
    pub async fn classic_sqlite() -> Self {
        Self::on_rabbit(Carrier::with_sqlite(QueueType::Classic)).await
    }

    /// On RabbitMQ with quorum queues, and a ledger in object storage (a folder), which is asked anew each time.
    pub async fn quorum_store() -> Self {
        Self::on_rabbit(Carrier::with_folder(QueueType::Quorum)).await
    }

    /// The same with classic queues.
    pub async fn classic_store() -> Self {
        Self::on_rabbit(Carrier::with_folder(QueueType::Classic)).await
    }

    /// On RabbitMQ with quorum queues, and a ledger in a bucket of this server.
    pub async fn quorum_s3(server: &Arc<S3>) -> Self {
        Self::on_rabbit(Carrier::with_bucket(QueueType::Quorum, server).await).await
    }

    /// The same with classic queues.
    pub async fn classic_s3(server: &Arc<S3>) -> Self {
        Self::on_rabbit(Carrier::with_bucket(QueueType::Classic, server).await).await
    }

    /// On RabbitMQ with quorum queues, and a ledger in a SQLite file beside it.
    pub async fn quorum_sqlite() -> Self {
        Self::on_rabbit(Carrier::with_sqlite(QueueType::Quorum)).await
    }

    /// On RabbitMQ with classic queues, and a Redis of its own beside it.
    pub async fn classic_redis() -> Self {
        Self::on_rabbit(Carrier::with_redis(QueueType::Classic)).await
    }

    async fn on_rabbit(carrier: Carrier) -> Self {
        let (backend, claims) = carrier.connect().await;
        // Made when it is first needed otherwise, which takes longer than cases wait that count in milliseconds.
        backend.declare(&Queue::standard(), &[], false).await.expect("declares");
        let ledger = Arc::clone(&claims) as Arc<dyn Ledger>;
        Self {
            broker: Broker::new(Arc::clone(&backend), ledger),
            backend,
            claims: Some(claims),
            home: Home::Rabbit(Box::new(carrier)),
        }
    }
}
