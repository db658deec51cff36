//! What promptq is told: files, environment and flags, resolved once into plain values, every error at once.
//! The only place that reads the environment. What a value means is its user's affair.

mod address;
mod call;
mod check;
mod environment;
mod error;
mod gateway;
mod layer;
mod limits;
mod places;
mod platform;
mod prices;
mod provider;
mod reader;
mod resolve;
mod runner;
#[cfg(test)]
mod tests;
mod traces;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use crate::broker::{Access, Beside, Durability, Retention, Section, amqp};
use crate::job::{Backoff, ModelName, Queue};
use crate::limits::{Cap, Rule};
use crate::price::Prices;
use crate::telemetry::admin::Listen;

pub use address::{Address, redact_url};
pub use environment::{Environment, actor, caller, ecs_agent, environment, host, load, port};
pub use error::{ConfigError, ConfigErrors, Origin};
pub use gateway::Gateway;
pub use layer::{Flag, Sources};
pub use limits::{Change, change_of, spending};
pub use platform::Platform;
pub use provider::{Api, MOCK, Model, Provider};
pub use reader::Setting;
pub use resolve::resolve;
pub use runner::{Command, LimitTexts};
pub use traces::{Remark, Traces};

/// Everything that was said, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where jobs wait.
    pub broker: Broker,
    /// Where records are kept, when that is not the broker.
    pub ledger: Option<Ledger>,
    /// Where large answers and roll-ups go.
    pub store: Store,
    /// How a worker works.
    pub worker: Worker,
    /// How long ended jobs are kept.
    pub retention: Retention,
    /// How long answers are kept to be given again (`retention.reuse`); as long as successes unless said.
    pub reuse_kept: Duration,
    /// Policies of the queues that have one of their own, by name.
    pub queues: BTreeMap<Queue, QueuePolicy>,
    /// Whose models there are, by name.
    pub providers: BTreeMap<String, Provider>,
    /// Names of one's own for models, and the routes of each, the preferred one first.
    pub models: BTreeMap<String, Vec<Model>>,
    /// What may be used of accounts, by the key that shares it.
    pub limits: Vec<Rule>,
    /// What models cost.
    pub prices: Prices,
    /// Commands by name.
    pub runners: BTreeMap<String, Command>,
    /// What commands see and may print.
    pub exec: Exec,
    /// The mock provider.
    pub mock: Mock,
    /// How the HTTP gateway is reached.
    pub gateway: Gateway,
    /// What is logged, and how.
    pub telemetry: Telemetry,
    /// Every setting with its value (secrets masked) and where it came from, by name.
    pub settings: Vec<Setting>,
    /// Keys of providers that were named and cannot be had.
    pub keyless: Vec<ConfigError>,
    /// The files that were read, first wins.
    pub files: Vec<PathBuf>,
}

/// Section `broker`.
#[derive(Clone, Debug)]
pub struct Broker {
    /// With user and password in it, where they were given apart.
    pub url: Address,
    /// Whether it is this machine's alone.
    pub local: bool,
    /// A file of PEM certificates to trust instead of the system's.
    pub tls_ca: Option<PathBuf>,
    /// What a confirmation must be worth.
    pub durability: Option<Durability>,
    /// What is particular to RabbitMQ.
    pub amqp: amqp::Settings,
}

/// Section `ledger`: for a broker that keeps no records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ledger {
    /// What section `store` names; also where RabbitMQ has a store and no ledger.
    Store,
    /// A Redis server or an embedded file.
    Elsewhere {
        /// With user and password in it, where they were given apart.
        url: Address,
        /// A file of PEM certificates to trust instead of the system's.
        tls_ca: Option<PathBuf>,
    },
}

/// Section `store`.
#[derive(Clone, Debug)]
pub struct Store {
    /// `None` only with a broker or a ledger off this machine and no store named.
    pub url: Option<Address>,
    /// Whether somebody named it; else it is a folder of this machine.
    pub named: bool,
    /// The word that every host sees the same folder there.
    pub shared: bool,
    /// Answers up to so many bytes stay in their record.
    pub inline_up_to: u64,
}

