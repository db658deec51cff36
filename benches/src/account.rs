//! Many measurements of one thing as one figure: the median, and an interval for it. Ratios are taken round by round.

use std::fmt::{Display, Formatter};

use crate::report::{Report, Sample};

/// A median and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figure {
    /// The middle one; of an even number of them, the mean of the two in the middle.
    pub median: f64,
    /// Where the interval begins.
    pub low: f64,
    /// Where it ends.
    pub high: f64,
    /// Of how many measurements.
    pub count: usize,
}

impl Figure {
    /// Of these; of none, none. The interval is that of the order statistics which holds the median with at least 95 %,
    /// whatever the distribution; fewer than six measurements have none, and show the least and the most.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<_> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let count = values.len();
        let (upper, lower) = (values.get(count / 2)?, values.get(count.saturating_sub(1) / 2)?);
        let skipped = skipped(count);
        Some(Self {
            median: f64::midpoint(*lower, *upper),
            low: values[skipped],
            high: values[count - 1 - skipped],
            count,
        })
    }
}

/// How many of so many sorted values lie outside the interval at either end: the most for which both ends together have
/// at most 5 %.
fn skipped(count: usize) -> usize {
    // The chance that so few values lie below the median, each with one half.
    let mut chance = 0.5_f64.powi(i32::try_from(count).unwrap_or(i32::MAX));
    let (mut sum, mut skipped) = (chance, 0);
    for below in 1..count / 2 {
        chance *= number(count - below + 1) / number(below);
        if sum + chance > 0.025 {
            break;
        }
        sum += chance;
        skipped = below;
    }
    skipped
}

/// As a figure to reckon with.
pub(crate) fn number(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from)
}

/// The median, and in brackets the interval.
impl Display for Figure {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let text = format!("{} ({}-{})", short(self.median), short(self.low), short(self.high));
        f.pad(&text)
    }
}

/// With as many digits as can be meant: three.
pub fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 10_000.0 => format!("{:.1}k", value / 1_000.0),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

impl Report {
    /// One figure of all rounds.
    pub fn figure(&self, [contest, measure, contestant]: [&str; 3], of: impl Fn(&Sample) -> f64) -> Option<Figure> {
        Figure::of(self.of(contest, measure, contestant).into_iter().map(of))
    }

    /// How many times as many jobs per second `one` did as `other`, round by round.
    pub fn ratio(&self, contest: &str, measure: &str, one: &str, other: &str) -> Option<Figure> {
        let others = self.of(contest, measure, other);
        Figure::of(self.of(contest, measure, one).into_iter().filter_map(|sample| {
            let beside = others.iter().find(|beside| beside.round == sample.round)?;
            Some(sample.per_second / beside.per_second)
        }))
    }

    /// Whom a measure of a contest had, in the order they first came.
    pub fn contestants(&self, contest: &str, measure: &str) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for sample in self.samples.iter().filter(|sample| sample.contest == contest && sample.measure == measure) {
            if !names.contains(&sample.contestant.as_str()) {
                names.push(&sample.contestant);
            }
        }
        names
    }

    /// Every contest and measure, in the order they first came.
    pub fn measures(&self) -> Vec<(&str, &str)> {
        let mut names: Vec<(&str, &str)> = Vec::new();
        for sample in &self.samples {
            let name = (sample.contest.as_str(), sample.measure.as_str());
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }
}
