//! The ways that a lane's jobs may go, each a limit key, the preferred one first: which of them decides how much of a lane
//! may be taken now, what a lane waits for, and what may go on when a way opens. A way is passed by while its gate is shut
//! by an outage or its account is refused; a rate limit, or one that is used up, is waited for.

use std::sync::Arc;

use tokio::time::Instant;

use super::breaker::{Gate, Ruling, Ticket};
use super::quota::{PATIENCE, Quotas};
use super::rules::Rules;
use super::{Limits, Table};
use crate::job::Lane;
use crate::outcome::{FailureClass, Outcome};

/// The most lanes and keys remembered; beyond that, those that nothing is known against are forgotten.
const REMEMBERED: usize = 10_000;

/// The account that a limit key belongs to: its provider's name, or what runs here.
pub fn account_of(key: &str) -> &str {
    key.split_once('/').map_or(key, |(account, _)| account)
}

/// The ways of one lane.
pub(super) type Ways = Arc<[Way]>;

/// A provider and model.
#[derive(Clone, Debug)]
pub(super) struct Way {
    pub(super) key: Arc<str>,
    /// The rules that count for its jobs.
    pub(super) rules: Rules,
}

impl Way {
    /// Whether a name that people and jobs have for something in the way of jobs is one for this way.
    pub(super) fn has_name(&self, name: &str) -> bool {
        self.names().any(|own| own == name)
    }

    /// Its key, its account, its rules: what its jobs may wait for.
    fn names(&self) -> impl Iterator<Item = &str> {
        [&*self.key, account_of(&self.key)].into_iter().chain(self.rules.iter().map(|key| &**key))
    }
}

/// A lane's ways now.
#[derive(Debug)]
pub(super) struct Outlook<'a> {
    /// The first that is not passed by: what its jobs go by, or wait for.
    pub(super) leads: Option<&'a Way>,
    /// Those before it that a job may try.
    pub(super) due: Vec<&'a Way>,
}

impl Limits {
    /// The jobs of a lane go these ways, the preferred one first. A lane of which nobody says so has the one way that its
    /// jobs are admitted by.
    pub fn route<K: AsRef<str>>(&self, lane: &Lane, ways: &[K]) {
        self.table().remember(lane, ways, self.quotas());
    }

    /// How many jobs of a lane may be taken now: one for each shut way whose probe is due, and as many as the first way that
    /// is not passed by has room for, or any number.
    pub fn room(&self, lane: &Lane) -> u32 {
        if self.broke_queues().contains(&lane.queue) {
            return 0;
        }
        let table = self.table();
        table.ways.get(lane).map_or(u32::MAX, |ways| self.room_by(&table, lane, ways, Instant::now()))
    }

    fn room_by(&self, table: &Table, lane: &Lane, ways: &[Way], now: Instant) -> u32 {
        let ruled = |way: &Way, room: u32| {
            if room == 0 || way.rules.is_empty() { room } else { room.min(self.quotas().room(&way.rules, lane)) }
        };
        let Outlook { leads, due } = table.outlook(ways, now);
        let probes = due.into_iter().map(|way| ruled(way, 1)).sum::<u32>();
        let room_of = |way: &Way| table.gates.get(&way.key).map_or(u32::MAX, |gate| gate.room_of(lane, now));
        leads.map_or(0, |way| ruled(way, room_of(way))).saturating_add(probes)
    }

    /// Every lane with less than all the room in the world, by name; with rules every lane that is known.
    pub fn caps(&self) -> Vec<(Lane, u32)> {
        let (table, now) = (self.table(), Instant::now());
        let (ruled, broke) = (!self.quotas().is_empty(), self.broke_queues());
        if !ruled && broke.is_empty() && table.shuttable().all(|(_, gate)| gate.is_open()) {
            return Vec::new();
        }
        let room = |lane: &Lane, ways: &Ways| {
            if broke.contains(&lane.queue) { 0 } else { self.room_by(&table, lane, ways, now) }
        };
        let mut caps: Vec<_> = table.ways.iter().map(|(lane, ways)| (lane.clone(), room(lane, ways))).collect();
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

    /// These lanes hold ready jobs. `ways_of` says which ways a lane's jobs go, where it can be known.
    pub fn seen<'a, W: IntoIterator<Item = String>>(
        &self,
        lanes: impl Iterator<Item = &'a Lane>,
        ways_of: impl Fn(&Lane) -> W,
    ) {
        if !self.wants_lanes() {
            return;
        }
        for lane in lanes {
            let is_known = self.table().ways.contains_key(lane);
            if !is_known {
                let ways: Vec<_> = ways_of(lane).into_iter().collect();
                if ways.is_empty() {
                    continue;
                }
                self.route(lane, &ways);
            }
            for rules in self.table().seen(lane) {
                self.quotas().seen(&rules, lane);
            }
        }
    }

