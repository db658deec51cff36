//! Whether an answer is all that was asked for: ended by itself, with nothing cut off, refused or filtered, in the shape of
//! whichever API gave it.

use promptq_common::outcome::Body;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

/// Why a model stopped where it had said all it wanted to say, in the words of all APIs; any other reason is taken for
/// less than a whole answer.
const ENDS: [&str; 7] = ["stop", "end_turn", "stop_sequence", "tool_calls", "tool_use", "function_call", "completed"];

/// The parts of every API's answer that say how it ended.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Shape {
    /// Chat completions.
    choices: Value,
    /// Responses.
    status: Value,
    output: Value,
    /// Anthropic's messages.
    stop_reason: Value,
    /// Gemini's content.
    candidates: Value,
}

/// An answer with embeddings, which may be millions of numbers.
#[derive(Deserialize)]
struct Embeddings {
    data: Vec<Embedding>,
}

#[derive(Deserialize)]
struct Embedding {
    embedding: Option<IgnoredAny>,
}

/// Whether nothing is missing from a success. Text is a program's, which ended well; JSON in no known shape is not taken for
/// whole.
pub(super) fn is_whole(body: &Body) -> bool {
    let text = match body {
        Body::Text(_) => return true,
        Body::Json(text) => text,
    };
    let Ok(shape) = serde_json::from_str::<Shape>(text) else { return false };
    if !shape.choices.is_null() {
        let refused = |choice: &Value| !is_empty(&choice["message"]["refusal"]) || !choice["error"].is_null();
        return all(&shape.choices, |choice| ended(&choice["finish_reason"]) && !refused(choice));
    }
    if !shape.stop_reason.is_null() {
        return ended(&shape.stop_reason);
    }
    if !shape.candidates.is_null() {
        return all(&shape.candidates, |candidate| ended(&candidate["finishReason"]));
    }
    if shape.output.is_array() {
        let said = |item: &Value| item["content"].as_array().cloned().unwrap_or_default();
        let refused =
            shape.output.as_array().into_iter().flatten().flat_map(said).any(|part| part["type"] == "refusal");
        return ended(&shape.status) && !refused;
    }
    let embeddings = serde_json::from_str(text).map_or_else(|_| Vec::new(), |Embeddings { data }| data);
    !embeddings.is_empty() && embeddings.iter().all(|item| item.embedding.is_some())
}

/// Whether there is at least one, and each of them is so.
fn all(list: &Value, is_so: impl Fn(&Value) -> bool) -> bool {
    list.as_array().is_some_and(|list| !list.is_empty() && list.iter().all(is_so))
}

fn ended(reason: &Value) -> bool {
    reason.as_str().is_some_and(|reason| ENDS.iter().any(|end| reason.eq_ignore_ascii_case(end)))
}

fn is_empty(text: &Value) -> bool {
    text.is_null() || text == ""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_api_says_in_its_own_way_that_an_answer_is_whole() {
        for body in [
            r#"{"choices":[{"finish_reason":"stop","message":{"content":"a","refusal":null}}]}"#,
            r#"{"choices":[{"finish_reason":"tool_calls"},{"finish_reason":"stop"}]}"#,
            r#"{"status":"completed","output":[{"type":"message","content":[{"type":"output_text","text":"a"}]}]}"#,
            r#"{"type":"message","stop_reason":"end_turn","content":[]}"#,
            r#"{"type":"message","stop_reason":"tool_use","content":[]}"#,
            r#"{"candidates":[{"finishReason":"STOP","content":{}}]}"#,
            r#"{"object":"list","data":[{"embedding":[0.5]},{"embedding":"AAAA"}]}"#,
        ] {
            assert!(is_whole(&Body::Json(body.into())), "{body}");
        }
        assert!(is_whole(&Body::Text(String::new())));
    }

    #[test]
    fn less_than_a_whole_answer_is_seen() {
        for body in [
            r#"{"choices":[{"finish_reason":"length","message":{"content":"a"}}]}"#,
            r#"{"choices":[{"finish_reason":"stop"},{"finish_reason":"length"}]}"#,
            r#"{"choices":[{"finish_reason":"content_filter"}]}"#,
            r#"{"choices":[{"finish_reason":null}]}"#,
            r#"{"choices":[{"finish_reason":"stop","message":{"refusal":"I cannot"}}]}"#,
            r#"{"choices":[{"finish_reason":"stop"},{"finish_reason":"stop","error":{"code":500}}]}"#,
            r#"{"choices":[]}"#,
            r#"{"status":"incomplete","output":[]}"#,
            r#"{"status":"completed","output":[{"content":[{"type":"refusal","refusal":"no"}]}]}"#,
            r#"{"stop_reason":"max_tokens","content":[]}"#,
            r#"{"stop_reason":"refusal","content":[]}"#,
            r#"{"stop_reason":"pause_turn","content":[]}"#,
            r#"{"candidates":[{"finishReason":"MAX_TOKENS"}]}"#,
            r#"{"candidates":[{"finishReason":"STOP"},{"finishReason":"SAFETY"}]}"#,
            r#"{"object":"list","data":[]}"#,
            r#"{"object":"list","data":[{"embedding":null}]}"#,
            r#"{"content":"in no known shape"}"#,
            "not json",
        ] {
            assert!(!is_whole(&Body::Json(body.into())), "{body}");
        }
    }
}
