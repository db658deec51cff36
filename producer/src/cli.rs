//! What may be said on the command line: the command tree and the flags commands share. What a command's own flags
//! mean is the command's file's business.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use promptq_common::config::Flag;
use promptq_worker::healthcheck::Healthcheck;

use crate::command;
use crate::printer::{Color, Format};

/// A job queue for LLM prompts: throw 10 or 10 million prompts at it, get one result per prompt.
#[derive(Debug, Parser)]
#[command(
    name = "promptq",
    version,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 100,
    before_help = "Examples:\n  promptq run reviews.csv -t 'Sentiment of: {{text}}' -m mock -o out.jsonl\n  promptq status nov-reviews",
    after_help = EXIT_CODES,
)]
pub struct Cli {
    /// Where everything is, and how much is said.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Reads the arguments of a process. A number below 0 is a value, to be refused for what it is, and no flag.
    ///
    /// # Errors
    /// What is wrong with them, or what was asked for instead of a command: help, the version.
    pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut command = with_negatives(Self::command());
        let matches = command.try_get_matches_from_mut(arguments)?;
        Self::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
    }
}

fn with_negatives(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|arg| {
        let takes = !arg.is_positional() && arg.get_action().takes_values();
        if takes { arg.allow_negative_numbers(true) } else { arg }
    });
    command.mut_subcommands(with_negatives)
}

const EXIT_CODES: &str = "Exit codes:
  0 ok   1 failed   2 usage, settings or input wrong   3 done, but some jobs did not succeed
  4 not allowed   5 not found   6 conflict   7 unreachable   8 still pending
  9 stopped by --max-errors or for want of money   130 interrupted   141 the reader of a run's results has gone";

/// Flags of every command.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Everywhere")]
pub struct Global {
    /// Settings file, in place of ./promptq.toml and the user's own
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Where jobs wait, such as `sqlite:///path/to/file.db` (`PROMPTQ_BROKER`)
    #[arg(long, value_name = "URL", global = true)]
    pub broker: Option<String>,
    /// Where records are kept, for RabbitMQ: `redis://…`, `sqlite://…` or store (`PROMPTQ_LEDGER`)
    #[arg(long, value_name = "URL", global = true)]
    pub ledger: Option<String>,
    /// Where large answers go, such as `s3://bucket/prefix` (`PROMPTQ_STORE`)
    #[arg(long, value_name = "URL", global = true)]
    pub store: Option<String>,
    /// Say nothing but results and errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Log more (-vv debug, -vvv trace)
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// auto, always or never
    #[arg(
        long,
        value_name = "WHEN",
        global = true,
        default_value = "auto",
        hide_default_value = true,
        hide_possible_values = true
    )]
    pub color: Color,
}

/// Flags of commands that print data.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Output")]
pub struct Output {
    /// table, plain, json or jsonl
    #[arg(
        long,
        value_name = "FORMAT",
        default_value = "table",
        hide_default_value = true,
        hide_possible_values = true
    )]
    pub format: Format,
    /// Short for --format json
    #[arg(long, conflicts_with_all = ["format", "jsonl"])]
    pub json: bool,
    /// Short for --format jsonl
    #[arg(long, conflicts_with = "format")]
    pub jsonl: bool,
}

impl Output {
    /// The shape that was asked for.
    pub fn format(&self) -> Format {
        match (self.json, self.jsonl) {
            (true, _) => Format::Json,
            (_, true) => Format::Jsonl,
            (false, false) => self.format,
        }
    }
}

/// Flags of commands that print lists.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Output")]
pub struct ListOutput {
    /// The shape of the list.
    #[command(flatten)]
    pub output: Output,
    /// Only these columns, such as id,state
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub fields: Vec<String>,
}

