//! What a fleet shares of one limit key: what was consumed, who holds what, and how the rest is dealt out. Pure
//! arithmetic on given moments; where it is kept is a ledger's affair, what a worker does with its part is `purse.rs`.

use serde::{Deserialize, Serialize};

use super::amount::{Amounts, Cap, Measure, Per, float, whole};
use super::ask::{Ask, Grant, Heard, Money};
use super::brake::Brake;
use super::member::Member;
use super::meter::{BELIEVED, Meter};
use super::need::Portion;
use super::view::{Lack, PoolView};

/// What is granted and not called for is void after this long, by the worker's own clock.
pub(super) const VOID_AFTER: i64 = 2_000;
/// A worker counts among those that share for so long after it asked.
const ACTIVE: i64 = 2_000;
/// A worker that has said nothing for so long is gone: what it held counts as consumed.
pub(super) const SILENT: i64 = 10_000;
/// The most workers of one key: each is some 100 bytes of a state that every ask reads and writes.
pub(super) const MEMBERS: usize = 500;
/// Between two asks of a worker: so much for each that shares, so that 20 of them come to about 20 a second; the least, and
/// the most, as grants are void soon.
const PAUSE: (i64, i64, i64) = (50, 100, 1_000);
/// The most workers remembered that went without a word while money was capped.
const GONE: usize = 100;
/// A freeze that ended so long ago, or a release, is nobody's concern any more.
const OVER: i64 = 3_600_000;
/// The most characters kept of what a refusal said.
const WHY: usize = 200;
/// And for how long one of them that held none: its last word, if that was not answered, is said again within this.
const LAST_WORD: i64 = 600_000;

/// The shared state of one limit key. Moments are milliseconds of the store's clock.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pool {
    /// The last moment it was looked at.
    at: i64,
    meters: Vec<Meter>,
    members: Vec<Member>,
    /// Workers that went without a word, with the moment that what they held was booked at. Money that one of them did not
    /// spend after all comes back with it, as after a while without the store: else a cap for ever would lose it for good.
    gone: Vec<(Member, i64)>,
    /// The models that headers spoke of lately, at most two, and when they last did.
    voices: Vec<(String, i64)>,
    brake: Brake,
    /// When a person ended all that held it back.
    released_at: Option<i64>,
    /// What was said by the refusal that froze it, where that was told.
    why: Option<String>,
}

impl Pool {
    /// Takes note of what a worker says, and gives it its part. An ask that was heard before changes nothing and is given
    /// nothing: what it was given the first time may be void, and comes back with the next.
    pub fn ask(&mut self, clock: i64, ask: &Ask) -> Grant {
        let now = self.advance(clock);
        self.take_back(ask.id);
        if self.members.iter().any(|member| member.id == ask.id && member.seq == ask.seq) {
            return self.answer(now, Amounts::NONE, None, None);
        }
        self.fit(now, &ask.caps, ask.adaptive);
        let known = self.note(now, ask);
        if let Some((epoch, wait)) = ask.refused
            && self.brake.refused(now, epoch, wait)
        {
            self.meters.iter_mut().for_each(Meter::drain);
            self.why = None;
        }
        if ask.too_fast && self.meters.iter().any(Meter::is_large) {
            self.brake.grow_slowly();
        }
        if self.are_of_one(now, &ask.heard_of) {
            ask.heard.iter().for_each(|(age, heard)| self.hear(now, *age, heard));
        }
        self.refit();
        let crowded = !known && self.members.len() > MEMBERS;
        if ask.leaves || crowded {
            self.lose(ask.id, now);
            return Grant { crowded: crowded && !ask.leaves, ..self.answer(now, Amounts::NONE, None, None) };
        }
        self.share(now, ask)
    }

    /// A call was refused of which no rule tells: nobody calls for so long. How it stands then.
    pub fn freeze(&mut self, clock: i64, wait: i64, why: &str) -> PoolView {
        let now = self.advance(clock);
        if self.brake.freeze(now, wait) {
            self.why = Some(why.chars().take(WHY).collect());
        }
        self.view(clock)
    }

