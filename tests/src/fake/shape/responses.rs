//! `OpenAI`'s responses: one JSON object, or events with names and numbers, the last of which holds that object.

use serde_json::{Value, json};

use super::event;
use crate::fake::answer::{Answer, Finish};

/// In one piece; `status` is what it has come to.
pub(super) fn whole(answer: &Answer, status: &str) -> Value {
    let done = status == "completed";
    let status = if done && answer.finish == Finish::Length { "incomplete" } else { status };
    let why = match answer.finish {
        Finish::Length if done => json!({ "reason": "max_output_tokens" }),
        Finish::Refused if done => json!({ "reason": "content_filter" }),
        Finish::Stop | Finish::Length | Finish::Refused => Value::Null,
    };
    let mut output = Vec::new();
    if done && answer.reasoning > 0 {
        output.push(json!({ "id": format!("rs_{}", answer.id), "type": "reasoning", "summary": [] }));
    }
    if done {
        output.push(item(answer, "completed", &[part(&said(answer))]));
    }
    json!({
        "id": format!("resp_{}", answer.id),
        "object": "response",
        "created_at": answer.created,
        "status": status,
        "error": null,
        "incomplete_details": why,
        "model": answer.model,
        "output": output,
        "usage": if done { usage(answer) } else { Value::Null },
    })
}

/// Until the first piece of text.
pub(super) fn opening(answer: &Answer) -> String {
    [
        numbered("response.created", 0, &json!({ "response": whole(answer, "in_progress") })),
        numbered("response.in_progress", 1, &json!({ "response": whole(answer, "in_progress") })),
        numbered(
            "response.output_item.added",
            2,
            &json!({ "output_index": 0, "item": item(answer, "in_progress", &[]) }),
        ),
        numbered("response.content_part.added", 3, &in_part(answer, "part", &part(""))),
    ]
    .concat()
}

/// A piece of text.
pub(super) fn piece(answer: &Answer, at: usize) -> String {
    let Some(piece) = answer.pieces.get(at) else { return String::new() };
    numbered("response.output_text.delta", 4 + at, &in_part(answer, "delta", &piece.text.as_str().into()))
}

/// From the whole text to the whole response.
pub(super) fn closing(answer: &Answer) -> String {
    let (next, text) = (4 + answer.pieces.len(), said(answer));
    let done = item(answer, "completed", &[part(&text)]);
    let last = whole(answer, "completed");
    let name = if last["status"] == "incomplete" { "response.incomplete" } else { "response.completed" };
    [
        numbered("response.output_text.done", next, &in_part(answer, "text", &text.as_str().into())),
        numbered("response.content_part.done", next + 1, &in_part(answer, "part", &part(&text))),
        numbered("response.output_item.done", next + 2, &json!({ "output_index": 0, "item": done })),
        numbered(name, next + 3, &json!({ "response": last })),
    ]
    .concat()
}

fn numbered(name: &str, number: usize, fields: &Value) -> String {
    let mut data = json!({ "type": name, "sequence_number": number });
    if let (Some(data), Some(fields)) = (data.as_object_mut(), fields.as_object()) {
        data.extend(fields.clone());
    }
    event(name, &data)
}

fn in_part(answer: &Answer, name: &str, value: &Value) -> Value {
    json!({ "item_id": format!("msg_{}", answer.id), "output_index": 0, "content_index": 0, name: value })
}

fn item(answer: &Answer, status: &str, content: &[Value]) -> Value {
    let id = format!("msg_{}", answer.id);
    json!({ "id": id, "type": "message", "status": status, "role": "assistant", "content": content })
}

fn part(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [] })
}

fn said(answer: &Answer) -> String {
    if answer.finish == Finish::Refused { String::new() } else { answer.text() }
}

fn usage(answer: &Answer) -> Value {
    json!({
        "input_tokens": answer.input,
        "input_tokens_details": { "cached_tokens": answer.cached },
        "output_tokens": answer.output,
        "output_tokens_details": { "reasoning_tokens": answer.reasoning },
        "total_tokens": answer.input + answer.output,
    })
}
