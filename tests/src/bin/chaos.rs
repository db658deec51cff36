//! The kill storm by hand: `tests/chaos [--jobs N] [--kills K] [--seed S] [--workers W] [--slots S]`.
#![expect(clippy::print_stdout, reason = "what it measured is for people")]

use std::process::ExitCode;

use anyhow::Context;
use promptq_tests::chaos::{Plan, storm};

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let plan = plan(std::env::args().skip(1))?;
    let report = storm(plan).await?;
    println!("{report}");
    Ok(if report.broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn plan(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<Plan> {
    let mut plan = Plan { jobs: 20_000, workers: 3, slots: 8, kills: 30, seed: 1 };
    while let Some(flag) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{flag} needs a value"))?;
        let bad = || format!("{flag} {value}: not a number");
        match flag.as_str() {
            "--jobs" => plan.jobs = value.parse().with_context(bad)?,
            "--kills" => plan.kills = value.parse().with_context(bad)?,
            "--seed" => plan.seed = value.parse().with_context(bad)?,
            "--workers" => plan.workers = value.parse().with_context(bad)?,
            "--slots" => plan.slots = value.parse().with_context(bad)?,
            _ => anyhow::bail!("{flag} is not known; there are --jobs, --kills, --seed, --workers, --slots"),
        }
    }
    Ok(plan)
}
