//! The APIs that are spoken: from a path and a body to what is asked, from an answer to its bytes, whole and as a stream.
//! One file an API; what they share is here.

pub mod anthropic;
pub mod chat;
pub mod embeddings;
pub mod gemini;
pub mod responses;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::answer::Answer;

/// Whose manners apply: how limits are counted, told and refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Api {
    /// `OpenAI`, and servers like it.
    #[serde(rename = "openai")]
    OpenAi,
    /// Anthropic.
    Anthropic,
    /// Gemini.
    Gemini,
}

/// What is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/responses`
    Responses,
    /// `/v1/embeddings`
    Embeddings,
    /// `/v1/messages`
    Messages,
    /// `/v1beta/models/{model}:generateContent`, and `:streamGenerateContent`
    Generate,
}

impl Endpoint {
    /// Whose it is.
    pub fn api(self) -> Api {
        match self {
            Self::Chat | Self::Responses | Self::Embeddings => Api::OpenAi,
            Self::Messages => Api::Anthropic,
            Self::Generate => Api::Gemini,
        }
    }

    /// As the ledger names it.
    pub fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Responses => "/v1/responses",
            Self::Embeddings => "/v1/embeddings",
            Self::Messages => "/v1/messages",
            Self::Generate => "/v1beta/models:generateContent",
        }
    }

    /// An answer in one piece.
    pub fn whole(self, answer: &Answer) -> Value {
        match self {
            Self::Chat => chat::whole(answer),
            Self::Responses => responses::whole(answer, "completed"),
            Self::Embeddings => embeddings::whole(answer),
            Self::Messages => anthropic::whole(answer),
            Self::Generate => gemini::whole(answer),
        }
    }

    /// What comes before the first piece of a stream.
    pub fn opening(self, answer: &Answer) -> String {
        match self {
            Self::Chat => chat::opening(answer),
            Self::Responses => responses::opening(answer),
            Self::Messages => anthropic::opening(answer),
            Self::Embeddings | Self::Generate => String::new(),
        }
    }

    /// One piece of a stream.
    pub fn piece(self, answer: &Answer, at: usize) -> String {
        match self {
            Self::Chat => chat::piece(answer, at),
            Self::Responses => responses::piece(answer, at),
            Self::Messages => anthropic::piece(answer, at),
            Self::Generate => gemini::piece(answer, at),
            Self::Embeddings => String::new(),
        }
    }

    /// What comes after the last piece of a stream.
    pub fn closing(self, answer: &Answer) -> String {
        match self {
            Self::Chat => chat::closing(answer),
            Self::Responses => responses::closing(answer),
            Self::Messages => anthropic::closing(answer),
            Self::Embeddings | Self::Generate => String::new(),
        }
    }
}

/// Where a call goes, from its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// What is called.
    pub endpoint: Endpoint,
    /// A model that the path names (Gemini).
    pub model: Option<String>,
    /// Whether the path asks for a stream (Gemini).
    pub stream: bool,
    /// What stands before the version in the path: callers tell themselves apart by it.
    pub caller: Option<String>,
}

impl Route {
    /// Of a path without its query, such as `/v1/responses` or `/worker-3/v1/responses`; `None` when nothing is there.
    pub fn of(path: &str) -> Option<Self> {
        let (at, gemini) = match path.find("/v1beta/") {
            Some(at) => (at, true),
            None => (path.find("/v1/")?, false),
        };
        let caller = path.get(..at)?.trim_start_matches('/');
        let caller = (!caller.is_empty()).then(|| caller.chars().take(64).collect());
        if gemini {
            let (model, verb) = path.get(at..)?.strip_prefix("/v1beta/models/")?.rsplit_once(':')?;
            let stream = match verb {
                "generateContent" => false,
                "streamGenerateContent" => true,
                _ => return None,
            };
            return Some(Self { endpoint: Endpoint::Generate, model: Some(model.to_owned()), stream, caller });
        }
        let endpoint = match path.get(at..)? {
            "/v1/chat/completions" => Endpoint::Chat,
            "/v1/responses" => Endpoint::Responses,
            "/v1/embeddings" => Endpoint::Embeddings,
            "/v1/messages" => Endpoint::Messages,
            _ => return None,
        };
        Some(Self { endpoint, model: None, stream: false, caller })
    }
}

/// A body that is no call of its endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    /// The model asked for; empty where none can be found.
    pub model: String,
    /// What is wrong with it, for people.
    pub why: String,
}

