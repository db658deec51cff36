//! What the way of a job costs in processor time, with the allocator that ships:
//! `cargo bench -p promptq-benches --bench costs`. Needs redis-server and rabbitmq-server.
#![expect(clippy::print_stdout, reason = "the figures are for people")]

#[path = "costs/mod.rs"]
mod costs;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    print!("{}", costs::tables(costs::Meter::Time)?);
    Ok(())
}
