//! What runs a job: the trait, and the choice by the model a job names.

mod chat;
mod exec;
mod mock;
mod settings;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use promptq_common::broker::{LeaseId, WorkerId};
use promptq_common::config::{Api, MOCK, Model};
use promptq_common::job::{Job, Queue};
use promptq_common::limits::{Counts, Ear};
use promptq_common::outcome::{Failure, FailureClass, Outcome, Usage};
use promptq_common::store::ReuseKey;
use promptq_common::telemetry::trace::Context;
use promptq_common::work::{Input, Work};

pub use chat::Chat;
pub use exec::Exec;
pub use mock::Mock;
pub use settings::{ExecSettings, MockSettings, ProviderSettings, RunnerSettings};

use crate::provider::Endpoint;
use crate::reuse::plain_key;
use crate::size::answers;

/// Runs one attempt of a job. Dropping the future stops the work and everything it started.
#[async_trait]
pub trait Runner: fmt::Debug + Send + Sync + 'static {
    /// Runs to an outcome, at most [`Runner::longest`] long. Never panics on anything the job or the other side says.
    async fn run(&self, job: &Job, cx: &RunContext) -> Outcome;

    /// How long a run may take: a little later it is cut from outside.
    fn longest(&self, job: &Job) -> Duration {
        job.policy.timeout
    }

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

    /// The most tokens that each answer to a call for this job may have, as it is sent; `None` where nothing bounds it.
    fn most_output(&self, job: &Job) -> Option<u64> {
        answers(&job.work).0
    }

    /// How calls count where they go to a provider over a network, which may have too much to do and then gets fewer of
    /// them at once; `None` for what runs here.
    fn endpoint(&self) -> Option<Counts> {
        None
    }

    /// What shares this job's limits and breaker: provider account and model family, or the runner's name.
    fn limit_key(&self, job: &Job) -> String;

    /// The provider and its model that a call for this job is paid for at; `None` where nothing is, or nobody knows.
    fn priced_as(&self, _job: &Job) -> Option<(String, String)> {
        None
    }

    /// What an answer to this job is kept under: the same where the same is asked of the same. `None` where nothing can be
    /// asked.
    fn reuse_key(&self, job: &Job) -> Option<ReuseKey> {
        Some(plain_key(job))
    }
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
    /// Who is told what the answer's headers say of the account's limits; nobody where those are not limited.
    pub ear: Option<Ear>,
    /// Whether the answer is to come as a stream where it can: the attempt before waited for a whole one for too long.
    pub stream: bool,
    /// Where in a trace the call is.
    pub trace: Option<Context>,
}

/// Every runner a worker has.
#[derive(Debug)]
pub struct Runners {
    mock: Mock,
    named: BTreeMap<String, Arc<Exec>>,
    providers: BTreeMap<String, Arc<Chat>>,
    models: BTreeMap<String, Vec<Arc<dyn Runner>>>,
    exec: ExecSettings,
    own: BTreeMap<String, Vec<Arc<dyn Runner>>>,
}

impl Runners {
    /// Prepares every runner that the settings name. Nothing is connected or started yet.
    ///
    /// # Errors
    /// When a named command is empty, a base URL or a key cannot be used, a model lies with no provider, or this host's TLS
    /// set-up cannot be read.
    pub fn new(settings: RunnerSettings) -> anyhow::Result<Self> {
        let RunnerSettings { providers, models, exec, mock } = settings;
        let named = exec.named.iter().map(|(name, command)| match Exec::named(name, command, &exec) {
            Ok(exec) => Ok((name.clone(), Arc::new(exec))),
            Err(failure) => anyhow::bail!("runners.{name}.argv: {}", failure.detail),
        });
        let named = named.collect::<anyhow::Result<_>>()?;
        let client = if providers.is_empty() { None } else { Some(chat::client()?) };
        let providers = client.into_iter().flat_map(|client| {
            providers.iter().map(move |(name, settings)| {
                Ok((name.clone(), Arc::new(Chat::new(name, settings.clone(), client.clone())?)))
            })
        });
        let providers = providers.collect::<anyhow::Result<BTreeMap<String, Arc<Chat>>>>()?;
        let called = |name: &String, model: &Model| match providers.get(&model.provider) {
            _ if model.provider == MOCK => {
                Ok(Arc::new(Mock::new(mock.clone()).called(&model.model)) as Arc<dyn Runner>)
            }
            Some(provider) => Ok(Arc::new(provider.called(name, model)) as Arc<dyn Runner>),
            None => anyhow::bail!("models.{name} leads to {:?}, but there is no such provider", model.provider),
        };
        let models = models.iter().map(|(name, routes)| {
            let routes = routes.iter().map(|model| called(name, model)).collect::<anyhow::Result<Vec<_>>>()?;
            Ok((name.clone(), routes))
        });
        let models = models.collect::<anyhow::Result<_>>()?;
        Ok(Self { mock: Mock::new(mock), named, providers, models, exec, own: BTreeMap::new() })
    }

