//! A worker as `promptq-worker` is one, whose one handler tells the moment of its first line, as the handlers of the peers
//! do: nanoseconds of the machine's monotonic clock, a line for each job.
#![expect(clippy::print_stdout, reason = "the moments are what the program is for")]

use std::sync::Arc;

use async_trait::async_trait;
use clap::Parser as _;
use promptq_benches::monotonic;
use promptq_common::job::Job;
use promptq_common::outcome::{Outcome, Reply};
use promptq_worker::cli::Cli;
use promptq_worker::runner::{RunContext, Runner, Runners, WhenLost};
use promptq_worker::status::Board;
use promptq_worker::stop::Stop;
use promptq_worker::{Parts, configured, run};

#[derive(Debug)]
struct Handler;

#[async_trait]
impl Runner for Handler {
    async fn run(&self, _job: &Job, _cx: &RunContext) -> Outcome {
        let called = monotonic();
        println!("{}", called.as_nanos());
        Outcome::Success(Reply { status_code: 200, ..Reply::default() })
    }

    fn when_lost(&self) -> WhenLost {
        WhenLost::Finish
    }

    fn limit_key(&self, _job: &Job) -> String {
        "handler".to_owned()
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let config = cli.load()?;
    let settings = cli.settings(&config);
    let runners = Runners::new(configured::runners(&config))?.with("handler", Arc::new(Handler));
    let (broker, store) = configured::connect(&config).await?;
    let parts = Parts { broker, store, runners: Arc::new(runners), settings, board: Board::new() };
    let mut alone = tokio::task::JoinSet::new();
    alone.spawn(run(parts, Stop::new()));
    while let Some(drained) = alone.join_next().await {
        drained??;
    }
    Ok(())
}
