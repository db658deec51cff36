//! The sections `providers` and `models`: which API is spoken where, with which key, and the names that jobs may use for
//! models. What a request looks like is the worker's affair.

use std::collections::BTreeMap;

use secrecy::SecretString;
use url::Url;

use super::address::redact_url;
use super::error::Origin;
use super::reader::Reader;

/// Above so many output tokens an answer is streamed: at the 128,000 tokens an hour that Anthropic's own clients reckon
/// with, more would take longer than the ten minutes after which they, and the networks between, give up on a silent call.
const STREAM_ABOVE: u64 = 21_333;
/// The provider that is always there and asks nobody: `mock`, and `mock/MODEL` for any model.
pub const MOCK: &str = "mock";
/// The most routes of a model: each is asked before the next one, within one lease.
const ROUTES: usize = 8;
/// The names of the providers that are there as soon as one of their variables or settings is.
const KNOWN: [(&str, Api); 3] = [("openai", Api::OpenAi), ("anthropic", Api::Anthropic), ("gemini", Api::Gemini)];

/// Section `providers.NAME`.
#[derive(Clone, Debug)]
pub struct Provider {
    /// How it is spoken to.
    pub api: Api,
    /// Up to and including the version, such as `https://api.openai.com/v1`. To one of Anthropic or Gemini without a version
    /// theirs is added, unless it ends in `/`: such a one is taken as it is.
    pub base_url: String,
    /// Its key, sent in the header that the API wants it in.
    pub api_key: Option<SecretString>,
    /// The model for jobs that name none.
    pub default_model: Option<String>,
    /// Answers that may have more output tokens are streamed to us; above what any model gives, none is.
    pub stream_above: u64,
    /// Whether it is told where in a trace a call belongs.
    pub traceparent: bool,
}

/// A model somewhere. Section `models.NAME` is a name of one's own for one, or for several in order of preference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// The provider's name.
    pub provider: String,
    /// The model, as the provider names it.
    pub model: String,
}

/// What a provider speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// `OpenAI`'s chat completions, responses and embeddings, as many servers speak it.
    OpenAi,
    /// Anthropic's Messages.
    Anthropic,
    /// Gemini's generateContent.
    Gemini,
}

impl Api {
    /// Its name in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::Anthropic => "anthropic",
            Self::Gemini => "gemini",
        }
    }

    /// The name of the provider that speaks it unless a job names another.
    pub const fn provider(self) -> &'static str {
        self.as_str()
    }

    /// The header that carries the key, in lower case, and what stands before the key in it.
    pub const fn key_header(self) -> (&'static str, &'static str) {
        match self {
            Self::OpenAi => ("authorization", "Bearer "),
            Self::Anthropic => ("x-api-key", ""),
            Self::Gemini => ("x-goog-api-key", ""),
        }
    }

    /// The header that every request carries to say which version of the API is meant.
    pub const fn version_header(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Anthropic => Some(("anthropic-version", "2023-06-01")),
            Self::OpenAi | Self::Gemini => None,
        }
    }

    const fn home(self) -> &'static str {
        match self {
            Self::OpenAi => "https://api.openai.com/v1",
            Self::Anthropic => "https://api.anthropic.com/v1",
            Self::Gemini => "https://generativelanguage.googleapis.com/v1beta",
        }
    }

    /// A base URL with its version. The own tools of Anthropic and Google take theirs without one, and their variables and
    /// everybody's notes have it so; `OpenAI`'s tools take it with one.
    fn versioned(self, base_url: &str) -> String {
        let version = match self {
            Self::OpenAi => return base_url.to_owned(),
            Self::Anthropic => "v1",
            Self::Gemini => "v1beta",
        };
        // Who ends it so means all of it.
        if base_url.ends_with('/') {
            return base_url.to_owned();
        }
        let Ok(mut url) = Url::parse(base_url) else { return base_url.to_owned() };
        let last = url.path_segments().and_then(|parts| parts.rev().find(|part| !part.is_empty()));
        let is_version =
            |part: &str| part.strip_prefix('v').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        let is_there = last.is_some_and(is_version);
        if !is_there && let Ok(mut parts) = url.path_segments_mut() {
            parts.pop_if_empty().push(version);
        }
        url.into()
    }
}

