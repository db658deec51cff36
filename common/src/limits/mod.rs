//! What holds the jobs of a limit key back: each key's gate and its account's (`breaker.rs`), by lane in `ways.rs`.
//! Which jobs share a key is the runner's word; what becomes of a held-back job is the worker's. What a fleet may use of
//! an account is `pool.rs`, kept in a ledger by `shared.rs`; a worker's part of it is `quota.rs`, asked for by `asking.rs`.

mod aimd;
mod amount;
mod ask;
mod asking;
mod behind;
mod bounded;
mod brake;
mod breaker;
mod budget;
mod call;
mod dollars;
mod ear;
mod estimate;
mod frozen;
mod latency;
mod line;
mod local;
mod member;
mod meter;
mod need;
mod part;
mod pool;
mod purse;
mod quota;
mod release;
mod reserve;
mod rules;
mod shared;
#[cfg(test)]
mod tests;
mod till;
mod view;
mod ways;
mod window;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::job::{JobId, Lane};
use crate::outcome::{Failure, FailureClass, Outcome};
use crate::time::Timestamp;
use breaker::{Gate, Ticket};

pub use amount::{Amounts, Cap, Measure, Per};
pub use ask::{Ask, Grant, Heard, Money};
pub use bounded::Bounded;
pub use breaker::Ruling;
pub use budget::{Budget, Turned};
pub use call::{Counts, Expected, Size};
pub use dollars::{Ceiling, DOLLARS, dollars_of};
pub use ear::Ear;
pub use estimate::{Asks, Estimates};
pub use meter::paced;
pub use need::{Doubt, Need, Portion};
pub use pool::Pool;
pub use purse::{Came, Purse, Reservation};
pub use quota::Denied;
pub use rules::{Rule, counting, covers, means};
pub use shared::{change, forget, look, reset};
pub use view::{CapView, Lack, PoolView};
pub use ways::account_of;

use budget::Paid;
use call::Reserved;
use frozen::Frost;
use quota::Quotas;
use ways::Ways;

/// The limits of one worker. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Limits(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    table: Mutex<Table>,
    changed: Notify,
    /// There is a freeze to tell the others of.
    freezing: Notify,
    quotas: Quotas,
    /// Whether any endpoint was ever given fewer calls at once: before that nobody counts what is leased.
    slowed: AtomicBool,
}

#[derive(Debug, Default)]
struct Table {
    /// The ways that a lane's jobs may go; jobs of one model share them.
    ways: HashMap<Lane, Ways>,
    /// By limit key.
    gates: HashMap<Arc<str>, Gate>,
    /// By the name of the account, once it was refused.
    accounts: HashMap<Box<str>, Gate>,
    /// By the keys that were frozen lately and that no rule tells of.
    frosts: BTreeMap<Arc<str>, Frost>,
    /// Keys opened since they were last asked for.
    opened: BTreeSet<String>,
}

/// A limit key that holds jobs back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The key.
    pub key: String,
    /// `throttled`, `capacity` or `account`.
    pub class: FailureClass,
    /// What the other side said.
    pub detail: String,
    /// Since when.
    pub since: Timestamp,
    /// When it is tried again, or opens.
    pub until: Timestamp,
    /// Whether a job tries it now.
    pub probing: bool,
    /// The cap that has nothing left, as it was told last; `None` where something else holds jobs back.
    pub cap: Option<Cap>,
    /// Whether it is money that is spent, or may not be: waiting alone does not help soon.
    pub spent: bool,
    /// Whether no cap is in the way but what `detail` says, which a person has to mend: more money would not help.
    pub to_mend: bool,
}

/// Why a job may not run now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The least wait, at least a second.
    pub wait: Duration,
    /// What its key waits for.
    pub class: FailureClass,
}

impl Limits {
    /// Nothing is held back.
    pub fn new() -> Self {
        Self::default()
    }

