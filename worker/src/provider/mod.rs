//! What each provider's API looks like: how a request is written, an answer read, a stream put together and a failure
//! classed. Nothing here touches the network; `runner/chat` does.

pub(crate) mod allowance;
mod anthropic;
mod class;
mod delay;
mod form;
mod gemini;
mod merge;
mod openai;
mod refusal;
pub(crate) mod request;
#[cfg(test)]
mod rows;
pub(crate) mod sse;
mod stream;

use promptq_common::config::Api;
use promptq_common::line::model_in;
use promptq_common::outcome::{AnswerClass, Failure, Reply};
use promptq_common::time::Timestamp;
use serde_json::Value;

pub(crate) use refusal::{Refusal, secrets};
pub(crate) use stream::{Assembly, Piece};

/// The endpoints served; requests and answers of each have a shape of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/responses`
    Responses,
    /// `/v1/embeddings`
    Embeddings,
    /// `/v1/messages`
    Messages,
    /// `/v1beta/models/MODEL:generateContent`
    Generate,
}

impl Endpoint {
    /// The endpoint of a request's url, as a batch line names it.
    pub(crate) fn of(url: &str) -> Option<Self> {
        match url {
            "/v1/chat/completions" => Some(Self::Chat),
            "/v1/responses" => Some(Self::Responses),
            "/v1/embeddings" => Some(Self::Embeddings),
            "/v1/messages" => Some(Self::Messages),
            url => model_in(url).map(|_| Self::Generate),
        }
    }

    /// The API it belongs to.
    pub(crate) const fn api(self) -> Api {
        match self {
            Self::Chat | Self::Responses | Self::Embeddings => Api::OpenAi,
            Self::Messages => Api::Anthropic,
            Self::Generate => Api::Gemini,
        }
    }
}

/// What a 200 turned out to be.
#[derive(Debug)]
pub(crate) enum Read {
    /// An answer.
    Answer(Box<Reply>),
    /// The endpoint's way to say after all that it failed: to be classed.
    Failed,
    /// Not an answer of this endpoint: no JSON object, or without the part that answers.
    Garbage,
}

/// Reads the body of a 2xx answer to a request with this body.
pub(crate) fn read(endpoint: Endpoint, asked: &[u8], status_code: u16, body: Vec<u8>) -> Read {
    let mut read = match endpoint.api() {
        Api::OpenAi => openai::answer::read(endpoint, status_code, body),
        Api::Anthropic => anthropic::answer::read(status_code, body),
        Api::Gemini => gemini::answer::read(status_code, body),
    };
    if let Read::Answer(reply) = &mut read
        && matches!(reply.class, AnswerClass::Complete | AnswerClass::Unknown)
        && !class::is_call(reply.finish_reason.as_deref())
        && reply.text.as_ref().is_some_and(|text| !form::fits(asked, text))
    {
        reply.class = AnswerClass::InvalidOutput;
    }
    read
}

/// The most characters kept of a model's name, an id, a reason or a tier as a provider says it.
const SAID: usize = 200;

/// A text out of an answer, cut to [`SAID`] characters.
fn owned(value: &Value) -> Option<String> {
    value.as_str().map(|text| text.chars().take(SAID).collect())
}

/// Classes a refusal. `secrets` are texts (prompt, key) that the failure's detail must not repeat.
pub(crate) fn classify(api: Api, refusal: Refusal<'_>, secrets: &[&str], now: Timestamp) -> Failure {
    match api {
        Api::OpenAi => openai::failure::classify(refusal, secrets, now),
        Api::Anthropic => anthropic::failure::classify(refusal, secrets, now),
        Api::Gemini => gemini::failure::classify(refusal, secrets, now),
    }
}
