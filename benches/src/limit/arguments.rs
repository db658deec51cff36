//! The command line of the limit programs: that of `benches/peers`, and which writes are to be done.

use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, ValueEnum};

/// What a limit program is told.
#[derive(Debug, Parser)]
#[command(name = "limit", about = "The least that a queue on this broker could do, measured; prints one line of JSON")]
pub struct Arguments {
    /// Which one
    contestant: Name,
    /// What to do
    verb: Word,
    /// Where the broker is: `redis://host:port/db`, `amqp://user:password@host:port/%2f`, `sqlite:///absolute/path`
    #[arg(long)]
    url: Option<String>,
    /// How many jobs to enqueue, or to have live
    #[arg(long)]
    jobs: Option<u32>,
    /// How many jobs to work off
    #[arg(long)]
    until: Option<u32>,
    /// Whose writes: the least there are, or all that promptq does
    #[arg(long, value_enum, default_value_t = Writes::Bare)]
    writes: Writes,
    /// Kind of queue, on RabbitMQ
    #[arg(long, value_enum, default_value_t = QueueKind::Quorum)]
    queue: QueueKind,
    /// The Redis that has promptq's ledger, on RabbitMQ with promptq's writes
    #[arg(long)]
    ledger: Option<String>,
    /// Most jobs a call or transaction; 100 for bare writes, 200 for promptq's unless said
    #[arg(long)]
    batch: Option<u16>,
    /// Jobs more than that, done first and not measured
    #[arg(long, default_value_t = 500)]
    warmup: u32,
    /// Leave when nothing has come for so many seconds
    #[arg(long, default_value_t = 20)]
    idle: u32,
    /// The table of rows to run
    #[arg(long)]
    input: Option<PathBuf>,
    /// Where its results go
    #[arg(long)]
    output: Option<PathBuf>,
    /// How many of its rows, unless all
    #[arg(long)]
    rows: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Name {
    Redis,
    RedisRaw,
    Rabbit,
    RabbitRaw,
    Sqlite,
    Plain,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Word {
    Enqueue,
    Work,
    Live,
    Run,
}

/// What is done with jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Putting them in.
    Enqueue,
    /// Taking them and ending them.
    Work,
    /// Both at once.
    Live,
}

/// Where the jobs are, and how they are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broker {
    /// By redis-rs.
    Redis,
    /// Over a plain socket.
    RedisRaw,
    /// By lapin.
    Rabbit,
    /// Over a plain socket.
    RabbitRaw,
    /// By rusqlite.
    Sqlite,
}

/// Whose writes are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Writes {
    /// The least.
    Bare,
    /// All that promptq does.
    Promptq,
}

/// A kind of RabbitMQ's queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum QueueKind {
    /// Replicated, were there more nodes.
    Quorum,
    /// On one node.
    Classic,
}

/// How a contestant goes about it.
#[derive(Clone, Debug)]
pub struct Setting {
    pub(super) url: String,
    pub(super) writes: Writes,
    pub(super) queue: QueueKind,
    pub(super) ledger: Option<String>,
    pub(super) batch: usize,
    /// Seconds without any job after which the rest will not come.
    pub(super) idle: u32,
}

/// A table to be run.
#[derive(Clone, Debug)]
pub struct Rows {
    /// The embedded broker's file; without one, rows only pass through.
    pub(super) broker: Option<Setting>,
    pub(super) input: PathBuf,
    pub(super) output: PathBuf,
    pub(super) most: usize,
}

/// What is to be done.
#[derive(Clone, Debug)]
pub enum Plan {
    /// So many jobs through a broker.
    Jobs {
        /// Where they are.
        broker: Broker,
        /// What is done with them.
        verb: Verb,
        /// How many are measured.
        jobs: usize,
        /// How many are done before.
        warmup: usize,
        /// How.
        setting: Setting,
    },
    /// The rows of a table.
    Rows(Rows),
}

impl Arguments {
    /// What they ask for.
    ///
    /// # Errors
    /// What is missing or does not go together.
    pub fn plan(self) -> Result<Plan, clap::Error> {
        let wrong = |why: &str| Self::command().error(ErrorKind::MissingRequiredArgument, why);
        if self.batch == Some(0) {
            return Err(wrong("--batch is at least 1"));
        }
        let (verb, count) = match self.verb {
            Word::Run => return self.rows(),
            Word::Enqueue => (Verb::Enqueue, self.jobs.ok_or_else(|| wrong("enqueue needs --jobs"))?),
            Word::Work => (Verb::Work, self.until.ok_or_else(|| wrong("work needs --until"))?),
            Word::Live => (Verb::Live, self.jobs.ok_or_else(|| wrong("live needs --jobs"))?),
        };
        let broker = match self.contestant {
            Name::Redis => Broker::Redis,
            Name::RedisRaw => Broker::RedisRaw,
            Name::Rabbit => Broker::Rabbit,
            Name::RabbitRaw => Broker::RabbitRaw,
            Name::Sqlite => Broker::Sqlite,
            Name::Plain => return Err(wrong("plain has only `run`")),
        };
        let scheme = match broker {
            Broker::Redis | Broker::RedisRaw => "redis://",
            Broker::Rabbit | Broker::RabbitRaw => "amqp://",
            Broker::Sqlite => "sqlite:///",
        };
        if count == 0 {
            return Err(wrong("at least one job"));
        }
        if self.writes == Writes::Promptq && matches!(broker, Broker::RedisRaw | Broker::RabbitRaw) {
            return Err(wrong("raw loops do the bare writes alone"));
        }
        if self.ledger.is_some() != (broker == Broker::Rabbit && self.writes == Writes::Promptq) {
            return Err(wrong("--ledger belongs to rabbit with --writes promptq, which needs one"));
        }
        let setting = self.setting(scheme)?;
        Ok(Plan::Jobs { broker, verb, jobs: size(count), warmup: size(self.warmup), setting })
    }

    fn setting(&self, scheme: &str) -> Result<Setting, clap::Error> {
        let wrong = |why: String| Self::command().error(ErrorKind::MissingRequiredArgument, why);
        let url = self.url.clone().filter(|url| url.starts_with(scheme));
        let usual = if self.writes == Writes::Bare { 100 } else { 200 };
        Ok(Setting {
            url: url.ok_or_else(|| wrong(format!("--url {scheme}… is needed")))?,
            writes: self.writes,
            queue: self.queue,
            ledger: self.ledger.clone(),
            batch: usize::from(self.batch.unwrap_or(usual)),
            idle: self.idle,
        })
    }

    fn rows(self) -> Result<Plan, clap::Error> {
        let wrong = |why: &str| Self::command().error(ErrorKind::MissingRequiredArgument, why);
        let broker = match self.contestant {
            Name::Plain => None,
            Name::Sqlite => {
                let batch = usize::from(self.batch.unwrap_or(200));
                Some(Setting { writes: Writes::Promptq, batch, ..self.setting("sqlite:///")? })
            }
            Name::Redis | Name::RedisRaw | Name::Rabbit | Name::RabbitRaw => {
                return Err(wrong("`run` is there for sqlite and plain"));
            }
        };
        let input = self.input.ok_or_else(|| wrong("run needs --input"))?;
        let output = self.output.ok_or_else(|| wrong("run needs --output"))?;
        Ok(Plan::Rows(Rows { broker, input, output, most: self.rows.unwrap_or(usize::MAX) }))
    }
}

fn size(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}
