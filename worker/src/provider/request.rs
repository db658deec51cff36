//! From a job's work to the bytes that are sent, and what they will probably consume. What a plain prompt looks like is each
//! API's own `request.rs`; a ready-made body stays as it is, but for its model's name and, for long answers, `stream`.

use std::collections::BTreeMap;

use bytes::Bytes;
use promptq_common::config::Api;
use promptq_common::line::model_in;
use promptq_common::outcome::{Failure, FailureClass, Usage};
use promptq_common::work::{Input, Prompt, Work};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::{Endpoint, anthropic, gemini, openai};

/// Output tokens assumed where a request sets no limit, and the least assumed where it does: what a limiter reserves
/// before it has seen a model answer.
const OUTPUT_GUESS: u64 = 256;

/// A request, ready to send.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// Where to.
    pub(crate) endpoint: Endpoint,
    /// Where exactly, below a base URL that ends with the version.
    pub(crate) path: Vec<String>,
    /// What follows the path.
    pub(crate) query: Option<&'static str>,
    /// One JSON object.
    pub(crate) body: Bytes,
    /// The most output tokens it allows, if it says.
    pub(crate) output_max: Option<u64>,
    /// Whether the answer comes as events.
    pub(crate) stream: bool,
}

/// Whom a request is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    /// The provider's name, which a model may carry in front (`NAME/model`).
    pub(crate) provider: &'a str,
    /// What it speaks.
    pub(crate) api: Api,
    /// A name of one's own for a model, and the model it stands for.
    pub(crate) alias: Option<(&'a str, &'a str)>,
    /// The model for work that names none.
    pub(crate) fallback: Option<&'a str>,
    /// Answers that may have more output tokens are streamed.
    pub(crate) stream_above: u64,
}

impl<'a> Target<'a> {
    /// The model that a job means, as the provider names it.
    pub(crate) fn real(&self, said: &'a str) -> &'a str {
        match self.alias {
            Some((name, model)) if name == said => model,
            _ => said.strip_prefix(self.provider).and_then(|rest| rest.strip_prefix('/')).unwrap_or(said),
        }
    }
}

/// A plain prompt in the shape of its API.
pub(super) struct Draft {
    pub(super) endpoint: Endpoint,
    pub(super) body: Map<String, Value>,
    pub(super) output_max: Option<u64>,
}

impl Request {
    /// Writes the request for `work`. A ready-made body is sent byte for byte, but for the name of its model where that is
    /// one of ours, and for `stream` where a long answer may come and the body does not say how it wants it.
    ///
    /// # Errors
    /// A `fatal` failure: `no_model`, `bad_params`, `invalid_json`, `unknown_url`, `stream_not_supported`,
    /// `background_not_supported`.
    pub(crate) fn new(work: &Work, to: &Target<'_>) -> Result<Self, Failure> {
        let model = work.model.as_deref().map(|model| to.real(model)).or(to.fallback);
        match &work.input {
            Input::Prompt(prompt) => of_prompt(prompt, model.ok_or_else(no_model)?, to),
            Input::Request { url, body } => of_body(url, body, model, to),
        }
    }

    /// What it will have consumed when it was cut: 3.6 bytes an input token, and a quarter of the output it may have.
    pub(crate) fn estimate(&self) -> Usage {
        let input_tokens = (self.body.len() as u64).saturating_mul(10).div_ceil(36);
        let output_tokens = match (self.endpoint, self.output_max) {
            (Endpoint::Embeddings, _) => 0,
            (_, Some(most)) => (most / 4).max(OUTPUT_GUESS).min(most),
            (_, None) => OUTPUT_GUESS,
        };
        Usage { input_tokens, output_tokens, ..Usage::default() }
    }