    /// Whether some of these lanes, whose jobs are ready, are closed only for a moment: by a limit that is used up within
    /// its window, or a rate limit whose time is soon over. Not for an account, an outage or a day's limit.
    pub fn opens_soon(&self, lanes: &[Lane]) -> bool {
        let now = Instant::now();
        lanes.iter().any(|lane| {
            let table = self.table();
            let Some(way) = table.ways.get(lane).and_then(|ways| table.outlook(ways, now).leads) else { return false };
            match table.gates.get(&way.key).and_then(|gate| gate.shut.as_ref()) {
                Some(shut) => shut.until <= now + PATIENCE,
                None => self.quotas().opens_soon(&way.rules),
            }
        })
    }

    /// Where a job of this lane probably goes that was leased: the rules and the endpoint that it counts under until it is
    /// there.
    pub(super) fn expected_at(&self, lane: &Lane) -> (Rules, Option<Arc<str>>) {
        let (mut table, now, none) = (self.table(), Instant::now(), (Rules::default(), None));
        let Some(ways) = table.ways.get(lane).map(Arc::clone) else { return none };
        let Outlook { leads, due } = table.outlook(&ways, now);
        let Some(Way { key, rules }) = leads.or(due.first().copied()) else { return none };
        let endpoint = table.gates.get_mut(key).and_then(|gate| gate.endpoint.as_mut()).filter(|_| self.is_slowed());
        let endpoint = endpoint.map(|endpoint| {
            endpoint.expect();
            Arc::clone(key)
        });
        drop(table);
        if !rules.is_empty() {
            self.quotas().expect(rules);
        }
        (rules.clone(), endpoint)
    }
}

impl Table {
    /// Everything that may be shut, by name: a way's gate, and an account's.
    pub(super) fn shuttable(&self) -> impl Iterator<Item = (&str, &Gate)> {
        let gates = self.gates.iter().map(|(key, gate)| (&**key, gate));
        gates.chain(self.accounts.iter().map(|(name, gate)| (&**name, gate)))
    }

