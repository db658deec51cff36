//! How providers count calls against an account's limits, and what the headers of an answer, good or bad, say of those.
//! How long to wait after a refusal is `delay.rs`.

use std::time::Duration;

use promptq_common::config::Api;
use promptq_common::limits::{Counts, Heard, Measure, Per};
use promptq_common::time::{Timestamp, parse_duration};
use reqwest::header::HeaderMap;

/// What each of them is called: by OpenAI behind `x-ratelimit-limit-`, by Anthropic between `anthropic-ratelimit-` and
/// `-limit`.
const MEASURES: [(&str, Measure); 4] = [
    ("requests", Measure::Requests),
    ("tokens", Measure::Tokens),
    ("input-tokens", Measure::InputTokens),
    ("output-tokens", Measure::OutputTokens),
];
/// A limit above this is a mistake or none at all.
const MOST: i64 = 1_000_000_000_000;
/// Anthropic rounds what is left of tokens to the nearest thousand.
const ROUNDED: i64 = 500;
/// What is given back later than this (a minute, and a little for clocks) is no limit by the minute.
const MINUTE: Duration = Duration::from_secs(65);
/// How far from a whole day the length of a day's limit may come out, reckoned from what was used and when it is back.
const ABOUT: (f64, f64) = (0.8, 1.25);

/// How calls of an API count.
pub(crate) const fn counts(api: Api) -> Counts {
    match api {
        Api::OpenAi => Counts { output_upfront: true, cached_free: false },
        Api::Anthropic => Counts { output_upfront: false, cached_free: true },
        Api::Gemini => Counts { output_upfront: false, cached_free: false },
    }
}

/// What the headers of an answer say of the account's limits, at most one for each measure. Servers that have none say
/// nothing, `-1` or `0`; neither that nor anything else that cannot be is believed. `now` is what dates are measured from.
pub(crate) fn heard(headers: &HeaderMap, now: Timestamp) -> Vec<Heard> {
    let header = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let number = |text: &str| text.parse::<i64>().ok().filter(|number| (0..=MOST).contains(number));
    let openai = |(what, measure): (&str, Measure)| {
        let part = |part: &str| header(&format!("x-ratelimit-{part}-{what}"));
        let back = part("reset").and_then(length);
        told(measure, part("limit").and_then(number)?, part("remaining").and_then(number), back)
    };
    let anthropic = |(what, measure): (&str, Measure)| {
        let part = |part: &str| header(&format!("anthropic-ratelimit-{what}-{part}"));
        let back = part("reset").and_then(|at| at.parse::<Timestamp>().ok()).map(|at| at.since(now));
        let rounded = if measure == Measure::Requests { 0 } else { ROUNDED };
        let left = part("remaining").and_then(number).map(|left| left + rounded);
        told(measure, part("limit").and_then(number)?, left, back)
    };
    MEASURES.into_iter().filter_map(|measure| openai(measure).or_else(|| anthropic(measure))).collect()
}

/// A limit of `most`, with what is `left` of it and when all of it is `back`. Nothing left, and nothing that will be back,
/// is what a server says that counts nothing.
fn told(measure: Measure, most: i64, left: Option<i64>, back: Option<Duration>) -> Option<Heard> {
    if most == 0 {
        return None;
    }
    let left = left.map(|left| left.min(most)).filter(|left| *left > 0 || back.is_some_and(|back| !back.is_zero()));
    Some(Heard { measure, per: per(most, left, back), most, left })
}

/// Whether it is by the minute or by the day, which no header says: by the day where it is back later than a minute from
/// now, or where what was used comes back so slowly that all of it takes a day.
fn per(most: i64, left: Option<i64>, back: Option<Duration>) -> Per {
    let (Some(left), Some(back)) = (left, back) else { return Per::Minute };
    if back > MINUTE {
        return Per::Day;
    }
    let share = fraction(most - left) / fraction(most);
    let whole = back.as_secs_f64() / share.max(f64::MIN_POSITIVE) / 86_400.0;
    if (ABOUT.0..=ABOUT.1).contains(&whole) { Per::Day } else { Per::Minute }
}

#[expect(clippy::cast_precision_loss, reason = "exact below 2^53")]
fn fraction(number: i64) -> f64 {
    number as f64
}

