//! A worker's part of one limit key: what it was granted, what its calls reserve, what they came to. Pure: moments are
//! milliseconds of the worker's own clock. What the fleet shares is `pool.rs`.

use std::collections::BTreeMap;

use super::amount::{Amounts, Cap, Measure};
use super::ask::{Ask, Grant, Heard, aged, ages};
use super::latency::Latencies;
use super::line::Line;
use super::local::Pace;
use super::need::{Doubt, Need, Portion};
use super::pool::VOID_AFTER;

/// What was consumed is told by moments this far apart: a quarter of the slots of the shared log, and a day's fits in.
const GRAIN: i64 = 125;
/// A call that was sent counts at the provider when it is there: so much later at most, and usually less.
const ON_ITS_WAY: i64 = 250;
/// What a provider is heard to say between two asks; later words replace earlier ones of the same limit.
const HEARD: usize = 8;

/// A worker's part of one limit key.
#[derive(Debug)]
pub struct Purse {
    id: u64,
    seq: u64,
    /// As configured, and as the last answer has them: of people and headers too.
    caps: Vec<Cap>,
    in_force: Vec<Cap>,
    adaptive: bool,
    /// Granted and not reserved, until `void_at`.
    free: Amounts,
    void_at: i64,
    pace: Pace,
    /// No call begins before then.
    next_at: i64,
    /// Reserved by calls in flight and not consumed yet.
    running: Amounts,
    /// How far calls in flight may be off, those that have no more to consume included.
    doubt: Doubt,
    /// Consumed and not told yet, by moment.
    spent: BTreeMap<i64, Amounts>,
    /// Jobs that were opened and wait for their reservation.
    line: Line,
    refused: Option<(u64, i64)>,
    too_fast: bool,
    heard: Vec<(i64, Heard)>,
    heard_of: Vec<String>,
    epoch: u64,
    frozen_until: i64,
    latencies: Latencies,
    /// An ask on its way: whether it arrived is not known until it is answered.
    asked: Option<Asked>,
    /// Who was first in line at the last answer, and the wait that it named.
    told: Option<(u64, i64)>,
}

/// What was told, and when it was.
#[derive(Debug)]
struct Asked {
    ask: Ask,
    at: i64,
    moments: BTreeMap<i64, Amounts>,
    heard: Vec<(i64, Heard)>,
    /// Who was first in line.
    first: Option<u64>,
}

/// What a call has reserved.
#[derive(Debug)]
#[must_use = "a reservation that is dropped is never told to the others"]
pub struct Reservation {
    need: Need,
    at: i64,
    epoch: u64,
    /// What it cost in the end; its worst case unless that is told.
    cost: Option<i64>,
}

impl Reservation {
    /// What it has come to in money, in billionths of a dollar.
    pub(super) fn costs(self, usd: i64) -> Self {
        Self { cost: Some(usd.max(0)), ..self }
    }
}

/// What a call came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    /// It was answered, and this is what it consumed.
    Used {
        /// Tokens sent.
        input: i64,
        /// Tokens received.
        output: i64,
    },
    /// Turned away before anything was consumed but the request; with the wait in milliseconds if that was a rate limit.
    Refused(Option<i64>),
    /// The same, because there were more calls too soon: they may become more only slowly.
    TooFast(i64),
    /// Nobody knows: it counts as consumed.
    Unknown,
    /// It was never sent.
    Unsent,
}

impl Purse {
    /// An empty one. `id` tells its worker from the others of the key.
    pub fn new(id: u64, caps: Vec<Cap>, adaptive: bool) -> Self {
        Self {
            id,
            seq: 0,
            adaptive,
            free: Amounts::NONE,
            void_at: 0,
            pace: Pace::new(&caps),
            in_force: caps.clone(),
            caps,
            next_at: i64::MIN,
            running: Amounts::NONE,
            doubt: Doubt::default(),
            spent: BTreeMap::new(),
            line: Line::default(),
            refused: None,
            too_fast: false,
            heard: Vec::new(),
            heard_of: Vec::new(),
            epoch: 0,
            frozen_until: 0,
            latencies: Latencies::default(),
            asked: None,
            told: None,
        }
    }