/// What a call asks for.
#[derive(Clone, Debug)]
pub struct Ask {
    /// What is called.
    pub endpoint: Endpoint,
    /// By its name in the request.
    pub model: String,
    /// Every text of the request, one after the other.
    pub prompt: String,
    /// The first 16 digits of the SHA-256 of these texts.
    pub hash: String,
    /// From the endpoint, the model and the texts: the same for the same request.
    pub about: u64,
    /// The most output tokens.
    pub most: Option<u64>,
    /// Whether the answer is wanted piece by piece.
    pub stream: bool,
    /// Whether a stream of chat ends with its usage.
    pub usage_in_stream: bool,
    /// Texts to embed; 1 elsewhere.
    pub inputs: usize,
    /// Numbers in an embedding, where the request says.
    pub dimensions: Option<usize>,
    /// Whether embeddings are wanted as base64.
    pub base64: bool,
}

impl Ask {
    /// Reads a body.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(route: &Route, body: &[u8]) -> Result<Self, Unread> {
        let body: Result<Value, _> = serde_json::from_slice(body);
        let named = body.as_ref().ok().and_then(|body| body.get("model")?.as_str());
        let model = route.model.as_deref().or(named).unwrap_or_default().to_owned();
        let unread = |why: &str| Unread { model: model.clone(), why: why.to_owned() };
        let body = body.map_err(|_| unread("We could not parse the JSON body of your request."))?;
        if model.is_empty() {
            return Err(unread("you must provide a model parameter"));
        }
        let part = |name: &str| body.get(name).unwrap_or(&Value::Null);
        let (texts, wanted): (&[&str], &str) = match route.endpoint {
            Endpoint::Chat => (&["messages", "tools"], "messages"),
            Endpoint::Responses => (&["instructions", "input", "tools"], "input"),
            Endpoint::Embeddings => (&["input"], "input"),
            Endpoint::Messages => (&["system", "messages", "tools"], "messages"),
            Endpoint::Generate => (&["systemInstruction", "contents", "tools"], "contents"),
        };
        if part(wanted).is_null() {
            return Err(unread(&format!("Missing required parameter: '{wanted}'.")));
        }
        let mut prompt = String::new();
        for name in texts {
            gather(part(name), &mut prompt);
        }
        let most = match route.endpoint {
            Endpoint::Chat => part("max_completion_tokens").as_u64().or_else(|| part("max_tokens").as_u64()),
            Endpoint::Responses => part("max_output_tokens").as_u64(),
            Endpoint::Messages => part("max_tokens").as_u64(),
            Endpoint::Generate => body.pointer("/generationConfig/maxOutputTokens").and_then(Value::as_u64),
            Endpoint::Embeddings => Some(0),
        };
        if route.endpoint == Endpoint::Messages && most.is_none() {
            return Err(unread("max_tokens: Field required"));
        }
        let digest: [u8; 32] = Sha256::digest(prompt.as_bytes()).into();
        let inputs = part("input").as_array().filter(|_| route.endpoint == Endpoint::Embeddings).map_or(1, Vec::len);
        Ok(Self {
            endpoint: route.endpoint,
            hash: format!("{:016x}", first_bits(&digest)),
            about: about(route.endpoint, &model, &digest),
            model,
            prompt,
            most,
            stream: route.endpoint != Endpoint::Embeddings && (route.stream || part("stream") == &Value::Bool(true)),
            usage_in_stream: body.pointer("/stream_options/include_usage") == Some(&Value::Bool(true)),
            inputs,
            dimensions: part("dimensions").as_u64().and_then(|count| usize::try_from(count).ok()),
            base64: part("encoding_format") == "base64",
        })
    }

    /// Input tokens: the bytes of every text by so many for each token, rounded up; at least 1.
    pub fn input_tokens(&self, bytes_per_token: f64) -> u64 {
        let bytes = u32::try_from(self.prompt.len()).unwrap_or(u32::MAX);
        super::random::times(1, (f64::from(bytes) / bytes_per_token).ceil()).max(1)
    }
}

fn about(endpoint: Endpoint, model: &str, digest: &[u8; 32]) -> u64 {
    let named = Sha256::new().chain_update(endpoint.path()).chain_update(model).chain_update(digest).finalize();
    first_bits(&named)
}

fn first_bits(digest: &[u8]) -> u64 {
    digest.iter().take(8).fold(0, |bits, &byte| bits << 8 | u64::from(byte))
}

