//! What the way of a job costs in allocations: `cargo bench -p promptq-benches --bench allocations`. Needs redis-server and
//! rabbitmq-server.
#![expect(clippy::print_stdout, reason = "the figures are for people")]

#[path = "costs/mod.rs"]
mod costs;

use std::alloc::System;

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn main() -> anyhow::Result<()> {
    let meter = costs::Meter { unit: "allocations", process: so_far, thread: so_far, is_time: false };
    print!("{}", costs::tables(meter)?);
    Ok(())
}

fn so_far() -> anyhow::Result<f64> {
    let stats = ALLOCATOR.stats();
    Ok(f64::from(u32::try_from(stats.allocations + stats.reallocations)?))
}
