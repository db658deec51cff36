//! The fake provider's ledger, and what its calls consumed of a limit by moment, as the provider counts it: pure arithmetic.

use promptq_common::outcome::Usd;
use serde::{Deserialize, Serialize};

/// A minute in milliseconds.
pub const MINUTE: i64 = 60_000;

/// A line of the ledger, as far as it is looked at here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// Milliseconds since 1970 when its request had come.
    pub started_ms: i64,
    /// Milliseconds since 1970 when it was over.
    pub ended_ms: i64,
    /// The model asked for.
    pub model: String,
    /// Who called.
    pub caller: Option<String>,
    /// The beginning of the SHA-256 of its texts.
    pub prompt: String,
    /// HTTP status; 0 when none was sent.
    pub status: u16,
    /// `answered`, `refused`, `broken`, `gone`.
    pub end: String,
    /// Input tokens.
    pub input_tokens: u64,
    /// Output tokens that were made.
    pub output_tokens: u64,
    /// The most output that was asked for.
    pub max_tokens: Option<u64>,
    /// What it is billed; `None` where no price is known.
    pub usd: Option<Usd>,
}

impl Call {
    /// Whether it was let in, whatever came of it then.
    pub fn is_let_in(&self) -> bool {
        self.end != "refused"
    }

    /// What it is billed, in billionths of a dollar.
    pub fn nanos(&self) -> i64 {
        self.usd.unwrap_or_default().as_nanos()
    }
}

/// What a limit counts, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// Calls, as they come.
    Requests,
    /// Input and the most output a call may come to, as it comes: `OpenAI`'s tokens.
    Tokens,
    /// Output when it has come: Anthropic's.
    Output,
}

/// What calls consumed of one limit, by moment. Refused ones consumed nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spent(Vec<(i64, u64)>);

impl Spent {
    /// Of these calls.
    pub fn of<'a>(calls: impl IntoIterator<Item = &'a Call>, counted: Counted) -> Self {
        let let_in = calls.into_iter().filter(|call| call.is_let_in());
        let mut spent: Vec<_> = let_in
            .map(|call| match counted {
                Counted::Requests => (call.started_ms, 1),
                Counted::Tokens => (call.started_ms, call.input_tokens + call.max_tokens.unwrap_or(0)),
                Counted::Output => (call.ended_ms, call.output_tokens),
            })
            .collect();
        spent.sort_unstable();
        Self(spent)
    }

    /// When the first of it was.
    pub fn begins(&self) -> Option<i64> {
        self.0.first().map(|(at, _)| *at)
    }

    /// How much from one moment until just before another.
    pub fn within(&self, from: i64, to: i64) -> u64 {
        let place = |moment| self.0.partition_point(|(at, _)| *at < moment);
        let (first, last) = (place(from), place(to));
        self.0.get(first..last).unwrap_or_default().iter().map(|(_, amount)| amount).sum()
    }

    /// The least within any `length` milliseconds between two moments, looked at every second. Of a shorter time than
    /// that: what is in it.
    pub fn emptiest(&self, from: i64, to: i64, length: i64) -> u64 {
        let length = length.min(to - from);
        let begins = (from..=to - length).step_by(1_000);
        begins.map(|at| self.within(at, at + length)).min().unwrap_or(0)
    }

    /// Each whole minute between two moments.
    pub fn minutes(&self, from: i64, to: i64) -> Vec<u64> {
        let begins = (from..=to - MINUTE).step_by(usize::try_from(MINUTE).unwrap_or(usize::MAX));
        begins.map(|at| self.within(at, at + MINUTE)).collect()
    }

    /// From when on no window of `length` milliseconds has held more than `most`.
    pub fn below_from(&self, most: u64, length: i64) -> Option<i64> {
        let over = self.0.iter().rev().map(|(at, _)| *at).find(|at| self.within(at - length + 1, at + 1) > most);
        over.map_or_else(|| self.begins(), |at| Some(at + 1))
    }
}

/// The share of calls answered 429, 0 to 1.
pub fn share_of_429(calls: &[Call]) -> f64 {
    let refused = calls.iter().filter(|call| call.status == 429).count();
    crate::account::number(refused) / crate::account::number(calls.len().max(1))
}

/// As a figure to reckon with.
#[expect(clippy::cast_precision_loss, reason = "exact below 2^53, which no run here comes near")]
pub fn float(number: u64) -> f64 {
    number as f64
}
