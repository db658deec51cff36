//! `benches/gateway`: the gateway under load and the exporter before many queues, beside the goals, and as JSON.
#![expect(clippy::print_stdout, reason = "the table is what the program is for")]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use promptq_benches::gateway::{Plan, take};

/// How soon the gateway answers under load, and how long the exporter takes for many queues
#[derive(Debug, Parser)]
#[command(name = "gateway")]
struct Cli {
    /// Seconds of everything, to see that it works; its figures are worth nothing
    #[arg(long)]
    smoke: bool,
    /// Where every figure goes, as JSON
    #[arg(long, default_value = "target/bench/gateway.json")]
    out: PathBuf,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    let findings = take(if cli.smoke { Plan::SMOKE } else { Plan::FULL }).await?;
    findings.write(&cli.out)?;
    print!("{}", findings.table());
    println!("\nEvery figure: {}", cli.out.display());
    Ok(if findings.trouble.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
