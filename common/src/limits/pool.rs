//! What a fleet shares of one limit key: what was consumed, who holds what, and how the rest is dealt out. Pure
//! arithmetic on given moments; where it is kept is a ledger's affair, what a worker does with its part is `purse.rs`.

use serde::{Deserialize, Serialize};

use super::amount::{Amounts, Cap, Measure, Per, float, whole};
use super::brake::Brake;
use super::meter::Meter;
use super::need::Portion;
use super::view::PoolView;

/// What is granted and not called for is void after this long, by the worker's own clock.
pub const VOID_AFTER: i64 = 2_000;
/// A worker counts among those that share for so long after it asked.
const ACTIVE: i64 = 2_000;
/// A worker that has said nothing for so long is gone: what it held counts as consumed.
const SILENT: i64 = 10_000;
/// The most workers of one key: each is some 100 bytes of a state that every ask reads and writes.
const MEMBERS: usize = 500;
/// Between two asks of a worker: so much for each that shares, so that they come to about 20 a second together.
const PAUSE: (i64, i64, i64) = (50, 100, 1_000);
/// The most workers remembered that went without a word and held money.
const GONE: usize = 100;

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
    brake: Brake,
    /// When a person ended all that held it back.
    released_at: Option<i64>,
}

/// A worker's part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Member {
    id: u64,
    /// Its last ask.
    seq: u64,
    seen: i64,
    /// Granted and not consumed yet, calls in flight included.
    held: Portion,
    want: Amounts,
    least: Portion,
    /// Since when it has had too little to do anything with.
    starving: Option<i64>,
}

/// What a worker tells and asks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ask {
    /// Who asks.
    pub id: u64,
    /// One more with each ask that was answered.
    pub seq: u64,
    /// The key's caps as this worker's configuration has them.
    pub caps: Vec<Cap>,
    /// Whether a provider's header may raise them.
    pub adaptive: bool,
    /// What was consumed since the last ask, each with its age in milliseconds. Corrections may be negative.
    pub spent: Vec<(i64, Amounts)>,
    /// What is reserved by calls in flight.
    pub held: Portion,
    /// What could be used until the next ask.
    pub want: Portion,
    /// The least that is of any use: one job.
    pub least: Portion,
    /// Refusals since the last ask: the epoch of the latest call, and the longest wait in milliseconds.
    pub refused: Option<(u64, i64)>,
    /// What the provider's headers said since the last ask, each with its age in milliseconds.
    pub heard: Vec<(i64, Heard)>,
    /// Whether the worker leaves.
    pub leaves: bool,
}

/// What a provider's header said of one of its limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Which of its limits.
    pub measure: Measure,
    /// Over what it counts.
    pub per: Per,
    /// The limit.
    pub most: i64,
    /// What is left of it, if that was said.
    pub left: Option<i64>,
}

/// What a worker may use until its next ask; what it had before and did not use is part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// Of everything so much.
    pub amounts: Amounts,
    /// The epoch that calls are sent under.
    pub epoch: u64,
    /// For how long nobody calls, in milliseconds; 0 while the key is not frozen.
    pub frozen: i64,
    /// After how many milliseconds there may be enough for the least, if there is not now.
    pub wait: Option<i64>,
    /// The cap that kept it from giving all that was wanted.
    pub short: Option<Cap>,
    /// When to ask again, in milliseconds.
    pub again: i64,
    /// How money stands, where it is capped.
    pub money: Option<Money>,
}

