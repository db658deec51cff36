//! From the body of a 200 to a reply: text, finish reason, usage and cost. Lenient: a paid answer is never thrown away
//! because a side field looks odd.

use promptq_common::outcome::{AnswerClass, Body, Detail, Reply, Usage, Usd};
use serde::Deserialize;
use serde_json::Value;

use crate::provider::class::{self, End, says};
use crate::provider::{Endpoint, Read, owned};

/// Reads the body of a 2xx answer.
pub(crate) fn read(endpoint: Endpoint, status_code: u16, body: Vec<u8>) -> Read {
    let Ok(body) = String::from_utf8(body) else { return Read::Garbage };
    let Ok(shape) = serde_json::from_str::<Shape>(&body) else { return Read::Garbage };
    let answers = match endpoint {
        Endpoint::Chat => shape.choice().is_some(),
        Endpoint::Responses => shape.output.is_array() && matches!(shape.status(), "" | "completed" | "incomplete"),
        Endpoint::Embeddings => shape.data.is_some(),
        Endpoint::Messages | Endpoint::Generate => false,
    };
    if !answers {
        let failed = !shape.error.is_null() || shape.choices.pointer("/0/error").is_some();
        // A response that was cancelled, or goes on without us, is paid for as far as it came.
        return if failed && matches!(shape.status(), "" | "failed") { Read::Failed } else { Read::Garbage };
    }
    Read::Answer(Box::new(Reply {
        status_code,
        request_id: owned(&shape.id),
        text: shape.text(endpoint),
        model: owned(&shape.model),
        finish_reason: shape.finish_reason(endpoint),
        class: if endpoint == Endpoint::Embeddings { vectors(&body) } else { shape.class(endpoint) },
        usage: usage(&shape.usage),
        cost: cost(&shape.usage),
        detail: Detail {
            cache_write_tokens: count(
                &shape.usage,
                ["/prompt_tokens_details/cache_write_tokens", "/input_tokens_details/cache_write_tokens"],
            ),
            service_tier: owned(&shape.service_tier),
            first_piece: None,
        }
        .kept(),
        origin: None,
        body: Body::Json(body),
    }))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Shape {
    id: Value,
    model: Value,
    choices: Value,
    output: Value,
    data: Option<serde::de::IgnoredAny>,
    status: Value,
    incomplete_details: Value,
    error: Value,
    usage: Value,
    service_tier: Value,
}

impl Shape {
    /// The first choice that is an answer: one that failed takes no other with it.
    fn choice(&self) -> Option<&Value> {
        let answers = |choice: &&Value| choice.is_object() && choice["error"].is_null();
        self.choices.as_array()?.iter().find(answers)
    }

    fn status(&self) -> &str {
        self.status.as_str().unwrap_or_default()
    }

    fn text(&self, endpoint: Endpoint) -> Option<String> {
        match endpoint {
            Endpoint::Chat => joined(self.choice()?.pointer("/message/content")?),
            Endpoint::Responses => {
                let messages = self.output.as_array()?.iter().filter(|item| item["type"] == "message");
                let texts: Vec<_> = messages.filter_map(|item| joined(item.get("content")?)).collect();
                (!texts.is_empty()).then(|| texts.concat())
            }
            Endpoint::Embeddings | Endpoint::Messages | Endpoint::Generate => None,
        }
    }

    fn finish_reason(&self, endpoint: Endpoint) -> Option<String> {
        match endpoint {
            Endpoint::Chat => owned(self.choice()?.get("finish_reason")?),
            Endpoint::Responses => {
                self.incomplete_details.get("reason").and_then(owned).or_else(|| owned(&self.status))
            }
            Endpoint::Embeddings | Endpoint::Messages | Endpoint::Generate => None,
        }
    }

    fn class(&self, endpoint: Endpoint) -> AnswerClass {
        if endpoint == Endpoint::Chat {
            return class::of_all(self.choices.as_array().into_iter().flatten().map(of_choice));
        }
        let items = || self.output.as_array().into_iter().flatten();
        let holds = |item: &Value| match item["type"].as_str() {
            Some("message") => joined(&item["content"]).is_some_and(|text| says(&text)),
            kind => kind != Some("reasoning"),
        };
        let why = &self.incomplete_details["reason"];
        End {
            reason: if why.is_string() { why } else { &self.status },
            refused: items()
                .flat_map(|item| item["content"].as_array().into_iter().flatten())
                .any(|part| part["type"] == "refusal"),
            holds: items().any(holds),
        }
        .class()
    }
}

/// How whole a choice of a chat is. What it thought is no part of the answer.
fn of_choice(choice: &Value) -> AnswerClass {
    if !choice["error"].is_null() {
        return AnswerClass::InvalidOutput;
    }
    let message = &choice["message"];
    let is_there = |part: &Value| part.as_array().map_or(!part.is_null(), |items| !items.is_empty());
    let beside = ["tool_calls", "function_call", "audio", "images"].iter().any(|name| is_there(&message[*name]));
    End {
        reason: &choice["finish_reason"],
        refused: message["refusal"].as_str().is_some_and(says),
        holds: beside || joined(&message["content"]).is_some_and(|text| says(&text)),
    }
    .class()
}

/// How whole an answer with embeddings is, which may be millions of numbers.
fn vectors(body: &str) -> AnswerClass {
    #[derive(Deserialize)]
    struct Vectors {
        data: Vec<Vector>,
    }
    #[derive(Deserialize)]
    struct Vector {
        embedding: Option<serde::de::IgnoredAny>,
    }
    let data = serde_json::from_str(body).map_or_else(|_| Vec::new(), |Vectors { data }| data);
    let is_whole = !data.is_empty() && data.iter().all(|vector| vector.embedding.is_some());
    if is_whole { AnswerClass::Complete } else { AnswerClass::InvalidOutput }
}

/// A text, or the texts of a list of parts.
fn joined(content: &Value) -> Option<String> {
    match content {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => {
            let texts: Vec<_> = parts.iter().filter_map(|part| part.get("text")?.as_str()).collect();
            (!texts.is_empty()).then(|| texts.concat())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
    }
}

/// Chat and embeddings say `prompt_tokens`, responses say `input_tokens`; both counts include the cached and the reasoning
/// tokens.
pub(super) fn usage(said: &Value) -> Usage {
    let count = |paths| count(said, paths);
    Usage {
        input_tokens: count(["/prompt_tokens", "/input_tokens"]),
        output_tokens: count(["/completion_tokens", "/output_tokens"]),
        cached_tokens: count(["/prompt_tokens_details/cached_tokens", "/input_tokens_details/cached_tokens"]),
        reasoning_tokens: count([
            "/completion_tokens_details/reasoning_tokens",
            "/output_tokens_details/reasoning_tokens",
        ]),
    }
}

fn count(said: &Value, paths: [&str; 2]) -> u64 {
    paths.iter().find_map(|path| said.pointer(path)?.as_u64()).unwrap_or(0)
}

/// `OpenRouter` says what an answer cost, in dollars.
fn cost(usage: &Value) -> Option<Usd> {
    let dollars = usage.get("cost")?.as_f64()?;
    format!("{dollars:.9}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::rows::answered;

    #[test]
    fn a_chat_is_read_with_its_usage_and_cost() {
        let body = r#"{"id":"chatcmpl-1","model":"m-2026","choices":[{"finish_reason":"length","message":{"content":"Hello"}}],
            "usage":{"prompt_tokens":22,"completion_tokens":9,"cost":0.00014,"prompt_tokens_details":{"cached_tokens":5},
            "completion_tokens_details":{"reasoning_tokens":4}}}"#;
        let reply = answered(Endpoint::Chat, body);
        assert_eq!(reply.usage, Usage { input_tokens: 22, output_tokens: 9, cached_tokens: 5, reasoning_tokens: 4 });
        assert_eq!(reply.cost, Some(Usd::from_nanos(140_000)));
        assert_eq!((reply.text.as_deref(), reply.finish_reason.as_deref()), (Some("Hello"), Some("length")));
        assert_eq!((reply.model.as_deref(), reply.request_id.as_deref()), (Some("m-2026"), Some("chatcmpl-1")));
        assert_eq!(reply.body, Body::Json(body.to_owned()));
    }

    #[test]
    fn a_response_is_read_with_its_usage() {
        let reply = answered(
            Endpoint::Responses,
            r#"{"id":"resp_1","status":"incomplete","incomplete_details":{"reason":"max_output_tokens"},"error":null,
            "output":[{"type":"reasoning","summary":[]},{"type":"message","content":[{"type":"output_text","text":"Hel"},
            {"type":"output_text","text":"lo"}]}],"usage":{"input_tokens":7,"output_tokens":3,
            "input_tokens_details":{"cached_tokens":2},"output_tokens_details":{"reasoning_tokens":1}}}"#,
        );
        assert_eq!(reply.usage, Usage { input_tokens: 7, output_tokens: 3, cached_tokens: 2, reasoning_tokens: 1 });
        assert_eq!((reply.text.as_deref(), reply.finish_reason.as_deref()), (Some("Hello"), Some("max_output_tokens")));
    }

    #[test]
    fn tier_and_cache_writes_are_kept() {
        let chat = r#"{"choices":[{"message":{}}],"service_tier":"flex","usage":{"prompt_tokens_details":{"cache_write_tokens":7}}}"#;
        let response =
            r#"{"output":[],"service_tier":"priority","usage":{"input_tokens_details":{"cache_write_tokens":8}}}"#;
        for (endpoint, body, tier, written) in
            [(Endpoint::Chat, chat, "flex", 7), (Endpoint::Responses, response, "priority", 8)]
        {
            let detail = *answered(endpoint, body).detail.unwrap();
            assert_eq!((detail.service_tier.as_deref(), detail.cache_write_tokens), (Some(tier), written));
        }
    }

    #[test]
    fn odd_side_fields_lose_no_answer() {
        let reply =
            answered(Endpoint::Chat, r#"{"id":5,"usage":"none","choices":[{"message":{"content":[{"text":"a"}]}}]}"#);
        assert_eq!((reply.text.as_deref(), reply.usage, reply.cost), (Some("a"), Usage::default(), None));
        let tool =
            answered(Endpoint::Chat, r#"{"choices":[{"message":{"content":null},"finish_reason":"tool_calls"}]}"#);
        assert_eq!((tool.text, tool.finish_reason.as_deref()), (None, Some("tool_calls")));
        let vectors = answered(Endpoint::Embeddings, r#"{"data":[{"embedding":[0.5]}],"usage":{"prompt_tokens":2}}"#);
        assert_eq!(vectors.usage.input_tokens, 2);
    }

    #[test]
    fn one_choice_that_failed_throws_away_no_other() {
        let reply = answered(
            Endpoint::Chat,
            r#"{"choices":[{"error":{"code":502}},{"message":{"content":"a"},"finish_reason":"stop"}]}"#,
        );
        assert_eq!((reply.text.as_deref(), reply.finish_reason.as_deref()), (Some("a"), Some("stop")));
        let long = format!(r#"{{"id":"{0}","choices":[{{"finish_reason":"{0}"}}]}}"#, "é".repeat(300));
        let reply = answered(Endpoint::Chat, &long);
        assert_eq!(reply.request_id, Some("é".repeat(200)));
        assert_eq!(reply.finish_reason, Some("é".repeat(200)));
    }

    #[test]
    fn a_response_that_has_not_ended_is_no_answer() {
        for status in ["queued", "in_progress", "cancelled"] {
            for error in ["null", r#"{"code":"cancelled"}"#] {
                let body = format!(r#"{{"status":"{status}","output":[],"error":{error}}}"#);
                assert!(matches!(read(Endpoint::Responses, 200, body.into()), Read::Garbage), "{status} {error}");
            }
        }
        assert_eq!(answered(Endpoint::Responses, r#"{"output":[]}"#).finish_reason, None);
    }

    #[test]
    fn what_is_no_answer_is_told_from_a_failure() {
        for body in
            ["", "{", "[]", "<html>", "{}", r#"{"choices":[]}"#, r#"{"choices":[5]}"#, r#"{"choices":[{"mess"#, "\u{0}"]
        {
            assert!(matches!(read(Endpoint::Chat, 200, body.into()), Read::Garbage), "{body:?}");
        }
        for (endpoint, body) in [
            (Endpoint::Chat, r#"{"error":{"code":502,"message":"upstream"}}"#),
            (Endpoint::Chat, r#"{"choices":[{"error":{"code":502}}]}"#),
            (Endpoint::Responses, r#"{"status":"failed","output":[],"error":{"code":"server_error"}}"#),
        ] {
            assert!(matches!(read(endpoint, 200, body.into()), Read::Failed), "{body}");
        }
    }
}
