//! What keeps the jobs of a batch waiting, in a line, for those who follow it: as a run's own workers have it, or those of
//! the fleet that it waits for, with what is used of the limit.

use std::collections::BTreeSet;
use std::time::Duration;

use promptq_common::ledger::{BatchView, Counts, Ledger};
use promptq_common::outcome::FailureClass;
use promptq_common::time::{Timestamp, format_duration};
use promptq_worker::status::{Blocked, BlockedBy, Status};
use tokio::time::Instant;

use super::{Held, Standing, one, waits, words};
use crate::list::quoted;
use crate::submit::jobs;

/// Between two looks at a shared limit: for a person a second is now, for a store it is nothing.
const OWN: Duration = Duration::from_secs(1);
/// And at what the workers of a fleet say, who tell of it every 10 s.
const FLEET: Duration = Duration::from_secs(3);
/// For so long jobs may be ready and none begin before that is said; and again when it has been so many times as long.
const STILL: (Duration, u32) = (Duration::from_secs(60), 4);

/// What a batch waits for.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    /// When it looked, and at which key; at all of a fleet's with none.
    looked: Option<(Instant, String)>,
    says: Option<String>,
    /// The counts of a fleet's batch as they are, since when, and for how long when that was said.
    counts: Option<(Counts, Instant)>,
    said: Duration,
    /// What a person has to see to, and what was told of it.
    wanted: Option<String>,
    told: Option<String>,
}

impl Waits {
    /// In one line; `own` is what a run's own workers show, if it has any. What cannot be asked for is not told.
    /// Cancel-safe.
    pub(crate) async fn line(
        &mut self,
        ledger: &dyn Ledger,
        batch: &BatchView,
        own: Option<&Status>,
    ) -> Option<String> {
        let Some(own) = own else {
            if batch.counts.queued + batch.counts.delayed == 0 {
                return None;
            }
            let still = self.still(batch);
            if self.is_due(FLEET, "") {
                self.wanted = nobody(ledger, batch).await;
                let standings = waits::of_batch(ledger, (&batch.queue, &batch.name), None).await.unwrap_or_default();
                self.says = self.wanted.clone().or_else(|| waits::line(&standings));
                if self.says.is_none() && still >= STILL.0 {
                    self.tell_unmoved(batch, still);
                }
            }
            return self.says.clone();
        };
        let blocked = own.blocked.first()?;
        let BlockedBy::Limit { key, class: FailureClass::Throttled } = &blocked.by else {
            return Some(reason(blocked));
        };
        if self.is_due(OWN, key) {
            let standing = one(ledger, key.clone(), &[]).await.ok();
            self.says = standing.and_then(|standing| words::line(&Standing { held: vec![held(blocked)], ..standing }));
        }
        self.says.clone().or_else(|| Some(reason(blocked)))
    }

    /// What only a person can change of a fleet's batch, once for each such thing: it is said at once, beside the progress.
    pub(crate) fn news(&mut self) -> Option<String> {
        let news = self.wanted.clone().filter(|wanted| self.told.as_ref() != Some(wanted))?;
        self.told = Some(news.clone());
        Some(news)
    }

    /// Nothing moves, and nobody knows why: shown each time, news ever more rarely.
    fn tell_unmoved(&mut self, batch: &BatchView, still: Duration) {
        self.says = Some(unmoved(batch, still));
        if still >= self.said * STILL.1 {
            self.wanted.clone_from(&self.says);
            self.said = still;
        }
    }

    /// For how long jobs have been ready and none has begun or ended.
    fn still(&mut self, batch: &BatchView) -> Duration {
        let counts = batch.counts;
        let is_idle = counts.running == 0 && counts.queued > 0;
        match self.counts {
            Some((before, since)) if is_idle && before == counts => since.elapsed(),
            _ => {
                self.counts = Some((counts, Instant::now()));
                self.said = Duration::ZERO;
                Duration::ZERO
            }
        }
    }

    fn is_due(&mut self, every: Duration, key: &str) -> bool {
        let due = self.looked.as_ref().is_none_or(|(looked, of)| looked.elapsed() >= every || of != key);
        if due {
            self.looked = Some((Instant::now(), key.to_owned()));
        }
        due
    }
}

/// That no worker takes jobs of the batch's queue.
async fn nobody(ledger: &dyn Ledger, batch: &BatchView) -> Option<String> {
    let (workers, queue) = (ledger.workers().await.ok()?, &batch.queue);
    let is_served = workers.iter().any(|worker| waits::serves(worker, queue) && !worker.draining);
    (!is_served).then(|| format!("no worker serves queue {queue}; one that would: promptq-worker --queues {queue}"))
}

fn unmoved(batch: &BatchView, still: Duration) -> String {
    let minutes = format_duration(Duration::from_secs(still.as_secs() / 60 * 60));
    let (ready, batch) = (jobs(batch.counts.queued), quoted(&format!("batch={}", batch.name)));
    format!(
        "nothing has moved for {minutes}: {ready} may begin and none does; promptq queues list says what is paused, \
         promptq jobs list --where {batch} has ids for promptq jobs why"
    )
}

/// As it would be reported.
fn held(blocked: &Blocked) -> Held {
    Held {
        class: FailureClass::Throttled,
        detail: blocked.detail.clone(),
        since: blocked.since,
        until: blocked.until.unwrap_or_else(Timestamp::now),
        probing: false,
        workers: Vec::new(),
        lanes: BTreeSet::new(),
        at_once: None,
        cap: blocked.cap,
    }
}

