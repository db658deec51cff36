//! The sections `limits.KEY`: what may be used of an account, by whoever shares it.

use super::error::Origin;
use super::reader::Reader;
use crate::broker::HoldKey;
use crate::limits::{Cap, DOLLARS, Measure, Per, Rule, covers, dollars_of};

/// The settings of a key, and what each counts.
const NAMES: [(&str, Measure, Per); 9] = [
    ("requests", Measure::Requests, Per::Minute),
    ("input_tokens", Measure::InputTokens, Per::Minute),
    ("output_tokens", Measure::OutputTokens, Per::Minute),
    ("tokens", Measure::Tokens, Per::Minute),
    ("requests_per_day", Measure::Requests, Per::Day),
    ("tokens_per_day", Measure::Tokens, Per::Day),
    ("concurrent", Measure::Concurrent, Per::Moment),
    ("usd", Measure::Usd, Per::Day),
    ("usd_per_day", Measure::Usd, Per::Day),
];

/// Every key that has a section.
pub(super) fn limits(r: &mut Reader<'_>) -> Vec<Rule> {
    let mut rules = Vec::new();
    for key in r.names("limits") {
        let (mut caps, errors) = (Vec::new(), r.errors.len());
        for (name, measure, usual) in NAMES {
            let path = ["limits", key.as_str(), name];
            let cap = if measure == Measure::Usd {
                r.amount(&path, spending)
            } else {
                let said = r.amount(&path, |text| Rate::read(text, usual));
                said.map(|Rate { most, per }| Cap { measure, per, most })
            };
            let is_same = |known: &Cap| cap.is_some_and(|cap| (known.measure, known.per) == (cap.measure, cap.per));
            if caps.iter().any(is_same) {
                r.wrong(&path, "says another amount of what an earlier setting of the key limits too; name one");
            }
            caps.extend(cap);
        }
        let adaptive = r.boolean(&["limits", key.as_str(), "adaptive"], false);
        if caps.is_empty() && r.errors.len() == errors {
            r.wrong(
                &["limits", &key, "requests"],
                "is missing, as are all others; name at least one, such as \"500/min\"",
            );
        }
        rules.push(Rule { key, caps, adaptive });
    }
    // An account's counts beside its models'; of two of models that begin alike the longer name alone.
    let is_money = |rule: &&Rule| rule.caps.iter().any(|cap| cap.measure == Measure::Usd);
    for rule in rules.iter().filter(|rule| rule.key.contains('/')).filter(is_money) {
        let is_under = |other: &&Rule| other.key != rule.key && covers(&rule.key, &other.key) && !is_money(other);
        if let Some(Rule { key, .. }) = rules.iter().find(is_under) {
            let name = if r.origin(&["limits", &rule.key, "usd"]) == Origin::Default { "usd_per_day" } else { "usd" };
            let why = format!("would not hold for {key}, which has limits of its own; give that one its own usd too");
            r.wrong(&["limits", &rule.key, name], &why);
        }
    }
    rules
}

/// So many dollars a day: `20/day`, `$0.50/day`, `20`.
///
/// # Errors
/// Says how to write it.
pub fn spending(text: &str) -> Result<Cap, String> {
    let bad = || {
        format!("must be dollars a day, at most {DOLLARS}, in quotes such as \"20/day\" or \"0.50/day\", not {text:?}")
    };
    let dollars = match text.split_once('/') {
        Some((dollars, per)) if per.trim() == "day" => dollars,
        Some(_) => return Err(bad()),
        None => text,
    };
    let most = dollars_of(dollars).map_err(|_| bad())?.as_nanos();
    Ok(Cap { measure: Measure::Usd, per: Per::Day, most })
}

/// A cap that a person sets for a whole fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// What it counts.
    pub measure: Measure,
    /// Over what.
    pub per: Per,
    /// The most; `None` goes back to what is configured.
    pub most: Option<i64>,
}

/// Reads what is to be set of `key`: `requests=300/min`, `tokens=off`, `usd=20/day`, by the names and forms of the settings.
/// Of a batch (`batch:NAME`) it is all that its jobs may cost, `usd=40`; of a queue's budget it is money too.
///
/// # Errors
/// Says what was wrong.
pub fn change_of(key: &str, text: &str) -> Result<Change, String> {
    let (name, amount) = text.split_once('=').ok_or_else(|| format!("{text:?} has no ="))?;
    let (name, amount) = (name.trim(), amount.trim());
    let Some((_, measure, usual)) = NAMES.into_iter().find(|(known, ..)| *known == name) else {
        let names: Vec<_> = NAMES.iter().map(|(name, ..)| *name).collect();
        return Err(format!("{name:?} is no limit; there are {}", names.join(", ")));
    };
    let wrong = |why: String| format!("{name} {why}");
    if measure != Measure::Usd && matches!(key.parse(), Ok(HoldKey::Batch(_) | HoldKey::Budget(_))) {
        return Err(wrong(format!("is of accounts; of {key} only usd is limited")));
    }
    match measure {
        // All that are counted in whole numbers.
        Measure::Requests | Measure::InputTokens | Measure::OutputTokens | Measure::Tokens | Measure::Concurrent => {
            counted(amount, measure, usual).map_err(wrong)
        }
        Measure::Usd => spent(amount, key.starts_with("batch:")).map_err(wrong),
    }
}

fn spent(amount: &str, is_for_ever: bool) -> Result<Change, String> {
    let (measure, per) = (Measure::Usd, if is_for_ever { Per::Ever } else { Per::Day });
    let most = match amount {
        "off" if is_for_ever => return Err("cannot be off: a batch has the cap that it was submitted with".to_owned()),
        "off" => None,
        _ if is_for_ever => Some(dollars_of(amount)?.as_nanos()),
        _ => Some(spending(amount)?.most),
    };
    Ok(Change { measure, per, most })
}

