//! How much of each lane a worker may take now: the lanes behind a limit key, and each key's gate (`breaker.rs`).
//! Which jobs share a key is the runner's word; what becomes of a held-back job is the worker's. What a fleet may use of
//! an account is `pool.rs`, kept in a ledger by `shared.rs`; a worker's part of it is `quota.rs`, asked for by `asking.rs`.

mod aimd;
mod amount;
mod asking;
mod behind;
mod brake;
mod breaker;
mod budget;
mod call;
mod ear;
mod estimate;
mod meter;
mod need;
mod part;
mod pool;
mod purse;
mod quota;
mod release;
mod shared;
#[cfg(test)]
mod sharing;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
mod till;
mod view;
mod window;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::job::{JobId, Lane};
use crate::outcome::{FailureClass, Outcome};
use crate::time::Timestamp;
use breaker::{Gate, Ticket};

pub use amount::{Amounts, Cap, Measure, Per};
pub use breaker::Ruling;
pub use budget::{Budget, Ceiling, DOLLARS, Turned, dollars_of};
pub use call::{Counts, Expected, Size};
pub use ear::Ear;
pub use estimate::{Asks, Estimates};
pub use need::{Doubt, Need, Portion};
pub use pool::{Ask, Grant, Heard, Money, Pool, VOID_AFTER};
pub use purse::{Came, Purse, Reservation};
pub use quota::{Denied, Rule, covers};
pub use shared::{change, look};
pub use view::{CapView, PoolView};

use budget::Paid;
use call::Reserved;
use quota::{PATIENCE, Quotas};

/// The most lanes and keys remembered; beyond that, those that nothing is known against are forgotten.
const REMEMBERED: usize = 10_000;

/// The limits of one worker. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Limits(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    table: Mutex<Table>,
    changed: Notify,
    quotas: Quotas,
    /// Whether any endpoint was ever given fewer calls at once: before that nobody counts what is leased.
    slowed: AtomicBool,
}

#[derive(Debug, Default)]
struct Table {
    /// The key that a lane's jobs have had; jobs of one model share one.
    keys: HashMap<Lane, Arc<str>>,
    gates: HashMap<Arc<str>, Gate>,
    /// Keys opened since they were last asked for.
    opened: Vec<String>,
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
    /// Whether it is money that is spent, or may not be: waiting alone does not help soon.
    pub spent: bool,
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

    /// How many jobs of a lane may be taken now: 0 while its key is shut, 1 when a probe is due, else as many as its limits
    /// have room for, or any number.
    pub fn room(&self, lane: &Lane) -> u32 {
        let table = self.table();
        let gate = table.keys.get(lane).and_then(|key| table.gates.get(key));
        let room = gate.map_or(u32::MAX, |gate| gate.room_of(lane, Instant::now()));
        let room = room.min(self.quotas().room(lane).unwrap_or(u32::MAX));
        if self.broke_queues().contains(&lane.queue) { 0 } else { room }
    }

    /// Every lane with less than all the room in the world, by name; with rules every lane that is known.
    pub fn caps(&self) -> Vec<(Lane, u32)> {
        let (table, now) = (self.table(), Instant::now());
        let (ruled, broke) = (!self.quotas().is_empty(), self.broke_queues());
        if !ruled && broke.is_empty() && table.gates.values().all(Gate::is_open) {
            return Vec::new();
        }
        let room = |lane: &Lane, key| {
            if broke.contains(&lane.queue) {
                return 0;
            }
            let room = table.gates.get(key).map_or(u32::MAX, |gate| gate.room_of(lane, now));
            if room > 0 && ruled { room.min(self.quotas().room(lane).unwrap_or(u32::MAX)) } else { room }
        };
        let mut caps: Vec<_> = table.keys.iter().map(|(lane, key)| (lane.clone(), room(lane, key))).collect();
        caps.retain(|(_, room)| ruled || *room < u32::MAX);
        caps.sort_unstable();
        caps
    }

    /// How many jobs may be taken from a lane that [`Limits::caps`] does not name, of `total` in all: with rules one, since
    /// nobody knows yet which is the lane's.
    pub fn rest(&self, total: u32) -> u32 {
        self.quotas().set_slots(total);
        if self.quotas().is_empty() { total } else { total.min(1) }
    }

