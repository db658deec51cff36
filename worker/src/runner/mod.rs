//! What runs a job: the trait, and the choice by the model a job names.

mod chat;
mod exec;
mod mock;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use promptq_common::broker::{LeaseId, WorkerId};
use promptq_common::job::Job;
use promptq_common::outcome::{Failure, FailureClass, Outcome, Usage};
use secrecy::SecretString;

pub use chat::Chat;
pub use exec::Exec;
pub use mock::Mock;

/// Runs one attempt of a job. Dropping the future stops the work and everything it started.
#[async_trait]
pub trait Runner: fmt::Debug + Send + Sync + 'static {
    /// Runs to an outcome, at most `job.policy.timeout` long. Never panics on anything the job or the other side says.
    async fn run(&self, job: &Job, cx: &RunContext) -> Outcome;

    /// What a lost lease means for a call in flight.
    fn when_lost(&self) -> WhenLost;

    /// Whether a call cut in flight may have cost money: then it spends an attempt, else nothing.
    fn billed(&self) -> bool {
        self.when_lost() == WhenLost::Finish
    }

    /// What a call for this job will probably have consumed when it is cut in flight; nothing where nobody knows.
    fn estimate(&self, _job: &Job) -> Usage {
        Usage::default()
    }

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
    mock: Arc<Mock>,
    named: BTreeMap<String, Arc<Exec>>,
    providers: BTreeMap<String, Arc<Chat>>,
    exec: ExecSettings,
    own: BTreeMap<String, Arc<dyn Runner>>,
}

impl Runners {
    /// The provider of jobs whose model names none.
    pub const PROVIDER: &str = "openai";

    /// Prepares every runner that the settings name. Nothing is connected or started yet.
    ///
    /// # Errors
    /// When a named command is empty, a base URL or a key cannot be used, or this host's TLS set-up cannot be read.
    pub fn new(settings: RunnerSettings) -> anyhow::Result<Self> {
        let RunnerSettings { providers, exec, mock } = settings;
        let named = exec.named.iter().map(|(name, argv)| match Exec::new(argv.clone(), &exec) {
            Ok(command) => Ok((name.clone(), Arc::new(command))),
            Err(failure) => anyhow::bail!("runners.{name}.argv: {}", failure.detail),
        });
        let named = named.collect::<anyhow::Result<_>>()?;
        let client = if providers.is_empty() { None } else { Some(chat::client()?) };
        let providers = client.into_iter().flat_map(|client| {
            providers.iter().map(move |(name, settings)| {
                Ok((name.clone(), Arc::new(Chat::new(name, settings.clone(), client.clone())?)))
            })
        });
        let providers = providers.collect::<anyhow::Result<_>>()?;
        Ok(Self { mock: Arc::new(Mock::new(mock)), named, providers, exec, own: BTreeMap::new() })
    }

    /// Adds a runner of the caller's own, for jobs that name exactly this model; it goes before every other.
    pub fn with(mut self, model: &str, runner: Arc<dyn Runner>) -> Self {
        self.own.insert(model.to_owned(), runner);
        self
    }

    /// Which runner serves a job, by its model: `mock` or `mock:PARAMETERS`, `exec:ARGV`, a named command, `PROVIDER/MODEL`,
    /// and anything else, also none, the provider `openai`.
    ///
    /// # Errors
    /// A `fatal` failure that says what is missing: `bad_mock`, `exec_not_allowed`, `bad_command`, `no_provider`, `no_model`.
    pub fn pick(&self, job: &Job) -> Result<Arc<dyn Runner>, Failure> {
        let Some(model) = job.work.model.as_deref() else { return Ok(self.unnamed(job)?) };
        if let Some(own) = self.own.get(model) {
            return Ok(Arc::clone(own));
        }
        if model == "mock" {
            return Ok(Arc::<Mock>::clone(&self.mock));
        }
        if let Some(parameters) = model.strip_prefix("mock:") {
            let settings = self.mock.settings().with(parameters).map_err(|why| fatal("bad_mock", &why))?;
            return Ok(Arc::new(Mock::new(settings)));
        }
        if let Some(line) = model.strip_prefix("exec:") {
            return Ok(Arc::new(self.inline(line)?));
        }
        if let Some(command) = self.named.get(model) {
            return Ok(Arc::<Exec>::clone(command));
        }
        let named = model.split_once('/').and_then(|(name, _)| self.providers.get(name));
        let provider = named.or_else(|| self.providers.get(Self::PROVIDER)).ok_or_else(|| {
            let detail = format!(
                "no runner knows the model {:?}: there are {}; hint: for a model of OpenAI or of a server like it set \
                 OPENAI_API_KEY or OPENAI_BASE_URL, or give [providers.NAME] a base_url and write NAME/MODEL",
                model.chars().take(80).collect::<String>(),
                self.known()
            );
            fatal("no_provider", &detail)
        })?;
        Ok(Arc::<Chat>::clone(provider))
    }

    fn inline(&self, line: &str) -> Result<Exec, Failure> {
        if !self.exec.allow_inline {
            let detail = "this worker runs no commands that jobs bring; hint: name the command in [runners.NAME], \
                          or start the worker with --allow-exec";
            return Err(fatal("exec_not_allowed", detail));
        }
        Exec::inline(line, &self.exec)
    }

    /// A job without a model: its body may have one, its provider may know a default.
    fn unnamed(&self, job: &Job) -> Result<Arc<Chat>, Failure> {
        let provider = self.providers.get(Self::PROVIDER);
        match provider {
            Some(provider) if provider.serves_unnamed(job) => Ok(Arc::<Chat>::clone(provider)),
            _ => {
                let detail = "the job names no model and there is no default; \
                              hint: name one with --model, or set providers.openai.default_model";
                Err(fatal("no_model", detail))
            }
        }
    }

