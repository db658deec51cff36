//! The local part of a limit: what a worker was granted does not leave in one millisecond. Pure: moments are milliseconds
//! of the worker's own clock. How much is granted, and to whom, is `pool.rs`.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

use super::amount::{Cap, Measure, Per};

/// How much faster than its whole limit one worker may send: what waited for a grant is caught up with.
const HASTE: u64 = 2;
/// A limit of fewer calls a minute needs no spreading: providers look at a second at the shortest.
const SLOW: u64 = 60;
/// Calls that are due within so many milliseconds leave together: timers are no finer.
const TOGETHER: u64 = 10;

/// The distance between a worker's calls under one limit key.
#[derive(Debug)]
pub(super) struct Pace {
    /// The calls a minute that it is for.
    most: Option<u64>,
    spread: Option<Spread>,
}

#[derive(Debug)]
struct Spread {
    limiter: RateLimiter<NotKeyed, InMemoryState, Told, NoOpMiddleware<Nanos>>,
    clock: Told,
}

/// A clock that shows what it is told.
#[derive(Clone, Debug, Default)]
struct Told(Arc<AtomicU64>);

impl Clock for Told {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        self.0.load(Ordering::Relaxed).into()
    }
}

impl Pace {
    /// Half the distance that calls would have if the smallest of the limits by the minute were spread evenly.
    pub(super) fn new(caps: &[Cap]) -> Self {
        let most = calls_a_minute(caps);
        let spread = most.filter(|most| *most > SLOW).and_then(|most| Spread::new(most.saturating_mul(HASTE)));
        Self { most, spread }
    }

    /// The limits are these now.
    pub(super) fn follow(&mut self, caps: &[Cap]) {
        if calls_a_minute(caps) != self.most {
            *self = Self::new(caps);
        }
    }

    /// Lets a call pass, or says after how many milliseconds it may ask again.
    pub(super) fn pass(&self, now: i64) -> Result<(), i64> {
        self.spread.as_ref().map_or(Ok(()), |spread| spread.pass(now))
    }
}

fn calls_a_minute(caps: &[Cap]) -> Option<u64> {
    let requests = caps.iter().filter(|cap| cap.measure == Measure::Requests && cap.per == Per::Minute);
    requests.filter_map(|cap| u64::try_from(cap.most).ok()).min()
}

impl Spread {
    fn new(a_minute: u64) -> Option<Self> {
        let minute = Duration::from_secs(60);
        let apart = Duration::from_nanos(u64::try_from(minute.as_nanos()).ok()? / a_minute);
        let together = u32::try_from(a_minute.saturating_mul(TOGETHER) / 60_000).unwrap_or(u32::MAX);
        let quota = Quota::with_period(apart)?.allow_burst(NonZeroU32::new(together).unwrap_or(NonZeroU32::MIN));
        let clock = Told::default();
        Some(Self { limiter: RateLimiter::direct_with_clock(quota, clock.clone()), clock })
    }

    fn pass(&self, now: i64) -> Result<(), i64> {
        let now = u64::try_from(now).unwrap_or_default().saturating_mul(1_000_000);
        self.clock.0.store(now, Ordering::Relaxed);
        self.limiter.check().map_err(|early| {
            let wait = early.wait_time_from(now.into()).as_micros().div_ceil(1_000);
            i64::try_from(wait).unwrap_or(i64::MAX)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(most: i64) -> Pace {
        Pace::new(&[Cap { measure: Measure::Requests, per: Per::Minute, most }])
    }

    #[test]
    fn calls_are_half_as_far_apart_as_if_they_were_spread_evenly() {
        let pace = pace(600);
        assert_eq!([pace.pass(1_000), pace.pass(1_000), pace.pass(1_020)], [Ok(()), Err(50), Err(30)]);
        assert_eq!([pace.pass(1_050), pace.pass(1_099), pace.pass(1_100)], [Ok(()), Err(1), Ok(())]);
        assert_eq!([pace.pass(9_000), pace.pass(9_000)], [Ok(()), Err(50)], "a pause is not saved up");
    }

    #[test]
    fn a_limit_that_changes_takes_its_distance_with_it() {
        let caps = |most| [Cap { measure: Measure::Requests, per: Per::Minute, most }];
        let mut pace = pace(600);
        assert_eq!(pace.pass(1_000), Ok(()));
        pace.follow(&caps(600));
        assert_eq!(pace.pass(1_020), Err(30), "the same limit is no news");
        pace.follow(&caps(300));
        assert_eq!([pace.pass(1_050), pace.pass(1_050)], [Ok(()), Err(100)]);
    }

    #[test]
    fn a_limit_finer_than_a_millisecond_is_kept_on_average() {
        for most in [100_000, 1_000_000] {
            let pace = pace(most);
            let sent: i64 =
                (0..1_000).map(|now| (0..200).map(|_| i64::from(pace.pass(now).is_ok())).sum::<i64>()).sum();
            let even = most * 2 / 60;
            assert!((even..=even + even / 50).contains(&sent), "{sent} of {even} in a second");
        }
    }

    #[test]
    fn only_calls_by_the_minute_are_spread_and_only_many() {
        let day = Cap { measure: Measure::Requests, per: Per::Day, most: 1_000_000 };
        let tokens = Cap { measure: Measure::Tokens, per: Per::Minute, most: 1_000_000 };
        for pace in [Pace::new(&[]), Pace::new(&[day, tokens]), pace(60)] {
            assert!((0..100).all(|_| pace.pass(5).is_ok()));
        }
        assert_eq!([pace(61).pass(-5), pace(i64::MAX).pass(0)], [Ok(()), Ok(())]);
    }
}
