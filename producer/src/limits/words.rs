//! What is said of limit keys: a word, a line, a sentence for whoever asks why, what to do next. Pure.

use std::time::Duration;

use promptq_common::limits::{CapView, Measure, Per};
use promptq_common::outcome::{FailureClass, Usd};
use promptq_common::time::{Timestamp, format_duration};
use serde_json::{Value, json};

use super::{Held, Standing, State};
use crate::list::{quoted, thousands};

/// The most characters of what another side said within a line.
const SAID: usize = 80;

/// A state in one word, for programs.
pub fn word(state: State<'_>) -> &'static str {
    match state {
        State::Refused(_) => "refused",
        State::Down(_) => "unreachable",
        State::Frozen(_) => "frozen",
        State::Full(..) => "full",
        State::Throttled(_) => "throttled",
        State::Bounded(..) => "bounded",
        State::Cautious(_) => "cautious",
        State::Open => "open",
    }
}

/// In one line what holds the jobs of a key back; `None` where nothing does.
pub fn line(standing: &Standing) -> Option<String> {
    let (key, at) = (&standing.key, standing.at);
    Some(match standing.state() {
        State::Refused(held) => format!("account refused: {key} ({}), {}", said(held), tried(held, at)),
        State::Down(held) => format!("not reached: {key} ({}), {}", said(held), tried(held, at)),
        State::Frozen(until) => {
            let (why, left) = (refusal(standing), left(until, at));
            format!("limit-bound: {key} is frozen after a refusal{why} for {left}; more workers will not help")
        }
        State::Full(cap, until) => {
            let bound = if is_money(key, cap) { "budget-bound" } else { "limit-bound" };
            let rest = beside(standing, until).iter().map(|more| format!(", {more}")).collect::<Vec<_>>().concat();
            format!("{bound}: {key} {}{rest}; more workers will not help", taken(cap))
        }
        State::Throttled(held) => format!("limit-bound: {key} ({}), for {}", said(held), left(held.until, at)),
        State::Bounded(held, at_once) => {
            format!("slowed down: {key} ({}), at most {at_once} at once for {}", said(held), since(held, at))
        }
        State::Cautious(_) | State::Open => return None,
    })
}

/// For whoever asks why a job waits for a key; `None` where nothing holds it back.
pub fn sentence(standing: &Standing) -> Option<String> {
    let (key, at) = (&standing.key, standing.at);
    Some(match standing.state() {
        State::Refused(held) => format!(
            "The account of {key} has been refused for {} ({}); it is {}. Mend its key, credit or permission, then: \
             promptq limits release {}.",
            since(held, at),
            said(held),
            tried(held, at),
            quoted(key)
        ),
        State::Down(held) => {
            format!("{key} has not worked for {} ({}); it is {}.", since(held, at), said(held), tried(held, at))
        }
        State::Frozen(until) => format!(
            "{key} refused a call{} and is frozen for {}: nobody calls it until then, and more workers will not help.",
            refusal(standing),
            left(until, at)
        ),
        State::Full(cap, _) if is_money(key, cap) => format!(
            "{} of {key} are spent or kept for calls that run{}; more workers will not help, only more money{}: \
             promptq limits set {} usd=AMOUNT.",
            taken(cap),
            lacking(standing).map(|job| format!(", and a job that waits may cost {job}")).unwrap_or_default(),
            if cap.cap.per == Per::Day { ", or another day" } else { "" },
            quoted(key)
        ),
        State::Full(cap, until) => {
            let rest = beside(standing, until).iter().map(|more| format!(" ({more})")).collect::<Vec<_>>().concat();
            format!(
                "{} of {key} are used{rest}: that is what it waits for, and more workers will not help.",
                taken(cap)
            )
        }
        State::Throttled(held) => {
            let more = if is_budget(key) { String::new() } else { format!(", for {} more", left(held.until, at)) };
            format!("{key} has been held back for {} ({}){more}.", since(held, at), said(held))
        }
        State::Bounded(held, at_once) => format!(
            "{key} has been slowed down for {} ({}): at most {at_once} calls go there at once, and more workers will not help.",
            since(held, at),
            said(held)
        ),
        State::Cautious(_) | State::Open => return None,
    })
}

/// What can be done about it, a line each.
pub fn next(standing: &Standing) -> Vec<String> {
    let key = quoted(&standing.key);
    let release = format!("promptq limits release {key}");
    let mut lines = match standing.state() {
        State::Refused(_) => vec![format!("mend the account's key, credit or permission, then {release}")],
        State::Down(_) => vec![format!("it is tried again by itself; {release} tries it now")],
        State::Frozen(_) => vec![format!("it opens by itself; {release} opens it now, at full speed")],
        State::Full(cap, _) if is_money(&standing.key, cap) => {
            vec![format!("promptq limits set {key} usd=AMOUNT allows more")]
        }
        State::Full(cap, _) => vec![
            "more workers will not help: ask the provider for more, or use another model beside it".to_owned(),
            format!("promptq limits set {key} {}=AMOUNT allows more, where the account does", cap.cap.measure.as_str()),
        ],
        State::Throttled(_) => vec!["it goes on by itself".to_owned()],
        State::Bounded(..) => vec![format!("it gets more by itself while all goes well; {release} ends the bound now")],
        State::Cautious(_) => {
            vec![format!("it comes back by itself, minute by minute; {release} has it use all of its limits now")]
        }
        State::Open => vec!["nothing holds it back".to_owned()],
    };
    // A budget that was set has nothing to go back to.
    if !is_budget(&standing.key) && standing.caps().any(|cap| cap.set.is_some()) {
        lines.push(format!("promptq limits set {key} NAME=off goes back to what is configured"));
    }
    lines
}

/// A cap as data: amounts of money are decimal strings of dollars, all others numbers.
pub fn cap(cap: &CapView) -> Value {
    let measure = cap.cap.measure;
    let number = |number: i64| amount(measure, number).1;
    json!({
        "limit": cap.cap.to_string(),
        "measure": measure.as_str(),
        "per": json!(cap.cap.per).as_str().map(str::to_lowercase),
        "most": number(cap.cap.most),
        "from": from(cap),
        "configured": Some(cap.configured).filter(|most| *most < i64::MAX).map(number),
        "set": cap.set.map(number),
        "learned": cap.learned.map(number),
        "used": number(cap.used),
        "held": number(cap.in_calls),
        "granted": number(cap.held.saturating_sub(cap.in_calls)),
    })
}

/// Whose word the limit in force is.
pub fn from(cap: &CapView) -> &'static str {
    let is_learned =
        |learned: i64| learned != cap.configured && (learned <= cap.configured || cap.cap.most > cap.configured);
    match (cap.set, cap.learned) {
        (Some(_), _) => "set",
        (None, Some(learned)) if is_learned(learned) => "learned",
        (None, _) => "configured",
    }
}

