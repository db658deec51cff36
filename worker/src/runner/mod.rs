//! What runs a job: the trait, and the choice by the model a job names.

mod mock;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use promptq_common::broker::{LeaseId, WorkerId};
use promptq_common::job::Job;
use promptq_common::outcome::{Failure, FailureClass, Outcome};
use secrecy::SecretString;

pub use mock::Mock;

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

/// Every runner a worker has.
#[derive(Debug)]
pub struct Runners {
    settings: RunnerSettings,
    mock: Arc<Mock>,
}

impl Runners {
    /// Prepares every runner that the settings name.
    pub fn new(settings: RunnerSettings) -> anyhow::Result<Self> {
        Ok(Self { mock: Arc::new(Mock::new(settings.mock.clone())), settings })
    }

    /// Which runner serves a job: `mock` or `mock:PARAMETERS` is the mock provider.
    ///
    /// # Errors
    /// A `fatal` failure that says what is missing: `bad_mock`, `no_model`, `no_provider`.
    pub fn pick(&self, job: &Job) -> Result<Arc<dyn Runner>, Failure> {
        let fatal = |code: &str, detail: &str| Failure::new(FailureClass::Fatal, code, detail);
        match job.work.model.as_deref() {
            None => Err(fatal("no_model", "the job names no model; hint: name one with --model")),
            Some("mock") => Ok(Arc::<Mock>::clone(&self.mock)),
            Some(model) => match model.strip_prefix("mock:") {
                Some(parameters) => {
                    let settings = self.settings.mock.with(parameters).map_err(|why| fatal("bad_mock", &why))?;
                    Ok(Arc::new(Mock::new(settings)))
                }
                None => Err(fatal("no_provider", "no provider serves this model")),
            },
        }
    }
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

/// The mock provider: seeded, so that the same work always meets the same fate on the same attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct MockSettings {
    /// Seeds everything below, together with what the job asks for and its attempt; a job's id plays no part.
    pub seed: u64,
    /// The least and the most time a call takes.
    pub latency: (Duration, Duration),
    /// Share of calls that fail with a 500, 0 to 1.
    pub errors: f64,
    /// Share of calls answered 429, 0 to 1; thrown per lease.
    pub throttled: f64,
    /// The fewest and the most output tokens of an answer.
    pub tokens: (u64, u64),
}
