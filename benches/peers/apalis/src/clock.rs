//! A worker's clock: it starts as the last warm-up job has run (without any: as the first job starts), and stops as the
//! last job's end is committed, which is looked for in the file, since apalis does not tell.

use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use apalis_sqlite::SqlitePool;
use rustix::time::{ClockId, clock_gettime};

/// Counts jobs.
pub struct Clock {
    warmup: u64,
    number: u64,
    latencies: bool,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    ran: u64,
    settled: u64,
    start: Option<(f64, f64)>,
    end: Option<(f64, f64)>,
    waits: Vec<f64>,
}

impl Clock {
    /// One that has not started.
    pub fn new(warmup: u64, number: u64, latencies: bool) -> Self {
        Self { warmup, number, latencies, seen: Mutex::default() }
    }

    /// A job submitted `at` runs; it takes no time.
    pub fn started(&self, at: f64) {
        let mut seen = self.seen();
        if self.latencies {
            seen.waits.push((now() - at) * 1000.0);
        }
        if self.warmup == 0 && seen.ran == 0 {
            seen.start = Some((now(), cpu()));
        }
        seen.ran += 1;
        if seen.ran == self.warmup {
            seen.start = Some((now(), cpu()));
            if self.latencies {
                say(r#""warm":true"#);
            }
        }
    }

    /// Waits until all is settled, or until nothing has run for as long as `idle`.
    pub async fn until_done(&self, pool: &SqlitePool, idle: Duration) {
        let wanted = self.warmup + self.number;
        let (mut ran, mut since, mut analysed) = (0, Instant::now(), false);
        while since.elapsed() < idle {
            // Rows are counted only at the end: it is not the peer's work.
            tokio::time::sleep(Duration::from_millis(1)).await;
            let now_ran = self.seen().ran;
            if now_ran != ran {
                (ran, since) = (now_ran, Instant::now());
            }
            if !analysed && ran > self.warmup / 2 {
                // A file in use has statistics; without them SQLite goes through all jobs that a worker ever had with
                // each end, and soon spends a second on it.
                analysed = sqlx::query("ANALYZE").execute(pool).await.is_ok();
            }
            if ran >= wanted && settled(pool).await >= wanted {
                break;
            }
        }
        let settled = settled(pool).await;
        let mut seen = self.seen();
        seen.settled = settled;
        seen.end = Some((now(), cpu()));
    }

    /// Tells what it saw, and gives the status to leave with.
    pub fn tell(&self) -> i32 {
        let seen = self.seen();
        let jobs = seen.settled.saturating_sub(self.warmup);
        if self.latencies {
            tell_latencies(seen.waits.get(self.warmup as usize..).unwrap_or_default());
        } else if let (Some((start, before)), Some((end, after))) = (seen.start, seen.end) {
            let (seconds, costs) = (end - start, costs(jobs, end - start, after - before));
            say(&format!(r#""first_start":{start},"last_settled":{end},"seconds":{seconds},"jobs":{jobs},{costs}"#));
        } else {
            say(r#""jobs":0,"seconds":0.0"#);
        }
        if jobs < self.number { 3 } else { 0 }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn settled(pool: &SqlitePool) -> u64 {
    let counted: Result<i64, _> = sqlx::query_scalar("SELECT COUNT(done_at) FROM Jobs").fetch_one(pool).await;
    counted.map_or(0, i64::unsigned_abs)
}

fn tell_latencies(waits: &[f64]) {
    let mut ordered = waits.to_vec();
    ordered.sort_by(f64::total_cmp);
    let at =
        |percent: usize| ordered.get((ordered.len() * percent / 100).min(ordered.len().max(1) - 1)).unwrap_or(&0.0);
    let mut list = String::new();
    for wait in waits {
        let comma = if list.is_empty() { "" } else { "," };
        write!(list, "{comma}{wait:.3}").unwrap_or_default();
    }
    say(&format!(r#""jobs":{},"p50_ms":{:.3},"p99_ms":{:.3},"ms":[{list}]"#, waits.len(), at(50), at(99)));
}

/// What every command tells at its end.
pub fn costs(jobs: u64, seconds: f64, cpu: f64) -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
    let peak = peak.trim().trim_end_matches(" kB");
    let jobs = jobs as f64;
    format!(r#""per_second":{},"cpu_us_per_job":{},"peak_kib":{peak}"#, jobs / seconds, cpu * 1e6 / jobs)
}

/// One line of JSON on standard output.
pub fn say(facts: &str) {
    println!("{{{facts}}}");
}

/// Seconds since 1970.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Seconds of CPU that this process has used.
pub fn cpu() -> f64 {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}
