//! A streamed message, put together.

use promptq_common::outcome::Usage;
use serde_json::{Map, Value};

use super::answer::usage;
use crate::provider::merge::{bytes, members, replace};
use crate::provider::stream::{Piece, error};

/// The most blocks of a message: each cited sentence is one of its own, and an answer of 128,000 tokens has some thousands.
const MOST: usize = 4_096;

/// A message out of its events.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    message: Map<String, Value>,
    blocks: Vec<(u64, Block)>,
    pub(crate) size: usize,
    pub(crate) has_content: bool,
}

/// A block of content, and its input as far as it has come in pieces of JSON.
#[derive(Debug)]
struct Block {
    whole: Map<String, Value>,
    input: String,
}

impl Messages {
    /// Takes an event.
    pub(crate) fn push(&mut self, mut event: Map<String, Value>) -> Piece {
        let index = event.get("index").and_then(Value::as_u64).unwrap_or(0);
        let kind = event.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        match kind.as_str() {
            "error" => return error(event.remove("error").unwrap_or_default()),
            "message_stop" => return Piece::Last,
            "message_start" => {
                if let Some(Value::Object(message)) = event.remove("message") {
                    self.size += message.values().map(bytes).sum::<usize>();
                    self.message = message;
                }
            }
            "content_block_start" if self.blocks.len() >= MOST => return Piece::Odd,
            "content_block_start" => {
                if let Some(Value::Object(whole)) = event.remove("content_block") {
                    self.has_content |=
                        whole.get("text").is_some_and(|text| text.as_str().is_some_and(|text| !text.is_empty()));
                    self.size += whole.values().map(bytes).sum::<usize>();
                    self.blocks.push((index, Block { whole, input: String::new() }));
                }
            }
            "content_block_delta" => {
                self.has_content = true;
                if let Some(Value::Object(delta)) = event.remove("delta") {
                    self.delta(index, delta);
                }
            }
            "message_delta" => {
                self.latest("delta", &mut event);
                self.latest("usage", &mut event);
            }
            _ => {}
        }
        Piece::Part
    }

    fn delta(&mut self, index: u64, mut delta: Map<String, Value>) {
        let Some((_, block)) = self.blocks.iter_mut().rev().find(|(known, _)| *known == index) else { return };
        delta.remove("type");
        if let Some(Value::String(more)) = delta.remove("partial_json") {
            self.size += more.len();
            block.input.push_str(&more);
        }
        if let Some(citation) = delta.remove("citation") {
            delta.insert("citations".to_owned(), Value::Array(vec![citation]));
        }
        members(&mut block.whole, delta, &mut self.size);
    }

    /// The end of the message: each member is the latest that was said. Usage has a place of its own.
    fn latest(&mut self, part: &str, event: &mut Map<String, Value>) {
        let Some(Value::Object(said)) = event.remove(part) else { return };
        let target = match part {
            "usage" => {
                let usage = self.message.entry("usage").or_insert_with(|| Value::Object(Map::new()));
                let Some(usage) = usage.as_object_mut() else { return };
                usage
            }
            _ => &mut self.message,
        };
        for (key, value) in said {
            replace(target.entry(key).or_insert(Value::Null), value, &mut self.size);
        }
    }

    /// What has been said of the usage so far.
    pub(crate) fn usage(&self) -> Usage {
        self.message.get("usage").map(usage).unwrap_or_default()
    }

    /// The message, once it was said why it stopped.
    pub(crate) fn body(mut self) -> Option<Value> {
        if !self.message.get("stop_reason").is_some_and(Value::is_string) {
            return None;
        }
        self.blocks.sort_by_key(|(index, _)| *index);
        let content = self.blocks.into_iter().map(|(_, block)| block.finished()).collect();
        self.message.insert("content".to_owned(), Value::Array(content));
        Some(Value::Object(self.message))
    }
}

impl Block {
    /// The block with its input read. One that was cut by the limit of tokens is kept as the text it is.
    fn finished(mut self) -> Value {
        if !self.input.is_empty() {
            let input = serde_json::from_str(&self.input).unwrap_or(Value::String(self.input));
            self.whole.insert("input".to_owned(), input);
        }
        Value::Object(self.whole)
    }
}

#[cfg(test)]
mod tests {
    use super::MOST;
    use crate::provider::{Assembly, Endpoint, Piece};
    use serde_json::{Value, json};

    const EVENTS: [&str; 12] = [
        r#"{"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","model":"claude-x","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":25,"cache_read_input_tokens":5,"output_tokens":1,"service_tier":"standard"}}}"#,
        r#"{"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"hm"}}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"sig"}}"#,
        r#"{"type":"content_block_start","index":1,"content_block":{"type":"text","text":""}}"#,
        r#"{"type":"ping"}"#,
        r#"{"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"Hello"}}"#,
        r#"{"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"!"}}"#,
        r#"{"type":"content_block_start","index":2,"content_block":{"type":"tool_use","id":"t","name":"f","input":{}}}"#,
        r#"{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"{\"a\":"}}"#,
        r#"{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"1}"}}"#,
        r#"{"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":15}}"#,
    ];

    fn body(events: &[&str]) -> Option<Value> {
        let mut assembly = Assembly::of(Endpoint::Messages);
        for event in events {
            assert_eq!(assembly.push(event.as_bytes()), Piece::Part, "{event}");
        }
        assert!(assembly.size() >= events.len());
        assembly.body().map(|body| serde_json::from_slice(&body).unwrap())
    }

    #[test]
    fn a_message_in_events_has_the_body_of_a_whole_one() {
        let whole = json!({
            "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x",
            "content": [
                { "type": "thinking", "thinking": "hm", "signature": "sig" },
                { "type": "text", "text": "Hello!" },
                { "type": "tool_use", "id": "t", "name": "f", "input": { "a": 1 } },
            ],
            "stop_reason": "end_turn", "stop_sequence": null,
            "usage": { "input_tokens": 25, "cache_read_input_tokens": 5, "output_tokens": 15, "service_tier": "standard" },
        });
        assert_eq!(body(&EVENTS), Some(whole));
        let stop = Assembly::of(Endpoint::Messages).push(br#"{"type":"message_stop"}"#);
        assert_eq!(stop, Piece::Last);
    }

    #[test]
    fn usage_and_content_are_known_on_the_way() {
        let mut assembly = Assembly::of(Endpoint::Messages);
        assembly.push(EVENTS[0].as_bytes());
        assembly.push(EVENTS[1].as_bytes());
        assert!(!assembly.has_content());
        assembly.push(EVENTS[2].as_bytes());
        assert!(assembly.has_content());
        assert_eq!((assembly.usage().input_tokens, assembly.usage().output_tokens), (30, 1));
        for _ in 1..MOST {
            assert_eq!(assembly.push(EVENTS[4].as_bytes()), Piece::Part);
        }
        assert_eq!(assembly.push(EVENTS[4].as_bytes()), Piece::Odd);
    }

    #[test]
    fn a_message_without_its_end_is_none() {
        for cut in 0..EVENTS.len() {
            assert_eq!(body(&EVENTS[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn an_error_in_the_middle_becomes_the_body_of_a_refusal() {
        let event = br#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#;
        let Piece::Error(body) = Assembly::of(Endpoint::Messages).push(event) else { panic!("no error") };
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["error"]["type"], "overloaded_error");
    }
}
