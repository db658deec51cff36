//! What counting costs: a job put in, leased, claimed and settled on the memory backend, without a recorder and with one. The
//! difference is at most 2 microseconds a job: `cargo bench -p promptq-benches --bench telemetry`.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context as _;
use criterion::Criterion;
use promptq_benches::library::{answer, enqueue, job, subscribe, success};
use promptq_common::broker::{Broker, Consumer, Want};
use promptq_common::job::Queue;
use promptq_common::telemetry::admin::{Admin, Listen};
use promptq_common::telemetry::health::Health;

/// Jobs that are done together, as in a window.
const JOBS: usize = 100;

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut criterion = Criterion::default().without_plots().configure_from_args();
    let mut measure = |name: &str| -> anyhow::Result<()> {
        let broker = Broker::memory();
        let mut consumer = runtime.block_on(subscribe(&broker, &[Queue::standard()]))?;
        let mut failed = None;
        criterion.bench_function(name, |bencher| {
            bencher.iter(|| {
                if let Err(error) = runtime.block_on(round(&broker, &mut consumer)) {
                    failed = Some(error);
                }
            });
        });
        failed.map_or(Ok(()), Err)
    };
    measure("100 jobs that nobody counts")?;
    let _admin = {
        let _inside = runtime.enter();
        Admin::open(Listen::At(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0)), "worker", &Health::default())?
            .context("no listener")?
    };
    measure("100 jobs that are counted")?;
    criterion.final_summary();
    Ok(())
}

async fn round(broker: &Broker, consumer: &mut Consumer) -> anyhow::Result<()> {
    let jobs: Vec<_> = (0..JOBS).map(job).collect();
    enqueue(broker, &jobs).await?;
    let total = u32::try_from(JOBS)?;
    let mut left = JOBS;
    while left > 0 {
        let came = consumer.next(&Want { total, caps: Vec::new(), rest: total }).await?.deliveries;
        left -= came.len();
        for delivery in came {
            delivery.lease.claim().await?;
            let verdict = success(&delivery, &answer());
            delivery.lease.settle(verdict).await?;
        }
    }
    Ok(())
}
