//! What can go wrong around a fleet on Redis, and (`rabbit/`) on RabbitMQ, as processes meet it: each promise held by counting, from outside, who
//! called the provider for what.

mod clock;
mod disk;
mod network;
mod pause;
mod rabbit;
mod restart;
mod trouble;

use std::time::Duration;

use promptq_common::broker::Broker;
use promptq_common::record::{End, Record};
use promptq_tests::site::{Setup, Site, records, until};

/// Leases that run out while a test waits.
const SHORT: Duration = Duration::from_secs(1);

fn hasty(site: &Site) -> Setup {
    Setup { lease: SHORT, ..site.setup() }
}

/// Waits until so many jobs have ended, and checks that each of them did once, as a success of its first attempt.
async fn all_end_once(broker: &Broker, count: usize) -> Vec<Record> {
    until(&format!("{count} jobs have ended"), async || (records(broker).await.len() >= count).then_some(())).await;
    let records = records(broker).await;
    let mut ids: Vec<_> = records.iter().map(|record| record.id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!((ids.len(), records.len()), (count, count), "one record for each job");
    for record in &records {
        assert_eq!((record.end, record.attempts), (End::Succeeded, 1), "{record:?}");
    }
    records
}

/// Until the provider has had so many calls.
async fn called(site: &Site, count: usize) {
    until(&format!("the provider has had {count} calls"), async || {
        (site.provider.calls().len() >= count).then_some(())
    })
    .await;
}
