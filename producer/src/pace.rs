//! How quickly jobs are put back: so many in a time, spread evenly.

use std::str::FromStr;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// A rate such as `5/s`, `300/m` or `1000/h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    jobs: u32,
    per: Duration,
}

/// A pace that is being kept.
#[derive(Debug)]
pub struct Steps {
    pace: Pace,
    began: Instant,
    done: u64,
}

impl FromStr for Pace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a rate such as 5/s, 300/m or 1000/h");
        let (jobs, unit) = text.split_once('/').ok_or_else(bad)?;
        let seconds = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3_600,
            _ => return Err(bad()),
        };
        let jobs = jobs.parse().ok().filter(|jobs| *jobs > 0).ok_or_else(bad)?;
        Ok(Self { jobs, per: Duration::from_secs(seconds) })
    }
}

impl Pace {
    /// Begins to keep it now.
    pub fn begin(self) -> Steps {
        Steps { pace: self, began: Instant::now(), done: 0 }
    }
}

impl Steps {
    /// How many jobs to do at once: a tenth of a second's worth, at least one.
    pub fn size(&self) -> usize {
        let a_tenth = f64::from(self.pace.jobs) / self.pace.per.as_secs_f64() / 10.0;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a positive number below 2^32")]
        let size = a_tenth as usize;
        size.max(1)
    }

    /// Waits until `jobs` more may be done.
    pub async fn wait(&mut self, jobs: usize) {
        #[expect(clippy::cast_precision_loss, reason = "a job more or less in 2^52")]
        let due = self.pace.per.mul_f64(self.done as f64 / f64::from(self.pace.jobs));
        sleep_until(self.began + due).await;
        self.done += jobs as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn jobs_are_spread_over_the_time() {
        let began = Instant::now();
        let mut steps = "300/m".parse::<Pace>().unwrap().begin();
        assert_eq!(steps.size(), 1);
        for _ in 0..11 {
            steps.wait(1).await;
        }
        assert_eq!(began.elapsed().as_millis(), 2_000);
        assert_eq!("5000/s".parse::<Pace>().unwrap().begin().size(), 500);
    }

    #[test]
    fn what_is_no_rate_is_refused() {
        for text in ["5", "0/s", "-1/s", "5/d", "x/s", "/s"] {
            assert!(text.parse::<Pace>().is_err(), "{text}");
        }
    }
}
