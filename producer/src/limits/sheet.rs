//! One limit key for people, line by line: its limits, what holds it back, what to do next. Pure.

use promptq_common::limits::Cap;
use promptq_common::time::{Timestamp, format_duration};

use super::brief::brief;
use super::{Standing, words};

/// One key for people. `configured` is what the settings here say of it.
pub fn lines(standing: &Standing, configured: &[Cap]) -> Vec<String> {
    let at = standing.at;
    let when = |moment: Timestamp| {
        let apart = if moment > at { format!("in {}", format_duration(moment.since(at))) } else { "now".to_owned() };
        format!("{moment} ({apart})")
    };
    let mut lines = vec![format!("LIMIT {}  {}", standing.key, brief(standing, standing.state()))];
    let mut say = |name: &str, value: String| lines.push(format!("{name:<10} {value}"));
    for cap in standing.caps() {
        let amount = |number| words::amount(cap.cap.measure, number).0;
        let from = words::from(cap);
        let differs = from != "configured" && cap.configured < i64::MAX;
        let configured = if differs { format!(" ({} configured)", amount(cap.configured)) } else { String::new() };
        let (used, held) = (amount(cap.used), amount(cap.in_calls));
        say("limit", format!("{}, {from}{configured}; {used} used, {held} held by calls", cap.cap));
    }
    if standing.shared.is_none() {
        for cap in configured {
            say("limit", format!("{cap}, not used by any worker yet"));
        }
    }
    if let Some(shared) = standing.shared.as_ref().filter(|shared| !shared.caps.is_empty()) {
        say("workers", format!("{} use it, {} of them wait for more", shared.workers, shared.starving));
        if shared.rate < 1.0 {
            say("caution", format!("{:.0} % of its limits are used after refusals", shared.rate * 100.0));
        }
    }
    if let Some(until) = standing.frozen_until() {
        let why = standing.shared.as_ref().and_then(|shared| shared.why.as_deref());
        say("frozen", format!("until {}{}", when(until), why.map(|why| format!(": {why}")).unwrap_or_default()));
    }
    for held in &standing.held {
        let since = format_duration(at.since(held.since));
        say(held.class.as_str(), format!("{}, for {since}", held.detail));
        let by = held.workers.join(", ");
        say(
            "",
            match held.at_once {
                Some(most) => format!("at most {most} calls at once, from {by}"),
                None => format!("tried again {}, by {by}", when(held.until)),
            },
        );
        let jobs = held.lanes.iter().map(|(queue, model)| format!("{queue}/{}", model.as_deref().unwrap_or("_")));
        if !held.lanes.is_empty() {
            say("", format!("jobs that wait: {}", jobs.collect::<Vec<_>>().join(", ")));
        }
    }
    for next in words::next(standing) {
        say("next", next);
    }
    lines
}

#[cfg(test)]
mod tests {
    use promptq_common::ledger::HeldKey;
    use promptq_common::limits::{Measure, Per};
    use promptq_common::outcome::FailureClass;

    use super::super::tests::{standing, told, view, worker};
    use super::*;

    #[test]
    fn a_key_is_shown_with_what_to_do_next() {
        let mut shared = view((490, 7), (80, 20));
        (shared.caps[0].set, shared.rate, shared.frozen_for) = (Some(500), 0.5, 30_000);
        shared.caps[0].configured = 600;
        let workers = [worker("w", vec![told("acme/gpt", FailureClass::Account, "no credit")])];
        let text = lines(&standing(Some(shared), &workers), &[]).join("\n");
        for part in [
            "LIMIT acme/gpt  account refused, tried again in 1m",
            "limit      500 requests/min, set (600 configured); 490 used, 7 held by calls",
            "limit      90000 tokens/min, configured; 80 used, 20 held by calls",
            "workers    2 use it, 0 of them wait for more",
            "caution    50 % of its limits",
            "frozen     until 1970-01-01T00:02:10.000Z (in 30s)",
            "account    no credit, for 10s",
            "by w",
            "jobs that wait: default/gpt",
            "next       mend the account's key",
            "next       promptq limits set acme/gpt NAME=off",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        let bounded = HeldKey { at_once: Some(12), ..told("acme/gpt", FailureClass::Capacity, "too much to do") };
        let text = lines(&standing(None, &[worker("w", vec![bounded])]), &[]).join("\n");
        assert!(
            text.contains("capacity   too much to do, for 10s\n           at most 12 calls at once, from w"),
            "{text}"
        );
        let cap = Cap { measure: Measure::Requests, per: Per::Minute, most: 9 };
        let text = lines(&standing(None, &[]), &[cap]).join("\n");
        assert!(
            text.contains("9 requests/min, not used by any worker yet") && text.contains("nothing holds"),
            "{text}"
        );
    }
}
