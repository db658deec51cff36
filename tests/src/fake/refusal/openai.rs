//! How `OpenAI`, and servers like it, say no: `{"error":{"message","type","param","code"}}`.

use serde_json::{Value, json};

use super::{About, Row, Said, go_duration};
use crate::fake::allowance::{Dimension, Per};
use crate::fake::kind::Kind;
use crate::fake::limits::Denied;

const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";
const QUOTA: &str = "insufficient_quota";
const EXCEEDED: &str = "You exceeded your current quota, please check your plan and billing details.";

/// What is said in which case.
pub(super) const TABLE: &[Row] = &[
    (
        Kind::Overloaded,
        503,
        SERVER,
        "server_is_overloaded",
        "The server is currently overloaded with other requests. Sorry about that! You can retry your request.",
    ),
    (Kind::Unavailable, 503, SERVER, "", "Service temporarily unavailable."),
    (Kind::SlowDown, 503, SERVER, "slow_down", "Your traffic has grown too fast. Please slow down."),
    (
        Kind::ServerError,
        500,
        SERVER,
        SERVER,
        "The server had an error while processing your request. Sorry about that!",
    ),
    (Kind::GatewayTimeout, 504, SERVER, "", "The upstream server did not answer in time."),
    (Kind::RequestTimeout, 408, "timeout", "", "Request timed out."),
    (Kind::Conflict, 409, "conflict_error", "", "The resource was changed by another request."),
    (
        Kind::RateLimited,
        429,
        "requests",
        "rate_limit_exceeded",
        "Rate limit reached for {model} in organization org-fake on requests per min (RPM).",
    ),
    (
        Kind::RequestTooLarge,
        429,
        "tokens",
        "rate_limit_exceeded",
        "Request too large for {model} in organization org-fake on tokens per min (TPM): Limit 30000, Requested 46245. The input or output tokens must be reduced in order to run successfully.",
    ),
    (Kind::FlexUnavailable, 429, "resource_unavailable", "", "429 Resource Unavailable"),
    (
        Kind::CapacityExceeded,
        498,
        "capacity_exceeded",
        "capacity_exceeded",
        "Flex tier capacity exceeded, please try again later.",
    ),
    (
        Kind::DailyLimit,
        429,
        "requests",
        "rate_limit_exceeded",
        "Rate limit reached for {model} in organization org-fake on requests per day (RPD): Limit 200, Used 200, Requested 1. Please try again in 7m12s.",
    ),
    (Kind::InsufficientQuota, 429, QUOTA, QUOTA, EXCEEDED),
    (Kind::CreditExhausted, 429, QUOTA, "credit_balance_exhausted", EXCEEDED),
    (
        Kind::SpendLimit,
        429,
        QUOTA,
        "organization_spend_limit_exceeded",
        "Your organization has reached its spend limit.",
    ),
    (Kind::ProjectSpendLimit, 429, QUOTA, "project_spend_limit_exceeded", "Your project has reached its spend limit."),
    (
        Kind::UsageLimit,
        429,
        QUOTA,
        "organization_usage_limit_exceeded",
        "Your organization has reached its usage limit.",
    ),
    (Kind::Billing, 402, "payment_required", "", "Insufficient credits."),
    (Kind::InvalidKey, 401, INVALID, "invalid_api_key", "Incorrect API key provided."),
    (Kind::Permission, 403, INVALID, "permission_denied", "You have insufficient permissions for this operation."),
    (
        Kind::Region,
        403,
        "request_forbidden",
        "unsupported_country_region_territory",
        "Country, region, or territory not supported",
    ),
    (
        Kind::Moderated,
        403,
        "",
        "",
        "Your chosen model requires moderation and your input was flagged. No credits were charged.",
    ),
    (
        Kind::ModelNotFound,
        404,
        INVALID,
        "model_not_found",
        "The model `{model}` does not exist or you do not have access to it.",
    ),
    (
        Kind::ContextLength,
        400,
        INVALID,
        "context_length_exceeded",
        "This model's maximum context length is 8192 tokens. However, your messages resulted in more. Please reduce the length of the messages.",
    ),
    (
        Kind::Content,
        400,
        INVALID,
        "content_policy_violation",
        "Your request was rejected as a result of our safety system.",
    ),
    (Kind::InvalidRequest, 400, INVALID, "", "Unsupported value in the request."),
    (Kind::Unprocessable, 422, INVALID, "", "The request was well-formed and could not be followed."),
    (Kind::BodyTooLarge, 413, INVALID, "", "Request body is too large."),
];

/// Which row stands in for one that is not there.
pub(super) const OTHERWISE: &[(Kind, Kind)] = &[(Kind::NoSuchTier, Kind::ModelNotFound)];

/// In the envelope.
pub(super) fn body(said: Said, kind: Kind, message: &str) -> Value {
    let or_null = |text: &str| if text.is_empty() { Value::Null } else { text.into() };
    let param = if kind == Kind::ContextLength { json!("messages") } else { Value::Null };
    let mut error =
        json!({ "message": message, "type": or_null(said.kind), "param": param, "code": or_null(said.code) });
    // These two are OpenRouter's, whose codes are numbers.
    if kind == Kind::Billing {
        error["code"] = 402.into();
        error["metadata"] = json!({ "limit_source": "openrouter_credits" });
    }
    if kind == Kind::Moderated {
        error["code"] = 403.into();
        error["metadata"] = json!({ "reasons": ["harassment"] });
    }
    json!({ "error": error })
}

/// A limit is used up, or smaller than the request.
pub(super) fn denied(denied: &Denied, told: Option<u64>, about: About<'_>) -> Value {
    let (what, short, kind) = match denied.dimension {
        Dimension::Requests => ("requests", "R", "requests"),
        Dimension::InputTokens => ("input tokens", "IT", "tokens"),
        Dimension::OutputTokens => ("output tokens", "OT", "tokens"),
        Dimension::Tokens => ("tokens", "T", "tokens"),
        Dimension::Concurrent => ("concurrent requests", "C", "requests"),
    };
    let (per, letter) = if denied.per == Per::Minute { ("min", "PM") } else { ("day", "PD") };
    let of = format!("for {} in organization org-fake on {what} per {per} ({short}{letter})", about.model);
    let Denied { limit, used, requested, .. } = *denied;
    let message = if denied.wait.is_none() {
        format!(
            "Request too large {of}: Limit {limit}, Requested {requested}. The input or output tokens must be reduced in \
             order to run successfully."
        )
    } else {
        let again = told.map(|wait| format!(" Please try again in {}.", go_duration(wait))).unwrap_or_default();
        format!("Rate limit reached {of}: Limit {limit}, Used {used}, Requested {requested}.{again}")
    };
    json!({ "error": { "message": message, "type": kind, "param": null, "code": "rate_limit_exceeded" } })
}
