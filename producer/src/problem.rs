//! What a command tells a person when it cannot go on: what, where, why, how to mend it, and the exit code.
//! Printing it is `printer.rs`.

use std::fmt;
use std::process::ExitCode;

use promptq_common::error::{Error, Kind};
use serde_json::{Value, json};

/// How a command ended, as scripts see it. The numbers are a contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0: as asked.
    Done,
    /// 1: failed in a way nothing below names.
    Failed,
    /// 2: usage, settings or input are wrong; nothing was done.
    Usage,
    /// 3: finished, but some jobs are dead, cancelled or expired.
    SomeDead,
    /// 4: not allowed (key, credit, permission).
    NotAllowed,
    /// 5: there is no such thing.
    NotFound,
    /// 6: contradicts what is there.
    Conflict,
    /// 7: a broker, store or provider cannot be reached.
    Unreachable,
    /// 8: still pending when the wait ran out.
    Pending,
    /// 9: `--max-errors`, `--max-cost` or a budget stopped it.
    Stopped,
    /// 130: interrupted.
    Interrupted,
    /// 141: the reader of a run's results has gone before the end, as of a program that SIGPIPE ends.
    ReaderGone,
}

impl Exit {
    /// The number.
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::SomeDead => 3,
            Self::NotAllowed => 4,
            Self::NotFound => 5,
            Self::Conflict => 6,
            Self::Unreachable => 7,
            Self::Pending => 8,
            Self::Stopped => 9,
            Self::Interrupted => 130,
            Self::ReaderGone => 141,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

const READER_GONE: &str = "reader-gone";

/// Why a command cannot go on.
#[derive(Clone, Debug)]
pub struct Problem {
    /// A short, stable name: `bad-row`, `unreachable`.
    pub slug: &'static str,
    /// What is wrong, in one line.
    pub what: String,
    /// Where, and the facts around it; one line each.
    pub details: Vec<String>,
    /// How to mend it, with a command to copy.
    pub hints: Vec<String>,
    /// The exit code it leads to.
    pub exit: Exit,
}

impl Problem {
    /// A problem without details or hints.
    pub fn new(exit: Exit, slug: &'static str, what: impl Into<String>) -> Self {
        Self { slug, what: what.into(), details: Vec::new(), hints: Vec::new(), exit }
    }

    /// Adds a fact.
    pub fn detail(mut self, line: impl Into<String>) -> Self {
        self.details.push(line.into());
        self
    }

    /// Adds a way to mend it.
    pub fn hint(mut self, line: impl Into<String>) -> Self {
        self.hints.push(line.into());
        self
    }

    /// As an object of the problem+json kind (RFC 9457), for programs.
    pub fn to_json(&self) -> Value {
        json!({
            "type": format!("/problems/{}", self.slug),
            "title": self.what,
            "code": self.slug,
            "details": self.details,
            "hints": self.hints,
            "exit": self.exit.code(),
        })
    }

    /// That whoever read what is written has gone: nothing to say, and nothing went wrong here.
    pub fn reader_gone() -> Self {
        Self::new(Exit::Done, READER_GONE, "the reader has gone")
    }

    /// Whether it is [`Problem::reader_gone`].
    pub fn is_reader_gone(&self) -> bool {
        self.slug == READER_GONE
    }

    /// A wrong flag or argument.
    pub fn usage(what: impl Into<String>) -> Self {
        Self::new(Exit::Usage, "usage", what)
    }
}

/// `error[slug]: what`, then the details and hints, each on its own line.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error[{}]: {}", self.slug, self.what)?;
        self.details.iter().try_for_each(|line| write!(f, "\n  {line}"))?;
        self.hints.iter().try_for_each(|line| write!(f, "\n  hint: {line}"))
    }
}

impl std::error::Error for Problem {}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let (exit, slug) = match error.kind() {
            Kind::Unavailable | Kind::TimedOut | Kind::Closed => (Exit::Unreachable, "unreachable"),
            Kind::Config => (Exit::Usage, "config"),
            Kind::Denied => (Exit::NotAllowed, "not-allowed"),
            Kind::Unsupported => (Exit::Usage, "unsupported"),
            Kind::NotFound => (Exit::NotFound, "not-found"),
            Kind::Conflict => (Exit::Conflict, "conflict"),
            Kind::TooLarge => (Exit::Usage, "too-large"),
            Kind::Corrupt => (Exit::Failed, "corrupt"),
            _ => (Exit::Failed, "failed"),
        };
        let text = error.to_string();
        let (what, hint) = text.split_once("; hint: ").map_or((&*text, None), |(what, hint)| (what, Some(hint)));
        let mut problem = hint.into_iter().fold(Self::new(exit, slug, what), Self::hint);
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            problem.details.push(format!("because: {cause}"));
            source = cause.source();
        }
        problem
    }
}

/// Shorthand for what commands return.
pub type Result<T, E = Problem> = std::result::Result<T, E>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_reads_what_where_hint() {
        let problem = Problem::new(Exit::Usage, "bad-row", "row 2 of a.jsonl is not valid JSON")
            .detail("--> a.jsonl:2:31")
            .hint("fix the line");
        assert_eq!(
            problem.to_string(),
            "error[bad-row]: row 2 of a.jsonl is not valid JSON\n  --> a.jsonl:2:31\n  hint: fix the line"
        );
    }

    #[test]
    fn a_library_error_keeps_its_causes_and_gets_its_code() {
        let error =
            Error::new(Kind::Unavailable, "connect to the broker", "x:1").because(std::io::Error::other("refused"));
        let problem = Problem::from(error);
        assert_eq!((problem.exit, problem.slug), (Exit::Unreachable, "unreachable"));
        assert_eq!(problem.details, ["because: refused"]);
    }
}
