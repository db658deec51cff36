//! From flags to settings: the configuration, how much is logged, how things are printed.

use promptq_common::config::{self, Config, ConfigErrors, Flag};
use tracing::level_filters::LevelFilter;

use crate::cli::{Cli, Command, Global};
use crate::printer::Style;
use crate::problem::{Exit, Problem, Result};

/// Reads files, environment and flags; `more` are those of one command.
pub fn load(global: &Global, more: Vec<Flag>) -> Result<Config> {
    let flags = [
        ("broker.url", "--broker", &global.broker),
        ("ledger.url", "--ledger", &global.ledger),
        ("store.url", "--store", &global.store),
    ];
    let flags = flags
        .into_iter()
        .filter_map(|(setting, name, value)| value.as_ref().map(|value| Flag { setting, name, value: value.clone() }));
    config::load(global.config.as_deref(), flags.chain(more).collect()).map_err(|errors| problem(&errors))
}

/// How much is logged: `-v` and `-q` beat the configuration; else warnings. And whether audit lines are: by all but a
/// command that is to be quiet. A gateway's are of others, who cannot see what it was told.
pub fn levels(cli: &Cli, config: &Config) -> (LevelFilter, LevelFilter) {
    let Global { quiet, verbose, .. } = cli.global;
    let level = match (quiet, verbose) {
        (true, _) => LevelFilter::ERROR,
        (false, 0) => config.telemetry.log.unwrap_or(LevelFilter::WARN),
        (false, 1) => LevelFilter::INFO,
        (false, 2) => LevelFilter::DEBUG,
        (false, _) => LevelFilter::TRACE,
    };
    let is_silent = quiet && !matches!(cli.command, Command::Serve(_));
    (level, if is_silent { LevelFilter::OFF } else { LevelFilter::INFO })
}

/// How things are printed.
pub fn style(cli: &Cli) -> Style {
    Style {
        format: cli.command.format(),
        color: cli.global.color,
        plain_terminal: crate::plain_terminal(),
        quiet: cli.global.quiet,
    }
}

/// Every setting that is wrong, as one problem.
pub(crate) fn problem(errors: &ConfigErrors) -> Problem {
    if let [only] = errors.0.as_slice() {
        let problem = Problem::new(Exit::Usage, only.slug, only.what.clone()).detail(format!("--> {}", only.at));
        return match &only.hint {
            Some(hint) => problem.hint(hint.clone()),
            None => problem,
        };
    }
    let mut problem = Problem::new(Exit::Usage, "config", format!("{} settings are wrong", errors.0.len()));
    problem.details = errors.0.iter().map(|error| format!("--> {error}")).collect();
    problem.hint("promptq config check")
}
