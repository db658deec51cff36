//! Every kind of refusal in the words of every API, and how a wait is told.

use super::*;
use crate::fake::allowance::{Dimension, Per};
use crate::fake::kind::Stage;

const APIS: [Api; 3] = [Api::OpenAi, Api::Anthropic, Api::Gemini];
const ABOUT: About<'_> = About { model: "m-1", request_id: "req_1", unix_ms: 1_763_716_447_123 };

fn kinds() -> impl Iterator<Item = Kind> {
    Kind::ALL.into_iter().filter(|kind| kind.stage() == Stage::Refused)
}

fn refused(api: Api, kind: Kind) -> (u16, String) {
    let refusal = Refusal::of_fault(api, &FaultRule::new(kind), ABOUT);
    (refusal.status, refusal.body)
}

#[test]
fn every_kind_is_said_by_every_api_in_its_own_form() {
    for kind in kinds() {
        for api in APIS {
            let (status, body) = refused(api, kind);
            if (api, kind) == (Api::Gemini, Kind::Content) {
                assert!(status == 200 && body.contains("blockReason"), "{status} {body}");
                continue;
            }
            assert!(status >= 400, "{api:?} {kind:?}");
            if kind == Kind::BadGateway {
                assert!(body.starts_with("<html>"));
                continue;
            }
            let body: Value = serde_json::from_str(&body).unwrap();
            assert!(body["error"]["message"].as_str().is_some_and(|message| !message.contains('{')), "{body}");
            match api {
                Api::OpenAi => assert!(body["error"].get("code").is_some() && body["error"].get("param").is_some()),
                Api::Anthropic => assert!(body["type"] == "error" && body["request_id"] == "req_1", "{body}"),
                Api::Gemini => {
                    assert!(body["error"]["code"] == status && body["error"]["status"].is_string(), "{body}");
                }
            }
        }
    }
}

#[test]
fn the_rows_of_the_table_of_failure_classes_are_there() {
    for (api, kind, status, says) in [
        (Api::OpenAi, Kind::RateLimited, 429, "\"code\":\"rate_limit_exceeded\""),
        (Api::OpenAi, Kind::RequestTooLarge, 429, "Limit 30000, Requested 46245"),
        (Api::OpenAi, Kind::SlowDown, 503, "\"code\":\"slow_down\""),
        (Api::OpenAi, Kind::Overloaded, 503, "\"code\":\"server_is_overloaded\""),
        (Api::OpenAi, Kind::FlexUnavailable, 429, "Resource Unavailable"),
        (Api::OpenAi, Kind::CapacityExceeded, 498, "\"code\":\"capacity_exceeded\""),
        (Api::OpenAi, Kind::InsufficientQuota, 429, "\"code\":\"insufficient_quota\""),
        (Api::OpenAi, Kind::CreditExhausted, 429, "\"code\":\"credit_balance_exhausted\""),
        (Api::OpenAi, Kind::SpendLimit, 429, "\"code\":\"organization_spend_limit_exceeded\""),
        (Api::OpenAi, Kind::ProjectSpendLimit, 429, "\"code\":\"project_spend_limit_exceeded\""),
        (Api::OpenAi, Kind::UsageLimit, 429, "\"code\":\"organization_usage_limit_exceeded\""),
        (Api::OpenAi, Kind::InvalidKey, 401, "\"code\":\"invalid_api_key\""),
        (Api::OpenAi, Kind::Region, 403, "unsupported_country"),
        (Api::OpenAi, Kind::ModelNotFound, 404, "\"code\":\"model_not_found\""),
        (Api::OpenAi, Kind::ContextLength, 400, "\"code\":\"context_length_exceeded\""),
        (Api::OpenAi, Kind::Content, 400, "\"code\":\"content_policy_violation\""),
        (Api::OpenAi, Kind::Billing, 402, "openrouter_credits"),
        (Api::OpenAi, Kind::Moderated, 403, "flagged"),
        (Api::Anthropic, Kind::RateLimited, 429, "\"rate_limit_error\""),
        (Api::Anthropic, Kind::SpendLimit, 429, "\"details\":{\"error_code\":\"enforced_spend_limit_reached\"}"),
        (Api::Anthropic, Kind::UsageLimit, 400, "You have reached your specified API usage limits"),
        (Api::Anthropic, Kind::CreditExhausted, 400, "credit balance is too low"),
        (Api::Anthropic, Kind::Billing, 402, "\"billing_error\""),
        (Api::Anthropic, Kind::Overloaded, 529, "\"overloaded_error\""),
        (Api::Anthropic, Kind::GatewayTimeout, 504, "\"timeout_error\""),
        (Api::Anthropic, Kind::BodyTooLarge, 413, "\"request_too_large\""),
        (Api::Gemini, Kind::RateLimited, 429, "PerMinute"),
        (Api::Gemini, Kind::DailyLimit, 429, "PerDay"),
        (Api::Gemini, Kind::NoSuchTier, 429, "limit: 0"),
        (Api::Gemini, Kind::Region, 400, "FAILED_PRECONDITION"),
        (Api::Gemini, Kind::InvalidRequest, 400, "INVALID_ARGUMENT"),
        (Api::Gemini, Kind::InvalidKey, 400, "\"reason\":\"API_KEY_INVALID\""),
        (Api::Gemini, Kind::Overloaded, 503, "UNAVAILABLE"),
    ] {
        let (said, body) = refused(api, kind);
        assert!(said == status && body.contains(says), "{api:?} {kind:?}: {said} {body}");
    }
}

