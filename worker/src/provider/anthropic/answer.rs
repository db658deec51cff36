//! From the body of a 200 to a reply. Lenient: a paid answer is never thrown away because a side field looks odd.

use promptq_common::outcome::{Body, Detail, Reply, Usage};
use serde::Deserialize;
use serde_json::Value;

use crate::provider::class::{End, says};
use crate::provider::{Read, owned};

/// Reads the body of a 2xx answer.
pub(crate) fn read(status_code: u16, body: Vec<u8>) -> Read {
    let Ok(body) = String::from_utf8(body) else { return Read::Garbage };
    let Ok(shape) = serde_json::from_str::<Shape>(&body) else { return Read::Garbage };
    let Some(content) = shape.content.as_array() else {
        return if shape.error.is_object() { Read::Failed } else { Read::Garbage };
    };
    let texts: Vec<_> =
        content.iter().filter(|block| block["type"] == "text").filter_map(|block| block["text"].as_str()).collect();
    Read::Answer(Box::new(Reply {
        status_code,
        request_id: owned(&shape.id),
        text: (!texts.is_empty()).then(|| texts.concat()),
        model: owned(&shape.model),
        finish_reason: owned(&shape.stop_reason),
        class: End { reason: &shape.stop_reason, refused: false, holds: content.iter().any(holds) }.class(),
        usage: usage(&shape.usage),
        cost: None,
        detail: Detail {
            cache_write_tokens: written(&shape.usage),
            service_tier: owned(&shape.usage["service_tier"]),
            first_piece: None,
        }
        .kept(),
        origin: None,
        body: Body::Json(body),
    }))
}

/// Whether a block is a part of the answer: what was thought is none.
fn holds(block: &Value) -> bool {
    match block["type"].as_str() {
        Some("text") => block["text"].as_str().is_some_and(says),
        kind => !matches!(kind, Some("thinking" | "redacted_thinking")),
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Shape {
    id: Value,
    model: Value,
    content: Value,
    stop_reason: Value,
    usage: Value,
    error: Value,
}

/// Here the input leaves out what was read from the cache and written to it.
pub(super) fn usage(said: &Value) -> Usage {
    let count = |name: &str| said[name].as_u64().unwrap_or(0);
    let cached = count("cache_read_input_tokens");
    let details = &said["output_tokens_details"];
    let reasoning = ["reasoning_tokens", "thinking_tokens"].iter().find_map(|name| details[*name].as_u64());
    Usage {
        input_tokens: count("input_tokens").saturating_add(cached).saturating_add(written(said)),
        output_tokens: count("output_tokens"),
        cached_tokens: cached,
        reasoning_tokens: reasoning.unwrap_or(0),
    }
}

/// The sum, or its parts by how long they are kept.
fn written(said: &Value) -> u64 {
    let parts = ["ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens"];
    let part = |name: &&str| said["cache_creation"][*name].as_u64();
    said["cache_creation_input_tokens"].as_u64().unwrap_or_else(|| parts.iter().filter_map(part).sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::Endpoint;
    use crate::provider::rows::answered;

    fn answer(body: &str) -> Reply {
        answered(Endpoint::Messages, body)
    }

    #[test]
    fn a_message_is_read_with_its_cache_in_the_input() {
        let body = r#"{"id":"msg_1","type":"message","role":"assistant","model":"claude-x","stop_reason":"end_turn",
            "content":[{"type":"thinking","thinking":"hm","signature":"s"},{"type":"text","text":"Hel"},{"type":"text","text":"lo"}],
            "usage":{"input_tokens":10,"cache_read_input_tokens":200,"cache_creation_input_tokens":30,
            "cache_creation":{"ephemeral_5m_input_tokens":30,"ephemeral_1h_input_tokens":0},
            "output_tokens":9,"output_tokens_details":{"thinking_tokens":4},"service_tier":"batch"}}"#;
        let reply = answer(body);
        assert_eq!(reply.usage, Usage { input_tokens: 240, output_tokens: 9, cached_tokens: 200, reasoning_tokens: 4 });
        let detail = reply.detail.as_deref().unwrap();
        assert_eq!((detail.cache_write_tokens, detail.service_tier.as_deref()), (30, Some("batch")));
        assert_eq!((reply.text.as_deref(), reply.finish_reason.as_deref()), (Some("Hello"), Some("end_turn")));
        assert_eq!((reply.model.as_deref(), reply.request_id.as_deref()), (Some("claude-x"), Some("msg_1")));
        assert_eq!(reply.body, Body::Json(body.to_owned()));
    }

    #[test]
    fn cache_writes_may_be_said_in_parts_and_odd_fields_lose_no_answer() {
        let parts = answer(
            r#"{"content":[],"usage":{"cache_creation":{"ephemeral_5m_input_tokens":3,"ephemeral_1h_input_tokens":4}}}"#,
        );
        assert_eq!((parts.usage.input_tokens, parts.detail.unwrap().cache_write_tokens), (7, 7));
        let odd =
            answer(r#"{"id":5,"usage":"none","content":[{"type":"tool_use","input":{}}],"stop_reason":"tool_use"}"#);
        assert_eq!((odd.text, odd.usage, odd.detail), (None, Usage::default(), None));
    }

    #[test]
    fn what_is_no_answer_is_told_from_a_failure() {
        for body in ["", "{", "[]", "<html>", "{}", r#"{"content":[{"ty"#] {
            assert!(matches!(read(200, body.into()), Read::Garbage), "{body:?}");
        }
        let failed = r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#;
        assert!(matches!(read(200, failed.into()), Read::Failed));
    }
}
