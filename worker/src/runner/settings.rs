//! What runners are told: whose models there are, which programs may run, what the mock does.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use promptq_common::config::{Api, Command, Model};
use promptq_common::job::Queue;
use secrecy::SecretString;

use super::Runners;

/// What a worker may run, resolved from its configuration.
#[derive(Clone, Debug)]
pub struct RunnerSettings {
    /// Whose models there are, by name; a job's model `NAME/model` picks one.
    pub providers: BTreeMap<String, ProviderSettings>,
    /// Names of one's own for models, and the routes of each, the preferred one first.
    pub models: BTreeMap<String, Vec<Model>>,
    /// What programs may run.
    pub exec: ExecSettings,
    /// The mock provider's defaults.
    pub mock: MockSettings,
}

/// One provider.
#[derive(Clone)]
pub struct ProviderSettings {
    /// What it speaks.
    pub api: Api,
    /// Up to and including the version, such as `https://api.openai.com/v1`.
    pub base_url: String,
    /// Sent in the header that the API wants it in.
    pub api_key: Option<SecretString>,
    /// The model for jobs that name none.
    pub default_model: Option<String>,
    /// Answers that may have more output tokens are streamed.
    pub stream_above: u64,
    /// Whether it is told where in a trace a call belongs: whoever sees that can tell which calls belong together.
    pub traceparent: bool,
}

/// By hand: a base URL may hold a key that its owner put there.
impl fmt::Debug for ProviderSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("ProviderSettings");
        shown.field("api", &self.api).field("default_model", &self.default_model).finish_non_exhaustive()
    }
}

/// Who may run which program.
#[derive(Clone, Debug)]
pub struct ExecSettings {
    /// Commands by name (`[runners.NAME]`), used as model `NAME`.
    pub named: BTreeMap<String, Command>,
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

impl Runners {
    /// The limit keys of every model and command that the settings name.
    pub fn configured_keys(&self) -> BTreeSet<String> {
        let names = self.own.keys().chain(self.named.keys()).chain(self.models.keys()).map(String::as_str).map(Some);
        names.chain([None]).flat_map(|name| self.limit_keys(&Queue::standard(), name)).collect()
    }
}
