//! What calls came to: by account and model, in tokens and dollars, and how much of each limit was used.

use std::collections::BTreeMap;

use promptq_common::outcome::Usd;
use serde::Serialize;

use super::config::Config;
use super::ledger::{Call, End};
use super::limits::Use;

/// Accounts and models with a line of their own; a caller who makes up names gets no more.
const LINES: usize = 10_000;

/// Sums of calls that have ended.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Sums {
    /// How many.
    pub calls: u64,
    /// By HTTP status; 0 where none was sent.
    pub by_status: BTreeMap<u16, u64>,
    /// By what came of them.
    pub by_end: BTreeMap<&'static str, u64>,
    /// Input tokens.
    pub input_tokens: u64,
    /// Of these, read from a cache.
    pub cached_tokens: u64,
    /// Output tokens.
    pub output_tokens: u64,
    /// Of these, reasoning.
    pub reasoning_tokens: u64,
    /// Dollars.
    pub usd: Usd,
    /// Calls that did work whose price nobody knows.
    pub unpriced: u64,
    /// Answers of status 429 among all calls, 0 to 1.
    pub share_429: f64,
}

/// A line of the bill.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// The account's name.
    pub account: String,
    /// The model asked for.
    pub model: String,
    /// What its calls came to.
    #[serde(flatten)]
    pub sums: Sums,
}

/// The whole bill.
#[derive(Clone, Debug, Serialize)]
pub struct Bill {
    /// Of all calls.
    pub total: Sums,
    /// Calls that have not ended.
    pub open: u64,
    /// The most that were open at once.
    pub most_open: u64,
    /// By account and model.
    pub lines: Vec<Line>,
    /// How much of each limit was used.
    pub limits: Vec<Use>,
    /// Why the ledger's file has stopped growing, if it has.
    pub ledger_trouble: Option<String>,
}

/// What the bill is made of.
#[derive(Debug, Default)]
pub struct Book {
    total: Sums,
    lines: BTreeMap<(String, String), Sums>,
    spent: BTreeMap<String, Usd>,
    /// Calls that have not ended.
    pub open: u64,
    /// The most that were open at once.
    pub most_open: u64,
}

impl Book {
    /// A call has begun.
    pub fn begin(&mut self) {
        self.open += 1;
        self.most_open = self.most_open.max(self.open);
    }

    /// A call has ended.
    pub fn end(&mut self, call: &Call) {
        self.open = self.open.saturating_sub(1);
        self.total.add(call);
        let mut line = (call.account.clone(), call.model.clone());
        if self.lines.len() >= LINES && !self.lines.contains_key(&line) {
            line = ("(others)".to_owned(), "(others)".to_owned());
        }
        if let Some(usd) = call.usd {
            *self.spent.entry(line.0.clone()).or_default() += usd;
        }
        self.lines.entry(line).or_default().add(call);
    }

    /// What an account has spent.
    pub fn spent(&self, account: &str) -> Usd {
        self.spent.get(account).copied().unwrap_or_default()
    }

    /// The bill, with how the limits were used.
    pub fn bill(&self, limits: Vec<Use>, ledger_trouble: Option<String>) -> Bill {
        let line = |((account, model), sums): (&(String, String), &Sums)| Line {
            account: account.clone(),
            model: model.clone(),
            sums: sums.told(),
        };
        Bill {
            total: self.total.told(),
            open: self.open,
            most_open: self.most_open,
            lines: self.lines.iter().map(line).collect(),
            limits,
            ledger_trouble,
        }
    }
}

impl Sums {
    fn add(&mut self, call: &Call) {
        self.calls += 1;
        *self.by_status.entry(call.status).or_default() += 1;
        let end = match call.end {
            End::Answered => "answered",
            End::Refused => "refused",
            End::Broken => "broken",
            End::Gone => "gone",
        };
        *self.by_end.entry(end).or_default() += 1;
        self.input_tokens += call.input_tokens;
        self.cached_tokens += call.cached_tokens;
        self.output_tokens += call.output_tokens;
        self.reasoning_tokens += call.reasoning_tokens;
        self.usd += call.usd.unwrap_or_default();
        self.unpriced += u64::from(call.usd.is_none());
    }

    #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
    fn told(&self) -> Self {
        let refused = self.by_status.get(&429).copied().unwrap_or(0);
        Self { share_429: refused as f64 / self.calls.max(1) as f64, ..self.clone() }
    }
}

/// What a call costs: `None` when it did work and its model has no price.
pub fn price(config: &Config, model: &str, (input, cached, output): (u64, u64, u64)) -> Option<Usd> {
    if input + output == 0 {
        return Some(Usd::default());
    }
    let model = config.model(model)?;
    let part = |tokens: u64, usd: Usd| i128::from(tokens) * i128::from(usd.as_nanos());
    let (fresh, cached_price) = (input.saturating_sub(cached), model.cached.unwrap_or(model.input));
    let nanos = part(fresh, model.input) + part(cached, cached_price) + part(output, model.output);
    Some(Usd::from_nanos(i64::try_from(nanos / 1_000_000).unwrap_or(i64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_price_is_by_the_million_and_cached_input_has_its_own() {
        let config = "[[models]]\nname = \"m\"\ninput = \"2\"\ncached = \"0.5\"\noutput = \"8\"";
        let config: Config = toml::from_str(config).unwrap();
        let usd = |tokens| price(&config, "m", tokens).map(|usd| usd.to_string());
        assert_eq!(usd((1_000_000, 0, 0)).as_deref(), Some("2"));
        assert_eq!(usd((1_000, 400, 10)).as_deref(), Some("0.00148"));
        assert_eq!(price(&config, "other", (1, 0, 0)), None, "unknown is not free");
        assert_eq!(price(&config, "other", (0, 0, 0)), Some(Usd::default()));
    }
}
