//! From a refused request to a failure's class: the error's own code first, then the status. One table, row by row tested.

use promptq_common::outcome::{Failure, FailureClass};
use promptq_common::time::Timestamp;
use reqwest::header::HeaderMap;
use serde_json::Value;

use self::FailureClass::{Account, Capacity, Content, Fatal, Throttled, Transient};
use crate::echo::echoes;
use crate::provider::delay;

/// How much of a provider's message is quoted, in characters.
const QUOTED: usize = 300;

/// What was answered in place of an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refusal<'a> {
    /// HTTP status; 200 where the failure came in an ordinary answer.
    pub(crate) status: u16,
    /// The answer's headers.
    pub(crate) headers: &'a HeaderMap,
    /// As much of its body as was read.
    pub(crate) body: &'a [u8],
}

/// Classes a refusal. `secrets` are texts (prompt, key) that the failure's detail must not repeat.
pub(crate) fn classify(refusal: Refusal<'_>, secrets: &[&str], now: Timestamp) -> Failure {
    let said = Said::read(refusal.body);
    let status = match refusal.status {
        200..300 => said.number.unwrap_or(refusal.status),
        status => status,
    };
    let (class, code) = by_code(&said).unwrap_or_else(|| by_status(status, &said));
    let mut failure = Failure::new(class, code, &detail(status, &said, secrets));
    failure.status_code = Some(status);
    failure.retry_after = delay::asked(refusal.headers, &said.message, now);
    failure
}

/// What an error body says; the shapes of OpenAI, `OpenRouter`, vLLM, llama.cpp and Ollama.
#[derive(Debug, Default)]
struct Said {
    code: String,
    kind: String,
    message: String,
    /// A status in the place of the code.
    number: Option<u16>,
}

impl Said {
    fn read(body: &[u8]) -> Self {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let error = match body.get("error") {
            Some(Value::Null) | None => body.pointer("/choices/0/error").unwrap_or(&body),
            Some(error) => error,
        };
        let text = |name: &str| error.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let message = error.as_str().map_or_else(|| text("message"), str::to_owned);
        let number = error.get("code").and_then(Value::as_u64).and_then(|code| u16::try_from(code).ok());
        Self { code: text("code"), kind: text("type"), message, number: number.filter(|n| (400..600).contains(n)) }
    }

    fn mentions(&self, words: &[&str]) -> bool {
        let message = self.message.to_ascii_lowercase();
        words.iter().any(|word| message.contains(word))
    }

    /// The error's own name, or `otherwise`; only short plain names, for dead jobs are grouped by it.
    fn name(&self, otherwise: &str) -> String {
        let plain = |name: &&String| {
            (1..=64).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        };
        [&self.code, &self.kind].into_iter().find(plain).map_or_else(|| otherwise.to_owned(), String::clone)
    }
}

fn by_code(said: &Said) -> Option<(FailureClass, String)> {
    let (class, name) = [said.code.as_str(), said.kind.as_str()].into_iter().find_map(|code| {
        Some(match code {
            "insufficient_quota"
            | "credit_balance_exhausted"
            | "organization_spend_limit_exceeded"
            | "project_spend_limit_exceeded"
            | "organization_usage_limit_exceeded"
            | "invalid_api_key" => (Account, code),
            "rate_limit_exceeded" | "slow_down" if too_large(said) => (Fatal, "request_too_large"),
            "rate_limit_exceeded" if said.mentions(&["resource unavailable"]) => (Capacity, "resource_unavailable"),
            "rate_limit_exceeded" | "slow_down" => (Throttled, code),
            "server_is_overloaded" | "resource_unavailable" | "capacity_exceeded" => (Capacity, code),
            "model_not_found" => (Fatal, code),
            "context_length_exceeded" | "exceed_context_size_error" => (Fatal, "context_length_exceeded"),
            "content_policy_violation" | "content_filter" => (Content, code),
            _ => return None,
        })
    })?;
    Some((class, name.to_owned()))
}

