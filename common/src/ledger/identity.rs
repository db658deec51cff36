//! Which ledger it is, whatever its address: a random number that was made with it. Where it is kept is each ledger's
//! affair, what another broker makes of it that broker's.

use std::fmt;

use uuid::Uuid;

use crate::error::{Error, Kind, Result};

/// A ledger's identity: the same for every process that uses it, by whatever name and login they reach it. A ledger that
/// lost its data is another one; a copy of it is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LedgerId(Uuid);

impl LedgerId {
    /// Of a ledger that is new. Random from the first digit on, so that the first few tell two of them apart.
    pub fn random() -> Self {
        Self(Uuid::new_v8(rand::random()))
    }

    /// From what a ledger keeps, as [`fmt::Display`] writes it.
    ///
    /// # Errors
    /// `Corrupt` for anything else.
    pub fn parse(text: &str) -> Result<Self> {
        Uuid::try_parse(text).map(Self).map_err(|error| {
            Error::new(Kind::Corrupt, "read the ledger's identity", "what it keeps there is none").because(error)
        })
    }

    /// Its first eight digits, for people.
    pub fn short(self) -> String {
        let mut digits = self.to_string();
        digits.truncate(8);
        digits
    }
}

impl fmt::Display for LedgerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again_and_nothing_else() {
        let (one, other) = (LedgerId::random(), LedgerId::random());
        assert_eq!(LedgerId::parse(&one.to_string()).unwrap(), one);
        assert!(one != other && one.to_string().starts_with(&one.short()));
        assert_eq!(LedgerId::parse("of another making").unwrap_err().kind(), Kind::Corrupt);
    }
}