/// `12ms`, `1s`, `6m0s`, or seconds.
fn length(text: &str) -> Option<Duration> {
    match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        Err(_) => parse_duration(text).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(headers: &[(&'static str, &str)]) -> Vec<Heard> {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        heard(&headers, "2026-11-21T09:14:07.000Z".parse().unwrap())
    }

    fn one(measure: Measure, per: Per, most: i64, left: Option<i64>) -> Heard {
        Heard { measure, per, most, left }
    }

    #[test]
    fn openai_tells_of_requests_and_tokens() {
        let both = read(&[
            ("x-ratelimit-limit-requests", "500"),
            ("x-ratelimit-remaining-requests", "499"),
            ("x-ratelimit-reset-requests", "120ms"),
            ("x-ratelimit-limit-tokens", " 30000 "),
            ("x-ratelimit-remaining-tokens", "28954"),
            ("x-ratelimit-reset-tokens", "2.092s"),
        ]);
        let minute = [
            one(Measure::Requests, Per::Minute, 500, Some(499)),
            one(Measure::Tokens, Per::Minute, 30_000, Some(28_954)),
        ];
        assert_eq!(both, minute);
        assert_eq!(read(&[("x-ratelimit-limit-requests", "60")]), [one(Measure::Requests, Per::Minute, 60, None)]);
    }

    #[test]
    fn anthropic_tells_of_four_and_rounds_tokens() {
        let all = read(&[
            ("anthropic-ratelimit-requests-limit", "4000"),
            ("anthropic-ratelimit-requests-remaining", "3999"),
            ("anthropic-ratelimit-requests-reset", "2026-11-21T09:14:08Z"),
            ("anthropic-ratelimit-tokens-limit", "2400000"),
            ("anthropic-ratelimit-tokens-remaining", "2400000"),
            ("anthropic-ratelimit-tokens-reset", "2026-11-21T09:14:07Z"),
            ("anthropic-ratelimit-input-tokens-limit", "2000000"),
            ("anthropic-ratelimit-input-tokens-remaining", "1999000"),
            ("anthropic-ratelimit-input-tokens-reset", "2026-11-21T09:14:08Z"),
            ("anthropic-ratelimit-output-tokens-limit", "400000"),
            ("anthropic-ratelimit-output-tokens-remaining", "0"),
            ("anthropic-ratelimit-output-tokens-reset", "2026-11-21T09:15:07Z"),
        ]);
        let minute = [
            one(Measure::Requests, Per::Minute, 4_000, Some(3_999)),
            one(Measure::Tokens, Per::Minute, 2_400_000, Some(2_400_000)),
            one(Measure::InputTokens, Per::Minute, 2_000_000, Some(1_999_500)),
            one(Measure::OutputTokens, Per::Minute, 400_000, Some(500)),
        ];
        assert_eq!(all, minute);
    }

    #[test]
    fn what_says_nothing_or_cannot_be_is_not_believed() {
        for limit in ["-1", "0", "", "many", "1e9", "12.5", "9999999999999", "99999999999999999999"] {
            assert_eq!(read(&[("x-ratelimit-limit-requests", limit)]), [], "{limit}");
        }
        assert_eq!(read(&[("x-ratelimit-remaining-requests", "5"), ("anthropic-ratelimit-tokens-reset", "soon")]), []);
        for (left, back, means) in [
            ("-1", "1s", None),
            ("few", "1s", None),
            ("0", "", None),
            ("0", "0", None),
            ("0", "-1", None),
            ("0", "20s", Some(0)),
            ("900", "1s", Some(600)),
        ] {
            let headers = [
                ("x-ratelimit-limit-tokens", "600"),
                ("x-ratelimit-remaining-tokens", left),
                ("x-ratelimit-reset-tokens", back),
            ];
            assert_eq!(read(&headers), [one(Measure::Tokens, Per::Minute, 600, means)], "{left} {back}");
        }
    }

    #[test]
    fn a_days_limit_is_known_by_when_it_is_back() {
        for (limit, left, back, per) in [
            ("14400", "14370", "2m59.56s", Per::Day),
            ("10000", "9999", "8.64s", Per::Day),
            ("200", "0", "20h12m", Per::Day),
            ("10000", "9999", "6ms", Per::Minute),
            ("60", "59", "45s", Per::Minute),
            ("60", "0", "1m0s", Per::Minute),
            ("60", "60", "0s", Per::Minute),
            ("60", "59", "", Per::Minute),
        ] {
            let headers = [
                ("x-ratelimit-limit-requests", limit),
                ("x-ratelimit-remaining-requests", left),
                ("x-ratelimit-reset-requests", back),
            ];
            assert_eq!(read(&headers)[0].per, per, "{limit} {left} {back}");
        }
    }
}
