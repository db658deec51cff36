//! What can go wrong around a fleet on RabbitMQ with a Redis beside it, as processes meet it.

mod clock;
mod killed;
mod network;
mod pause;
mod restart;
mod store;
mod trouble;

use std::time::Duration;

use promptq_common::job::Queue;
use promptq_common::record::Record;
use promptq_tests::farm::Farm;
use promptq_tests::site::until;

use super::{SHORT, all_end_once, called};

/// How soon workers go on once RabbitMQ is there again: they try every 10 s at the least, on a machine that runs other
/// tests.
const RECOVERY: Duration = Duration::from_secs(25);

/// Every job has ended once, for one call each, and no message is left.
async fn all_paid_once(farm: &Farm, count: usize) -> Vec<Record> {
    let records = all_end_once(&farm.ledger().await, count).await;
    assert_eq!(farm.provider.calls().len(), count, "one call each");
    farm.tidy().await;
    records
}

/// Waits until so many jobs run, as the ledger knows it.
async fn running(farm: &Farm, count: u64) {
    let broker = farm.ledger().await;
    until(&format!("{count} jobs run"), async || {
        let depth = broker.depth(&Queue::standard()).await.ok()?;
        (depth.running == count).then_some(())
    })
    .await;
}
