//! How limits stand, in the headers of each provider.

use promptq_common::time::Timestamp;

use super::allowance::{Dimension, HeaderMode};
use super::limits::Standing;
use super::refusal::go_duration;
use super::shape::Api;

/// What Anthropic leaves is told in thousands; below this limit that would be nothing at all, and it is told as it is.
const ROUNDED_FROM: u64 = 100_000;

/// The headers of one answer.
pub fn of(api: Api, mode: HeaderMode, standings: &[Standing], unix_ms: i64) -> Vec<(String, String)> {
    match (api, mode) {
        (_, HeaderMode::None) | (Api::Gemini, _) => Vec::new(),
        (_, HeaderMode::MinusOne) => minus_one(api),
        (Api::OpenAi, HeaderMode::Own) => standings.iter().flat_map(openai).collect(),
        (Api::Anthropic, HeaderMode::Own) => {
            standings.iter().flat_map(|standing| anthropic(standing, unix_ms)).collect()
        }
    }
}

fn minus_one(api: Api) -> Vec<(String, String)> {
    let names = ["limit-requests", "remaining-requests", "limit-tokens", "remaining-tokens"];
    match api {
        Api::OpenAi => names.map(|name| (format!("x-ratelimit-{name}"), "-1".to_owned())).to_vec(),
        Api::Anthropic | Api::Gemini => Vec::new(),
    }
}

/// Of requests and tokens; the others it does not know.
fn openai(standing: &Standing) -> Vec<(String, String)> {
    let what = match standing.dimension {
        Dimension::Requests => "requests",
        Dimension::Tokens => "tokens",
        Dimension::InputTokens | Dimension::OutputTokens | Dimension::Concurrent => return Vec::new(),
    };
    vec![
        (format!("x-ratelimit-limit-{what}"), standing.limit.to_string()),
        (format!("x-ratelimit-remaining-{what}"), standing.remaining.to_string()),
        (format!("x-ratelimit-reset-{what}"), go_duration(standing.reset)),
    ]
}

fn anthropic(standing: &Standing, unix_ms: i64) -> Vec<(String, String)> {
    let what = match standing.dimension {
        Dimension::Requests => "requests",
        Dimension::Tokens => "tokens",
        Dimension::InputTokens => "input-tokens",
        Dimension::OutputTokens => "output-tokens",
        Dimension::Concurrent => return Vec::new(),
    };
    let is_rounded = standing.dimension != Dimension::Requests && standing.limit >= ROUNDED_FROM;
    let remaining = if is_rounded { (standing.remaining + 500) / 1_000 * 1_000 } else { standing.remaining };
    // In whole seconds, and never before it is true.
    let at = (unix_ms.saturating_add(i64::try_from(standing.reset).unwrap_or(0)) + 999).div_euclid(1_000) * 1_000;
    let at = Timestamp::from_millis(at).to_string().replace(".000Z", "Z");
    vec![
        (format!("anthropic-ratelimit-{what}-limit"), standing.limit.to_string()),
        (format!("anthropic-ratelimit-{what}-remaining"), remaining.to_string()),
        (format!("anthropic-ratelimit-{what}-reset"), at),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_763_716_447_123;

    fn told(api: Api, mode: HeaderMode, dimension: Dimension, remaining: u64) -> String {
        let standing = Standing { dimension, limit: 200_000, remaining, reset: 360_000 };
        let headers = of(api, mode, &[standing], NOW);
        headers.into_iter().map(|(name, value)| format!("{name}: {value}")).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn each_provider_tells_it_in_its_own_way() {
        let openai =
            "x-ratelimit-limit-tokens: 200000\nx-ratelimit-remaining-tokens: 1499\nx-ratelimit-reset-tokens: 6m0s";
        assert_eq!(told(Api::OpenAi, HeaderMode::Own, Dimension::Tokens, 1_499), openai);
        let anthropic = "anthropic-ratelimit-input-tokens-limit: 200000\nanthropic-ratelimit-input-tokens-remaining: 1000\n\
                         anthropic-ratelimit-input-tokens-reset: 2025-11-21T09:20:08Z";
        assert_eq!(told(Api::Anthropic, HeaderMode::Own, Dimension::InputTokens, 1_499), anthropic);
        assert_eq!(told(Api::Gemini, HeaderMode::Own, Dimension::Tokens, 5), "");
        assert_eq!(told(Api::OpenAi, HeaderMode::Own, Dimension::InputTokens, 5), "");
    }

    #[test]
    fn headers_can_be_missing_or_say_nothing() {
        assert_eq!(told(Api::OpenAi, HeaderMode::None, Dimension::Tokens, 5), "");
        let azure = told(Api::OpenAi, HeaderMode::MinusOne, Dimension::Tokens, 5);
        assert!(azure.contains("x-ratelimit-remaining-tokens: -1") && !azure.contains("reset"), "{azure}");
    }
}
