//! What runs a job: the trait, and the choice by the model a job names.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use promptq_common::broker::{LeaseId, WorkerId};
use promptq_common::job::Job;
use promptq_common::outcome::Outcome;
use secrecy::SecretString;

/// Runs one attempt of a job. Dropping the future stops the work and everything it started.
#[async_trait]
pub trait Runner: fmt::Debug + Send + Sync + 'static {
    /// Runs to an outcome, at most `job.policy.timeout` long. Never panics on anything the job or the other side says.
    async fn run(&self, job: &Job, cx: &RunContext) -> Outcome;

    /// What a lost lease means for a call in flight.
    fn when_lost(&self) -> WhenLost;

    /// What shares this job's limits and breaker: provider account and model family, or the runner's name.
    fn limit_key(&self, job: &Job) -> String;
}

/// What becomes of a call in flight when its lease is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenLost {
    /// The money is spent: let it finish and keep its answer (chat, mock).
    Finish,
    /// It acts on the world: stop it at once (exec, agents).
    Stop,
}

/// What a runner may know beside the job.
#[derive(Clone, Debug)]
pub struct RunContext {
    /// 1 for the first attempt.
    pub attempt: u32,
    /// The lease it runs under.
    pub lease: LeaseId,
    /// The worker it runs in.
    pub worker: WorkerId,
}

/// What a worker may run, resolved from its configuration.
#[derive(Clone, Debug)]
pub struct RunnerSettings {
    /// OpenAI-compatible servers by name; a job's model `NAME/model` picks one, any other model the one named `openai`.
    pub providers: BTreeMap<String, ProviderSettings>,
    /// What programs may run.
    pub exec: ExecSettings,
    /// The mock provider's defaults.
    pub mock: MockSettings,
}

/// One OpenAI-compatible server.
#[derive(Clone, Debug)]
pub struct ProviderSettings {
    /// Up to and including the version, such as `https://api.openai.com/v1`.
    pub base_url: String,
    /// Sent as a bearer token.
    pub api_key: Option<SecretString>,
    /// The model for jobs that name none.
    pub default_model: Option<String>,
}

/// Who may run which program.
#[derive(Clone, Debug)]
pub struct ExecSettings {
    /// Commands by name (`[runners.NAME] argv = […]`), used as model `NAME`.
    pub named: BTreeMap<String, Vec<String>>,
    /// Whether a job may bring its own `exec:ARGV`.
    pub allow_inline: bool,
    /// The variables of this process a command sees, beside PATH, HOME, LANG and TZ.
    pub environment: Vec<String>,
    /// The most bytes of standard output kept.
    pub max_output: usize,
}

/// The mock provider: seeded, so that the same job always meets the same fate on the same attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct MockSettings {
    /// Seeds everything below, together with the job's id (v7: its row and text) and attempt.
    pub seed: u64,
    /// The least and the most time a call takes.
    pub latency: (Duration, Duration),
    /// Share of calls that fail with a 500, 0 to 1.
    pub errors: f64,
    /// Share of calls answered 429, 0 to 1.
    pub throttled: f64,
}