    /// Whether it has nothing to say any more to anybody who does not know it.
    pub fn is_blank(&mut self, clock: i64) -> bool {
        let now = self.advance(clock);
        let knows = !self.meters.is_empty() || !self.members.is_empty() || !self.gone.is_empty();
        let is_held = self.brake.is_frozen(now.saturating_sub(OVER));
        !knows && !is_held && self.released_at.is_none_or(|at| now.saturating_sub(at) > OVER)
    }

    /// Sets a cap for the whole fleet, whatever its configuration says; `None` goes back to that.
    pub fn set(&mut self, clock: i64, measure: Measure, per: Per, most: Option<i64>) {
        let now = self.advance(clock);
        if let Some(meter) = self.meters.iter_mut().find(|meter| meter.is_for(measure, per)) {
            meter.set(most);
        } else if most.is_some() {
            let mut meter = Meter::new(Cap { measure, per, most: i64::MAX }, now);
            meter.set(most);
            self.meters.push(meter);
        }
        self.refit();
    }

    /// Ends the freeze and the caution after refusals, and forgets what headers said.
    pub fn release(&mut self, clock: i64) {
        self.released_at = Some(self.advance(clock));
        self.brake.release();
        self.meters.iter_mut().for_each(Meter::unlearn);
        self.refit();
    }

    /// How many milliseconds ago that was, if ever.
    pub fn released_for(&self, clock: i64) -> Option<i64> {
        self.released_at.map(|at| clock.saturating_sub(at).max(0))
    }

    /// What people see of it.
    pub fn view(&self, clock: i64) -> PoolView {
        let mut pool = self.clone();
        let now = pool.advance(clock);
        let held = pool.held().amounts;
        let in_calls = pool.members.iter().fold(Amounts::NONE, |sum, member| sum + member.in_calls());
        let caps = pool.meters.iter().map(|meter| meter.view(&held, &in_calls)).collect();
        let active = |member: &&Member| member.seen > now.saturating_sub(SILENT);
        let starving = |member: &&Member| member.seen > now.saturating_sub(ACTIVE) && member.starving.is_some();
        let lacks = pool.lacks(now);
        PoolView {
            caps,
            frozen_for: pool.brake.frozen_for(now),
            why: pool.why.filter(|_| pool.brake.is_frozen(now)),
            rate: pool.brake.rate,
            workers: pool.members.iter().filter(active).count(),
            starving: pool.members.iter().filter(starving).count(),
            lacks,
        }
    }

    /// Brings everything to the store's `clock`, one that went back included.
    fn advance(&mut self, clock: i64) -> i64 {
        self.at = clock;
        self.brake.advance(clock);
        self.refit();
        for member in &mut self.members {
            member.seen = member.seen.min(clock);
        }
        let gone: Vec<_> =
            self.members.iter().filter(|member| member.seen <= clock.saturating_sub(SILENT)).map(|m| m.id).collect();
        for id in gone {
            self.lose(id, clock);
        }
        clock
    }

    /// Has every meter as the clock, the brake and what was said of it want it.
    fn refit(&mut self) {
        for meter in &mut self.meters {
            meter.advance(self.at, &self.brake);
        }
    }

    /// Has a meter for each cap. One of other workers alone stays as it is: settings are changed worker by worker.
    fn fit(&mut self, now: i64, caps: &[Cap], adaptive: bool) {
        let is_here = |meter: &Meter| caps.iter().any(|cap| meter.is_for(cap.measure, cap.per));
        self.meters.retain_mut(|meter| is_here(meter) || meter.outlives(now));
        for cap in caps {
            if !self.meters.iter().any(|meter| meter.is_for(cap.measure, cap.per)) {
                self.meters.push(Meter::new(*cap, now));
            }
            for meter in self.meters.iter_mut().filter(|meter| meter.is_for(cap.measure, cap.per)) {
                meter.configure(now, cap.most, adaptive);
            }
        }
        self.refit();
    }

