//! What is wrong with the configuration: each setting with its place, all of them at once.

use std::fmt;
use std::path::PathBuf;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said it.
    Default,
    /// A file, 1-based.
    File {
        /// Which.
        path: PathBuf,
        /// The line of the value.
        line: usize,
        /// The column of the value, in characters.
        column: usize,
    },
    /// A variable of the environment.
    Env(String),
    /// A flag, as written (`--broker`).
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Self::Env(name) => write!(f, "env {name}"),
            Self::Flag(name) => f.write_str(name),
        }
    }
}

/// One thing that is wrong. Never holds a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// A short, stable name: `config` unless there is a better one.
    pub slug: &'static str,
    /// Where it was said.
    pub at: Origin,
    /// What is wrong.
    pub what: String,
    /// How to mend it.
    pub hint: Option<String>,
    /// The provider whose key cannot be had: wrong for those alone who call it.
    pub key_of: Option<String>,
}

impl ConfigError {
    pub(super) fn new(at: Origin, what: impl Into<String>) -> Self {
        Self { slug: "config", at, what: what.into(), hint: None, key_of: None }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same where `path` is that of a provider's key.
    pub(super) fn of_key(mut self, path: &[impl AsRef<str>]) -> Self {
        if let [section, provider, setting] = path
            && (section.as_ref(), setting.as_ref()) == ("providers", "api_key")
        {
            self.key_of = Some(provider.as_ref().to_owned());
        }
        self
    }

    pub(super) fn slug(mut self, slug: &'static str) -> Self {
        self.slug = slug;
        self
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            Origin::Default => write!(f, "{}", self.what)?,
            Origin::File { .. } | Origin::Env(_) | Origin::Flag(_) => write!(f, "{}: {}", self.at, self.what)?,
        }
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, " ({hint})"))
    }
}

/// Everything that is wrong, in the order it was found; never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, error) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}
