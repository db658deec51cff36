//! How Gemini says no: `{"error":{"code","message","status","details"}}`, with the quota and the wait among the details.

use serde_json::{Value, json};

use super::{About, Row, Said};
use crate::fake::allowance::{Dimension, Per};
use crate::fake::kind::Kind;
use crate::fake::limits::Denied;

const EXHAUSTED: &str = "RESOURCE_EXHAUSTED";
const QUOTA: &str = "You exceeded your current quota, please check your plan and billing details.";

/// What is said in which case; the code is the quota that is used up.
pub(super) const TABLE: &[Row] = &[
    (Kind::Overloaded, 503, "UNAVAILABLE", "", "The model is overloaded. Please try again later."),
    (Kind::ServerError, 500, "INTERNAL", "", "An internal error has occurred. Please retry."),
    (Kind::GatewayTimeout, 504, "DEADLINE_EXCEEDED", "", "Deadline expired before operation could complete."),
    (Kind::RequestTimeout, 408, "CANCELLED", "", "The operation was cancelled."),
    (Kind::Conflict, 409, "ABORTED", "", "The operation was aborted."),
    (Kind::RateLimited, 429, EXHAUSTED, "GenerateRequestsPerMinutePerProjectPerModel", QUOTA),
    (Kind::DailyLimit, 429, EXHAUSTED, "GenerateRequestsPerDayPerProjectPerModel", QUOTA),
    (
        Kind::NoSuchTier,
        429,
        EXHAUSTED,
        "GenerateRequestsPerDayPerProjectPerModel-FreeTier",
        "You exceeded your current quota. Quota exceeded for metric: generate_content_free_tier_requests, limit: 0, model: {model}",
    ),
    (Kind::Region, 400, "FAILED_PRECONDITION", "", "User location is not supported for the API use."),
    (Kind::Billing, 400, "FAILED_PRECONDITION", "", "This API requires billing to be enabled on the project."),
    (Kind::InvalidKey, 400, "INVALID_ARGUMENT", "", "API key not valid. Please pass a valid API key."),
    (Kind::Permission, 403, "PERMISSION_DENIED", "", "The caller does not have permission."),
    (Kind::ModelNotFound, 404, "NOT_FOUND", "", "models/{model} is not found for API version v1beta."),
    (
        Kind::ContextLength,
        400,
        "INVALID_ARGUMENT",
        "",
        "The input token count exceeds the maximum number of tokens allowed.",
    ),
    (Kind::InvalidRequest, 400, "INVALID_ARGUMENT", "", "Request contains an invalid argument."),
    (Kind::BodyTooLarge, 413, "INVALID_ARGUMENT", "", "Request payload size exceeds the limit."),
];

/// Which row stands in for one that is not there.
pub(super) const OTHERWISE: &[(Kind, Kind)] = &[
    (Kind::Unavailable, Kind::Overloaded),
    (Kind::SlowDown, Kind::Overloaded),
    (Kind::FlexUnavailable, Kind::Overloaded),
    (Kind::CapacityExceeded, Kind::Overloaded),
    (Kind::RequestTooLarge, Kind::RateLimited),
    (Kind::InsufficientQuota, Kind::DailyLimit),
    (Kind::CreditExhausted, Kind::DailyLimit),
    (Kind::SpendLimit, Kind::DailyLimit),
    (Kind::ProjectSpendLimit, Kind::DailyLimit),
    (Kind::UsageLimit, Kind::DailyLimit),
    (Kind::Unprocessable, Kind::InvalidRequest),
    (Kind::Moderated, Kind::InvalidRequest),
];

/// In the envelope.
pub(super) fn body(said: Said, kind: Kind, message: &str, wait: Option<u64>, about: About<'_>) -> Value {
    let limit = if message.contains("limit: 0") { 0 } else { 15 };
    let mut details = Vec::new();
    if !said.code.is_empty() {
        details.push(quota(said.code, limit, about));
    }
    if kind == Kind::InvalidKey {
        let metadata = json!({ "service": "generativelanguage.googleapis.com" });
        details.push(json!({
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": "API_KEY_INVALID",
            "domain": "googleapis.com",
            "metadata": metadata,
        }));
    }
    envelope(said.status, (said.kind, message), details, wait)
}

/// A limit is used up.
pub(super) fn denied(denied: &Denied, told: Option<u64>, about: About<'_>) -> Value {
    let what = match denied.dimension {
        Dimension::Requests | Dimension::Concurrent => "Requests",
        Dimension::InputTokens | Dimension::Tokens => "ContentInputTokens",
        Dimension::OutputTokens => "ContentOutputTokens",
    };
    let per = if denied.per == Per::Minute { "Minute" } else { "Day" };
    let id = format!("Generate{what}Per{per}PerProjectPerModel");
    let message = format!("{QUOTA} Quota exceeded for metric: {id}, limit: {}, model: {}", denied.limit, about.model);
    envelope(429, (EXHAUSTED, &message), vec![quota(&id, denied.limit, about)], told)
}

/// The quota that is used up.
fn quota(id: &str, limit: u64, about: About<'_>) -> Value {
    let dimensions = json!({ "location": "global", "model": about.model });
    let metric = "generativelanguage.googleapis.com/generate_content_requests";
    json!({
        "@type": "type.googleapis.com/google.rpc.QuotaFailure",
        "violations": [{ "quotaMetric": metric, "quotaId": id, "quotaDimensions": dimensions, "quotaValue": limit.to_string() }],
    })
}

fn envelope(status: u16, (kind, message): (&str, &str), mut details: Vec<Value>, wait: Option<u64>) -> Value {
    if let Some(wait) = wait {
        let (seconds, rest) = (wait / 1_000, wait % 1_000);
        let delay = if rest == 0 { format!("{seconds}s") } else { format!("{seconds}.{rest:03}s") };
        details.push(json!({ "@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay }));
    }
    let mut error = json!({ "code": status, "message": message, "status": kind });
    if !details.is_empty() {
        error["details"] = details.into();
    }
    json!({ "error": error })
}
