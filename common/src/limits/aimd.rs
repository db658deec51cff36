//! How many calls an endpoint gets at once from this worker, as pure arithmetic on given moments: any number until it is
//! overloaded, then half, then more again. What shuts an endpoint altogether is `breaker.rs`.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::amount::float;
use crate::job::Lane;
use crate::outcome::{FailureClass, Outcome, Usage};
use crate::time::Timestamp;

/// Calls at once after an outage, when nothing is known of what comes back.
const FIRST: u32 = 4;
/// Nobody is slowed down to nothing: without calls it would never be seen that the endpoint is well again.
const LEAST: u32 = 1;
/// More at once than any worker has slots: from here on nothing is bounded.
const MANY: u32 = 20_000;
/// One refusal to so many answers is no overload: hosted models fail below one call in a hundred when all is well, and
/// halving for each of those would leave some twenty calls at once, however many the endpoint takes.
const SHARE: u32 = 50;
/// Refusals beyond that share which are borne: three in quick succession are no accident any more.
const BORNE: u32 = 2;
/// Between two halvings: what the first of them does has to be seen.
const BREATH: Duration = Duration::from_secs(1);
/// More by so many with each round, and by a twentieth where that is more: by ones, a fleet of thousands would need hours
/// to come back from one halving.
const STEP: (u32, u32) = (1, 20);
/// The fewest answers of a round where nothing bounds it.
const ROUND: u32 = 20;
/// What was learned is learned anew after so long: endpoints get more machines, and models other ones.
const STALE: Duration = Duration::from_secs(600);
/// Latencies kept of each kind, and how many of them say anything of their slowest twentieth.
const TIMES: (usize, usize) = (100, 20);
/// So much longer than at its best is slow.
const SLOW: f64 = 2.0;
/// A rate counts as higher from here on; and as the same above the inverse.
const CLEARLY: f64 = 1.1;
/// A halving for slowness helped if calls then took at most so much of their time before.
const HELPED: f64 = 0.75;
/// A call's work in tokens of output, beside those: half a second of overhead at 100 tokens a second.
const OVERHEAD: f64 = 50.0;
/// Tokens that a model reads while it writes one.
const READ: f64 = 50.0;
/// A lane that was seen ready counts as ready for so long: a subscription tells of its lanes every second.
const READY: Duration = Duration::from_millis(2_500);
/// Lanes remembered; beyond that, all are learned anew.
const LANES: usize = 1_000;

/// What is known of one endpoint. Unbounded until the first signs of overload, so that it costs nothing where nothing is
/// wrong: a start at few would cost a fleet of thousands ten rounds. After an outage it starts at [`FIRST`] and doubles.
#[derive(Debug, Default)]
pub(super) struct Aimd {
    /// Calls that run now.
    in_flight: u32,
    /// Jobs that were leased and do not run yet.
    expected: u32,
    /// The most at once, if there is one, and since when there has been.
    most: Option<u32>,
    since: Option<(Instant, Timestamp)>,
    /// Below this it doubles with each round.
    doubles_to: u32,
    /// Refusals, each worth [`SHARE`], less the answers since.
    strain: u32,
    cut_at: Option<Instant>,
    /// When it last kept anybody waiting.
    bound_at: Option<Instant>,
    round: Round,
    /// Of streamed answers the time to the first piece, and of others the whole of it, by their work.
    times: [Times; 2],
    best: Option<Best>,
    trial: Option<Trial>,
    lanes: BTreeMap<Lane, Instant>,
    turn: u32,
}

/// As many answers as there were calls at once.
#[derive(Debug, Default)]
struct Round {
    began: Option<Instant>,
    answers: u32,
    /// The most calls at once, in this one and in the one before.
    peak: u32,
    peak_before: u32,
    work: f64,
}

/// The latest latencies of one kind, and the lowest that their slowest twentieth has been.
#[derive(Debug, Default)]
struct Times {
    kept: Vec<f64>,
    next: usize,
    floor: Option<(f64, Instant)>,
}

/// The most work done in a second, and with how many calls at once.
#[derive(Clone, Copy, Debug)]
struct Best {
    rate: f64,
    at_once: u32,
    at: Instant,
}

/// A halving because calls were slow, to be undone if it does not help.
#[derive(Clone, Copy, Debug)]
struct Trial {
    before: u32,
    slow: [Option<f64>; 2],
}

/// What a call says of its endpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Sign {
    /// It was answered.
    Well {
        /// How long, in seconds for each unit of the work that this time was for.
        pace: f64,
        /// Whether that is the time to the first piece.
        streamed: bool,
        /// All of its work.
        work: f64,
    },
    /// The endpoint had no room for it, or was not to be reached.
    Overload,
    /// Nothing of that.
    Nothing,
}

