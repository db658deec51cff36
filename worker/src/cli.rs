//! The command line of `promptq-worker`: what may be said, and what it means for settings.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use promptq_common::config::{self, Config, ConfigErrors, Flag};
use promptq_common::time::parse_duration;

use crate::configured;
use crate::healthcheck::Healthcheck;
use crate::settings::Settings;

/// Takes prompt jobs from queues and runs them.
#[derive(Debug, Parser)]
#[command(
    name = "promptq-worker",
    version,
    max_term_width = 100,
    args_conflicts_with_subcommands = true,
    before_help = "Examples:\n  promptq-worker --queues reviews:5,other:1 --concurrency 64\n  promptq-worker --once",
    after_help = "Exit codes:\n  0 drained   1 failed   2 usage or settings wrong   7 broker lost\n  \
                  9 what is left waits for money (--exit-when-idle, --once)   124 drain time over, jobs handed back"
)]
pub struct Cli {
    /// Something else than working.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Settings file, in place of ./promptq.toml and the user's own
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where jobs wait, such as `sqlite:///path/to/file.db` (`PROMPTQ_BROKER`)
    #[arg(long, value_name = "URL")]
    broker: Option<String>,
    /// Where records are kept, for RabbitMQ: `redis://…`, `sqlite://…` or store (`PROMPTQ_LEDGER`)
    #[arg(long, value_name = "URL")]
    ledger: Option<String>,
    /// Where large answers go, such as `s3://bucket/prefix` (`PROMPTQ_STORE`)
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// Jobs at once [default: 16]
    #[arg(long, value_name = "N")]
    concurrency: Option<String>,
    /// What to take from, with each queue's share: `a:5,b:1` [default: default]
    #[arg(long, value_name = "QUEUES")]
    queues: Option<String>,
    /// Leave when there was nothing to run for this long; up to a lease later while jobs run elsewhere or wait for a time.
    /// With 9 where jobs are left that only money helps
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    exit_when_idle: Option<Duration>,
    /// Leave after this many jobs
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_jobs: Option<u64>,
    /// Leave as soon as nothing is ready; with 9 where jobs are left that only money helps
    #[arg(long)]
    once: bool,
    /// How long running jobs may go on after SIGTERM [default: 25s, or what the platform leaves]
    #[arg(long, value_name = "TIME")]
    drain_timeout: Option<String>,
    /// How long a job stays this worker's without a heartbeat [default: 45s]
    #[arg(long, value_name = "TIME")]
    lease: Option<String>,
    /// How often that is renewed [default: 10s]
    #[arg(long, value_name = "TIME")]
    heartbeat: Option<String>,
    /// The first part of this worker's identity [default: the host's name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Let jobs bring their own `exec:` commands: whoever can submit can run programs here
    #[arg(long)]
    allow_exec: bool,
    /// The shape of log lines: auto, text or json
    #[arg(long, value_name = "SHAPE")]
    log_format: Option<String>,
    /// Where metrics and probes are served, or off (`PROMPTQ_ADMIN`) [default: 127.0.0.1:9091, while it is free]
    #[arg(long, value_name = "ADDR")]
    admin: Option<String>,
}

/// What `promptq-worker` does beside working.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Ask the worker on this machine how it is: exit 0 when it is well, else 1
    Healthcheck(Healthcheck),
}

impl Cli {
    /// Reads files and environment under these flags, keys of providers included.
    ///
    /// # Errors
    /// Every setting that is wrong, each with where it was said.
    pub fn load(&self) -> Result<Config, ConfigErrors> {
        let flag = |setting, name, value: &Option<String>| {
            value.as_ref().map(|value| Flag { setting, name, value: value.clone() })
        };
        let allow_exec = self.allow_exec.then(|| "true".to_owned());
        let flags = [
            flag("broker.url", "--broker", &self.broker),
            flag("ledger.url", "--ledger", &self.ledger),
            flag("store.url", "--store", &self.store),
            flag("worker.concurrency", "--concurrency", &self.concurrency),
            flag("worker.queues", "--queues", &self.queues),
            flag("worker.drain_timeout", "--drain-timeout", &self.drain_timeout),
            flag("worker.lease", "--lease", &self.lease),
            flag("worker.heartbeat", "--heartbeat", &self.heartbeat),
            flag("worker.name", "--name", &self.name),
            flag("worker.allow_exec", "--allow-exec", &allow_exec),
            flag("telemetry.log_format", "--log-format", &self.log_format),
            flag("telemetry.admin", "--admin", &self.admin),
        ];
        let config = config::load(self.config.as_deref(), flags.into_iter().flatten().collect())?;
        config.callable().map(|()| config)
    }

    /// The worker's settings: what the configuration says, and what only flags can say.
    pub fn settings(&self, config: &Config) -> Settings {
        let (exit_when_idle, max_jobs, once) = (self.exit_when_idle, self.max_jobs, self.once);
        Settings { exit_when_idle, max_jobs, once, ..configured::settings(config) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_reach_the_settings() {
        let cli = Cli::parse_from([
            "promptq-worker",
            "--broker=memory://",
            "--queues=a:5,b",
            "--concurrency=64",
            "--lease=60s",
            "--heartbeat=5s",
            "--drain-timeout=3s",
            "--exit-when-idle=2s",
            "--max-jobs=7",
            "--once",
            "--name=host 1",
        ]);
        let settings = cli.settings(&cli.load().unwrap());
        settings.check(true).unwrap();
        let queues: Vec<_> = settings.queues.iter().map(|(queue, weight)| (queue.as_str(), *weight)).collect();
        assert_eq!(queues, [("a", 5), ("b", 1)]);
        let seconds = [settings.lease, settings.heartbeat, settings.drain_timeout].map(|length| length.as_secs());
        assert_eq!((settings.concurrency, seconds), (64, [60, 5, 3]));
        assert_eq!((settings.exit_when_idle, settings.max_jobs), (Some(Duration::from_secs(2)), Some(7)));
        assert!(settings.once && settings.worker.as_str().starts_with("host_1-"));
    }

    #[test]
    fn what_does_not_fit_is_refused_where_it_was_said() {
        let cli = Cli::parse_from(["promptq-worker", "--broker=memory://", "--lease=20s", "--heartbeat=10s"]);
        assert!(cli.load().unwrap_err().to_string().contains("heartbeat"));
        assert!(Cli::try_parse_from(["promptq-worker", "--max-jobs=0"]).is_err());
    }
}
