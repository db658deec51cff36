//! From the body of a 200 to a reply. Lenient: a paid answer is never thrown away because a side field looks odd.

use promptq_common::outcome::{AnswerClass, Body, Detail, Reply, Usage};
use serde::Deserialize;
use serde_json::Value;

use crate::provider::class::{self, End, says};
use crate::provider::{Read, owned};

/// Reasons to stop that mean: this is not to be answered.
pub(super) const REFUSING: [&str; 4] = ["SAFETY", "PROHIBITED_CONTENT", "BLOCKLIST", "SPII"];

/// Reads the body of a 2xx answer. A prompt that was held back for what it says has failed, and so has an answer all of
/// whose candidates were.
pub(crate) fn read(status_code: u16, body: Vec<u8>) -> Read {
    let Ok(body) = String::from_utf8(body) else { return Read::Garbage };
    let Ok(shape) = serde_json::from_str::<Shape>(&body) else { return Read::Garbage };
    let mut candidates = shape.candidates.as_array().into_iter().flatten().filter(|candidate| candidate.is_object());
    let is_refused = |candidate: &Value| candidate["finishReason"].as_str().is_some_and(|why| REFUSING.contains(&why));
    let any = candidates.clone().next().is_some();
    let Some(first) = candidates.find(|candidate| !is_refused(candidate)) else {
        let failed = any || shape.error.is_object() || shape.prompt_feedback["blockReason"].is_string();
        return if failed { Read::Failed } else { Read::Garbage };
    };
    Read::Answer(Box::new(Reply {
        status_code,
        request_id: owned(&shape.response_id),
        text: text(first),
        model: owned(&shape.model_version),
        finish_reason: owned(&first["finishReason"]),
        class: class::of_all(shape.candidates.as_array().into_iter().flatten().map(of_candidate)),
        usage: usage(&shape.usage),
        cost: None,
        detail: Detail { service_tier: owned(&shape.usage["serviceTier"]), ..Detail::default() }.kept(),
        origin: None,
        body: Body::Json(body),
    }))
}

/// Input with what tools put into it, output with the thoughts.
pub(super) fn usage(said: &Value) -> Usage {
    let count = |name: &str| said[name].as_u64().unwrap_or(0);
    let thoughts = count("thoughtsTokenCount");
    Usage {
        input_tokens: count("promptTokenCount").saturating_add(count("toolUsePromptTokenCount")),
        output_tokens: count("candidatesTokenCount").saturating_add(thoughts),
        cached_tokens: count("cachedContentTokenCount"),
        reasoning_tokens: thoughts,
    }
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Shape {
    response_id: Value,
    model_version: Value,
    candidates: Value,
    prompt_feedback: Value,
    error: Value,
    #[serde(rename = "usageMetadata")]
    usage: Value,
}

/// How whole a candidate is. What it thought is no part of the answer.
fn of_candidate(candidate: &Value) -> AnswerClass {
    let parts = candidate["content"]["parts"].as_array().into_iter().flatten();
    let mut said = parts.filter(|part| part["thought"] != true);
    // Without a text it is a call, or data.
    let is_other =
        |part: &Value| part.as_object().is_some_and(|part| part.keys().any(|name| name != "thoughtSignature"));
    let holds = said.any(|part| part["text"].as_str().map_or_else(|| is_other(part), says));
    End { reason: &candidate["finishReason"], refused: false, holds }.class()
}

fn text(candidate: &Value) -> Option<String> {
    let parts = candidate.pointer("/content/parts")?.as_array()?.iter();
    let texts: Vec<_> = parts.filter(|part| part["thought"] != true).filter_map(|part| part["text"].as_str()).collect();
    (!texts.is_empty()).then(|| texts.concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::Endpoint;
    use crate::provider::rows::answered;

    fn answer(body: &str) -> Reply {
        answered(Endpoint::Generate, body)
    }

    #[test]
    fn content_is_read_with_its_thoughts_in_the_output() {
        let body = r#"{"candidates":[{"content":{"parts":[{"text":"hm","thought":true},{"text":"Hel"},{"text":"lo"}],"role":"model"},
            "finishReason":"STOP","index":0}],"usageMetadata":{"promptTokenCount":10,"toolUsePromptTokenCount":3,
            "cachedContentTokenCount":4,"candidatesTokenCount":5,"thoughtsTokenCount":7,"totalTokenCount":25},
            "modelVersion":"gemini-x","responseId":"r1"}"#;
        let reply = answer(body);
        assert_eq!(reply.usage, Usage { input_tokens: 13, output_tokens: 12, cached_tokens: 4, reasoning_tokens: 7 });
        assert_eq!((reply.text.as_deref(), reply.finish_reason.as_deref()), (Some("Hello"), Some("STOP")));
        assert_eq!((reply.model.as_deref(), reply.request_id.as_deref()), (Some("gemini-x"), Some("r1")));
        assert_eq!(reply.body, Body::Json(body.to_owned()));
        let odd = answer(r#"{"responseId":5,"usageMetadata":"none","candidates":[{"finishReason":"MAX_TOKENS"}]}"#);
        assert_eq!((odd.text, odd.usage, odd.finish_reason.as_deref()), (None, Usage::default(), Some("MAX_TOKENS")));
    }

    #[test]
    fn one_candidate_that_was_held_back_throws_away_no_other() {
        let reply = answer(
            r#"{"candidates":[{"finishReason":"SAFETY"},{"finishReason":"STOP","content":{"parts":[{"text":"a"}]}}]}"#,
        );
        assert_eq!((reply.text.as_deref(), reply.finish_reason.as_deref()), (Some("a"), Some("STOP")));
        let all = r#"{"candidates":[{"finishReason":"SAFETY"},{"finishReason":"SPII"}]}"#;
        assert!(matches!(read(200, all.into()), Read::Failed));
    }

    #[test]
    fn what_is_no_answer_is_told_from_a_failure() {
        for body in ["", "{", "[]", "<html>", "{}", r#"{"candidates":[]}"#, r#"{"candidates":[{"con"#] {
            assert!(matches!(read(200, body.into()), Read::Garbage), "{body:?}");
        }
        for body in [
            r#"{"promptFeedback":{"blockReason":"SAFETY"}}"#,
            r#"{"candidates":[{"finishReason":"SAFETY"}]}"#,
            r#"{"error":{"code":503}}"#,
        ] {
            assert!(matches!(read(200, body.into()), Read::Failed), "{body}");
        }
    }
}