impl Sign {
    /// What an outcome says, `took` after its call began. An answer is as slow as it is beside its work: only the first
    /// piece of a stream is compared with first pieces, and a whole answer by what it read and wrote, so that long ones
    /// are no slower than short ones.
    pub(super) fn of(outcome: &Outcome, took: Duration) -> Self {
        match outcome {
            Outcome::Success(reply) => {
                let first = reply.detail.as_ref().and_then(|detail| detail.first_piece);
                let (before, all) = work(&reply.usage);
                let (time, of) = first.map_or((took, all), |first| (first, before));
                Self::Well { pace: time.as_secs_f64() / of, streamed: first.is_some(), work: all }
            }
            Outcome::Failure(failure) => {
                let refused = failure.class == FailureClass::Capacity || matches!(failure.status_code, Some(503 | 529));
                let late = failure.class == FailureClass::UnknownBilled && failure.code == "timeout";
                if refused || late { Self::Overload } else { Self::Nothing }
            }
        }
    }
}

/// The work until the first piece, and all of it.
fn work(usage: &Usage) -> (f64, f64) {
    let tokens = |count: u64| float(i64::try_from(count).unwrap_or(i64::MAX));
    let before = OVERHEAD + tokens(usage.input_tokens) / READ;
    (before, before + tokens(usage.output_tokens))
}

impl Aimd {
    /// A job of its lanes was leased.
    pub(super) fn expect(&mut self) {
        self.expected += 1;
    }

    /// It runs, or never will.
    pub(super) fn unexpect(&mut self) {
        self.expected = self.expected.saturating_sub(1);
    }

    /// A call begins.
    pub(super) fn begun(&mut self, now: Instant) {
        self.in_flight += 1;
        self.round.peak = self.round.peak.max(self.in_flight);
        self.round.began.get_or_insert(now);
    }

    /// A call that began at `began` has ended. Whether fewer may run at once for it.
    pub(super) fn ended(&mut self, now: Instant, began: Instant, sign: Sign) -> bool {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.turn = self.turn.wrapping_add(1);
        // It says how things were before they were changed.
        if self.cut_at.is_some_and(|at| began < at) {
            return false;
        }
        match sign {
            Sign::Nothing => false,
            Sign::Overload => self.refused(now),
            Sign::Well { pace, streamed, work } => {
                self.strain = self.strain.saturating_sub(1);
                self.times[usize::from(streamed)].push(pace);
                self.round.work += work;
                self.round.answers += 1;
                let of = self.most.unwrap_or_else(|| self.round.peak.max(ROUND));
                self.round.answers >= of && self.rounded(now)
            }
        }
    }

    /// It is out of reach, and what comes back is another one: from few upwards again.
    pub(super) fn outage(&mut self, now: Instant) {
        let reached = self.reached();
        self.bound(now, FIRST.min(reached));
        self.doubles_to = (reached / 2).max(FIRST);
    }

    /// A person knows better.
    pub(super) fn release(&mut self) {
        let Self { in_flight, expected, .. } = *self;
        *self = Self { in_flight, expected, lanes: std::mem::take(&mut self.lanes), ..Self::default() };
    }

    /// The most at once, if there is one.
    pub(super) fn most(&self) -> Option<u32> {
        self.most
    }

    /// The most at once and since when, where that has kept anybody waiting lately.
    pub(super) fn bound_since(&self, now: Instant) -> Option<(u32, (Instant, Timestamp))> {
        let lately = self.bound_at.is_some_and(|at| now.saturating_duration_since(at) < STALE);
        self.most.filter(|_| lately).zip(self.since)
    }

    /// How many more may begin.
    pub(super) fn room(&self) -> u32 {
        self.most.map_or(u32::MAX, |most| most.saturating_sub(self.in_flight).saturating_sub(self.expected))
    }

    /// Jobs of this lane are ready.
    pub(super) fn seen(&mut self, lane: &Lane, now: Instant) {
        if self.lanes.len() >= LANES {
            self.lanes.clear();
        }
        match self.lanes.get_mut(lane) {
            Some(at) => *at = now,
            None => drop(self.lanes.insert(lane.clone(), now)),
        }
    }

    /// This lane's part of the room. One that nobody has seen ready gets one job, to be seen.
    pub(super) fn room_of(&self, lane: &Lane, now: Instant) -> u32 {
        let room = self.room();
        if room == u32::MAX {
            return room;
        }
        let ready = || self.lanes.iter().filter(|(_, at)| now.saturating_duration_since(**at) < READY);
        let Some(place) = ready().position(|(ready, _)| ready == lane) else { return room.min(1) };
        let lanes = u32::try_from(ready().count()).unwrap_or(u32::MAX).max(1);
        let place = u32::try_from(place).unwrap_or_default();
        room / lanes + u32::from(place.wrapping_add(self.turn) % lanes < room % lanes)
    }

    /// Whether nothing would be lost by forgetting it.
    pub(super) fn is_plain(&self) -> bool {
        self.most.is_none() && self.in_flight == 0 && self.expected == 0
    }

    fn reached(&self) -> u32 {
        let peak = self.round.peak.max(self.round.peak_before);
        peak.min(self.most.unwrap_or(u32::MAX)).max(LEAST)
    }

