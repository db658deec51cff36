//! One true sliding window: how much was charged within the last so many milliseconds, and when there is room again.
//! Pure: the caller says what time it is.

use std::collections::VecDeque;

/// What is kept of a window is merged within this part of its length, so that a window is never more than so many entries
/// long. What is merged leaves as late as its last part: a window errs on the strict side, by at most this part.
const GRAINS: u64 = 6_000;

/// Charges of the last so many milliseconds. A charge at `t` counts from `t` until just before `t + length`.
#[derive(Clone, Debug)]
pub struct Window {
    length: u64,
    entries: VecDeque<Entry>,
    charged: u64,
    refused: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    at: u64,
    amount: u64,
    refused: u64,
}

impl Window {
    /// An empty one of this many milliseconds, at least 1.
    pub fn new(length: u64) -> Self {
        Self { length: length.max(1), entries: VecDeque::new(), charged: 0, refused: 0 }
    }

    /// What counts now, calls that were refused included where they were charged.
    pub fn used(&mut self, now: u64) -> u64 {
        self.expire(now);
        self.charged.saturating_add(self.refused)
    }

    /// What counts now of calls that were let in.
    pub fn let_in(&mut self, now: u64) -> u64 {
        self.expire(now);
        self.charged
    }

    /// Charges a call that was let in.
    pub fn charge(&mut self, now: u64, amount: u64) {
        self.add(Entry { at: now, amount, refused: 0 });
    }

    /// Charges a call that was refused.
    pub fn charge_refused(&mut self, now: u64, amount: u64) {
        self.add(Entry { at: now, amount: 0, refused: amount });
    }

    /// Milliseconds until `amount` more fits under `limit`: 0 when it fits now, `None` when it never does.
    pub fn wait(&mut self, now: u64, limit: u64, amount: u64) -> Option<u64> {
        let room = limit.checked_sub(amount)?;
        let mut left = self.used(now);
        if left <= room {
            return Some(0);
        }
        for entry in &self.entries {
            left = left.saturating_sub(entry.amount.saturating_add(entry.refused));
            if left <= room {
                return Some((entry.at + self.length).saturating_sub(now));
            }
        }
        Some(0)
    }

    /// Milliseconds until nothing of it counts any more.
    pub fn empty_in(&mut self, now: u64) -> u64 {
        self.expire(now);
        self.entries.back().map_or(0, |last| (last.at + self.length).saturating_sub(now))
    }

    fn add(&mut self, entry: Entry) {
        self.expire(entry.at);
        self.charged = self.charged.saturating_add(entry.amount);
        self.refused = self.refused.saturating_add(entry.refused);
        let grain = (self.length / GRAINS).max(1);
        if let Some(last) = self.entries.back_mut() {
            let at = entry.at.max(last.at);
            if last.at / grain == at / grain {
                *last = Entry { at, amount: last.amount + entry.amount, refused: last.refused + entry.refused };
                return;
            }
        }
        self.entries.push_back(entry);
    }

    fn expire(&mut self, now: u64) {
        while let Some(first) = self.entries.front().filter(|first| first.at + self.length <= now) {
            self.charged = self.charged.saturating_sub(first.amount);
            self.refused = self.refused.saturating_sub(first.refused);
            self.entries.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_charge_counts_for_exactly_the_length() {
        let mut window = Window::new(1_000);
        window.charge(100, 7);
        assert_eq!((window.used(100), window.used(1_099), window.used(1_100)), (7, 7, 0));
    }

    #[test]
    fn it_slides_and_does_not_jump_at_the_minute() {
        let mut window = Window::new(60_000);
        window.charge(59_000, 10);
        assert_eq!(window.wait(61_000, 10, 1), Some(58_000), "a fixed window would have begun anew");
        assert_eq!(window.wait(119_000, 10, 10), Some(0));
    }

    #[test]
    fn the_wait_is_until_enough_has_left() {
        let mut window = Window::new(1_000);
        for (at, amount) in [(0, 4), (200, 3), (400, 3)] {
            window.charge(at, amount);
        }
        assert_eq!(window.wait(500, 10, 4), Some(500));
        assert_eq!(window.wait(500, 10, 5), Some(700));
        assert_eq!(window.wait(500, 10, 10), Some(900));
        assert_eq!(window.wait(500, 10, 11), None);
        assert_eq!(window.empty_in(500), 900);
    }

    #[test]
    fn refused_calls_count_and_are_told_apart() {
        let mut window = Window::new(1_000);
        window.charge(0, 1);
        window.charge_refused(10, 1);
        assert_eq!((window.used(10), window.let_in(10)), (2, 1));
        assert_eq!((window.used(1_000), window.let_in(1_000)), (1, 0));
    }

    #[test]
    fn its_memory_is_bounded() {
        let mut window = Window::new(60_000);
        (0..200_000).for_each(|at| window.charge(at, 1));
        assert!(window.entries.len() as u64 <= GRAINS + 1, "{}", window.entries.len());
    }

    proptest! {
        /// Whoever asks before each charge never has more than the limit in any window, wherever it begins.
        #[test]
        fn no_window_holds_more_than_the_limit(
            length in 1..50_000_u64,
            limit in 1..100_u64,
            calls in prop::collection::vec((0..2_000_u64, 1..40_u64), 1..200),
        ) {
            let (mut window, mut now, mut let_in) = (Window::new(length), 0, Vec::new());
            for (pause, amount) in calls {
                now += pause;
                if window.wait(now, limit, amount) == Some(0) {
                    window.charge(now, amount);
                    let_in.push((now, amount));
                }
            }
            for &(end, _) in &let_in {
                let within = let_in.iter().filter(|(at, _)| *at <= end && at + length > end);
                let used: u64 = within.map(|(_, amount)| amount).sum();
                prop_assert!(used <= limit, "{used} within {length} ms before {end}");
            }
        }

        /// The wait that is told is enough, and no more than is needed.
        #[test]
        fn whoever_waits_as_told_gets_in_and_not_a_moment_earlier(
            calls in prop::collection::vec((0..300_u64, 1..10_u64), 1..40),
            amount in 1..20_u64,
        ) {
            let (mut window, mut now) = (Window::new(1_000), 0);
            for (pause, amount) in calls {
                now += pause;
                window.charge(now, amount);
            }
            let wait = window.wait(now, 20, amount).expect("it fits some time");
            if wait > 0 {
                // Of a copy, which has not forgotten yet.
                prop_assert_ne!(window.clone().wait(now + wait - 1, 20, amount), Some(0));
            }
            prop_assert_eq!(window.wait(now + wait, 20, amount), Some(0));
        }
    }
}
