//! Whether a job may be given a stored answer, as people say it: `24h`, or `off`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::time::{format_duration, parse_duration};

/// Whether a job may be given a stored answer to the same question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// Never, whatever its queue says.
    Off,
    /// One that is no older than this, at least a second.
    Within(Duration),
}

impl Reuse {
    /// The oldest that is taken; `None` for none.
    pub const fn age(self) -> Option<Duration> {
        match self {
            Self::Off => None,
            Self::Within(age) => Some(age),
        }
    }
}

impl FromStr for Reuse {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const LEAST: Duration = Duration::from_secs(1);
        if text == "off" {
            return Ok(Self::Off);
        }
        match parse_duration(text) {
            Ok(age) if age >= LEAST => Ok(Self::Within(age)),
            Ok(_) => Err(format!("{text:?} is under a second; for none write off")),
            Err(_) => Err(format!("{text:?} is neither an age such as 24h or 7d nor off")),
        }
    }
}

impl fmt::Display for Reuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Within(age) => f.write_str(&format_duration(*age)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_an_age_or_off() {
        let day = Reuse::Within(Duration::from_secs(86_400));
        assert_eq!(("24h".parse(), "1d".parse(), "off".parse()), (Ok(day), Ok(day), Ok(Reuse::Off)));
        assert_eq!((day.to_string().as_str(), day.age()), ("1d", Some(Duration::from_secs(86_400))));
        assert_eq!((Reuse::Off.to_string().as_str(), Reuse::Off.age()), ("off", None));
        for (text, says) in [("0s", "write off"), ("on", "such as 24h"), ("", "such as 24h"), ("-1h", "such as 24h")] {
            let error = text.parse::<Reuse>().unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
