//! A plain prompt as content to go on from. The model stands in the path.

use promptq_common::outcome::{Failure, FailureClass};
use promptq_common::work::Prompt;
use serde_json::{Map, Value, json};

use crate::provider::Endpoint;
use crate::provider::request::{Draft, OUTPUT_NAMES, largest, untaken};

/// Members of a request itself; every other parameter belongs to how the answer is generated.
const BESIDE: [&str; 8] = [
    "tools",
    "toolConfig",
    "tool_config",
    "safetySettings",
    "safety_settings",
    "cachedContent",
    "cached_content",
    "labels",
];
/// Parameters by the names they have elsewhere.
const NAMES: [(&str, &str); 9] = [
    ("max_tokens", "maxOutputTokens"),
    ("max_completion_tokens", "maxOutputTokens"),
    ("max_output_tokens", "maxOutputTokens"),
    ("top_p", "topP"),
    ("top_k", "topK"),
    ("n", "candidateCount"),
    ("presence_penalty", "presencePenalty"),
    ("frequency_penalty", "frequencyPenalty"),
    ("stop_sequences", "stopSequences"),
];

/// The prompt as the user's turn, the system text in its field, parameters where this API has them.
pub(crate) fn draft(prompt: &Prompt, params: Map<String, Value>) -> Result<Draft, Failure> {
    untaken(&params, &["model", "contents", "messages", "systemInstruction", "system_instruction"])?;
    let mut body = Map::new();
    if let Some(system) = &prompt.system {
        body.insert("systemInstruction".to_owned(), json!({ "parts": [{ "text": system }] }));
    }
    body.insert("contents".to_owned(), json!([{ "role": "user", "parts": [{ "text": prompt.text }] }]));
    let mut config = Map::new();
    for (name, value) in params {
        match name.as_str() {
            "generationConfig" | "generation_config" => {
                let Value::Object(more) = value else {
                    return Err(Failure::new(
                        FailureClass::Fatal,
                        "bad_params",
                        "generationConfig is not a JSON object",
                    ));
                };
                config.extend(more);
            }
            "stop" => {
                let list = if value.is_array() { value } else { json!([value]) };
                config.insert("stopSequences".to_owned(), list);
            }
            known if BESIDE.contains(&known) => {
                body.insert(name, value);
            }
            known => {
                let own = NAMES.iter().find(|(elsewhere, _)| *elsewhere == known).map_or(known, |(_, own)| *own);
                config.insert(own.to_owned(), value);
            }
        }
    }
    let output_max = largest(OUTPUT_NAMES.iter().filter_map(|name| config.get(*name)));
    if !config.is_empty() {
        body.insert("generationConfig".to_owned(), Value::Object(config));
    }
    Ok(Draft { endpoint: Endpoint::Generate, body, output_max })
}
