//! From a refused request to a failure's class: which quota is used up first, then the error's own status, then HTTP's.
//! One table, row by row tested.

use std::time::Duration;

use jiff::tz::TimeZone;
use promptq_common::outcome::{Failure, FailureClass};
use promptq_common::time::{Timestamp, parse_duration};
use serde_json::Value;

use self::FailureClass::{Account, Capacity, Content, Fatal, Throttled, Transient};
use super::answer::{REFUSING, usage};
use crate::provider::delay;
use crate::provider::refusal::{self, Refusal};

/// Where quotas of a day end at midnight: Pacific time, by the rule of the law itself, for a host need not have the table
/// of all time zones.
const PACIFIC: &str = "PST8PDT,M3.2.0,M11.1.0";
/// A 500 may mean that the context is too long: a job meets it so often.
const TRIES: u8 = 2;

/// Classes a refusal, or what came in an answer's place. `secrets` are texts that the failure's detail must not repeat.
pub(crate) fn classify(refusal: Refusal<'_>, secrets: &[&str], now: Timestamp) -> Failure {
    let said = Said::read(refusal.body);
    if let Some(blocked) = said.blocked.clone() {
        let mut failure = refusal::failure(refusal.status, (Content, blocked), "", secrets);
        failure.usage = usage(&said.usage);
        return failure;
    }
    let status = match refusal.status {
        200..300 => said.number.unwrap_or(refusal.status),
        status => status,
    };
    let (class, code) = verdict(status, &said);
    let daily = code == DAILY;
    let mut failure = refusal::failure(status, (class, code), &said.message, secrets);
    failure.retry_after = delay::asked(refusal.headers, said.retry_delay, &said.message, now);
    if daily {
        // The wait it names is that of its minute.
        failure.retry_after = failure.retry_after.max(until_midnight(now));
    }
    failure.tries = (status == 500 && class == Transient).then_some(TRIES);
    failure
}

const DAILY: &str = "daily_quota_exceeded";

/// What an error body says, and what an answer says that was held back.
#[derive(Debug, Default)]
struct Said {
    number: Option<u16>,
    /// `RESOURCE_EXHAUSTED` and the like.
    status: String,
    message: String,
    /// Why, where it has a name: `API_KEY_INVALID`.
    reasons: Vec<String>,
    /// The quotas that are used up: id and size.
    quotas: Vec<(String, String)>,
    retry_delay: Option<Duration>,
    blocked: Option<String>,
    usage: Value,
}

