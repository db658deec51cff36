//! The fake provider: what it says in each API, how it refuses, breaks and counts.

mod bill;
mod clients;
mod faults;
mod limits;
mod program;
mod raw;
mod shapes;
mod streams;

use promptq_tests::fake::Fake;
use promptq_tests::fake::config::Config;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const MESSAGES: &str = "/v1/messages";
/// 40 tokens, of which 10 are reasoning, and half of the input from a cache.
const SPLIT: &str = "[answer]\noutput = { fixed = 40 }\ncached = 0.5\nreasoning = 0.25";

/// One with this configuration, as TOML.
fn fake(config: &str) -> Fake {
    let config: Config = toml::from_str(config).unwrap();
    Fake::start(config, 7).unwrap()
}

fn chat(text: &str) -> Value {
    json!({ "model": "gpt-4o-2024-08-06", "messages": [{ "role": "user", "content": text }], "max_tokens": 100 })
}

fn message(text: &str) -> Value {
    json!({ "model": "claude-sonnet-4", "messages": [{ "role": "user", "content": text }], "max_tokens": 100 })
}

fn contents(text: &str) -> Value {
    json!({ "contents": [{ "role": "user", "parts": [{ "text": text }] }] })
}

/// The same with `"stream": true`.
fn streamed(mut body: Value) -> Value {
    body["stream"] = true.into();
    body
}
