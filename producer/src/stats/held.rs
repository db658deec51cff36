//! What holds the ready jobs of a queue back: by the jobs that wait in it, and what workers and limits say.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use promptq_common::broker::{Depth, QueueView};
use promptq_common::error::Kind;
use promptq_common::job::Queue;
use promptq_common::ledger::{JobFilter, JobView, Ledger, Page};
use promptq_common::limits::{Lack, Measure, covers};
use promptq_common::outcome::FailureClass;
use promptq_common::record;
use promptq_common::time::Timestamp;

use super::{BlockedJobs, PAUSED};
use crate::limits::{Standing, State, words};
use crate::problem::Result;

/// Waiting jobs looked at for the share that something holds back.
const SAMPLE: usize = 200;
/// Where all of these may want for money alone the others are looked at too, so many at a time.
const PAGE: usize = 1_000;
/// The most such pages in one look, of all queues together. What is behind them may wait for something else than money.
pub(super) const PAGES: usize = 100;

/// What holds the ready jobs of a queue back, each job counted once: under the gravest thing that holds its lane. And how
/// many of them only money helps. What it reads beyond a sample is taken from `pages`.
pub(super) async fn blocked(
    ledger: &dyn Ledger,
    view: &QueueView,
    waits: &[&Standing],
    pages: &AtomicUsize,
) -> Result<(Vec<BlockedJobs>, u64)> {
    let ready = view.depth.ready;
    if view.paused.is_some() {
        let paused = (ready > 0).then_some(BlockedJobs { reason: PAUSED, jobs: ready, until: None });
        return Ok((Vec::from_iter(paused), 0));
    }
    if waits.is_empty() || ready == 0 {
        return Ok((Vec::new(), 0));
    }
    let (now, mut seen) = (Timestamp::now(), Seen::default());
    let mut next = seen.look(page(ledger, view, None, SAMPLE).await?, now);
    // Whoever runs something is wanted anyhow.
    let is_open = |seen: &Seen| {
        view.depth.running == 0 && seen.may_be_broke(waits, now) && !seen.is_whole(view, waits) && take(pages)
    };
    while let Some(cursor) = next.filter(|_| is_open(&seen)) {
        next = seen.look(page(ledger, view, Some(&cursor), PAGE).await?, now);
    }
    Ok(shares(view, waits, &seen, now))
}

/// One of those that are left, if any is.
fn take(pages: &AtomicUsize) -> bool {
    pages.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
}

/// Jobs of a queue that wait, newest first.
async fn page(ledger: &dyn Ledger, view: &QueueView, cursor: Option<&str>, limit: usize) -> Result<Page<JobView>> {
    let states = vec![record::State::Queued];
    let filter = JobFilter { queue: Some(view.queue.clone()), states, ..JobFilter::default() };
    match ledger.list(&filter, cursor, limit).await {
        Err(error) if error.kind() == Kind::Unsupported => Ok(Page { items: Vec::new(), next: None }),
        page => Ok(page?),
    }
}

/// The waiting jobs of a queue that were looked at.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Those that are ready, by model: how many, and since when the latest of them is.
    ready: BTreeMap<Option<String>, (u64, Timestamp)>,
    /// The keys that jobs went back for, with their models.
    back: BTreeSet<(String, Option<String>)>,
    /// How many wait for a time.
    delayed: u64,
    /// Whether there is none behind them.
    ended: bool,
}

impl Seen {
    /// Takes note of one page. Where the next one begins.
    pub(super) fn look(&mut self, page: Page<JobView>, now: Timestamp) -> Option<String> {
        for job in page.items {
            if let Some(hold) = &job.hold {
                self.back.insert((hold.limit_key(), job.model.clone()));
            }
            if job.due.is_none_or(|due| due <= now) {
                let since = job.due.map_or(job.created_at, |due| due.max(job.created_at));
                let (count, latest) = self.ready.entry(job.model).or_insert((0, since));
                (*count, *latest) = (*count + 1, since.max(*latest));
            } else {
                self.delayed += 1;
            }
        }
        self.ended = page.next.is_none();
        page.next
    }

