//! Gemini's generateContent: one JSON object, or a stream of such objects in events without names, the last with the end.

use serde_json::{Value, json};

use crate::fake::answer::{Answer, Finish};

/// In one piece.
pub(super) fn whole(answer: &Answer) -> Value {
    let mut whole = part(answer, &answer.text(), answer.output);
    whole["candidates"][0]["finishReason"] = finish(answer).into();
    if answer.finish == Finish::Refused {
        whole["candidates"][0]["content"] = json!({ "role": "model", "parts": [] });
    }
    whole
}

/// A piece of text; the last says why it ends.
pub(super) fn piece(answer: &Answer, at: usize) -> String {
    let Some(piece) = answer.pieces.get(at) else { return String::new() };
    let so_far = answer.pieces.iter().take(at + 1).map(|piece| piece.tokens).sum();
    let mut part = part(answer, &piece.text, so_far);
    if at + 1 == answer.pieces.len() {
        part["candidates"][0]["finishReason"] = finish(answer).into();
    }
    format!("data: {part}\r\n\r\n")
}

/// A prompt that is refused is answered 200 and has no candidates.
pub(crate) fn blocked(model: &str) -> Value {
    json!({ "promptFeedback": { "blockReason": "PROHIBITED_CONTENT" }, "modelVersion": model })
}

fn part(answer: &Answer, text: &str, output: u64) -> Value {
    let thoughts = answer.reasoning.min(output);
    json!({
        "candidates": [{ "content": { "role": "model", "parts": [{ "text": text }] }, "index": 0 }],
        "usageMetadata": {
            "promptTokenCount": answer.input,
            "cachedContentTokenCount": answer.cached,
            "candidatesTokenCount": output - thoughts,
            "thoughtsTokenCount": thoughts,
            "totalTokenCount": answer.input + output,
        },
        "modelVersion": answer.model,
        "responseId": answer.id,
    })
}

fn finish(answer: &Answer) -> &'static str {
    match answer.finish {
        Finish::Stop => "STOP",
        Finish::Length => "MAX_TOKENS",
        Finish::Refused => "SAFETY",
    }
}
