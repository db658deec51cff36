//! A forecast in lines for people and as data for programs. What is not known is `?` and null, never 0.

use std::collections::BTreeSet;
use std::time::Duration;

use promptq_common::limits::{Cap, Measure, Per};
use promptq_common::outcome::Usd;
use promptq_common::time::format_duration;
use promptq_worker::money::Unknown;
use serde_json::{Value, json};

use super::Forecast;
use super::stored::Stored;
use super::weigh::{Bound, Uncalled};
use crate::limits::words;
use crate::submit::{grouped, jobs};

/// The most caps on money, and on calls at once, that have a line each.
const CAPS: usize = 3;

impl Forecast {
    /// Tokens, cost, time and what is left out of them, a line each; nothing of no jobs.
    pub fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.reuse().into_iter().collect();
        if self.jobs == 0 {
            lines.extend(self.barred());
            return lines;
        }
        let (are_called, bounds) = (self.programs < self.jobs, self.bounds());
        lines.extend(are_called.then(|| self.tokens()));
        lines.push(self.costs());
        lines.extend(limits(&bounds));
        lines.extend(bounds.iter().filter_map(at_once).take(CAPS));
        lines.extend(budgets(&bounds));
        lines.extend(self.uncalled(&bounds));
        lines.extend(self.barred());
        lines.extend(are_called.then(|| self.left_out()));
        lines
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        let is_priced = self.unpriced < self.jobs;
        let bounds = self.bounds();
        let longest = bounds.iter().find_map(|bound| bound.takes);
        let (reuse, (larger, waiting)) = (&self.stored, self.barred_counts());
        json!({
            "jobs": self.jobs,
            "reuse": { "asked": reuse.asked, "looked_up": reuse.looked_up, "found": reuse.found },
            "input_tokens": self.input,
            "output_tokens": { "likely": self.likely, "most": self.most },
            "without_max_tokens": self.unbounded,
            "calls_per_job": 1,
            "beyond_text": self.beyond_text,
            "cost_usd": is_priced.then(|| json!({ "likely": self.cost.0, "most": self.cost.1 })),
            "cost_unknown": self.unpriced,
            "priced_models": self.models.0,
            "unpriced_models": self.models.1,
            "prices_as_of": self.as_of.map(|(oldest, newest)| [oldest.to_string(), newest.to_string()]),
            "limits": bounds.iter().map(bound_json).collect::<Vec<_>>(),
            "least_seconds": longest.map(|longest| longest.as_secs()),
            "held": bounds.iter().map(Bound::holds).max().unwrap_or_default() + waiting,
            "uncalled_under_caps": self.all.uncalled.all(),
            "dead_under_caps": self.all.uncalled.dead(),
            "larger_than_max_cost": self.dear,
            "larger_than_limit": larger,
            "waiting_for_more": waiting,
        })
    }

    fn tokens(&self) -> String {
        let (input, likely, most) = (short(self.input), short(self.likely), short(self.most));
        let how = if self.unbounded > 0 { ", where max_tokens is missing as long as answers mostly are" } else { "" };
        format!("tokens  about {input} in, {likely} out (at most {most}{how})")
    }

    fn costs(&self) -> String {
        let range = match (money(self.cost.0), money(self.cost.1)) {
            (likely, most) if likely == most => format!("${most}"),
            (likely, most) => format!("${likely} to ${most}"),
        };
        let of = self.as_of.map(|(oldest, newest)| match newest {
            newest if newest == oldest => format!("; price of {oldest}"),
            newest => format!("; prices of {oldest} to {newest}"),
        });
        let known = format!("({}{})", names(&self.models.0), of.unwrap_or_default());
        let unknown = || {
            let example = self.models.1.iter().find(|name| name.contains('/'));
            let hint = example.map(|name| format!("; set [prices.{name:?}]")).unwrap_or_default();
            format!("(no price for {}{hint})", names(&self.models.1))
        };
        match self.unpriced {
            0 if self.models.1.is_empty() => format!("cost    {range} {known}"),
            0 => format!("cost    {range} {known}, or ? on other routes {}", unknown()),
            all if all == self.jobs => format!("cost    ? {}", unknown()),
            some => format!("cost    {range} {known}, and ? for {} {}", jobs(some), unknown()),
        }
    }

    /// Which jobs have a stored answer.
    fn reuse(&self) -> Option<String> {
        let Stored { asked, looked_up, found, trouble, .. } = &self.stored;
        let (asked, looked_up, found) = (*asked, *looked_up, *found);
        if asked == 0 {
            return None;
        }
        let of = if looked_up == asked { grouped(asked) } else { format!("{} looked up", grouped(looked_up)) };
        let found = format!("reuse   {} of {of} have a stored answer, which costs nothing", grouped(found));
        let rest = match (asked - looked_up, trouble) {
            (0, _) => String::new(),
            (rest, Some(why)) => format!("; {} more were not looked up: {why}", grouped(rest)),
            (rest, None) => format!("; {} more were not looked up, and count as called", grouped(rest)),
        };
        Some(found + &rest)
    }

    /// What no cap on money lets through, however much is left of it.
    fn uncalled(&self, bounds: &[Bound]) -> Vec<String> {
        let money = bounds.iter().filter(|bound| bound.fits.is_some());
        let Uncalled { price, answer, part } = money.fold(self.own, |most, bound| most.max(bound.load.uncalled));
        let in_request = "what something in the request costs (leave that out)";
        let dead = |unknown: &Unknown, what: &str| format!("dead, as {}: nobody knows {what}", unknown.code());
        let kinds = [
            (price, "waiting: nobody knows their price".to_owned()),
            (answer, dead(&Unknown::Answer, "how long the answer may be (--max-tokens)")),
            (part, dead(&Unknown::Part(String::new()), in_request)),
            (self.dear, "perhaps dead, as larger_than_max_cost: they may cost more than their own max_cost".to_owned()),
        ];
        let some = kinds.into_iter().filter(|(count, _)| *count > 0);
        some.map(|(count, becomes)| format!("money   never called while cost is limited: {}, {becomes}", jobs(count)))
            .collect()
    }

    fn left_out(&self) -> String {
        let more = match self.beyond_text {
            0 => String::new(),
            some => format!(", and so do images, files and tools ({})", jobs(some)),
        };
        format!("calls   one for each job: what is tried again costs more{more}")
    }
}