impl Said {
    fn read(body: &[u8]) -> Self {
        let mut body: Value = serde_json::from_slice(body).unwrap_or_default();
        // Whole lists of errors come where a stream was asked for.
        if let Some(first) = body.get_mut(0) {
            body = first.take();
        }
        let error = &body["error"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let details = error["details"].as_array().map(Vec::as_slice).unwrap_or_default();
        let violations = details.iter().filter_map(|detail| detail["violations"].as_array()).flatten();
        let finish = body.pointer("/candidates/0/finishReason").and_then(Value::as_str);
        let block = body["promptFeedback"]["blockReason"].as_str();
        Self {
            number: error["code"].as_u64().and_then(|code| u16::try_from(code).ok()),
            status: text(&error["status"]),
            message: text(&error["message"]),
            reasons: details.iter().map(|detail| text(&detail["reason"])).filter(|reason| !reason.is_empty()).collect(),
            quotas: violations.map(|quota| (text(&quota["quotaId"]), text(&quota["quotaValue"]))).collect(),
            retry_delay: details.iter().find_map(|detail| parse_duration(detail["retryDelay"].as_str()?).ok()),
            blocked: block
                .map(|reason| format!("prompt_{}", reason.to_ascii_lowercase()))
                .map(|reason| refusal::name(&[&reason], "prompt_blocked"))
                .or_else(|| finish.filter(|reason| REFUSING.contains(reason)).map(str::to_ascii_lowercase)),
            usage: body["usageMetadata"].clone(),
        }
    }

    fn has_reason(&self, name: &str) -> bool {
        self.reasons.iter().any(|reason| reason.eq_ignore_ascii_case(name))
    }

    /// The tier has none of it: "… limit: 0, model: …".
    fn has_none(&self) -> bool {
        let said = self.message.split("limit: 0").skip(1);
        let mut ends = said.map(|rest| !rest.starts_with(|next: char| next.is_ascii_digit() || next == '.'));
        self.quotas.iter().any(|(_, size)| size == "0") || ends.any(|end| end)
    }

    fn is_daily(&self) -> bool {
        let exceeded = "quota_exceeded";
        self.quotas.iter().any(|(id, _)| id.contains("PerDay"))
            || self.has_reason(exceeded)
            || self.status.eq_ignore_ascii_case(exceeded)
    }
}

fn verdict(status: u16, said: &Said) -> (FailureClass, String) {
    let plain = said.status.to_ascii_lowercase();
    let named = |otherwise: &str| refusal::name(&[&plain], otherwise);
    let http = format!("http_{status}");
    match (status, said.status.as_str()) {
        (429, _) | (_, "RESOURCE_EXHAUSTED") if said.has_none() => (Fatal, "no_quota".to_owned()),
        (429, _) | (_, "RESOURCE_EXHAUSTED") if said.is_daily() => (Account, DAILY.to_owned()),
        (429, _) | (_, "RESOURCE_EXHAUSTED") => (Throttled, named("resource_exhausted")),
        (400, _) if said.has_reason("API_KEY_INVALID") => (Account, "api_key_invalid".to_owned()),
        (401, _) => (Account, named("unauthenticated")),
        (402, _) => (Account, named("payment_required")),
        (403, _) => (Account, named("permission_denied")),
        (400, "FAILED_PRECONDITION") => (Account, named("failed_precondition")),
        (400, _) if said.message.contains("exceeds the maximum number of tokens") => {
            (Fatal, "context_length_exceeded".to_owned())
        }
        (404, _) if said.message.contains("model") => (Fatal, "model_not_found".to_owned()),
        (503 | 529, _) => (Capacity, named(&http)),
        (300..=399, _) => (Fatal, "redirect_refused".to_owned()),
        (501 | 505, _) => (Fatal, named(&http)),
        (408 | 409 | 499 | 500..=599, _) => (Transient, named(&http)),
        (200..300, _) => (Transient, named("provider_error")),
        _ => (Fatal, named(&http)),
    }
}

fn until_midnight(now: Timestamp) -> Option<Duration> {
    let pacific = TimeZone::posix(PACIFIC).ok()?;
    let here = jiff::Timestamp::from_millisecond(now.as_millis()).ok()?.to_zoned(pacific);
    let midnight = here.tomorrow().ok()?.start_of_day().ok()?.timestamp();
    Some(Timestamp::from_millis(midnight.as_millisecond()).since(now))
}

#[cfg(test)]
mod tests {
    use promptq_common::config::Api;
    use promptq_common::outcome::Usage;

    use super::*;
    use crate::provider::rows::{Row, classed, hold};

    fn exhausted(quota: &str, size: &str) -> String {
        serde_json::json!({ "error": {
            "code": 429,
            "message": "You exceeded your current quota, please check your plan and billing details.",
            "status": "RESOURCE_EXHAUSTED",
            "details": [
                { "@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [
                    { "quotaMetric": "generativelanguage.googleapis.com/generate_content_free_tier_requests", "quotaId": quota, "quotaValue": size },
                ] },
                { "@type": "type.googleapis.com/google.rpc.Help", "links": [] },
                { "@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "22s" },
            ],
        } })
        .to_string()
    }

    fn error(code: u16, status: &str, message: &str) -> String {
        serde_json::json!({ "error": { "code": code, "message": message, "status": status } }).to_string()
    }

    /// From 09:14:07 UTC, which is 01:14:07 Pacific standard time, to midnight there.
    const DAY: Option<f64> = Some(86_400.0 - 4_447.0);

    #[test]
    fn a_quota_of_a_minute_is_throttled_one_of_a_day_holds_the_account_and_none_is_fatal() {
        let minute = exhausted("GenerateRequestsPerMinutePerProjectPerModel-FreeTier", "10");
        let day = exhausted("GenerateRequestsPerDayPerProjectPerModel-FreeTier", "250");
        let none = exhausted("GenerateRequestsPerDayPerProjectPerModel-FreeTier", "0");
        let words = error(
            429,
            "RESOURCE_EXHAUSTED",
            "* Quota exceeded for metric: x, limit: 0, model: gemini-x\nPlease retry in 58.7s.",
        );
        let some = error(
            429,
            "RESOURCE_EXHAUSTED",
            "* Quota exceeded for metric: x, limit: 05, model: gemini-x\nPlease retry in 58.7s.",
        );
        let reason = r#"{"error":{"code":429,"message":"Out","status":"RESOURCE_EXHAUSTED","details":[{"reason":"QUOTA_EXCEEDED"}]}}"#;
        let rows: &[Row<'_>] = &[
            (429, &[], &minute, Throttled, "resource_exhausted", Some(22.0)),
            (429, &[("retry-after", "3")], &minute, Throttled, "resource_exhausted", Some(3.0)),
            (429, &[], &some, Throttled, "resource_exhausted", Some(58.7)),
            (429, &[], "", Throttled, "resource_exhausted", None),
            (429, &[], &day, Account, "daily_quota_exceeded", DAY),
            (429, &[], reason, Account, "daily_quota_exceeded", DAY),
            (429, &[], &none, Fatal, "no_quota", Some(22.0)),
            (429, &[], &words, Fatal, "no_quota", Some(58.7)),
            // In the middle of a stream.
            (200, &[], &minute, Throttled, "resource_exhausted", Some(22.0)),
        ];
        hold(Api::Gemini, rows);
    }