    /// Every model, or kind of model, that some runner knows.
    fn known(&self) -> String {
        let own = self.own.keys().chain(self.named.keys()).cloned();
        let inline = self.exec.allow_inline.then(|| "exec:COMMAND".to_owned());
        let providers = self.providers.keys().map(|name| format!("{name}/MODEL"));
        let names = ["mock".to_owned()].into_iter().chain(inline).chain(own).chain(providers);
        names.collect::<Vec<_>>().join(", ")
    }
}

fn fatal(code: &str, detail: &str) -> Failure {
    Failure::new(FailureClass::Fatal, code, detail)
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
#[derive(Clone)]
pub struct ProviderSettings {
    /// Up to and including the version, such as `https://api.openai.com/v1`.
    pub base_url: String,
    /// Sent as a bearer token.
    pub api_key: Option<SecretString>,
    /// The model for jobs that name none.
    pub default_model: Option<String>,
}

/// By hand: a base URL may hold a key that its owner put there.
impl fmt::Debug for ProviderSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProviderSettings").field("default_model", &self.default_model).finish_non_exhaustive()
    }
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

#[cfg(test)]
mod tests {
    use promptq_common::job::Queue;
    use promptq_common::work::{Input, Work};

    use super::*;

    fn settings() -> RunnerSettings {
        let server = |default: Option<&str>| ProviderSettings {
            base_url: "http://127.0.0.1:9/v1".into(),
            api_key: Some("sk-secret".into()),
            default_model: default.map(str::to_owned),
        };
        RunnerSettings {
            providers: [("openai".into(), server(None)), ("local".into(), server(Some("small")))].into(),
            exec: ExecSettings {
                named: [("upper".into(), vec!["tr".into(), "a-z".into(), "A-Z".into()])].into(),
                allow_inline: false,
                environment: Vec::new(),
                max_output: 1_000,
            },
            mock: MockSettings::standard(),
        }
    }

    fn key(runners: &Runners, model: Option<&str>) -> Result<String, String> {
        let job = Job::new(Queue::standard(), Work::prompt(model, "Hi"));
        runners.pick(&job).map(|runner| runner.limit_key(&job)).map_err(|failure| {
            assert_eq!(failure.class, FailureClass::Fatal);
            failure.code
        })
    }

    #[test]
    fn the_model_chooses_the_runner() {
        let runners = Runners::new(settings()).unwrap();
        for (model, chosen) in [
            ("mock", "mock"),
            ("mock:latency=0,errors=1", "mock"),
            ("upper", "exec:tr"),
            ("gpt-4o-2024-08-06", "openai/gpt-4o"),
            ("local/tiny-latest", "local/tiny"),
            ("meta/llama-20260101", "openai/meta/llama"),
            ("mock-turtle", "openai/mock-turtle"),
        ] {
            assert_eq!(key(&runners, Some(model)).as_deref(), Ok(chosen), "{model}");
        }
        for (model, code) in
            [(Some("mock:x=1"), "bad_mock"), (Some("exec:date"), "exec_not_allowed"), (None, "no_model")]
        {
            assert_eq!(key(&runners, model).unwrap_err(), code, "{model:?}");
        }
        let mut open = settings();
        open.exec.allow_inline = true;
        open.providers.clear();
        let runners = Runners::new(open).unwrap();
        assert_eq!(key(&runners, Some("exec:/bin/date +%s")).as_deref(), Ok("exec:date"));
        assert_eq!(key(&runners, Some("exec:'")).unwrap_err(), "bad_command");
        assert_eq!(key(&runners, Some("gpt-4o")).unwrap_err(), "no_provider");
    }

    #[test]
    fn a_job_without_a_model_takes_the_default_or_what_its_body_says() {
        let mut defaulted = settings();
        defaulted.providers.get_mut("openai").unwrap().default_model = Some("gpt-4o".into());
        assert_eq!(key(&Runners::new(defaulted).unwrap(), None).as_deref(), Ok("openai/gpt-4o"));
        let input = Input::Request { url: "/v1/responses".into(), body: r#"{"model":"m","input":"x"}"#.into() };
        let job = Job::new(Queue::standard(), Work { model: None, input });
        assert!(Runners::new(settings()).unwrap().pick(&job).is_ok());
    }

    #[test]
    fn settings_that_cannot_work_are_refused_without_showing_secrets() {
        for (url, says) in
            [("localhost:8080", "http://"), ("nonsense", "not a URL"), ("https://u:hush@h/v1", "api_key")]
        {
            let mut bad = settings();
            bad.providers.get_mut("local").unwrap().base_url = url.into();
            let error = format!("{:#}", Runners::new(bad).unwrap_err());
            assert!(error.contains("providers.local.base_url") && error.contains(says), "{error}");
            assert!(!error.contains("hush"), "{error}");
        }
        let mut bad = settings();
        bad.exec.named.insert("none".into(), Vec::new());
        assert!(Runners::new(bad).unwrap_err().to_string().contains("runners.none.argv"));
        let mut careless = settings();
        careless.providers.get_mut("local").unwrap().base_url = "http://127.0.0.1:9/v1?key=hush".into();
        // Set for every test by cargo and nextest.
        careless.exec.environment.push("CARGO_MANIFEST_DIR".into());
        let shown = format!("{careless:?} {:?}", Runners::new(careless.clone()).unwrap());
        for secret in ["sk-secret", "hush", env!("CARGO_MANIFEST_DIR")] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }
}
