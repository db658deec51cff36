//! promptq as a library: producers and workers over `Broker` in this process, each with connections of its own, and
//! nothing between lease and settle but a claim.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, ensure};
use promptq_common::broker::{
    Access, Broker, Claim, Deliveries, Delivery, Enqueued, Head, LeaseId, Terms, Verdict, Want, WorkerId,
};
use promptq_common::job::{BatchName, Job, Queue};
use promptq_common::outcome::{Attempt, Body, Usage, Usd};
use promptq_common::record::{Answer, End, Output, Record};
use promptq_common::time::Timestamp;
use promptq_common::work::Work;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::meter::{TEXT, prompt};

/// What a producer hands over at once.
const WINDOW: usize = 1_000;
/// Jobs that one worker has at once.
const SLOTS: usize = 500;

/// So many connected producers and as many workers.
#[derive(Debug)]
pub(crate) struct Facade {
    producers: Vec<Broker>,
    workers: Vec<Broker>,
}

impl Facade {
    pub(crate) async fn connect(access: &Access, hands: usize) -> anyhow::Result<Self> {
        let (mut producers, mut workers) = (Vec::new(), Vec::new());
        for _ in 0..hands {
            producers.push(Broker::connect(access).await?);
            workers.push(Broker::connect(access).await?);
        }
        Ok(Self { producers, workers })
    }

    /// Hands over the jobs, a part of them by each producer.
    pub(crate) async fn enqueue(&self, jobs: &Arc<[Job]>) -> anyhow::Result<()> {
        let mut hands = JoinSet::new();
        let part = jobs.len().div_ceil(self.producers.len());
        for (hand, broker) in self.producers.iter().cloned().enumerate() {
            let jobs = Arc::clone(jobs);
            hands.spawn(async move {
                for window in jobs.chunks(part).nth(hand).unwrap_or_default().chunks(WINDOW) {
                    put(&broker, window).await?;
                }
                anyhow::Ok(())
            });
        }
        all(hands).await
    }

    /// Leases, claims and settles so many jobs.
    pub(crate) async fn drain(&self, jobs: usize) -> anyhow::Result<()> {
        let left = Arc::new(AtomicUsize::new(jobs));
        let (over, _) = watch::channel(false);
        let mut hands = JoinSet::new();
        for broker in &self.workers {
            hands.spawn(work(broker.clone(), Arc::clone(&left), over.clone()));
        }
        all(hands).await
    }

    /// Both at once.
    pub(crate) async fn live(&self, jobs: &Arc<[Job]>) -> anyhow::Result<()> {
        tokio::try_join!(self.enqueue(jobs), self.drain(jobs.len())).map(drop)
    }
}

/// Enqueues them, all of which must be new.
pub(crate) async fn put(broker: &Broker, jobs: &[Job]) -> anyhow::Result<()> {
    let answers = broker.enqueue(jobs).await?;
    let strange = answers.iter().find(|answer| **answer != Enqueued::New);
    ensure!(strange.is_none() && answers.len() == jobs.len(), "an enqueue answered {strange:?}");
    Ok(())
}

/// So many jobs of one batch.
pub(crate) fn jobs(count: usize, batch: Option<&str>) -> anyhow::Result<Arc<[Job]>> {
    let batch = batch.map(BatchName::new).transpose()?;
    let job = |n| Job { batch: batch.clone(), ..Job::new(Queue::standard(), Work::prompt(Some("mock"), prompt(n))) };
    Ok((0..count).map(job).collect())
}

/// What a worker of the standard queue asks for.
pub(crate) fn terms() -> Terms {
    let (worker, queues) = (WorkerId::random("bench"), vec![(Queue::standard(), 1)]);
    Terms { worker, queues, lease: Duration::from_secs(45) }
}

/// As the worker's own loop: as many as there is room for, each in a task of its own.
async fn work(broker: Broker, left: Arc<AtomicUsize>, over: watch::Sender<bool>) -> anyhow::Result<()> {
    let mut consumer = broker.consume(terms()).await?;
    let mut ended = over.subscribe();
    let mut running = JoinSet::new();
    while !*ended.borrow_and_update() {
        let room = u32::try_from(SLOTS.saturating_sub(running.len()))?;
        let want = Want { total: room, caps: Vec::new(), rest: room };
        tokio::select! {
            biased;
            Some(run) = running.join_next() => {
                run??;
                let mut done = 1;
                while let Some(run) = running.try_join_next() {
                    run??;
                    done += 1;
                }
                if left.fetch_sub(done, Relaxed) == done {
                    over.send_replace(true);
                }
            }
            answer = consumer.next(&want), if room > 0 => {
                let Deliveries { deliveries, .. } = answer?;
                for delivery in deliveries {
                    running.spawn(run(delivery));
                }
            }
            _ = ended.changed() => {}
        }
    }
    Ok(consumer.close().await?)
}

async fn run(delivery: Delivery) -> anyhow::Result<()> {
    let job = delivery.open()?;
    let claim = delivery.lease.claim().await?;
    ensure!(matches!(claim, Claim::Fresh { .. }), "a claim answered {claim:?}");
    drop(job);
    let verdict = verdict(&delivery.head, delivery.lease.id());
    delivery.lease.settle(verdict).await?;
    Ok(())
}

/// A success with an answer as long as a prompt.
pub(crate) fn verdict(head: &Head, lease: LeaseId) -> Verdict {
    let mut record = Record::unrun(head, End::Succeeded, None, Timestamp::now());
    (record.lease, record.worker, record.started_at) = (lease, Some("bench".to_owned()), Some(Timestamp::now()));
    record.attempts += 1;
    record.history.push(Attempt {
        n: record.attempts,
        worker: "bench".to_owned(),
        started_at: Timestamp::now(),
        ended_at: Timestamp::now(),
        class: None,
        code: None,
        detail: None,
        status_code: Some(200),
        usage: Usage { input_tokens: 70, output_tokens: 60, cached_tokens: 0, reasoning_tokens: 0 },
        cost: Some(Usd::from_nanos(1_250)),
    });
    record.answer = Some(Answer {
        status_code: 200,
        request_id: None,
        model: Some("mock".to_owned()),
        finish_reason: Some("stop".to_owned()),
        output: Output::Inline(Body::Text("a".repeat(TEXT))),
    });
    Verdict::End(Box::new(record))
}

async fn all(mut hands: JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    while let Some(hand) = hands.join_next().await {
        hand.context("a hand broke off")??;
    }
    Ok(())
}
