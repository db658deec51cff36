//! What was consumed within a sliding window: sums in slots, exact to one slot and never too small.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::amount::Per;

/// Slots of a window: half a second of a minute, 12 minutes of a day. More would be a larger state for less than 1 %.
const SLOTS: i64 = 120;

/// A log of one window. What lies before it is forgotten. Moments are milliseconds of one clock, the store's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Window {
    /// The number of the last slot.
    last: i64,
    /// Sums by slot, the last one last; at most [`SLOTS`] + 1.
    slots: VecDeque<u64>,
}

impl Window {
    /// How long one slot is.
    pub(super) const fn slot(per: Per) -> i64 {
        per.millis() / SLOTS
    }

    /// Brings it to `now`. A clock that went back takes its last slots as the ones before now: nothing is forgotten early.
    pub(super) fn advance(&mut self, per: Per, now: i64) {
        let slot = now.div_euclid(Self::slot(per));
        let ahead = slot.saturating_sub(self.last);
        if ahead > SLOTS {
            self.slots.clear();
        }
        if self.slots.is_empty() {
            self.slots.push_back(0);
        } else {
            for _ in 0..ahead.max(0) {
                self.slots.push_back(0);
            }
        }
        self.last = slot;
        while self.slots.len() > SLOTS_KEPT {
            self.slots.pop_front();
        }
    }

    /// What was consumed in the window before `now`, and up to one slot before that.
    pub(super) fn sum(&self) -> i64 {
        self.slots.iter().fold(0, |sum, slot| sum.saturating_add(i64::try_from(*slot).unwrap_or(i64::MAX)))
    }

    /// Adds what was consumed at `at`, or takes off what was not; what lies before the window changes nothing, what lies
    /// in the future counts as now. No slot holds less than nothing: what is to be taken off beyond that was booked a slot
    /// beside, for the message that told of it took another while than this one.
    pub(super) fn add(&mut self, per: Per, at: i64, amount: i64) {
        let age = self.last.saturating_sub(at.div_euclid(Self::slot(per))).max(0);
        let Ok(age) = usize::try_from(age) else { return };
        if age >= SLOTS_KEPT {
            return;
        }
        while self.slots.len() <= age {
            self.slots.push_front(0);
        }
        let place = self.slots.len() - 1 - age;
        let mut left = amount;
        for place in [Some(place), place.checked_sub(1), Some(place + 1)].into_iter().flatten() {
            if let Some(slot) = self.slots.get_mut(place) {
                let held = i64::try_from(*slot).unwrap_or(i64::MAX);
                *slot = slot.saturating_add_signed(left);
                left = held.saturating_add(left).min(0);
            }
        }
    }

    /// When the sum will have fallen to `most` if nothing is added: a moment of the same clock, at least `now`. Not for a
    /// window that never ends.
    pub(super) fn falls_to(&self, per: Per, most: i64, now: i64) -> i64 {
        let mut over = self.sum().saturating_sub(most);
        let mut at = now;
        let first = self.last - i64::try_from(self.slots.len()).unwrap_or(SLOTS) + 1;
        for (slot, amount) in (first..).zip(&self.slots) {
            if over <= 0 {
                break;
            }
            over = over.saturating_sub(i64::try_from(*amount).unwrap_or(i64::MAX));
            at = (slot + SLOTS + 1) * Self::slot(per);
        }
        at.max(now)
    }
}

/// The slots of a window, and the one that its beginning lies in.
const SLOTS_KEPT: usize = 121;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_was_consumed_counts_for_a_window_and_at_most_a_slot_more() {
        let mut window = Window::default();
        window.advance(Per::Minute, 10_250);
        window.add(Per::Minute, 10_250, 7);
        window.advance(Per::Minute, 70_250);
        assert_eq!(window.sum(), 7);
        assert_eq!(window.falls_to(Per::Minute, 0, 70_250), 70_500);
        window.advance(Per::Minute, 70_500);
        assert_eq!(window.sum(), 0);
    }

    #[test]
    fn a_correction_goes_to_its_own_slot_and_never_below_nothing() {
        let mut window = Window::default();
        window.advance(Per::Minute, 100_000);
        window.add(Per::Minute, 60_000, 10);
        window.add(Per::Minute, 99_000, 5);
        window.add(Per::Minute, 60_000, -4);
        assert_eq!(window.sum(), 11);
        window.add(Per::Minute, 60_000, -40);
        assert_eq!(window.sum(), 5);
        window.add(Per::Minute, 20_000, 40);
        assert_eq!(window.sum(), 5, "before the window");
    }

    #[test]
    fn a_correction_that_comes_a_slot_early_or_late_is_not_lost() {
        for (booked, corrected) in [(60_400, 60_600), (60_600, 60_400), (99_600, 99_400)] {
            let mut window = Window::default();
            window.advance(Per::Minute, 99_900);
            window.add(Per::Minute, booked, 10);
            window.add(Per::Minute, corrected, -4);
            assert_eq!(window.sum(), 6, "{booked} and {corrected}");
            window.add(Per::Minute, corrected - 2_000, -4);
            assert_eq!(window.sum(), 6, "too far from anything");
        }
    }

    #[test]
    fn what_never_ages_is_one_sum_whatever_the_clock_says() {
        let mut window = Window::default();
        for (now, amount) in [(1_800_000_000_000, 7), (1, 5), (9_000_000_000_000, -4)] {
            window.advance(Per::Ever, now);
            window.add(Per::Ever, now - 1, amount);
        }
        assert_eq!((window.sum(), window.slots.len()), (8, 1));
    }

    #[test]
    fn a_clock_that_goes_back_forgets_nothing() {
        let mut window = Window::default();
        window.advance(Per::Minute, 9_000_000);
        window.add(Per::Minute, 9_000_000, 3);
        window.advance(Per::Minute, 1_000);
        assert_eq!(window.sum(), 3);
        window.advance(Per::Minute, 62_000);
        assert_eq!(window.sum(), 0);
    }

    proptest! {
        #[test]
        fn it_never_counts_less_than_the_exact_window_nor_more_than_a_slot_beyond(
            steps in prop::collection::vec((0_i64..4_000, 0_u16..500), 1..400),
        ) {
            let (mut now, mut window, mut all) = (0, Window::default(), Vec::new());
            for (pause, amount) in steps {
                now += pause;
                window.advance(Per::Minute, now);
                window.add(Per::Minute, now, amount.into());
                all.push((now, i64::from(amount)));
                let since = |length: i64| all.iter().filter(|(at, _)| *at > now - length).map(|(_, n)| n).sum::<i64>();
                let (exact, beyond) = (since(60_000), since(60_501));
                prop_assert!((exact..=beyond).contains(&window.sum()));
                prop_assert!(window.slots.len() <= SLOTS_KEPT);
            }
        }
    }
}
