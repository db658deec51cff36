//! The limit keys that a worker has rules for: how much of each lane there is room for, and what each call reserves.
//! What it may use is granted by the fleet's shared state: `asking.rs`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::Held;
use super::amount::{Amounts, Cap};
use super::ask::Heard;
use super::estimate::Estimates;
use super::need::Need;
use super::part::Part;
use super::purse::{Came, Reservation};
use crate::job::Lane;

/// A job that was opened keeps its slot for so long while its reservation adds up: a window, by when all that stood in its
/// way has left it. Its lane is closed meanwhile, so that there are few of them; and given back it would begin anew, behind
/// smaller ones, and never run. Where it is known to wait for longer, or for a freeze, it goes back at once.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// While a key is frozen nobody's place in line is worth a slot; below this, going back and being leased again costs more.
pub(super) const FROZEN: Duration = Duration::from_secs(5);
/// Lanes remembered; beyond that, those without jobs are forgotten.
const LANES: usize = 10_000;

/// What a limit key may use.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// `provider`, or `provider/model` for every model that begins so.
    pub key: String,
    /// Its caps; none: it has no limits.
    pub caps: Vec<Cap>,
    /// Whether a provider's header may raise them.
    pub adaptive: bool,
}

impl Rule {
    /// Whether it is for jobs with this key of provider and model.
    fn is_for(&self, limit_key: &str) -> bool {
        covers(&self.key, limit_key)
    }
}

/// Whether a rule of this key is for jobs with that key of provider and model.
pub fn covers(rule_key: &str, limit_key: &str) -> bool {
    if rule_key.contains('/') { limit_key.starts_with(rule_key) } else { limit_key.split('/').next() == Some(rule_key) }
}

/// All that a worker has of the keys it has rules for.
#[derive(Debug)]
pub(super) struct Quotas {
    /// The longest key first.
    rules: Vec<Rule>,
    started: Instant,
    /// Tells this worker from the others of a key.
    pub(super) id: u64,
    /// Jobs that could be started now if there were room.
    slots: AtomicU32,
    book: Mutex<Book>,
    /// There may be something to ask.
    pub(super) asking: Notify,
}

/// What changes.
#[derive(Debug, Default)]
pub(super) struct Book {
    pub(super) parts: BTreeMap<Arc<str>, Part>,
    /// The rule's key of each lane that has one.
    pub(super) lanes: BTreeMap<Lane, Arc<str>>,
    pub(super) estimates: Estimates,
    /// Without a shared state: the share of each limit that this worker keeps to.
    pub(super) alone: Option<f64>,
    /// What only a person can mend before jobs run that may cost only so much, by limit key.
    pub(super) complaints: BTreeMap<String, Held>,
}

/// Why a call may not be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// It will never fit within this cap.
    Never(Cap),
    /// There was no room within a window; with the least wait.
    Later(Duration),
}

impl Default for Quotas {
    fn default() -> Self {
        Self {
            rules: Vec::new(),
            started: Instant::now(),
            id: rand::random(),
            slots: AtomicU32::new(0),
            book: Mutex::default(),
            asking: Notify::new(),
        }
    }
}

