//! From a refused request to a failure's class: what the message says of an account first, then a status that leaves no
//! doubt, then the error's type, then any other status. One table, row by row tested.

use std::time::Duration;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use promptq_common::outcome::{Failure, FailureClass};
use promptq_common::time::Timestamp;
use serde_json::Value;

use self::FailureClass::{Account, Capacity, Fatal, Throttled, Transient};
use crate::provider::delay;
use crate::provider::refusal::{self, Refusal};

/// Classes a refusal, or an error in the middle of a stream. `secrets` are texts that the failure's detail must not repeat.
pub(crate) fn classify(refusal: Refusal<'_>, secrets: &[&str], now: Timestamp) -> Failure {
    let said = Said::read(refusal.body);
    let spent = said.spent(refusal.status);
    let verdict = match (spent, refusal.status) {
        (Some(code), _) => (Account, code.to_owned()),
        // These mean one thing, whatever stands between us and the API calls it.
        (None, status @ (401 | 402 | 403 | 503 | 529)) => by_status(status, &said),
        (None, status) => by_kind(&said).unwrap_or_else(|| by_status(status, &said)),
    };
    let mut failure = refusal::failure(refusal.status, verdict, &said.message, secrets);
    failure.retry_after = delay::asked(refusal.headers, None, &said.message, now)
        .or_else(|| until_date(&said.message, now))
        .or_else(|| spent.filter(|code| *code == SPEND_LIMIT).and_then(|_| until_next_month(now)));
    failure
}

/// A limit that an account's owner has set: it ends with the month.
const SPEND_LIMIT: &str = "enforced_spend_limit_reached";

/// What an error body says.
#[derive(Debug, Default)]
struct Said {
    kind: String,
    message: String,
    /// `error.details.error_code`.
    code: String,
}

impl Said {
    fn read(body: &[u8]) -> Self {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let text = |path: &str| body.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        Self { kind: text("/error/type"), message: text("/error/message"), code: text("/error/details/error_code") }
    }

    fn mentions(&self, words: &str) -> bool {
        self.message.to_ascii_lowercase().contains(words)
    }

    /// The code of an account that has nothing left, which comes as any of these and in streams.
    fn spent(&self, status: u16) -> Option<&'static str> {
        if !matches!(status, 200..300 | 400 | 402 | 403 | 429) {
            return None;
        }
        if self.code == SPEND_LIMIT {
            return Some(SPEND_LIMIT);
        }
        if self.mentions("credit balance is too low") {
            return Some("credit_balance_too_low");
        }
        (self.mentions("you have reached your specified") && self.mentions("api usage limits"))
            .then_some("usage_limit_reached")
    }
}

fn by_kind(said: &Said) -> Option<(FailureClass, String)> {
    let class = match said.kind.as_str() {
        "rate_limit_error" => Throttled,
        "overloaded_error" => Capacity,
        "billing_error" | "authentication_error" | "permission_error" => Account,
        "api_error" | "timeout_error" | "conflict_error" => Transient,
        "invalid_request_error" if said.mentions("prompt is too long") => {
            return Some((Fatal, "context_length_exceeded".to_owned()));
        }
        "not_found_error" if said.mentions("model") => return Some((Fatal, "model_not_found".to_owned())),
        "invalid_request_error" | "request_too_large" | "not_found_error" => Fatal,
        _ => return None,
    };
    Some((class, said.kind.clone()))
}

/// For what stands between us and the API, and has other words or none.
fn by_status(status: u16, said: &Said) -> (FailureClass, String) {
    let http = format!("http_{status}");
    let class = match status {
        401 => return (Account, refusal::name(&[&said.kind], "authentication_error")),
        402 => return (Account, refusal::name(&[&said.kind], "billing_error")),
        403 => return (Account, refusal::name(&[&said.kind], "permission_error")),
        429 => return (Throttled, refusal::name(&[&said.kind], "rate_limit_error")),
        300..=399 => return (Fatal, "redirect_refused".to_owned()),
        200..300 => return (Transient, refusal::name(&[&said.kind], "provider_error")),
        503 | 529 => Capacity,
        501 | 505 => Fatal,
        408 | 409 | 500..=599 => Transient,
        _ => Fatal,
    };
    (class, refusal::name(&[&said.kind], &http))
}

/// "You will regain access on 2026-12-01 at 00:00 UTC."
fn until_date(message: &str, now: Timestamp) -> Option<Duration> {
    let (_, rest) = message.split_once("regain access on ")?;
    let date: Date = rest.get(..10)?.parse().ok()?;
    until(date, now)
}

/// The first of the next month, 00:00 UTC.
fn until_next_month(now: Timestamp) -> Option<Duration> {
    let today = jiff::Timestamp::from_millisecond(now.as_millis()).ok()?.to_zoned(TimeZone::UTC).date();
    until(today.last_of_month().tomorrow().ok()?, now)
}

fn until(date: Date, now: Timestamp) -> Option<Duration> {
    let at = date.to_zoned(TimeZone::UTC).ok()?.timestamp();
    Some(Timestamp::from_millis(at.as_millisecond()).since(now))
}

#[cfg(test)]
mod tests {
    use promptq_common::config::Api;

    use super::*;
    use crate::provider::rows::{Row, classed, hold};

    fn error(kind: &str, message: &str) -> String {
        serde_json::json!({ "type": "error", "error": { "type": kind, "message": message }, "request_id": "req_1" })
            .to_string()
    }

