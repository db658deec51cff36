//! A fake LLM provider as a program: `tests/FAKE_PROVIDER.md` says how it is used. Its parts are in `tests/src/fake/`.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "its address is for scripts, its errors for people")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use promptq_tests::fake::config::Config;
use promptq_tests::fake::{Fake, raise_open_files};

/// Answers as OpenAI, Anthropic and Gemini do: with limits, faults and a bill, and without a model.
#[derive(Debug, Parser)]
#[command(name = "fake-provider", version, max_term_width = 100)]
struct Cli {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// What it is like, as TOML, or as JSON in a file that ends in .json
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Writes a line of JSON for each call, behind what is there
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
    /// What every answer is drawn from
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let config = match cli.config.as_deref().map_or_else(|| Ok(Config::default()), Config::read) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("error: {error:#}\nhint: tests/FAKE_PROVIDER.md has every setting");
            return ExitCode::from(2);
        }
    };
    raise_open_files();
    match Fake::listen(cli.listen, config, cli.seed, cli.ledger.as_deref()) {
        Ok(fake) => {
            println!("{}", fake.origin());
            fake.serve().await;
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
