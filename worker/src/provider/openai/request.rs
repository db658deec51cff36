//! A plain prompt as a chat completion.

use promptq_common::outcome::Failure;
use promptq_common::work::Prompt;
use serde_json::{Map, Value, json};

use crate::provider::Endpoint;
use crate::provider::request::{Draft, largest, untaken};

/// The prompt as the user's message; parameters go beside it as they are.
pub(crate) fn draft(prompt: &Prompt, model: &str, params: Map<String, Value>) -> Result<Draft, Failure> {
    untaken(&params, &["model", "messages"])?;
    let mut messages = Vec::with_capacity(2);
    if let Some(system) = &prompt.system {
        messages.push(json!({ "role": "system", "content": system }));
    }
    messages.push(json!({ "role": "user", "content": prompt.text }));
    let output_max = largest(["max_completion_tokens", "max_tokens"].iter().filter_map(|name| params.get(*name)));
    let mut body = Map::new();
    body.insert("model".to_owned(), model.into());
    body.insert("messages".to_owned(), messages.into());
    body.extend(params);
    Ok(Draft { endpoint: Endpoint::Chat, body, output_max })
}
