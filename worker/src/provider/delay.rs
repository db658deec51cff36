//! How long a provider asks us to wait, from the first of the places where it may say so.

use std::time::Duration;

use promptq_common::job::Job;
use promptq_common::time::{Timestamp, parse_duration};
use reqwest::header::HeaderMap;

/// What a header or a sentence may ask for at most: a job's own default deadline; more is a mistake.
const LONGEST: Duration = Job::DEADLINE;
/// Numbers above these are moments (seconds, milliseconds since the epoch) and not lengths of time.
const EPOCH_SECONDS: f64 = 1e9;
const EPOCH_MILLIS: f64 = 1e12;

/// The wait asked for: `retry-after-ms`, `retry-after` (seconds or a date), the reset of an exhausted limit, what the body
/// has a field for (`stated`), or "try again in 8.71s" in the message, in that order. `now` is what dates are measured from.
pub(super) fn asked(headers: &HeaderMap, stated: Option<Duration>, message: &str, now: Timestamp) -> Option<Duration> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    header("retry-after-ms")
        .and_then(|text| length(text, 0.001))
        .or_else(|| header("retry-after").and_then(|text| length(text, 1.0).or_else(|| until(text, now))))
        .or_else(|| reset(&header, now).max(anthropic_reset(&header, now)))
        .or(stated)
        .or_else(|| in_words(message))
        .map(|wait| wait.min(LONGEST))
}

fn length(text: &str, unit: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(text.parse::<f64>().ok()? * unit).ok()
}

fn until(date: &str, now: Timestamp) -> Option<Duration> {
    let at = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(date).ok()?;
    Some(Timestamp::from_millis(at.as_millisecond()).since(now))
}

/// The longest reset among the limits that are used up (or that do not say what remains).
fn reset<'a>(header: &impl Fn(&str) -> Option<&'a str>, now: Timestamp) -> Option<Duration> {
    ["-requests", "-tokens", ""]
        .into_iter()
        .filter(|which| header(&format!("x-ratelimit-remaining{which}")).is_none_or(|left| left == "0"))
        .filter_map(|which| header(&format!("x-ratelimit-reset{which}")))
        .filter_map(|text| match text.parse::<f64>() {
            Ok(number) if number >= EPOCH_MILLIS => moment(number, now),
            Ok(number) if number >= EPOCH_SECONDS => moment(number * 1_000.0, now),
            Ok(_) => length(text, 1.0),
            Err(_) => parse_duration(text).ok(),
        })
        .max()
}

/// The latest reset among Anthropic's limits that are used up, and among those of a subscription that refuse: RFC 3339,
/// and seconds since the epoch.
fn anthropic_reset<'a>(header: &impl Fn(&str) -> Option<&'a str>, now: Timestamp) -> Option<Duration> {
    let limits = ["requests", "tokens", "input-tokens", "output-tokens"].into_iter();
    let used_up = limits
        .filter(|which| header(&format!("anthropic-ratelimit-{which}-remaining")).is_none_or(|left| left == "0"))
        .filter_map(|which| header(&format!("anthropic-ratelimit-{which}-reset"))?.parse::<Timestamp>().ok())
        .map(|at| at.since(now));
    let windows = ["", "5h-", "7d-"].into_iter();
    let refusing = windows
        .filter(|window| header(&format!("anthropic-ratelimit-unified-{window}status")) == Some("rejected"))
        .filter_map(|window| header(&format!("anthropic-ratelimit-unified-{window}reset"))?.parse::<f64>().ok())
        .filter_map(|seconds| moment(seconds * 1_000.0, now));
    used_up.chain(refusing).max()
}

fn moment(millis: f64, now: Timestamp) -> Option<Duration> {
    let since_epoch = Duration::try_from_secs_f64(millis / 1_000.0).ok()?;
    Some((Timestamp::from_millis(0) + since_epoch).since(now))
}

