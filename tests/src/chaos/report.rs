//! What a storm came to, for people.

use std::fmt;
use std::time::Duration;

use super::promise::{Facts, median};

/// What came of it.
#[derive(Debug)]
pub struct Report {
    facts: Facts,
    took: Duration,
    /// Every promise that was broken, in words; empty is good.
    pub broken: Vec<String>,
}

impl Report {
    pub(super) fn new(facts: Facts, took: Duration, broken: Vec<String>) -> Self {
        Self { facts, took, broken }
    }

    /// What happened to the first job that a broken promise names.
    fn story(&self) -> String {
        let job = self.broken.iter().find_map(|what| what.strip_prefix("job ")?.split(' ').next()?.parse().ok());
        job.map(|job| format!("\njob {job}:\n{}", self.facts.story(job))).unwrap_or_default()
    }
}

impl fmt::Display for Report {
    #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (plan, open, calls) = (self.facts.plan, self.facts.open_at_kills(), self.facts.calls.len());
        let extra = calls.saturating_sub(usize::try_from(plan.jobs).unwrap_or(usize::MAX));
        let kills = open.len();
        writeln!(f, "{:?}: jobs {} in {:.1} s, seed {}", plan.stage, plan.jobs, self.took.as_secs_f64(), plan.seed)?;
        writeln!(f, "kills {kills} of {} workers with {} slots", plan.workers, plan.slots)?;
        writeln!(f, "the broker: {}", self.facts.troubles())?;
        writeln!(f, "slots busy at a kill: median {}", median(&open))?;
        writeln!(f, "calls {calls}, extra {extra}, {:.2} for each kill", extra as f64 / kills.max(1) as f64)?;
        match self.broken.len() {
            0 => write!(f, "every job has exactly one success, and none was called after its record was stored"),
            count => {
                let first = self.broken.iter().take(20).map(String::as_str).collect::<Vec<_>>().join("\n");
                write!(f, "BROKEN, {count} times, first:\n{first}{}", self.story())
            }
        }
    }
}
