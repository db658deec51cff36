//! Wall-clock time as the queue stores it: whole milliseconds since the Unix epoch, RFC 3339 for people.

use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::text_or_number;

/// A moment, in milliseconds since 1970-01-01T00:00:00Z. Printed and read as RFC 3339 UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

impl Timestamp {
    /// This host's clock now.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    /// From milliseconds since the epoch.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the epoch.
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// How long after `earlier` this is; zero when it is not after it.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX)))
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Self;

    fn sub(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(by.as_millis()).unwrap_or(i64::MAX)))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if (0..YEAR_9999).contains(&self.0) {
            let text = rfc_3339(self.0.unsigned_abs());
            return f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?);
        }
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(at) => write!(f, "{at:.3}"),
            Err(_) => write!(f, "@{}ms", self.0),
        }
    }
}

/// Later than this only the library writes, which knows its own end.
const YEAR_9999: i64 = 253_370_764_800_000;

/// `2026-11-21T20:45:00.123Z`, of a moment before the year 9999. By hand: every result has half a dozen of them.
fn rfc_3339(millis: u64) -> [u8; 24] {
    const DAY: u64 = 86_400_000;
    // Days counted from 1 March of the year 0, so that a leap day is the last of its year; 400 years have 146,097 days.
    let (day, time) = (millis / DAY + 719_468, millis % DAY);
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // Months from March on, which have 153 days in every five.
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let (month, over) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let mut text = *b"0000-00-00T00:00:00.000Z";
    let parts = [
        (0, 4, era * 400 + year + over),
        (5, 2, month),
        (8, 2, date),
        (11, 2, time / 3_600_000),
        (14, 2, time / 60_000 % 60),
        (17, 2, time / 1_000 % 60),
        (20, 3, time % 1_000),
    ];
    for (from, width, mut number) in parts {
        for digit in text[from..from + width].iter_mut().rev() {
            *digit = b'0' + u8::try_from(number % 10).unwrap_or(0);
            number /= 10;
        }
    }
    text
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Timestamp {
    type Err = jiff::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<jiff::Timestamp>().map(|at| Self(at.as_millisecond()))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        text_or_number::write(serializer, self, self.0)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text_or_number::read(deserializer, Self)
    }
}

/// Reads a length of time as people write it: `90s`, `1h30m`, `250ms`, `7d`.
///
/// # Errors
/// Says what was wrong when the text is not such a length, is negative, or is over 10 years.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);
    let signed: jiff::SignedDuration = match text.parse() {
        Ok(signed) => signed,
        Err(error) => {
            day_form(text).ok_or_else(|| format!("{text:?} is not a length of time such as 90s or 1h30m ({error})"))?
        }
    };
    let length = Duration::try_from(signed).map_err(|_| format!("{text:?} is negative"))?;
    if length > LONGEST {
        return Err(format!("{text:?} is over 10 years"));
    }
    Ok(length)
}

/// jiff's exact durations stop at hours; `7d` is what people write for a deadline.
fn day_form(text: &str) -> Option<jiff::SignedDuration> {
    let (days, rest) = text.trim().split_once('d')?;
    let days: i64 = days.trim().parse().ok()?;
    let rest = match rest.trim() {
        "" => jiff::SignedDuration::ZERO,
        rest => rest.parse().ok()?,
    };
    jiff::SignedDuration::from_hours(days.checked_mul(24)?).checked_add(rest)
}

/// Writes a length of time the way [`parse_duration`] reads it, in at most two units: `1h30m`, `45s`, `250ms`.
pub fn format_duration(length: Duration) -> String {
    let seconds = length.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    let two = |a: u64, ua: &str, b: u64, ub: &str| {
        if b == 0 { format!("{a}{ua}") } else { format!("{a}{ua}{b}{ub}") }
    };
    match seconds {
        0 => format!("{}ms", length.as_millis()),
        1..60 => format!("{seconds}s"),
        60..3_600 => two(minutes, "m", seconds % 60, "s"),
        3_600..86_400 => two(hours, "h", minutes, "m"),
        _ => two(days, "d", hours, "h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_survives_text() {
        let at = Timestamp::from_millis(1_763_716_447_123);
        assert_eq!(at.to_string(), "2025-11-21T09:14:07.123Z");
        assert_eq!(at.to_string().parse::<Timestamp>().unwrap(), at);
    }

    #[test]
    fn lengths_of_time_are_read_and_written_alike() {
        for text in ["250ms", "45s", "1m30s", "1h30m", "7d", "2d12h"] {
            assert_eq!(format_duration(parse_duration(text).unwrap()), text);
        }
        for text in ["", "5", "-3s", "soon", "99999d"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn moments_are_written_as_the_library_writes_them() {
        const DAY: i64 = 86_400_000;
        let leap_days = [951_782_400_000, 4_107_542_400_000, 1_709_164_800_000].map(|day| day + DAY - 1);
        let spread = (0..20_000).map(|n| n * (YEAR_9999 / 20_000) + n * 7_919);
        for millis in spread.chain(leap_days).chain([0, 1, DAY - 1, DAY, YEAR_9999 - 1, YEAR_9999]) {
            let library = format!("{:.3}", jiff::Timestamp::from_millisecond(millis).unwrap());
            assert_eq!(Timestamp::from_millis(millis).to_string(), library, "{millis}");
        }
    }
}
