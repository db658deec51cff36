//! Money as a limit: what a call may cost at most, and the caps that such a sum is reserved from before it is sent, each a
//! key of the fleet's shared state as any other. Never in debt: what does not fit is not called. What is left is `till.rs`.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::amount::{Amounts, Cap, Measure, Per};
use super::call::Size;
use super::need::{Doubt, Need};
use super::part::Part;
use super::purse::{Came, Reservation};
use super::quota::{Book, Denied, Quotas};
use super::reserve::InLine;
use super::till::{FAR, NEAR};
use super::{Held, Limits, Pass};
use crate::broker::HoldKey;
use crate::job::{BatchName, Lane, Queue};
use crate::outcome::{CostSource, FailureClass, Outcome, Usage, Usd};
use crate::time::Timestamp;

/// A job keeps its slot for so long while others hold what is left: their calls may cost less than they reserved.
const MOMENT: Duration = Duration::from_secs(5);
/// A job that turns out to have to be reckoned comes again after so long.
const SECOND: Duration = Duration::from_secs(1);
/// Keys of money remembered; beyond that, those that nothing is known against are forgotten.
const BUDGETS: usize = 2_000;
/// Why nothing is called where a cap could not be kept.
const UNSHARED: &str = "what calls may cost is limited, but this ledger cannot share limits; hint: Redis or SQLite can, as \
                        broker or ledger (--ledger redis://HOST:6379)";
/// Complaints remembered.
const COMPLAINTS: usize = 100;

/// A cap on what calls cost, and whose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// What jobs wait for that it has no room for.
    pub hold: HoldKey,
    /// The cap; of a fleet's shared state another may be in force.
    pub cap: Cap,
    /// The queue, where all of whose jobs are under it: its lanes are closed while there is nothing left.
    pub queue: Option<Queue>,
}

impl Budget {
    /// What all jobs of a batch may cost together.
    pub fn of_batch(name: &BatchName, most: Usd) -> Self {
        let cap = Cap { measure: Measure::Usd, per: Per::Ever, most: most.as_nanos().max(1) };
        Self { hold: HoldKey::Batch(name.clone()), cap, queue: None }
    }

    /// What all jobs of a queue may cost together.
    pub fn of_queue(name: &Queue, cap: Cap) -> Self {
        Self { hold: HoldKey::Budget(name.to_string()), cap, queue: Some(name.clone()) }
    }

    /// The key of its shared state.
    pub fn key(&self) -> String {
        self.hold.to_string()
    }
}

/// Why a call may not be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turned {
    /// The account's limits have no room for it; with their key.
    Limit(Denied, String),
    /// There is no money for it.
    Short {
        /// What it waits for.
        hold: HoldKey,
        /// The least wait; it is woken when there is room before.
        wait: Duration,
    },
}

impl Limits {
    /// Whether what such a call costs is limited for its account, or for its model.
    pub fn is_priced(&self, pass: &Pass) -> bool {
        self.quotas().priced_by(pass.key()).is_some()
    }

    /// What a call's input may come to at most, in tokens.
    pub fn most_input(&self, pass: &Pass, size: &Size) -> u64 {
        self.quotas().book().estimates.most_input(pass.key(), size.bytes)
    }

    /// Reserves all that a call needs, or nothing: first `worst` of each budget in the given order (which must be the same
    /// everywhere), then its part of the limits it is under. Waits a moment for each. Dropping it gives all of it back; after
    /// it, the call counts as sent.
    ///
    /// # Errors
    /// What it may not be called for.
    pub async fn reserve_all(
        &self,
        mut pass: Pass,
        lane: &Lane,
        size: Size,
        (reckoned, budgets): (Option<Usd>, &[Budget]),
    ) -> Result<Pass, Turned> {
        let worst = reckoned.map_or(0, Usd::as_nanos);
        pass.money.worst = worst;
        if worst > 0 {
            for budget in budgets {
                let short = |wait| Turned::Short { hold: budget.hold.clone(), wait };
                let key = self.quotas().budget(budget);
                let key = key.ok_or_else(|| short(self.complain(&budget.key(), UNSHARED)))?;
                let reservation = self.quotas().afford(&key, worst).await.map_err(short)?;
                pass.money.reserved.push((key, reservation));
            }
            self.rules_afford(&pass, lane)?;
        }
        let mut pass = self.reserve(pass, lane, size).await.map_err(|(denied, key)| Turned::Limit(denied, key))?;
        if reckoned.is_none()
            && let Some(key) = self.quotas().priced_by(pass.key())
        {
            // A person has capped what it costs meanwhile.
            pass.unsent();
            return Err(Turned::Limit(Denied::Later(SECOND), key.to_string()));
        }
        pass.money.sent = true;
        Ok(pass)
    }

