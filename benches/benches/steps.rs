//! How long the steps of the way of a job take that need no broker: `cargo bench -p promptq-benches --bench steps`.

#[path = "steps/mod.rs"]
mod way;

use criterion::Criterion;

fn main() -> anyhow::Result<()> {
    let folder = tempfile::TempDir::new()?;
    let mut criterion = Criterion::default().without_plots().configure_from_args();
    for (name, mut step) in way::steps(&folder)? {
        criterion.bench_function(name, |bencher| bencher.iter(&mut step));
    }
    criterion.final_summary();
    Ok(())
}
