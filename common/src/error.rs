//! The one error type of this crate. It answers two questions apart: may I retry, and what do I tell a person.
//! A job's failure is never an `Error`; it is data (`outcome/mod.rs`).

use std::error::Error as StdError;
use std::fmt;

/// Shorthand for this crate's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong with a broker, a ledger, a store or a setting.
#[derive(Debug, thiserror::Error)]
#[error("{op}: {kind}{}", Detail(.detail))]
pub struct Error {
    kind: Kind,
    op: &'static str,
    detail: String,
    #[source]
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The condition behind an [`Error`]; what code branches on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// The other side cannot be reached or is not ready; trying again may help.
    Unavailable,
    /// No answer within the time allowed; whether it happened is unknown.
    TimedOut,
    /// Stored bytes cannot be read.
    Corrupt,
    /// Larger than a documented limit.
    TooLarge,
    /// A setting or an address is wrong; a person has to mend it.
    Config,
    /// A login was refused, or a right is missing; a person has to mend it.
    Denied,
    /// This backend cannot do that.
    Unsupported,
    /// The named thing does not exist.
    NotFound,
    /// It contradicts what is already there.
    Conflict,
    /// The handle was closed, or its process is going away.
    Closed,
}

impl Error {
    /// An error of `kind` met while doing `op` (lower case, what was tried).
    pub fn new(kind: Kind, op: &'static str, detail: impl Into<String>) -> Self {
        Self { kind, op, detail: detail.into(), source: None }
    }

    /// Adds the cause beneath.
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same for another who asked the same thing; the cause beneath stays with the first, in words.
    pub(crate) fn shared(&self) -> Self {
        let mut detail = self.detail.clone();
        let mut cause = StdError::source(self);
        while let Some(under) = cause {
            detail = format!("{detail}: {under}");
            cause = under.source();
        }
        Self::new(self.kind, self.op, detail)
    }

    /// The condition.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether the same call may succeed later without anybody mending anything.
    pub fn is_transient(&self) -> bool {
        match self.kind {
            Kind::Unavailable | Kind::TimedOut => true,
            Kind::Corrupt
            | Kind::TooLarge
            | Kind::Config
            | Kind::Denied
            | Kind::Unsupported
            | Kind::NotFound
            | Kind::Conflict
            | Kind::Closed => false,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unavailable => "unavailable",
            Self::TimedOut => "timed out",
            Self::Corrupt => "unreadable",
            Self::TooLarge => "too large",
            Self::Config => "not usable as configured",
            Self::Denied => "not allowed",
            Self::Unsupported => "not supported",
            Self::NotFound => "not found",
            Self::Conflict => "conflict",
            Self::Closed => "closed",
        })
    }
}

struct Detail<'a>(&'a str);

impl fmt::Display for Detail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, ": {}", self.0) }
    }
}