    /// Whether the caps on money of its rules have enough for the call, if all that is not spent came back.
    fn rules_afford(&self, pass: &Pass, lane: &Lane) -> Result<(), Turned> {
        let (quotas, worst) = (self.quotas(), pass.money.worst);
        for key in quotas.rules_for(pass.key()).iter() {
            let mut book = quotas.book();
            let is_alone = book.alone.is_some();
            let Some(part) = book.parts.get_mut(key).filter(|part| part.counts_money()) else { continue };
            part.costs(lane, worst);
            let wait = if is_alone {
                drop(book);
                self.complain(key, UNSHARED)
            } else if part.till.is_broke(worst) {
                quotas.asking.notify_one();
                part.turn_away(worst)
            } else {
                continue;
            };
            return Err(Turned::Short { hold: HoldKey::Limit(key.to_string()), wait });
        }
        Ok(())
    }

    /// A job may not be called until a person has mended something; `detail` says what. Shown for as long as such jobs come.
    pub fn complain(&self, key: &str, detail: &str) -> Duration {
        let (key, now, mut book) = (key.strip_prefix("limit:").unwrap_or(key), Timestamp::now(), self.quotas().book());
        book.complaints.retain(|_, held| held.until > now);
        let until = now + FAR * 2;
        if let Some(held) = book.complaints.get_mut(key) {
            held.until = until;
        } else if book.complaints.len() < COMPLAINTS {
            let (key, class, detail) = (key.to_owned(), FailureClass::Throttled, detail.to_owned());
            let (since, probing, cap, spent, to_mend) = (now, false, None, true, true);
            let held = Held { key: key.clone(), class, detail, since, until, probing, cap, spent, to_mend };
            book.complaints.insert(key, held);
        }
        FAR
    }

    /// The queues that no job may be taken from, as there is no money for one.
    pub(super) fn broke_queues(&self) -> Vec<Queue> {
        let book = self.quotas().book();
        book.parts.values().filter_map(|part| part.till.closes()).cloned().collect()
    }
}

/// What a pass has reserved of budgets.
#[derive(Debug, Default)]
pub(super) struct Paid {
    /// The most that its call may cost.
    pub(super) worst: i64,
    /// Whether the call was made, as far as anybody knows.
    pub(super) sent: bool,
    reserved: Vec<(Arc<str>, Reservation)>,
}

impl Paid {
    /// Books what its call has come to; nothing for one that was never made.
    pub(super) fn settle(&mut self, quotas: &Quotas, outcome: Option<&Outcome>) {
        let cost = if self.sent { outcome.map_or(self.worst, |outcome| cost(outcome, self.worst)) } else { 0 };
        for (key, reservation) in self.reserved.drain(..) {
            quotas.settle(&key, reservation.costs(cost), Came::Unsent);
            quotas.hurry(&key);
        }
    }
}

/// What an outcome has cost: what it says, or nothing where it was turned away before anything was worked on, or else the
/// worst, as nobody knows.
pub(super) fn cost(outcome: &Outcome, worst: i64) -> i64 {
    let guess = |cost: Option<Usd>| cost.map_or(worst, |cost| cost.as_nanos().max(worst));
    let failure = match outcome {
        Outcome::Success(reply) => {
            let source = reply.origin.as_ref().and_then(|origin| origin.cost_source);
            return match reply.cost {
                Some(cost) if source != Some(CostSource::Estimate) => cost.as_nanos(),
                guessed => guess(guessed),
            };
        }
        Outcome::Failure(failure) => failure,
    };
    if let (Some(cost), false) = (failure.cost, failure.class == FailureClass::UnknownBilled) {
        return cost.as_nanos();
    }
    if failure.usage == Usage::default() && !failure.class.may_cost(failure.status_code) {
        return 0;
    }
    guess(failure.cost)
}

impl Quotas {
    /// What a call has left is soon told: others may wait for it.
    fn hurry(&self, key: &Arc<str>) {
        let (now, mut book) = (self.now(), self.book());
        if let Some(part) = book.parts.get_mut(key) {
            part.hurry(now);
        }
        drop(book);
        self.asking.notify_one();
    }