/// Every text of a request, wherever an API may put one; what it names only to structure itself is no text.
fn gather(value: &Value, into: &mut String) {
    const TEXTS: [&str; 9] =
        ["content", "text", "parts", "arguments", "output", "thinking", "description", "name", "functionDeclarations"];
    match value {
        Value::String(text) => into.push_str(text),
        Value::Array(items) => items.iter().for_each(|item| gather(item, into)),
        Value::Object(fields) => {
            fields.iter().filter(|(name, _)| TEXTS.contains(&name.as_str())).for_each(|(_, part)| gather(part, into));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A server-sent event with a name.
pub(super) fn event(name: &str, data: &Value) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}

/// A server-sent event without one.
pub(super) fn data(data: &Value) -> String {
    format!("data: {data}\n\n")
}

/// A model without the date or `-latest` at its end: its versions share one limit.
pub fn family(model: &str) -> &str {
    let undated = model.strip_suffix("-latest").unwrap_or(model);
    let is_digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let dated = |lengths: &[usize]| {
        let parts: Vec<_> = undated.rsplitn(lengths.len() + 1, '-').collect();
        let fits = parts.len() > lengths.len()
            && parts.iter().zip(lengths).all(|(part, &length)| part.len() == length && is_digits(part));
        let cut = lengths.iter().sum::<usize>() + lengths.len();
        if fits { undated.get(..undated.len() - cut) } else { None }
    };
    dated(&[8]).or_else(|| dated(&[2, 2, 4])).unwrap_or(undated)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(path: &str, body: &str) -> Result<Ask, Unread> {
        Ask::read(&Route::of(path).unwrap(), body.as_bytes())
    }

    #[test]
    fn paths_lead_to_endpoints_and_name_callers() {
        let route = |path: &str| Route::of(path).map(|route| (route.endpoint, route.model, route.stream, route.caller));
        assert_eq!(route("/v1/responses"), Some((Endpoint::Responses, None, false, None)));
        assert_eq!(route("/w3/v1/messages"), Some((Endpoint::Messages, None, false, Some("w3".to_owned()))));
        let gemini = Some("gemini-2.5-pro".to_owned());
        let path = "/v1beta/models/gemini-2.5-pro:streamGenerateContent";
        assert_eq!(route(path), Some((Endpoint::Generate, gemini, true, None)));
        for nowhere in ["/", "/v1/", "/v1/files", "/v1beta/models/x", "/v1beta/models/x:countTokens"] {
            assert_eq!(route(nowhere), None, "{nowhere}");
        }
    }

    #[test]
    fn input_is_counted_from_the_bytes_of_every_text() {
        for (path, body, bytes) in [
            ("/v1/chat/completions", r#"{"model":"m","messages":[{"role":"user","content":"abcde"}]}"#, 5),
            ("/v1/chat/completions", r#"{"model":"m","messages":[{"content":[{"type":"text","text":"äb"}]}]}"#, 3),
            ("/v1/responses", r#"{"model":"m","instructions":"ab","input":"cd"}"#, 4),
            ("/v1/embeddings", r#"{"model":"m","input":["ab","c"]}"#, 3),
            ("/v1/messages", r#"{"model":"m","max_tokens":9,"system":"ab","messages":[{"content":"c"}]}"#, 3),
            ("/v1beta/models/m:generateContent", r#"{"contents":[{"parts":[{"text":"abcd"}]}]}"#, 4),
        ] {
            let ask = ask(path, body).unwrap();
            assert_eq!(ask.prompt.len(), bytes, "{body}");
            assert_eq!(ask.input_tokens(2.0), bytes.div_ceil(2) as u64);
        }
    }

    #[test]
    fn the_most_output_is_found_where_each_api_has_it() {
        for (path, body) in [
            ("/v1/chat/completions", r#"{"model":"m","messages":[],"max_tokens":1,"max_completion_tokens":7}"#),
            ("/v1/responses", r#"{"model":"m","input":"","max_output_tokens":7}"#),
            ("/v1/messages", r#"{"model":"m","messages":[],"max_tokens":7}"#),
            ("/v1beta/models/m:generateContent", r#"{"contents":[],"generationConfig":{"maxOutputTokens":7}}"#),
        ] {
            assert_eq!(ask(path, body).unwrap().most, Some(7), "{body}");
        }
    }

    #[test]
    fn what_is_missing_is_told() {
        for (path, body, says, model) in [
            ("/v1/responses", "{", "JSON", ""),
            ("/v1/responses", r#"{"input":""}"#, "model", ""),
            ("/v1/responses", r#"{"model":"m"}"#, "'input'", "m"),
            ("/v1/messages", r#"{"model":"m","messages":[]}"#, "max_tokens", "m"),
            ("/v1beta/models/m:generateContent", "{", "JSON", "m"),
        ] {
            let unread = ask(path, body).unwrap_err();
            assert!(unread.why.contains(says) && unread.model == model, "{body}: {unread:?}");
        }
    }

    #[test]
    fn versions_of_a_model_are_a_family() {
        for (model, named) in [
            ("gpt-4o-2024-08-06", "gpt-4o"),
            ("claude-sonnet-4-20250514", "claude-sonnet-4"),
            ("x-latest", "x"),
            ("gpt-4o", "gpt-4o"),
            ("20250514", "20250514"),
        ] {
            assert_eq!(family(model), named);
        }
    }
}