    fn refused(&mut self, now: Instant) -> bool {
        self.strain = self.strain.saturating_add(SHARE);
        let rested = self.cut_at.is_none_or(|at| now.saturating_duration_since(at) >= BREATH);
        if !rested || self.strain <= BORNE * SHARE + self.round.peak {
            return false;
        }
        self.trial = None;
        self.halve(now);
        true
    }

    fn halve(&mut self, now: Instant) {
        let half = (self.reached() / 2).max(LEAST);
        self.bound(now, half);
        self.doubles_to = half;
    }

    fn bound(&mut self, now: Instant, most: u32) {
        self.since = self.since.filter(|_| self.most.is_some()).or_else(|| Some((now, Timestamp::now())));
        (self.most, self.strain) = (Some(most), 0);
        (self.cut_at, self.bound_at) = (Some(now), Some(now));
        self.next_round(now);
        self.times.iter_mut().for_each(Times::clear);
    }

    fn next_round(&mut self, now: Instant) {
        let (peak, peak_before) = (self.in_flight, self.round.peak);
        self.round = Round { began: Some(now), peak, peak_before, ..Round::default() };
    }

    /// A round has passed. Whether fewer may run at once for how slow it was.
    fn rounded(&mut self, now: Instant) -> bool {
        if self.undo_what_did_not_help(now) {
            return false;
        }
        if self.is_slow_for_being_many(now) {
            let slow = [self.times[0].slowest(), self.times[1].slowest()];
            self.trial = Some(Trial { before: self.reached(), slow });
            self.halve(now);
            return true;
        }
        if let Some(most) = self.most {
            let idle = self.bound_at.is_none_or(|at| now.saturating_duration_since(at) >= STALE);
            if self.round.peak >= most {
                let more = if most < self.doubles_to {
                    most.saturating_mul(2).min(self.doubles_to)
                } else {
                    most.saturating_add(STEP.0.max(most / STEP.1))
                };
                self.most = Some(more).filter(|more| *more < MANY);
                self.bound_at = Some(now);
            } else if idle {
                self.most = None;
            }
        }
        self.next_round(now);
        false
    }

    /// A halving for slowness that made nothing quicker was not for being many: back to where it was, and what is slow
    /// now is what the endpoint is.
    fn undo_what_did_not_help(&mut self, now: Instant) -> bool {
        let known = |times: &Times| times.kept.len() >= TIMES.1;
        let Some(trial) = self.trial.filter(|_| self.times.iter().any(known)) else { return false };
        self.trial = None;
        let mut pairs = trial.slow.iter().zip(&self.times);
        if pairs.any(|(before, times)| before.zip(times.slowest()).is_some_and(|(b, t)| t <= b * HELPED)) {
            return false;
        }
        self.most = Some(trial.before);
        for times in &mut self.times {
            times.floor = times.slowest().map(|slowest| (slowest, now));
        }
        self.best = None;
        self.next_round(now);
        true
    }

    /// Whether answers take more than twice what they did at best, and no more of them come than with fewer at once. Slow
    /// alone is no reason: a server that answers many together does more in all, and that is what a queue is for.
    fn is_slow_for_being_many(&mut self, now: Instant) -> bool {
        let [whole, first] = &mut self.times;
        let (whole, first) = (whole.is_slow(now), first.is_slow(now));
        let took = self.round.began.map_or(Duration::ZERO, |began| now.saturating_duration_since(began));
        let (rate, at_once) = (self.round.work / took.as_secs_f64().max(0.001), self.round.peak);
        let best = self.best.filter(|best| now.saturating_duration_since(best.at) < STALE);
        let enough = best.is_some_and(|best| best.at_once <= at_once / 4 * 3 && best.rate * CLEARLY >= rate);
        let better = |best: Best| rate > best.rate * CLEARLY || (at_once < best.at_once && rate * CLEARLY >= best.rate);
        self.best = if best.is_none_or(better) { Some(Best { rate, at_once, at: now }) } else { best };
        (whole || first) && enough
    }
}

impl Times {
    fn push(&mut self, pace: f64) {
        if self.kept.len() < TIMES.0 {
            self.kept.push(pace);
        } else if let Some(oldest) = self.kept.get_mut(self.next) {
            *oldest = pace;
        }
        self.next = (self.next + 1) % TIMES.0;
    }

    fn clear(&mut self) {
        (self.next, self.kept) = (0, Vec::new());
    }

    /// What nineteen of twenty are below, where there are enough of them.
    fn slowest(&self) -> Option<f64> {
        if self.kept.len() < TIMES.1 {
            return None;
        }
        let mut sorted = self.kept.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        sorted.get(sorted.len() * 19 / 20).or(sorted.last()).copied()
    }

    fn is_slow(&mut self, now: Instant) -> bool {
        let Some(slowest) = self.slowest() else { return false };
        let floor = self.floor.filter(|(_, at)| now.saturating_duration_since(*at) < STALE);
        let Some((least, _)) = floor.filter(|(least, _)| *least <= slowest) else {
            self.floor = Some((slowest, now));
            return false;
        };
        slowest > least * SLOW
    }
}

#[cfg(test)]
#[path = "tests/aimd.rs"]
mod tests;
