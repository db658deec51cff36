//! What to run: a model name and an input. Which runner serves it is the worker's choice.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// One prompt or one ready-made request, and the model it is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// The model as submitted: a provider's model, `mock`, `exec:ARGV`, or a runner's name from the worker's config.
    pub model: Option<String>,
    /// What to send.
    pub input: Input,
}

/// The two shapes of input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input {
    /// Text, sent as the user's message (chat) or on standard input (exec).
    Prompt(Prompt),
    /// A request body made elsewhere (an OpenAI Batch line), sent untouched.
    Request {
        /// The endpoint's path, such as `/v1/chat/completions`.
        url: String,
        /// The JSON body, byte for byte as submitted.
        body: String,
    },
}

/// A plain prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prompt {
    /// The user's text.
    pub text: String,
    /// The system text, if any.
    pub system: Option<String>,
    /// Request parameters as one JSON object (`{"max_tokens":64}`); empty for none.
    pub params: String,
}

impl Work {
    /// A plain prompt for `model`.
    pub fn prompt(model: Option<&str>, text: impl Into<String>) -> Self {
        let prompt = Prompt { text: text.into(), ..Prompt::default() };
        Self { model: model.map(str::to_owned), input: Input::Prompt(prompt) }
    }

    /// How many bytes of text it holds.
    pub fn size(&self) -> usize {
        let texts = match &self.input {
            Input::Prompt(prompt) => {
                prompt.text.len() + prompt.system.as_ref().map_or(0, String::len) + prompt.params.len()
            }
            Input::Request { url, body } => url.len() + body.len(),
        };
        texts + self.model.as_ref().map_or(0, String::len)
    }

    /// Feeds everything that makes this work what it is into `hash`, length-prefixed.
    pub(crate) fn hash_into(&self, hash: &mut Sha256) {
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        part(self.model.as_deref().unwrap_or("").as_bytes());
        match &self.input {
            Input::Prompt(prompt) => {
                part(b"prompt");
                part(prompt.text.as_bytes());
                part(prompt.system.as_deref().unwrap_or("").as_bytes());
                part(prompt.params.as_bytes());
            }
            Input::Request { url, body } => {
                part(b"request");
                part(url.as_bytes());
                part(body.as_bytes());
            }
        }
    }
}

/// A model without the date or `-latest` at its end: its versions share one limit, and mostly one price.
pub fn family(model: &str) -> &str {
    let undated = model.strip_suffix("-latest").unwrap_or(model);
    for digits in [&[4, 2, 2][..], &[8][..]] {
        let mut rest = undated;
        let dated = digits.iter().rev().all(|&count| match rest.rsplit_once('-') {
            Some((before, last)) if last.len() == count && last.bytes().all(|b| b.is_ascii_digit()) => {
                rest = before;
                true
            }
            _ => false,
        });
        if dated {
            return rest;
        }
    }
    undated
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_a_model_share_a_family() {
        for (model, is) in [
            ("gpt-4o-2024-08-06", "gpt-4o"),
            ("claude-3-5-haiku-20241022", "claude-3-5-haiku"),
            ("claude-3-5-haiku-latest", "claude-3-5-haiku"),
            ("gpt-4o-mini", "gpt-4o-mini"),
            ("o3-08-06", "o3-08-06"),
            ("", ""),
        ] {
            assert_eq!(family(model), is);
        }
    }
}