/// Flags of commands that change or destroy.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Safety")]
pub struct Confirm {
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// Never ask: fail where a question would be
    #[arg(long)]
    pub no_input: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Why, for the audit line
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Submit, run and write the results in one go; resumable
    Run(Box<command::run::RunArgs>),
    /// Enqueue jobs; print their batch
    Submit(Box<command::submit::SubmitArgs>),
    /// How batches and jobs stand
    Status(command::status::Args),
    /// What came of a batch or a job, one JSON line each
    Results(command::results::Args),
    /// List jobs, show one, say why one has not run yet
    Jobs(command::jobs::Args),
    /// Stop jobs by id, batch or filter
    Cancel(command::cancel::Args),
    /// Put dead, cancelled or expired jobs back in their queue
    Retry(command::retry::Args),
    /// List queues; declare them; pause, resume or purge one
    Queues(command::queues::Args),
    /// What was given up: list, group by cause, put back, forget
    Dead(command::dead::Args),
    /// Who has reported within the last minute
    Workers(command::workers::Args),
    /// What may be used of accounts: list it, set it, end a freeze
    Limits(command::limits::Args),
    /// Move what waits in one broker to another
    Broker(command::broker::Args),
    /// Serve the HTTP API
    Serve(command::serve::Args),
    /// API keys of the gateway: make, list, revoke
    Keys(command::keys::Args),
    /// Settings: check them, show them
    Config(command::config::Args),
    /// Try broker, store and providers, at no cost
    Doctor(command::doctor::Args),
    /// Show depth, age and the workers that queues want to Prometheus
    Exporter(command::exporter::Args),
    /// Ask an exporter or a gateway here how it is: exit 0 when it is well, else 1
    #[command(before_help = "Examples:\n  promptq healthcheck\n  promptq healthcheck readyz --admin 127.0.0.1:9092")]
    Healthcheck(Healthcheck),
    /// Completions for a shell
    Completions(command::completions::Args),
}

impl Command {
    /// The shape of data it was asked for; tables where it has no say.
    pub fn format(&self) -> Format {
        match self {
            Self::Status(args) => args.output.format(),
            Self::Jobs(args) => args.format(),
            Self::Cancel(args) => args.output.format(),
            Self::Retry(args) => args.output.format(),
            Self::Queues(args) => args.format(),
            Self::Dead(args) => args.format(),
            Self::Workers(args) => args.format(),
            Self::Limits(args) => args.format(),
            Self::Submit(args) => args.format(),
            Self::Broker(args) => args.format(),
            Self::Keys(args) => args.format(),
            Self::Config(args) => args.format(),
            Self::Doctor(args) => args.output.format(),
            Self::Run(_)
            | Self::Results(_)
            | Self::Serve(_)
            | Self::Exporter(_)
            | Self::Healthcheck(_)
            | Self::Completions(_) => Format::Table,
        }
    }

    /// The settings among its own flags.
    pub fn flags(&self) -> Vec<Flag> {
        if let Self::Serve(args) = self {
            args.flags()
        } else if let Self::Keys(args) = self {
            args.flags()
        } else if let Self::Exporter(args) = self {
            args.flags()
        } else {
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_below_zero_is_refused_as_the_value_that_it_is() {
        for (line, says) in [
            ("submit a.csv --max-cost -5", "\"-5\" is no sum of dollars above 0"),
            ("run a.csv --concurrency -1", "-1 is not in 1..=20000"),
            ("submit a.csv --limit -1", "invalid value '-1' for '--limit <N>'"),
        ] {
            let words = std::iter::once("promptq").chain(line.split(' ')).map(OsString::from);
            let said = Cli::read(words).unwrap_err().to_string();
            assert!(said.contains(says) && !said.contains("-- -"), "{line}: {said}");
        }
        let words = ["promptq", "run", "a.csv", "--temperature", "-1", "-m", "mock"].map(OsString::from);
        Cli::read(words).unwrap();
    }

    /// The words of a line as a shell has them, up to where it is given to another program.
    fn words(line: &str) -> Vec<String> {
        let (mut words, mut word, mut quoted, mut is_word) = (Vec::new(), String::new(), false, false);
        for c in line.chars() {
            match c {
                '\'' => (quoted, is_word) = (!quoted, true),
                ' ' | '|' | '>' | '<' if !quoted => {
                    words.extend(is_word.then(|| std::mem::take(&mut word)));
                    is_word = false;
                    if c != ' ' {
                        break;
                    }
                }
                c => {
                    word.push(c);
                    is_word = true;
                }
            }
        }
        words.extend(is_word.then_some(word));
        words
    }

    /// The examples of a command and of those below it.
    fn examples(command: &clap::Command) -> Vec<String> {
        let own = command.get_before_help().map(ToString::to_string).unwrap_or_default();
        let lines = own.lines().map(str::trim).filter(|line| line.starts_with("promptq ")).map(str::to_owned);
        lines.chain(command.get_subcommands().flat_map(examples)).collect()
    }

    #[test]
    fn every_example_of_the_help_can_be_said() {
        let command = Cli::command();
        let examples = examples(&command);
        assert!(examples.len() > 20, "{examples:?}");
        for example in examples {
            if let Err(error) = Cli::try_parse_from(words(&example)) {
                panic!("{example}\n{error}");
            }
        }
        for command in command.get_subcommands() {
            assert!(command.get_before_help().is_some(), "{} has no example", command.get_name());
        }
    }
}
