//! What is drawn: numbers from a seed and a request, so that the same request always meets the same; the distributions
//! that a configuration names.

use std::fmt;
use std::time::Duration;

use promptq_common::time::{format_duration, parse_duration};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Draws for one request: the same seed, request and purpose give the same number.
#[derive(Clone, Copy, Debug)]
pub struct Dice(u64);

impl Dice {
    /// For whatever `about` stands for, a request's hash or a number.
    pub fn new(seed: u64, about: u64) -> Self {
        Self(mixed(mixed(seed) ^ about))
    }

    /// 64 bits for one purpose.
    pub fn bits(self, purpose: u64) -> u64 {
        mixed(self.0 ^ mixed(purpose))
    }

    /// At least 0, less than 1.
    pub fn share(self, purpose: u64) -> f64 {
        f64::from(u32::try_from(self.bits(purpose) >> 32).unwrap_or(0)) / (f64::from(u32::MAX) + 1.0)
    }

    /// Of the standard normal distribution (Box and Muller).
    fn normal(self, purpose: u64) -> f64 {
        let (one, two) = (1.0 - self.share(purpose), self.share(purpose ^ u64::MAX));
        (-2.0 * one.ln()).sqrt() * (std::f64::consts::TAU * two).cos()
    }
}

/// `SplitMix64`'s last step: every bit of the input moves about half of the output's.
fn mixed(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// How a quantity is spread.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spread<T> {
    /// Always the same.
    Fixed(T),
    /// Each value from the first to the second alike.
    Uniform(T, T),
    /// Many small and a few large ones, as answers and their times are.
    Lognormal(Lognormal<T>),
}

/// A lognormal distribution, cut.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lognormal<T> {
    /// Half of the values are under it.
    pub median: T,
    /// Of the logarithm: 0.5 has one value in six above 1.65 times the median.
    pub sigma: f64,
    /// No value is larger.
    pub max: T,
}

impl<T: Copy + Into<u64>> Spread<T> {
    /// A value; lengths of time in microseconds.
    pub fn draw(&self, dice: Dice, purpose: u64) -> u64 {
        match *self {
            Self::Fixed(value) => value.into(),
            Self::Uniform(from, to) => {
                let (from, to) = (from.into(), to.into());
                from + dice.bits(purpose) % (to.saturating_sub(from) + 1)
            }
            Self::Lognormal(Lognormal { median, sigma, max }) => {
                let factor = (sigma * dice.normal(purpose)).exp();
                times(median.into(), factor).min(max.into())
            }
        }
    }

    /// What is wrong with it, if anything.
    pub fn fault(&self) -> Option<String> {
        match *self {
            Self::Fixed(_) => None,
            Self::Uniform(from, to) => {
                (from.into() > to.into()).then(|| "uniform has its larger bound first".to_owned())
            }
            Self::Lognormal(Lognormal { sigma, .. }) => {
                (!(0.0..=5.0).contains(&sigma)).then(|| format!("sigma {sigma} is not from 0 to 5"))
            }
        }
    }
}

/// A count times a factor, rounded.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "counts of tokens and microseconds are far below 2^52, and a cast of a float saturates"
)]
pub fn times(count: u64, factor: f64) -> u64 {
    (count as f64 * factor).round() as u64
}

/// A length of time, written `250ms`, `1m30s`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl Span {
    /// Of milliseconds.
    pub const fn millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    /// In milliseconds.
    pub fn as_millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }
}

impl From<Span> for u64 {
    fn from(span: Span) -> Self {
        Self::try_from(span.0.as_micros()).unwrap_or(Self::MAX)
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format_duration(self.0))
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}ms", self.0.as_millis()))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        parse_duration(&text).map(Self).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_drawn_for_the_same_and_something_else_for_others() {
        let drawn = |seed, about, purpose| Dice::new(seed, about).bits(purpose);
        assert_eq!(drawn(1, 2, 3), drawn(1, 2, 3));
        for other in [drawn(2, 2, 3), drawn(1, 3, 3), drawn(1, 2, 4)] {
            assert_ne!(drawn(1, 2, 3), other);
        }
    }

    #[test]
    fn each_spread_keeps_its_bounds_and_its_middle() {
        let many = |spread: Spread<u64>| -> Vec<u64> {
            let mut drawn: Vec<_> = (0..4_001).map(|about| spread.draw(Dice::new(7, about), 1)).collect();
            drawn.sort_unstable();
            drawn
        };
        assert!(many(Spread::Fixed(5)).iter().all(|&value| value == 5));
        let uniform = many(Spread::Uniform(10, 20));
        assert_eq!((uniform[0], uniform[4_000]), (10, 20));
        let lognormal = many(Spread::Lognormal(Lognormal { median: 1_000, sigma: 0.5, max: 3_000 }));
        assert!((950..1_050).contains(&lognormal[2_000]), "{}", lognormal[2_000]);
        assert!((1_550..1_750).contains(&lognormal[3_366]), "one sigma: {}", lognormal[3_366]);
        assert_eq!(lognormal[4_000], 3_000);
    }

    #[test]
    fn spreads_that_cannot_be_are_told() {
        assert!(Spread::Uniform(3, 2_u64).fault().is_some());
        assert!(Spread::Lognormal(Lognormal { median: 1_u64, sigma: f64::NAN, max: 2 }).fault().is_some());
        assert!(Spread::Uniform(Span::millis(1), Span::millis(2)).fault().is_none());
    }
}