    /// The key of a budget, known from now on; none where it cannot be shared.
    fn budget(&self, budget: &Budget) -> Option<Arc<str>> {
        let mut book = self.book();
        if book.alone.is_some() {
            return None;
        }
        let key = budget.key();
        if let Some((known, _)) = book.parts.get_key_value(key.as_str()) {
            return Some(Arc::clone(known));
        }
        book.forget_budgets();
        let key: Arc<str> = Arc::from(key);
        let mut part = Part::new(self.id, vec![budget.cap], false);
        part.till.queue.clone_from(&budget.queue);
        book.parts.insert(Arc::clone(&key), part);
        Some(key)
    }

    /// Waits, for a moment, until so much is reserved. Dropping it leaves the line.
    async fn afford(&self, key: &Arc<str>, usd: i64) -> Result<Reservation, Duration> {
        let deadline = Instant::now() + MOMENT;
        let amounts = Amounts { usd, ..Amounts::NONE };
        let need = Need { amounts, doubt: Doubt::default(), output_upfront: false };
        let (ticket, turned) = {
            let (now, mut book) = (self.now(), self.book());
            let Some(part) = book.parts.get_mut(key) else { return Err(NEAR) };
            part.till.needs(usd);
            if part.till.is_broke(usd) {
                self.asking.notify_one();
                return Err(part.turn_away(usd));
            }
            part.hurry(now);
            (part.purse.enter(&need), Arc::clone(&part.turned))
        };
        let _line = InLine::new(self, key, (ticket, need));
        loop {
            let mut turn = std::pin::pin!(turned.notified());
            turn.as_mut().enable();
            {
                let (now, mut book) = (self.now(), self.book());
                let Some(part) = book.parts.get_mut(key) else { return Err(NEAR) };
                if let Some(reservation) = part.purse.take(now, ticket, &need) {
                    return Ok(reservation);
                }
                if part.till.is_broke(usd) || Instant::now() >= deadline {
                    self.asking.notify_one();
                    return Err(part.turn_away(usd));
                }
            }
            self.asking.notify_one();
            tokio::select! {
                () = turn => {}
                () = sleep_until(deadline) => {}
            }
        }
    }
}

impl Book {
    /// Makes room for another key of money: what is at rest comes back from the shared state when it is needed.
    fn forget_budgets(&mut self) {
        if self.parts.len() >= BUDGETS {
            self.parts.retain(|key, part| key.parse::<HoldKey>().is_err() || !part.is_at_rest());
        }
    }
}

impl Part {
    /// A job goes back for want of money; its least wait, by chance up to twice as long, so that they do not all come at once.
    pub(super) fn turn_away(&mut self, usd: i64) -> Duration {
        let wait = self.till.turn_away(usd);
        if self.trouble.is_some() { NEAR } else { wait.mul_f64(1.0 + rand::random::<f64>()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::{Failure, Origin, Reply};

    #[test]
    fn what_nobody_knows_has_cost_the_worst_and_what_was_turned_away_nothing() {
        let usage = Usage { input_tokens: 9, ..Usage::default() };
        let of = |class, status_code, usage, known: Option<i64>| {
            let failure = Failure::new(class, "code", "");
            cost(&Outcome::Failure(Failure { status_code, usage, cost: known.map(Usd::from_nanos), ..failure }), 70)
        };
        let none = Usage::default();
        for (class, status, usage, known, came) in [
            (FailureClass::Throttled, Some(429), none, None, 0),
            (FailureClass::Capacity, None, none, None, 0),
            (FailureClass::Account, Some(401), none, None, 0),
            (FailureClass::Account, Some(200), usage, None, 70),
            (FailureClass::Fatal, Some(400), none, None, 0),
            (FailureClass::Fatal, Some(400), none, Some(7), 7),
            (FailureClass::Fatal, Some(200), none, None, 70),
            (FailureClass::Content, Some(200), usage, Some(5), 5),
            (FailureClass::Transient, Some(500), none, None, 70),
            (FailureClass::UnknownBilled, None, usage, None, 70),
            (FailureClass::UnknownBilled, None, usage, Some(40), 70),
            (FailureClass::UnknownBilled, None, usage, Some(90), 90),
        ] {
            assert_eq!(of(class, status, usage, known), came, "{class} {status:?} {known:?}");
        }
        let answered =
            |known: Option<i64>| Outcome::Success(Reply { cost: known.map(Usd::from_nanos), ..Reply::default() });
        assert_eq!((cost(&answered(Some(3)), 70), cost(&answered(None), 70)), (3, 70));
        let Outcome::Success(guessed) = answered(Some(3)) else { unreachable!("an answer") };
        let origin = Origin { cost_source: Some(CostSource::Estimate), ..Origin::default() }.kept();
        assert_eq!(cost(&Outcome::Success(Reply { origin, ..guessed }), 70), 70);
    }
}
