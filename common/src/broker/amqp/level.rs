//! Which delay level a message goes to: pure arithmetic. What a level is at the server is `topology/`.

use std::time::Duration;

/// The level a message that has to wait `left` goes to next: the longest that is not above it, else the shortest.
/// What is left of the wait when it surfaces is waited for at the next one. `levels` are in any order.
///
/// Without levels there is nowhere to wait: zero, which no topology has.
pub(super) fn next(levels: &[Duration], left: Duration) -> Duration {
    let fitting = levels.iter().filter(|level| **level <= left).max();
    fitting.or_else(|| levels.iter().min()).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::broker::amqp::Settings;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_wait_goes_to_the_longest_level_within_it() {
        let levels = Settings::default().levels;
        for (left, level) in
            [(0, 1), (1, 1), (4, 1), (5, 5), (29, 5), (30, 30), (700, 600), (21_600, 21_600), (604_800, 21_600)]
        {
            assert_eq!(next(&levels, left * SECOND), level * SECOND, "{left} s");
        }
        let backwards: Vec<_> = levels.iter().rev().copied().collect();
        assert_eq!(next(&backwards, 40 * SECOND), 30 * SECOND);
    }

    proptest! {
        #[test]
        fn a_wait_ends_after_few_hops_and_hardly_late(left in 0_u64..700_000_000) {
            let levels = Settings::default().levels;
            let (mut left, mut hops) = (Duration::from_millis(left), 0);
            while left >= levels[0] {
                left = left.saturating_sub(next(&levels, left));
                hops += 1;
            }
            // 28 times six hours in a week, then at most 5 + 5 + 4 + 3 + 5 + 4 of the shorter ones.
            prop_assert!(hops <= 60, "{hops}");
        }
    }
}