    /// A request whose body needs no more than to be asked for as a stream, if it is long.
    fn ready(endpoint: Endpoint, body: String, model: &str, (output_max, stream): (Option<u64>, bool)) -> Self {
        let body = if stream { streaming(endpoint, body) } else { body };
        let (path, query): (Vec<String>, _) = match endpoint {
            Endpoint::Chat => (vec!["chat".into(), "completions".into()], None),
            Endpoint::Responses => (vec!["responses".into()], None),
            Endpoint::Embeddings => (vec!["embeddings".into()], None),
            Endpoint::Messages => (vec!["messages".into()], None),
            Endpoint::Generate if stream => {
                (vec!["models".into(), format!("{model}:streamGenerateContent")], Some("alt=sse"))
            }
            Endpoint::Generate => (vec!["models".into(), format!("{model}:generateContent")], None),
        };
        Self { endpoint, path, query, body: Bytes::from(body), output_max, stream }
    }
}

fn of_prompt(prompt: &Prompt, model: &str, to: &Target<'_>) -> Result<Request, Failure> {
    let params: Map<String, Value> = match prompt.params.trim() {
        "" => Map::new(),
        text => serde_json::from_str(text).map_err(|_| {
            fatal("bad_params", "the job's parameters are not one JSON object such as {\"max_tokens\":64}")
        })?,
    };
    if params.get("stream").is_some_and(|stream| *stream == true) {
        return Err(streamed());
    }
    let Draft { endpoint, body, output_max } = match to.api {
        Api::OpenAi => openai::request::draft(prompt, model, params)?,
        Api::Anthropic => anthropic::request::draft(prompt, model, params)?,
        Api::Gemini => gemini::request::draft(prompt, params)?,
    };
    let stream = output_max.is_some_and(|most| most > to.stream_above) && body.get("stream").is_none_or(Value::is_null);
    Ok(Request::ready(endpoint, Value::Object(body).to_string(), model, (output_max, stream)))
}

fn of_body(url: &str, body: &str, model: Option<&str>, to: &Target<'_>) -> Result<Request, Failure> {
    let endpoint = Endpoint::of(url).ok_or_else(|| {
        let known = promptq_common::line::ENDPOINTS.join(", ");
        fatal("unknown_url", &format!("this version serves the urls {known}"))
    })?;
    if endpoint.api() != to.api {
        let (speaks, wants) = (to.api.as_str(), endpoint.api().as_str());
        let detail = format!(
            "the provider {:?} speaks {speaks}, and this url is of {wants}; hint: name a model of a provider with api = {wants:?}",
            to.provider
        );
        return Err(fatal("unknown_url", &detail));
    }
    let invalid = || fatal("invalid_json", "the request's body is not one JSON object with a model and parameters");
    if !body.trim_start().starts_with('{') {
        return Err(invalid());
    }
    let head: Head<'_> = serde_json::from_str(body).map_err(|_| invalid())?;
    let limits: Limits = serde_json::from_str(body).map_err(|_| invalid())?;
    if limits.stream == true {
        return Err(streamed());
    }
    if limits.background == true {
        let detail =
            "an answer in the background is one nobody would fetch; hint: leave \"background\" out of the request";
        return Err(fatal("background_not_supported", detail));
    }
    let output_max = limits.output_max(endpoint);
    let stream = output_max.is_some_and(|most| most > to.stream_above) && limits.stream.is_null();
    if let Some(model) = model_in(url) {
        return Ok(Request::ready(endpoint, body.to_owned(), to.real(model), (output_max, stream)));
    }
    let (body, model) = match head.model {
        None => {
            let model = model.ok_or_else(no_model)?;
            (inserted(body, &format!("\"model\":{}", Value::from(model))), model.to_owned())
        }
        Some(raw) => {
            let named: String = serde_json::from_str(raw.get()).map_err(|_| invalid())?;
            match to.real(&named) {
                same if same == named => (body.to_owned(), named),
                real => (replaced(body, raw.get(), &real.into()).ok_or_else(invalid)?, real.to_owned()),
            }
        }
    };
    Ok(Request::ready(endpoint, body, &model, (output_max, stream)))
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    model: Option<&'a RawValue>,
}

/// Of any type: what is odd here is the provider's to refuse.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Limits {
    stream: Value,
    background: Value,
    max_tokens: Value,
    max_completion_tokens: Value,
    max_output_tokens: Value,
    #[serde(rename = "generationConfig")]
    generation: Value,
    #[serde(rename = "generation_config")]
    generation_too: Value,
}