/// How money stands under a limit key: of several caps the one that leaves least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Money {
    /// The cap.
    pub cap: Cap,
    /// What is not spent, whoever holds it.
    pub unspent: i64,
    /// What of that nobody holds either.
    pub open: i64,
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
        }
        for (age, heard) in &ask.heard {
            // What was left a while ago says nothing of now.
            let left = heard.left.filter(|_| *age <= ACTIVE);
            self.hear(now, &Heard { left, ..*heard });
        }
        self.refit();
        if ask.leaves || (!known && self.members.len() > MEMBERS) {
            self.lose(ask.id, now);
            return self.answer(now, Amounts::NONE, None, None);
        }
        self.share(now, ask)
    }

    /// Sets a cap for the whole fleet, whatever its configuration says; `None` goes back to that.
    pub fn set(&mut self, clock: i64, measure: Measure, per: Per, most: Option<i64>) {
        let now = self.advance(clock);
        if let Some(meter) = self.meters.iter_mut().find(|meter| meter.is_for(measure, per)) {
            meter.set(most);
        } else {
            let mut meter = Meter::new(Cap { measure, per, most: most.unwrap_or(i64::MAX) }, now);
            meter.set(most);
            self.meters.extend(most.map(|_| meter));
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
        self.released_at.map(|at| (clock - at).max(0))
    }

    /// What people see of it.
    pub fn view(&self, clock: i64) -> PoolView {
        let mut pool = self.clone();
        let now = pool.advance(clock);
        let held = pool.held().amounts;
        let caps = pool.meters.iter().map(|meter| meter.view(&held)).collect();
        let active = |member: &&Member| member.seen > now - SILENT;
        let starving = |member: &&Member| member.seen > now - ACTIVE && member.starving.is_some();
        PoolView {
            caps,
            frozen_for: (pool.brake.frozen_until - now).max(0),
            rate: pool.brake.rate,
            workers: pool.members.iter().filter(active).count(),
            starving: pool.members.iter().filter(starving).count(),
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
        let gone: Vec<_> = self.members.iter().filter(|member| member.seen <= clock - SILENT).map(|m| m.id).collect();
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

    /// Has a meter for each cap; one that nobody configures any more goes, unless a person set it.
    fn fit(&mut self, now: i64, caps: &[Cap], adaptive: bool) {
        self.meters.retain(|meter| meter.is_set() || caps.iter().any(|cap| meter.is_for(cap.measure, cap.per)));
        for cap in caps {
            if let Some(meter) = self.meters.iter_mut().find(|meter| meter.is_for(cap.measure, cap.per)) {
                meter.configure(cap.most, adaptive);
            } else {
                let mut meter = Meter::new(*cap, now);
                meter.configure(cap.most, adaptive);
                self.meters.push(meter);
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
                meter.spend(now - age, amounts);
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
        for member in self.members.extract_if(.., |member| member.id == id) {
            let at = (member.seen + VOID_AFTER).min(now);
            for meter in &mut self.meters {
                meter.spend(at, &member.held.amounts);
            }
            if member.held.amounts.usd > 0 {
                self.gone.push((member, at));
            }
        }
        let first = self.gone.len().saturating_sub(GONE);
        self.gone.drain(..first);
    }

    /// A worker that was taken for gone is back: what of its money it has spent it knows itself.
    fn take_back(&mut self, id: u64) {
        for (member, at) in self.gone.extract_if(.., |(member, _)| member.id == id) {
            let usd = Amounts { usd: -member.held.amounts.usd, ..Amounts::NONE };
            for meter in &mut self.meters {
                meter.spend(at, &usd);
            }
            self.members.push(Member { starving: None, ..member });
        }
    }

    fn hear(&mut self, now: i64, heard: &Heard) {
        let held = self.held().amounts;
        if let Some(meter) = self.meters.iter_mut().find(|meter| meter.is_for(heard.measure, heard.per)) {
            meter.hear(now, heard, &held);
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
        for member in self.members.iter().filter(|member| member.seen > now - ACTIVE) {
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
            let (taken, first) = (held.amounts.of(measure) + earlier.amounts.of(measure), earlier.amounts.of(measure));
            let needed = ask.least.amounts.of(measure);
            // However little is known of a job, most of a window has room for it.
            let margin = (doubt + ask.least.doubt).margin(measure).min((meter.in_force().most - needed).max(0) / 2);
            let with_least = taken + margin;
            if needed > 0 && !meter.admits(with_least, first, needed) {
                wait = wait.max(Some(meter.wait(now, with_least, first, needed)));
                short = Some(meter.in_force());
            }
            let left = meter.left(taken + (doubt + ask.want.doubt).margin(measure), first);
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
        let mut granted = if ask.least.amounts.is_within(&share.amounts) { share } else { ask.least };
        if let Some(money) = self.money() {
            granted.amounts.usd = whole_jobs(granted.amounts.usd, ask, money.open - earlier.amounts.usd);
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
        let caps = self.meters.iter().filter(|meter| meter.measure() == Measure::Usd);
        let stands = caps.map(|meter| {
            let unspent = meter.unspent();
            Money { cap: meter.in_force(), unspent, open: unspent.saturating_sub(held) }
        });
        stands.min_by_key(|money| money.unspent)
    }

    fn answer(&self, now: i64, amounts: Amounts, wait: Option<i64>, short: Option<Cap>) -> Grant {
        let active = self.members.iter().filter(|member| member.seen > now - ACTIVE).count();
        let pause = PAUSE.0.saturating_mul(i64::try_from(active).unwrap_or(PAUSE.2)).clamp(PAUSE.1, PAUSE.2);
        let frozen = (self.brake.frozen_until - now).max(0);
        Grant { amounts, epoch: self.brake.epoch, frozen, wait, short, again: pause, money: self.money() }
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
