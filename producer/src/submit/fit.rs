//! Whether workers will run a job, as far as the settings here tell: what surely comes to nothing is refused before it is
//! enqueued, what may is told. One judgement for `run`, whose workers are its own, for `submit` and for the gateway.

use std::collections::BTreeMap;
use std::sync::Arc;

use promptq_common::config::{Config, Model};
use promptq_common::job::{Job, Queue};
use promptq_common::limits::{Measure, counting};
use promptq_common::outcome::Failure;
use promptq_common::price::{Prices, Seller};
use promptq_common::work::{Input, Work};
use promptq_worker::money::{self, Unknown};
use promptq_worker::runner::{Runner, Runners};
use promptq_worker::{configured, size};

use super::jobs;
use crate::forecast::elsewhere;
use crate::input::Fault;
use crate::problem::{Exit, Problem, Result};

/// Kinds of doubt that are told apart.
const KINDS: usize = 20;
/// And the most that are told.
const TOLD: usize = 3;

/// What these settings say of workers.
#[derive(Debug)]
pub struct Fit {
    runners: Arc<Runners>,
    prices: Prices,
    /// Models that have a section of their own, as their providers call them.
    named: Vec<Model>,
    whose: Whose,
    /// Queues with a budget, keys of limits, and those of them that cap what is spent.
    budgets: Vec<Queue>,
    rules: Vec<String>,
    capped: Vec<String>,
    allows_exec: bool,
}

/// Whose settings they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    /// Those of the very workers that will run the job.
    Own,
    /// Somebody wrote down here what workers run.
    Written,
    /// Nobody did: workers may have what is not known here.
    Nobodys,
}

/// Why a job may come to nothing.
pub type Doubt = String;

impl Fit {
    /// For the workers of `run`.
    pub fn own(config: &Config, runners: Arc<Runners>) -> Self {
        Self::new(config, runners, Whose::Own)
    }

    /// For a fleet's workers; `None` where these settings could run nothing.
    pub fn fleet(config: &Config) -> Option<Self> {
        let mut settings = configured::runners(config);
        // So that a command which cannot be read is found; whether one may run is its worker's affair.
        settings.exec.allow_inline = true;
        let whose = if config.says_what_runs() { Whose::Written } else { Whose::Nobodys };
        Runners::new(settings).ok().map(|runners| Self::new(config, Arc::new(runners), whose))
    }

    fn new(config: &Config, runners: Arc<Runners>, whose: Whose) -> Self {
        let budgets = config.queues.iter().filter(|(_, policy)| policy.budget.is_some());
        let is_money = |measure: Measure| measure == Measure::Usd;
        let capped = config.limits.iter().filter(|rule| rule.caps.iter().any(|cap| is_money(cap.measure)));
        Self {
            runners,
            prices: config.prices.clone(),
            named: config.models.values().flatten().cloned().collect(),
            whose,
            budgets: budgets.map(|(queue, _)| queue.clone()).collect(),
            rules: config.limits.iter().map(|rule| rule.key.clone()).collect(),
            capped: capped.map(|rule| rule.key.clone()).collect(),
            allows_exec: config.worker.allow_exec || whose == Whose::Own,
        }
    }

    /// Whether a job will run; why it may not, where only its workers know.
    ///
    /// # Errors
    /// It surely will not.
    pub fn judge(&self, job: &Job) -> Result<Option<Doubt>, Fault> {
        let routes = match self.routes(job)? {
            Ok(routes) => routes,
            Err(failure) => return Ok(self.not_here(job, &failure)),
        };
        if job.work.model.as_deref().is_some_and(|model| model.starts_with("exec:")) && !self.allows_exec {
            return Ok(Some("only a worker started with --allow-exec runs a command that a job brings".to_owned()));
        }
        if !self.is_capped(job, routes.iter().map(|route| route.limit_key(job))) {
            return Ok(self.guessed(job, &routes));
        }
        match (money::missing(job, &routes, &self.prices), self.whose) {
            (None, _) => Ok(self.guessed(job, &routes)),
            (Some(Unknown::Price), Whose::Written | Whose::Nobodys) => Ok(Some(
                "the cost is limited, and no price is known here: they wait unless their workers know it".to_owned(),
            )),
            (Some(unknown), Whose::Own | Whose::Written) => Err(fault(&unknown.says())),
            (Some(unknown), Whose::Nobodys) => Ok(Some(dead(&unknown))),
        }
    }