/// Section `worker`.
#[derive(Clone, Debug)]
pub struct Worker {
    /// What it leases from, with each queue's share.
    pub queues: Vec<(Queue, u32)>,
    /// Jobs at once.
    pub concurrency: u32,
    /// How long a lease lasts without a beat.
    pub lease: Duration,
    /// How often it beats; at most a third of the lease.
    pub heartbeat: Duration,
    /// How long running jobs may go on once it is asked to stop.
    pub drain_timeout: Duration,
    /// Where that is from, unless somebody said it: the platform, and the variable that tells it.
    pub drain_preset: Option<(Platform, &'static str)>,
    /// A job whose lease ran out so often is dead.
    pub max_deaths: u32,
    /// How long the broker may be away before the worker ends with code 7.
    pub give_up: Duration,
    /// The share of every limit that this worker keeps to where limits cannot be shared.
    pub limit_share: f64,
    /// Whether jobs may bring their own `exec:ARGV`.
    pub allow_exec: bool,
    /// The first part of its identity; the host's name unless given.
    pub name: String,
}

/// Section `queues.NAME`: the policy of jobs submitted to it that bring none.
#[derive(Clone, Debug, PartialEq)]
pub struct QueuePolicy {
    /// Attempts in all.
    pub attempts: u32,
    /// How often an answer that is not whole is put aside and asked for again.
    pub repair_attempts: u32,
    /// The wait between them.
    pub backoff: Backoff,
    /// The longest one attempt may run.
    pub timeout: Duration,
    /// The longest a job waits to run.
    pub deadline: Duration,
    /// Whether destructive commands ask for the queue's name.
    pub protected: bool,
    /// Models that have lanes of their own on RabbitMQ.
    pub models: Vec<ModelName>,
    /// What all its jobs may cost together.
    pub budget: Option<Cap>,
    /// The oldest stored answer that will do.
    pub reuse: Option<Duration>,
}

/// Section `exec`.
#[derive(Clone, Debug)]
pub struct Exec {
    /// The variables of the worker's environment that commands see, beside PATH, HOME, LANG and TZ.
    pub environment: Vec<String>,
    /// The most bytes of standard output kept.
    pub max_output: u64,
}

/// Section `mock`.
#[derive(Clone, Debug)]
pub struct Mock {
    /// Seeds the dice.
    pub seed: u64,
    /// The least and the most time a call takes.
    pub latency: (Duration, Duration),
    /// Share of calls that fail, 0 to 1.
    pub errors: f64,
    /// Share of calls answered 429, 0 to 1.
    pub throttled: f64,
}

/// Section `telemetry`.
#[derive(Clone, Debug)]
pub struct Telemetry {
    /// How much is logged; `None`: as the program thinks fit.
    pub log: Option<tracing::level_filters::LevelFilter>,
    /// The shape of a log line.
    pub log_format: LogFormat,
    /// Where metrics and probes are served.
    pub admin: Listen,
    /// Where spans go, if anywhere.
    pub traces: Option<Traces>,
}

/// The shape of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Config {
    /// What to connect with. `store` is what section `store` names, opened; without it a ledger that is kept there is
    /// missing.
    pub fn access(&self, store: Option<&crate::store::Store>) -> Access {
        let Broker { url, tls_ca, durability, mut amqp, .. } = self.broker.clone();
        amqp.models = self.queues.iter().map(|(queue, policy)| (queue.clone(), policy.models.clone())).collect();
        let beside = match &self.ledger {
            None => Beside::Nothing,
            Some(Ledger::Store) => store.cloned().map_or(Beside::Nothing, Beside::Store),
            Some(Ledger::Elsewhere { url, tls_ca }) => Beside::Ledger(Box::new(Access {
                url: url.clone(),
                tls_ca: tls_ca.clone(),
                durability,
                amqp: amqp.clone(),
                beside: Beside::Nothing,
                section: Section::Ledger,
            })),
        };
        Access { url, tls_ca, durability, amqp, beside, section: Section::Broker }
    }

    /// The oldest answer that can be given again; `None` where there is no store to keep any in.
    pub fn reusable_for(&self) -> Option<Duration> {
        self.store.url.is_some().then_some(self.reuse_kept)
    }

    /// The queues that the settings name: those with a policy of their own, and those that workers serve by them. They are
    /// there before their first job.
    pub fn named_queues(&self) -> BTreeSet<Queue> {
        self.queues.keys().chain(self.worker.queues.iter().map(|(queue, _)| queue)).cloned().collect()
    }

    /// The policy of a queue: its own, or the standard one.
    pub fn queue(&self, name: &Queue) -> QueuePolicy {
        self.queues.get(name).cloned().unwrap_or_else(QueuePolicy::standard)
    }
}

impl QueuePolicy {
    /// As [`crate::job::Policy::standard`], 7 days to run, not protected, no lanes for models, no budget, no stored answers.
    pub const fn standard() -> Self {
        let policy = crate::job::Policy::standard();
        Self {
            attempts: policy.attempts,
            repair_attempts: policy.repair_attempts,
            backoff: Backoff::standard(),
            timeout: policy.timeout,
            deadline: crate::job::Job::DEADLINE,
            protected: false,
            models: Vec::new(),
            budget: None,
            reuse: None,
        }
    }
}
