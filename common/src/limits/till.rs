//! What a worker knows of the money under one limit key: what is left, what jobs need, and who went back for want of it.
//! Pure but for the clock. How a job gets its part is `budget.rs`.

use std::time::Duration;

use tokio::time::Instant;

use super::Held;
use super::amount::{float, whole};
use super::ask::{Grant, Money};
use crate::job::Queue;
use crate::outcome::FailureClass;
use crate::time::Timestamp;

/// A job that only a person, or another day, can help is looked at again so much later, if nobody wakes it before: at most
/// so often is it leased in vain. As long as RabbitMQ holds one back.
pub(super) const FAR: Duration = Duration::from_secs(600);
/// The same where others hold what it needs: their calls may cost less than they reserved.
pub(super) const NEAR: Duration = Duration::from_secs(10);
/// Jobs that went back are here again within this, unless somebody else has them or they are no more.
const FORGOTTEN: Duration = Duration::from_secs(1_800);

/// What was said longer ago is not known any more: what is looked at is looked at three times as often.
const FRESH: Duration = Duration::from_secs(15);

/// The money under one limit key.
#[derive(Debug, Default)]
pub(super) struct Till {
    /// As the last answer has it, and when that came.
    stands: Option<(Money, Instant)>,
    /// What a job costs at most, on average over the latest.
    mean: f64,
    /// Jobs that went back for want of it.
    away: Option<Away>,
    /// The queue all of whose jobs are under it.
    pub(super) queue: Option<Queue>,
}

#[derive(Clone, Copy, Debug)]
struct Away {
    /// The least that one of them needs.
    least: i64,
    since: Timestamp,
    last: Instant,
}

impl Till {
    /// A job may cost so much.
    pub(super) fn needs(&mut self, usd: i64) {
        let usd = float(usd);
        self.mean = if self.mean > 0.0 { self.mean * 0.9 + usd * 0.1 } else { usd };
    }

    fn stands(&self) -> Option<Money> {
        self.stands.filter(|(_, at)| at.elapsed() < FRESH).map(|(money, _)| money)
    }

    /// Whether so much would not be there if everybody gave back what is not spent.
    pub(super) fn is_broke(&self, usd: i64) -> bool {
        self.stands().is_some_and(|money| money.unspent < usd)
    }

    /// Whether another job like the latest could not be paid.
    pub(super) fn is_empty(&self) -> bool {
        self.stands().is_some_and(|money| self.mean > 0.0 && float(money.unspent) < self.mean)
    }

    /// A job that needs so much goes back; its least wait.
    pub(super) fn turn_away(&mut self, usd: i64) -> Duration {
        let away = self.away.get_or_insert_with(|| Away { least: usd, since: Timestamp::now(), last: Instant::now() });
        (away.least, away.last) = (away.least.min(usd), Instant::now());
        if self.is_broke(usd) { FAR } else { NEAR }
    }

    /// What the shared state says. Whether jobs that went back may come again.
    pub(super) fn note(&mut self, grant: &Grant) -> bool {
        self.stands = grant.money.map(|money| (money, Instant::now()));
        let open = grant.money.map(|money| money.open.max(grant.amounts.usd));
        self.away.take_if(|away| open.is_none_or(|open| open >= away.least)).is_some()
    }

    /// The queue that no job may be taken from now: those like the latest would go back.
    pub(super) fn closes(&self) -> Option<&Queue> {
        let money = self.stands()?;
        self.queue.as_ref().filter(|_| self.is_watched() && float(money.open) < self.mean)
    }

    /// Whether it has to be looked at although nobody asks for any.
    pub(super) fn is_watched(&self) -> bool {
        self.away.is_some_and(|away| away.last.elapsed() < FORGOTTEN)
    }

    /// The least that a job needs which went back for want of it, or else what the latest needed if there is not so much;
    /// nothing where there is.
    pub(super) fn lacks(&self) -> i64 {
        let away = self.away.filter(|_| self.is_watched()).map(|away| away.least);
        away.or_else(|| self.is_empty().then(|| whole(self.mean.ceil()))).unwrap_or_default()
    }

    /// How it stands beside a job that may cost so much.
    pub(super) fn says(&self, usd: i64) -> Option<String> {
        let money = self.stands()?;
        let say = |usd| money.cap.measure.say(usd);
        let spent = format!("{} of {} is spent", say(money.cap.most.saturating_sub(money.unspent)), money.cap);
        Some(if self.is_broke(usd) {
            format!("{spent}, and a job that waits may cost {}", say(usd))
        } else {
            format!("{spent}, and calls that run hold what is left")
        })
    }

    /// What keeps its jobs back, if something does.
    pub(super) fn held(&self, key: &str) -> Option<Held> {
        let away = self.away.filter(|_| self.is_watched())?;
        let (cap, detail, spent) = (self.stands()?.cap, self.says(away.least)?, self.is_broke(away.least));
        let until = Timestamp::now() + if spent { FAR } else { NEAR };
        let (key, class, since, cap) = (key.to_owned(), FailureClass::Throttled, away.since, Some(cap));
        Some(Held { key, class, detail, since, until, probing: false, cap, spent, to_mend: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{Amounts, Cap, Measure, Per};

    fn grant(unspent: i64, open: i64) -> Grant {
        let cap = Cap { measure: Measure::Usd, per: Per::Ever, most: 1_000 };
        Grant { money: Some(Money { cap, unspent, open }), amounts: Amounts::NONE, ..Grant::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn what_others_hold_comes_back_soon_and_what_is_spent_when_somebody_raises_the_cap() {
        let mut till = Till { queue: Some(Queue::standard()), ..Till::default() };
        till.needs(100);
        assert!(!till.note(&grant(150, 20)) && !till.is_broke(100) && till.closes().is_none(), "nobody went back");
        assert_eq!(till.turn_away(100), NEAR);
        assert!(till.closes().is_some() && !till.is_empty() && !till.held("k").unwrap().spent);
        assert!(till.note(&grant(140, 120)) && till.closes().is_none() && till.held("k").is_none());
        assert!(!till.note(&grant(90, 90)) && till.is_broke(100) && till.is_empty());
        assert_eq!(till.turn_away(100), FAR);
        assert_eq!(till.lacks(), 100);
        let held = till.held("k").unwrap();
        assert_eq!(held.detail, "$0.00000091 of $0.000001 is spent, and a job that waits may cost $0.0000001");
        assert!(held.spent && till.closes().is_some() && !till.note(&grant(90, 90)));
        assert!(till.note(&grant(5_000, 5_000)), "raised");
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_job_that_went_back_closes_nothing_and_is_forgotten_in_time() {
        let mut till = Till { queue: Some(Queue::standard()), ..Till::default() };
        till.needs(10);
        till.note(&grant(5, 5));
        assert_eq!(till.lacks(), 10, "nobody went back, and nobody was called");
        till.note(&grant(500, 500));
        assert_eq!(till.lacks(), 0);
        till.turn_away(600);
        assert!(till.closes().is_none() && till.is_watched() && till.held("k").unwrap().spent);
        tokio::time::advance(FRESH).await;
        assert!(till.is_watched() && !till.is_broke(600), "nobody knows any more");
        tokio::time::advance(FORGOTTEN).await;
        assert!(!till.is_watched() && till.held("k").is_none());
    }
}
