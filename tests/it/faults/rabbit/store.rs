//! A fleet on RabbitMQ whose ledger is object storage: nobody claims there, so nobody waits for a claim to run out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use promptq_common::broker::amqp::Amqp;
use promptq_common::broker::{Access, Broker};
use promptq_common::ledger::Claims;
use promptq_common::ledger::object::{Ages, ObjectLedger};
use promptq_common::store::Store;
use promptq_tests::farm::Farm;
use promptq_tests::site::{Setup, jobs, put, until};

use super::{all_end_once, called};

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_workers_jobs_run_again_within_two_seconds() {
    const JOBS: usize = 3;
    let farm = Farm::shared(3_000..=3_000).await;
    let url = format!("file://{}", farm.path("store").display());
    let broker = asked_anew(&farm, &url).await;
    put(&broker, &jobs(1..=JOBS as u64)).await;
    let mut setup = Setup { slots: 3, ..farm.setup() };
    let store = [("PROMPTQ_LEDGER", "store".to_owned()), ("PROMPTQ_STORE", url)];
    setup.environment.extend(store.map(|(name, value)| (name.to_owned(), value)));
    let first = farm.worker(1, &setup);
    called(&farm, JOBS).await;
    let second = farm.worker(2, &setup);
    until("the other one waits", async || second.log().contains("taking jobs").then_some(())).await;
    let killed = Instant::now();
    drop(first);
    called(&farm, JOBS * 2).await;
    for call in &farm.provider.calls()[JOBS..] {
        let again = call.started.duration_since(killed);
        assert!(again < Duration::from_secs(2), "job {} runs again after {again:?}", call.job);
    }
    all_end_once(&broker, JOBS).await;
    farm.tidy().await;
    second.leaves();
}

/// The broker for this process, whose ledger asks the store each time.
async fn asked_anew(farm: &Farm, url: &str) -> Broker {
    let store = Store::open(url).await.unwrap();
    let ledger = Arc::new(ObjectLedger::open_with(store, Ages::NONE).await.unwrap());
    let claims = Arc::clone(&ledger) as Arc<dyn Claims>;
    let amqp = Amqp::connect(&Access::new(&farm.host.url()).unwrap(), claims).await.unwrap();
    Broker::new(Arc::new(amqp), ledger)
}
