//! promptq: submit prompt jobs, watch them, fetch their results.
//!
//! Read in this order: `cli` (what may be said), `settings` and `context` (what it means), `command` (what is done).

mod budget;
pub mod cli;
pub mod command;
pub mod confirm;
pub mod context;
pub mod filter;
pub mod forecast;
pub mod gateway;
pub mod input;
pub mod limits;
pub mod list;
pub mod moving;
pub mod pace;
mod patience;
pub mod pick;
pub mod printer;
pub mod problem;
pub mod progress;
mod run;
pub mod scale;
pub mod settings;
pub mod sink;
pub mod stats;
pub mod submit;
pub mod view;

use std::process::ExitCode;

use clap::error::ErrorKind;
use promptq_common::telemetry::trace::{self, Exporter};
use promptq_common::{config, telemetry};

use cli::Cli;
use context::Context;
use printer::{Format, Printer, Style};
use problem::{Exit, Problem};

/// Runs the command that the arguments name, to its exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => return misused(&error).into(),
    };
    let printer = Printer::new(settings::style(&cli));
    let exit = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Problem::new(Exit::Failed, "failed", format!("cannot start: {error}")))
        .and_then(|runtime| {
            let exit = runtime.block_on(run(cli, printer));
            // A reader of standard input may sit in a blocking call that nothing ends.
            runtime.shutdown_background();
            exit
        });
    match exit {
        Ok(exit) => exit.into(),
        Err(problem) => {
            printer.problem(&problem);
            problem.exit.into()
        }
    }
}

async fn run(cli: Cli, printer: Printer) -> problem::Result<Exit> {
    if let cli::Command::Completions(args) = &cli.command {
        return command::completions::run(args, &printer);
    }
    if let cli::Command::Healthcheck(asked) = &cli.command {
        let failed = |why: String| Problem::new(Exit::Failed, "unwell", why);
        return asked
            .run(cli.global.config.as_deref())
            .map_err(failed)
            .and_then(|line| printer.line(&line))
            .map(|()| Exit::Done);
    }
    let config = settings::load(&cli.global, cli.command.flags())?;
    telemetry::init(settings::levels(&cli, &config), config.telemetry.log_format, std::io::stderr);
    tracing::debug!(broker = %config.broker.url, files = ?config.files, "configured");
    let service = if matches!(cli.command, cli::Command::Serve(_)) { "promptq-gateway" } else { "promptq" };
    let traces = config.telemetry.traces.clone();
    let context = Context::new(config, printer);
    let spans = Exporter::open(traces.as_ref(), service)?;
    let exit = command::dispatch(&context, cli.command).await;
    trace::close(spans).await;
    exit
}

/// Help and version go to stdout with code 0; anything else is a usage problem, as JSON where JSON was asked for.
fn misused(error: &clap::Error) -> Exit {
    let asked_for = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    let json = std::env::args().any(|arg| matches!(arg.as_str(), "--json" | "--jsonl"));
    if asked_for || !json {
        // A reader that has gone needs no help.
        let _shown = error.print();
        return if asked_for { Exit::Done } else { Exit::Usage };
    }
    let text = error.render().to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let what = lines.next().unwrap_or("wrong arguments").trim_start_matches("error: ").to_owned();
    let mut problem = Problem::usage(what);
    problem.details = lines.map(str::to_owned).collect();
    Printer::new(Style { format: Format::Json, ..Style::default() }).problem(&problem);
    Exit::Usage
}

/// Whether the environment asks for no colour.
pub(crate) fn plain_terminal() -> bool {
    let environment = config::environment();
    let said = |name: &str| environment.get(name).is_some_and(|value| !value.is_empty());
    said("NO_COLOR") || environment.get("TERM").is_some_and(|term| term == "dumb")
}
