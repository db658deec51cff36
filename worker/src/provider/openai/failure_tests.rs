//! `OpenAI`, the servers that speak its API, and `OpenRouter`: the rows of the table of failure classes.

use promptq_common::config::Api;

use super::*;
use crate::provider::rows::{Row, classed, hold};

const QUOTA: &str = r#"{"error":{"message":"You exceeded your current quota, please check your plan and billing details.","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}"#;
const LARGE: &str = r#"{"error":{"message":"Request too large for gpt-4o in organization org-x on tokens per min (TPM): Limit 30000, Requested 46245. The input or output tokens must be reduced in order to run successfully.","type":"tokens","param":null,"code":"rate_limit_exceeded"}}"#;
const REACHED: &str = r#"{"error":{"message":"Rate limit reached for gpt-4o in organization org-x on tokens per min (TPM): Limit 30000, Used 29000, Requested 4624. Please try again in 7.248s. Visit https://platform.openai.com/account/rate-limits to learn more.","type":"tokens","param":null,"code":"rate_limit_exceeded"}}"#;

#[test]
fn a_rate_limit_is_throttled_and_a_request_that_never_fits_is_fatal() {
    let rows: &[Row<'_>] = &[
        (429, &[], REACHED, Throttled, "rate_limit_exceeded", Some(7.248)),
        (429, &[("retry-after", "8")], REACHED, Throttled, "rate_limit_exceeded", Some(8.0)),
        (
            429,
            &[("x-ratelimit-remaining-tokens", "0"), ("x-ratelimit-reset-tokens", "6m0s")],
            REACHED,
            Throttled,
            "rate_limit_exceeded",
            Some(360.0),
        ),
        (429, &[], "", Throttled, "rate_limit_exceeded", None),
        (429, &[], LARGE, Fatal, "request_too_large", None),
        (
            429,
            &[],
            r#"{"error":{"message":"tokens per min: Limit 30000, Requested 46245."}}"#,
            Fatal,
            "request_too_large",
            None,
        ),
        (429, &[], r#"{"error":{"message":"Slow down","code":"slow_down"}}"#, Throttled, "slow_down", None),
        (503, &[], r#"{"error":{"message":"Slow down","code":"slow_down"}}"#, Throttled, "slow_down", None),
    ];
    hold(Api::OpenAi, rows);
}

#[test]
fn an_overloaded_provider_is_capacity() {
    let rows: &[Row<'_>] = &[
        (
            503,
            &[],
            r#"{"error":{"message":"Overloaded","code":"server_is_overloaded"}}"#,
            Capacity,
            "server_is_overloaded",
            None,
        ),
        (
            429,
            &[],
            r#"{"error":{"message":"429 Resource Unavailable","code":null}}"#,
            Capacity,
            "resource_unavailable",
            None,
        ),
        (
            429,
            &[],
            r#"{"error":{"message":"Resource Unavailable","code":"rate_limit_exceeded"}}"#,
            Capacity,
            "resource_unavailable",
            None,
        ),
        (
            498,
            &[],
            r#"{"error":{"message":"Flex tier is full","type":"flex_tier","code":"capacity_exceeded"}}"#,
            Capacity,
            "capacity_exceeded",
            None,
        ),
        (503, &[], "", Capacity, "http_503", None),
        (529, &[], "", Capacity, "http_529", None),
        (200, &[], r#"{"error":{"code":503,"message":"no instance"}}"#, Capacity, "http_503", None),
    ];
    hold(Api::OpenAi, rows);
}

#[test]
fn an_account_without_credit_key_or_right_is_held_whatever_the_status() {
    for code in [
        "insufficient_quota",
        "credit_balance_exhausted",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
        "organization_usage_limit_exceeded",
        "billing_not_active",
    ] {
        let body =
            format!(r#"{{"error":{{"message":"You exceeded it","type":"insufficient_quota","code":"{code}"}}}}"#);
        for status in [429, 400, 403] {
            hold(Api::OpenAi, &[(status, &[], &body, Account, code, None)]);
        }
    }
    let rows: &[Row<'_>] = &[
        (429, &[], QUOTA, Account, "insufficient_quota", None),
        (429, &[], r#"{"error":{"type":"insufficient_quota","code":null}}"#, Account, "insufficient_quota", None),
        (
            401,
            &[],
            r#"{"error":{"message":"Incorrect API key provided: sk-x","code":"invalid_api_key"}}"#,
            Account,
            "invalid_api_key",
            None,
        ),
        (401, &[], "", Account, "invalid_api_key", None),
        (
            403,
            &[],
            r#"{"error":{"message":"Country not supported","code":"unsupported_country_region_territory"}}"#,
            Account,
            "unsupported_country_region_territory",
            None,
        ),
        (403, &[], "", Account, "permission_denied", None),
        (402, &[], "", Account, "payment_required", None),
    ];
    hold(Api::OpenAi, rows);
}

#[test]
fn what_can_never_work_is_fatal_and_what_may_not_be_said_is_content() {
    let long = r#"{"error":{"message":"This model's maximum context length is 8192 tokens","code":"context_length_exceeded"}}"#;
    let rows: &[Row<'_>] = &[
        (
            404,
            &[],
            r#"{"error":{"message":"The model x does not exist","code":"model_not_found"}}"#,
            Fatal,
            "model_not_found",
            None,
        ),
        (404, &[], r#"{"error":"model 'x' not found"}"#, Fatal, "model_not_found", None),
        (404, &[], "", Fatal, "http_404", None),
        (400, &[], long, Fatal, "context_length_exceeded", None),
        (
            400,
            &[],
            r#"{"error":{"code":400,"message":"too long","type":"exceed_context_size_error"}}"#,
            Fatal,
            "context_length_exceeded",
            None,
        ),
        (
            400,
            &[],
            r#"{"object":"error","message":"This model's maximum context length is 2048 tokens","code":400}"#,
            Fatal,
            "context_length_exceeded",
            None,
        ),
        (
            400,
            &[],
            r#"{"error":{"message":"Unknown","code":"unsupported_parameter"}}"#,
            Fatal,
            "unsupported_parameter",
            None,
        ),
        (413, &[], "", Fatal, "http_413", None),
        (422, &[], r#"{"error":{"type":"invalid_request_error"}}"#, Fatal, "invalid_request_error", None),
        (307, &[], "", Fatal, "redirect_refused", None),
        (501, &[], r#"{"error":{"code":501,"type":"not_supported_error"}}"#, Fatal, "not_supported_error", None),
        (
            400,
            &[],
            r#"{"error":{"message":"No","code":"content_policy_violation"}}"#,
            Content,
            "content_policy_violation",
            None,
        ),
        (400, &[], r#"{"error":{"message":"No","code":"content_filter"}}"#, Content, "content_filter", None),
    ];
    hold(Api::OpenAi, rows);
}

#[test]
fn server_faults_are_transient() {
    for status in [408, 409, 500, 502, 504, 520] {
        let code = format!("http_{status}");
        hold(Api::OpenAi, &[(status, &[], "<html>", Transient, &code, None)]);
    }
    let failed = r#"{"status":"failed","error":{"code":"server_error","message":"Sorry"}}"#;
    hold(Api::OpenAi, &[(200, &[], failed, Transient, "server_error", None)]);
    let paid = r#"{"status":"failed","error":{"code":"server_error"},"usage":{"input_tokens":5,"output_tokens":2}}"#;
    let usage = classed(Api::OpenAi, 200, &[], paid).usage;
    assert_eq!(usage, Usage { input_tokens: 5, output_tokens: 2, ..Usage::default() });
}

#[test]
fn openrouter_says_whose_limit_it_is() {
    let paid = |limit: &str| {
        format!(
            r#"{{"error":{{"code":402,"message":"Insufficient credits","metadata":{{"limit_source":"{limit}"}}}}}}"#
        )
    };
    let (credits, key) = (paid("openrouter_credits"), paid("openrouter_key_limit"));
    let down =
        r#"{"error":{"code":502,"message":"Provider returned error","metadata":{"provider_name":"Acme","raw":"x"}}}"#;
    let flagged = r#"{"error":{"code":403,"message":"Your input was flagged","metadata":{"reasons":["violence"]}}}"#;
    let rows: &[Row<'_>] = &[
        (402, &[], &credits, Account, "openrouter_credits", None),
        (402, &[], &key, Account, "openrouter_key_limit", None),
        (
            429,
            &[("x-ratelimit-reset", "1795252450500")],
            r#"{"error":{"code":429,"message":"slow"}}"#,
            Throttled,
            "rate_limit_exceeded",
            Some(3.5),
        ),
        (502, &[], down, Capacity, "http_502", None),
        (503, &[], r#"{"error":{"code":503,"message":"No provider","metadata":{}}}"#, Capacity, "http_503", None),
        (403, &[], flagged, Content, "content_policy_violation", None),
        (
            200,
            &[],
            r#"{"choices":[{"error":{"code":502,"message":"cut","metadata":{"provider_name":"Acme"}}}]}"#,
            Capacity,
            "http_502",
            None,
        ),
    ];
    hold(Api::OpenAi, rows);
}
