//! From a job's work to the bytes that are sent, and what they will probably consume.

use bytes::Bytes;
use promptq_common::outcome::{Failure, FailureClass, Usage};
use promptq_common::work::{Input, Prompt, Work};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::Endpoint;

/// Output tokens assumed where a request sets no limit, and the least assumed where it does: what a limiter reserves
/// before it has seen a model answer.
const OUTPUT_GUESS: u64 = 256;

/// A request, ready to send.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// Where to.
    pub(crate) endpoint: Endpoint,
    /// One JSON object.
    pub(crate) body: Bytes,
    /// The most output tokens it allows, if it says.
    pub(crate) output_max: Option<u64>,
}

impl Request {
    /// Writes the request for `work`. `provider` is the name that a model may carry in front (`NAME/model`), `fallback` the
    /// model for work that names none. A ready-made body is sent byte for byte, but for that name in front of its model.
    ///
    /// # Errors
    /// A `fatal` failure: `no_model`, `bad_params`, `invalid_json`, `unknown_url`, `stream_not_supported`.
    pub(crate) fn new(work: &Work, provider: &str, fallback: Option<&str>) -> Result<Self, Failure> {
        let model = work.model.as_deref().map(|model| bare(model, provider)).or(fallback);
        match &work.input {
            Input::Prompt(prompt) => from_prompt(prompt, model.ok_or_else(no_model)?),
            Input::Request { url, body } => from_body(url, body, provider, model),
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
}

/// A model without the provider's name in front.
pub(crate) fn bare<'a>(model: &'a str, provider: &str) -> &'a str {
    model.strip_prefix(provider).and_then(|rest| rest.strip_prefix('/')).unwrap_or(model)
}

fn from_prompt(prompt: &Prompt, model: &str) -> Result<Request, Failure> {
    let params: Map<String, Value> = match prompt.params.trim() {
        "" => Map::new(),
        text => serde_json::from_str(text).map_err(|_| {
            fatal("bad_params", "the job's parameters are not one JSON object such as {\"max_tokens\":64}")
        })?,
    };
    for taken in ["model", "messages"] {
        if params.contains_key(taken) {
            let detail = format!("parameters may not set {taken:?}; hint: use the job's own field for it");
            return Err(fatal("bad_params", &detail));
        }
    }
    let mut messages = Vec::with_capacity(2);
    if let Some(system) = &prompt.system {
        messages.push(json!({ "role": "system", "content": system }));
    }
    messages.push(json!({ "role": "user", "content": prompt.text }));
    let limits: Limits = serde_json::from_value(Value::Object(params.clone())).unwrap_or_default();
    let mut body = Map::new();
    body.insert("model".to_owned(), model.into());
    body.insert("messages".to_owned(), messages.into());
    body.extend(params);
    ready(Endpoint::Chat, Bytes::from(Value::Object(body).to_string()), &limits)
}

fn from_body(url: &str, body: &str, provider: &str, model: Option<&str>) -> Result<Request, Failure> {
    let Some(endpoint) = Endpoint::of(url) else {
        let detail = "this version serves the urls /v1/chat/completions, /v1/responses and /v1/embeddings";
        return Err(fatal("unknown_url", detail));
    };
    let invalid = || fatal("invalid_json", "the request's body is not one JSON object with a model and parameters");
    if !body.trim_start().starts_with('{') {
        return Err(invalid());
    }
    let head: Head<'_> = serde_json::from_str(body).map_err(|_| invalid())?;
    let limits: Limits = serde_json::from_str(body).map_err(|_| invalid())?;
    let bytes = match head.model {
        None => with_model(body, model.ok_or_else(no_model)?).ok_or_else(invalid)?,
        Some(raw) => {
            let named: String = serde_json::from_str(raw.get()).map_err(|_| invalid())?;
            match bare(&named, provider) {
                same if same == named => Bytes::copy_from_slice(body.as_bytes()),
                bare => replaced(body, raw.get(), bare).ok_or_else(invalid)?,
            }
        }
    };
    ready(endpoint, bytes, &limits)
}

fn ready(endpoint: Endpoint, body: Bytes, limits: &Limits) -> Result<Request, Failure> {
    if limits.stream == true {
        let detail = "answers are not streamed; hint: leave \"stream\" out of the request";
        return Err(fatal("stream_not_supported", detail));
    }
    let output_max = [&limits.max_completion_tokens, &limits.max_output_tokens, &limits.max_tokens]
        .into_iter()
        .find_map(Value::as_u64);
    Ok(Request { endpoint, body, output_max })
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
    max_tokens: Value,
    max_completion_tokens: Value,
    max_output_tokens: Value,
}

