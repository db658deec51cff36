//! What came of one run, as data: a reply or a failure with its class, usage and cost.

use std::fmt;
use std::ops::AddAssign;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::text_or_number;

mod answer_class;
mod detail;
mod history;

pub use answer_class::AnswerClass;
pub use detail::{CostSource, Detail, Origin};
pub use history::{Attempt, History};

/// What a run returned.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It answered.
    Success(Reply),
    /// It did not, for a reason that decides what happens next.
    Failure(Failure),
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reply {
    /// HTTP status of the answer; 200 for runners without one.
    pub status_code: u16,
    /// The provider's id for the request.
    pub request_id: Option<String>,
    /// What it said.
    pub body: Body,
    /// The answer's text, where the body's shape has one.
    pub text: Option<String>,
    /// The model that answered, as the provider names it.
    pub model: Option<String>,
    /// Why the provider stopped (`stop`, `length`, …).
    pub finish_reason: Option<String>,
    /// How whole it is.
    pub class: AnswerClass,
    /// What it consumed.
    pub usage: Usage,
    /// What it cost, when known.
    pub cost: Option<Usd>,
    /// What else the provider said of it; `None` where it said nothing.
    pub detail: Option<Box<Detail>>,
    /// Where the answer and its cost are from, where that goes without saying nowhere else.
    pub origin: Option<Box<Origin>>,
}

/// The body of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// One JSON value, as received.
    Json(String),
    /// Plain text (exec, mock).
    Text(String),
}

impl Default for Body {
    fn default() -> Self {
        Self::Text(String::new())
    }
}

/// A run that did not answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// Decides retry, release or dead.
    pub class: FailureClass,
    /// A short, stable name for the cause (`context_length_exceeded`, `exit_1`); groups dead jobs.
    pub code: String,
    /// One line for people, at most [`Failure::DETAIL`] characters; never prompt, answer or secret.
    pub detail: String,
    /// HTTP status, where there was one.
    pub status_code: Option<u16>,
    /// The least wait the other side asked for.
    pub retry_after: Option<Duration>,
    /// What was consumed all the same.
    pub usage: Usage,
    /// What it cost, when known; an estimate for `unknown_billed`.
    pub cost: Option<Usd>,
    /// How often a job may end an attempt with this very code before it is given up, where that is less often than its
    /// policy allows: what looks like a fault may be the request's own.
    pub tries: Option<u8>,
}

impl Failure {
    /// The longest detail kept, in characters.
    pub const DETAIL: usize = 500;
    /// The code of a `fatal` failure that says so.
    pub const MISSING_MODEL: &str = "model_not_found";
    /// The code of a `throttled` failure for calls that became more too soon.
    pub const TOO_FAST: &str = "slow_down";

    /// A failure without usage, status or wait. The detail is cut to [`Failure::DETAIL`] characters.
    pub fn new(class: FailureClass, code: impl Into<String>, detail: &str) -> Self {
        Self {
            class,
            code: code.into(),
            detail: detail.chars().take(Self::DETAIL).collect(),
            status_code: None,
            retry_after: None,
            usage: Usage::default(),
            cost: None,
            tries: None,
        }
    }

    /// Whether there is no such model where it was asked for.
    pub fn is_missing_model(&self) -> bool {
        self.class == FailureClass::Fatal && self.code == Self::MISSING_MODEL
    }
}

/// Why a run did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// A rate limit: wait, no attempt spent.
    Throttled,
    /// The provider is overloaded or cannot be reached: wait, no attempt spent.
    Capacity,
    /// Key, credit or permission: the account is held, no attempt spent.
    Account,
    /// Worth another attempt.
    Transient,
    /// Ran longer than its policy allows (exec, agents).
    TimedOut,
    /// Cut after the request was sent: may have been billed. Spends an attempt, retried once.
    UnknownBilled,
    /// Will never work as it is.
    Fatal,
    /// Refused for what it says.
    Content,
    /// The run broke (panic, killed by a signal).
    Crashed,
}

