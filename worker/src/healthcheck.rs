//! `healthcheck` of both programs: asks a process on this machine how it is, as an orchestrator without curl does.

use std::path::Path;

use clap::Args;
use promptq_common::config::{self, Flag};
use promptq_common::telemetry::admin::ask;
use promptq_common::telemetry::health::Probe;

/// What to ask, and where.
#[derive(Clone, Debug, Args)]
pub struct Healthcheck {
    /// livez: its loop comes round; readyz: it does its work; startupz: it has come up
    #[arg(default_value = Probe::Live.as_str(), value_parser = Probe::ALL.map(Probe::as_str))]
    probe: String,
    /// Where it listens (`PROMPTQ_ADMIN`) [default: 127.0.0.1:9091]
    #[arg(long, value_name = "ADDR")]
    admin: Option<String>,
}

impl Healthcheck {
    /// One line for people: well, or why not. `config` is the settings file, where one was named.
    ///
    /// # Errors
    /// When it is not well, or cannot be asked.
    pub fn run(&self, config: Option<&Path>) -> Result<String, String> {
        let flag = self.admin.clone().map(|value| Flag { setting: "telemetry.admin", name: "--admin", value });
        let config = config::load(config, flag.into_iter().collect());
        let config = config.map_err(|errors| errors.to_string().replace('\n', " "))?;
        let Some(address) = config.telemetry.admin.address() else {
            return Err("nothing listens: telemetry.admin is off".to_owned());
        };
        let probe = Probe::ALL.into_iter().find(|probe| probe.as_str() == self.probe).unwrap_or(Probe::Live);
        ask(address, probe)
    }
}