    /// What becomes of a lane's jobs now.
    pub(super) fn outlook<'a>(&self, ways: &'a [Way], now: Instant) -> Outlook<'a> {
        let mut due = Vec::new();
        for way in ways {
            let (gate, account) = (self.gates.get(&way.key), self.accounts.get(account_of(&way.key)));
            let is_refused = account.is_some_and(|account| account.shut.is_some());
            if !is_refused && !gate.is_some_and(Gate::is_down) {
                return Outlook { leads: Some(way), due };
            }
            if [gate, account].into_iter().flatten().all(|gate| gate.room(now) > 0) {
                due.push(way);
            }
        }
        Outlook { leads: None, due }
    }

    /// Jobs of this lane are ready. The rules whose limits they may use now, way by way.
    fn seen(&mut self, lane: &Lane) -> Vec<Rules> {
        let now = Instant::now();
        let Some(ways) = self.ways.get(lane).map(Arc::clone) else { return Vec::new() };
        let Outlook { leads, due } = self.outlook(&ways, now);
        if let Some(endpoint) = leads.and_then(|way| self.gates.get_mut(&way.key)?.endpoint.as_mut()) {
            endpoint.seen(lane, now);
        }
        // The last word on what a lane comes under is that of the way that leads.
        due.into_iter().chain(leads).map(|way| way.rules.clone()).filter(|rules| !rules.is_empty()).collect()
    }

    pub(super) fn unexpect(&mut self, key: &str) {
        if let Some(endpoint) = self.gates.get_mut(key).and_then(|gate| gate.endpoint.as_mut()) {
            endpoint.unexpect();
        }
    }

    /// The way of a lane that a job goes; its only one unless more were said.
    pub(super) fn way(&mut self, lane: &Lane, key: &str, quotas: &Quotas) -> Arc<str> {
        let known = |ways: &Ways| ways.iter().find(|way| &*way.key == key).map(|way| Arc::clone(&way.key));
        if let Some(known) = self.ways.get(lane).and_then(known) {
            return known;
        }
        self.remember(lane, &[key], quotas);
        self.ways.get(lane).and_then(known).unwrap_or_else(|| Arc::from(key))
    }

    /// Remembers a lane's ways, each once.
    fn remember<K: AsRef<str>>(&mut self, lane: &Lane, keys: &[K], quotas: &Quotas) {
        let is_same = |ways: &Ways| ways.iter().map(|way| &*way.key).eq(keys.iter().map(AsRef::as_ref));
        if self.ways.get(lane).is_some_and(is_same) {
            return;
        }
        if self.gates.len() >= REMEMBERED {
            self.gates.retain(|_, gate| !gate.is_plain());
            self.accounts.retain(|_, account| !account.is_plain());
        }
        if self.ways.len() >= REMEMBERED {
            let is_open = |way: &Way| self.gates.get(&way.key).is_none_or(Gate::is_open);
            self.ways.retain(|_, ways| !ways.iter().all(is_open));
        }
        let mut ways: Vec<Way> = Vec::with_capacity(keys.len());
        for key in keys {
            let key = self.shared(key.as_ref());
            if !ways.iter().any(|way| way.key == key) {
                let rules = quotas.rules_of(&key);
                ways.push(Way { key, rules });
            }
        }
        self.ways.insert(lane.clone(), ways.into());
    }

    fn shared(&self, key: &str) -> Arc<str> {
        self.gates.get_key_value(key).map_or_else(|| Arc::from(key), |(shared, _)| Arc::clone(shared))
    }

    /// Something of this name is open again: what waits for it may go on.
    pub(super) fn open(&mut self, name: &str, now: Instant) {
        self.opened.insert(name.to_owned());
        self.rouse(name, now);
    }

    /// A way of this name has shut or opened. A job waits under one name alone: where its lane has another way to go, or a
    /// way again, it may go on, whichever of them it waits for.
    pub(super) fn rouse(&mut self, name: &str, now: Instant) {
        let behind = |ways: &&Ways| ways.len() > 1 && ways.iter().any(|way| way.has_name(name));
        let free = |ways: &&Ways| self.outlook(ways, now).leads.is_some();
        let names: Vec<_> = self.ways.values().filter(behind).filter(free).map(Arc::clone).collect();
        for way in names.iter().flat_map(|ways| ways.iter()) {
            self.opened.extend(way.names().map(str::to_owned));
        }
    }

    /// Tells the account of a way what a call that went this way came to, and adds what that means.
    pub(super) fn tell_account(
        &mut self,
        key: &str,
        ticket: Option<Ticket>,
        (now, outcome): (Instant, &Outcome),
        ruling: Ruling,
    ) -> Ruling {
        let name = account_of(key);
        let is_refused = matches!(outcome, Outcome::Failure(failure) if failure.class == FailureClass::Account);
        if is_refused && !self.accounts.contains_key(name) {
            self.accounts.insert(name.into(), Gate::default());
        }
        let Some(account) = self.accounts.get_mut(name) else { return ruling };
        let before = account.shut.is_some();
        account.report_account(now, ticket, outcome);
        let wait = account.wait(now);
        if before && wait.is_none() {
            self.open(name, now);
        } else if !before && wait.is_some() {
            self.rouse(name, now);
        }
        let opened = ruling.opened || (before && wait.is_none());
        Ruling { account: wait, opened, ..ruling }
    }

    /// A job that was to go this way came to nothing that its account would know of.
    pub(super) fn leave_account(&mut self, key: &str, ticket: Option<Ticket>, now: Instant) {
        if let Some((account, ticket)) = self.accounts.get_mut(account_of(key)).zip(ticket) {
            account.leave(now, ticket);
        }
    }
}

#[cfg(test)]
#[path = "tests/ways.rs"]
mod tests;