impl Quotas {
    pub(super) fn new(mut rules: Vec<Rule>) -> Self {
        rules.sort_by_key(|rule| std::cmp::Reverse(rule.key.len()));
        Self { rules, ..Self::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// This worker's own clock, in milliseconds.
    pub(super) fn now(&self) -> i64 {
        i64::try_from(self.started.elapsed().as_millis()).unwrap_or(i64::MAX)
    }

    pub(super) fn book(&self) -> MutexGuard<'_, Book> {
        // Every change is whole before anything could panic.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn slots(&self) -> u32 {
        self.slots.load(Ordering::Relaxed)
    }

    pub(super) fn set_slots(&self, free: u32) {
        self.slots.store(free, Ordering::Relaxed);
    }

    /// Jobs of this lane are ready, and this is their key.
    pub(super) fn seen(&self, lane: &Lane, limit_key: &str) {
        let now = self.now();
        let mut book = self.book();
        let Some(key) = book.rule_of(&self.rules, self.id, lane, limit_key) else { return };
        if let Some(part) = book.parts.get_mut(&key) {
            part.seen(lane, now);
            if part.is_due(now) {
                self.asking.notify_one();
            }
        }
    }

    /// How many jobs of this lane there is room for; `None` where it has no rule.
    pub(super) fn room(&self, lane: &Lane) -> Option<u32> {
        if self.is_empty() {
            return None;
        }
        let now = self.now();
        let book = self.book();
        let key = book.lanes.get(lane)?;
        book.parts.get(key).map(|part| part.room(lane, now))
    }

    /// A job of this lane was leased and has not reserved anything yet. Its key, if it has a rule.
    pub(super) fn expect(&self, lane: &Lane) -> Option<Arc<str>> {
        if self.is_empty() {
            return None;
        }
        let mut book = self.book();
        let key = Arc::clone(book.lanes.get(lane)?);
        book.parts.get_mut(&key)?.expected += 1;
        Some(key)
    }

    pub(super) fn unexpect(&self, key: &Arc<str>) {
        if let Some(part) = self.book().parts.get_mut(key) {
            part.expected = part.expected.saturating_sub(1);
        }
    }

    /// The key of the rule for jobs with this key of provider and model.
    pub(super) fn rule_key(&self, limit_key: &str) -> Option<&str> {
        self.rules.iter().find(|rule| rule.is_for(limit_key)).map(|rule| rule.key.as_str())
    }

    /// Whether a lane whose jobs wait is closed by nothing but its limits, and for no longer than an opened job waits.
    pub(super) fn opens_soon(&self, lane: &Lane) -> bool {
        let book = self.book();
        let part = book.lanes.get(lane).and_then(|key| book.parts.get(key));
        part.is_some_and(|part| part.opens_within(PATIENCE))
    }

    /// What a header said to a call of that provider and model, under the rule of this key.
    pub(super) fn hear(&self, key: &Arc<str>, limit_key: &str, heard: impl Iterator<Item = Heard>) {
        let now = self.now();
        if let Some(part) = self.book().parts.get_mut(key) {
            part.hear(now, limit_key, heard);
        }
        self.asking.notify_one();
    }

    /// The key of the rule for a job, if there is one.
    pub(super) fn rule_for(&self, lane: &Lane, limit_key: &str) -> Option<Arc<str>> {
        if self.is_empty() { None } else { self.book().rule_of(&self.rules, self.id, lane, limit_key) }
    }

    /// Waits in line until a call's needs are reserved. Dropping it leaves the line.
    pub(super) async fn reserve(&self, key: &Arc<str>, lane: &Lane, need: &Need) -> Result<Reservation, Denied> {
        let deadline = Instant::now() + PATIENCE;
        let above = |part: &Part| part.purse.above(need).filter(|_| part.purse.is_told(self.now()));
        let (within, ticket, turned) = {
            let mut book = self.book();
            let Some(part) = book.parts.get_mut(key) else { return Err(Denied::Later(Duration::from_secs(1))) };
            if let Some(cap) = above(part) {
                return Err(Denied::Never(cap));
            }
            let within = part.purse.within(need);
            part.opened(lane, &within);
            (within, part.purse.enter(&within), Arc::clone(&part.turned))
        };
        let _line = InLine { quotas: self, key, ticket };
        loop {
            let mut turn = std::pin::pin!(turned.notified());
            turn.as_mut().enable();
            let now = self.now();
            let pause = {
                let mut book = self.book();
                let Some(part) = book.parts.get_mut(key) else { return Err(Denied::Later(Duration::from_secs(1))) };
                if let Some(cap) = above(part) {
                    return Err(Denied::Never(cap));
                }
                if let Some(reservation) = part.purse.take(now, ticket, &within) {
                    return Ok(reservation);
                }
                if let Some(wait) = part.too_long(now, ticket) {
                    return Err(Denied::Later(wait));
                }
                if Instant::now() >= deadline {
                    part.given_back = true;
                    return Err(Denied::Later(part.wait()));
                }
                part.purse.pause(now)
            };
            self.asking.notify_one();
            let pause = u64::try_from(pause).unwrap_or_default();
            let until = if pause > 0 { deadline.min(Instant::now() + Duration::from_millis(pause)) } else { deadline };
            tokio::select! {
                () = turn => {}
                () = sleep_until(until) => {}
            }
        }
    }

    pub(super) fn settle(&self, key: &Arc<str>, reservation: Reservation, came: Came) {
        let now = self.now();
        if let Some(part) = self.book().parts.get_mut(key) {
            part.purse.settle(now, reservation, came);
        }
        self.asking.notify_one();
    }
}

/// A place in line.
pub(super) struct InLine<'a> {
    pub(super) quotas: &'a Quotas,
    pub(super) key: &'a Arc<str>,
    pub(super) ticket: u64,
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        if let Some(part) = self.quotas.book().parts.get_mut(self.key) {
            part.purse.leave(self.ticket);
            // Whoever is first now may look.
            part.turned.notify_waiters();
        }
    }
}

