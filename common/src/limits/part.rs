//! What a worker knows of one limit key it has a rule for: its purse, the lanes behind the key, and what stands in the way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::Held;
use super::amount::{Cap, Measure, float, whole};
use super::ask::{Ask, Grant, Heard};
use super::need::{Need, Portion};
use super::pool::{MEMBERS, Pool};
use super::purse::Purse;
use super::quota::{FROZEN, GUESS, PATIENCE};
use super::till::Till;
use crate::job::Lane;
use crate::outcome::FailureClass;
use crate::time::Timestamp;

/// A lane that was seen ready counts as ready for so long: a subscription tells of its lanes every second.
const READY: i64 = 2_500;
/// Between two asks that want nothing: they say that the worker lives, and what its calls came to.
const IDLE: i64 = 1_000;
/// Between two asks when the store does not answer.
const TROUBLE: i64 = 500;
/// Between two looks at money that only a person, or another day, brings back.
const WATCH: i64 = 5_000;
/// A limit that keeps jobs back for less than this is nothing to speak of.
const SHORT: Duration = Duration::from_secs(2);
/// A job that goes back looks again after so long at the latest: people raise limits.
const AWAY: Duration = Duration::from_secs(600);
/// Lanes remembered; beyond that, all are learned anew.
const LANES: usize = 10_000;
/// The most jobs that are asked for at once.
const JOBS: u32 = 10_000;

/// One limit key, as a worker has it.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) purse: Purse,
    lanes: BTreeMap<Lane, Seen>,
    /// Jobs that were leased and are not in line yet.
    pub(super) expected: u32,
    /// What is known of the money under the key.
    pub(super) till: Till,
    /// Not asked before then.
    ask_at: i64,
    /// There has been more to ask for since the last ask.
    hurried: bool,
    /// How many jobs the last grant was for.
    granted_for: u32,
    /// When it was answered last.
    answered_at: i64,
    /// One more with each grant: the lane that is served first.
    turn: usize,
    /// Something was granted, or somebody left the line.
    pub(super) turned: Arc<Notify>,
    /// A job went back for want of room.
    pub(super) given_back: bool,
    /// What the last answer said, and since when it has been short.
    last: Grant,
    short: Option<Short>,
    /// Since when the store does not answer, and why.
    pub(super) trouble: Option<(Timestamp, String)>,
    /// Since when there are too many workers of the key for this one to have a part.
    pub(super) crowded: Option<Timestamp>,
    /// Without a store: what would be there.
    pub(super) alone: Option<Pool>,
}

/// A cap that keeps it from what it wants.
#[derive(Clone, Copy, Debug)]
struct Short {
    cap: Cap,
    since: Timestamp,
    began: Instant,
}

impl Short {
    fn now(cap: Cap) -> Self {
        Self { cap, since: Timestamp::now(), began: Instant::now() }
    }
}

/// A lane of the key.
#[derive(Clone, Debug)]
struct Seen {
    ready_at: i64,
    /// The narrower key that its jobs come under too.
    inside: Option<Arc<str>>,
    /// What its jobs took lately, on average.
    mean: Portion,
}

impl Part {
    pub(super) fn new(id: u64, caps: Vec<Cap>, adaptive: bool) -> Self {
        Self {
            purse: Purse::new(id, caps, adaptive),
            lanes: BTreeMap::new(),
            expected: 0,
            till: Till::default(),
            ask_at: i64::MIN,
            hurried: false,
            granted_for: 0,
            answered_at: i64::MIN,
            turn: 0,
            turned: Arc::new(Notify::new()),
            given_back: false,
            last: Grant::default(),
            short: None,
            trouble: None,
            crowded: None,
            alone: None,
        }
    }

    /// Jobs of this lane are ready, which come under a narrower key too.
    pub(super) fn seen(&mut self, lane: &Lane, now: i64, inside: Option<&Arc<str>>) {
        if let Some(seen) = self.lanes.get_mut(lane) {
            seen.ready_at = now;
            if seen.inside.as_ref() != inside {
                seen.inside = inside.map(Arc::clone);
            }
            return;
        }
        let mut mean = mean(self.ready(now));
        // Its own first job says it: of another model's cost nobody knows whether this one's could not be paid.
        mean.amounts.usd = 0;
        if self.lanes.len() >= LANES {
            self.lanes.clear();
        }
        self.lanes.insert(lane.clone(), Seen { ready_at: now, inside: inside.map(Arc::clone), mean });
    }

