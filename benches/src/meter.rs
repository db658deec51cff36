//! What work took: jobs per second, processor time of our processes and of the server for each job.

use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::time::{ClockId, clock_gettime};

/// As much text as a prompt and an answer have here, in bytes: that of `performance.md`'s jobs.
pub(crate) const TEXT: usize = 300;

/// What work on so many jobs took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    pub(crate) jobs_per_s: f64,
    /// Processor time of our processes for each job, in microseconds.
    pub(crate) ours: f64,
    /// That of the server.
    pub(crate) theirs: f64,
}

/// Does the work and says what it took, its processes' end included; the clock stops when `work` returns. `server` tells
/// the server's processor time so far, in seconds.
pub(crate) async fn clocked(
    server: impl Fn() -> anyhow::Result<f64>,
    jobs: usize,
    work: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<Rate> {
    let (theirs, ours, began) = (server()?, own_time()?, Instant::now());
    work.await?;
    let (time, jobs) = (began.elapsed().as_secs_f64(), float(jobs));
    Ok(Rate {
        jobs_per_s: jobs / time,
        ours: (own_time()? - ours) * 1e6 / jobs,
        theirs: (server()? - theirs) * 1e6 / jobs,
    })
}

/// A count as a figure to reckon with.
pub(crate) fn float(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from)
}

/// Processor time of this process and of the children it has waited for, in seconds.
pub(crate) fn own_time() -> anyhow::Result<f64> {
    let own = clock_gettime(ClockId::ProcessCPUTime);
    let own = Duration::new(u64::try_from(own.tv_sec)?, u32::try_from(own.tv_nsec)?);
    // cutime and cstime are fields 16 and 17 of the whole line.
    Ok(own.as_secs_f64() + ticks("/proc/self/stat", 13)?)
}

/// Processor time of another process, in seconds.
pub(crate) fn time_of(pid: u32) -> anyhow::Result<f64> {
    // utime and stime are fields 14 and 15.
    ticks(&format!("/proc/{pid}/stat"), 11)
}

/// Two fields of a process's account, in ticks of 10 ms, as seconds; `from` counts from behind the name.
fn ticks(path: &str, from: usize) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(path)?;
    let fields = stat.rsplit_once(") ").context("no fields in stat")?.1.split(' ');
    let ticks = fields.skip(from).take(2).map(|field| Ok(field.parse::<u32>()?)).sum::<anyhow::Result<u32>>()?;
    Ok(f64::from(ticks) / 100.0)
}

/// The text of a prompt, another one for each `n`.
pub(crate) fn prompt(n: usize) -> String {
    format!("{n:>8} {}", "words of a prompt ".repeat(TEXT / 18 + 1)).chars().take(TEXT).collect()
}