/// `497 of 500 requests/min`: what is used and held of a cap.
pub fn taken(cap: &CapView) -> String {
    format!("{} of {}", amount(cap.cap.measure, cap.used.saturating_add(cap.held)).0, cap.cap)
}

/// An amount as people read it and as data: one row for each way in which measures are counted.
pub fn amount(measure: Measure, amount: i64) -> (String, Value) {
    match measure {
        Measure::Requests | Measure::InputTokens | Measure::OutputTokens | Measure::Tokens | Measure::Concurrent => {
            (thousands(u64::try_from(amount).unwrap_or_default()), json!(amount))
        }
        Measure::Usd => (measure.say(amount), json!(Usd::from_nanos(amount))),
    }
}

/// Whether a key is money of a batch or of a queue.
pub fn is_budget(key: &str) -> bool {
    key.starts_with("batch:") || key.starts_with("budget:")
}

/// Whether a cap is on what calls cost.
fn is_money(key: &str, cap: &CapView) -> bool {
    is_budget(key) || cap.cap.measure == Measure::Usd
}

/// What a job may cost that there is no money for.
pub(super) fn lacking(standing: &Standing) -> Option<String> {
    standing.lacks().map(|(_, lack)| Measure::Usd.say(lack.least))
}

/// What there is to say of a full cap beside that it is.
fn beside(standing: &Standing, until: Option<Timestamp>) -> Vec<String> {
    caution(standing).into_iter().chain(until.and_then(|until| room(until, standing.at))).collect()
}

/// `at 50 % after refusals`.
pub(super) fn caution(standing: &Standing) -> Option<String> {
    let rate = standing.shared.as_ref()?.rate;
    (rate < 1.0).then(|| format!("at {:.0} % after refusals", rate * 100.0))
}