    /// The cap that a job of that size is above, so that it could never run: what is configured, unless more is in force.
    /// One that was lowered may be raised again; such a job waits.
    pub fn above(&self, need: &Need) -> Option<Cap> {
        let certain = need.now();
        let in_force = |cap: &Cap| self.in_force.iter().find(|now| (now.measure, now.per) == (cap.measure, cap.per));
        let most = |cap: &Cap| in_force(cap).map_or(cap.most, |now| now.most.max(cap.most));
        self.caps.iter().map(|cap| Cap { most: most(cap), ..*cap }).find(|cap| certain.of(cap.measure) > cap.most)
    }

    /// The same with no longer an answer than any cap allows: that it may come to more is a guess, and no reason not to try.
    pub fn within(&self, need: &Need) -> Need {
        let output = self.at_most(need.amounts).output;
        Need { amounts: Amounts { output, ..need.amounts }, ..*need }
    }

    /// So much as every cap has room for at once: jobs that are larger on average are none of those that come next.
    fn at_most(&self, mut amounts: Amounts) -> Amounts {
        for cap in &self.in_force {
            match cap.measure {
                Measure::Requests => amounts.requests = amounts.requests.min(cap.most),
                Measure::InputTokens => amounts.input = amounts.input.min(cap.most),
                Measure::OutputTokens => amounts.output = amounts.output.min(cap.most),
                Measure::Tokens => {
                    amounts.input = amounts.input.min(cap.most);
                    amounts.output = amounts.output.min(cap.most - amounts.input);
                }
                Measure::Concurrent => amounts.calls = amounts.calls.min(cap.most),
                Measure::Usd => amounts.usd = amounts.usd.min(cap.most),
            }
        }
        amounts
    }

    /// How many more jobs of that size could start now; none while an opened one waits.
    pub fn room(&self, now: i64, mean: &Portion) -> u32 {
        if self.line.is_empty() { self.count(&self.free(now), mean) } else { 0 }
    }

    /// How many jobs of that size so much is for.
    pub(super) fn count(&self, amounts: &Amounts, mean: &Portion) -> u32 {
        let mean = self.at_most(mean.amounts);
        let parts = self.in_force.iter().filter(|cap| mean.of(cap.measure) > 0);
        let room = parts.map(|cap| amounts.of(cap.measure) / mean.of(cap.measure)).min().unwrap_or(i64::MAX);
        u32::try_from(room.max(0)).unwrap_or(u32::MAX)
    }

    pub(super) fn free(&self, now: i64) -> Amounts {
        if now < self.void_at && now >= self.frozen_until { self.free } else { Amounts::NONE }
    }

    /// Puts a job at the end of the line.
    pub fn enter(&mut self, need: &Need) -> u64 {
        self.line.enter(need, false)
    }

    /// The same of one that waits for another key before this one.
    pub(super) fn enter_aside(&mut self, need: &Need) -> u64 {
        self.line.enter(need, true)
    }

    /// Takes a job out of the line that waits no longer.
    pub fn leave(&mut self, ticket: u64) {
        self.line.leave(ticket);
    }

    /// Whether a place waits for another key, so that others go before it. Says whether that is news.
    pub(super) fn set_aside(&mut self, ticket: u64, aside: bool) -> bool {
        self.line.set_aside(ticket, aside)
    }

    /// Whether what there is would be enough for that place and for all before it.
    pub(super) fn reaches(&self, now: i64, ticket: u64) -> bool {
        self.line.up_to(ticket).is_some_and(|amounts| self.has(now, &amounts))
    }

    /// Whether that place may reserve this: it is first, and there is enough.
    pub(super) fn may_take(&self, now: i64, ticket: u64, need: &Need) -> bool {
        self.line.first().is_some_and(|(first, _)| first == ticket) && self.has(now, &need.amounts)
    }

    fn has(&self, now: i64, amounts: &Amounts) -> bool {
        let free = self.free(now);
        self.in_force.iter().all(|cap| amounts.of(cap.measure) <= free.of(cap.measure))
    }