fn counted(amount: &str, measure: Measure, usual: Per) -> Result<Change, String> {
    if let Some(rest) = amount.strip_prefix("off") {
        // What it is over is said as with an amount.
        let Rate { per, .. } = Rate::read(&format!("1{rest}"), usual).map_err(|_| bad(amount, usual))?;
        return Ok(Change { measure, per, most: None });
    }
    let Rate { most, per } = Rate::read(amount, usual)?;
    Ok(Change { measure, per, most: Some(most) })
}

/// So many of something over a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rate {
    most: i64,
    per: Per,
}

impl Rate {
    /// `500/min`, `150k/min`, `2M/day`, `64`.
    fn read(text: &str, usual: Per) -> Result<Self, String> {
        let bad = || bad(text, usual);
        let (amount, per) = text.split_once('/').map_or((text, None), |(amount, per)| (amount, Some(per.trim())));
        let per = match (per, usual) {
            (None, usual) | (Some("day"), usual @ Per::Day) => usual,
            (Some("min" | "minute"), Per::Minute) => Per::Minute,
            (Some("day"), Per::Minute) => Per::Day,
            (Some(_), _) => return Err(bad()),
        };
        let amount = amount.trim();
        let (digits, times) = match amount.strip_suffix(['k', 'K']) {
            Some(digits) => (digits, 1_000),
            None => amount.strip_suffix('M').map_or((amount, 1), |digits| (digits, 1_000_000)),
        };
        let most = digits.trim().parse::<i64>().ok().and_then(|most| most.checked_mul(times));
        // Above what any account has: a million million.
        most.filter(|most| (1..=1_000_000_000_000).contains(most)).map(|most| Self { most, per }).ok_or_else(bad)
    }
}

/// Why `text` is no amount, after the name of what it was said of.
fn bad(text: &str, usual: Per) -> String {
    match usual {
        Per::Minute => {
            format!("must be an amount in quotes such as \"500/min\", \"150k/min\" or \"2M/day\", not {text:?}")
        }
        Per::Day => format!("must be an amount in quotes such as \"500k\", not {text:?}"),
        Per::Moment | Per::Ever => format!("must be a number such as 64, not {text:?}"),
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let per = match self.per {
            Per::Moment | Per::Ever => "",
            Per::Minute => "/min",
            Per::Day => "/day",
        };
        write!(f, "{}{per}", self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_is_read_as_dollars_a_day() {
        for (text, nanos) in [("20/day", 20_000_000_000), ("$0.50 / day", 500_000_000), ("0.000000001", 1)] {
            assert_eq!(spending(text), Ok(Cap { measure: Measure::Usd, per: Per::Day, most: nanos }), "{text}");
        }
        for text in ["", "0/day", "-1/day", "20/min", "20/month", "20k/day", "9000001/day", "$"] {
            assert!(spending(text).unwrap_err().contains("20/day"), "{text}");
        }
    }

    #[test]
    fn a_change_is_written_as_a_setting_or_off() {
        let change = |measure, per, most| Ok(Change { measure, per, most });
        for (text, means) in [
            ("requests=300/min", change(Measure::Requests, Per::Minute, Some(300))),
            ("tokens = 2M/day", change(Measure::Tokens, Per::Day, Some(2_000_000))),
            ("concurrent=off", change(Measure::Concurrent, Per::Moment, None)),
            ("tokens=off", change(Measure::Tokens, Per::Minute, None)),
            ("tokens=off/day", change(Measure::Tokens, Per::Day, None)),
            ("tokens_per_day=off", change(Measure::Tokens, Per::Day, None)),
            ("usd=20/day", change(Measure::Usd, Per::Day, Some(20_000_000_000))),
            ("usd=off", change(Measure::Usd, Per::Day, None)),
        ] {
            assert_eq!(change_of("acme", text), means);
        }
        let raised = change(Measure::Usd, Per::Ever, Some(40_000_000_000));
        assert_eq!(change_of("batch:nov", "usd=40"), raised);
        assert!(change_of("batch:nov", "usd=40/day").is_err() && change_of("batch:nov", "usd=off").is_err());
        for key in ["batch:nov", "budget:default"] {
            assert!(change_of(key, "tokens=9").unwrap_err().contains("only usd"), "nobody would keep it");
        }
        for (text, says) in [
            ("requests", "no ="),
            ("speed=9", "there are requests"),
            ("tokens=0", "must be an amount"),
            ("tokens=offen", "not \"offen\""),
            ("concurrent=off/min", "must be a number"),
        ] {
            assert!(change_of("acme", text).unwrap_err().contains(says), "{text}");
        }
    }

    #[test]
    fn amounts_are_read_as_people_write_them() {
        for (text, usual, most, per) in [
            ("500/min", Per::Minute, 500, Per::Minute),
            ("150k/minute", Per::Minute, 150_000, Per::Minute),
            ("2M / day", Per::Minute, 2_000_000, Per::Day),
            ("90", Per::Minute, 90, Per::Minute),
            ("1M", Per::Day, 1_000_000, Per::Day),
            ("64", Per::Moment, 64, Per::Moment),
        ] {
            assert_eq!(Rate::read(text, usual), Ok(Rate { most, per }), "{text}");
        }
        for (text, usual) in [
            ("", Per::Minute),
            ("0/min", Per::Minute),
            ("-5", Per::Minute),
            ("5/s", Per::Minute),
            ("1.5k/min", Per::Minute),
            ("5/min", Per::Day),
            ("5/min", Per::Moment),
            ("99999999999999M", Per::Minute),
        ] {
            assert!(Rate::read(text, usual).is_err(), "{text}");
        }
    }
}
