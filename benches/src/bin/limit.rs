//! A limit program: `limit redis|rabbit|sqlite|… enqueue|work|live`, with the command line and the one JSON line of
//! `benches/peers`. What each of them does is the library's `limit`.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the line is what the program is for")]

use std::process::ExitCode;

use clap::Parser as _;
use promptq_benches::limit::{self, Arguments};

fn main() -> ExitCode {
    let plan = Arguments::parse().plan().unwrap_or_else(|wrong| wrong.exit());
    match limit::run(&plan) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("limit: {error:#}");
            ExitCode::FAILURE
        }
    }
}