/// Every provider, by name: those that were said anything of, and those that a model lies with.
pub(super) fn providers(r: &mut Reader<'_>, models: &BTreeMap<String, Vec<Model>>) -> BTreeMap<String, Provider> {
    let mut names = r.names("providers");
    for (name, _) in KNOWN {
        if models.values().flatten().any(|model| model.provider == name) && !names.iter().any(|said| said == name) {
            names.push(name.to_owned());
        }
    }
    if names.iter().any(|name| name == MOCK) {
        r.wrong(
            &["providers", MOCK, "base_url"],
            "cannot be: the mock has the name, and goes nowhere; give it another",
        );
    }
    let providers: BTreeMap<_, _> = names.into_iter().map(|name| (name.clone(), provider(r, &name))).collect();
    for (name, routes) in models {
        let is_known = |name: &String| name.is_empty() || name == MOCK || providers.contains_key(name);
        let unknown = routes.iter().find(|model| !is_known(&model.provider));
        let Some(Model { provider, model }) = unknown else { continue };
        let said = said(r, name);
        let is = if said == "routes" { format!("names {provider}/{model}") } else { format!("is {provider:?}") };
        r.wrong(&["models", name, said], &format!("{is}, but there is no [providers.{provider}]"));
    }
    providers
}

/// The setting that says where a name of one's own leads.
pub(super) fn said(r: &Reader<'_>, name: &str) -> &'static str {
    if r.origin(&["models", name, "routes"]) == Origin::Default { "provider" } else { "routes" }
}

fn provider(r: &mut Reader<'_>, name: &str) -> Provider {
    let at = |setting: &'static str| ["providers", name, setting];
    let known = KNOWN.iter().find(|(known, _)| *known == name).map(|(_, api)| *api);
    let standard = known.unwrap_or(Api::OpenAi);
    // Its older name.
    let named = if r.origin(&at("kind")) == Origin::Default || r.origin(&at("api")) != Origin::Default {
        at("api")
    } else {
        at("kind")
    };
    let api = r.parsed(&named, Some(Word(standard)), |word| {
        let meant = [Api::OpenAi, Api::Anthropic, Api::Gemini].into_iter().find(|api| api.as_str() == word);
        meant.map(Word).ok_or_else(|| "must be \"openai\", \"anthropic\" or \"gemini\"".to_owned())
    });
    let api = api.map_or(standard, |word| word.0);
    let base_url = match r.masked(&at("base_url"), redact_url) {
        Some(url) if !url.starts_with("http://") && !url.starts_with("https://") => {
            r.wrong(&at("base_url"), "must begin with http:// or https://");
            url
        }
        Some(url) => api.versioned(&url),
        // Only its own name says that a server which speaks what many speak is OpenAI itself.
        None if api == Api::OpenAi && known != Some(Api::OpenAi) => {
            r.wrong(&at("base_url"), "is missing");
            String::new()
        }
        None => {
            r.stands_for(&at("base_url"), api.home());
            api.home().to_owned()
        }
    };
    Provider {
        api,
        base_url,
        api_key: r.secret(&at("api_key")),
        default_model: r.text(&at("default_model")),
        stream_above: r.integer(&at("stream_above"), 0..=i64::MAX, STREAM_ABOVE),
        traceparent: r.boolean(&at("traceparent"), false),
    }
}

/// Section `models`: the routes of each name.
pub(super) fn models(r: &mut Reader<'_>) -> BTreeMap<String, Vec<Model>> {
    let mut models = BTreeMap::new();
    for name in r.names("models") {
        let is_mock = name.strip_prefix(MOCK).is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '/']));
        if is_mock || name.starts_with("exec:") {
            let said = said(r, &name);
            r.wrong(&["models", &name, said], "cannot be: the name means something else already");
        }
        let routes = routes(r, &name);
        models.insert(name, routes);
    }
    models
}

