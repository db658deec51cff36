//! What promptq takes from a Redis of its own: `pairs` beside the least that a queue could do (`limit`), each contestant
//! in a file of its own (`facade`, `programs`); `single` what one job or an idle fleet takes. Here: the server's accounts.

mod facade;
mod limit;
mod pairs;
mod programs;
mod single;

pub use pairs::{Fsync, pairs};
pub use single::{idle, latency, memory};

use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use rustix::time::{ClockId, clock_gettime};

use crate::server::RedisServer;

/// As much text as a prompt and an answer have here, in bytes: that of `performance.md`'s jobs.
const TEXT: usize = 300;

/// What work on so many jobs took.
#[derive(Clone, Copy, Debug)]
struct Rate {
    jobs_per_s: f64,
    /// Processor time of our processes for each job, in microseconds.
    ours: f64,
    /// That of the server.
    theirs: f64,
}

/// Does the work and says what it took, its processes' end included; the clock stops when `work` returns.
async fn clocked(
    server: &RedisServer,
    jobs: usize,
    work: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<Rate> {
    let (theirs, ours, began) = (server_time(server)?, own_time()?, Instant::now());
    work.await?;
    let (time, jobs) = (began.elapsed().as_secs_f64(), float(jobs));
    Ok(Rate {
        jobs_per_s: jobs / time,
        ours: (own_time()? - ours) * 1e6 / jobs,
        theirs: (server_time(server)? - theirs) * 1e6 / jobs,
    })
}

/// A count as a figure to reckon with.
fn float(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from)
}

/// Processor time of this process and of the children it has waited for, in seconds.
fn own_time() -> anyhow::Result<f64> {
    let own = clock_gettime(ClockId::ProcessCPUTime);
    let own = Duration::new(u64::try_from(own.tv_sec)?, u32::try_from(own.tv_nsec)?);
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit_once(") ").context("no fields in stat")?.1.split(' ');
    // cutime and cstime are fields 16 and 17 of the whole line, in ticks of 10 ms.
    let ticks = fields.skip(13).take(2).map(|field| Ok(field.parse::<u32>()?)).sum::<anyhow::Result<u32>>()?;
    Ok(own.as_secs_f64() + f64::from(ticks) / 100.0)
}

/// Processor time of the server, all its threads, in seconds.
fn server_time(server: &RedisServer) -> anyhow::Result<f64> {
    let info = info(server, "cpu")?;
    Ok(figure(&info, "used_cpu_sys:")? + figure(&info, "used_cpu_user:")?)
}

/// One section of what the server tells of itself.
fn info(server: &RedisServer, section: &str) -> anyhow::Result<String> {
    Ok(server.command(&["INFO", section]).map_err(|why| anyhow!(why))?.text())
}

/// The number behind `name` at the start of a line.
fn figure(info: &str, name: &str) -> anyhow::Result<f64> {
    let value = info.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
    Ok(value.trim().parse()?)
}

/// The text of a prompt, another one for each `n`.
fn prompt(n: usize) -> String {
    format!("{n:>8} {}", "words of a prompt ".repeat(TEXT / 18 + 1)).chars().take(TEXT).collect()
}
