//! What a worker is told: names, numbers and places, checked as a whole. Where they come from is the caller's business.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use promptq_common::broker::{Retention, WorkerId};
use promptq_common::error::{Error, Kind};
use promptq_common::job::{BatchName, Queue};
use promptq_common::limits::{Cap, Rule};
use promptq_common::outcome::Usd;
use promptq_common::price::Prices;

/// What a worker is told. There is no default on purpose: every caller says what it means, from [`Settings::standard`].
#[derive(Clone, Debug)]
pub struct Settings {
    /// Who it is to the others.
    pub worker: WorkerId,
    /// What it leases from, and each queue's share, at least 1.
    pub queues: Vec<(Queue, u32)>,
    /// How many jobs it runs at once, 1 to [`Settings::CONCURRENCY_MAX`].
    pub concurrency: u32,
    /// How long a lease lasts without a beat.
    pub lease: Duration,
    /// Between two beats; at most a third of the lease, so that two may fail.
    pub heartbeat: Duration,
    /// How long running jobs may go on after the first signal.
    pub drain_timeout: Duration,
    /// At this many deaths a job is dead, at least 1.
    pub max_deaths: u32,
    /// Leave after nothing was there to run for this long. While its queues hold jobs that others run or that wait for
    /// a time (scheduled, retrying, held), it stays up to a lease longer: by then what a dead worker ran has come back,
    /// and what was due soon has run. A job that another runs for longer, or that is due later, does not keep it.
    pub exit_when_idle: Option<Duration>,
    /// Leave after this many jobs were run; given back ones do not count.
    pub max_jobs: Option<u64>,
    /// Leave as soon as nothing is ready, or what is ready may not run for longer: for an account, an outage, a day's
    /// limit. What a minute's limit or a rate limit holds back for less than a minute it stays for.
    pub once: bool,
    /// Leave after the broker was out of reach for this long.
    pub give_up: Duration,
    /// Answers above this many bytes go to the store.
    pub inline_limit: u64,
    /// Without a store, answers above this many bytes make their job dead.
    pub inline_max: u64,
    /// Every answer goes to the store.
    pub store_all: bool,
    /// How long ended jobs are kept; given to each sweep.
    pub retention: Retention,
    /// How long answers are kept to be given again.
    pub reuse_kept: Duration,
    /// Whether batches are rolled up into the store; `promptq run` does so only when a store was named.
    pub roll_up: bool,
    /// Run only jobs of this batch: others in its queues are made dead (`other_batch`). For `promptq run`, whose
    /// workers may start programs for their own jobs alone.
    pub own_batch: Option<BatchName>,
    /// What all jobs of that batch may cost together, also those that were enqueued without a cap.
    pub own_cap: Option<Usd>,
    /// What may be used of accounts, by the key that shares it.
    pub limits: Vec<Rule>,
    /// What all jobs of a queue may cost together.
    pub budgets: BTreeMap<Queue, Cap>,
    /// The share of every limit that this worker keeps to where its ledger cannot share them, above 0 to 1.
    pub limit_share: f64,
    /// What models cost.
    pub prices: Prices,
    /// Folders whose file systems must not run full: the embedded database's, a local store's.
    pub disks: Vec<PathBuf>,
}

impl Settings {
    /// The most jobs one worker runs at once: 20,000, where beats alone come to 2,000 a second.
    pub const CONCURRENCY_MAX: u32 = 20_000;

    /// The documented defaults for a worker of this identity on these queues.
    pub fn standard(worker: WorkerId, queues: Vec<(Queue, u32)>) -> Self {
        Self {
            worker,
            queues,
            concurrency: 16,
            lease: Duration::from_secs(45),
            heartbeat: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(25),
            max_deaths: 3,
            exit_when_idle: None,
            max_jobs: None,
            once: false,
            give_up: Duration::from_secs(300),
            inline_limit: 64 * 1024,
            inline_max: 8 * 1024 * 1024,
            store_all: false,
            retention: Retention::standard(),
            reuse_kept: Retention::standard().succeeded,
            roll_up: true,
            own_batch: None,
            own_cap: None,
            limits: Vec::new(),
            budgets: BTreeMap::new(),
            limit_share: 0.125,
            prices: Prices::default(),
            disks: Vec::new(),
        }
    }

    /// Checks each value and how they fit together.
    ///
    /// # Errors
    /// `Config`, naming the first setting that does not fit and how to mend it.
    pub fn check(&self, has_store: bool) -> Result<(), Error> {
        if self.queues.is_empty() {
            return bad("no queue is named; hint: --queues default");
        }
        if let Some((queue, _)) = self.queues.iter().find(|(_, weight)| *weight == 0) {
            return bad(format!("queue {queue} has weight 0; hint: leave it out, or give it at least 1"));
        }
        let repeated = |at: usize| self.queues[..at].iter().any(|(queue, _)| *queue == self.queues[at].0);
        if let Some(at) = (0..self.queues.len()).find(|at| repeated(*at)) {
            return bad(format!("queue {} is named twice", self.queues[at].0));
        }
        if !(1..=Self::CONCURRENCY_MAX).contains(&self.concurrency) {
            let most = Self::CONCURRENCY_MAX;
            return bad(format!("concurrency is {}; hint: 1 to {most}", self.concurrency));
        }
        if self.heartbeat < Duration::from_millis(100) {
            return bad("the heartbeat is under 100ms; hint: 10s");
        }
        if self.lease < self.heartbeat * 3 {
            return bad("the lease is shorter than three heartbeats; hint: --lease 45s --heartbeat 10s");
        }
        if self.max_deaths == 0 {
            return bad("max_deaths is 0; hint: at least 1");
        }
        if self.max_jobs == Some(0) {
            return bad("max_jobs is 0; hint: at least 1, or leave it out");
        }
        if self.store_all && !has_store {
            return bad("every answer is to go to the store, but there is none; hint: --store file:///path");
        }
        Ok(())
    }
}

fn bad(detail: impl Into<String>) -> Result<(), Error> {
    Err(Error::new(Kind::Config, "check the worker's settings", detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings::standard(WorkerId::random("t"), vec![(Queue::standard(), 1)])
    }

    #[test]
    fn the_defaults_fit_together() {
        settings().check(false).unwrap();
    }

    #[test]
    fn each_misfit_is_named() {
        type Spoil = fn(&mut Settings);
        let cases: [(&str, Spoil); 8] = [
            ("no queue", |s| s.queues.clear()),
            ("weight 0", |s| s.queues[0].1 = 0),
            ("named twice", |s| s.queues.push((Queue::standard(), 2))),
            ("concurrency", |s| s.concurrency = Settings::CONCURRENCY_MAX + 1),
            ("three heartbeats", |s| s.lease = Duration::from_secs(29)),
            ("max_deaths", |s| s.max_deaths = 0),
            ("max_jobs", |s| s.max_jobs = Some(0)),
            ("there is none", |s| s.store_all = true),
        ];
        for (says, spoil) in cases {
            let mut settings = settings();
            spoil(&mut settings);
            let error = settings.check(false).unwrap_err();
            assert_eq!(error.kind(), Kind::Config);
            assert!(error.to_string().contains(says), "{error}");
        }
    }
}
