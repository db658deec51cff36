//! What released jobs wait for, as a name by which all of them are woken in one step.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::job::BatchName;

/// What stands before a limit key where it is its flex tier that has no room.
const FLEX: &str = "flex:";

/// What a released job waits for.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum HoldKey {
    /// A limit key.
    Limit(String),
    /// A paused or exhausted batch.
    Batch(BatchName),
    /// A budget.
    Budget(String),
}

impl HoldKey {
    /// What jobs wait for that the limit key of this name holds back: `batch:NAME` and `budget:NAME` are money's.
    pub fn of_limit(key: &str) -> Self {
        match key.parse() {
            Ok(Self::Limit(_)) | Err(_) => Self::Limit(key.to_owned()),
            Ok(money) => money,
        }
    }

    /// What jobs wait for that find no room in the flex tier of a limit key.
    pub fn of_flex(key: &str) -> Self {
        Self::Limit(format!("{FLEX}{key}"))
    }

    /// The limit key whose flex tier has no room for such jobs; `None` of those that wait for something else.
    pub fn flex(&self) -> Option<&str> {
        match self {
            Self::Limit(key) => key.strip_prefix(FLEX),
            Self::Batch(_) | Self::Budget(_) => None,
        }
    }

    /// The limit key that holds such jobs back: the other way round.
    pub fn limit_key(&self) -> String {
        match self {
            Self::Limit(key) => key.clone(),
            Self::Batch(_) | Self::Budget(_) => self.to_string(),
        }
    }
}

impl fmt::Display for HoldKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Limit(key) => write!(f, "limit:{key}"),
            Self::Batch(name) => write!(f, "batch:{name}"),
            Self::Budget(key) => write!(f, "budget:{key}"),
        }
    }
}

impl std::str::FromStr for HoldKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("limit", key)) => Ok(Self::Limit(key.to_owned())),
            Some(("budget", key)) => Ok(Self::Budget(key.to_owned())),
            Some(("batch", name)) => BatchName::new(name).map(Self::Batch).map_err(|bad| bad.to_string()),
            _ => Err(format!("{text:?} is not a hold key")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_a_flex_tier_is_no_wait_for_its_key() {
        let tier = HoldKey::of_flex("acme/m");
        let [key, batch] = ["limit:acme/m", "batch:flex"].map(|text| text.parse::<HoldKey>().unwrap());
        assert_eq!([tier.flex(), key.flex(), batch.flex()], [Some("acme/m"), None, None]);
        assert_ne!(tier, key);
        assert_eq!(tier.to_string().parse(), Ok(tier.clone()), "as it is stored");
        assert_eq!(HoldKey::of_limit(&tier.limit_key()), tier);
    }
}
