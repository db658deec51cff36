//! `benches/limits`: takes the measures it is told, prints what it saw beside the goals, and keeps it as JSON.
#![expect(clippy::print_stdout, reason = "the table is what the program is for")]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use promptq_benches::limits::findings::Findings;
use promptq_benches::limits::{Form, Measure, Plan, take};

/// What the limits of a fleet are worth, against a provider with true sliding windows
#[derive(Debug, Parser)]
#[command(name = "limits")]
struct Cli {
    /// kept, killed, store, headers, queues, beside, money; all unless said
    measures: Vec<String>,
    /// Two measured minutes where it should be five and more
    #[arg(long, conflicts_with = "smoke")]
    quick: bool,
    /// Seconds of everything, to see that it works; its figures are worth nothing
    #[arg(long)]
    smoke: bool,
    /// One measure after the other, also those that wait for minutes to pass: more than an hour
    #[arg(long)]
    alone: bool,
    /// Where every figure goes, as JSON
    #[arg(long, default_value = "target/bench/limits.json")]
    out: PathBuf,
    /// Prints the table of such a file again, and measures nothing
    #[arg(long, value_name = "FILE", exclusive = true)]
    table: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    if let Some(path) = cli.table {
        print!("{}", Findings::read(&path)?.table());
        return Ok(ExitCode::SUCCESS);
    }
    let form = match (cli.quick, cli.smoke) {
        (true, _) => Form::Quick,
        (_, true) => Form::Smoke,
        _ => Form::Full,
    };
    let named = cli.measures.iter().map(|name| Measure::named(name)).collect::<anyhow::Result<Vec<_>>>()?;
    let measures = if named.is_empty() { Measure::ALL.to_vec() } else { named };
    let findings = take(&Plan { form, measures, alone: cli.alone }).await?;
    findings.write(&cli.out)?;
    print!("{}", findings.table());
    println!("\nEvery figure: {}", cli.out.display());
    Ok(if findings.trouble.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