    /// Whether the next call has its distance to the last one.
    pub(super) fn passes(&mut self, now: i64) -> bool {
        let wait = self.pace.pass(now).err();
        self.next_at = wait.map_or(self.next_at, |wait| now.saturating_add(wait));
        wait.is_none()
    }

    /// Reserves what the first in line needs; nothing for anybody else, and nothing while there is too little.
    pub fn take(&mut self, now: i64, ticket: u64, need: &Need) -> Option<Reservation> {
        (self.may_take(now, ticket, need) && self.passes(now)).then(|| self.reserve(now, ticket, need))
    }

    /// The same of one that may, and has its distance.
    pub(super) fn reserve(&mut self, now: i64, ticket: u64, need: &Need) -> Reservation {
        self.line.leave(ticket);
        self.free -= need.amounts;
        self.running += need.later();
        self.doubt = self.doubt + need.doubt;
        self.spend(now + ON_ITS_WAY, need.now());
        Reservation { need: *need, at: now, epoch: self.epoch, cost: None }
    }

    /// For how long the next call waits for no more than its distance to the last one.
    pub fn pause(&self, now: i64) -> i64 {
        self.next_at.saturating_sub(now).max(0)
    }

    /// For how long nobody calls.
    pub fn frozen_for(&self, now: i64) -> i64 {
        self.frozen_until.saturating_sub(now).max(0)
    }

    /// How long that place in line waits at least, if the last answer was about it.
    pub fn waits_for(&self, ticket: u64) -> Option<i64> {
        self.told.filter(|(first, _)| *first == ticket).map(|(_, wait)| wait)
    }

    /// A call has ended: what it reserved and did not consume is free for others, what it consumed beyond counts too.
    #[expect(clippy::needless_pass_by_value, reason = "a reservation is settled once")]
    pub fn settle(&mut self, now: i64, reservation: Reservation, came: Came) {
        let Reservation { need, at, epoch, cost } = reservation;
        self.spend(now, Amounts { usd: cost.unwrap_or(need.amounts.usd), ..Amounts::NONE });
        self.running -= need.later();
        self.doubt = if self.running.calls == 0 { Doubt::default() } else { self.doubt - need.doubt };
        let sent = need.now();
        match came {
            Came::Used { input, output } => {
                self.spend(at + ON_ITS_WAY, Amounts { input: input - sent.input, ..Amounts::NONE });
                let output = if need.output_upfront { 0 } else { output };
                self.latencies.learn(now - at);
                self.spend(at.max(now - self.latencies.usual()), Amounts { output, ..Amounts::NONE });
            }
            Came::Unknown => self.spend(now, Amounts { calls: 0, usd: 0, ..need.later() }),
            Came::Unsent => self.spend(at + ON_ITS_WAY, Amounts::NONE - sent),
            Came::Refused(_) | Came::TooFast(_) => {
                self.spend(at + ON_ITS_WAY, Amounts { requests: 0, ..Amounts::NONE - sent });
                self.too_fast |= matches!(came, Came::TooFast(_));
                if let Came::Refused(Some(wait)) | Came::TooFast(wait) = came {
                    let (known, longest) = self.refused.unwrap_or_default();
                    self.refused = Some((epoch.max(known), wait.max(longest)));
                    self.frozen_until = self.frozen_until.max(now + wait);
                }
            }
        }
    }

    /// Headers spoke of this model. More than two say nothing that two do not.
    pub(super) fn hear_of(&mut self, model: &str) {
        if self.heard_of.len() < 2 && self.heard_of.iter().all(|known| known != model) {
            self.heard_of.push(model.to_owned());
        }
    }

    /// What a header said; goes to the others with the next ask.
    pub fn hear(&mut self, now: i64, heard: Heard) {
        self.heard.retain(|(_, known)| (known.measure, known.per) != (heard.measure, heard.per));
        if self.heard.len() < HEARD {
            self.heard.push((now, heard));
        }
    }

    /// Whether there is anything to tell or to give back.
    pub fn has_news(&self) -> bool {
        !self.spent.is_empty()
            || self.free != Amounts::NONE
            || self.running != Amounts::NONE
            || self.refused.is_some()
            || !self.heard.is_empty()
            || !self.heard_of.is_empty()
            || self.asked.is_some()
    }

