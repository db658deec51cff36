//! The process `promptq-worker`: arguments and signals in, exit code out.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use promptq_common::telemetry::admin::Admin;
use promptq_common::telemetry::health::Health;
use promptq_common::telemetry::trace::{self, Exporter};
use promptq_common::{config, telemetry};
use promptq_worker::cli::{Cli, Command};
use promptq_worker::healthcheck::Healthcheck;
use promptq_worker::runner::Runners;
use promptq_worker::status::Board;
use promptq_worker::stop::Stop;
use promptq_worker::{Drained, Parts, configured, error_code, protect, run};
use tokio::task::JoinSet;
use tracing::level_filters::LevelFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(Command::Healthcheck(asked)) = &cli.command {
        return check(asked);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let drained = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        let drained = runtime.block_on(on_its_threads(work(cli)));
        // What a runner left in a blocking call is not waited for.
        runtime.shutdown_background();
        drained
    });
    match drained {
        Ok(drained) => ExitCode::from(drained.exit_code()),
        Err(error) => fail(&error),
    }
}

/// Every job that starts or ends wakes the loop: on a thread of its own each of these would cost a system call.
async fn on_its_threads(
    work: impl Future<Output = anyhow::Result<Drained>> + Send + 'static,
) -> anyhow::Result<Drained> {
    let mut alone = JoinSet::new();
    alone.spawn(work);
    alone.join_next().await.map_or_else(|| anyhow::bail!("nothing ran"), |drained| drained?)
}

async fn work(cli: Cli) -> anyhow::Result<Drained> {
    let config = cli.load()?;
    let level = config.telemetry.log.unwrap_or(LevelFilter::INFO);
    telemetry::init((level, LevelFilter::INFO), config.telemetry.log_format, std::io::stderr);
    configured::tell_preset(&config);
    let health = Health::default();
    // Before anything that has numbers; ends last.
    let _admin = Admin::open(config.telemetry.admin, "worker", &health)?;
    let spans = Exporter::open(config.telemetry.traces.as_ref(), "promptq-worker")?;
    let settings = cli.settings(&config);
    let runners = Arc::new(Runners::new(configured::runners(&config))?);
    let (broker, store) = configured::connect(&config).await?;
    health.started();
    let (stop, board) = (Stop::new(), Board::telling(health));
    let mut beside = JoinSet::new();
    if let Some(address) = config::ecs_agent() {
        beside.spawn(protect::keep(protect::Agent::new(&address)?, board.watch(), stop.clone()));
    }
    let parts = Parts { broker, store, runners, settings, board };
    let drained = tokio::select! {
        drained = run(parts, stop.clone()) => drained,
        Err(error) = stop.on_two_signals() => Err(error.into()),
    };
    trace::close(spans).await;
    drained
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "the one line that is the answer")]
fn check(asked: &Healthcheck) -> ExitCode {
    match asked.run(None) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(line) => {
            eprintln!("{line}");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "the one line a person reads when nothing was logged yet")]
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::from(error_code(error))
}