    #[test]
    fn an_overload_is_capacity_and_faults_are_transient() {
        let rows: &[Row<'_>] = &[
            (503, &[], &error(503, "UNAVAILABLE", "The model is overloaded."), Capacity, "unavailable", None),
            (503, &[], "", Capacity, "http_503", None),
            (504, &[], &error(504, "DEADLINE_EXCEEDED", "Deadline expired"), Transient, "deadline_exceeded", None),
            (500, &[], &error(500, "INTERNAL", "An internal error has occurred"), Transient, "internal", None),
            (502, &[], "<html>", Transient, "http_502", None),
        ];
        hold(Api::Gemini, rows);
        let tries = |status| classed(Api::Gemini, status, &[], "").tries;
        assert_eq!((tries(500), tries(504), tries(503)), (Some(2), None, None));
    }

    #[test]
    fn an_account_is_held_and_what_can_never_work_is_fatal() {
        let key = r#"{"error":{"code":400,"message":"API key not valid. Please pass a valid API key.","status":"INVALID_ARGUMENT","details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"API_KEY_INVALID","domain":"googleapis.com"}]}}"#;
        let region = error(400, "FAILED_PRECONDITION", "User location is not supported for the API use.");
        let long = error(
            400,
            "INVALID_ARGUMENT",
            "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
        );
        let rows: &[Row<'_>] = &[
            (400, &[], &region, Account, "failed_precondition", None),
            (403, &[], &error(403, "PERMISSION_DENIED", "Denied"), Account, "permission_denied", None),
            (403, &[], "", Account, "permission_denied", None),
            (401, &[], &error(401, "UNAUTHENTICATED", "x"), Account, "unauthenticated", None),
            (400, &[], key, Account, "api_key_invalid", None),
            (400, &[], &error(400, "INVALID_ARGUMENT", "Bad temperature"), Fatal, "invalid_argument", None),
            (400, &[], &long, Fatal, "context_length_exceeded", None),
            (404, &[], &error(404, "NOT_FOUND", "models/x is not found"), Fatal, "model_not_found", None),
            (404, &[], "", Fatal, "http_404", None),
            (302, &[], "", Fatal, "redirect_refused", None),
        ];
        hold(Api::Gemini, rows);
    }

    #[test]
    fn what_is_held_back_for_what_it_says_is_content_and_was_paid_for() {
        let prompt =
            r#"{"promptFeedback":{"blockReason":"PROHIBITED_CONTENT"},"usageMetadata":{"promptTokenCount":9}}"#;
        let answer = r#"{"candidates":[{"finishReason":"SAFETY"}],"usageMetadata":{"promptTokenCount":9,"candidatesTokenCount":2}}"#;
        let rows: &[Row<'_>] = &[
            (200, &[], prompt, Content, "prompt_prohibited_content", None),
            (200, &[], answer, Content, "safety", None),
            (200, &[], r#"{"promptFeedback":{"blockReason":"because you said so"}}"#, Content, "prompt_blocked", None),
        ];
        hold(Api::Gemini, rows);
        let usage = classed(Api::Gemini, 200, &[], answer).usage;
        assert_eq!(usage, Usage { input_tokens: 9, output_tokens: 2, ..Usage::default() });
    }

    #[test]
    fn midnight_is_pacific_in_summer_and_winter() {
        for (now, seconds) in [
            ("2026-07-01T06:59:00.000Z", 60),
            ("2026-07-01T07:00:00.000Z", 86_400),
            ("2026-12-01T07:59:00.000Z", 60),
            // The clocks go forward: a day of 23 hours.
            ("2026-03-08T08:00:00.000Z", 23 * 3_600),
        ] {
            assert_eq!(until_midnight(now.parse().unwrap()), Some(Duration::from_secs(seconds)), "{now}");
        }
    }
}
