//! Streamed chat completions and responses, put together.

use promptq_common::outcome::Usage;
use serde_json::{Map, Value, json};

use super::answer::usage;
use crate::provider::merge::{MOST, lay, members, replace};
use crate::provider::stream::{Piece, error};

/// A chat completion out of its chunks.
#[derive(Debug, Default)]
pub(crate) struct Chat {
    head: Map<String, Value>,
    choices: Vec<Value>,
    pub(crate) size: usize,
    pub(crate) has_content: bool,
}

impl Chat {
    /// Takes a chunk: deltas are laid over the choices' messages, everything else is the latest that was said.
    pub(crate) fn push(&mut self, mut chunk: Map<String, Value>) -> Piece {
        if let Some(said) = chunk.remove("error").filter(|said| !said.is_null()) {
            return error(said);
        }
        let choices = chunk.remove("choices");
        for (key, value) in chunk {
            replace(self.head.entry(key).or_insert(Value::Null), value, &mut self.size);
        }
        let Some(Value::Array(choices)) = choices else { return Piece::Part };
        for choice in choices {
            let Value::Object(choice) = choice else { return Piece::Odd };
            self.choice(choice);
            if self.choices.len() > MOST {
                return Piece::Odd;
            }
        }
        Piece::Part
    }

    fn choice(&mut self, piece: Map<String, Value>) {
        let index = piece.get("index").and_then(Value::as_u64).unwrap_or(0);
        let known = self.choices.iter().position(|known| known["index"] == index);
        let at = known.unwrap_or_else(|| {
            self.choices.push(json!({ "index": index, "message": { "role": "assistant", "content": null } }));
            self.choices.len() - 1
        });
        let Some(whole) = self.choices[at].as_object_mut() else { return };
        for (key, value) in piece {
            match key.as_str() {
                "index" => {}
                "delta" => {
                    let message = whole.get_mut("message").and_then(Value::as_object_mut);
                    if let (Some(message), Value::Object(delta)) = (message, value) {
                        self.has_content |= delta.iter().any(|(name, value)| name != "role" && says(value));
                        members(message, delta, &mut self.size);
                    }
                }
                "logprobs" => lay(whole.entry(key).or_insert(Value::Null), value, &mut self.size),
                _ => replace(whole.entry(key).or_insert(Value::Null), value, &mut self.size),
            }
        }
    }

    /// What has been said of the usage so far.
    pub(crate) fn usage(&self) -> Usage {
        self.head.get("usage").map(usage).unwrap_or_default()
    }

    /// The completion, once every choice has its end, be it a refusal. A stream that is cut behind that has lost no more than
    /// its usage.
    pub(crate) fn body(mut self) -> Option<Value> {
        let ended = |choice: &Value| {
            choice["finish_reason"].is_string() || choice.get("error").is_some_and(|said| !said.is_null())
        };
        if self.choices.is_empty() || !self.choices.iter().all(ended) {
            return None;
        }
        self.choices.sort_by_key(|choice| choice["index"].as_u64());
        for choice in &mut self.choices {
            let calls = choice.pointer_mut("/message/tool_calls").and_then(Value::as_array_mut);
            for call in calls.into_iter().flatten().filter_map(Value::as_object_mut) {
                call.remove("index");
            }
        }
        self.head.insert("object".to_owned(), "chat.completion".into());
        self.head.insert("choices".to_owned(), self.choices.into());
        Some(Value::Object(self.head))
    }
}

/// Whether a member of a delta holds anything.
fn says(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => true,
    }
}

/// A response: its last event holds all of it.
#[derive(Debug, Default)]
pub(crate) struct Responses {
    whole: Option<Value>,
    pub(crate) size: usize,
    pub(crate) has_content: bool,
}

impl Responses {
    /// Takes an event.
    pub(crate) fn push(&mut self, mut event: Map<String, Value>) -> Piece {
        let kind = event.get("type").and_then(Value::as_str).unwrap_or_default();
        match kind {
            "response.completed" | "response.incomplete" | "response.failed" => {
                self.whole = event.remove("response");
                Piece::Last
            }
            "error" => {
                let nested = event.remove("error").filter(Value::is_object);
                error(nested.unwrap_or(Value::Object(event)))
            }
            kind => {
                self.has_content |= kind.rsplit('.').next() == Some("delta");
                Piece::Part
            }
        }
    }

    /// The response, whole or failed; `None` while its last event is missing.
    pub(crate) fn body(self) -> Option<Value> {
        self.whole
    }
}

#[cfg(test)]
mod tests {
    use crate::provider::merge::MOST;
    use crate::provider::{Assembly, Endpoint, Piece};
    use serde_json::{Value, json};

    fn body(endpoint: Endpoint, events: &[&str]) -> Option<Value> {
        let mut assembly = Assembly::of(endpoint);
        for event in events {
            assert!(matches!(assembly.push(event.as_bytes()), Piece::Part | Piece::Last), "{event}");
        }
        assembly.body().map(|body| serde_json::from_slice(&body).unwrap())
    }