    #[test]
    fn a_rate_limit_is_throttled_and_an_overload_is_capacity() {
        let limited = error("rate_limit_error", "This request would exceed your organization's rate limit");
        let overloaded = error("overloaded_error", "Overloaded");
        let reset = [
            ("anthropic-ratelimit-output-tokens-remaining", "0"),
            ("anthropic-ratelimit-output-tokens-reset", "2026-11-21T09:14:27Z"),
        ];
        let rows: &[Row<'_>] = &[
            (429, &[("retry-after", "12")], &limited, Throttled, "rate_limit_error", Some(12.0)),
            (429, &reset, &limited, Throttled, "rate_limit_error", Some(20.0)),
            (429, &[], "", Throttled, "rate_limit_error", None),
            (529, &[], &overloaded, Capacity, "overloaded_error", None),
            (529, &[], "", Capacity, "http_529", None),
            (503, &[], "<html>", Capacity, "http_503", None),
            (503, &[], &error("api_error", "down"), Capacity, "api_error", None),
            (529, &[], &error("invalid_request_error", "down"), Capacity, "invalid_request_error", None),
            // An error event in a stream, after a 200.
            (200, &[], &overloaded, Capacity, "overloaded_error", None),
            (200, &[], &limited, Throttled, "rate_limit_error", None),
        ];
        hold(Api::Anthropic, rows);
    }

    #[test]
    fn an_account_that_has_nothing_left_is_held_whatever_the_status_until_it_has() {
        let spent = r#"{"type":"error","error":{"type":"rate_limit_error","message":"Spend limit reached","details":{"error_code":"enforced_spend_limit_reached"}}}"#;
        let reached = error(
            "invalid_request_error",
            "You have reached your specified API usage limits. You will regain access on 2026-12-01 at 00:00 UTC.",
        );
        let workspace = error("invalid_request_error", "You have reached your specified workspace API usage limits.");
        let low = error("invalid_request_error", "Your credit balance is too low to access the Anthropic API.");
        // From 09:14:07 on the 21st to the end of the 30th.
        let month = Some(9.0 * 86_400.0 + 53_153.0);
        let rows: &[Row<'_>] = &[
            (429, &[], spent, Account, "enforced_spend_limit_reached", month),
            (429, &[("retry-after", "7")], spent, Account, "enforced_spend_limit_reached", Some(7.0)),
            (400, &[], &reached, Account, "usage_limit_reached", month),
            (400, &[("retry-after", "7")], &reached, Account, "usage_limit_reached", Some(7.0)),
            (400, &[], &workspace, Account, "usage_limit_reached", None),
            (400, &[], &low, Account, "credit_balance_too_low", None),
            (402, &[], &error("billing_error", "Payment is needed"), Account, "billing_error", None),
            (401, &[], &error("authentication_error", "invalid x-api-key"), Account, "authentication_error", None),
            (403, &[], &error("permission_error", "not allowed"), Account, "permission_error", None),
            (402, &[], "", Account, "billing_error", None),
            (401, &[], "", Account, "authentication_error", None),
            (403, &[], "<html>", Account, "permission_error", None),
            (403, &[], &error("invalid_request_error", "no"), Account, "invalid_request_error", None),
            (401, &[], &error("not_found_error", "no"), Account, "not_found_error", None),
            (402, &[], &error("rate_limit_error", "no"), Account, "rate_limit_error", None),
            // Another fault that quotes these words is none of the account's.
            (500, &[], &error("api_error", "Your credit balance is too low"), Transient, "api_error", None),
        ];
        hold(Api::Anthropic, rows);
    }

    #[test]
    fn faults_are_transient_and_what_can_never_work_is_fatal() {
        let rows: &[Row<'_>] = &[
            (500, &[], &error("api_error", "Internal server error"), Transient, "api_error", None),
            (504, &[], &error("timeout_error", "Timed out"), Transient, "timeout_error", None),
            (409, &[], &error("conflict_error", "Conflict"), Transient, "conflict_error", None),
            (200, &[], &error("api_error", "Internal server error"), Transient, "api_error", None),
            (502, &[], "<html>", Transient, "http_502", None),
            (
                413,
                &[],
                &error("request_too_large", "Request exceeds the maximum size"),
                Fatal,
                "request_too_large",
                None,
            ),
            (413, &[], "", Fatal, "http_413", None),
            (
                400,
                &[],
                &error("invalid_request_error", "max_tokens: field required"),
                Fatal,
                "invalid_request_error",
                None,
            ),
            (
                400,
                &[],
                &error("invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum"),
                Fatal,
                "context_length_exceeded",
                None,
            ),
            (404, &[], &error("not_found_error", "model: claude-none"), Fatal, "model_not_found", None),
            (404, &[], &error("not_found_error", "Not Found"), Fatal, "not_found_error", None),
            (307, &[], "", Fatal, "redirect_refused", None),
        ];
        hold(Api::Anthropic, rows);
    }

    #[test]
    fn the_year_ends_as_other_months_do() {
        let wait = until_next_month("2026-12-31T23:59:00.000Z".parse().unwrap()).unwrap();
        assert_eq!(wait, Duration::from_secs(60));
        let failure = classed(Api::Anthropic, 400, &[], &error("invalid_request_error", "regain access on soon"));
        assert_eq!(failure.retry_after, None);
    }
}