/// The cap over a time that holds longest; where that is one on money, the longest of the others too.
fn limits(bounds: &[Bound]) -> Vec<String> {
    let mut timed = bounds.iter().filter_map(|bound| Some((bound, bound.takes?)));
    let Some(longest) = timed.next() else {
        return vec!["limits  none over a time are set here for these jobs".to_owned()];
    };
    let other = if is_money(longest.0) { timed.find(|(bound, _)| !is_money(bound)) } else { None };
    let held = if bounds.iter().any(|bound| bound.stays() > 0) { " for what is not held" } else { "" };
    let line = |(bound, takes): (&Bound, Duration)| {
        let cap = cap(bound);
        if takes.is_zero() {
            return format!("limits  {cap}: room for all");
        }
        let what = if is_money(bound) { "money" } else { bound.stand.cap.measure.as_str() };
        format!("limits  {cap}: bound by {what}, about {} with any number of workers{held}", about(takes))
    };
    std::iter::once(longest).chain(other).map(line).collect()
}

fn is_money(bound: &Bound) -> bool {
    bound.stand.cap.measure == Measure::Usd
}

/// What caps on money hold back: a line for each that does, or for the one that is nearest to it.
fn budgets(bounds: &[Bound]) -> Vec<String> {
    let waits = |bound: &Bound| {
        let called = bound.load.called();
        bound.fits.map(|(likely, most)| (called - likely, called - most))
    };
    let mut money: Vec<_> = bounds.iter().filter_map(|bound| Some((waits(bound)?, bound))).collect();
    let rank = |(likely, most): (u64, u64), cap: &Cap| (likely > 0, cap.per == Per::Ever, likely, most);
    money.sort_by_key(|(waits, bound)| std::cmp::Reverse(rank(*waits, &bound.stand.cap)));
    let shown = money.iter().take_while(|((likely, _), _)| *likely > 0).count().clamp(1, CAPS);
    money.iter().take(shown).map(|(_, bound)| format!("money   {}", fitting(bound))).collect()
}

/// `acme: 300 requests/min (set)`, and what is used of it where that counts for long.
fn cap(bound: &Bound) -> String {
    let Bound { stand, .. } = bound;
    let is_old = stand.taken > 0 && matches!(stand.cap.per, Per::Day | Per::Ever);
    let taken = if is_old { format!(", {} used", amount(bound, stand.taken)) } else { String::new() };
    format!("{stand}{taken}")
}

