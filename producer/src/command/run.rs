//! `promptq run`: submits, runs with workers of its own, writes the results; the same command again goes on.

use std::path::PathBuf;
use std::str::FromStr;

use crate::context::Context;
use crate::input::InputArgs;
use crate::problem::{Exit, Result};
use crate::progress::Mode;

/// What to run.
#[derive(Debug, clap::Args)]
#[command(
    before_help = "Examples:\n  promptq run reviews.csv -t 'Sentiment of: {{text}}' --id-field id -m mock -o out.jsonl\n  promptq run 'docs/*.md' -t summarise.j2 -m gpt-4o-mini -o out.jsonl"
)]
pub struct RunArgs {
    /// What to read, and what becomes of each row.
    #[command(flatten)]
    pub input: InputArgs,
    /// Where results go, a line each as they arrive; - is standard output. Another FILE is another run: it pays again
    #[arg(short, long, value_name = "FILE", default_value = "-", help_heading = "Run")]
    pub output: PathBuf,
    /// Jobs at once
    #[arg(long, value_name = "N", help_heading = "Run", value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub concurrency: Option<u32>,
    /// Stops when so many jobs are dead, or this share of all
    #[arg(long, value_name = "N|P%", help_heading = "Run")]
    pub max_errors: Option<MaxErrors>,
    /// Gives dead jobs of an earlier run of this command another chance
    #[arg(long, help_heading = "Run")]
    pub retry_dead: bool,
    /// Writes the output file anew from the stored results, whatever is in it; nothing is paid twice
    #[arg(long, help_heading = "Run")]
    pub overwrite: bool,
    /// Exits 0 although some jobs are dead
    #[arg(long, help_heading = "Run")]
    pub allow_failures: bool,
    /// How progress is shown
    #[arg(long, value_name = "HOW", default_value = "auto", help_heading = "Run")]
    pub progress: Mode,
}

/// Runs; see the module `run` of this crate. Sees to Ctrl-C itself.
pub async fn run(cx: &Context, args: &RunArgs) -> Result<Exit> {
    crate::run::run(cx, args).await
}

/// When to stop for dead jobs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MaxErrors {
    /// At so many.
    Count(u64),
    /// At this share of all jobs, in percent.
    Percent(f64),
}

impl MaxErrors {
    /// Whether `dead` of `total` jobs are enough.
    pub fn reached(self, dead: u64, total: u64) -> bool {
        match self {
            Self::Count(most) => dead >= most.max(1),
            #[expect(clippy::cast_precision_loss, reason = "a share, not a count")]
            Self::Percent(most) => dead > 0 && dead as f64 * 100.0 >= most * total as f64,
        }
    }
}

impl FromStr for MaxErrors {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is neither a number nor a share such as 5%");
        match text.strip_suffix('%') {
            None => text.parse().map(Self::Count).map_err(|_| bad()),
            Some(share) => match share.parse() {
                Ok(share) if (0.0..=100.0).contains(&share) => Ok(Self::Percent(share)),
                _ => Err(bad()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_counted_or_shared() {
        let reached = |text: &str, dead, total| text.parse::<MaxErrors>().unwrap().reached(dead, total);
        assert!(reached("3", 3, 1_000) && !reached("3", 2, 1_000));
        assert!(reached("5%", 50, 1_000) && !reached("5%", 49, 1_000));
        assert!(!reached("0", 0, 10) && reached("0", 1, 10) && !reached("0%", 0, 10) && reached("0%", 1, 10));
        assert!("x".parse::<MaxErrors>().is_err() && "101%".parse::<MaxErrors>().is_err());
    }
}