    /// Books what the worker says of itself. Whether it was known.
    fn note(&mut self, now: i64, ask: &Ask) -> bool {
        let mut spent = Amounts::NONE;
        for (age, amounts) in &ask.spent {
            spent += *amounts;
            for meter in &mut self.meters {
                meter.spend(now.saturating_sub(*age), amounts);
            }
        }
        let (id, seq, seen, held) = (ask.id, ask.seq, now, ask.held);
        let fresh = Member { id, seq, seen, held, want: ask.want.amounts, least: ask.least, starving: None };
        let Some(member) = self.members.iter_mut().find(|member| member.id == ask.id) else {
            self.members.push(fresh);
            return false;
        };
        let unused = member.held.amounts - held.amounts - spent;
        *member = Member { starving: member.starving, ..fresh };
        for meter in &mut self.meters {
            meter.repay(&unused);
        }
        true
    }

    /// A worker is gone. What it held may have been called for just before the grant was void.
    fn lose(&mut self, id: u64, now: i64) {
        let is_money = self.money().is_some();
        for member in self.members.extract_if(.., |member| member.id == id) {
            let at = member.seen.saturating_add(VOID_AFTER).min(now);
            for meter in &mut self.meters {
                meter.spend(at, &member.held.amounts);
            }
            // Also one that held none: what it told last is not counted again if it tells it again.
            if is_money {
                self.gone.push((member, at));
            }
        }
        let brings = |member: &Member| member.held.amounts.usd > 0;
        self.gone.retain(|(member, at)| brings(member) || now.saturating_sub(*at) < LAST_WORD);
        while self.gone.len() > GONE {
            let least = self.gone.iter().position(|(member, _)| !brings(member)).unwrap_or_default();
            self.gone.remove(least);
        }
    }

    /// A worker that was taken for gone is back: what of its money it has spent it knows itself.
    fn take_back(&mut self, id: u64) {
        for (member, at) in self.gone.extract_if(.., |(member, _)| member.id == id) {
            let usd = Amounts { usd: 0_i64.saturating_sub(member.held.amounts.usd), ..Amounts::NONE };
            for meter in &mut self.meters {
                meter.spend(at, &usd);
            }
            self.members.push(Member { starving: None, ..member });
        }
    }

    /// Whether headers speak of one model, and so of all that the key is for.
    fn are_of_one(&mut self, now: i64, models: &[String]) -> bool {
        self.voices.retain(|(_, at)| now.saturating_sub(*at) < BELIEVED);
        for model in models {
            if let Some((_, at)) = self.voices.iter_mut().find(|(known, _)| known == model) {
                *at = now;
            } else if self.voices.len() < 2 {
                self.voices.push((model.clone(), now));
            }
        }
        self.voices.len() < 2
    }

    fn hear(&mut self, now: i64, age: i64, heard: &Heard) {
        let held = self.held().amounts;
        // What was left a while ago says nothing of now.
        let left = heard.left.filter(|_| age <= ACTIVE);
        if let Some(meter) = self.meters.iter_mut().find(|meter| meter.is_for(heard.measure, heard.per)) {
            meter.hear(now, age, &Heard { left, ..*heard }, &held);
        }
    }

    fn held(&self) -> Portion {
        self.members.iter().fold(Portion::default(), |sum, member| sum + member.held)
    }

    /// Deals out what is left. Whoever has starved longest goes first, with a whole job; the others share by what they want.
    fn share(&mut self, now: i64, ask: &Ask) -> Grant {
        if ask.want.amounts == Amounts::NONE || self.brake.is_frozen(now) {
            self.give(ask.id, Portion::default(), None);
            return self.answer(now, Amounts::NONE, None, None);
        }
        let held = self.held();
        let mine = self.members.iter().find(|member| member.id == ask.id).and_then(|member| member.starving);
        let (mut earlier, mut wanted) = (Portion::default(), Amounts::NONE);
        for member in self.members.iter().filter(|member| member.seen > now.saturating_sub(ACTIVE)) {
            wanted += member.want;
            let before = |since: i64| member.id != ask.id && mine.is_none_or(|mine| since < mine);
            if member.starving.is_some_and(before) {
                earlier = earlier + member.least;
            }
        }
        let doubt = held.doubt + earlier.doubt;
        let (mut part, mut short, mut wait) = (1.0_f64, None, None);
        for meter in &self.meters {
            let measure = meter.measure();
            let first = earlier.amounts.of(measure);
            let taken = held.amounts.of(measure).saturating_add(first);
            let needed = ask.least.amounts.of(measure);
            // However little is known of a job, most of a window has room for it.
            let margin =
                (doubt + ask.least.doubt).margin(measure).min(meter.in_force().most.saturating_sub(needed).max(0) / 2);
            let with_least = taken.saturating_add(margin);
            if needed > 0 && !meter.admits(with_least, first, needed) {
                wait = wait.max(Some(meter.wait(now, with_least, first, needed)));
                short = Some(meter.in_force());
            }
            let left = meter.left(taken.saturating_add((doubt + ask.want.doubt).margin(measure)), first);
            let all = wanted.of(measure);
            let share = if all > 0 { float(left.max(0)) / float(all) } else { 1.0 };
            if ask.want.amounts.of(measure) > 0 && share < part {
                part = share;
                short = short.filter(|_| wait.is_some()).or_else(|| Some(meter.in_force()));
            }
        }
        if wait.is_some() {
            self.give(ask.id, Portion::default(), Some(mine.unwrap_or(now)));
            return self.answer(now, Amounts::NONE, wait, short);
        }
        let share = ask.want.times(part);
        let mut granted = ask.whole_jobs(share);
        if let Some(money) = self.money() {
            granted.amounts.usd = whole_jobs(granted.amounts.usd, ask, money.open.saturating_sub(earlier.amounts.usd));
        }
        self.give(ask.id, granted, None);
        self.answer(now, granted.amounts, None, short)
    }

