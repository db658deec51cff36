//! How much of each lane a worker may take now: the lanes behind a limit key, and each key's gate (`breaker.rs`).
//! Which jobs share a key is the runner's word; what becomes of a held-back job is the worker's.

mod breaker;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::job::{JobId, Lane};
use crate::outcome::{FailureClass, Outcome};
use crate::time::Timestamp;
use breaker::{Gate, Ticket};

pub use breaker::Ruling;

/// The most lanes and keys remembered; beyond that, those that nothing is known against are forgotten.
const REMEMBERED: usize = 10_000;

/// The limits of one worker. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Limits(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    table: Mutex<Table>,
    changed: Notify,
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

    /// How many jobs of a lane may be taken now: 0 while its key is shut, 1 when a probe is due, else any number.
    pub fn room(&self, lane: &Lane) -> u32 {
        let table = self.table();
        let gate = table.keys.get(lane).and_then(|key| table.gates.get(key));
        gate.map_or(u32::MAX, |gate| gate.room(Instant::now()))
    }

    /// Every lane with less than all the room in the world, by name.
    pub fn caps(&self) -> Vec<(Lane, u32)> {
        let (table, now) = (self.table(), Instant::now());
        if table.gates.values().all(|gate| gate.shut.is_none()) {
            return Vec::new();
        }
        let room = |key| table.gates.get(key).map_or(u32::MAX, |gate| gate.room(now));
        let mut caps: Vec<_> = table.keys.iter().map(|(lane, key)| (lane.clone(), room(key))).collect();
        caps.retain(|(_, room)| *room < u32::MAX);
        caps.sort_unstable();
        caps
    }

    /// Lets a job run, to be reported with what it came to, or says how long it should wait. Remembers the lane's key.
    pub fn admit(&self, lane: &Lane, key: &str) -> Result<Pass, Refused> {
        let now = Instant::now();
        let mut table = self.table();
        let key = table.remember(lane, key);
        let gate = table.gates.entry(Arc::clone(&key)).or_default();
        let ticket = gate.admit(now).map_err(|(wait, class)| Refused { wait, class });
        if ticket.is_ok_and(|ticket| ticket.probe) {
            self.0.changed.notify_one();
        }
        ticket.map(|ticket| Pass { limits: self.clone(), key, ticket, used: false })
    }

    /// The keys that hold jobs back now, longest first.
    pub fn held(&self) -> Vec<Held> {
        let (table, now) = (self.table(), Instant::now());
        let held = |(key, gate): (&Arc<str>, &Gate)| {
            let shut = gate.shut.as_ref()?;
            let until = Timestamp::now() + shut.until.saturating_duration_since(now);
            let (class, detail, since) = (shut.class, shut.detail.clone(), shut.since);
            Some(Held { key: key.to_string(), class, detail, since, until, probing: shut.probing })
        };
        let mut all: Vec<_> = table.gates.iter().filter_map(held).collect();
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
    fn remember(&mut self, lane: &Lane, key: &str) -> Arc<str> {
        if let Some(known) = self.keys.get(lane).filter(|known| &***known == key) {
            return Arc::clone(known);
        }
        if self.gates.len() >= REMEMBERED {
            self.gates.retain(|_, gate| !gate.is_plain());
        }
        if self.keys.len() >= REMEMBERED {
            let gates = &self.gates;
            self.keys.retain(|_, key| gates.get(key).is_some_and(|gate| gate.shut.is_some()));
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
    used: bool,
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
            if ruling.opened {
                table.opened.push(self.key.to_string());
            }
            ruling
        };
        if ruling.opened || ruling.wait.is_some() {
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
        if let Some(gate) = self.limits.table().gates.get_mut(&self.key) {
            gate.give_back(self.ticket);
        }
        if self.ticket.probe {
            self.limits.0.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Band, ModelName, Queue};
    use crate::outcome::{Failure, Reply};

    fn lane(model: &str, band: Band) -> Lane {
        Lane { queue: Queue::standard(), model: Some(ModelName::new(model)), band }
    }

    fn throttled(seconds: u64) -> Outcome {
        let mut failure = Failure::new(FailureClass::Throttled, "rate_limit", "slow down");
        failure.retry_after = Some(Duration::from_secs(seconds));
        Outcome::Failure(failure)
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_limit_closes_the_lanes_of_its_key_alone_and_opens_them_in_time() {
        let limits = Limits::new();
        let (a, b) = (lane("a", Band::Normal), lane("b", Band::Normal));
        let a_high = lane("a", Band::High);
        for (lane, key) in [(&a, "acme"), (&a_high, "acme"), (&b, "other")] {
            let pass = limits.admit(lane, key).unwrap();
            pass.report(JobId::fresh(), &Outcome::Success(Reply::default()));
        }
        limits.admit(&a, "acme").unwrap().report(JobId::fresh(), &throttled(9));
        assert_eq!((limits.room(&a), limits.room(&a_high), limits.room(&b)), (0, 0, u32::MAX));
        assert_eq!(limits.caps(), [(a_high.clone(), 0), (a.clone(), 0)]);
        assert_eq!(limits.admit(&a, "acme").unwrap_err().wait, Duration::from_secs(9));
        assert_eq!((limits.held()[0].key.as_str(), limits.held().len()), ("acme", 1));
        limits.changed().await;
        let before = Instant::now();
        limits.changed().await;
        assert_eq!(before.elapsed().as_secs(), 9);
        assert_eq!(limits.take_opened(), ["acme"]);
        assert_eq!((limits.room(&a), limits.take_opened().len(), limits.caps().len()), (u32::MAX, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_vanishes_makes_way_for_another() {
        let limits = Limits::new();
        let a = lane("a", Band::Normal);
        let down = Outcome::Failure(Failure::new(FailureClass::Capacity, "connect", "refused"));
        for _ in 0..breaker::TRIP {
            limits.admit(&a, "acme").unwrap().report(JobId::fresh(), &down);
        }
        assert_eq!(limits.room(&a), 0);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(limits.room(&a), 1);
        let probe = limits.admit(&a, "acme").unwrap();
        assert!(probe.is_probe() && limits.room(&a) == 0);
        drop(probe);
        assert_eq!(limits.room(&a), 1);
    }
}