impl Book {
    /// The key of the rule for a lane's jobs, with a part to go with it.
    fn rule_of(&mut self, rules: &[Rule], id: u64, lane: &Lane, limit_key: &str) -> Option<Arc<str>> {
        let rule = rules.iter().find(|rule| rule.is_for(limit_key))?;
        if let Some(known) = self.lanes.get(lane).filter(|known| ***known == *rule.key) {
            return Some(Arc::clone(known));
        }
        let key: Arc<str> = Arc::from(rule.key.as_str());
        if !self.parts.contains_key(&key) {
            let caps = match self.alone {
                Some(share) => rule.caps.iter().map(|cap| cap.share(share)).collect(),
                None => rule.caps.clone(),
            };
            self.parts.insert(Arc::clone(&key), Part::new(id, caps, rule.adaptive));
        }
        if self.lanes.len() >= LANES {
            self.lanes.clear();
            self.parts.values_mut().for_each(Part::forget_lanes);
        }
        self.lanes.insert(lane.clone(), Arc::clone(&key));
        Some(key)
    }

    /// There is no shared state: this worker keeps to its share of every limit.
    pub(super) fn go_alone(&mut self, share: f64) {
        self.alone = Some(share);
        self.parts.values().for_each(|part| part.turned.notify_waiters());
        self.parts.clear();
        self.lanes.clear();
    }
}

impl Cap {
    /// A part of it, at least 1.
    fn share(&self, share: f64) -> Self {
        Self { most: super::pool::part_of(self.most, share), ..*self }
    }
}

/// A first guess of what a job takes, before any was opened: a page of text and a short answer.
pub(super) const GUESS: Amounts = Amounts::call(1_000, 256);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_key_that_fits_is_a_jobs_rule() {
        let rule = |key: &str| Rule { key: key.to_owned(), caps: Vec::new(), adaptive: false };
        let rules = ["openai", "openai/gpt-4o", "openai/gpt-4o-mini", "mock"].map(rule);
        let quotas = Quotas::new(rules.to_vec());
        let queue = crate::job::Queue::standard();
        for (n, (limit_key, found)) in [
            ("openai/gpt-4o-mini", Some("openai/gpt-4o-mini")),
            ("openai/gpt-4o", Some("openai/gpt-4o")),
            ("openai/gpt-4o-audio", Some("openai/gpt-4o")),
            ("openai/o3", Some("openai")),
            ("openai2/o3", None),
            ("mock", Some("mock")),
        ]
        .into_iter()
        .enumerate()
        {
            let model = Some(crate::job::ModelName::new(&n.to_string()));
            let lane = Lane { queue: queue.clone(), model, band: crate::job::Band::Normal };
            assert_eq!(quotas.rule_for(&lane, limit_key).as_deref(), found, "{limit_key}");
        }
    }
}