#[test]
fn a_rule_has_the_last_word() {
    let rule = r#"{"kind":"slow_down","status":429,"message":"Slower!","retry_after":"1500ms","headers":{"x-a":"b"}}"#;
    let refusal = Refusal::of_fault(Api::OpenAi, &serde_json::from_str(rule).unwrap(), ABOUT);
    assert_eq!(refusal.status, 429);
    assert!(refusal.body.contains("Slower!") && refusal.body.contains("slow_down"));
    let told: Vec<_> = refusal.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(told, [("retry-after", "2"), ("retry-after-ms", "1500"), ("x-a", "b")]);
}

#[test]
fn a_wait_is_told_in_every_way() {
    let denied = Denied {
        dimension: Dimension::Tokens,
        per: Per::Minute,
        limit: 30_000,
        used: 29_000,
        requested: 4_624,
        wait: Some(7_248),
    };
    let said = |api, mode| {
        let refusal = Refusal::denied(api, &denied, mode, ABOUT);
        assert_eq!(refusal.status, 429);
        let headers: Vec<_> = refusal.headers.into_iter().map(|(name, value)| format!("{name}: {value}")).collect();
        (headers.join(", "), refusal.body)
    };
    let (headers, body) = said(Api::OpenAi, None);
    assert_eq!(headers, "retry-after: 8, retry-after-ms: 7248");
    assert!(body.contains("(TPM): Limit 30000, Used 29000, Requested 4624. Please try again in 7.248s."), "{body}");
    assert_eq!(said(Api::OpenAi, Some(RetryAfter::Date)).0, "retry-after: Fri, 21 Nov 2025 09:14:16 GMT");
    let (headers, body) = said(Api::OpenAi, Some(RetryAfter::None));
    assert!(headers.is_empty() && !body.contains("try again"), "{headers} {body}");
    assert_eq!(said(Api::Anthropic, None).0, "retry-after: 8");
    let (headers, body) = said(Api::Gemini, None);
    assert!(headers.is_empty() && body.contains("\"retryDelay\":\"7.248s\""), "{body}");
    assert!(!said(Api::Gemini, Some(RetryAfter::None)).1.contains("retryDelay"));
}

#[test]
fn what_never_fits_is_too_large_and_has_no_wait() {
    let (dimension, per) = (Dimension::Tokens, Per::Minute);
    let denied = Denied { dimension, per, limit: 30_000, used: 0, requested: 46_245, wait: None };
    let refusal = Refusal::denied(Api::OpenAi, &denied, None, ABOUT);
    assert!(refusal.body.contains("Request too large for m-1"), "{}", refusal.body);
    assert!(refusal.headers.is_empty());
}

#[test]
fn lengths_of_time_are_written_as_go_does() {
    for (millis, text) in
        [(12, "12ms"), (1_000, "1s"), (8_710, "8.71s"), (360_000, "6m0s"), (3_600_000, "1h0m0s"), (61_500, "1m1.5s")]
    {
        assert_eq!(go_duration(millis), text);
    }
}
