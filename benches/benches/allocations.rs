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
    let so_far = || {
        let stats = ALLOCATOR.stats();
        stats.allocations + stats.reallocations
    };
    print!("{}", costs::tables(costs::Meter::Allocations(so_far))?);
    Ok(())
}
