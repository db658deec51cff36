//! What accounts may use: limits as a configuration writes them. What was used of them is `limits.rs`'s.

use anyhow::bail;
use promptq_common::outcome::Usd;
use serde::{Deserialize, Serialize};

use super::config::Pattern;
use super::random::times;

/// What some accounts may use of some models.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitRule {
    /// The account's name.
    pub account: Pattern,
    /// The model's name.
    pub model: Pattern,
    /// Whether all models that fit share one limit; otherwise each family has its own.
    pub shared: bool,
    /// Within any minute.
    pub minute: Rates,
    /// Within any day.
    pub day: Rates,
    /// Calls open at once.
    pub concurrent: Option<u64>,
    /// Dollars, after which the account's calls are refused.
    pub usd: Option<Usd>,
    /// What the headers tell is the limits times this: 0.5 halves them by headers alone.
    pub announced: f64,
    /// What is enforced is the limits times this: 0.5 halves them without a word.
    pub enforced: f64,
    /// How limits are told on every answer.
    pub headers: HeaderMode,
    /// How a 429 says when to come again; as the provider does it when absent.
    pub retry_after: Option<RetryAfter>,
    /// Whether calls that failed or were refused count as requests; as the provider does it when absent.
    pub count_failed: Option<bool>,
}

impl Default for LimitRule {
    fn default() -> Self {
        Self {
            account: Pattern::default(),
            model: Pattern::default(),
            shared: false,
            minute: Rates::default(),
            day: Rates::default(),
            concurrent: None,
            usd: None,
            announced: 1.0,
            enforced: 1.0,
            headers: HeaderMode::Own,
            retry_after: None,
            count_failed: None,
        }
    }
}

/// Amounts within a window; what is absent has no limit.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rates {
    /// Calls.
    pub requests: Option<u64>,
    /// Input tokens.
    pub input_tokens: Option<u64>,
    /// Output tokens.
    pub output_tokens: Option<u64>,
    /// Both.
    pub tokens: Option<u64>,
}

/// How limits are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeaderMode {
    /// As the provider does it.
    Own,
    /// Not at all, as Gemini and most local servers.
    None,
    /// The headers are there and say `-1`, as Azure's may.
    MinusOne,
}

/// How a 429 says when to come again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetryAfter {
    /// `retry-after` in whole seconds, and in the body.
    Seconds,
    /// `retry-after-ms`, and in the body.
    Millis,
    /// Both headers, and in the body.
    Both,
    /// `retry-after` as an HTTP date, and in the body.
    Date,
    /// In the body alone.
    Body,
    /// Nowhere.
    None,
}

impl LimitRule {
    /// # Errors
    /// When a factor is not a positive number.
    pub fn check(&self) -> anyhow::Result<()> {
        for (name, factor) in [("announced", self.announced), ("enforced", self.enforced)] {
            if !(0.0..=1_000.0).contains(&factor) {
                bail!("{name} {factor} is not from 0 to 1000");
            }
        }
        Ok(())
    }

    fn written(&self, dimension: Dimension, per: Per) -> Option<u64> {
        let rates = match per {
            Per::Minute => &self.minute,
            Per::Day => &self.day,
        };
        match dimension {
            Dimension::Requests => rates.requests,
            Dimension::InputTokens => rates.input_tokens,
            Dimension::OutputTokens => rates.output_tokens,
            Dimension::Tokens => rates.tokens,
            Dimension::Concurrent => None,
        }
    }

    /// What is really allowed.
    pub fn enforced(&self, dimension: Dimension, per: Per) -> Option<u64> {
        self.written(dimension, per).map(|limit| times(limit, self.enforced))
    }

    /// What is told.
    pub fn announced(&self, dimension: Dimension, per: Per) -> Option<u64> {
        self.written(dimension, per).map(|limit| times(limit, self.announced))
    }
}

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dimension {
    /// Calls.
    Requests,
    /// Input tokens.
    InputTokens,
    /// Output tokens.
    OutputTokens,
    /// Both.
    Tokens,
    /// Calls open at once.
    Concurrent,
}

/// Within what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Per {
    /// A minute.
    Minute,
    /// A day.
    Day,
}