    /// A job of this lane needs so much; of money see [`Part::costs`].
    pub(super) fn opened(&mut self, lane: &Lane, need: &Need) {
        if let Some(seen) = self.lanes.get_mut(lane) {
            let usd = seen.mean.amounts.usd;
            seen.mean = (seen.mean.times(9.0) + need.portion()).times(0.1);
            seen.mean.amounts.usd = usd;
        }
    }

    /// A job of this lane may cost so much, whether there is that much or not: the first says it all, since a lane whose jobs
    /// seem to cost less would have them leased in vain.
    pub(super) fn costs(&mut self, lane: &Lane, usd: i64) {
        self.till.needs(usd);
        if let Some(seen) = self.lanes.get_mut(lane) {
            let mean = &mut seen.mean.amounts.usd;
            *mean = if *mean > 0 { whole(float(*mean) * 0.9 + float(usd) * 0.1) } else { usd };
        }
    }

    /// What headers said to a call of that provider and model, if they said anything.
    pub(super) fn hear(&mut self, now: i64, limit_key: &str, heard: impl Iterator<Item = Heard>) {
        let mut heard = heard.peekable();
        if heard.peek().is_some() {
            self.purse.hear_of(limit_key);
        }
        heard.for_each(|heard| self.purse.hear(now, heard));
    }

    fn ready(&self, now: i64) -> impl Iterator<Item = (&Lane, &Seen)> {
        self.lanes.iter().filter(move |(_, seen)| seen.ready_at > now - READY)
    }

