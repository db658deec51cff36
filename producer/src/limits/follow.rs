//! What keeps the jobs of a batch waiting, in a line, for those who follow it: as a run's own workers have it, or those of
//! the fleet that it waits for, with what is used of the limit.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use promptq_common::ledger::{BatchView, Ledger};
use promptq_common::outcome::FailureClass;
use promptq_common::time::Timestamp;
use promptq_worker::status::{Blocked, BlockedBy, Status};

use super::{Held, Standing, one, waits, words};

/// Between two looks at a shared limit: for a person a second is now, for a store it is nothing.
const OWN: Duration = Duration::from_secs(1);
/// And at what the workers of a fleet say, who tell of it every 10 s.
const FLEET: Duration = Duration::from_secs(3);

/// What a batch waits for.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    looked: Option<Instant>,
    says: Option<String>,
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
            if self.is_due(FLEET) {
                let standings = waits::of_batch(ledger, &batch.queue, &batch.name).await.unwrap_or_default();
                self.says = waits::line(&standings);
            }
            return self.says.clone();
        };
        let blocked = own.blocked.first()?;
        let BlockedBy::Limit { key, class: FailureClass::Throttled } = &blocked.by else {
            return Some(reason(blocked));
        };
        if self.is_due(OWN) {
            let standing = one(ledger, key.clone(), &[]).await.ok();
            self.says = standing.and_then(|standing| words::line(&Standing { held: vec![held(blocked)], ..standing }));
        }
        self.says.clone().or_else(|| Some(reason(blocked)))
    }

    fn is_due(&mut self, every: Duration) -> bool {
        let due = self.looked.is_none_or(|looked| looked.elapsed() >= every);
        if due {
            self.looked = Some(Instant::now());
        }
        due
    }
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
    use promptq_common::ledger::{Counts, Cursor};
    use promptq_common::limits::{self, Amounts, Ask, Cap, Measure, Per};
    use promptq_common::outcome::Usage;

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
        let blocked = Blocked { by, detail: detail.into(), since: Timestamp::now(), until: None };
        Status { blocked: vec![blocked], ..Status::default() }
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
        assert_eq!((line(Some(Status::default())).await, line(None).await), (None, None));
    }
}