    /// [`Fit::judge`] for somebody who cannot change these settings: what is refused is so without a hint.
    ///
    /// # Errors
    /// As there.
    pub fn tell(&self, job: &Job) -> Result<Option<Doubt>, Fault> {
        self.judge(job).map_err(|fault| Fault { hint: None, ..fault })
    }

    /// The same of the model that a flag gives to every row.
    ///
    /// # Errors
    /// No row can run.
    pub fn flag(&self, model: Option<&str>) -> Result<()> {
        let Some(model) = model else { return Ok(()) };
        let job = Job::new(Queue::standard(), Work::prompt(Some(model), ""));
        let Err(fault) = self.routes(&job) else { return Ok(()) };
        let problem =
            Problem::new(Exit::Usage, "no-runner", format!("-m: {}", fault.what)).detail("nothing was enqueued");
        Err(fault.hint.into_iter().fold(problem, Problem::hint))
    }

    /// Whether any other prompt for the same model would be judged alike.
    pub fn is_by_model(&self, job: &Job) -> bool {
        let is_prompt = matches!(job.work.input, Input::Prompt(_)) && job.work.model.is_some();
        is_prompt && self.capped.is_empty() && !self.is_capped(job, std::iter::empty())
    }

    /// Who runs a job, or why nobody does here; an error where nobody does anywhere.
    fn routes(&self, job: &Job) -> Result<Result<Vec<Arc<dyn Runner>>, Failure>, Fault> {
        match self.runners.routes(job) {
            Err(failure) if self.whose != Whose::Nobodys || is_wrong_anywhere(&failure) => Err(fault(&failure.detail)),
            routes => Ok(routes),
        }
    }

    /// A ready-made request for a model that nothing here names, for which its url alone says who is asked.
    fn guessed(&self, job: &Job, routes: &[Arc<dyn Runner>]) -> Option<Doubt> {
        let (Input::Request { .. }, Some(said), [route]) = (&job.work.input, &job.work.model, routes) else {
            return None;
        };
        let (provider, model) = route.priced_as(job).filter(|(_, model)| model == said)?;
        let is_named = self.named.iter().any(|named| (&named.provider, &named.model) == (&provider, &model));
        // One that bears the name of its API has whatever is asked for in its own way.
        if is_named || Seller::named(&provider).is_some() || self.prices.of(&provider, &model).is_some() {
            return None;
        }
        let said = short(said);
        Some(format!(
            "nothing here knows the model {said:?}: it is asked of {provider}, the only provider here of that API"
        ))
    }

    /// A job whose model is not known here, and may be elsewhere.
    fn not_here(&self, job: &Job, failure: &Failure) -> Option<Doubt> {
        let Some(model) = &job.work.model else {
            return Some(format!(
                "no model is named: a worker without a default one ends them dead, as {}",
                failure.code
            ));
        };
        let Some(seat) = elsewhere(job, &self.prices) else {
            return Some(format!(
                "nothing here knows the model {:?}: a worker that does not either ends them dead, as {}",
                short(model),
                failure.code
            ));
        };
        let dies =
            !seat.can_be_capped(size::answers(&job.work).0) && self.is_capped(job, std::iter::once(seat.limit_key));
        dies.then(|| dead(&Unknown::Answer))
    }

    /// Whether what it may cost has to be known before it is called.
    fn is_capped(&self, job: &Job, mut limit_keys: impl Iterator<Item = String>) -> bool {
        let by_itself = job.extras.as_ref().is_some_and(|of| of.max_cost.is_some() || of.batch_max_cost.is_some());
        by_itself
            || self.budgets.contains(&job.queue)
            || limit_keys
                .any(|key| counting(&self.rules, &key).into_iter().flatten().any(|key| self.capped.contains(key)))
    }
}

/// Whether no settings could make it right.
fn is_wrong_anywhere(failure: &Failure) -> bool {
    matches!(failure.code.as_str(), "bad_mock" | "bad_command")
}

fn short(model: &str) -> String {
    model.chars().take(80).collect()
}

fn dead(unknown: &Unknown) -> Doubt {
    let says = unknown.says().replace("; hint: ", " (");
    format!("{says}): they end dead, as {}", unknown.code())
}

