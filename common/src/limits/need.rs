//! What a call will probably consume, and how far that may be off: pure values, which add up.

use std::ops::{Add, Sub};

use serde::{Deserialize, Serialize};

use super::amount::{Amounts, Measure, float, whole};

/// What one job will probably consume.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Need {
    /// How much.
    pub amounts: Amounts,
    /// How far that may be off.
    pub doubt: Doubt,
    /// Whether the provider counts the output it may come to as soon as the call is sent, and gives nothing back.
    pub output_upfront: bool,
}

/// The variance of what calls will consume beside what is reserved for them. It adds up, and the more calls there are the
/// less of their sum it is: so many in flight need little more than their mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Doubt {
    /// Of tokens sent, squared.
    pub input: f64,
    /// Of tokens received, squared.
    pub output: f64,
}

impl Doubt {
    /// Of 700 moments one needs more.
    const DEVIATIONS: f64 = 3.0;

    /// What is kept aside for it.
    pub(super) fn margin(&self, measure: Measure) -> i64 {
        let variance = match measure {
            Measure::InputTokens => self.input,
            Measure::OutputTokens => self.output,
            Measure::Tokens => self.input + self.output,
            // Of money the worst case is reserved.
            Measure::Requests | Measure::Concurrent | Measure::Usd => 0.0,
        };
        whole(variance.max(0.0).sqrt() * Self::DEVIATIONS)
    }
}

/// An amount that may be off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Portion {
    /// How much, probably.
    pub amounts: Amounts,
    /// How far that may be off.
    pub doubt: Doubt,
}

impl Portion {
    /// So many times as much, rounded down.
    pub fn times(self, factor: f64) -> Self {
        let Self { amounts, doubt } = self;
        let doubt = Doubt { input: doubt.input * factor, output: doubt.output * factor };
        Self { amounts: amounts.times(factor), doubt }
    }

    /// What each of `count` has of it, at least one of them: whole, where a fraction's rounding would make nothing of one.
    pub(super) fn shared_by(self, count: i64) -> Self {
        Self { amounts: self.amounts.shared_by(count), ..self.times(1.0 / float(count)) }
    }
}

impl Add for Portion {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { amounts: self.amounts + other.amounts, doubt: self.doubt + other.doubt }
    }
}

impl Add for Doubt {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { input: self.input + other.input, output: self.output + other.output }
    }
}

impl Sub for Doubt {
    type Output = Self;

    /// Rounding leaves no doubt below none.
    fn sub(self, other: Self) -> Self {
        Self { input: (self.input - other.input).max(0.0), output: (self.output - other.output).max(0.0) }
    }
}

impl Need {
    /// The same at such a cost, in billionths of a dollar.
    pub(super) fn costing(self, usd: i64) -> Self {
        Self { amounts: Amounts { usd, ..self.amounts }, ..self }
    }

    /// How much it is, and how sure that is.
    pub fn portion(&self) -> Portion {
        Portion { amounts: self.amounts, doubt: self.doubt }
    }

    /// What counts as soon as the call is sent.
    pub(super) fn now(&self) -> Amounts {
        let output = if self.output_upfront { self.amounts.output } else { 0 };
        Amounts { calls: 0, output, usd: 0, ..self.amounts }
    }

    /// What is held until it has ended.
    pub(super) fn later(&self) -> Amounts {
        self.amounts - self.now()
    }
}