impl FailureClass {
    /// Every class.
    pub const ALL: [Self; 9] = [
        Self::Throttled,
        Self::Capacity,
        Self::Account,
        Self::Transient,
        Self::TimedOut,
        Self::UnknownBilled,
        Self::Fatal,
        Self::Content,
        Self::Crashed,
    ];

    /// Whether the job pays for it with an attempt. The first three are not the job's doing.
    pub const fn spends_attempt(self) -> bool {
        !matches!(self, Self::Throttled | Self::Capacity | Self::Account)
    }

    /// Whether something may have been worked on and billed, of a failure that tells no usage: not where a provider
    /// refused the request, and it answers what it refuses with other statuses than 200.
    pub(crate) fn may_cost(self, status_code: Option<u16>) -> bool {
        match self {
            Self::Throttled | Self::Capacity | Self::Account => false,
            Self::Fatal | Self::Content => status_code == Some(200),
            Self::Transient | Self::TimedOut | Self::UnknownBilled | Self::Crashed => true,
        }
    }

    /// Its name in records, metrics and on screen.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Throttled => "throttled",
            Self::Capacity => "capacity",
            Self::Account => "account",
            Self::Transient => "transient",
            Self::TimedOut => "timed_out",
            Self::UnknownBilled => "unknown_billed",
            Self::Fatal => "fatal",
            Self::Content => "content",
            Self::Crashed => "crashed",
        }
    }
}

impl fmt::Display for FailureClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Tokens consumed. Input includes cached tokens, output includes reasoning tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens sent.
    pub input_tokens: u64,
    /// Tokens received.
    pub output_tokens: u64,
    /// Of the input, read from the provider's cache.
    pub cached_tokens: u64,
    /// Of the output, spent on reasoning.
    pub reasoning_tokens: u64,
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.input_tokens = self.input_tokens.saturating_add(other.input_tokens);
        self.output_tokens = self.output_tokens.saturating_add(other.output_tokens);
        self.cached_tokens = self.cached_tokens.saturating_add(other.cached_tokens);
        self.reasoning_tokens = self.reasoning_tokens.saturating_add(other.reasoning_tokens);
    }
}

/// US dollars in whole nano-dollars; a decimal string outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Usd(i64);

impl Usd {
    /// From billionths of a dollar.
    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    /// Billionths of a dollar.
    pub const fn as_nanos(self) -> i64 {
        self.0
    }
}

impl AddAssign for Usd {
    fn add_assign(&mut self, other: Self) {
        self.0 = self.0.saturating_add(other.0);
    }
}

impl fmt::Display for Usd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let (whole, nanos) = (self.0.unsigned_abs() / 1_000_000_000, self.0.unsigned_abs() % 1_000_000_000);
        if nanos == 0 {
            return write!(f, "{sign}{whole}");
        }
        let fraction = format!("{nanos:09}");
        match fraction.trim_end_matches('0') {
            "" => write!(f, "{sign}{whole}"),
            fraction => write!(f, "{sign}{whole}.{fraction}"),
        }
    }
}

impl FromStr for Usd {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not an amount such as 0.25");
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        if fraction.len() > 9 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        if whole.is_empty() || !whole.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        let nanos: i64 = format!("{fraction:0<9}").parse().map_err(|_| bad())?;
        let whole: i64 = whole.parse().map_err(|_| bad())?;
        whole.checked_mul(1_000_000_000).and_then(|w| w.checked_add(nanos)).map(Self).ok_or_else(bad)
    }
}

impl Serialize for Usd {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        text_or_number::write(serializer, self, self.0)
    }
}

impl<'de> Deserialize<'de> for Usd {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text_or_number::read(deserializer, Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_is_exact_in_both_directions() {
        for text in ["0", "0.0000266", "12.5", "3.000000001"] {
            assert_eq!(text.parse::<Usd>().unwrap().to_string(), text);
        }
        for text in ["", "-1", "1.", "x", "0.0000000001", "99999999999"] {
            assert_eq!(text.parse::<Usd>().is_ok(), text == "1.", "{text}");
        }
    }
}