fn fault(detail: &str) -> Fault {
    match detail.split_once("; hint: ") {
        Some((what, hint)) => Fault::new(what).hint(hint),
        None => Fault::new(detail),
    }
}

/// Doubts about the jobs of an input, alike ones counted.
#[derive(Clone, Debug, Default)]
pub struct Doubts(BTreeMap<Doubt, u64>);

impl Doubts {
    /// One more job.
    pub fn add(&mut self, doubt: Doubt) {
        if let Some(count) = self.0.get_mut(&doubt) {
            *count += 1;
        } else if self.0.len() < KINDS {
            self.0.insert(doubt, 1);
        }
    }

    /// A line for each of the commonest.
    pub fn lines(&self) -> Vec<String> {
        let mut doubts: Vec<_> = self.0.iter().collect();
        doubts.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        doubts.into_iter().take(TOLD).map(|(doubt, count)| format!("{}: {doubt}", jobs(*count))).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use promptq_common::config::{Sources, resolve};
    use promptq_common::job::Extras;
    use promptq_common::outcome::Usd;

    use super::*;

    const ACME: &str = "[providers.acme]\nbase_url = \"http://127.0.0.1:9/v1\"\n";

    fn fleet(settings: &str, env: &[(&str, &str)]) -> Fit {
        let own = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
        let read = |_: &Path| Err(std::io::ErrorKind::NotFound.into());
        let sources = Sources {
            files: vec![(PathBuf::from("promptq.toml"), settings.to_owned())],
            environment: env.iter().chain([&("HOME", "/home/me")]).map(own).collect(),
            flags: Vec::new(),
            folder: PathBuf::from("/run"),
            read: &read,
        };
        Fit::fleet(&resolve(&sources).unwrap()).unwrap()
    }

    fn job(model: Option<&str>, max_tokens: Option<u64>) -> Job {
        let mut work = Work::prompt(model, "Hi");
        if let (Input::Prompt(prompt), Some(most)) = (&mut work.input, max_tokens) {
            prompt.params = format!("{{\"max_tokens\":{most}}}");
        }
        Job::new(Queue::standard(), work)
    }

    /// Under a cap of ten dollars.
    fn capped(job: Job) -> Job {
        let extras = Extras { batch_max_cost: Some(Usd::from_nanos(10_000_000_000)), ..Extras::default() };
        Job { extras: extras.kept(), ..job }
    }

    fn refused(fit: &Fit, job: &Job) -> Option<String> {
        fit.judge(job).err().map(|fault| fault.what)
    }

    fn doubted(fit: &Fit, job: &Job) -> Option<String> {
        fit.judge(job).unwrap()
    }

    #[test]
    fn a_model_is_refused_where_the_settings_say_what_runs_and_doubted_where_they_do_not() {
        let written = fleet(ACME, &[]);
        let told = refused(&written, &job(Some("gpt-none"), None)).unwrap();
        assert!(
            told.starts_with("no runner knows the model \"gpt-none\": there are mock, exec:COMMAND, acme/MODEL"),
            "{told}"
        );
        assert!(refused(&written, &job(None, None)).unwrap().contains("names no model"));
        for model in ["acme/any", "mock", "mock/gpt-4o", "mock:errors=0.1"] {
            assert_eq!(doubted(&written, &job(Some(model), None)), None, "{model}");
        }
        assert!(written.flag(Some("gpt-none")).unwrap_err().what.starts_with("-m: no runner knows"));
        assert!(written.flag(Some("acme/any")).is_ok() && written.flag(None).is_ok());
        // Nobody said what workers have: a key may be there for other programs.
        for fit in [fleet("", &[]), fleet("", &[("ANTHROPIC_API_KEY", "k")])] {
            let told = doubted(&fit, &job(Some("fast"), None)).unwrap();
            assert!(told.contains("knows the model \"fast\"") && told.ends_with("as no_provider"), "{told}");
            assert!(doubted(&fit, &job(None, None)).unwrap().ends_with("as no_model"));
            assert_eq!(doubted(&fit, &job(Some("gpt-4o"), None)), None, "everybody knows it");
        }
    }

    #[test]
    fn a_request_for_a_model_that_only_its_url_says_who_has_is_doubted() {
        let request = |model: &str| {
            let input = Input::Request { url: "/v1/chat/completions".into(), body: "{\"max_tokens\":9}".into() };
            Job::new(Queue::standard(), Work { model: Some(model.into()), input })
        };
        let settings = format!(
            "{ACME}[models.fast]\nprovider = \"acme\"\nmodel = \"fast-2\"\n[models.own]\nprovider = \"acme\"\nmodel = \"own\"\n\
             [prices.\"acme/dear\"]\ninput = \"1\"\noutput = \"1\"\n"
        );
        let written = fleet(&settings, &[]);
        let told = "nothing here knows the model \"gpt-none\": it is asked of acme, the only provider here of that API";
        assert_eq!(doubted(&written, &request("gpt-none")).as_deref(), Some(told));
        for known in ["fast", "fast-2", "own", "dear", "acme/any", "mock"] {
            assert_eq!(doubted(&written, &request(known)), None, "{known}");
        }
        assert_eq!(doubted(&fleet("", &[("OPENAI_API_KEY", "k")]), &request("gpt-none")), None, "as of a prompt");
        let free =
            format!("{settings}[prices.\"acme/*\"]\ninput = \"0\"\noutput = \"0\"\n[limits.acme]\nusd = \"1/day\"");
        assert_eq!(doubted(&fleet(&free, &[]), &request("gpt-none")), None, "a price of all others is one of it");
        assert!(doubted(&fleet("", &[]), &request("gpt-none")).unwrap().ends_with("as no_provider"));
    }

    #[test]
    fn what_no_settings_make_right_is_refused_everywhere() {
        for fit in [fleet("", &[]), fleet(ACME, &[])] {
            assert!(refused(&fit, &job(Some("mock:colour=red"), None)).unwrap().contains("unknown parameter"));
            assert!(refused(&fit, &job(Some("mock/"), None)).is_some());
            assert!(refused(&fit, &job(Some("exec:'"), None)).is_some());
            assert!(doubted(&fit, &job(Some("exec:wc -w"), None)).unwrap().contains("--allow-exec"));
        }
        assert_eq!(doubted(&fleet("[worker]\nallow_exec = true", &[]), &job(Some("exec:wc"), None)), None);
    }

    #[test]
    fn what_would_die_for_want_of_a_bound_is_told_before() {
        let priced = format!("{ACME}[prices.\"acme/fast\"]\ninput = \"1\"\noutput = \"1\"\n");
        let (written, unknown) = (fleet(&priced, &[]), fleet("", &[]));
        let fast = |most| capped(job(Some("acme/fast"), most));
        assert!(refused(&written, &fast(None)).unwrap().contains("nobody bounds its answer"));
        assert_eq!(doubted(&written, &fast(Some(9))), None);
        assert_eq!(doubted(&written, &job(Some("acme/fast"), None)), None, "nothing caps it");
        let told = doubted(&written, &capped(job(Some("acme/slow"), Some(9)))).unwrap();
        assert!(told.contains("no price is known here"), "workers may know it: {told}");
        let told = doubted(&unknown, &capped(job(Some("gpt-4o"), None))).unwrap();
        assert!(told.contains("--max-tokens N") && told.ends_with("they end dead, as no_max_tokens"), "{told}");
        for fits in
            [job(Some("gpt-4o"), Some(9)), job(Some("anthropic/claude-haiku-4-5"), None), job(Some("mock"), None)]
        {
            assert_eq!(doubted(&unknown, &capped(fits)), None);
        }
        for caps in ["[queues.default]\nbudget = \"1/day\"", "[limits.acme]\nusd = \"1/day\""] {
            let fit = fleet(&format!("{priced}{caps}"), &[]);
            assert!(refused(&fit, &job(Some("acme/fast"), None)).is_some(), "{caps}");
            assert!(!fit.is_by_model(&job(Some("acme/fast"), None)), "{caps}");
        }
        assert!(written.is_by_model(&job(Some("acme/fast"), None)) && !written.is_by_model(&fast(None)));
    }

    #[test]
    fn doubts_that_are_alike_are_one_line() {
        let mut doubts = Doubts::default();
        for doubt in ["a", "b", "b", "c", "d", "b", "d", "c"] {
            doubts.add(doubt.to_owned());
        }
        assert_eq!(doubts.lines(), ["3 jobs: b", "2 jobs: c", "2 jobs: d"]);
        (0..100).for_each(|n| doubts.add(n.to_string()));
        assert_eq!(doubts.0.len(), KINDS);
    }
}