fn by_status(status: u16, said: &Said) -> (FailureClass, String) {
    let http = format!("http_{status}");
    match status {
        401 => (Account, said.name("invalid_api_key")),
        402 => (Account, said.name("payment_required")),
        403 if said.mentions(&["moderation", "flagged"]) => (Content, said.name("content_policy_violation")),
        403 => (Account, said.name("permission_denied")),
        404 if said.mentions(&["model"]) => (Fatal, "model_not_found".to_owned()),
        429 if too_large(said) => (Fatal, "request_too_large".to_owned()),
        429 if said.mentions(&["resource unavailable"]) => (Capacity, "resource_unavailable".to_owned()),
        429 => (Throttled, said.name("rate_limit_exceeded")),
        498 | 503 | 529 => (Capacity, http),
        // vLLM, Ollama and others have no code for it.
        400 | 413 | 422 if said.mentions(&["context length", "context size", "context window"]) => {
            (Fatal, "context_length_exceeded".to_owned())
        }
        300..=399 => (Fatal, "redirect_refused".to_owned()),
        // Not implemented, wrong version of HTTP: the same next time.
        501 | 505 => (Fatal, said.name(&http)),
        408 | 409 | 500..=599 => (Transient, http),
        200..300 => (Transient, said.name("provider_error")),
        _ => (Fatal, said.name(&http)),
    }
}

/// "Request too large … Limit 30000, Requested 46245": no wait makes it fit.
fn too_large(said: &Said) -> bool {
    let number = |after: &str| -> Option<u64> {
        let (_, rest) = said.message.split_once(after)?;
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    };
    said.message.starts_with("Request too large")
        || number("Limit ").zip(number("Requested ")).is_some_and(|(limit, requested)| requested > limit)
}

