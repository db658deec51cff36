//! Producers and workers as a library in this process: so many jobs put in, so many taken to their end, and what that cost.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use anyhow::{Context, ensure};
use promptq_common::broker::{Broker, Claim, Consumer, Deliveries, Delivery, Want};
use promptq_common::job::{BatchName, Job, Queue};
use promptq_common::work::Work;
use tokio::task::JoinSet;

use super::figures::Cost;
use super::place::Place;
use crate::account::number;
use crate::library::{enqueue, success};
use crate::process::own_time;

/// What a producer hands over at once.
pub(super) const WINDOW: usize = 1_000;
/// Jobs that one worker has at once where there is one.
pub(super) const SLOTS: usize = 500;

/// A small job of a batch, as `submit` makes it: what a queue keeps of a job beside its prompt shows best.
pub(super) fn job(queue: &Queue, batch: &BatchName, n: usize) -> Job {
    let work = Work::prompt(Some("mock"), format!("Sentiment of: review number {n:>10}"));
    Job { batch: Some(batch.clone()), ..Job::new(queue.clone(), work) }
}

/// Puts in so many jobs of one queue, by all of these producers.
pub(super) async fn put(producers: &[Broker], queue: &Queue, jobs: usize) -> anyhow::Result<()> {
    let (mut hands, next) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
    for broker in producers {
        let (broker, next, queue) = (broker.clone(), Arc::clone(&next), queue.clone());
        hands.spawn(async move {
            let batch = BatchName::new("scaling")?;
            loop {
                let from = next.fetch_add(WINDOW, Relaxed);
                if from >= jobs {
                    return anyhow::Ok(());
                }
                let window: Vec<_> = (from..jobs.min(from + WINDOW)).map(|n| job(&queue, &batch, n)).collect();
                enqueue(&broker, &window).await?;
            }
        });
    }
    all(hands).await
}

/// Takes just so many jobs to their end, of many more that wait; each worker has this many at once.
pub(super) async fn drain(consumers: Vec<Consumer>, jobs: usize, slots: usize) -> anyhow::Result<()> {
    let (mut hands, left) = (JoinSet::new(), Arc::new(AtomicUsize::new(jobs)));
    for consumer in consumers {
        hands.spawn(work(consumer, Arc::clone(&left), slots));
    }
    all(hands).await
}

async fn work(mut consumer: Consumer, left: Arc<AtomicUsize>, slots: usize) -> anyhow::Result<()> {
    // May be leased by this worker, and has not been.
    let mut mine = 0;
    let mut running = JoinSet::new();
    loop {
        mine += take(&left, slots.saturating_sub(running.len() + mine));
        if mine == 0 && running.is_empty() {
            return Ok(consumer.close().await?);
        }
        let total = u32::try_from(mine)?;
        let want = Want { total, caps: Vec::new(), rest: total };
        tokio::select! {
            biased;
            Some(run) = running.join_next() => {
                run??;
                while let Some(run) = running.try_join_next() {
                    run??;
                }
            }
            answer = consumer.next(&want), if total > 0 => {
                // A file that others keep locked is asked again, as a worker does.
                let Deliveries { deliveries, .. } = match answer {
                    Err(error) if error.is_transient() => continue,
                    answer => answer?,
                };
                mine -= deliveries.len();
                for delivery in deliveries {
                    running.spawn(run(delivery));
                }
            }
        }
    }
}

fn take(left: &AtomicUsize, most: usize) -> usize {
    let before = left.fetch_update(Relaxed, Relaxed, |left| Some(left.saturating_sub(most)));
    before.unwrap_or_else(|left| left).min(most)
}

/// One delivery as a worker whose model answers at once has it.
async fn run(delivery: Delivery) -> anyhow::Result<()> {
    drop(delivery.open()?);
    let claim = delivery.lease.claim().await?;
    ensure!(matches!(claim, Claim::Fresh { .. }), "a claim answered {claim:?}");
    let verdict = success(&delivery, "positive");
    delivery.lease.settle(verdict).await?;
    Ok(())
}

/// Does the work and says what it took of processors for each of so many jobs.
pub(super) async fn clocked(
    place: &Place,
    jobs: usize,
    work: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<Cost> {
    let (theirs, ours) = (place.time()?, own_time()?);
    work.await?;
    let each = 1e6 / number(jobs);
    Ok(Cost { ours: (own_time()? - ours) * each, theirs: (place.time()? - theirs) * each })
}

pub(super) async fn all(mut hands: JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    while let Some(hand) = hands.join_next().await {
        hand.context("a hand broke off")??;
    }
    Ok(())
}