/// Room that comes within the minute is nothing to speak of.
fn room(until: Timestamp, at: Timestamp) -> Option<String> {
    (until.since(at) > Duration::from_secs(60)).then(|| format!("room in {}", left(until, at)))
}

pub(super) fn tried(held: &Held, at: Timestamp) -> String {
    if held.probing || held.until <= at {
        return "tried again now".to_owned();
    }
    format!("tried again in {}", left(held.until, at))
}

fn since(held: &Held, at: Timestamp) -> String {
    format_duration(at.since(held.since))
}

/// Whole seconds, at least one.
pub(super) fn left(until: Timestamp, at: Timestamp) -> String {
    let seconds = until.since(at).as_millis().div_ceil(1_000).max(1);
    format_duration(Duration::from_secs(u64::try_from(seconds).unwrap_or(u64::MAX)))
}

/// ` (rate_limit: slow down)`: what was said by the refusal that froze a key, if that is known.
fn refusal(standing: &Standing) -> String {
    let why = standing.shared.as_ref().and_then(|shared| shared.why.as_deref());
    let is_refusal = |held: &&Held| held.class == FailureClass::Throttled && held.cap.is_none();
    let why = why.or_else(|| standing.held.iter().find(is_refusal).map(|held| held.detail.as_str()));
    why.map_or_else(String::new, |why| format!(" ({})", short(why)))
}

/// The beginning of what the other side said, on one line.
fn said(held: &Held) -> String {
    short(&held.detail)
}

fn short(detail: &str) -> String {
    let detail = detail.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut said: String = detail.chars().take(SAID).collect();
    if said.len() < detail.len() {
        said.push('…');
    }
    said
}

#[cfg(test)]
mod tests {
    use promptq_common::limits::PoolView;

    use super::super::tests::{standing, told, view, worker};
    use super::*;

    fn held(class: FailureClass, detail: &str) -> Standing {
        standing(Some(view((10, 0), (0, 0))), &[worker("w", vec![told("acme/gpt", class, detail)])])
    }

    fn shared(view: PoolView) -> Standing {
        standing(Some(view), &[])
    }

    #[test]
    fn a_line_says_which_limit_until_when_and_that_more_workers_will_not_help() {
        let full = view((490, 7), (0, 0));
        let frozen = PoolView { frozen_for: 11_200, ..full.clone() };
        let told_why = PoolView { why: Some("rate_limit: slow\ndown".into()), ..frozen.clone() };
        let slowed = PoolView { rate: 0.5, ..full.clone() };
        let day = told("acme/gpt", FailureClass::Throttled, "all of 500 requests/min is used; …");
        for (standing, says) in [
            (shared(full.clone()), "limit-bound: acme/gpt 497 of 500 requests/min; more workers will not help"),
            (
                shared(slowed),
                "limit-bound: acme/gpt 497 of 500 requests/min, at 50 % after refusals; more workers will not help",
            ),
            (shared(frozen), "limit-bound: acme/gpt is frozen after a refusal for 12s; more workers will not help"),
            (
                shared(told_why),
                "limit-bound: acme/gpt is frozen after a refusal (rate_limit: slow down) for 12s; more workers will not help",
            ),
            (held(FailureClass::Account, "no\ncredit"), "account refused: acme/gpt (no credit), tried again in 1m"),
            (held(FailureClass::Capacity, "connect"), "not reached: acme/gpt (connect), tried again in 1m"),
            (held(FailureClass::Throttled, "slow down"), "limit-bound: acme/gpt (slow down), for 1m"),
            (
                standing(Some(full.clone()), &[worker("w", vec![day])]),
                "limit-bound: acme/gpt 497 of 500 requests/min; more workers will not help",
            ),
            (
                Standing { key: "batch:nov".into(), ..shared(full) },
                "budget-bound: batch:nov 497 of 500 requests/min; more workers will not help",
            ),
        ] {
            assert_eq!(line(&standing).as_deref(), Some(says));
        }
        assert_eq!(line(&shared(view((10, 0), (0, 0)))), None);
        let mut bounded = told("acme/gpt", FailureClass::Capacity, "it has too much to do");
        bounded.at_once = Some(12);
        let slowed = standing(None, &[worker("w", vec![bounded])]);
        let says = "slowed down: acme/gpt (it has too much to do), at most 12 at once for 10s";
        assert_eq!(line(&slowed).as_deref(), Some(says));
        assert!(sentence(&slowed).unwrap().contains("at most 12 calls go there at once"));
        let long = line(&held(FailureClass::Account, &"x".repeat(500))).unwrap();
        assert!(long.chars().count() < 200, "{long}");
    }