    /// Nothing is held back but by these rules, once [`Limits::keep_asking`] runs.
    pub fn ruled(rules: Vec<Rule>) -> Self {
        Self(Arc::new(Shared { quotas: Quotas::new(rules), ..Shared::default() }))
    }

    /// Whether it wants to be told which lanes hold jobs: it has rules, or an endpoint that gets fewer calls at once.
    pub fn wants_lanes(&self) -> bool {
        !self.0.quotas.is_empty() || self.is_slowed()
    }

    fn is_slowed(&self) -> bool {
        self.0.slowed.load(Ordering::Relaxed)
    }

    fn quotas(&self) -> &Quotas {
        &self.0.quotas
    }

    /// More was granted of a key, or less.
    fn granted(&self, key: &Arc<str>, opens: bool) {
        if opens {
            self.table().opened.insert(key.to_string());
        }
        self.0.changed.notify_one();
    }

    /// Lets a job run here, to be reported with what it came to, or says how long it should wait. Remembers the lane's key.
    pub fn admit(&self, lane: &Lane, key: &str) -> Result<Pass, Refused> {
        self.pass(lane, key, None)
    }

    /// The same for a call to an endpoint over a network, which gets fewer at once when it has too much to do.
    pub fn admit_call(&self, lane: &Lane, key: &str, counts: Counts) -> Result<Pass, Refused> {
        self.pass(lane, key, Some(counts))
    }

    fn pass(&self, lane: &Lane, key: &str, counts: Option<Counts>) -> Result<Pass, Refused> {
        let refused = |(wait, class)| Refused { wait, class };
        let now = Instant::now();
        let mut table = self.table();
        let key = table.way(lane, key, self.quotas());
        let account = table.accounts.get_mut(account_of(&key)).map(|account| account.admit(now, false)).transpose();
        let account = account.map_err(refused)?;
        let ticket = match table.gates.entry(Arc::clone(&key)).or_default().admit(now, counts.is_some()) {
            Ok(ticket) => ticket,
            Err((wait, class)) => {
                table.leave_account(&key, account, now);
                // With its account refused it is passed by, whatever else.
                let is_refused = account.is_some_and(|ticket| ticket.probe);
                return Err(refused((wait, if is_refused { FailureClass::Account } else { class })));
            }
        };
        drop(table);
        let (limits, counts) = (self.clone(), counts.unwrap_or_default());
        let pass = Pass { limits, key, ticket, account, counts, used: false, reserved: None, money: Paid::default() };
        if pass.is_probe() {
            self.0.changed.notify_one();
        }
        Ok(pass)
    }

    /// The keys that hold jobs back now, longest first.
    pub fn held(&self) -> Vec<Held> {
        let (table, now) = (self.table(), Instant::now());
        let held = |(key, gate): (&str, &Gate)| {
            let shut = gate.shut.as_ref()?;
            let until = Timestamp::now() + shut.until.saturating_duration_since(now);
            let (class, detail, since) = (shut.class, shut.detail.clone(), shut.since);
            Some(Held {
                key: key.to_owned(),
                class,
                detail,
                since,
                until,
                probing: shut.probing,
                cap: None,
                spent: false,
                to_mend: false,
            })
        };
        let mut all: Vec<_> = table.shuttable().filter_map(held).collect();
        drop(table);
        let (book, moment) = (self.quotas().book(), Timestamp::now());
        all.extend(book.parts.iter().filter_map(|(key, part)| part.held(key)));
        all.extend(book.complaints.values().filter(|held| held.until > moment).cloned());
        drop(book);
        all.sort_by(|a, b| (a.since, &a.key).cmp(&(b.since, &b.key)));
        all
    }

