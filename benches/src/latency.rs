//! What one job takes that comes alone, on whatever broker.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use promptq_common::broker::{Access, Broker, Claim, Want};
use rand::RngExt as _;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::facade::{jobs, put, terms, verdict};
use crate::spread::Spread;

/// What an idle worker asks for.
pub(crate) const ONE: Want = Want { total: 1, caps: Vec::new(), rest: 1 };

/// From the call of `enqueue` by one broker to the claim that lets an idle worker of another one start.
pub(crate) async fn latency(access: &Access, count: usize) -> anyhow::Result<String> {
    let (producer, worker) = (Broker::connect(access).await?, Broker::connect(access).await?);
    let (started, mut starts) = mpsc::channel(1);
    let mut hands = JoinSet::new();
    hands.spawn(async move {
        let mut consumer = worker.consume(terms()).await?;
        loop {
            for delivery in consumer.next(&ONE).await?.deliveries {
                let leased = Instant::now();
                drop(delivery.open()?);
                ensure!(matches!(delivery.lease.claim().await?, Claim::Fresh { .. }), "a claim was refused");
                started.send((leased, Instant::now())).await?;
                let verdict = verdict(&delivery.head, delivery.lease.id());
                delivery.lease.settle(verdict).await?;
            }
        }
        #[expect(unreachable_code, reason = "the type of what the task may fail with")]
        anyhow::Ok(())
    });
    let (mut to_lease, mut to_claim, mut to_answer) = (Vec::new(), Vec::new(), Vec::new());
    // The first ones wait for connections and scripts.
    for job in jobs(count + 20, None)?.iter() {
        tokio::time::sleep(Duration::from_micros(rand::rng().random_range(5_000..20_000))).await;
        let asked = Instant::now();
        put(&producer, std::slice::from_ref(job)).await?;
        to_answer.push(asked.elapsed());
        let (leased, claimed) = starts.recv().await.context("the worker broke off")?;
        to_lease.push(leased - asked);
        to_claim.push(claimed - asked);
    }
    let shown = |waits: &[Duration]| {
        let spread = Spread::of(waits[20..].iter().map(|wait| wait.as_secs_f64() * 1e3));
        format!("p50 {:.2} ms, p99 {:.2} ms", spread.at(50), spread.at(99))
    };
    Ok(format!(
        "submit to start, an idle worker, {count} jobs 5-20 ms apart: {}\n  to the lease: {}; to the submitter's OK: {}\n",
        shown(&to_claim),
        shown(&to_lease),
        shown(&to_answer)
    ))
}
