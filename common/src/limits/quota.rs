//! The limit keys that a worker has rules for: how much of each lane there is room for. What a call reserves of them is
//! `reserve.rs`; what a worker may use is granted by the fleet's shared state: `asking.rs`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::Held;
use super::amount::{Amounts, Cap};
use super::ask::{Ask, Grant, Heard};
use super::estimate::Estimates;
use super::part::Part;
use super::purse::{Came, Reservation};
use super::rules::{Rule, Rules};
use super::ways::account_of;
use crate::job::Lane;

/// A job that was opened keeps its slot for so long while its reservation adds up: a window, by when all that stood in its
/// way has left it. Its lane is closed meanwhile, so that there are few of them; and given back it would begin anew, behind
/// smaller ones, and never run. Where it is known to wait for longer, or for a freeze, it goes back at once.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// While a key is frozen nobody's place in line is worth a slot; below this, going back and being leased again costs more.
pub(super) const FROZEN: Duration = Duration::from_secs(5);

/// All that a worker has of the keys it has rules for.
#[derive(Debug)]
pub(super) struct Quotas {
    rules: Vec<(Arc<str>, Rule)>,
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
    pub(super) fn new(rules: Vec<Rule>) -> Self {
        let rules = rules.into_iter().map(|rule| (Arc::from(rule.key.as_str()), rule)).collect();
        Self { rules, ..Self::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The rules that count for jobs with this key of provider and model.
    pub(super) fn rules_of(&self, limit_key: &str) -> Rules {
        Rules::of(self.rules.iter().map(|(key, _)| key), limit_key)
    }

    /// The same, with a part to go with each.
    pub(super) fn rules_for(&self, limit_key: &str) -> Rules {
        let rules = self.rules_of(limit_key);
        if !rules.is_empty() {
            let mut book = self.book();
            rules.iter().for_each(|key| book.know(&self.rules, self.id, key));
        }
        rules
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

    /// Jobs of this lane are ready, and these are their rules.
    pub(super) fn seen(&self, rules: &Rules, lane: &Lane) {
        let now = self.now();
        let mut book = self.book();
        for (key, inside) in rules.nested() {
            book.know(&self.rules, self.id, key);
            if let Some(part) = book.parts.get_mut(key) {
                part.seen(lane, now, inside);
                if part.is_due(now) {
                    self.asking.notify_one();
                }
            }
        }
    }

    /// How many jobs of this lane there is room for under its rules; none until something is known of them.
    pub(super) fn room(&self, rules: &Rules, lane: &Lane) -> u32 {
        let (now, book) = (self.now(), self.book());
        let granted = |key: &str| book.granted_for(key, now);
        let room = |key: &Arc<str>| book.parts.get(key).map_or(0, |part| part.room(lane, now, granted));
        rules.iter().map(room).min().unwrap_or(u32::MAX)
    }

    /// A job was leased and has not reserved anything yet.
    pub(super) fn expect(&self, rules: &Rules) {
        let mut book = self.book();
        for key in rules.iter() {
            if let Some(part) = book.parts.get_mut(key) {
                part.expected += 1;
            }
        }
    }

    pub(super) fn unexpect(&self, rules: &Rules) {
        let mut book = self.book();
        for key in rules.iter() {
            if let Some(part) = book.parts.get_mut(key) {
                part.expected = part.expected.saturating_sub(1);
            }
        }
    }

    /// Whether jobs that wait for nothing but the limits of their rules do so for no longer than an opened job waits.
    pub(super) fn opens_soon(&self, rules: &Rules) -> bool {
        let book = self.book();
        let soon = |key: &Arc<str>| book.parts.get(key).is_some_and(|part| part.opens_within(PATIENCE));
        !rules.is_empty() && rules.iter().all(soon)
    }

    /// The first of a call's rules that caps what calls cost.
    pub(super) fn priced_by(&self, limit_key: &str) -> Option<Arc<str>> {
        let rules = self.rules_for(limit_key);
        if rules.is_empty() {
            return None;
        }
        let book = self.book();
        let is_priced = |key: &&Arc<str>| book.parts.get(*key).is_some_and(Part::counts_money);
        rules.iter().find(is_priced).map(Arc::clone)
    }

    /// What a header said to a call of that provider and model, under the rule of this key.
    pub(super) fn hear(&self, key: &Arc<str>, limit_key: &str, heard: impl Iterator<Item = Heard>) {
        let now = self.now();
        if let Some(part) = self.book().parts.get_mut(key) {
            part.hear(now, limit_key, heard);
        }
        self.asking.notify_one();
    }

    pub(super) fn settle(&self, key: &Arc<str>, reservation: Reservation, came: Came) {
        let now = self.now();
        if let Some(part) = self.book().parts.get_mut(key) {
            part.purse.settle(now, reservation, came);
        }
        self.asking.notify_one();
    }
}

impl Book {
    /// Something is known of a rule from now on.
    fn know(&mut self, rules: &[(Arc<str>, Rule)], id: u64, key: &Arc<str>) {
        if self.parts.contains_key(key) {
            return;
        }
        let Some((_, rule)) = rules.iter().find(|(known, _)| known == key) else { return };
        let caps = match self.alone {
            Some(share) => rule.caps.iter().map(|cap| cap.share(share)).collect(),
            None => rule.caps.clone(),
        };
        let mut part = Part::new(id, caps, rule.adaptive);
        // Some jobs wait for several keys of an account at once.
        if let Some((_, kin)) = self.parts.iter().find(|(known, _)| account_of(known) == account_of(key)) {
            part.turned = Arc::clone(&kin.turned);
        }
        self.parts.insert(Arc::clone(key), part);
    }

    fn granted_for(&self, key: &str, now: i64) -> u32 {
        self.parts.get(key).map_or(0, |part| part.granted_for(now))
    }

    /// What is told and asked of a key now.
    pub(super) fn ask(&mut self, key: &Arc<str>, now: i64, (slots, leaves): (u32, bool)) -> Option<Ask> {
        let inside: BTreeMap<_, _> = match self.parts.get(key)?.inside() {
            keys if keys.is_empty() => BTreeMap::new(),
            keys => keys.into_iter().map(|key| (Arc::clone(key), self.granted_for(key, now))).collect(),
        };
        let granted = |key: &str| inside.get(key).copied().unwrap_or_default();
        let account = self.parts.get(account_of(key)).filter(|_| key.contains('/'));
        let waits = account.is_some_and(|account| account.is_short(now));
        Some(self.parts.get_mut(key)?.ask(now, (slots, leaves), granted, waits))
    }

    /// A key was granted something. Whether jobs that went back for want of room may come again.
    pub(super) fn granted(&mut self, key: &Arc<str>, now: i64, grant: &Grant) -> bool {
        let Some(part) = self.parts.get_mut(key) else { return false };
        let before = part.granted_for(now);
        let opens = part.granted(now, grant);
        let is_more = before == 0 && part.granted_for(now) > 0;
        if let Some(account) = self.parts.get_mut(account_of(key)).filter(|_| is_more && key.contains('/')) {
            account.ask_now(now);
        }
        opens
    }

    /// There is no shared state: this worker keeps to its share of every limit.
    pub(super) fn go_alone(&mut self, share: f64) {
        self.alone = Some(share);
        self.parts.values().for_each(|part| part.turned.notify_waiters());
        self.parts.clear();
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