    /// Adds a runner of the caller's own for jobs of exactly this model: before every other, after its own added before.
    pub fn with(mut self, model: &str, runner: Arc<dyn Runner>) -> Self {
        self.own.entry(model.to_owned()).or_default().push(runner);
        self
    }

    /// The runners that serve a job, by its model, the preferred one first: of a model with several routes all of them, of
    /// any other the one.
    ///
    /// # Errors
    /// A `fatal` failure that says what is missing: `bad_mock`, `exec_not_allowed`, `bad_command`, `no_provider`, `no_model`.
    pub fn routes(&self, job: &Job) -> Result<Vec<Arc<dyn Runner>>, Failure> {
        if let Some(model) = job.work.model.as_deref() {
            if let Some(own) = self.own.get(model) {
                return Ok(own.clone());
            }
            if let Some(routes) = self.models.get(model).filter(|routes| !routes.is_empty()) {
                return Ok(routes.clone());
            }
        }
        Ok(vec![self.single(job)?])
    }

    /// The runner that serves a job, or would if nothing went wrong.
    ///
    /// # Errors
    /// As [`Runners::routes`].
    pub fn pick(&self, job: &Job) -> Result<Arc<dyn Runner>, Failure> {
        self.routes(job).map(|mut routes| routes.swap_remove(0))
    }

    /// The runner of a job whose model has no section of its own: `mock`, `mock:PARAMETERS` or `mock/MODEL`, `exec:ARGV`, a
    /// named command, `PROVIDER/MODEL`; anything else, also none, is for the provider of its url's API, and a plain prompt for `openai`.
    fn single(&self, job: &Job) -> Result<Arc<dyn Runner>, Failure> {
        let Some(model) = job.work.model.as_deref() else { return Ok(self.unnamed(job)?) };
        if let Some(mock) = self.mock.of(model) {
            return Ok(Arc::new(mock.map_err(|why| fatal("bad_mock", &why))?));
        }
        if let Some(line) = model.strip_prefix("exec:") {
            return Ok(Arc::new(self.inline(line)?));
        }
        if let Some(command) = self.named.get(model) {
            return Ok(Arc::<Exec>::clone(command));
        }
        let named = model.split_once('/').and_then(|(name, _)| self.providers.get(name));
        let provider = named.or_else(|| self.usual(job)).ok_or_else(|| self.unknown(model))?;
        Ok(Arc::<Chat>::clone(provider))
    }

    /// The provider of jobs that name none: of the API their url belongs to the one that bears its name, else the only one.
    fn usual(&self, job: &Job) -> Option<&Arc<Chat>> {
        let api = match &job.work.input {
            Input::Prompt(_) => return self.providers.get(Api::OpenAi.provider()),
            Input::Request { url, .. } => Endpoint::of(url).map_or(Api::OpenAi, Endpoint::api),
        };
        self.providers.get(api.provider()).filter(|provider| provider.api() == api).or_else(|| {
            let mut speaking = self.providers.values().filter(|provider| provider.api() == api);
            speaking.next().filter(|_| speaking.next().is_none())
        })
    }

    fn unknown(&self, model: &str) -> Failure {
        let detail = format!(
            "no runner knows the model {:?}: there are {}; hint: for a model of OpenAI or of a server like it set \
             OPENAI_API_KEY or OPENAI_BASE_URL, for others ANTHROPIC_API_KEY or GEMINI_API_KEY and write \
             anthropic/MODEL or gemini/MODEL, or give [providers.NAME] a base_url and write NAME/MODEL",
            model.chars().take(80).collect::<String>(),
            self.known()
        );
        fatal("no_provider", &detail)
    }

    /// The limit keys of a model's jobs, the preferred route's first; none where the model alone does not say so.
    pub fn limit_keys(&self, queue: &Queue, model: Option<&str>) -> Vec<String> {
        let job = Job::new(queue.clone(), Work::prompt(model, ""));
        self.routes(&job).into_iter().flatten().map(|runner| runner.limit_key(&job)).collect()
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
        let usual = self.usual(job).filter(|provider| provider.serves_unnamed(job));
        let detail = "the job names no model and there is no default; \
                      hint: name one with --model, or set providers.openai.default_model";
        usual.map(Arc::clone).ok_or_else(|| fatal("no_model", detail))
    }

    /// Every model, or kind of model, that some runner knows.
    fn known(&self) -> String {
        let own = self.own.keys().chain(self.named.keys()).chain(self.models.keys()).cloned();
        let inline = self.exec.allow_inline.then(|| "exec:COMMAND".to_owned());
        let providers = self.providers.keys().map(|name| format!("{name}/MODEL"));
        let names = [MOCK.to_owned()].into_iter().chain(inline).chain(own).chain(providers);
        names.collect::<Vec<_>>().join(", ")
    }
}