fn in_words(message: &str) -> Option<Duration> {
    let (_, rest) = ["try again in ", "retry in "].iter().find_map(|words| message.split_once(words))?;
    let text = rest.split_whitespace().next()?.trim_end_matches(['.', ',', ')']);
    parse_duration(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-11-21T09:14:07.000Z";

    fn asked_by(headers: &[(&'static str, &str)], message: &str) -> Option<f64> {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        asked(&headers, None, message, NOW.parse().unwrap()).map(|wait| wait.as_secs_f64())
    }

    #[test]
    fn every_place_is_understood() {
        for (name, value, seconds) in [
            ("retry-after-ms", "1500", Some(1.5)),
            ("retry-after", "2", Some(2.0)),
            ("retry-after", "0.25", Some(0.25)),
            ("retry-after", "Sat, 21 Nov 2026 09:15:07 GMT", Some(60.0)),
            ("retry-after", "Sat, 21 Nov 2026 09:00:00 GMT", Some(0.0)),
            ("retry-after", "-1", None),
            ("retry-after", "soon", None),
            ("retry-after", "1e300", None),
            ("retry-after", "99999999", Some(604_800.0)),
            ("x-ratelimit-reset-requests", "12ms", Some(0.012)),
            ("x-ratelimit-reset-tokens", "6m0s", Some(360.0)),
            ("x-ratelimit-reset-tokens", "-1", None),
            ("x-ratelimit-reset", "1795252449", Some(2.0)),
            ("x-ratelimit-reset", "1795252450500", Some(3.5)),
            ("x-ratelimit-reset", "7", Some(7.0)),
            ("anthropic-ratelimit-requests-reset", "2026-11-21T09:14:37Z", Some(30.0)),
            ("anthropic-ratelimit-input-tokens-reset", "2026-11-21T09:14:07.5Z", Some(0.5)),
            ("anthropic-ratelimit-output-tokens-reset", "soon", None),
            ("anthropic-ratelimit-unified-reset", "1795252449", None),
        ] {
            assert_eq!(asked_by(&[(name, value)], ""), seconds, "{name}: {value}");
        }
        assert_eq!(asked_by(&[], "Please try again in 8.71s. Visit the site"), Some(8.71));
        assert_eq!(asked_by(&[], "try again in 6m0s"), Some(360.0));
        assert_eq!(asked_by(&[], "try again in 120ms."), Some(0.12));
        assert_eq!(asked_by(&[], "try again in a while"), None);
        assert_eq!(asked_by(&[], "Please retry in 58.728s."), Some(58.728));
    }

    #[test]
    fn the_first_place_wins() {
        let mut headers = vec![("retry-after-ms", "1000"), ("retry-after", "2"), ("x-ratelimit-reset-tokens", "3s")];
        for seconds in [1.0, 2.0, 3.0, 4.0] {
            assert_eq!(asked_by(&headers, "try again in 4s"), Some(seconds));
            headers = headers.split_off(1.min(headers.len()));
        }
        let stated = Some(Duration::from_secs(9));
        assert_eq!(asked(&HeaderMap::new(), stated, "try again in 4s", NOW.parse().unwrap()), stated);
        let reset = HeaderMap::from_iter([("x-ratelimit-reset".parse().unwrap(), "7".parse().unwrap())]);
        assert_eq!(asked(&reset, stated, "", NOW.parse().unwrap()), Some(Duration::from_secs(7)));
    }

    #[test]
    fn only_a_used_up_limit_counts() {
        let headers = [
            ("x-ratelimit-remaining-requests", "59"),
            ("x-ratelimit-reset-requests", "1m0s"),
            ("x-ratelimit-remaining-tokens", "0"),
            ("x-ratelimit-reset-tokens", "5s"),
        ];
        assert_eq!(asked_by(&headers, ""), Some(5.0));
        let anthropic = [
            ("anthropic-ratelimit-requests-remaining", "59"),
            ("anthropic-ratelimit-requests-reset", "2026-11-21T10:14:07Z"),
            ("anthropic-ratelimit-tokens-remaining", "0"),
            ("anthropic-ratelimit-tokens-reset", "2026-11-21T09:14:12Z"),
            ("anthropic-ratelimit-unified-status", "allowed"),
            ("anthropic-ratelimit-unified-reset", "1795259999"),
            ("anthropic-ratelimit-unified-5h-status", "rejected"),
            ("anthropic-ratelimit-unified-5h-reset", "1795252453"),
        ];
        assert_eq!(asked_by(&anthropic, ""), Some(6.0));
        assert_eq!(asked_by(&anthropic[..4], ""), Some(5.0));
    }
}
