//! `benches/run`: holds the contests it is told, prints the table, keeps the report; redraws the chart or prints the table
//! of a report that is there; and measures what has nobody beside it.
#![expect(clippy::print_stdout, reason = "the table is what the program is for")]

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use promptq_benches::contest::{Contest, Form, Plan, Run};
use promptq_benches::report::Report;
use promptq_benches::{chart, single, table};

/// promptq beside the limits of its brokers and beside its peers
#[derive(Debug, Parser)]
#[command(name = "measure", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// redis, redis-always, quorum, classic, sqlite, latency, calls, run; all but redis-always unless said
    contests: Vec<String>,
    /// A look in minutes
    #[arg(long, conflicts_with = "smoke")]
    quick: bool,
    /// Next to nothing of everything, to see that it works; its figures are worth nothing
    #[arg(long)]
    smoke: bool,
    /// How many rounds: 10, quick 3, unless said
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pairs: Option<u32>,
    /// Without the peers
    #[arg(long)]
    no_peers: bool,
    /// Where every measurement goes, as JSON; the chart goes beside it
    #[arg(long, default_value = "target/bench/latest.json")]
    out: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Draws the chart of a report beside it, as speed.svg
    Chart { report: PathBuf },
    /// Prints the table of a report
    Table { report: PathBuf },
    /// Measures what has nobody beside it: idle, redis-idle, redis-memory, rabbit-idle, rabbit-backlog, rabbit-store
    Single { parts: Vec<String> },
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match cli.command {
        Some(Command::Chart { report }) => draw(&Report::read(&report)?, &report),
        Some(Command::Table { report }) => {
            print!("{}", table::text(&Report::read(&report)?));
            Ok(())
        }
        Some(Command::Single { parts }) => alone(&parts).await,
        None => contests(cli).await,
    }
}

async fn contests(cli: Cli) -> anyhow::Result<()> {
    let form = match (cli.quick, cli.smoke) {
        (true, _) => Form::Quick,
        (_, true) => Form::Smoke,
        _ => Form::Full,
    };
    let plan = Plan { form, rounds: cli.pairs.unwrap_or(form.rounds()), peers: !cli.no_peers };
    let named = cli.contests.iter().map(|name| Contest::named(name)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut run = Run::new(plan)?;
    for contest in if named.is_empty() { Contest::STANDARD.to_vec() } else { named } {
        let held = run.hold(contest).await;
        // What was measured is kept, whatever comes next.
        run.report.write(&cli.out)?;
        held?;
    }
    print!("{}", table::text(&run.report));
    if chart::svg(&run.report).is_ok() {
        draw(&run.report, &cli.out)?;
    }
    println!("\nEvery measurement: {}", cli.out.display());
    Ok(())
}

fn draw(report: &Report, beside: &std::path::Path) -> anyhow::Result<()> {
    let path = beside.with_file_name("speed.svg");
    std::fs::write(&path, chart::svg(report)?).with_context(|| format!("{} cannot be written", path.display()))
}

async fn alone(parts: &[String]) -> anyhow::Result<()> {
    for part in parts {
        let text = match part.as_str() {
            "idle" => single::idle(Duration::from_secs(30)).await?,
            "redis-idle" => single::redis::idle(100, Duration::from_secs(10)).await?,
            "redis-memory" => single::redis::memory(100_000).await?,
            "rabbit-idle" => single::rabbit::idle(100, Duration::from_secs(10)).await?,
            "rabbit-backlog" => single::rabbit::backlog(100_000, 1_000).await?,
            "rabbit-store" => single::rabbit::over_a_store(300).await?,
            _ => anyhow::bail!(
                "{part} is not known\n  hint: idle, redis-idle, redis-memory, rabbit-idle, rabbit-backlog, rabbit-store"
            ),
        };
        print!("{text}");
    }
    Ok(())
}
