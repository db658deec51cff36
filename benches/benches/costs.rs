//! What the way of a job costs in processor time, with the allocator that ships:
//! `cargo bench -p promptq-benches --bench costs`. Needs redis-server and rabbitmq-server.
#![expect(clippy::print_stdout, reason = "the figures are for people")]

#[path = "costs/mod.rs"]
mod costs;

use promptq_benches::scaling::own_time;
use rustix::time::{ClockId, clock_gettime};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    let process = || own_time().map(|seconds| seconds * 1e6);
    print!("{}", costs::tables(costs::Meter { unit: "us", process, thread: thread_time, is_time: true })?);
    Ok(())
}

/// Processor time of this thread, in microseconds.
fn thread_time() -> anyhow::Result<f64> {
    let own = clock_gettime(ClockId::ThreadCPUTime);
    Ok(f64::from(u32::try_from(own.tv_sec)?) * 1e6 + f64::from(u32::try_from(own.tv_nsec)?) / 1e3)
}