    /// Whether an ask is on its way, or nobody knows whether it came through.
    pub(super) fn awaits_answer(&self) -> bool {
        self.asked.is_some()
    }

    /// Whether something of this is capped, by settings or by a person since.
    pub(super) fn counts(&self, is_meant: impl Fn(Measure) -> bool) -> bool {
        self.caps.iter().chain(&self.in_force).any(|cap| is_meant(cap.measure))
    }

    /// Whether an answer has told a moment ago which caps there are: else people or headers may have changed them.
    pub(super) fn is_told(&self, now: i64) -> bool {
        now < self.void_at
    }

    /// Jobs in line.
    pub fn waiting(&self) -> usize {
        self.line.waiting()
    }

    /// The next ask: gives back what is free, and asks for what the line needs, or else for `jobs` of the mean size. While
    /// an earlier one was not answered it is that one again, since nobody knows whether it was heard.
    pub fn ask(&mut self, now: i64, mean: &Portion, jobs: u32, leaves: bool) -> Ask {
        self.ask_keeping(now, mean, (jobs, leaves), false)
    }

    /// The same; with `keeps` it keeps what one job needs, if it has that, and asks for no more.
    pub(super) fn ask_keeping(&mut self, now: i64, mean: &Portion, (jobs, leaves): (u32, bool), keeps: bool) -> Ask {
        if let Some(asked) = &mut self.asked {
            asked.at = now;
            let (spent, heard) = (ages(&asked.moments, now), aged(&asked.heard, now));
            return Ask { spent, heard, ..asked.ask.clone() };
        }
        self.seq += 1;
        let none = Portion::default();
        let (want, least) = match self.line.first() {
            Some((_, first)) => (self.line.sum(), first),
            None if jobs > 0 => {
                let mean = Portion { amounts: self.at_most(mean.amounts), ..*mean };
                (mean.times(f64::from(jobs)), mean)
            }
            None => (none, none),
        };
        let keeps = keeps && !leaves && least != none && self.has(now, &least.amounts);
        let (kept, want, least) = if keeps { (least, none, none) } else { (none, want, least) };
        self.free = kept.amounts;
        let (moments, heard) = (std::mem::take(&mut self.spent), std::mem::take(&mut self.heard));
        let ask = Ask {
            id: self.id,
            seq: self.seq,
            caps: self.caps.clone(),
            adaptive: self.adaptive,
            spent: ages(&moments, now),
            held: Portion { amounts: self.running, doubt: self.doubt } + kept,
            want,
            least,
            steps: if keeps { Vec::new() } else { self.line.steps() },
            refused: self.refused.take(),
            too_fast: std::mem::take(&mut self.too_fast),
            heard: aged(&heard, now),
            heard_of: std::mem::take(&mut self.heard_of),
            leaves,
        };
        let first = self.line.first().map(|(first, _)| first);
        self.asked = Some(Asked { ask: ask.clone(), at: now, moments, heard, first });
        ask
    }

    /// The answer to the last ask. It may be used for a moment, which began with that.
    pub fn granted(&mut self, now: i64, grant: &Grant) {
        let asked = self.asked.take();
        self.void_at = asked.as_ref().map_or(now, |asked| asked.at) + VOID_AFTER;
        self.told = asked.and_then(|asked| asked.first).zip(grant.wait);
        // What was kept meanwhile is kept on.
        self.free += grant.amounts;
        self.epoch = grant.epoch;
        // Whoever answered knows nothing yet of a refusal that came meanwhile.
        let here = if self.refused.is_some() { self.frozen_until } else { now };
        self.frozen_until = here.max(now + grant.frozen);
        self.pace.follow(&grant.caps);
        self.in_force.clone_from(&grant.caps);
    }

    fn spend(&mut self, at: i64, amounts: Amounts) {
        if amounts != Amounts::NONE {
            *self.spent.entry((at.div_euclid(GRAIN) + 1) * GRAIN).or_default() += amounts;
        }
    }
}
