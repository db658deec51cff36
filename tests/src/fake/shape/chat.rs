//! `OpenAI`'s chat completions: one JSON object, or events without names that end with `[DONE]`.

use serde_json::{Value, json};

use super::data;
use crate::fake::answer::{Answer, Finish};

/// In one piece.
pub(super) fn whole(answer: &Answer) -> Value {
    let refused = answer.finish == Finish::Refused;
    let content = if refused { String::new() } else { answer.text() };
    json!({
        "id": id(answer),
        "object": "chat.completion",
        "created": answer.created,
        "model": answer.model,
        "choices": [{
            "index": 0,
            "message": { "role": "assistant", "content": content, "refusal": null },
            "logprobs": null,
            "finish_reason": finish(answer),
        }],
        "usage": usage(answer),
        "service_tier": "default",
    })
}

/// The chunk that says who speaks.
pub(super) fn opening(answer: &Answer) -> String {
    chunk(answer, &json!({ "role": "assistant", "content": "" }), &Value::Null)
}

/// A chunk of text.
pub(super) fn piece(answer: &Answer, at: usize) -> String {
    answer
        .pieces
        .get(at)
        .map_or_else(String::new, |piece| chunk(answer, &json!({ "content": piece.text }), &Value::Null))
}

/// The chunk that says why it ends, the one with the usage where it is wanted, and the end.
pub(super) fn closing(answer: &Answer) -> String {
    let mut events = chunk(answer, &json!({}), &finish(answer).into());
    if answer.usage_in_stream {
        let mut last = base(answer);
        last["choices"] = json!([]);
        last["usage"] = usage(answer);
        events += &data(&last);
    }
    events + "data: [DONE]\n\n"
}

fn chunk(answer: &Answer, delta: &Value, finish: &Value) -> String {
    let mut chunk = base(answer);
    chunk["choices"] = json!([{ "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish }]);
    if answer.usage_in_stream {
        chunk["usage"] = Value::Null;
    }
    data(&chunk)
}

fn base(answer: &Answer) -> Value {
    json!({ "id": id(answer), "object": "chat.completion.chunk", "created": answer.created, "model": answer.model })
}

fn id(answer: &Answer) -> String {
    format!("chatcmpl-{}", answer.id)
}

fn finish(answer: &Answer) -> &'static str {
    match answer.finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::Refused => "content_filter",
    }
}

fn usage(answer: &Answer) -> Value {
    json!({
        "prompt_tokens": answer.input,
        "completion_tokens": answer.output,
        "total_tokens": answer.input + answer.output,
        "prompt_tokens_details": { "cached_tokens": answer.cached, "audio_tokens": 0 },
        "completion_tokens_details": { "reasoning_tokens": answer.reasoning, "audio_tokens": 0 },
    })
}
