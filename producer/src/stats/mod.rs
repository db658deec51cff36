//! Queues as autoscalers and dashboards see them: how much there is, how old, how fast it goes, what holds it back and how
//! many workers it wants. For the exporter and the gateway; nothing is kept between two looks. What holds it back is `held.rs`.

mod held;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use promptq_common::broker::{Broker, Depth, QueueView};
use promptq_common::job::Queue;
use promptq_common::ledger::WorkerReport;
use promptq_common::limits::{Measure, counting};
use promptq_common::time::Timestamp;
use serde::Serialize;

use crate::command::queues::idle_scratch;
use crate::limits::waits::{of_queues, serves};
use crate::limits::{self, Standing, words};
use crate::problem::{Problem, Result};
use crate::scale::{Load, Speed, most_at_once, paces, speed, together, whole_f64, workers};

/// Queues shown where none are named: each is a dozen series.
const SHOWN: usize = 200;
/// Queues that are asked about at once.
const AT_ONCE: usize = 16;

/// One queue.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QueueStats {
    /// Its name.
    pub queue: Queue,
    /// What kind of broker has it.
    pub backend: &'static str,
    /// Whether it is paused.
    pub paused: bool,
    /// Could be leased.
    pub ready: u64,
    /// Leased.
    pub running: u64,
    /// Wait for a time; `None` where the broker counts those of all queues together.
    pub delayed: Option<u64>,
    /// In the dead set.
    pub dead: u64,
    /// Ready and running together: what workers are wanted for.
    pub unfinished: u64,
    /// How long the oldest ready job has waited; 0 without one, `None` where nobody knows.
    pub oldest_ready_age_seconds: Option<f64>,
    /// Whether that is so or about so.
    pub age_source: AgeSource,
    /// How long unfinished jobs take at the present rate; `None` while nothing ends.
    pub drain_seconds: Option<f64>,
    /// Workers that take jobs of it.
    pub consumers: u32,
    /// Jobs that one of them runs at once; of several the mean.
    pub concurrency_per_worker: u32,
    /// What holds its jobs back.
    pub blocked: Vec<BlockedJobs>,
    /// The most workers that limits leave work for; `None`: no limit says.
    pub useful_workers: Option<u64>,
    /// Workers that its unfinished jobs want, no more than are useful.
    pub desired_workers: u64,
}

/// How an age is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AgeSource {
    /// The broker said so.
    Exact,
    /// By how long jobs waited of late, and how many are before the last one.
    Estimate,
}

impl AgeSource {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Estimate => "estimate",
        }
    }
}

/// Jobs that one thing holds back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BlockedJobs {
    /// `paused`, `throttled`, `capacity`, `account` or `budget`.
    pub reason: &'static str,
    /// How many, as far as a sample tells.
    pub jobs: u64,
    /// When it is tried again, if somebody knows.
    pub until: Option<Timestamp>,
}

/// One limit key, for dashboards.
#[derive(Clone, Debug, PartialEq)]
pub struct Room {
    /// The key.
    pub key: String,
    /// What is left of each measure, in its own unit.
    pub left: BTreeMap<&'static str, f64>,
}

/// Everything there is to see of a broker at one moment.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// Its queues.
    pub queues: Vec<QueueStats>,
    /// Those of them that were asked for and that the broker knows nothing of: they are empty.
    pub unknown: Vec<Queue>,
    /// How many more there are.
    pub left_out: usize,
    /// The limits that are shared here, those of batches left out.
    pub limits: Vec<Room>,
}

/// These queues, or without any of them 200: those that are `named` (in the settings, and perhaps nowhere else yet), then the
/// first others by name that the broker knows. `concurrency` is what a worker runs at once where none has reported.
///
/// # Errors
/// As the broker's and the ledger's: out of reach is never an empty queue.
pub async fn look(broker: &Broker, asked: &[Queue], named: &BTreeSet<Queue>, concurrency: u32) -> Result<Look> {
    within(broker, asked, named, concurrency, &AtomicUsize::new(held::PAGES)).await
}

/// As far as so many pages of waiting jobs tell.
async fn within(
    broker: &Broker,
    asked: &[Queue],
    named: &BTreeSet<Queue>,
    concurrency: u32,
    pages: &AtomicUsize,
) -> Result<Look> {
    let (mut left_out, mut unknown) = (0, Vec::new());
    let views: Vec<QueueView> = if asked.is_empty() {
        let mut views = broker.queues().await?;
        views.retain(|view| !idle_scratch(view));
        let is_new = |name: &&Queue| views.iter().all(|view| view.queue != **name);
        let new: Vec<Queue> = named.iter().filter(is_new).cloned().collect();
        views.extend(several(broker, &new).await?.into_iter().map(|(view, _)| view));
        views.sort_by_cached_key(|view| (!named.contains(&view.queue), view.queue.clone()));
        left_out = views.len().saturating_sub(SHOWN);
        views.truncate(SHOWN);
        views
    } else {
        let seen = several(broker, asked).await?;
        unknown = seen.iter().filter(|(_, is_known)| !is_known).map(|(view, _)| view.queue.clone()).collect();
        seen.into_iter().map(|(view, _)| view).collect()
    };
    let ledger = broker.ledger();
    let workers = ledger.workers().await?;
    let waiting: Vec<Queue> = views.iter().filter(|view| view.depth.ready > 0).map(|view| view.queue.clone()).collect();
    let waits = if waiting.is_empty() { BTreeMap::new() } else { of_queues(ledger, &waiting).await? };
    let (keys, _) = limits::kept(ledger).await?;
    let keys = keys.into_iter().filter(|key| !key.starts_with("batch:")).collect();
    let standings = limits::several(ledger, keys, &workers).await?;
    let around = Around { workers: &workers, limits: &standings, concurrency, backend: broker.backend_name() };
    let stands = async |view: QueueView| {
        let waits = waits.get(&view.queue).map_or(&[][..], Vec::as_slice);
        let lacking = standings.iter().filter(|one| one.lacks().is_some() && !words::is_budget(&one.key));
        let waits: Vec<&Standing> = waits.iter().chain(lacking).collect();
        let blocked = held::blocked(ledger, &view, &waits, pages).await?;
        Ok::<_, Problem>(stats(view, blocked, &around))
    };
    let queues = stream::iter(views.into_iter().map(stands)).buffered(AT_ONCE).try_collect().await?;
    Ok(Look { queues, unknown, left_out, limits: standings.iter().filter_map(room).collect() })
}