    /// The keys opened since the last call, each to be woken at the broker.
    pub fn take_opened(&self) -> Vec<String> {
        let now = Instant::now();
        let mut table = self.table();
        let over = table.gates.iter_mut().filter_map(|(key, gate)| gate.pass_time(now).then(|| Arc::clone(key)));
        let over: Vec<_> = over.collect();
        for key in over {
            table.open(&key, now);
        }
        std::mem::take(&mut table.opened).into_iter().collect()
    }

    /// Waits until room may have changed: after a report that shut or opened a gate, or when a gate's time has come.
    /// Cancel-safe.
    pub async fn changed(&self) {
        let next = {
            let (table, now) = (self.table(), Instant::now());
            let shut = table.shuttable().filter_map(|(_, gate)| gate.shut.as_ref());
            // A probe that is due already changes nothing; a rate limit that is over has not been taken yet.
            shut.filter_map(|shut| shut.turns_at().filter(|at| *at > now || shut.class == FailureClass::Throttled))
                .min()
        };
        match next {
            None => self.0.changed.notified().await,
            Some(at) => tokio::select! {
                () = self.0.changed.notified() => {}
                () = tokio::time::sleep_until(at) => {}
            },
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Every change below is whole before anything could panic.
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leave to run one job. Dropped without a report, it says nothing about the other side.
#[derive(Debug)]
pub struct Pass {
    limits: Limits,
    key: Arc<str>,
    ticket: Ticket,
    account: Option<Ticket>,
    counts: Counts,
    used: bool,
    reserved: Option<Box<Reserved>>,
    money: Paid,
}

impl Pass {
    /// Whether this job tries a key that is held back, or its account.
    pub fn is_probe(&self) -> bool {
        self.ticket.probe || self.account.is_some_and(|ticket| ticket.probe)
    }

    /// The limit key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Tells what the job came to.
    pub fn report(mut self, job: JobId, outcome: &Outcome) -> Ruling {
        self.used = true;
        let ruling = {
            let mut table = self.limits.table();
            let now = Instant::now();
            let gate = table.gates.entry(Arc::clone(&self.key)).or_default();
            let ruling = gate.report(now, self.ticket, job, outcome);
            if gate.endpoint.as_ref().is_some_and(|endpoint| endpoint.most().is_some()) {
                self.limits.0.slowed.store(true, Ordering::Relaxed);
            }
            if ruling.opened {
                table.open(&self.key, now);
            }
            let ruling = table.tell_account(&self.key, self.account, (now, outcome), ruling);
            if ruling.shut {
                table.rouse(&self.key, now);
            }
            ruling
        };
        self.money.settle(self.limits.quotas(), Some(outcome));
        if self.reserved.as_ref().and_then(|reserved| reserved.hears()).is_none() {
            self.limits.note_frost(&self.key, outcome);
        }
        if let Some(reserved) = self.reserved.take() {
            reserved.settle(outcome, ruling.wait);
        }
        if ruling.shut
            && let Outcome::Failure(Failure { class, detail, .. }) = outcome
        {
            if ruling.account.is_some() {
                tracing::warn!(account = account_of(&self.key), "an account is refused; its jobs wait: {detail}");
            } else {
                tracing::info!(key = &*self.key, %class, "calls fail; jobs wait while one at a time tries: {detail}");
            }
        }
        if let Some(at_once) = ruling.at_once {
            tracing::info!(key = &*self.key, at_once, "an endpoint has too much to do; it gets fewer calls at once");
        }
        if ruling.opened || ruling.wait.is_some() || ruling.account.is_some() || ruling.at_once.is_some() {
            self.limits.0.changed.notify_one();
        }
        ruling
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if self.used {
            return;
        }
        self.money.settle(self.limits.quotas(), None);
        let (mut table, now) = (self.limits.table(), Instant::now());
        if let Some(gate) = table.gates.get_mut(&self.key) {
            gate.leave(now, self.ticket);
        }
        table.leave_account(&self.key, self.account, now);
        drop(table);
        if self.is_probe() {
            self.limits.0.changed.notify_one();
        }
    }
}
