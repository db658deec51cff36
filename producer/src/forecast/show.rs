//! A forecast in lines for people and as data for programs. What is not known is `?` and null, never 0.

use std::collections::BTreeSet;
use std::time::Duration;

use promptq_common::outcome::Usd;
use promptq_common::time::format_duration;
use serde_json::{Value, json};

use super::{Bound, Forecast};
use crate::submit::jobs;

impl Forecast {
    /// Tokens, cost, time and what is left out of them, a line each; nothing of no jobs.
    pub fn lines(&self) -> Vec<String> {
        if self.jobs == 0 {
            return Vec::new();
        }
        let are_called = self.programs < self.jobs;
        let tokens = are_called.then(|| self.tokens());
        tokens.into_iter().chain([self.costs(), self.limits()]).chain(are_called.then(|| self.left_out())).collect()
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        let is_priced = self.unpriced < self.jobs;
        let bounds = self.bounds();
        let longest = bounds.first().map(|bound| bound.takes);
        json!({
            "jobs": self.jobs,
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

    fn limits(&self) -> String {
        match self.bounds().first() {
            None => "limits  none over a time are set here for these jobs".to_owned(),
            Some(Bound { key, cap, takes }) if takes.is_zero() => {
                format!("limits  {key}: {cap}: room for all at once")
            }
            Some(Bound { key, cap, takes }) => {
                let (takes, what) = (about(*takes), cap.measure.as_str());
                format!("limits  {key}: {cap}: bound by {what}, about {takes} with any number of workers")
            }
        }
    }

    fn left_out(&self) -> String {
        let more = match self.beyond_text {
            0 => String::new(),
            some => format!(", and so do images, files and tools ({})", jobs(some)),
        };
        format!("calls   one for each job: what is tried again costs more{more}")
    }
}

fn bound_json(bound: &Bound) -> Value {
    json!({ "key": bound.key, "cap": bound.cap.to_string(), "measure": bound.cap.measure.as_str(),
        "seconds": bound.takes.as_secs() })
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

/// To the minute, so long as it takes some.
fn about(takes: Duration) -> String {
    let minutes = takes.as_secs().div_ceil(60);
    format_duration(Duration::from_secs(minutes * 60))
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
        assert_eq!([about(Duration::from_secs(61)), about(Duration::from_secs(5_400))], ["2m", "1h30m"]);
    }
}
