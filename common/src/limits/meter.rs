//! One cap of a limit key: what its window holds, how much of it is in force, and how much of that may go at once. Pure.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::amount::{Amounts, Cap, Measure, Per, float, whole};
use super::ask::Heard;
use super::brake::Brake;
use super::pool::{SILENT, part_of};
use super::view::CapView;
use super::window::Window;

/// What may be granted at once, of a limit by the minute: providers that say "a minute" also look at the second.
const AT_ONCE: f64 = 0.1;
/// How much faster than the limit that fills up again: it shapes bursts, and what it held back may be caught up with.
const REFILL: f64 = 1.1;
/// What a header said is believed for so long without being said again: accounts are raised, and a header may have been
/// one model's while several share the key.
pub(super) const BELIEVED: i64 = 600_000;
/// A provider counts a little otherwise than we do (and rounds): less than this says nothing about others on its account.
const TOLERANCE: f64 = 0.02;
/// More than that for so long is others' use, and no matter of who counted first.
const LASTS: i64 = 1_000;
/// Tokens a minute above which OpenAI asks for a slow ramp.
const LARGE: i64 = 1_000_000;
/// What is used up for ever may be had again when a person raises the cap: asked about so much later.
const RAISED_BY_THEN: i64 = 3_600_000;

/// A cap with its window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Meter {
    /// As the latest worker that asked has it configured, and when it did; without an end where nobody has.
    cap: Cap,
    wanted_at: i64,
    /// As a person set it.
    set: Option<i64>,
    /// As the provider's headers have it.
    learned: Option<i64>,
    heard_at: i64,
    /// Since when they have told of more than is known here, and how much of it is not used here at least.
    unknown: Option<(i64, i64)>,
    /// Whether those may raise it.
    adaptive: bool,
    /// What is in force now: all of it, and after refusals less.
    base: i64,
    most: i64,
    window: Window,
    /// What may be granted at once now; below zero after one job that was more.
    pace: f64,
    paced_at: i64,
}

/// How long a window's worth or less of it takes under such a cap that nothing else uses; `None` where all of it may go at
/// once.
pub fn paced(cap: &Cap, amount: i64) -> Option<Duration> {
    let late = amount.saturating_sub(part_of(cap.most, AT_ONCE));
    if late <= 0 || !is_paced(cap) {
        return None;
    }
    let minutes = float(late) / (float(cap.most.max(1)) * REFILL);
    Some(Duration::from_secs(60).mul_f64(minutes))
}

/// Whether refusals slow it down and little of it goes at once: no provider looks at what calls cost by the second.
fn is_paced(cap: &Cap) -> bool {
    cap.per == Per::Minute && cap.measure != Measure::Usd
}

impl Meter {
    pub(super) fn new(cap: Cap, now: i64) -> Self {
        let mut meter = Self {
            cap,
            wanted_at: now,
            set: None,
            learned: None,
            heard_at: 0,
            unknown: None,
            adaptive: false,
            base: cap.most,
            most: cap.most,
            window: Window::default(),
            pace: f64::INFINITY,
            paced_at: now,
        };
        meter.advance(now, &Brake::default());
        meter
    }

    pub(super) fn is_for(&self, measure: Measure, per: Per) -> bool {
        self.cap.measure == measure && self.cap.per == per
    }

    pub(super) fn measure(&self) -> Measure {
        self.cap.measure
    }

    fn is_paced(&self) -> bool {
        is_paced(&self.cap)
    }

    pub(super) fn set(&mut self, most: Option<i64>) {
        self.set = most.map(|most| most.max(1));
    }

    pub(super) fn configure(&mut self, now: i64, most: i64, adaptive: bool) {
        (self.cap.most, self.adaptive, self.wanted_at) = (most.max(1), adaptive, now);
    }

    /// A worker asked that has no such cap; nor has any other, if it was long ago that one asked. Whether it is still of use:
    /// what was consumed is kept for as long as it would count, should somebody have the cap again.
    pub(super) fn outlives(&mut self, now: i64) -> bool {
        let unwanted = now.saturating_sub(self.wanted_at);
        if unwanted >= SILENT {
            self.cap.most = i64::MAX;
        }
        self.set.is_some() || unwanted < SILENT.max(self.cap.per.millis())
    }

    pub(super) fn unlearn(&mut self) {
        self.learned = None;
    }

    /// The cap, whatever refusals have left of it; `None` where there is none any more.
    pub(super) fn allows(&self) -> Option<Cap> {
        (self.base < i64::MAX).then_some(Cap { most: self.base, ..self.cap })
    }

    /// Whether it allows so many tokens a minute that providers look at how fast their use grows.
    pub(super) fn is_large(&self) -> bool {
        let is_sent = matches!(self.cap.measure, Measure::InputTokens | Measure::Tokens);
        is_sent && self.cap.per == Per::Minute && self.base > LARGE && self.base < i64::MAX
    }

    /// The cap as it is in force.
    pub(super) fn in_force(&self) -> Cap {
        Cap { most: self.most, ..self.cap }
    }