/// `provider` and `model`, or `routes`.
fn routes(r: &mut Reader<'_>, name: &str) -> Vec<Model> {
    let at = |setting: &'static str| ["models", name, setting];
    let errors = r.errors.len();
    let routes = r.list(&at("routes"));
    let provider = r.text(&at("provider"));
    let model = r.text(&at("model"));
    let Some(routes) = routes else {
        if provider.is_none() && r.errors.len() == errors {
            r.wrong(&at("provider"), "is missing");
        }
        if model.is_none() {
            r.stands_for(&at("model"), name);
        }
        return vec![Model { provider: provider.unwrap_or_default(), model: model.unwrap_or_else(|| name.to_owned()) }];
    };
    if provider.is_some() || model.is_some() {
        r.wrong(&at("routes"), "stands beside provider or model, which name one route; keep one of the two");
        return Vec::new();
    }
    read_routes(&routes).unwrap_or_else(|wrong| {
        r.wrong(&at("routes"), &wrong);
        Vec::new()
    })
}

/// `["openai/gpt-4o-mini", "anthropic/claude-haiku-4-5"]`
fn read_routes(routes: &[String]) -> Result<Vec<Model>, String> {
    if !(1..=ROUTES).contains(&routes.len()) {
        return Err(format!("must name 1 to {ROUTES} routes, the preferred one first, not {}", routes.len()));
    }
    let mut read: Vec<Model> = Vec::with_capacity(routes.len());
    for route in routes {
        let parts = route.split_once('/').filter(|(provider, model)| !provider.is_empty() && !model.is_empty());
        let Some((provider, model)) = parts else {
            return Err(format!("names {route:?}; a route is PROVIDER/MODEL, as in \"anthropic/claude-haiku-4-5\""));
        };
        let model = Model { provider: provider.to_owned(), model: model.to_owned() };
        if read.contains(&model) {
            return Err(format!("names {route} twice"));
        }
        read.push(model);
    }
    Ok(read)
}

/// An API as the configuration writes it.
struct Word(Api);

