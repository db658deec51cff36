//! Many measurements of the same thing as one figure for people: the median, and how far the others lie from it.

use std::fmt::{Display, Formatter, Result};

/// Measurements of one thing.
#[derive(Clone, Debug, Default)]
pub struct Spread(Vec<f64>);

impl Spread {
    /// From these, none of which is not a number.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<_> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    /// The one that this share of 100 of all do not exceed; 0 of none.
    pub fn at(&self, share: usize) -> f64 {
        let last = self.0.len().saturating_sub(1);
        self.0.get((self.0.len() * share / 100).min(last)).copied().unwrap_or(0.0)
    }
}

/// The median, and in brackets the least and the most.
impl Display for Spread {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let digits = match self.at(50) {
            median if median >= 100.0 => 0,
            median if median >= 10.0 => 1,
            _ => 2,
        };
        let text = format!("{:.digits$} ({:.digits$}-{:.digits$})", self.at(50), self.at(0), self.at(100));
        f.pad(&text)
    }
}
