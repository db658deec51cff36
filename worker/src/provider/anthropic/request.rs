//! A plain prompt as a message.

use promptq_common::outcome::Failure;
use promptq_common::work::Prompt;
use serde_json::{Map, Value, json};

use crate::provider::Endpoint;
use crate::provider::request::{Draft, output_max, untaken};

/// The API wants a limit; this one every model of it has room for. An answer that meets it says so (`max_tokens`).
const OUTPUT_MAX: u64 = 4_096;
/// The limit's names elsewhere.
const LIMITS: [&str; 3] = ["max_completion_tokens", "max_output_tokens", "max_tokens"];

/// The prompt as the user's message, the system text in its field. Parameters go beside it as they are, but for the limit's
/// and the stop words' names in other APIs.
pub(crate) fn draft(prompt: &Prompt, model: &str, mut params: Map<String, Value>) -> Result<Draft, Failure> {
    untaken(&params, &["model", "messages", "system"])?;
    let most = output_max(&params).unwrap_or(OUTPUT_MAX);
    params.retain(|name, _| !LIMITS.contains(&name.as_str()));
    if let Some(stop) = params.remove("stop") {
        params.insert("stop_sequences".to_owned(), if stop.is_array() { stop } else { json!([stop]) });
    }
    let mut body = Map::new();
    body.insert("model".to_owned(), model.into());
    body.insert("max_tokens".to_owned(), most.into());
    if let Some(system) = &prompt.system {
        body.insert("system".to_owned(), system.clone().into());
    }
    body.insert("messages".to_owned(), json!([{ "role": "user", "content": prompt.text }]));
    body.extend(params);
    Ok(Draft { endpoint: Endpoint::Messages, body, output_max: Some(most) })
}