impl Limits {
    /// By the names that the endpoint knows; it may well overlook any other.
    fn output_max(&self, endpoint: Endpoint) -> Option<u64> {
        match endpoint {
            Endpoint::Chat => largest([&self.max_completion_tokens, &self.max_tokens].into_iter()),
            Endpoint::Responses => largest([&self.max_output_tokens].into_iter()),
            Endpoint::Messages => largest([&self.max_tokens].into_iter()),
            Endpoint::Generate => {
                let configs = [&self.generation, &self.generation_too].into_iter();
                largest(configs.flat_map(|config| OUTPUT_NAMES.iter().filter_map(move |name| config.get(*name))))
            }
            Endpoint::Embeddings => None,
        }
    }
}

/// The names that Gemini has for the most tokens of an answer.
pub(super) const OUTPUT_NAMES: [&str; 2] = ["maxOutputTokens", "max_output_tokens"];

/// The largest of these bounds; `None` without one, or with one that is no whole number, as nobody knows what it is taken for.
pub(super) fn largest<'a>(said: impl Iterator<Item = &'a Value>) -> Option<u64> {
    let numbers: Option<Vec<u64>> = said.filter(|said| !said.is_null()).map(Value::as_u64).collect();
    numbers?.into_iter().max()
}

/// The most output tokens that parameters allow, by any of their names.
pub(super) fn output_max(params: &Map<String, Value>) -> Option<u64> {
    ["max_completion_tokens", "max_output_tokens", "max_tokens"].iter().find_map(|name| params.get(*name)?.as_u64())
}

/// Refuses parameters that have a field of their own.
pub(super) fn untaken(params: &Map<String, Value>, taken: &[&str]) -> Result<(), Failure> {
    match taken.iter().find(|name| params.contains_key(**name)) {
        None => Ok(()),
        Some(name) => {
            let detail = format!("parameters may not set {name:?}; hint: use the job's own field for it");
            Err(fatal("bad_params", &detail))
        }
    }
}

/// `body`, asked for as events. Gemini has that in its path.
fn streaming(endpoint: Endpoint, body: String) -> String {
    match endpoint {
        Endpoint::Generate | Endpoint::Embeddings => body,
        Endpoint::Responses | Endpoint::Messages => with(&body, "stream", |_| true.into()),
        Endpoint::Chat => {
            // Without it nobody says what a streamed chat consumed.
            let body = with(&body, "stream_options", |known| {
                let mut options = known.as_object().cloned().unwrap_or_default();
                options.insert("include_usage".to_owned(), true.into());
                options.into()
            });
            with(&body, "stream", |_| true.into())
        }
    }
}

/// An object in which the member `name` is what `change` makes of it, or of null where there is none; the rest stays byte
/// for byte.
fn with(body: &str, name: &str, change: impl FnOnce(&Value) -> Value) -> String {
    let members: BTreeMap<String, &RawValue> = serde_json::from_str(body).unwrap_or_default();
    let known = members.get(name).map(|raw| raw.get());
    let value = change(&known.and_then(|known| serde_json::from_str(known).ok()).unwrap_or_default());
    let replaced = known.and_then(|known| replaced(body, known, &value));
    replaced.unwrap_or_else(|| inserted(body, &format!("\"{name}\":{value}")))
}

/// An object with more members behind its first brace.
fn inserted(body: &str, members: &str) -> String {
    let rest = body.trim_start().strip_prefix('{').unwrap_or_default();
    let comma = if rest.trim_start().starts_with('}') { "" } else { "," };
    format!("{{{members}{comma}{rest}")
}

/// `body` with `part`, a slice of it, replaced by `value`.
pub(crate) fn replaced(body: &str, part: &str, value: &Value) -> Option<String> {
    let at = (part.as_ptr() as usize).checked_sub(body.as_ptr() as usize)?;
    let (before, after) = (body.get(..at)?, body.get(at + part.len()..)?);
    Some(format!("{before}{value}{after}"))
}

fn no_model() -> Failure {
    let detail = "the job names no model and its provider has no default_model; hint: name one with --model";
    fatal("no_model", detail)
}

fn streamed() -> Failure {
    let detail =
        "results are whole; hint: leave \"stream\" out of the request, long answers are streamed here by themselves";
    fatal("stream_not_supported", detail)
}

fn fatal(code: &str, detail: &str) -> Failure {
    Failure::new(FailureClass::Fatal, code, detail)
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