/// What holds jobs back, and what was said of it.
pub(crate) fn reason(blocked: &Blocked) -> String {
    match &blocked.by {
        BlockedBy::Limit { key, class } => format!("{key} ({class}): {}", blocked.detail),
        BlockedBy::Memory | BlockedBy::Disk | BlockedBy::Settling | BlockedBy::Broker => blocked.detail.clone(),
    }
}

#[cfg(test)]
mod tests {
    use promptq_common::broker::Broker;
    use promptq_common::job::{BatchName, Queue};
    use promptq_common::ledger::Cursor;
    use promptq_common::limits::{self, Amounts, Ask, Cap, Measure, Per};
    use promptq_common::outcome::Usage;

    use super::super::tests::worker;
    use super::*;

    /// One job waits.
    fn batch() -> BatchView {
        BatchView {
            name: BatchName::new("b").unwrap(),
            queue: Queue::standard(),
            created_at: Timestamp::now(),
            sealed: true,
            cancelled: false,
            counts: Counts { total: 1, queued: 1, ..Counts::default() },
            usage: Usage::default(),
            cost: None,
            cost_unknown: 0,
            last: Cursor(0),
        }
    }

    fn status(class: FailureClass, detail: &str) -> Status {
        let by = BlockedBy::Limit { key: "acme".into(), class };
        let blocked = Blocked { by, detail: detail.into(), since: Timestamp::now(), until: None, cap: None };
        Status { blocked: vec![blocked], ..Status::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_says_that_nobody_serves_the_queue_and_that_nothing_moves() {
        let (broker, mut waits, mut batch) = (Broker::memory(), Waits::default(), batch());
        let nobody = "no worker serves queue default; one that would: promptq-worker --queues default";
        assert_eq!(waits.line(broker.ledger(), &batch, None).await.as_deref(), Some(nobody));
        assert_eq!((waits.news().as_deref(), waits.news()), (Some(nobody), None), "once");
        broker.ledger().report(&worker("w", Vec::new())).await.unwrap();
        waits.looked = None;
        assert_eq!(waits.line(broker.ledger(), &batch, None).await, None, "somebody does now");
        let later = async |minutes: u32| {
            tokio::time::advance(STILL.0 * minutes).await;
            broker.ledger().report(&worker("w", Vec::new())).await.unwrap();
        };
        later(2).await;
        let still = waits.line(broker.ledger(), &batch, None).await.unwrap();
        assert!(still.starts_with("nothing has moved for 2m: 1 job may begin and none does; promptq"), "{still}");
        assert!(still.contains("--where 'batch=b' ") && waits.news().as_ref() == Some(&still), "{still}");
        let mut news = Vec::new();
        for minutes in 3..=40 {
            later(1).await;
            let still = waits.line(broker.ledger(), &batch, None).await.unwrap();
            assert!(still.starts_with(&format!("nothing has moved for {minutes}m: ")), "{still}");
            news.extend(waits.news().map(|_| minutes));
        }
        assert_eq!(news, [8, 32], "each time after four times as long");
        later(1).await;
        batch.counts.running = 1;
        assert_eq!((waits.line(broker.ledger(), &batch, None).await, waits.news()), (None, None), "one runs");
        batch.counts.running = 0;
        assert_eq!(waits.line(broker.ledger(), &batch, None).await, None);
        later(1).await;
        assert!(waits.line(broker.ledger(), &batch, None).await.is_some() && waits.news().is_some(), "it stands anew");
    }

    #[tokio::test]
    async fn a_run_says_what_is_used_of_the_limit_it_waits_for() {
        let broker = Broker::memory();
        let caps = vec![Cap { measure: Measure::Requests, per: Per::Minute, most: 500 }];
        let spent = vec![(0, Amounts { requests: 497, ..Amounts::NONE })];
        let ask = Ask { id: 1, seq: 1, caps, spent, ..Ask::default() };
        limits::change(broker.ledger(), "acme", |pool, now| pool.ask(now, &ask)).await.unwrap();
        let line = async |own: Option<Status>| Waits::default().line(broker.ledger(), &batch(), own.as_ref()).await;
        let short = status(FailureClass::Throttled, "all of 500 requests/min is used; more workers will not help");
        let said = "limit-bound: acme 497 of 500 requests/min; more workers will not help";
        assert_eq!(line(Some(short)).await.as_deref(), Some(said));
        assert_eq!(
            line(Some(status(FailureClass::Account, "no credit"))).await.as_deref(),
            Some("acme (account): no credit")
        );
        assert_eq!(line(Some(Status::default())).await, None);
        let mut waits = Waits::default();
        let short = status(FailureClass::Throttled, "all of 500 requests/min is used; more workers will not help");
        assert_eq!(waits.line(broker.ledger(), &batch(), Some(&short)).await.as_deref(), Some(said));
        let mut other = status(FailureClass::Throttled, "slow down");
        other.blocked[0].by = BlockedBy::Limit { key: "beta".into(), class: FailureClass::Throttled };
        let then = waits.line(broker.ledger(), &batch(), Some(&other)).await.unwrap();
        assert!(then.contains("beta (slow down)"), "a moment later: {then}");
    }
}