/// These queues, each with whether the broker knows it.
async fn several(broker: &Broker, queues: &[Queue]) -> Result<Vec<(QueueView, bool)>> {
    let seen = if queues.is_empty() { Vec::new() } else { broker.several(queues).await? };
    let view = |(queue, seen): (&Queue, Option<QueueView>)| {
        let is_known = seen.is_some();
        let blank = || QueueView { queue: queue.clone(), paused: None, depth: Depth::default() };
        (seen.unwrap_or_else(blank), is_known)
    };
    Ok(queues.iter().zip(seen).map(view).collect())
}

/// What is known beside a queue.
#[derive(Debug)]
struct Around<'a> {
    workers: &'a [WorkerReport],
    limits: &'a [Standing],
    concurrency: u32,
    backend: &'static str,
}

fn stats(view: QueueView, (blocked, broke): (Vec<BlockedJobs>, u64), around: &Around<'_>) -> QueueStats {
    let QueueView { queue, paused, depth } = view;
    let serving: Vec<_> = around.workers.iter().filter(|w| !w.draining && serves(w, &queue)).collect();
    let slots: u32 = serving.iter().map(|worker| worker.slots).fold(0, u32::saturating_add);
    let consumers = u32::try_from(serving.len()).unwrap_or(u32::MAX);
    let concurrency = slots.checked_div(consumers).unwrap_or(around.concurrency).max(1);
    let speed = speed(paces(around.workers, &queue));
    let (age, age_source) = age(&depth, &speed, Timestamp::now());
    let unfinished = depth.ready + depth.running;
    let held = blocked.iter().filter(|blocked| blocked.reason != PAUSED).map(|blocked| blocked.jobs).sum();
    let wanted = workers(&Load {
        ready: depth.ready,
        held,
        broke,
        paused: paused.is_some(),
        running: depth.running,
        concurrency,
        most_at_once: bound(&queue, &speed, around),
    });
    QueueStats {
        queue,
        backend: around.backend,
        paused: paused.is_some(),
        ready: depth.ready,
        running: depth.running,
        delayed: (!depth.delayed_of_all).then_some(depth.delayed),
        dead: depth.dead,
        unfinished,
        oldest_ready_age_seconds: age,
        age_source,
        drain_seconds: drain(unfinished, &speed),
        consumers,
        concurrency_per_worker: concurrency,
        blocked,
        useful_workers: wanted.useful,
        desired_workers: wanted.desired,
    }
}

fn drain(unfinished: u64, speed: &Speed) -> Option<f64> {
    if unfinished == 0 { Some(0.0) } else { (speed.ended > 0.0).then(|| whole_f64(unfinished) / speed.ended) }
}

/// How long the oldest ready job has waited: as the broker says; else about as long as jobs did that started of late, or
/// as those before the last one take.
fn age(depth: &Depth, speed: &Speed, now: Timestamp) -> (Option<f64>, AgeSource) {
    if depth.ready == 0 {
        return (Some(0.0), AgeSource::Exact);
    }
    if let Some(since) = depth.oldest_ready {
        return (Some(now.since(since).as_secs_f64()), AgeSource::Exact);
    }
    let behind = (speed.ended > 0.0).then(|| whole_f64(depth.ready) / speed.ended);
    let waited = (speed.waited > Duration::ZERO).then_some(speed.waited.as_secs_f64());
    (waited.into_iter().chain(behind).max_by(f64::total_cmp), AgeSource::Estimate)
}

/// The most jobs of a queue that limits let run at once: by all the keys that its jobs come under, where each has one.
fn bound(queue: &Queue, speed: &Speed, around: &Around<'_>) -> Option<f64> {
    let keys: BTreeSet<&String> = paces(around.workers, queue).flat_map(|pace| &pace.keys).collect();
    let most = |rule: &str| {
        let rule = around.limits.iter().find(|standing| standing.key == rule)?;
        let share = rule.shared.as_ref().map_or(1.0, |shared| shared.rate);
        Some((rule.key.as_str(), most_at_once(rule.caps(), share, speed.call)?))
    };
    let rules = || around.limits.iter().map(|rule| rule.key.as_str());
    together(keys.into_iter().map(|key| (key.as_str(), counting(rules(), key).map(|rule| rule.and_then(most)))))
}

const PAUSED: &str = "paused";

fn room(standing: &Standing) -> Option<Room> {
    let shared = standing.shared.as_ref()?;
    let mut left = BTreeMap::new();
    for view in standing.caps() {
        #[expect(clippy::cast_precision_loss, reason = "the format knows no other numbers")]
        let number = |amount: i64| amount as f64;
        let unit = if view.cap.measure == Measure::Usd { 1e9 } else { 1.0 };
        let free = (number(view.cap.most) * shared.rate - number(view.used) - number(view.held)).max(0.0) / unit;
        let entry = left.entry(view.cap.measure.as_str()).or_insert(free);
        *entry = entry.min(free);
    }
    (!left.is_empty()).then(|| Room { key: standing.key.clone(), left })
}
