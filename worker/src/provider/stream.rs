//! A streamed answer put together: from its events to the body that a whole answer has. What the events of each API mean
//! is its own `stream.rs`.

use promptq_common::outcome::Usage;
use serde_json::Value;

use super::Endpoint;
use super::anthropic::stream::Messages;
use super::gemini::stream::Generate;
use super::openai::stream::{Chat, Responses};

/// An answer as far as it has come.
#[derive(Debug)]
pub(crate) enum Assembly {
    /// Chunks of a chat completion.
    Chat(Chat),
    /// Events of a response.
    Responses(Responses),
    /// Events of a message.
    Messages(Messages),
    /// Pieces of generated content.
    Generate(Generate),
}

/// What an event was.
#[derive(Debug, PartialEq)]
pub(crate) enum Piece {
    /// A part of the answer, or nothing of interest.
    Part,
    /// The last one: nothing else is waited for.
    Last,
    /// The provider's way to say in the middle that it failed, as the body of a refusal.
    Error(Vec<u8>),
    /// No event of this API.
    Odd,
}

impl Assembly {
    /// Nothing yet of an answer of this endpoint.
    pub(crate) fn of(endpoint: Endpoint) -> Self {
        match endpoint {
            Endpoint::Chat | Endpoint::Embeddings => Self::Chat(Chat::default()),
            Endpoint::Responses => Self::Responses(Responses::default()),
            Endpoint::Messages => Self::Messages(Messages::default()),
            Endpoint::Generate => Self::Generate(Generate::default()),
        }
    }

    /// Takes the data of one event.
    pub(crate) fn push(&mut self, data: &[u8]) -> Piece {
        if data == b"[DONE]" {
            return Piece::Last;
        }
        let Ok(Value::Object(event)) = serde_json::from_slice(data) else { return Piece::Odd };
        match self {
            Self::Chat(chat) => chat.push(event),
            Self::Responses(response) => response.push(event),
            Self::Messages(message) => message.push(event),
            Self::Generate(content) => content.push(event),
        }
    }

    /// About how many bytes it has so far.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Chat(chat) => chat.size,
            Self::Responses(response) => response.size,
            Self::Messages(message) => message.size,
            Self::Generate(content) => content.size,
        }
    }

    /// Whether something of the answer's content has come, which is paid for.
    pub(crate) fn has_content(&self) -> bool {
        match self {
            Self::Chat(chat) => chat.has_content,
            Self::Responses(response) => response.has_content,
            Self::Messages(message) => message.has_content,
            Self::Generate(content) => content.has_content,
        }
    }

    /// What has been said of the usage so far.
    pub(crate) fn usage(&self) -> Usage {
        match self {
            Self::Chat(chat) => chat.usage(),
            Self::Responses(_) => Usage::default(),
            Self::Messages(message) => message.usage(),
            Self::Generate(content) => content.usage(),
        }
    }

    /// The body; `None` where the stream ended before the answer did.
    pub(crate) fn body(self) -> Option<Vec<u8>> {
        let body = match self {
            Self::Chat(chat) => chat.body(),
            Self::Responses(response) => response.body(),
            Self::Messages(message) => message.body(),
            Self::Generate(content) => content.body(),
        };
        body.map(|body| body.to_string().into_bytes())
    }
}

/// The body of a refusal around what an event says of an error.
pub(super) fn error(said: Value) -> Piece {
    let mut body = serde_json::Map::new();
    body.insert("error".to_owned(), said);
    Piece::Error(Value::Object(body).to_string().into_bytes())
}
