//! The flags that say what to read and what becomes of each row; the same for `run` and `submit`.

use std::time::Duration;

use clap::{Args, ValueEnum};
use promptq_common::job::{BatchName, Priority, Queue, Reuse};
use promptq_common::line::When;
use promptq_common::outcome::Usd;
use promptq_common::time::{format_duration, parse_duration};

/// What to read, and what becomes of each row.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Input")]
pub struct InputArgs {
    /// Files, globs such as 'docs/*.md', or - for standard input
    #[arg(value_name = "INPUT", required = true)]
    pub inputs: Vec<String>,
    /// What the input is; guessed from the name and the first line; a single text file of several lines needs it
    #[arg(long = "in", value_name = "KIND", value_enum)]
    pub kind: Option<Kind>,
    /// What separates the columns of CSV, one character such as ';' (a comma)
    #[arg(long, value_name = "C", value_parser = delimiter)]
    pub delimiter: Option<u8>,
    /// Makes the prompt of each row: a file, or text such as 'Sentiment of: {{text}}'. Variables: in CSV the columns,
    /// in JSONL the keys, in lines {{text}}, in files {{text}} and {{file}}
    #[arg(short, long, value_name = "FILE|TEXT")]
    pub template: Option<String>,
    /// The system prompt: a file or text; may use the row's columns too
    #[arg(long, value_name = "FILE|TEXT")]
    pub system: Option<String>,
    /// A variable for the template, beside the row's columns
    #[arg(long = "var", value_name = "NAME=VALUE", value_parser = pair)]
    pub vars: Vec<(String, String)>,
    /// The column that names each row; echoed in its result
    #[arg(long, value_name = "COLUMN")]
    pub id_field: Option<String>,
    /// The column that holds each row's idempotency key
    #[arg(long, value_name = "COLUMN")]
    pub idempotency_key_field: Option<String>,
    /// Takes only the first N rows
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,
    /// Enqueues the other rows when some are wrong
    #[arg(long)]
    pub skip_invalid: bool,
    /// Checks everything and says what it would do
    #[arg(long)]
    pub dry_run: bool,
    /// Reads standard input as it comes, without checking it whole first
    #[arg(long)]
    pub stream: bool,
    /// The most of standard input that is kept on disk while it is checked
    #[arg(long, value_name = "SIZE", default_value = "10GiB")]
    pub spool_limit: bytesize::ByteSize,
    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment here would become the help text of the flattened flags")]
    pub job: JobArgs,
}

/// What to ask of every job. A flag wins over what a line says for itself.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Jobs")]
pub struct JobArgs {
    /// The model, `mock`, 'exec:COMMAND ARGS', or a runner's name
    #[arg(short, long)]
    pub model: Option<String>,
    /// The queue
    #[arg(short = 'Q', long)]
    pub queue: Option<Queue>,
    /// The batch's name: the same rows under the same name are the same jobs
    #[arg(long, value_name = "NAME")]
    pub batch: Option<BatchName>,
    /// What happens to a row whose id stands for other content already
    #[arg(long, value_enum, default_value_t)]
    pub on_conflict: OnConflict,
    /// 0 (last) to 9 (first)
    #[arg(long, value_name = "0-9", value_parser = priority)]
    pub priority: Option<Priority>,
    /// Not before this moment, such as 2026-11-22T00:00:00Z
    #[arg(long, value_name = "TIME", conflicts_with = "delay")]
    pub at: Option<promptq_common::time::Timestamp>,
    /// Not before so long from now
    #[arg(long, value_name = "LENGTH", value_parser = length)]
    pub delay: Option<Duration>,
    /// Given up unrun after this moment, or so long from now (7 days)
    #[arg(long, value_name = "TIME|LENGTH", alias = "expires")]
    pub deadline: Option<When>,
    /// Attempts in all (5)
    #[arg(long, value_name = "N", alias = "max-attempts", value_parser = clap::value_parser!(u32).range(1..=i64::from(promptq_common::line::MAX_ATTEMPTS)))]
    pub attempts: Option<u32>,
    /// Calls again for an answer that was cut off or refused, is empty, or is not the JSON that was asked for, so many times;
    /// each is paid, and the last is kept (0)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=i64::from(promptq_common::line::MAX_REPAIRS)))]
    pub repair_attempts: Option<u32>,
    /// The wait after the first failed attempt; doubles from there (1s)
    #[arg(long, value_name = "LENGTH", value_parser = length)]
    pub backoff: Option<Duration>,
    /// The longest one attempt may run (10m)
    #[arg(long, value_name = "LENGTH", value_parser = length)]
    pub timeout: Option<Duration>,
    /// Takes the stored answer to the same question (model, parameters, prompt) for free, if there is one no older than
    /// this, such as 24h; a new answer is then stored for others. off: asks anew, whatever the queue says
    #[arg(long, value_name = "AGE|off")]
    pub reuse: Option<Reuse>,
    /// A label for budgets; answers are never given to another
    #[arg(long)]
    pub tenant: Option<String>,
    /// A label, echoed in the results
    #[arg(long = "tag", value_name = "NAME=VALUE", value_parser = pair)]
    pub tags: Vec<(String, String)>,
    /// The most tokens of an answer
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<u32>,
    /// The most that all jobs of the batch may cost together, in dollars; a job that might cost more waits until it is raised
    #[arg(long, value_name = "USD", value_parser = promptq_common::limits::dollars_of)]
    pub max_cost: Option<Usd>,
    /// The sampling temperature
    #[arg(long, value_name = "N")]
    pub temperature: Option<f64>,
    /// Any other parameter of the request; the value is JSON, or else text
    #[arg(long = "param", value_name = "NAME=VALUE", value_parser = pair)]
    pub params: Vec<(String, String)>,
}

/// What an input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub enum Kind {
    /// A job in JSON per line: {"prompt":"…"} or an `OpenAI` batch line; with -t, an object of columns per line
    #[value(alias = "ndjson", alias = "openai-batch")]
    Jsonl,
    /// Comma-separated values with a heading row
    Csv,
    /// Tab-separated values with a heading row
    Tsv,
    /// The whole file is one prompt
    Txt,
    /// Each line is a prompt
    Lines,
}

/// What happens to a row whose id stands for other content already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OnConflict {
    /// Nothing is enqueued, exit 6
    #[default]
    Fail,
    /// The row is left out
    Skip,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not NAME=VALUE")),
    }
}

/// A length of time; a bare number gets told what to write.
pub(crate) fn length(text: &str) -> Result<Duration, String> {
    match (parse_duration(text), text.parse::<u32>()) {
        (Err(_), Ok(seconds)) => {
            let long = Duration::from_secs(seconds.into());
            let or = if seconds < 60 { String::new() } else { format!(" (that is {})", format_duration(long)) };
            Err(format!("{text:?} has no unit: for seconds write {seconds}s{or}"))
        }
        (parsed, _) => parsed,
    }
}

fn delimiter(text: &str) -> Result<u8, String> {
    match text.as_bytes() {
        b"\\t" | b"tab" => Ok(b'\t'),
        [byte @ (b'\t' | b' '..=b'~')] if *byte != b'"' && !byte.is_ascii_alphanumeric() => Ok(*byte),
        _ => Err(format!("{text:?} is not one character such as ; or | or \\t")),
    }
}

fn priority(text: &str) -> Result<Priority, String> {
    text.parse::<u8>().map_err(|_| format!("{text:?} is not 0 to 9")).and_then(Priority::new)
}
