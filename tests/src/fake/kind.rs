//! The kinds of things that go wrong. Which call they strike is `fault.rs`'s, how they look `refusal/`'s and `deliver.rs`'s.

use serde::{Deserialize, Serialize};

/// What may go wrong. Where an API has no such thing it answers with what comes nearest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// 503, Anthropic 529.
    Overloaded,
    /// 503 without more.
    Unavailable,
    /// 503 `slow_down`.
    SlowDown,
    /// 500.
    ServerError,
    /// 502 with a page of HTML.
    BadGateway,
    /// 504.
    GatewayTimeout,
    /// 408.
    RequestTimeout,
    /// 409.
    Conflict,
    /// 429 as if a limit per minute were used up.
    RateLimited,
    /// 429: this request is larger than the limit, Anthropic and Gemini as `rate_limited`.
    RequestTooLarge,
    /// 429 "Resource Unavailable" of the flex tier.
    FlexUnavailable,
    /// 498 `capacity_exceeded`, as Groq's flex tier.
    CapacityExceeded,
    /// 429, per day.
    DailyLimit,
    /// 429, `limit: 0`: this tier has no such model.
    NoSuchTier,
    /// 429 `insufficient_quota`.
    InsufficientQuota,
    /// 429 `credit_balance_exhausted`; Anthropic 400 "credit balance is too low".
    CreditExhausted,
    /// 429 `organization_spend_limit_exceeded`; Anthropic 429 `enforced_spend_limit_reached`.
    SpendLimit,
    /// 429 `project_spend_limit_exceeded`.
    ProjectSpendLimit,
    /// 429 `organization_usage_limit_exceeded`; Anthropic 400 "reached your specified API usage limits".
    UsageLimit,
    /// 402.
    Billing,
    /// 401.
    InvalidKey,
    /// 403.
    Permission,
    /// 403, Gemini 400 `FAILED_PRECONDITION`: not from here.
    Region,
    /// 403 as `OpenRouter` moderates.
    Moderated,
    /// 404.
    ModelNotFound,
    /// 400: the prompt is too long for the model.
    ContextLength,
    /// 400: refused for what it says; Gemini 200 with a `blockReason`.
    Content,
    /// 400.
    InvalidRequest,
    /// 422.
    Unprocessable,
    /// 413.
    BodyTooLarge,
    /// 200 and refused within: `content_filter`, `refusal`, `SAFETY`.
    RefusedAnswer,
    /// Answered, but `delay` later.
    Slow,
    /// The connection ends in place of an answer.
    CutBeforeHeaders,
    /// The connection ends within the headers.
    CutInHeaders,
    /// The connection ends within the body.
    CutInBody,
    /// 200 whose body is cut in the middle although HTTP says it is whole.
    MalformedJson,
    /// 200 without a body.
    EmptyBody,
    /// 200 and an error in the body, in a stream after half of it.
    ErrorInside,
    /// Half of the answer, then nothing, while the connection stays.
    Stalled,
    /// Nothing, while the connection stays.
    Silent,
}

/// When in a call a kind of fault shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// In place of the work: a refusal, nothing was done.
    Refused,
    /// When the work is done, or while it is.
    Delivery,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 40] = [
        Self::Overloaded,
        Self::Unavailable,
        Self::SlowDown,
        Self::ServerError,
        Self::BadGateway,
        Self::GatewayTimeout,
        Self::RequestTimeout,
        Self::Conflict,
        Self::RateLimited,
        Self::RequestTooLarge,
        Self::FlexUnavailable,
        Self::CapacityExceeded,
        Self::DailyLimit,
        Self::NoSuchTier,
        Self::InsufficientQuota,
        Self::CreditExhausted,
        Self::SpendLimit,
        Self::ProjectSpendLimit,
        Self::UsageLimit,
        Self::Billing,
        Self::InvalidKey,
        Self::Permission,
        Self::Region,
        Self::Moderated,
        Self::ModelNotFound,
        Self::ContextLength,
        Self::Content,
        Self::InvalidRequest,
        Self::Unprocessable,
        Self::BodyTooLarge,
        Self::RefusedAnswer,
        Self::Slow,
        Self::CutBeforeHeaders,
        Self::CutInHeaders,
        Self::CutInBody,
        Self::MalformedJson,
        Self::EmptyBody,
        Self::ErrorInside,
        Self::Stalled,
        Self::Silent,
    ];

    /// When it shows.
    pub fn stage(self) -> Stage {
        let in_delivery = matches!(
            self,
            Self::RefusedAnswer
                | Self::Slow
                | Self::CutBeforeHeaders
                | Self::CutInHeaders
                | Self::CutInBody
                | Self::MalformedJson
                | Self::EmptyBody
                | Self::ErrorInside
                | Self::Stalled
                | Self::Silent
        );
        if in_delivery { Stage::Delivery } else { Stage::Refused }
    }

    /// As it is written in a configuration.
    pub fn name(self) -> String {
        serde_json::to_value(self).ok().and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
    }
}
