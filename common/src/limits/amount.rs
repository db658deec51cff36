//! What calls consume, and the caps on it: pure values. Who may consume how much is `pool.rs`.

use std::fmt;
use std::ops::{Add, AddAssign, Sub, SubAssign};

use serde::{Deserialize, Serialize};

use crate::outcome::Usd;

/// What one call, or several, consume. A difference of two may be negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amounts {
    /// Calls sent.
    pub requests: i64,
    /// Tokens sent.
    pub input: i64,
    /// Tokens received.
    pub output: i64,
    /// Calls in flight.
    pub calls: i64,
    /// Billionths of a dollar.
    pub usd: i64,
}

impl Amounts {
    /// Nothing.
    pub const NONE: Self = Self { requests: 0, input: 0, output: 0, calls: 0, usd: 0 };

    /// One call of this size, at no cost.
    pub const fn call(input: i64, output: i64) -> Self {
        Self { requests: 1, input, output, calls: 1, usd: 0 }
    }

    /// The part of it that a measure counts.
    pub const fn of(&self, measure: Measure) -> i64 {
        match measure {
            Measure::Requests => self.requests,
            Measure::InputTokens => self.input,
            Measure::OutputTokens => self.output,
            Measure::Tokens => self.input.saturating_add(self.output),
            Measure::Concurrent => self.calls,
            Measure::Usd => self.usd,
        }
    }

    /// So many times as much, rounded down.
    pub fn times(self, factor: f64) -> Self {
        self.each(|part| whole(float(part) * factor))
    }

    /// A part of `count`, at least 1, that are alike; rounded down.
    pub(super) fn shared_by(self, count: i64) -> Self {
        self.each(|part| part / count)
    }

    /// The larger of each part.
    pub fn max(self, other: Self) -> Self {
        self.with(other, Ord::max)
    }

    /// The smaller of each part.
    pub fn min(self, other: Self) -> Self {
        self.with(other, Ord::min)
    }

    /// Whether each part is within the other's.
    pub fn is_within(&self, other: &Self) -> bool {
        self.min(*other) == *self
    }

    fn each(self, f: impl Fn(i64) -> i64) -> Self {
        Self {
            requests: f(self.requests),
            input: f(self.input),
            output: f(self.output),
            calls: f(self.calls),
            usd: f(self.usd),
        }
    }

    fn with(self, other: Self, f: impl Fn(i64, i64) -> i64) -> Self {
        Self {
            requests: f(self.requests, other.requests),
            input: f(self.input, other.input),
            output: f(self.output, other.output),
            calls: f(self.calls, other.calls),
            usd: f(self.usd, other.usd),
        }
    }
}

/// A number of things as a fraction: exact below 2^53, which no account's tokens reach.
#[expect(clippy::cast_precision_loss, reason = "exact below 2^53")]
pub(super) fn float(number: i64) -> f64 {
    number as f64
}

/// The whole part of it; a float's cast stops at the ends of the range.
#[expect(clippy::cast_possible_truncation, reason = "stops at the ends of the range")]
pub(super) fn whole(number: f64) -> i64 {
    number.floor() as i64
}

impl Add for Amounts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        self.with(other, i64::saturating_add)
    }
}

impl Sub for Amounts {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self.with(other, i64::saturating_sub)
    }
}

impl AddAssign for Amounts {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl SubAssign for Amounts {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

/// What a cap counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Measure {
    /// Calls sent.
    Requests,
    /// Tokens sent.
    InputTokens,
    /// Tokens received.
    OutputTokens,
    /// Tokens sent and received.
    Tokens,
    /// Calls in flight.
    Concurrent,
    /// What calls cost, in billionths of a dollar. Never more than its cap: a call's worst case is reserved before.
    Usd,
}

impl Measure {
    /// Its name in configuration and on screen.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::InputTokens => "input_tokens",
            Self::OutputTokens => "output_tokens",
            Self::Tokens => "tokens",
            Self::Concurrent => "concurrent",
            Self::Usd => "usd",
        }
    }

    /// Whether it is one of those that providers turn calls away for, and tell of in their headers.
    pub const fn is_rate(self) -> bool {
        match self {
            Self::Requests | Self::InputTokens | Self::OutputTokens | Self::Tokens => true,
            Self::Concurrent | Self::Usd => false,
        }
    }

    /// An amount of it for people: `150000`, and money as `$0.25`.
    pub fn say(self, amount: i64) -> String {
        if self == Self::Usd { format!("${}", Usd::from_nanos(amount)) } else { amount.to_string() }
    }
}

/// Over what a cap counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Per {
    /// What is held at one moment, and nothing of what was before.
    Moment,
    /// Any 60 s.
    Minute,
    /// Any 24 h.
    Day,
    /// Everything since the key was first used: a sum that never ages.
    Ever,
}

impl Per {
    /// Its length in milliseconds; the longest there is for one that never ends.
    pub const fn millis(self) -> i64 {
        match self {
            Self::Moment => 0,
            Self::Minute => 60_000,
            Self::Day => 86_400_000,
            Self::Ever => i64::MAX,
        }
    }
}

/// One cap of a limit key: never more than `most` of `measure` within any `per`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cap {
    /// What it counts.
    pub measure: Measure,
    /// Over what.
    pub per: Per,
    /// The most, at least 1.
    pub most: i64,
}

/// `500 requests/min`, `64 concurrent`, `$20/day`, `$25`.
impl fmt::Display for Cap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per = match self.per {
            Per::Moment | Per::Ever => "",
            Per::Minute => "/min",
            Per::Day => "/day",
        };
        if self.measure == Measure::Usd {
            return write!(f, "{}{per}", self.measure.say(self.most));
        }
        write!(f, "{} {}{per}", self.most, self.measure.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_what_was_sent_and_what_came() {
        let call = Amounts::call(30, 12);
        assert_eq!((call.of(Measure::Tokens), call.of(Measure::Concurrent)), (42, 1));
        assert_eq!(call.times(2.5), Amounts { requests: 2, input: 75, output: 30, calls: 2, usd: 0 });
        assert!(call.is_within(&call.times(2.0)) && !call.is_within(&Amounts::call(29, 90)));
        let cap = Cap { measure: Measure::Requests, per: Per::Minute, most: 500 };
        assert_eq!(cap.to_string(), "500 requests/min");
        let dollars = |per, most| Cap { measure: Measure::Usd, per, most }.to_string();
        assert_eq!(
            (dollars(Per::Day, 20_500_000_000), dollars(Per::Ever, 25_000_000_000)),
            ("$20.5/day".into(), "$25".into())
        );
    }
}
