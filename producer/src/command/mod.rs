//! One file a command: its arguments and what it does. Every command takes the [`Context`] and returns how it ended.

pub mod broker;
pub mod cancel;
pub mod completions;
pub mod config;
pub mod dead;
mod declare;
pub mod doctor;
pub mod exporter;
mod flex;
pub mod jobs;
pub mod keys;
pub mod limits;
pub mod queues;
pub mod results;
pub mod retry;
pub mod run;
pub mod serve;
pub mod status;
pub mod submit;
mod why;
pub mod workers;

use crate::cli::Command;
use crate::context::Context;
use crate::problem::{Exit, Problem, Result};

/// Runs one command. Ctrl-C ends any that does not see to it itself with code 130.
pub async fn dispatch(cx: &Context, command: Command) -> Result<Exit> {
    if let Command::Run(args) = &command {
        return run::run(cx, args).await;
    }
    if let Command::Serve(args) = &command {
        return serve::run(cx, args).await;
    }
    if let Command::Exporter(args) = &command {
        return exporter::run(cx, args).await;
    }
    tokio::select! {
        biased;
        done = one(cx, command) => done,
        Ok(()) = tokio::signal::ctrl_c() => Ok(Exit::Interrupted),
    }
}

async fn one(cx: &Context, command: Command) -> Result<Exit> {
    match command {
        Command::Status(args) => status::run(cx, &args).await,
        Command::Results(args) => results::run(cx, &args).await,
        Command::Jobs(args) => jobs::run(cx, &args).await,
        Command::Cancel(args) => cancel::run(cx, &args).await,
        Command::Retry(args) => retry::run(cx, &args).await,
        Command::Queues(args) => queues::run(cx, &args).await,
        Command::Dead(args) => dead::run(cx, &args).await,
        Command::Workers(args) => workers::run(cx, &args).await,
        Command::Limits(args) => limits::run(cx, &args).await,
        Command::Broker(args) => broker::run(cx, &args).await,
        Command::Doctor(args) => doctor::run(cx, &args).await,
        Command::Serve(args) => serve::run(cx, &args).await,
        Command::Keys(args) => keys::run(cx, &args),
        Command::Config(args) => config::run(cx, &args),
        Command::Exporter(args) => exporter::run(cx, &args).await,
        Command::Run(args) => run::run(cx, &args).await,
        Command::Submit(args) => submit::run(cx, &args).await,
        Command::Completions(_) | Command::Healthcheck(_) => Err(Problem::usage("this needs no settings")),
    }
}