    /// These lanes hold ready jobs. `key_of` says which limit key a lane's jobs have, where it can be known.
    pub fn seen<'a>(&self, lanes: impl Iterator<Item = &'a Lane>, key_of: impl Fn(&Lane) -> Option<String>) {
        if !self.wants_lanes() {
            return;
        }
        for lane in lanes {
            let known = self.table().seen(lane);
            let key = known.or_else(|| key_of(lane).map(|key| self.table().remember(lane, &key)));
            if let Some(key) = key {
                self.quotas().seen(lane, &key);
            }
        }
    }

    /// Whether some of these lanes, whose jobs are ready, are closed only for a moment: by a limit that is used up within
    /// its window, or a rate limit whose time is soon over. Not for an account, an outage or a day's limit.
    pub fn opens_soon(&self, lanes: &[Lane]) -> bool {
        let now = Instant::now();
        lanes.iter().any(|lane| {
            let table = self.table();
            let gate = table.keys.get(lane).and_then(|key| table.gates.get(key));
            let shut = gate.and_then(|gate| gate.shut.as_ref());
            let soon = shut.map(|shut| shut.class == FailureClass::Throttled && shut.until <= now + PATIENCE);
            drop(table);
            soon.unwrap_or_else(|| self.quotas().opens_soon(lane))
        })
    }

    /// More was granted of a key, or less.
    fn granted(&self, key: &Arc<str>, opens: bool) {
        if opens {
            self.table().opened.push(key.to_string());
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
        let now = Instant::now();
        let mut table = self.table();
        let key = table.remember(lane, key);
        let gate = table.gates.entry(Arc::clone(&key)).or_default();
        let ticket = gate.admit(now, counts.is_some()).map_err(|(wait, class)| Refused { wait, class })?;
        if ticket.probe {
            self.0.changed.notify_one();
        }
        drop(table);
        let (limits, counts) = (self.clone(), counts.unwrap_or_default());
        Ok(Pass { limits, key, ticket, counts, used: false, reserved: None, money: Paid::default() })
    }

    /// The keys that hold jobs back now, longest first.
    pub fn held(&self) -> Vec<Held> {
        let (table, now) = (self.table(), Instant::now());
        let held = |(key, gate): (&Arc<str>, &Gate)| {
            let shut = gate.shut.as_ref()?;
            let until = Timestamp::now() + shut.until.saturating_duration_since(now);
            let (class, detail, since) = (shut.class, shut.detail.clone(), shut.since);
            Some(Held { key: key.to_string(), class, detail, since, until, probing: shut.probing, spent: false })
        };
        let mut all: Vec<_> = table.gates.iter().filter_map(held).collect();
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
        let table = &mut *table;
        for (key, gate) in &mut table.gates {
            if gate.pass_time(now) {
                table.opened.push(key.to_string());
            }
        }
        std::mem::take(&mut table.opened)
    }

    /// Waits until room may have changed: after a report that shut or opened a gate, or when a gate's time has come.
    /// Cancel-safe.
    pub async fn changed(&self) {
        let next = {
            let (table, now) = (self.table(), Instant::now());
            let shut = table.gates.values().filter_map(|gate| gate.shut.as_ref());
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

impl Table {
    /// Jobs of this lane are ready. Its key, if it is known.
    fn seen(&mut self, lane: &Lane) -> Option<Arc<str>> {
        let key = Arc::clone(self.keys.get(lane)?);
        if let Some(endpoint) = self.gates.get_mut(&key).and_then(|gate| gate.endpoint.as_mut()) {
            endpoint.seen(lane, Instant::now());
        }
        Some(key)
    }

    /// A job of this lane was leased. The key of its endpoint, if that has one.
    fn expect(&mut self, lane: &Lane) -> Option<Arc<str>> {
        let key = self.keys.get(lane)?;
        self.gates.get_mut(key)?.endpoint.as_mut()?.expect();
        Some(Arc::clone(key))
    }

    fn unexpect(&mut self, key: &str) {
        if let Some(endpoint) = self.gates.get_mut(key).and_then(|gate| gate.endpoint.as_mut()) {
            endpoint.unexpect();
        }
    }

    fn remember(&mut self, lane: &Lane, key: &str) -> Arc<str> {
        if let Some(known) = self.keys.get(lane).filter(|known| &***known == key) {
            return Arc::clone(known);
        }
        if self.gates.len() >= REMEMBERED {
            self.gates.retain(|_, gate| !gate.is_plain());
        }
        if self.keys.len() >= REMEMBERED {
            let gates = &self.gates;
            self.keys.retain(|_, key| gates.get(key).is_some_and(|gate| !gate.is_open()));
        }
        let shared = self.gates.get_key_value(key).map_or_else(|| Arc::from(key), |(shared, _)| Arc::clone(shared));
        self.keys.insert(lane.clone(), Arc::clone(&shared));
        shared
    }
}

/// Leave to run one job. Dropped without a report, it says nothing about the other side.
#[derive(Debug)]
pub struct Pass {
    limits: Limits,
    key: Arc<str>,
    ticket: Ticket,
    counts: Counts,
    used: bool,
    reserved: Option<Box<Reserved>>,
    money: Paid,
}

impl Pass {
    /// Whether this job tries a key that is held back.
    pub fn is_probe(&self) -> bool {
        self.ticket.probe
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
            let gate = table.gates.entry(Arc::clone(&self.key)).or_default();
            let ruling = gate.report(Instant::now(), self.ticket, job, outcome);
            if gate.endpoint.as_ref().is_some_and(|endpoint| endpoint.most().is_some()) {
                self.limits.0.slowed.store(true, Ordering::Relaxed);
            }
            if ruling.opened {
                table.opened.push(self.key.to_string());
            }
            ruling
        };
        self.money.settle(self.limits.quotas(), Some(outcome));
        if let Some(reserved) = self.reserved.take() {
            reserved.settle(outcome, ruling.wait);
        }
        if let Some(at_once) = ruling.at_once {
            tracing::info!(key = &*self.key, at_once, "an endpoint has too much to do; it gets fewer calls at once");
        }
        if ruling.opened || ruling.wait.is_some() || ruling.at_once.is_some() {
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
        if let Some(gate) = self.limits.table().gates.get_mut(&self.key) {
            gate.leave(Instant::now(), self.ticket);
        }
        if self.ticket.probe {
            self.limits.0.changed.notify_one();
        }
    }
}