impl std::fmt::Display for Word {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.as_str())
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;
    use crate::config::{Config, tests};

    fn given(text: &str, env: &[(&str, &str)]) -> Result<Config, String> {
        tests::given(&[("promptq.toml", text)], env, &[])
    }

    #[test]
    fn a_key_in_its_usual_variable_is_a_provider() {
        for (name, api, url) in [
            ("OPENAI_API_KEY", Api::OpenAi, "https://api.openai.com/v1"),
            ("ANTHROPIC_API_KEY", Api::Anthropic, "https://api.anthropic.com/v1"),
            ("GEMINI_API_KEY", Api::Gemini, "https://generativelanguage.googleapis.com/v1beta"),
        ] {
            let config = given("", &[(name, "hunter2")]).unwrap();
            let provider = &config.providers[api.provider()];
            assert_eq!((config.providers.len(), provider.api, provider.base_url.as_str()), (1, api, url));
            assert_eq!(provider.api_key.as_ref().unwrap().expose_secret(), "hunter2");
            assert_eq!(provider.stream_above, STREAM_ABOVE);
            let shown = config.settings.iter().map(|setting| setting.value.to_string()).collect::<String>();
            assert!(!shown.contains("hunter2") && shown.contains(url), "{shown}");
        }
    }

    #[test]
    fn a_base_url_is_taken_with_its_version_and_without() {
        let url = |api: &str, url: &str| {
            let text = format!("[providers.x]\napi = \"{api}\"\nbase_url = \"{url}\"\n");
            given(&text, &[]).unwrap().providers["x"].base_url.clone()
        };
        for (api, said, is) in [
            ("anthropic", "http://127.0.0.1:9", "http://127.0.0.1:9/v1"),
            ("anthropic", "https://gw.example/anthropic", "https://gw.example/anthropic/v1"),
            ("anthropic", "https://gw.example/anthropic/", "https://gw.example/anthropic/"),
            ("gemini", "http://127.0.0.1:9/", "http://127.0.0.1:9/"),
            ("anthropic", "https://api.anthropic.com/v1/", "https://api.anthropic.com/v1/"),
            ("gemini", "https://gw.example", "https://gw.example/v1beta"),
            ("gemini", "https://gw.example/v1", "https://gw.example/v1"),
            ("openai", "http://127.0.0.1:9", "http://127.0.0.1:9"),
        ] {
            assert_eq!(url(api, said), is, "{api} {said}");
        }
        let said = given("", &[("ANTHROPIC_BASE_URL", "http://near:8080")]).unwrap();
        assert_eq!(said.providers["anthropic"].base_url, "http://near:8080/v1");
    }

    #[test]
    fn kind_is_the_older_name_of_api() {
        let box_of = |settings: &str| {
            let text = format!("[providers.box]\nbase_url = \"http://box/v1\"\n{settings}\n");
            given(&text, &[]).map(|config| config.providers["box"].api)
        };
        assert_eq!(box_of("kind = \"openai\""), Ok(Api::OpenAi));
        assert_eq!(box_of("kind = \"anthropic\""), Ok(Api::Anthropic));
        assert!(box_of("kind = \"acme\"").unwrap_err().contains("providers.box.kind must be"));
        assert!(box_of("kind = \"openai\"\napi = \"gemini\"").is_err(), "one of the two is not meant");
    }

    #[test]
    fn a_model_of_ones_own_name_lies_with_a_provider_that_need_not_be_spelt_out() {
        let text = "[models.fast]\nprovider = \"anthropic\"\nmodel = \"claude-x\"\n\
            [models.\"in/house\"]\nprovider = \"box\"\n[providers.box]\nbase_url = \"http://box:8000/v1\"\nstream_above = 0";
        let config = given(text, &[]).unwrap();
        let model = |provider: &str, model: &str| Model { provider: provider.into(), model: model.into() };
        assert_eq!(config.models["fast"], [model("anthropic", "claude-x")]);
        assert_eq!(config.models["in/house"], [model("box", "in/house")]);
        assert_eq!(config.providers["anthropic"].api, Api::Anthropic);
        assert_eq!((config.providers["box"].api, config.providers["box"].stream_above), (Api::OpenAi, 0));
        assert!(given("[models.a]\nprovider = \"acme\"", &[]).unwrap_err().contains("no [providers.acme]"));
        assert_eq!(given("[models.a]\nprovider = \"mock\"", &[]).unwrap().models["a"], [model("mock", "a")]);
        for taken in ["[models.\"mock/a\"]\nprovider = \"mock\"", "[providers.mock]\nbase_url = \"http://box/v1\""] {
            assert!(given(taken, &[]).unwrap_err().contains("cannot be"), "{taken}");
        }
    }
    #[test]
    fn a_model_may_have_several_routes_in_order_of_preference() {
        let routes = |routes: &str| {
            let text = format!("[models.fast]\nroutes = {routes}\n[providers.box]\nbase_url = \"http://box/v1\"");
            given(&text, &[]).map(|config| {
                let routes = config.models["fast"].iter().map(|model| format!("{} {}", model.provider, model.model));
                (routes.collect::<Vec<_>>().join(", "), config.providers.len())
            })
        };
        let read = routes(r#"["openai/gpt-x", "anthropic/claude-y", "box/meta/llama"]"#);
        assert_eq!(read, Ok(("openai gpt-x, anthropic claude-y, box meta/llama".to_owned(), 3)));
        let said = given("", &[("PROMPTQ__MODELS__FAST__ROUTES", "openai/a,gemini/b")]).unwrap();
        assert_eq!(said.models["fast"].len(), 2);
        let nine: Vec<_> = (0..9).map(|n| format!("openai/{n}")).collect();
        for (wrong, says) in [
            ("[]", "must name 1 to 8 routes"),
            (&*format!("{nine:?}"), "not 9"),
            (r#"["openai/a", "box/b", "openai/a"]"#, "names openai/a twice"),
            (r#"["acme/a"]"#, "promptq.toml:2:10: models.fast.routes names acme/a, but there is no [providers.acme]"),
            (r#"["gpt-4o"]"#, "names \"gpt-4o\"; a route is PROVIDER/MODEL"),
            (r#"["openai/"]"#, "a route is PROVIDER/MODEL"),
            (r#"["/a"]"#, "a route is PROVIDER/MODEL"),
            ("\"openai/a\"\nprovider = \"openai\"", "models.fast.routes"),
            ("[\"openai/a\"]\nprovider = \"openai\"", "keep one of the two"),
            ("[\"openai/a\"]\nmodel = \"a\"", "keep one of the two"),
        ] {
            let told = routes(wrong).unwrap_err();
            assert!(told.contains(says) && told.lines().count() == 1, "{wrong}: {told}");
        }
    }
}
