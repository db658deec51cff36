//! What a measured run took: time, this process's own processor time between the same two moments, peak memory; as the
//! one line of JSON that a contestant prints.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

use crate::process::memory_of;

/// A run under way.
pub(super) struct Stopwatch {
    began: Instant,
    since: SystemTime,
    cpu: Duration,
}

impl Stopwatch {
    pub(super) fn start() -> Self {
        Self { since: SystemTime::now(), cpu: cpu(), began: Instant::now() }
    }

    /// The line for so many jobs; `moments` adds when they began and ended, in seconds since 1970.
    pub(super) fn stop(self, jobs: usize, moments: bool) -> anyhow::Result<String> {
        let (time, used, until) = (self.began.elapsed(), cpu().saturating_sub(self.cpu), SystemTime::now());
        let count = f64::from(u32::try_from(jobs)?);
        let mut line = json!({
            "jobs": jobs,
            "seconds": time.as_secs_f64(),
            "per_second": rounded(count / time.as_secs_f64(), 1.0),
            "cpu_us_per_job": rounded(used.as_secs_f64() * 1e6 / count, 100.0),
            "peak_kib": memory_of(std::process::id(), "VmHWM:")?,
        });
        if moments {
            line["first_start"] = json!(self.since.duration_since(UNIX_EPOCH)?.as_secs_f64());
            line["last_settled"] = json!(until.duration_since(UNIX_EPOCH)?.as_secs_f64());
        }
        Ok(line.to_string())
    }
}

fn rounded(figure: f64, parts: f64) -> f64 {
    (figure * parts).round() / parts
}

/// All threads of this process, those that have ended included.
fn cpu() -> Duration {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    let (whole, rest) = (u64::try_from(used.tv_sec), u32::try_from(used.tv_nsec));
    Duration::new(whole.unwrap_or_default(), rest.unwrap_or_default())
}
