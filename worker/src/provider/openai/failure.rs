//! From a refused request to a failure's class: the error's own code first, then the status. One table, row by row tested.

use promptq_common::outcome::{Failure, FailureClass, Usage};
use promptq_common::time::Timestamp;
use serde_json::Value;

use self::FailureClass::{Account, Capacity, Content, Fatal, Throttled, Transient};
use super::answer::usage;
use crate::provider::delay;
use crate::provider::refusal::{self, Refusal};

/// Classes a refusal. `secrets` are texts (prompt, key) that the failure's detail must not repeat.
pub(crate) fn classify(refusal: Refusal<'_>, secrets: &[&str], now: Timestamp) -> Failure {
    let said = Said::read(refusal.body);
    let status = match refusal.status {
        200..300 => said.number.unwrap_or(refusal.status),
        status => status,
    };
    let verdict = by_code(&said).unwrap_or_else(|| by_status(status, &said));
    let mut failure = refusal::failure(status, verdict, &said.message, secrets);
    failure.usage = said.usage;
    failure.retry_after = delay::asked(refusal.headers, None, &said.message, now);
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
    /// What `OpenRouter` says beside a message; it stands between us and the provider.
    routed: bool,
    /// Which of its own limits a payment is wanted for.
    limit: String,
    /// What a response that failed on its way consumed.
    usage: Usage,
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
        let metadata = error.get("metadata").filter(|metadata| metadata.is_object());
        let limit = metadata.and_then(|metadata| metadata.get("limit_source")?.as_str()).unwrap_or_default().to_owned();
        Self {
            code: text("code"),
            kind: text("type"),
            message,
            number: number.filter(|n| (400..600).contains(n)),
            routed: metadata.is_some(),
            limit,
            usage: usage(&body["usage"]),
        }
    }

    fn mentions(&self, words: &[&str]) -> bool {
        let message = self.message.to_ascii_lowercase();
        words.iter().any(|word| message.contains(word))
    }

    fn name(&self, otherwise: &str) -> String {
        refusal::name(&[&self.code, &self.kind], otherwise)
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
            | "billing_not_active"
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
        402 => (Account, refusal::name(&[&said.code, &said.limit], "payment_required")),
        403 if said.mentions(&["moderation", "flagged"]) => (Content, said.name("content_policy_violation")),
        403 => (Account, said.name("permission_denied")),
        404 if said.mentions(&["model"]) => (Fatal, "model_not_found".to_owned()),
        429 if too_large(said) => (Fatal, "request_too_large".to_owned()),
        429 if said.mentions(&["resource unavailable"]) => (Capacity, "resource_unavailable".to_owned()),
        429 => (Throttled, said.name("rate_limit_exceeded")),
        498 | 503 | 529 => (Capacity, http),
        // The provider behind it is down; another job may well go to another.
        502 if said.routed => (Capacity, http),
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

#[cfg(test)]
#[path = "failure_tests.rs"]
mod tests;