fn amount(bound: &Bound, amount: i64) -> String {
    words::amount(bound.stand.cap.measure, amount).0
}

/// However many workers there are, no more than so many calls run at once.
fn at_once(bound: &Bound) -> Option<String> {
    let rounds = bound.rounds.filter(|rounds| *rounds > 1)?;
    let rounds = grouped(rounds);
    Some(format!("limits  {}: as long as {rounds} calls one after the other, with any number of workers", cap(bound)))
}

/// How many jobs a cap on money will do for, and what becomes of the others.
fn fitting(bound: &Bound) -> String {
    let (likely, most) = bound.fits.unwrap_or_default();
    let (all, cap) = (bound.load.called(), cap(bound));
    let whom = match bound.load.uncalled.all() {
        0 => "all".to_owned(),
        _ if all == 0 => return format!("{cap}: none of {} can be called", jobs(bound.load.jobs)),
        _ => format!("the {} that can be called", grouped(all)),
    };
    if most == all {
        return format!("{cap}: room for {whom}");
    }
    if likely == all {
        return format!("{cap}: room for {whom}, or for about {} if all answers are the longest", grouped(most));
    }
    let rest = if bound.stand.cap.per == Per::Ever {
        "the rest are held"
    } else {
        "the rest wait until some of it is free again"
    };
    let left = amount(bound, bound.stand.cap.most.saturating_sub(bound.stand.taken).max(0));
    format!("{cap}: about {} of {} fit into {left}, {rest}", grouped(likely), jobs(all))
}

fn bound_json(bound: &Bound) -> Value {
    let measure = bound.stand.cap.measure;
    json!({ "key": bound.stand.key, "cap": bound.stand.cap.to_string(), "measure": measure.as_str(), "from": bound.stand.from,
        "used": words::amount(measure, bound.stand.taken).1, "jobs": bound.load.jobs,
        "fit": bound.fits.map(|(likely, most)| json!({ "likely": likely, "least": most })),
        "seconds": bound.takes.map(|takes| takes.as_secs()), "rounds": bound.rounds })
}

/// The first few, and how many more.
fn names(models: &BTreeSet<String>) -> String {
    const SHOWN: usize = 3;
    let shown: Vec<_> = models.iter().take(SHOWN).map(String::as_str).collect();
    match models.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// `612k`, `1.3M`.
fn short(count: u64) -> String {
    match count {
        0..1_000 => count.to_string(),
        1_000..1_000_000 => format!("{}k", (count + 500) / 1_000),
        _ => {
            let tenths = count / 100_000;
            format!("{}.{}M", tenths / 10, tenths % 10)
        }
    }
}

/// To the cent, or below a dollar to two digits that are not 0: more would say that it is sure.
fn money(usd: Usd) -> String {
    const CENT: i64 = 10_000_000;
    let nanos = usd.as_nanos();
    let digits = nanos.checked_ilog10().unwrap_or(0);
    let step = 10_i64.pow(digits.saturating_sub(1)).clamp(1, CENT);
    let rounded = nanos.saturating_add(step / 2) / step * step;
    if rounded < 100 * CENT {
        return Usd::from_nanos(rounded).to_string();
    }
    format!("{}.{:02}", rounded / CENT / 100, rounded / CENT % 100)
}

/// To the minute, or below one to ten seconds.
fn about(takes: Duration) -> String {
    let step = if takes.as_secs() < 60 { 10 } else { 60 };
    let seconds = takes.as_millis().div_ceil(1_000 * step) * step;
    format_duration(Duration::from_secs(u64::try_from(seconds).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_as_long_as_they_are_sure() {
        assert_eq!([short(999), short(612_400), short(1_280_000)], ["999", "612k", "1.2M"]);
        for (exact, shown) in [
            ("0", "0"),
            ("0.000000009", "0.000000009"),
            ("0.0000123", "0.000012"),
            ("0.1251", "0.13"),
            ("0.996", "1.00"),
            ("1.7", "1.70"),
            ("12.344", "12.34"),
            ("1234.5678", "1234.57"),
        ] {
            assert_eq!(money(exact.parse().unwrap()), shown, "{exact}");
        }
        assert_eq!(
            [0.1, 49.1, 60.0, 60.1, 5_400.0].map(|secs| about(Duration::from_secs_f64(secs))),
            ["10s", "50s", "1m", "2m", "1h30m"]
        );
    }
}
