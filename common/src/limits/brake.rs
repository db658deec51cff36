//! What a refusal does to a limit key: nobody calls for a while, then less than before, then more again. Pure.

use serde::{Deserialize, Serialize};

use super::amount::whole;

/// How much of its limits a key uses after a refusal, the first time and each time again.
const AFTER: f64 = 0.5;
/// What it gets back with each clean step.
const BACK: f64 = 0.05;
/// Never less than this, or a key would need hours to come back.
const LEAST: f64 = 0.05;
/// A clean step: a window where it was refused before, and a twentieth of one well below that. One refusal that was due
/// to an estimate then costs half a minute and not ten.
const CLEAN: i64 = 60_000;
const QUICK: i64 = 3_000;
/// After "your traffic has grown too fast" a large account gets half as much again within so long, and no more: what
/// OpenAI asks for above a million tokens a minute.
const RAMP: (f64, f64) = (1.5, 900_000.0);
/// Well below.
const WELL_BELOW: f64 = 0.9;
/// No key is frozen longer than a job waits to run unless told otherwise.
const LONGEST: i64 = 7 * 86_400_000;

/// The brake of one limit key. Moments are milliseconds of the store's clock.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Brake {
    /// One more with each freeze; calls carry the number they were sent under.
    pub(super) epoch: u64,
    /// Until when nobody calls.
    pub(super) frozen_until: i64,
    /// The share of its limits that is used now.
    pub(super) rate: f64,
    /// The share at which it was refused last.
    refused_at: f64,
    /// Since when the rate has stood, the freeze not counted.
    stepped_at: i64,
    /// It was for having grown too fast.
    slowly: bool,
}

impl Default for Brake {
    fn default() -> Self {
        Self { epoch: 0, frozen_until: 0, rate: 1.0, refused_at: 1.0, stepped_at: 0, slowly: false }
    }
}

impl Brake {
    /// Lets a clean minute count; after a clock that went back, no freeze is longer than one may be.
    pub(super) fn advance(&mut self, now: i64) {
        self.rate = self.rate.clamp(LEAST, 1.0);
        self.frozen_until = self.frozen_until.min(now.saturating_add(LONGEST));
        self.stepped_at = self.stepped_at.min(now.max(self.frozen_until));
        while self.rate < 1.0 {
            let next = (self.rate + BACK).min(1.0);
            // A thousandth below for the rounding of sums.
            let step = if self.slowly {
                CLEAN.max(whole((next / self.rate).ln() / RAMP.0.ln() * RAMP.1))
            } else if next < self.refused_at * WELL_BELOW + 0.001 {
                QUICK
            } else {
                CLEAN
            };
            if now.saturating_sub(self.stepped_at) < step {
                break;
            }
            (self.rate, self.stepped_at) = (next, self.stepped_at.saturating_add(step));
        }
        self.slowly &= self.rate < 1.0;
    }

    /// A call sent under `epoch` was refused and is to be tried `wait` ms later. Says whether that is news: the first of
    /// the calls that were on their way together slows the key down, the others only make its freeze longer.
    pub(super) fn refused(&mut self, now: i64, epoch: u64, wait: i64) -> bool {
        let until = now + wait.clamp(0, LONGEST);
        let is_first = epoch >= self.epoch;
        if is_first {
            // It may have begun anew, and calls of before be under way.
            self.epoch = epoch.saturating_add(1);
            self.refused_at = self.rate;
            self.rate = (self.rate * AFTER).max(LEAST);
        } else if self.frozen_until <= now {
            // An old call's refusal says nothing about what the key does now.
            return false;
        }
        self.frozen_until = self.frozen_until.max(until);
        self.stepped_at = self.frozen_until;
        is_first
    }

    /// The refusals were for having grown too fast: it comes back slowly.
    pub(super) fn grow_slowly(&mut self) {
        self.slowly = self.rate < 1.0;
    }

    /// Nobody calls for so long, whatever is used of the limits. Whether that is longer than was known.
    pub(super) fn freeze(&mut self, now: i64, wait: i64) -> bool {
        let until = now + wait.clamp(0, LONGEST);
        let is_longer = until > self.frozen_until;
        self.frozen_until = self.frozen_until.max(until);
        self.stepped_at = self.stepped_at.max(self.frozen_until);
        is_longer
    }

    /// Ends the freeze and the caution: a person knows better.
    pub(super) fn release(&mut self) {
        self.frozen_until = 0;
        (self.rate, self.slowly) = (1.0, false);
    }

    pub(super) fn is_frozen(&self, now: i64) -> bool {
        now < self.frozen_until
    }

    /// For how many milliseconds yet.
    pub(super) fn frozen_for(&self, now: i64) -> i64 {
        self.frozen_until.saturating_sub(now).max(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn siblings_of_a_refused_call_slow_the_key_down_once() {
        let mut brake = Brake::default();
        assert!(brake.refused(1_000, 0, 5_000));
        for wait in [4_000, 9_000, 1_000] {
            assert!(!brake.refused(1_100, 0, wait));
        }
        assert_eq!((whole(brake.rate * 100.0), brake.frozen_until), (50, 10_100));
        assert!(brake.refused(20_000, 1, 1_000));
        assert_eq!(whole(brake.rate * 100.0), 25);
        assert!(!brake.refused(60_000, 0, 9_000) && !brake.is_frozen(60_000), "a call of long ago");
    }

    #[test]
    fn calls_of_before_a_reset_slow_the_new_key_down_once() {
        let mut brake = Brake::default();
        assert!(brake.refused(1_000, 7, 5_000), "it says something of the account all the same");
        for epoch in [7, 6] {
            assert!(!brake.refused(1_100, epoch, 5_000), "{epoch}");
        }
        assert_eq!((whole(brake.rate * 100.0), brake.epoch), (50, 8));
        assert!(brake.refused(20_000, 8, 5_000), "one that was sent since");
    }

    #[test]
    fn clean_windows_bring_it_back_slowly_only_near_where_it_was_refused() {
        let mut brake = Brake::default();
        brake.refused(0, 0, 30_000);
        let rates: Vec<i64> = [32_999, 33_000, 53_999, 54_000, 113_999, 114_000, 174_000, 600_000]
            .iter()
            .map(|now| {
                brake.advance(*now);
                whole(brake.rate * 100.0 + 0.5)
            })
            .collect();
        assert_eq!(rates, [50, 55, 85, 90, 90, 95, 100, 100]);
        brake.refused(1_000_000, 1, i64::MAX);
        brake.advance(0);
        assert_eq!(brake.frozen_until, LONGEST);
        brake.release();
        assert_eq!((brake.is_frozen(0), whole(brake.rate)), (false, 1));
    }
    #[test]
    fn what_grew_too_fast_gets_half_as_much_again_in_a_quarter_of_an_hour() {
        const QUARTER: i64 = 900_000;
        let mut brake = Brake::default();
        brake.refused(0, 0, 0);
        brake.grow_slowly();
        let mut at = |now: i64| {
            brake.advance(now);
            whole(brake.rate * 100.0 + 0.5)
        };
        assert_eq!([at(200_000), at(QUARTER - 9), at(QUARTER + 9)], [50, 70, 75]);
        assert_eq!([at(1_538_000), at(1_541_000), at(1_600_000), at(9_000_000)], [95, 100, 100, 100]);
        brake.refused(10_000_000, 1, 0);
        brake.advance(10_003_000);
        assert_eq!(whole(brake.rate * 100.0 + 0.5), 55, "another refusal is another matter");
    }
}