    fn give(&mut self, id: u64, granted: Portion, starving: Option<i64>) {
        for member in self.members.iter_mut().filter(|member| member.id == id) {
            member.starving = starving;
            member.held = member.held + granted;
        }
        for meter in &mut self.meters {
            meter.draw(&granted.amounts);
        }
    }

    /// The cap on money that leaves least, if there is one.
    fn money(&self) -> Option<Money> {
        let held = self.held().amounts.usd;
        let caps = self.meters.iter().filter(|meter| meter.measure() == Measure::Usd && meter.allows().is_some());
        let stands = caps.map(|meter| {
            let unspent = meter.unspent();
            Money { cap: meter.in_force(), unspent, open: unspent.saturating_sub(held) }
        });
        stands.min_by_key(|money| money.unspent)
    }

    /// The least that a job needs and no cap on money has, whoever gave back what is not spent.
    fn lacks(&self, now: i64) -> Option<Lack> {
        let unspent = self.money()?.unspent;
        let of = |member: &Member| Some(member.least.amounts.usd).filter(|usd| *usd > 0);
        let here = self.members.iter().filter_map(of).min().map(|least| Lack { least, ago: 0 });
        let last = || {
            let (member, at) = self.gone.iter().filter(|(member, _)| of(member).is_some()).max_by_key(|(_, at)| *at)?;
            Some(Lack { least: of(member)?, ago: now.saturating_sub(*at).max(0) })
        };
        let is_left = self.members.iter().all(|member| member.seen <= now.saturating_sub(SILENT));
        here.or_else(|| last().filter(|_| is_left)).filter(|lack| unspent < lack.least)
    }

    fn answer(&self, now: i64, amounts: Amounts, wait: Option<i64>, short: Option<Cap>) -> Grant {
        let active = self.members.iter().filter(|member| member.seen > now.saturating_sub(ACTIVE)).count();
        let pause = PAUSE.0.saturating_mul(i64::try_from(active).unwrap_or(PAUSE.2)).clamp(PAUSE.1, PAUSE.2);
        let (frozen, caps) = (self.brake.frozen_for(now), self.meters.iter().filter_map(Meter::allows).collect());
        let (epoch, money) = (self.brake.epoch, self.money());
        Grant { amounts, epoch, frozen, wait, short, again: pause, money, crowded: false, caps }
    }
}

/// So much of the money as whole jobs take, if it is not enough for all that are wanted: no part of one can be called. Never
/// more than there is, however shares are rounded.
fn whole_jobs(usd: i64, ask: &Ask, open: i64) -> i64 {
    let (usd, job) = (usd.min(open).max(0), ask.least.amounts.usd);
    if job <= 0 || usd >= ask.want.amounts.usd { usd } else { usd / job * job }
}

/// A part of a cap, rounded down and at least 1.
pub(super) fn part_of(most: i64, factor: f64) -> i64 {
    whole(float(most) * factor).max(1)
}