fn detail(status: u16, said: &Said, secrets: &[&str]) -> String {
    let hint = match status {
        300..=399 => return format!("HTTP {status}: redirects are refused; hint: set base_url to where it leads"),
        // The message of a 401 quotes parts of the key.
        401 => return "HTTP 401: the provider refused the key; hint: check api_key of this provider".to_owned(),
        _ => said.name(""),
    };
    let message: String = said.message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(QUOTED).collect();
    if message.is_empty() {
        return format!("HTTP {status} {hint}").trim_end().to_owned();
    }
    if secrets.iter().any(|secret| echoes(&message, secret)) {
        return format!("HTTP {status} {hint}; the message quotes the request and is left out");
    }
    format!("HTTP {status}: {message}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classed(status: u16, body: &str) -> Failure {
        let refusal = Refusal { status, headers: &HeaderMap::new(), body: body.as_bytes() };
        classify(refusal, &[], Timestamp::from_millis(0))
    }

    fn error(code: &str, message: &str) -> String {
        serde_json::json!({ "error": { "code": code, "message": message, "type": "some_error" } }).to_string()
    }

    #[test]
    fn rate_limits_are_throttled_unless_the_request_never_fits() {
        for (status, code, message, class, named) in [
            (429, "rate_limit_exceeded", "Rate limit reached. Limit 30000, Used 29000, Requested 4624", Throttled, ""),
            (429, "slow_down", "", Throttled, ""),
            (503, "slow_down", "", Throttled, ""),
            (429, "rate_limit_exceeded", "Request too large for m: Limit 3, Requested 4", Fatal, "request_too_large"),
            (429, "", "tokens per min: Limit 30000, Requested 46245.", Fatal, "request_too_large"),
            (429, "rate_limit_exceeded", "Resource Unavailable", Capacity, "resource_unavailable"),
        ] {
            let failure = classed(status, &error(code, message));
            let named = if named.is_empty() { code } else { named };
            assert_eq!((failure.class, failure.code.as_str()), (class, named), "{status} {code} {message}");
        }
        assert_eq!(classed(429, "").class, Throttled);
    }

    #[test]
    fn an_overloaded_provider_is_capacity() {
        for (status, body) in [
            (503, error("server_is_overloaded", "")),
            (498, error("capacity_exceeded", "")),
            (429, error("", "429 Resource Unavailable")),
            (503, String::new()),
            (503, r#"{"error":{"type":"server_error","message":"The engine is overloaded","code":null}}"#.to_owned()),
            (529, String::new()),
            (200, r#"{"error":{"code":503,"message":"no instance"}}"#.to_owned()),
        ] {
            assert_eq!(classed(status, &body).class, Capacity, "{status} {body}");
        }
    }

    #[test]
    fn money_keys_and_permissions_are_the_accounts() {
        for code in [
            "insufficient_quota",
            "credit_balance_exhausted",
            "organization_spend_limit_exceeded",
            "project_spend_limit_exceeded",
            "organization_usage_limit_exceeded",
        ] {
            for status in [429, 400, 403] {
                let failure = classed(status, &error(code, "You exceeded your quota"));
                assert_eq!((failure.class, failure.code.as_str()), (Account, code), "{status}");
            }
            let shared = format!(r#"{{"error":{{"type":"insufficient_quota","code":"{code}"}}}}"#);
            assert_eq!(classed(429, &shared).code, code);
        }
        assert_eq!(classed(429, r#"{"error":{"type":"insufficient_quota","code":null}}"#).class, Account);
        for (status, code) in [(401, "invalid_api_key"), (403, "unsupported_country_region_territory"), (402, "")] {
            assert_eq!(classed(status, &error(code, "")).class, Account, "{status}");
        }
        assert_eq!(classed(401, "").code, "invalid_api_key");
    }

    #[test]
    fn what_can_never_work_is_fatal() {
        for (status, body, code) in [
            (404, error("model_not_found", "The model does not exist"), "model_not_found"),
            (404, r#"{"error":"model 'x' not found"}"#.to_owned(), "model_not_found"),
            (400, error("context_length_exceeded", ""), "context_length_exceeded"),
            (
                400,
                r#"{"error":{"code":400,"message":"too long","type":"exceed_context_size_error"}}"#.to_owned(),
                "context_length_exceeded",
            ),
            (
                400,
                r#"{"object":"error","message":"This model's maximum context length is 2048 tokens","code":400}"#
                    .to_owned(),
                "context_length_exceeded",
            ),
            (400, error("unsupported_parameter", ""), "unsupported_parameter"),
            (413, String::new(), "http_413"),
            (422, r#"{"error":{"type":"invalid_request_error"}}"#.to_owned(), "invalid_request_error"),
            (404, String::new(), "http_404"),
            (307, String::new(), "redirect_refused"),
            (501, r#"{"error":{"code":501,"type":"not_supported_error"}}"#.to_owned(), "not_supported_error"),
        ] {
            let failure = classed(status, &body);
            assert_eq!((failure.class, failure.code.as_str()), (Fatal, code), "{status} {body}");
        }
    }

    #[test]
    fn content_policy_is_content() {
        assert_eq!(classed(400, &error("content_policy_violation", "")).class, Content);
        assert_eq!(classed(400, &error("content_filter", "")).class, Content);
        assert_eq!(classed(403, r#"{"error":{"code":403,"message":"Your input was flagged"}}"#).class, Content);
    }

    #[test]
    fn server_faults_are_transient() {
        for status in [408, 409, 500, 502, 504, 520] {
            assert_eq!(classed(status, "<html>").class, Transient, "{status}");
            assert_eq!(classed(status, &error("server_error", "")).class, Transient, "{status}");
        }
        let failed = r#"{"status":"failed","error":{"code":"server_error","message":"Sorry"}}"#;
        assert_eq!(classed(200, failed).class, Transient);
    }

    #[test]
    fn a_detail_repeats_neither_prompt_nor_key() {
        let prompt = "the patient's name is Ada Lovelace and she lives in London";
        let body = error("bad", "parse error near: 'patient's name is Ada Lovelace and she'");
        let refusal = Refusal { status: 400, headers: &HeaderMap::new(), body: body.as_bytes() };
        let failure = classify(refusal, &[prompt, "sk-secret-key"], Timestamp::from_millis(0));
        assert!(!failure.detail.contains("Ada"), "{}", failure.detail);
        assert_eq!(failure.detail, "HTTP 400 bad; the message quotes the request and is left out");
        for (status, message) in [(401, "Incorrect API key provided: sk-se****-key"), (400, "no sk-secret-key here")] {
            let body = error("bad", message);
            let refusal = Refusal { status, headers: &HeaderMap::new(), body: body.as_bytes() };
            let failure = classify(refusal, &["sk-secret-key"], Timestamp::from_millis(0));
            assert!(!failure.detail.contains("sk-"), "{}", failure.detail);
        }
        let plain = classed(400, &error("bad", "max_tokens is too large:\n5000"));
        assert_eq!(plain.detail, "HTTP 400: max_tokens is too large: 5000");
    }
}
