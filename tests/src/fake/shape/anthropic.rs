//! Anthropic's messages: one JSON object, or events with names from `message_start` to `message_stop`.

use serde_json::{Value, json};

use super::event;
use crate::fake::answer::{Answer, Finish};

/// In one piece.
pub(super) fn whole(answer: &Answer) -> Value {
    let text = if answer.finish == Finish::Refused { String::new() } else { answer.text() };
    let mut message = message(answer, answer.output);
    message["content"] = json!([{ "type": "text", "text": text }]);
    message["stop_reason"] = stop_reason(answer).into();
    message
}

/// The start of the message and of its one block, and a ping between them.
pub(super) fn opening(answer: &Answer) -> String {
    let block = json!({ "type": "text", "text": "" });
    [
        event("message_start", &json!({ "type": "message_start", "message": message(answer, 1) })),
        event("content_block_start", &json!({ "type": "content_block_start", "index": 0, "content_block": block })),
        event("ping", &json!({ "type": "ping" })),
    ]
    .concat()
}

/// A piece of text.
pub(super) fn piece(answer: &Answer, at: usize) -> String {
    let Some(piece) = answer.pieces.get(at) else { return String::new() };
    let delta = json!({ "type": "text_delta", "text": piece.text });
    event("content_block_delta", &json!({ "type": "content_block_delta", "index": 0, "delta": delta }))
}

/// The end of the block, the message's stop reason and usage, its end.
pub(super) fn closing(answer: &Answer) -> String {
    let delta = json!({ "stop_reason": stop_reason(answer), "stop_sequence": null });
    let usage = usage(answer, answer.output);
    [
        event("content_block_stop", &json!({ "type": "content_block_stop", "index": 0 })),
        event("message_delta", &json!({ "type": "message_delta", "delta": delta, "usage": usage })),
        event("message_stop", &json!({ "type": "message_stop" })),
    ]
    .concat()
}

fn message(answer: &Answer, output: u64) -> Value {
    json!({
        "id": format!("msg_{}", answer.id),
        "type": "message",
        "role": "assistant",
        "model": answer.model,
        "content": [],
        "stop_reason": null,
        "stop_sequence": null,
        "usage": usage(answer, output),
    })
}

fn stop_reason(answer: &Answer) -> &'static str {
    match answer.finish {
        Finish::Stop => "end_turn",
        Finish::Length => "max_tokens",
        Finish::Refused => "refusal",
    }
}

/// Input here is what was not cached.
fn usage(answer: &Answer, output: u64) -> Value {
    json!({
        "input_tokens": answer.input - answer.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": answer.cached,
        "cache_creation": { "ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0 },
        "output_tokens": output,
        "service_tier": "standard",
    })
}