    /// Those of them that jobs may be taken from: by what was `granted` of the narrower keys, for how many jobs.
    fn open<'a>(&'a self, now: i64, granted: impl Fn(&str) -> u32 + 'a) -> impl Iterator<Item = (&'a Lane, &'a Seen)> {
        self.ready(now).filter(move |(_, seen)| seen.inside.as_ref().is_none_or(|key| granted(key) > 0))
    }

    /// How many jobs of a lane there is room for: its part of what its key has, what was leased before taken off.
    pub(super) fn room(&self, lane: &Lane, now: i64, granted: impl Fn(&str) -> u32) -> u32 {
        let Some(seen) = self.lanes.get(lane) else { return 0 };
        let room = self.purse.room(now, &seen.mean).saturating_sub(self.expected);
        let lanes = u32::try_from(self.open(now, &granted).count()).unwrap_or(u32::MAX).max(1);
        let place = self.open(now, &granted).position(|(ready, _)| ready == lane).unwrap_or_default();
        let ahead = u32::try_from((place + self.turn) % usize::try_from(lanes).unwrap_or(1)).unwrap_or_default();
        room / lanes + u32::from(ahead < room % lanes)
    }

    /// How many jobs could start now of `slots`: no more than the narrower keys allow that they all come under.
    fn jobs(&self, now: i64, slots: u32, granted: impl Fn(&str) -> u32) -> u32 {
        let inside: BTreeSet<_> = self.ready(now).map(|(_, seen)| seen.inside.as_deref()).collect();
        let jobs = inside.into_iter().map(|key| key.map_or(slots, &granted));
        jobs.fold(0, u32::saturating_add).min(slots)
    }

    /// How many jobs the last grant was for, if it still counts; none while opened ones wait for it.
    pub(super) fn granted_for(&self, now: i64) -> u32 {
        let counts = self.purse.is_told(now) && self.purse.frozen_for(now) == 0 && self.purse.waiting() == 0;
        if counts { self.granted_for } else { 0 }
    }

    /// Whether it has nothing yet for a job that it was asked for, will soon have, and is not frozen.
    pub(super) fn is_short(&self, now: i64) -> bool {
        let soon = i64::try_from(PATIENCE.as_millis()).unwrap_or(i64::MAX);
        self.last.wait.is_some_and(|wait| wait <= soon) && self.purse.frozen_for(now) == 0
    }

    /// The narrower keys of its lanes.
    pub(super) fn inside(&self) -> BTreeSet<&Arc<str>> {
        self.lanes.values().filter_map(|seen| seen.inside.as_ref()).collect()
    }

    /// Whether what calls cost is capped.
    pub(super) fn counts_money(&self) -> bool {
        self.purse.counts(|measure| measure == Measure::Usd)
    }

    fn wants(&self, now: i64) -> bool {
        self.purse.waiting() > 0 || self.ready(now).next().is_some()
    }

    /// When to ask next, if there is anything to ask or to tell.
    pub(super) fn asks_at(&self, now: i64) -> Option<i64> {
        let has_news = self.purse.has_news();
        // What calls came to is told soon, however seldom the key is looked at.
        let soon = if has_news && self.trouble.is_none() { self.answered_at.saturating_add(IDLE) } else { i64::MAX };
        (self.wants(now) || has_news || self.till.is_watched()).then_some(self.ask_at.min(soon))
    }

    /// It is asked as soon as it may be, though nothing was due.
    pub(super) fn hurry(&mut self, now: i64) {
        self.ask_at = self.ask_at.min(now.max(self.answered_at.saturating_add(self.last.again)));
    }

    /// It is asked at once, or as soon as it has answered what it was asked before: a narrower key was granted some.
    pub(super) fn ask_now(&mut self, now: i64) {
        (self.ask_at, self.hurried) = (self.ask_at.min(now), true);
    }

    /// Whether nothing would be lost with it that the shared state does not know.
    pub(super) fn is_at_rest(&self) -> bool {
        self.purse.waiting() == 0 && !self.purse.has_news() && !self.till.is_watched()
    }

    pub(super) fn is_due(&self, now: i64) -> bool {
        self.asks_at(now).is_some_and(|at| at <= now)
    }

    /// What is told and asked now. `slots` jobs could be started, as far as the narrower keys go.
    /// What one job needs is not given back while its account has nothing for it: others would only wait for that too.
    pub(super) fn ask(
        &mut self,
        now: i64,
        (slots, leaves): (u32, bool),
        granted: impl Fn(&str) -> u32,
        waits: bool,
    ) -> Ask {
        self.hurried = false;
        let jobs = if leaves { 0 } else { self.jobs(now, slots.min(JOBS), &granted) };
        let mean = mean(self.open(now, granted));
        let mut ask = self.purse.ask_keeping(now, &mean, (jobs, leaves), waits);
        if ask.least == Portion::default() {
            // It wants nothing, and others are told for want of what.
            ask.least.amounts.usd = self.till.lacks();
        }
        ask
    }

    /// The answer. Whether jobs that went back for want of room may come again.
    pub(super) fn granted(&mut self, now: i64, grant: &Grant) -> bool {
        self.purse.granted(now, grant);
        self.granted_for = self.purse.count(&self.purse.free(now), &mean(self.ready(now)));
        let opens = self.till.note(grant);
        let is_empty = self.till.is_empty() && !self.purse.has_news();
        let pause = match (self.wants(now), is_empty) {
            (true, true) if self.purse.waiting() == 0 => IDLE,
            (true, _) => grant.again,
            (false, true) => WATCH,
            (false, false) => IDLE,
        };
        self.answered_at = now;
        self.ask_at = if self.hurried { now } else { now + pause.max(grant.frozen.min(IDLE)) };
        self.turn = self.turn.wrapping_add(1);
        let before = self.short;
        self.short = grant.short.map(|cap| Short { cap, ..before.unwrap_or_else(|| Short::now(cap)) });
        self.trouble = None;
        self.crowded = grant.crowded.then(|| self.crowded.unwrap_or_else(Timestamp::now));
        self.last = grant.clone();
        self.turned.notify_waiters();
        let has_room = grant.amounts.requests > 0 && self.purse.waiting() == 0;
        (has_room && std::mem::take(&mut self.given_back)) || opens
    }

    /// No answer came. Whether that is news.
    pub(super) fn unanswered(&mut self, now: i64, why: String) -> bool {
        self.ask_at = now + TROUBLE;
        let is_news = self.trouble.is_none();
        self.trouble.get_or_insert_with(|| (Timestamp::now(), why));
        is_news
    }

    /// The least wait of a job that goes back.
    pub(super) fn wait(&self) -> Duration {
        let wait = self.last.wait.unwrap_or_default().max(self.last.frozen).max(1_000);
        Duration::from_millis(u64::try_from(wait).unwrap_or(1_000))
    }

    /// The least wait of the job with that place in line, if it is not to keep its slot for so long.
    pub(super) fn too_long(&mut self, now: i64, ticket: u64) -> Option<Duration> {
        let length = |millis| Duration::from_millis(u64::try_from(millis).unwrap_or_default());
        let frozen = length(self.purse.frozen_for(now));
        if frozen > FROZEN {
            // The first grant after it is for all of them.
            self.given_back = true;
            return Some(frozen.min(AWAY));
        }
        // Others may go on meanwhile: their grants are no reason to wake this one.
        self.purse.waits_for(ticket).map(length).filter(|wait| *wait > PATIENCE).map(|wait| wait.min(AWAY))
    }

    /// Whether it will probably grant something within so long.
    pub(super) fn opens_within(&self, length: Duration) -> bool {
        let silent = self.trouble.as_ref().is_some_and(|(since, _)| Timestamp::now().since(*since) >= length);
        !silent && self.crowded.is_none() && !self.till.is_empty() && self.wait() <= length
    }

    /// What holds its jobs back, if something does.
    pub(super) fn held(&self, key: &str) -> Option<Held> {
        let now = Timestamp::now();
        let held = |since, detail, wait, (cap, spent)| {
            let (key, class) = (key.to_owned(), FailureClass::Throttled);
            Some(Held { key, class, detail, since, until: now + wait, probing: false, cap, spent, to_mend: false })
        };
        if let Some((since, why)) = &self.trouble {
            return held(
                *since,
                format!("the store of the limits does not answer: {why}"),
                Duration::from_secs(1),
                (None, false),
            );
        }
        if let Some(since) = self.crowded {
            return held(since, crowded(), Duration::from_secs(10), (None, false));
        }
        if let Some(held) = self.till.held(key) {
            return Some(held);
        }
        if let Some(Short { cap, since, .. }) = self.short.filter(|short| short.began.elapsed() >= SHORT) {
            let spent = cap.measure == Measure::Usd && self.till.is_empty();
            let money = spent.then(|| self.till.says(self.till.lacks())).flatten();
            let detail = money.unwrap_or_else(|| format!("all of {cap} is used; more workers will not help"));
            return held(since, detail, self.wait(), (Some(cap), spent));
        }
        None
    }
}

/// Why a worker gets nothing of a key, and what to do about it.
pub(super) fn crowded() -> String {
    format!(
        "{MEMBERS} workers share it already, the most there may be, so this one gets nothing of it until one of them leaves; \
         hint: fewer workers with more --concurrency each"
    )
}

/// What a job takes, over some lanes.
fn mean<'a>(lanes: impl Iterator<Item = (&'a Lane, &'a Seen)>) -> Portion {
    let (count, sum) = lanes.fold((0, Portion::default()), |(n, sum), (_, seen)| (n + 1, sum + seen.mean));
    if count > 0 { sum.shared_by(count) } else { Portion { amounts: GUESS, ..Portion::default() } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Band, ModelName, Queue};

    /// A forty-ninth of 49 is a little less than one, and of nothing any number would fit.
    #[test]
    fn a_job_is_one_job_however_many_lanes_there_are() {
        let mut part = Part::new(1, Vec::new(), false);
        for lanes in 1..200 {
            let model = Some(ModelName::new(&lanes.to_string()));
            part.seen(&Lane { queue: Queue::standard(), model, band: Band::Normal }, 0, None);
            assert_eq!(mean(part.ready(0)).amounts, GUESS, "{lanes}");
        }
    }
}