    const CHUNKS: [&str; 6] = [
        r#"{"id":"c","object":"chat.completion.chunk","model":"m","service_tier":"flex","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}],"usage":null}"#,
        r#"{"id":"c","object":"chat.completion.chunk","model":"m","choices":[{"index":0,"delta":{"content":"Hel"},"finish_reason":null}]}"#,
        r#"{"id":"c","model":"m","choices":[{"index":0,"delta":{"content":"lo","tool_calls":[{"index":0,"id":"t","type":"function","function":{"name":"f","arguments":""}}]}}]}"#,
        r#"{"id":"c","model":"m","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{}"}}]}}]}"#,
        r#"{"id":"c","model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#,
        r#"{"id":"c","model":"m","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}"#,
    ];

    #[test]
    fn a_chat_in_chunks_has_the_body_of_a_whole_one() {
        let whole = json!({
            "id": "c", "object": "chat.completion", "model": "m", "service_tier": "flex",
            "usage": { "prompt_tokens": 3, "completion_tokens": 2 },
            "choices": [{ "index": 0, "finish_reason": "stop", "message": {
                "role": "assistant", "content": "Hello",
                "tool_calls": [{ "id": "t", "type": "function", "function": { "name": "f", "arguments": "{}" } }],
            } }],
        });
        assert_eq!(body(Endpoint::Chat, &[&CHUNKS[..], &["[DONE]"]].concat()), Some(whole));
    }

    #[test]
    fn a_chat_without_its_end_is_none() {
        for cut in 0..5 {
            assert_eq!(body(Endpoint::Chat, &CHUNKS[..cut]), None, "{cut}");
        }
        assert!(body(Endpoint::Chat, &CHUNKS[..5]).is_some());
        assert_eq!(body(Endpoint::Chat, &["[DONE]"]), None);
    }

    #[test]
    fn a_choice_that_failed_takes_no_other_with_it() {
        let chunks = [
            r#"{"choices":[{"index":1,"delta":{"content":"Hi"},"finish_reason":"stop"}]}"#,
            r#"{"choices":[{"index":0,"delta":{},"error":{"code":502,"message":"gone"}}]}"#,
        ];
        assert_eq!(body(Endpoint::Chat, &chunks).unwrap()["choices"][1]["message"]["content"], "Hi");
        let many: Vec<_> = (0..=MOST).map(|index| json!({ "index": index, "delta": {} })).collect();
        let many = json!({ "choices": many }).to_string();
        assert_eq!(Assembly::of(Endpoint::Chat).push(many.as_bytes()), Piece::Odd);
    }

    #[test]
    fn a_long_stream_of_small_chunks_is_as_large_as_what_it_says() {
        let mut assembly = Assembly::of(Endpoint::Chat);
        assembly.push(CHUNKS[0].as_bytes());
        assert!(!assembly.has_content());
        for _ in 0..200_000 {
            assembly.push(CHUNKS[1].as_bytes());
        }
        assert!(assembly.has_content());
        assert!((600_000..610_000).contains(&assembly.size()), "{}", assembly.size());
        assembly.push(CHUNKS[4].as_bytes());
        assembly.push(CHUNKS[5].as_bytes());
        assert_eq!((assembly.usage().input_tokens, assembly.usage().output_tokens), (3, 2));
        let body: Value = serde_json::from_slice(&assembly.body().unwrap()).unwrap();
        assert_eq!(body["choices"][0]["message"]["content"].as_str().unwrap().len(), 600_000);
        assert_eq!((&body["id"], &body["model"]), (&json!("c"), &json!("m")));
    }

    #[test]
    fn a_response_is_what_its_last_event_holds() {
        let created = r#"{"type":"response.created","response":{"id":"r","status":"in_progress","output":[]}}"#;
        let delta = r#"{"type":"response.output_text.delta","delta":"Hi"}"#;
        let last = r#"{"type":"response.completed","response":{"id":"r","status":"completed","output":[]}}"#;
        assert_eq!(body(Endpoint::Responses, &[created, delta]), None);
        assert_eq!(
            body(Endpoint::Responses, &[created, delta, last]),
            Some(json!({ "id": "r", "status": "completed", "output": [] }))
        );
    }

    #[test]
    fn an_error_in_the_middle_becomes_the_body_of_a_refusal() {
        for (endpoint, event, code) in [
            (
                Endpoint::Chat,
                r#"{"error":{"message":"slow","type":"server_error","code":"rate_limit_exceeded"}}"#,
                "rate_limit_exceeded",
            ),
            (
                Endpoint::Responses,
                r#"{"type":"error","code":"server_error","message":"x","param":null}"#,
                "server_error",
            ),
            (Endpoint::Responses, r#"{"type":"error","error":{"code":"slow_down"}}"#, "slow_down"),
        ] {
            let Piece::Error(body) = Assembly::of(endpoint).push(event.as_bytes()) else { panic!("{event}") };
            let body: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body["error"]["code"], code);
        }
        assert_eq!(Assembly::of(Endpoint::Chat).push(b"{\"half"), Piece::Odd);
    }
}
