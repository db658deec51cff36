//! What counting costs: a job put in, leased, claimed and settled on the memory backend, without a recorder and with one. The
//! difference is at most 2 microseconds a job: `cargo bench -p promptq-benches --bench telemetry`.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use criterion::Criterion;
use promptq_benches::library::{answer, enqueue, job, subscribe, success};
use promptq_common::broker::{Broker, Consumer, Want};
use promptq_common::job::Queue;
use promptq_common::telemetry::admin::{Admin, Listen};
use promptq_common::telemetry::health::Health;
use tokio::runtime::Runtime;

/// Jobs that are done together, as in a window.
const JOBS: usize = 100;

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let uncounted = Side::open(&runtime)?;
    let _admin = {
        let _inside = runtime.enter();
        Admin::open(Listen::At(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0)), "worker", &Health::default())?
            .context("no listener")?
    };
    let mut sides = [uncounted, Side::open(&runtime)?];
    let mut criterion = Criterion::default().without_plots().configure_from_args();
    let mut failed = None;
    for (side, name) in ["100 jobs that nobody counts", "100 jobs that are counted"].into_iter().enumerate() {
        criterion.bench_function(name, |bencher| {
            bencher.iter_custom(|rounds| {
                alternate(&runtime, &mut sides, rounds).unwrap_or_else(|error| {
                    failed = Some(error);
                    [Duration::from_secs(1); 2]
                })[side]
            });
        });
    }
    criterion.final_summary();
    failed.map_or(Ok(()), Err)
}

/// A broker and who takes its jobs; they count if a recorder was there when they were opened.
struct Side {
    broker: Broker,
    consumer: Consumer,
}

impl Side {
    fn open(runtime: &Runtime) -> anyhow::Result<Self> {
        let broker = Broker::memory();
        let consumer = runtime.block_on(subscribe(&broker, &[Queue::standard()]))?;
        Ok(Self { broker, consumer })
    }
}

/// What so many rounds took on either side. By turns, whoever is asked for: what the machine does meanwhile, and what the
/// brokers keep of earlier rounds, is the same for both.
fn alternate(runtime: &Runtime, sides: &mut [Side; 2], rounds: u64) -> anyhow::Result<[Duration; 2]> {
    let mut took = [Duration::ZERO; 2];
    for _ in 0..rounds {
        for (side, took) in sides.iter_mut().zip(&mut took) {
            let began = Instant::now();
            runtime.block_on(round(&side.broker, &mut side.consumer))?;
            *took += began.elapsed();
        }
    }
    Ok(took)
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
