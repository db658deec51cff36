//! The kill storm by hand: `tests/chaos [--backend sqlite|redis|rabbitmq] [--ledger redis|sqlite|store] [--jobs N]
//! [--kills K] [--between MS] [--server-kills K] [--pauses P] [--cuts C] [--alarms A] [--seed S] [--workers W] [--slots S]`.
#![expect(clippy::print_stdout, reason = "what it measured is for people")]

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use promptq_tests::chaos::{Ledger, Plan, storm};

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
    let said = |name: &str| pairs.iter().rfind(|(flag, _)| *flag == name).map(|(_, value)| value.as_str());
    let ledger = match said("--ledger") {
        None | Some("redis") => Ledger::Redis,
        Some("sqlite") => Ledger::Sqlite,
        Some("store") => Ledger::Store,
        Some(other) => anyhow::bail!("{other:?} is no ledger of the storm; there are redis, sqlite and store"),
    };
    let mut plan = match said("--backend") {
        None | Some("sqlite") => Plan::sqlite(),
        Some("redis") => Plan::redis(),
        Some("rabbitmq") => Plan::rabbitmq(ledger),
        Some(other) => anyhow::bail!("{other:?} is no backend of the storm; there are sqlite, redis and rabbitmq"),
    };
    for (flag, value) in pairs {
        let bad = || format!("{flag} {value}: not a number");
        match flag {
            "--backend" | "--ledger" => {}
            "--jobs" => plan.jobs = value.parse().with_context(bad)?,
            "--kills" => plan.kills = value.parse().with_context(bad)?,
            "--between" => plan.between = Duration::from_millis(value.parse().with_context(bad)?),
            "--server-kills" => plan.troubles.kills = value.parse().with_context(bad)?,
            "--pauses" => plan.troubles.pauses = value.parse().with_context(bad)?,
            "--cuts" => plan.troubles.cuts = value.parse().with_context(bad)?,
            "--alarms" => plan.troubles.alarms = value.parse().with_context(bad)?,
            "--seed" => plan.seed = value.parse().with_context(bad)?,
            "--workers" => plan.workers = value.parse().with_context(bad)?,
            "--slots" => plan.slots = value.parse().with_context(bad)?,
            _ => {
                let known = "--backend, --ledger, --jobs, --kills, --between, --server-kills, --pauses, --cuts, --alarms, \
                             --seed, --workers, --slots";
                anyhow::bail!("{flag} is not known; there are {known}")
            }
        }
    }
    Ok(plan)
}