    #[test]
    fn a_sentence_says_what_to_do_where_a_person_can_do_something() {
        let says = |standing: &Standing| sentence(standing).unwrap();
        let account = says(&held(FailureClass::Account, "no credit"));
        assert!(account.contains("refused for 10s (no credit)"), "{account}");
        assert!(account.contains("promptq limits release acme/gpt"), "{account}");
        let full = says(&shared(view((490, 7), (0, 0))));
        assert!(
            full.contains("497 of 500 requests/min of acme/gpt are used") && full.contains("will not help"),
            "{full}"
        );
        let money = says(&Standing { key: "budget:default".into(), ..shared(view((490, 7), (0, 0))) });
        assert!(money.contains("promptq limits set budget:default usd="), "{money}");
        let named = Standing { key: "batch:my nov".into(), ..shared(view((490, 7), (0, 0))) };
        assert!(says(&named).contains("promptq limits set 'batch:my nov' usd="), "{}", says(&named));
        assert_eq!(next(&named), ["promptq limits set 'batch:my nov' usd=AMOUNT allows more"]);
        let frozen = says(&shared(PoolView { frozen_for: 1, ..view((0, 0), (0, 0)) }));
        assert!(frozen.contains("frozen for 1s") && frozen.contains("will not help"), "{frozen}");
        let told = told("acme/gpt", FailureClass::Throttled, "slow down");
        let frozen = PoolView { frozen_for: 1, ..view((0, 0), (0, 0)) };
        let by_a_worker = says(&standing(Some(frozen), &[worker("w", vec![told])]));
        assert!(by_a_worker.starts_with("acme/gpt refused a call (slow down) and is frozen"), "{by_a_worker}");
        assert_eq!(sentence(&shared(view((0, 0), (0, 0)))), None);
    }

    #[test]
    fn money_that_is_missing_is_told_with_what_a_job_may_cost() {
        let account = shared(super::super::binding::tests::spent(0));
        assert!(line(&account).unwrap().starts_with("budget-bound: acme/gpt $0.04 of $0.0475/day; more workers"));
        let why = sentence(&account).unwrap();
        assert!(
            why.contains("and a job that waits may cost $0.01; more workers will not help, only more money"),
            "{why}"
        );
        assert_eq!(next(&account), ["promptq limits set acme/gpt usd=AMOUNT allows more"]);
    }

    #[test]
    fn whose_word_a_limit_is_and_what_can_be_done_is_told() {
        let of = |set, learned, most| {
            let mut cap = view((0, 0), (0, 0)).caps[0];
            (cap.set, cap.learned, cap.cap.most) = (set, learned, most);
            from(&cap)
        };
        assert_eq!([of(None, None, 500), of(None, Some(500), 500)], ["configured"; 2]);
        assert_eq!([of(None, Some(300), 300), of(None, Some(300), 150), of(None, Some(900), 900)], ["learned"; 3]);
        assert_eq!(of(None, Some(900), 500), "configured", "headers may not raise it");
        assert_eq!(of(Some(100), Some(300), 100), "set");
        let mut view_of = view((0, 0), (0, 0));
        assert_eq!(next(&shared(view_of.clone())), ["nothing holds it back"]);
        view_of.caps[0].set = Some(100);
        view_of.rate = 0.5;
        let lines = next(&shared(view_of)).join("\n");
        assert!(lines.contains("promptq limits release acme/gpt") && lines.contains("NAME=off"), "{lines}");
    }

    #[test]
    fn a_cap_as_data_has_numbers_and_no_number_that_nobody_meant() {
        let mut cap = view((490, 7), (0, 0)).caps[0];
        cap.configured = i64::MAX;
        cap.set = Some(500);
        let data = super::cap(&cap);
        assert_eq!(
            (&data["limit"], &data["per"], &data["from"]),
            (&"500 requests/min".into(), &"minute".into(), &"set".into())
        );
        assert_eq!((&data["used"], &data["held"], &data["configured"]), (&490.into(), &7.into(), &Value::Null));
    }
}