fn fatal(code: &str, detail: &str) -> Failure {
    Failure::new(FailureClass::Fatal, code, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(provider: &str, model: &str) -> Model {
        Model { provider: provider.into(), model: model.into() }
    }

    fn settings() -> RunnerSettings {
        let server = |default: Option<&str>| ProviderSettings {
            api: Api::OpenAi,
            stream_above: u64::MAX,
            traceparent: false,
            base_url: "http://127.0.0.1:9/v1".into(),
            api_key: Some("sk-secret".into()),
            default_model: default.map(str::to_owned),
        };
        let argv = ["tr", "a-z", "A-Z"].map(str::to_owned).to_vec();
        RunnerSettings {
            providers: [
                ("openai".into(), server(None)),
                ("local".into(), server(Some("small"))),
                ("claude".into(), ProviderSettings { api: Api::Anthropic, ..server(None) }),
                ("gemini".into(), ProviderSettings { api: Api::Gemini, ..server(None) }),
            ]
            .into(),
            models: [("fast".into(), vec![route("claude", "claude-x-20260101"), route("local", "tiny")])].into(),
            exec: ExecSettings {
                named: [("upper".into(), promptq_common::config::Command { argv, limit_texts: None })].into(),
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
        let keys = |model| runners.limit_keys(&Queue::standard(), Some(model)).join(" ");
        assert_eq!([keys("fast"), keys("gpt"), keys("mock:x=1")], ["claude/claude-x local/tiny", "openai/gpt", ""]);
        for (model, chosen) in [
            ("mock", "mock"),
            ("mock:latency=0,errors=1", "mock"),
            ("mock/gpt-4o-2024-08-06", "mock/gpt-4o"),
            ("upper", "exec:upper"),
            ("gpt-4o-2024-08-06", "openai/gpt-4o"),
            ("local/tiny-latest", "local/tiny"),
            ("meta/llama-20260101", "openai/meta/llama"),
            ("mock-turtle", "openai/mock-turtle"),
            ("gemini/gemini-x", "gemini/gemini-x"),
            ("fast", "claude/claude-x"),
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
        open.models.clear();
        let runners = Runners::new(open).unwrap();
        assert_eq!(key(&runners, Some("exec:/bin/date +%s")).as_deref(), Ok("exec:date"));
        assert_eq!(key(&runners, Some("exec:'")).unwrap_err(), "bad_command");
        assert_eq!(key(&runners, Some("gpt-4o")).unwrap_err(), "no_provider");
    }

    #[test]
    fn the_url_chooses_the_provider_of_a_job_that_names_none() {
        let runners = Runners::new(settings()).unwrap();
        let key = |model: Option<&str>, url: &str| {
            let input = Input::Request { url: url.into(), body: "{}".into() };
            let job = Job::new(Queue::standard(), Work { model: model.map(str::to_owned), input });
            runners.pick(&job).map(|runner| runner.limit_key(&job)).map_err(|failure| failure.code)
        };
        for (model, url, chosen) in [
            (Some("claude-y"), "/v1/messages", "claude/claude-y"),
            (None, "/v1/messages", "claude/_"),
            (Some("gemini-x"), "/v1beta/models/gemini-x:generateContent", "gemini/gemini-x"),
            (Some("gpt"), "/v1/responses", "openai/gpt"),
            (Some("local/gpt"), "/v1/embeddings", "local/gpt"),
            (Some("gpt"), "/v1/none", "openai/gpt"),
        ] {
            assert_eq!(key(model, url).as_deref(), Ok(chosen), "{model:?} {url}");
        }
        let mut two = settings();
        let other = two.providers["claude"].clone();
        two.providers.insert("claude-too".into(), other);
        let input = Input::Request { url: "/v1/messages".into(), body: "{}".into() };
        let job = Job::new(Queue::standard(), Work { model: None, input });
        assert_eq!(Runners::new(two).unwrap().pick(&job).unwrap_err().code, "no_model", "nobody says which of the two");
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
        let urls = [("localhost:8080", "http://"), ("nonsense", "not a URL"), ("https://u:hush@h/v1", "api_key")];
        for (url, says) in urls {
            let mut bad = settings();
            bad.providers.get_mut("local").unwrap().base_url = url.into();
            let error = format!("{:#}", Runners::new(bad).unwrap_err());
            assert!(error.contains("providers.local.base_url") && error.contains(says), "{error}");
            assert!(!error.contains("hush"), "{error}");
        }
        let mut bad = settings();
        bad.exec.named.insert("none".into(), promptq_common::config::Command::default());
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
