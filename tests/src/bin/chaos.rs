//! The kill storm by hand: `tests/chaos [--backend sqlite|redis] [--jobs N] [--kills K] [--server-kills K] [--seed S]
//! [--workers W] [--slots S]`.
#![expect(clippy::print_stdout, reason = "what it measured is for people")]

use std::process::ExitCode;

use anyhow::Context;
use promptq_tests::chaos::{Plan, Stage, storm};

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let plan = plan(&std::env::args().skip(1).collect::<Vec<_>>())?;
    let report = storm(plan).await?;
    println!("{report}");
    Ok(if report.broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn plan(arguments: &[String]) -> anyhow::Result<Plan> {
    let mut pairs = Vec::new();
    for pair in arguments.chunks(2) {
        let [flag, value] = pair else { anyhow::bail!("{} needs a value", pair.concat()) };
        pairs.push((flag.as_str(), value));
    }
    let named = pairs.iter().rfind(|(flag, _)| *flag == "--backend");
    let mut plan = match named.map_or(Ok(Stage::Sqlite), |(_, name)| name.parse())? {
        Stage::Sqlite => Plan::sqlite(),
        Stage::Redis => Plan::redis(),
    };
    for (flag, value) in pairs {
        let bad = || format!("{flag} {value}: not a number");
        match flag {
            "--backend" => {}
            "--jobs" => plan.jobs = value.parse().with_context(bad)?,
            "--kills" => plan.kills = value.parse().with_context(bad)?,
            "--server-kills" => plan.server_kills = value.parse().with_context(bad)?,
            "--seed" => plan.seed = value.parse().with_context(bad)?,
            "--workers" => plan.workers = value.parse().with_context(bad)?,
            "--slots" => plan.slots = value.parse().with_context(bad)?,
            _ => {
                let known = "--backend, --jobs, --kills, --server-kills, --seed, --workers, --slots";
                anyhow::bail!("{flag} is not known; there are {known}")
            }
        }
    }
    Ok(plan)
}
