//! How Anthropic says no: `{"type":"error","error":{"type","message"},"request_id"}`.

use serde_json::{Value, json};

use super::{About, Row, Said};
use crate::fake::allowance::{Dimension, Per};
use crate::fake::kind::Kind;
use crate::fake::limits::Denied;

const INVALID: &str = "invalid_request_error";
const LIMIT: &str = "rate_limit_error";

/// What is said in which case.
pub(super) const TABLE: &[Row] = &[
    (Kind::Overloaded, 529, "overloaded_error", "", "Overloaded"),
    (Kind::Unavailable, 503, "api_error", "", "Service unavailable"),
    (Kind::ServerError, 500, "api_error", "", "Internal server error"),
    (
        Kind::GatewayTimeout,
        504,
        "timeout_error",
        "",
        "Request timed out. Try again, or use streaming for long requests.",
    ),
    (Kind::RequestTimeout, 408, "timeout_error", "", "Request timed out"),
    (Kind::Conflict, 409, "conflict_error", "", "The resource was changed by another request"),
    (Kind::RateLimited, 429, LIMIT, "", "This request would exceed your organization's rate limit."),
    (
        Kind::SpendLimit,
        429,
        LIMIT,
        "enforced_spend_limit_reached",
        "You have reached the spend limit of your organization.",
    ),
    (
        Kind::UsageLimit,
        400,
        INVALID,
        "",
        "You have reached your specified API usage limits. You will regain access on 2099-01-01 at 00:00 UTC.",
    ),
    (
        Kind::ProjectSpendLimit,
        400,
        INVALID,
        "",
        "You have reached your specified workspace API usage limits. You will regain access on 2099-01-01 at 00:00 UTC.",
    ),
    (
        Kind::CreditExhausted,
        400,
        INVALID,
        "",
        "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to upgrade or purchase credits.",
    ),
    (Kind::Billing, 402, "billing_error", "", "There is an issue with your billing or payment information."),
    (Kind::InvalidKey, 401, "authentication_error", "", "invalid x-api-key"),
    (
        Kind::Permission,
        403,
        "permission_error",
        "",
        "Your API key does not have permission to use the specified resource.",
    ),
    (Kind::ModelNotFound, 404, "not_found_error", "", "model: {model}"),
    (Kind::ContextLength, 400, INVALID, "", "prompt is too long: 215000 tokens > 200000 maximum"),
    (Kind::Content, 400, INVALID, "", "Output blocked by content filtering policy"),
    (Kind::InvalidRequest, 400, INVALID, "", "messages: this value is not allowed"),
    (Kind::Unprocessable, 422, INVALID, "", "The request was well-formed and could not be followed."),
    (Kind::BodyTooLarge, 413, "request_too_large", "", "Request exceeds the maximum size"),
];

/// Which row stands in for one that is not there.
pub(super) const OTHERWISE: &[(Kind, Kind)] = &[
    (Kind::SlowDown, Kind::Overloaded),
    (Kind::FlexUnavailable, Kind::Overloaded),
    (Kind::CapacityExceeded, Kind::Overloaded),
    (Kind::RequestTooLarge, Kind::RateLimited),
    (Kind::DailyLimit, Kind::RateLimited),
    (Kind::NoSuchTier, Kind::ModelNotFound),
    (Kind::InsufficientQuota, Kind::CreditExhausted),
    (Kind::Region, Kind::Permission),
    (Kind::Moderated, Kind::Content),
];

/// In the envelope.
pub(super) fn body(said: Said, message: &str, about: About<'_>) -> Value {
    let mut error = json!({ "type": said.kind, "message": message });
    if !said.code.is_empty() {
        error["details"] = json!({ "error_code": said.code });
    }
    json!({ "type": "error", "error": error, "request_id": about.request_id })
}

/// A limit is used up.
pub(super) fn denied(denied: &Denied, about: About<'_>) -> Value {
    let what = match denied.dimension {
        Dimension::Requests => "requests",
        Dimension::InputTokens => "input tokens",
        Dimension::OutputTokens => "output tokens",
        Dimension::Tokens => "tokens",
        Dimension::Concurrent => "concurrent connections",
    };
    let per = if denied.per == Per::Minute { "minute" } else { "day" };
    let limit = denied.limit;
    let message = if denied.dimension == Dimension::Concurrent {
        format!("Number of concurrent connections has exceeded your rate limit of {limit}. Please try again later.")
    } else {
        format!("This request would exceed your organization's rate limit of {limit} {what} per {per}.")
    };
    let error = json!({ "type": LIMIT, "message": message });
    json!({ "type": "error", "error": error, "request_id": about.request_id })
}