    /// Brings it to `now`, with as much of it in force as the brake lets through.
    pub(super) fn advance(&mut self, now: i64, brake: &Brake) {
        (self.heard_at, self.wanted_at) = (self.heard_at.min(now), self.wanted_at.min(now));
        self.learned = self.learned.filter(|_| now.saturating_sub(self.heard_at) < BELIEVED);
        let learned = self.learned.unwrap_or(self.cap.most);
        let open = if self.adaptive { learned } else { learned.min(self.cap.most) };
        self.base = self.set.unwrap_or(open);
        self.most = if self.is_paced() { part_of(self.base, brake.rate) } else { self.base };
        if self.cap.per == Per::Moment {
            return;
        }
        self.window.advance(self.cap.per, now);
        if self.is_paced() {
            let passed = float(now.saturating_sub(self.paced_at).max(0)) / float(Per::Minute.millis());
            self.pace = (self.pace + float(self.most) * passed * REFILL).min(float(self.at_once()));
            // It does not fill up while nobody may call.
            self.paced_at = now.max(brake.frozen_until);
        }
    }

    fn at_once(&self) -> i64 {
        part_of(self.most, AT_ONCE)
    }

    /// What is not consumed and not `taken`, as much of it as may go at once; `earlier` of that goes to others.
    pub(super) fn left(&self, taken: i64, earlier: i64) -> i64 {
        let left = self.unspent().saturating_sub(taken);
        if self.is_paced() { left.min(whole(self.pace).saturating_sub(earlier)) } else { left }
    }

    /// Whether one job of that size may go now, however large it is beside what may go at once.
    pub(super) fn admits(&self, taken: i64, earlier: i64, needed: i64) -> bool {
        let fits = self.room_for(needed) >= self.used().saturating_add(taken).saturating_add(needed);
        fits && (!self.is_paced() || whole(self.pace).saturating_sub(earlier) >= needed.min(self.at_once()))
    }

    /// What is in force for a job of that size: one that is larger than the rest left by refusals would never run.
    fn room_for(&self, needed: i64) -> i64 {
        if needed > self.most { self.base } else { self.most }
    }

    /// After how long it may admit that, if nothing else is consumed; 0 where calls that end may be enough.
    pub(super) fn wait(&self, now: i64, taken: i64, earlier: i64, needed: i64) -> i64 {
        // Of money the worst is held, and calls cost less.
        let is_held = self.cap.measure == Measure::Usd && self.unspent() >= needed;
        if self.cap.per == Per::Moment || is_held {
            return 0;
        }
        if self.cap.per == Per::Ever {
            return RAISED_BY_THEN;
        }
        let target = self.room_for(needed).saturating_sub(taken).saturating_sub(needed);
        let falls = self.window.falls_to(self.cap.per, target, now) - now;
        if !self.is_paced() {
            return falls;
        }
        let lacking = float(needed.min(self.at_once()).saturating_add(earlier)) - self.pace;
        let filled = lacking / (float(self.most) * REFILL) * float(Per::Minute.millis());
        falls.max(whole(filled).saturating_add(1))
    }

    /// What is not consumed, whoever holds it; below zero where the cap was lowered.
    pub(super) fn unspent(&self) -> i64 {
        self.most.saturating_sub(self.used())
    }

    /// Consumed within the window.
    fn used(&self) -> i64 {
        self.window.sum()
    }

    pub(super) fn spend(&mut self, at: i64, amounts: &Amounts) {
        if self.cap.per != Per::Moment {
            self.window.add(self.cap.per, at, amounts.of(self.cap.measure));
        }
    }

    /// A grant goes out.
    pub(super) fn draw(&mut self, granted: &Amounts) {
        self.pace -= float(granted.of(self.cap.measure));
    }

    /// What of a grant was not used comes back; where more was used than granted, that is missing.
    pub(super) fn repay(&mut self, unused: &Amounts) {
        self.pace = (self.pace + float(unused.of(self.cap.measure))).min(float(self.at_once()));
    }

    /// After a refusal nothing goes at once: those who wait are let through one after the other.
    pub(super) fn drain(&mut self) {
        self.pace = self.pace.min(0.0);
    }

    /// What the provider says of it. What is used there and neither used nor held here was used by others of the account,
    /// if it is so for a while: answers count there as they end and here a little before, so that for moments it is so
    /// anyway. Then all that is used there counts, and what is held comes on top, for nobody knows what of it has arrived.
    pub(super) fn hear(&mut self, now: i64, age: i64, heard: &Heard, held: &Amounts) {
        if heard.most <= 0 {
            return;
        }
        (self.learned, self.heard_at) = (Some(heard.most), now.saturating_sub(age));
        let Some(left) = heard.left.filter(|left| *left >= 0) else { return };
        let unknown = heard.most.saturating_sub(left).saturating_sub(self.used());
        if unknown.saturating_sub(held.of(self.cap.measure)) <= part_of(heard.most, TOLERANCE) {
            self.unknown = None;
            return;
        }
        let (since, least) = self.unknown.map_or((now, unknown), |(since, least)| (since.min(now), least.min(unknown)));
        self.unknown = Some((since, least));
        if now.saturating_sub(since) >= LASTS {
            self.window.add(self.cap.per, now, least);
            self.unknown = None;
        }
    }

    pub(super) fn view(&self, held: &Amounts, in_calls: &Amounts) -> CapView {
        CapView {
            cap: self.in_force(),
            configured: self.cap.most,
            set: self.set,
            learned: self.learned,
            used: self.used(),
            held: held.of(self.cap.measure),
            in_calls: in_calls.of(self.cap.measure),
        }
    }
}
