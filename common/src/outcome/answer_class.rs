//! How whole an answer is. Whatever its class, a paid answer is a success; why there was none is a failure's class.

use std::fmt;

/// How whole an answer is, as far as it can be told without knowing what it is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AnswerClass {
    /// All that the model had to say, in the form that was asked for.
    #[default]
    Complete,
    /// Cut off: at the most tokens it may have, or at the end of the model's context.
    Truncated,
    /// The model, or what watches over it, would not say it.
    Refused,
    /// It says nothing, or is not the JSON that was asked for.
    InvalidOutput,
    /// It ended for a reason that nobody here knows: taken as it is, and given to no other job.
    Unknown,
}

impl AnswerClass {
    /// What a job may be called again for, where its policy says so.
    pub const FAULTY: [Self; 3] = [Self::Truncated, Self::Refused, Self::InvalidOutput];

    /// Whether something is known to be wrong with it.
    pub fn is_faulty(self) -> bool {
        Self::FAULTY.contains(&self)
    }

    /// Its name in records, results and on screen.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Truncated => "truncated",
            Self::Refused => "refused",
            Self::InvalidOutput => "invalid_output",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for AnswerClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