    /// Whether money alone may be missing, as far as it was told after the last of these jobs came.
    fn may_be_broke(&self, waits: &[&Standing], now: Timestamp) -> bool {
        let latest = self.ready.values().map(|(_, since)| *since).max();
        let is_told = |lack| latest.is_none_or(|since| is_known(lack, since, now));
        waits.iter().any(|standing| standing.lacks().is_some_and(|(_, lack)| is_told(lack)))
    }

    /// Whether the jobs that were not looked at can tell nothing more: every ready one is among these, and what it waits for is
    /// known, or so is every job that could have gone back for want of it.
    pub(super) fn is_whole(&self, view: &QueueView, waits: &[&Standing]) -> bool {
        let is_known = |model: &Option<String>| self.behind(&(view.queue.clone(), model.clone()), waits).is_some();
        view.depth.oldest_ready.is_some()
            && self.has_all(view)
            && (self.delayed >= view.depth.delayed || self.ready.keys().all(is_known))
    }

    /// Whether every ready job is among these. RabbitMQ does not say since when jobs are ready, nor which are: those that it
    /// has wait a while are so by its ledger.
    fn has_all(&self, view: &QueueView) -> bool {
        let Depth { ready, delayed, .. } = view.depth;
        match view.depth.oldest_ready {
            Some(_) => self.all() >= ready,
            None => self.ended && self.all() >= ready.saturating_add(delayed),
        }
    }

    /// How many are ready.
    fn all(&self) -> u64 {
        self.ready.values().map(|(count, _)| count).sum()
    }

    /// What keeps the ready jobs of a queue and model waiting, the first of these.
    fn behind<'a>(&self, lane: &(Queue, Option<String>), waits: &[&'a Standing]) -> Option<&'a Standing> {
        let is_behind = |standing: &&&Standing| {
            // Once no worker tells what is behind a key, jobs of the same models that went back for want of it do.
            let is_named = lane.1.as_ref().is_some_and(|model| covers(&standing.key, model));
            words::is_budget(&standing.key)
                || standing.held.iter().any(|held| held.at_once.is_none() && held.lanes.contains(lane))
                || (standing.lacks().is_some()
                    && (is_named || self.back.contains(&(standing.key.clone(), lane.1.clone()))))
        };
        waits.iter().find(is_behind).copied()
    }
}

/// Whether somebody has looked for the money since.
fn is_known(lack: Lack, since: Timestamp, now: Timestamp) -> bool {
    since.as_millis() <= now.as_millis() - lack.ago
}

/// Of each reason the share of the ready ones among these jobs that stand behind it, as a part of all that is ready; and all
/// that is ready where all of it waits for money which workers have looked for since.
pub(super) fn shares(view: &QueueView, waits: &[&Standing], seen: &Seen, now: Timestamp) -> (Vec<BlockedJobs>, u64) {
    let (mut found, all) = (BTreeMap::<&'static str, (u64, Option<Timestamp>)>::new(), seen.all());
    let mut is_broke = !seen.ready.is_empty();
    for (model, (count, latest)) in &seen.ready {
        let standing = seen.behind(&(view.queue.clone(), model.clone()), waits);
        is_broke &= standing.and_then(Standing::lacks).is_some_and(|(_, lack)| is_known(lack, *latest, now));
        let Some(standing) = standing else { continue };
        let (jobs, until) = found.entry(reason(standing)).or_default();
        *jobs += count;
        *until = standing.held.iter().map(|held| held.until).chain(*until).min();
    }
    let part = |count: u64| {
        let jobs = (u128::from(count) * u128::from(view.depth.ready)).div_ceil(u128::from(all.max(1_u64)));
        u64::try_from(jobs).unwrap_or(u64::MAX)
    };
    // What was not looked at may be something else.
    let broke = if is_broke && seen.has_all(view) { view.depth.ready } else { 0 };
    let of = |(reason, (count, until))| BlockedJobs { reason, jobs: part(count), until };
    (found.into_iter().map(of).collect(), broke)
}

fn reason(standing: &Standing) -> &'static str {
    let of = |class| standing.held.iter().any(|held| held.class == class);
    let is_money = matches!(standing.state(), State::Full(cap, _) if cap.cap.measure == Measure::Usd);
    if words::is_budget(&standing.key) || is_money {
        "budget"
    } else if of(FailureClass::Account) {
        "account"
    } else if of(FailureClass::Capacity) {
        "capacity"
    } else {
        "throttled"
    }
}
