//! One file a command: its arguments and what it does. Every command takes the [`Context`] and returns how it ended.

pub mod completions;
pub mod config;

use crate::cli::Command;
use crate::context::Context;
use crate::problem::{Exit, Problem, Result};

/// Runs one command. Ctrl-C ends any that does not see to it itself with code 130.
pub async fn dispatch(cx: &Context, command: Command) -> Result<Exit> {
    tokio::select! {
        biased;
        done = one(cx, command) => done,
        Ok(()) = tokio::signal::ctrl_c() => Ok(Exit::Interrupted),
    }
}

async fn one(cx: &Context, command: Command) -> Result<Exit> {
    match command {
        Command::Config(args) => config::run(cx, &args),
        Command::Completions(_) => Err(Problem::usage("completions need no settings")),
    }
}