/// `body` with its first brace followed by a model.
fn with_model(body: &str, model: &str) -> Option<Bytes> {
    let rest = body.trim_start().strip_prefix('{')?;
    let comma = if rest.trim_start().starts_with('}') { "" } else { "," };
    Some(Bytes::from(format!("{{\"model\":{}{comma}{rest}", Value::from(model))))
}

/// `body` with `part`, a slice of it, replaced by `model` as JSON.
fn replaced(body: &str, part: &str, model: &str) -> Option<Bytes> {
    let at = (part.as_ptr() as usize).checked_sub(body.as_ptr() as usize)?;
    let (before, after) = (body.get(..at)?, body.get(at + part.len()..)?);
    Some(Bytes::from(format!("{before}{}{after}", Value::from(model))))
}

fn no_model() -> Failure {
    let detail = "the job names no model and its provider has no default_model; hint: name one with --model";
    fatal("no_model", detail)
}

fn fatal(code: &str, detail: &str) -> Failure {
    Failure::new(FailureClass::Fatal, code, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(model: Option<&str>, params: &str) -> Work {
        let prompt = Prompt { text: "Hi".into(), system: Some("Be brief".into()), params: params.into() };
        Work { model: model.map(str::to_owned), input: Input::Prompt(prompt) }
    }

    fn line(url: &str, body: &str) -> Work {
        Work { model: Some("m".into()), input: Input::Request { url: url.into(), body: body.into() } }
    }

    fn sent(work: &Work, fallback: Option<&str>) -> Result<String, String> {
        let request = Request::new(work, "local", fallback).map_err(|failure| failure.code)?;
        Ok(String::from_utf8(request.body.to_vec()).unwrap())
    }

    #[test]
    fn a_prompt_becomes_a_chat_with_its_parameters() {
        let said = r#""messages":[{"role":"system","content":"Be brief"},{"role":"user","content":"Hi"}]"#;
        assert_eq!(sent(&prompt(Some("local/a/b"), ""), None).unwrap(), format!(r#"{{"model":"a/b",{said}}}"#));
        assert_eq!(
            sent(&prompt(None, r#"{"max_tokens":64,"seed":7}"#), Some("d")).unwrap(),
            format!(r#"{{"model":"d",{said},"max_tokens":64,"seed":7}}"#)
        );
        for (params, code) in [
            ("[]", "bad_params"),
            ("{", "bad_params"),
            (r#"{"model":"x"}"#, "bad_params"),
            (r#"{"messages":[]}"#, "bad_params"),
            (r#"{"stream":true}"#, "stream_not_supported"),
        ] {
            assert_eq!(sent(&prompt(Some("m"), params), None).unwrap_err(), code, "{params}");
        }
        assert_eq!(sent(&prompt(None, ""), None).unwrap_err(), "no_model");
    }

    #[test]
    fn a_ready_made_body_is_sent_byte_for_byte() {
        let body = "{ \"model\" : \"gpt\\u002d4\",\n \"x\":1.50, \"input\":\"a\",\"x\":2 }";
        assert_eq!(sent(&line("/v1/embeddings", body), None).unwrap(), body);
        let named = r#"{"a": 1e2, "model": "local\/gpt", "z": []}"#;
        assert_eq!(sent(&line("/v1/responses", named), None).unwrap(), r#"{"a": 1e2, "model": "gpt", "z": []}"#);
        assert_eq!(sent(&line("/v1/responses", " {\"a\":1}"), None).unwrap(), r#"{"model":"m","a":1}"#);
        assert_eq!(sent(&line("/v1/responses", "{ }"), None).unwrap(), r#"{"model":"m" }"#);
        for (url, body, code) in [
            ("/v1/files", "{}", "unknown_url"),
            ("/v1/../admin", "{}", "unknown_url"),
            ("/v1/responses", r#"["m"]"#, "invalid_json"),
            ("/v1/responses", r#"{"model":5}"#, "invalid_json"),
            ("/v1/responses", r#"{"model":"m","stream":true}"#, "stream_not_supported"),
        ] {
            assert_eq!(sent(&line(url, body), None).unwrap_err(), code, "{url} {body}");
        }
    }

    #[test]
    fn what_a_cut_request_consumed_is_estimated() {
        let estimate = |params: &str| Request::new(&prompt(Some("m"), params), "local", None).unwrap().estimate();
        assert_eq!(estimate("").output_tokens, 256);
        assert_eq!(estimate(r#"{"max_tokens":100}"#).output_tokens, 100);
        assert_eq!(estimate(r#"{"max_completion_tokens":4000}"#).output_tokens, 1_000);
        assert!(estimate("").input_tokens > 20);
    }
}
