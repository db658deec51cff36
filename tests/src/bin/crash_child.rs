//! The process that dies in the crash tests: puts jobs in, leases and settles them on the file it is given, and writes
//! to a log what it was told is done. Where it dies is armed by `FAILPOINTS`; when it survives, it ends with 0.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::time::Duration;

use anyhow::Context;
use promptq_common::broker::{Access, Broker, Delivery, Enqueued, Settled};
use promptq_common::job::{Job, JobId, Queue};
use promptq_common::record::End;
use promptq_tests::backends::terms;
use promptq_tests::fixture;
use promptq_tests::steps::want;

/// How long its leases last, and so how long the tests wait for what it left behind.
const LEASE: Duration = Duration::from_secs(2);

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let (url, log) = (args.next().context("a broker's URL")?, args.next().context("a log's path")?);
    let mut log = Log(OpenOptions::new().create(true).append(true).open(log)?);
    let broker = Broker::connect(&Access::new(&url)?).await?;
    let mut consumer = broker.consume(terms(&[(Queue::standard(), 1)], LEASE)).await?;
    for (round, jobs) in fixture::rounds().into_iter().enumerate() {
        enqueue(&broker, &jobs, &mut log).await?;
        let found = consumer.next(&want(3)).await?.deliveries;
        for (place, delivery) in found.into_iter().enumerate() {
            log.write("leased", &delivery.head.id, "")?;
            // The last one of a round is left behind, as by a worker that runs it still.
            if place < 2 {
                settle(delivery, round * 2 + place, &mut log).await?;
            }
        }
    }
    Ok(())
}

async fn enqueue(broker: &Broker, jobs: &[Job], log: &mut Log) -> anyhow::Result<()> {
    for (job, answer) in jobs.iter().zip(broker.enqueue(jobs).await?) {
        anyhow::ensure!(answer == Enqueued::New, "{answer:?}");
        log.write("enqueued", &job.id, "")?;
    }
    Ok(())
}

/// Each verdict in its turn.
async fn settle(delivery: Delivery, turn: usize, log: &mut Log) -> anyhow::Result<()> {
    let (head, lease) = (delivery.head.clone(), delivery.lease.id());
    let (verdict, name) = match turn % 4 {
        0 => (fixture::end(&head, lease, End::Succeeded), "succeeded"),
        1 => (fixture::retry(&head, Duration::ZERO), "retried"),
        2 => (fixture::release(), "released"),
        _ => (fixture::end(&head, lease, End::Dead), "dead"),
    };
    log.write("settling", &head.id, name)?;
    let settled = delivery.lease.settle(verdict).await?;
    anyhow::ensure!(settled == Settled::Applied, "too slow for its lease: {settled:?}");
    log.write("settled", &head.id, name)
}

/// What it was told, in order; a line that is there was told.
struct Log(File);

impl Log {
    fn write(&mut self, what: &str, id: &JobId, how: &str) -> anyhow::Result<()> {
        Ok(self.0.write_all(format!("{what} {id} {how}\n").as_bytes())?)
    }
}
