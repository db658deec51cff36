//! Names people give: queues, batches, models. Checked when made.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Why a name was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {name:?} {why}")]
pub struct BadName {
    what: &'static str,
    name: String,
    why: &'static str,
}

/// A queue's name: 1 to 64 of `A-Z a-z 0-9 . _ -`, not starting with a dot or dash.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Queue(Arc<str>);

impl Queue {
    /// The queue used when none is named.
    pub fn standard() -> Self {
        Self(Arc::from("default"))
    }

    /// Checks and takes a name.
    pub fn new(name: &str) -> Result<Self, BadName> {
        let bad = |why| BadName { what: "queue name", name: name.chars().take(80).collect(), why };
        if name.is_empty() || name.len() > 64 {
            return Err(bad("must have 1 to 64 characters"));
        }
        if name.starts_with(['.', '-']) {
            return Err(bad("may not start with a dot or a dash"));
        }
        if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
            return Err(bad("may hold only A-Z a-z 0-9 . _ -"));
        }
        Ok(Self(Arc::from(name)))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A batch's name: 1 to 128 characters without control characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BatchName(Arc<str>);

impl BatchName {
    /// Checks and takes a name.
    pub fn new(name: &str) -> Result<Self, BadName> {
        let bad = |why| BadName { what: "batch name", name: name.chars().take(140).collect(), why };
        if name.is_empty() || name.chars().count() > 128 {
            return Err(bad("must have 1 to 128 characters"));
        }
        if name.chars().any(char::is_control) {
            return Err(bad("may not hold control characters"));
        }
        Ok(Self(Arc::from(name)))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! name_text {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
        impl FromStr for $name {
            type Err = BadName;
            fn from_str(text: &str) -> Result<Self, BadName> {
                Self::new(text)
            }
        }
        impl TryFrom<String> for $name {
            type Error = BadName;
            fn try_from(text: String) -> Result<Self, BadName> {
                Self::new(&text)
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().to_owned()
            }
        }
    };
}
name_text!(Queue);
name_text!(BatchName);

/// A model as the submitter named it; any text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ModelName(Arc<str>);

impl ModelName {
    /// Takes the name as it is.
    pub fn new(name: &str) -> Self {
        Self(Arc::from(name))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert!(Queue::new("run-3f.a_b").is_ok());
        for name in ["", ".", "-x", "a b", "a/b", "ü"] {
            assert!(Queue::new(name).is_err(), "{name}");
        }
        assert!(BatchName::new("nov reviews/1").is_ok());
        assert!(BatchName::new("a\nb").is_err());
    }
}
