//! When a program's account may be used again, out of the words in which it says that its limit is reached.

use std::time::Duration;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use promptq_common::job::Job;
use promptq_common::time::{Timestamp, parse_duration};

/// What stands before a time, in small letters.
const MARKS: [&str; 4] = ["resets ", "reset ", "try again ", "retry "];
const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
/// What may follow a time of no certain zone. Anything else may be the name of one, which means different ones to different
/// people, or changes with the season.
const NO_ZONE: [&str; 6] = ["or", "to", "if", "but", "·", "∙"];
/// The words after a mark that may belong to its time.
const WORDS: usize = 8;
/// A time of day that has been over for less than this is the one that was meant; else it is tomorrow's.
const STALE: Duration = Duration::from_secs(3_600);
/// Numbers above these are moments: seconds, milliseconds since the epoch.
const EPOCH: (i64, i64) = (1_000_000_000, 1_000_000_000_000);

/// How long the account is to be left alone by these words, at most as long as a job waits to run; `None` where they name no
/// time that can be understood. Times are `here`'s unless they name their zone.
pub(super) fn wait(words: &str, now: Timestamp, here: &TimeZone) -> Option<Duration> {
    moment(&words.to_ascii_lowercase(), now, here).map(|at| until(at, now))
}

/// How long it is until a moment told in seconds or milliseconds since the epoch, with the same bound.
pub(super) fn wait_until(epoch: i64, now: Timestamp) -> Option<Duration> {
    from_epoch(epoch).map(|at| until(at, now))
}

fn until(at: Timestamp, now: Timestamp) -> Duration {
    at.since(now).min(Job::DEADLINE)
}

fn from_epoch(number: i64) -> Option<Timestamp> {
    let millis = if number >= EPOCH.1 { Some(number) } else { number.checked_mul(1_000) };
    millis.filter(|_| number >= EPOCH.0).map(Timestamp::from_millis)
}

fn moment(said: &str, now: Timestamp, here: &TimeZone) -> Option<Timestamp> {
    if let Some(epoch) = said.rsplit_once('|').and_then(|(_, epoch)| epoch.trim().parse().ok()) {
        return from_epoch(epoch);
    }
    let (_, rest) = MARKS.iter().find_map(|mark| said.split_once(mark))?;
    let (time, zone) = match rest.split_once('(') {
        Some((time, more)) => (time, Some(more.split(')').next().unwrap_or_default())),
        None => (rest, None),
    };
    let words = time.split(|c: char| c.is_whitespace() || c == ',').map(|word| word.trim_end_matches(['.', ';']));
    let words = words.filter(|word| !matches!(*word, "" | "in" | "after" | "at" | "on" | "and"));
    let words: Vec<&str> = words.take(WORDS).collect();
    if let Some(at) = words.first().and_then(|word| word.parse().ok()) {
        return Some(at);
    }
    match length(&words) {
        Some(length) => Some(now + length),
        None => Clock::read(&words, zone, here)?.moment(now),
    }
}

/// A length such as `18h12m33s` or `2 days 3 hours 5 minutes`.
fn length(words: &[&str]) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let part = match word.parse::<u64>() {
            Ok(count) => Duration::from_secs(count.checked_mul(unit(words.next()?)?)?),
            Err(_) => match parse_duration(word) {
                Ok(part) => part,
                Err(_) => break,
            },
        };
        total = total.checked_add(part)?;
    }
    (total > Duration::ZERO).then_some(total)
}

fn unit(word: &str) -> Option<u64> {
    match word.trim_end_matches('s') {
        "day" => Some(86_400),
        "hour" | "hr" => Some(3_600),
        "minute" | "min" => Some(60),
        "second" | "sec" => Some(1),
        _ => None,
    }
}

/// A time of day, perhaps of a certain day.
#[derive(Debug)]
struct Clock {
    /// Month, day and, where it was said, the year.
    date: Option<(i8, i8, Option<i16>)>,
    hour: i8,
    minute: i8,
    zone: TimeZone,
}

impl Clock {
    /// `3pm`, `3:05 PM`, `15:05`, with `Nov 25`, `Nov 25th, 2026` before it; `zone` is what stands in brackets after it.
    fn read(words: &[&str], zone: Option<&str>, here: &TimeZone) -> Option<Self> {
        let mut words = words.iter().copied().peekable();
        let date = match words.next_if(|word| month(word).is_some()).and_then(month) {
            Some(month) => Some((month, day(words.next()?)?, words.next_if(|word| is_year(word)))),
            None => None,
        };
        let date = date.map(|(month, day, year)| (month, day, year.and_then(|year| year.parse().ok())));
        let time = words.next()?;
        let half = |word: &str| match word {
            "am" | "a.m" => Some(0),
            "pm" | "p.m" => Some(12),
            _ => None,
        };
        let joined = ["am", "pm"].iter().find_map(|end| Some((time.strip_suffix(end)?, half(end))));
        let (time, half) = joined.unwrap_or_else(|| {
            let after = words.next_if(|word| half(word).is_some());
            (time, after.and_then(half))
        });
        let (hour, minute) = time.split_once(':').unwrap_or((time, "0"));
        let (hour, minute): (i8, i8) = (hour.parse().ok()?, minute.parse().ok()?);
        let hour = match half {
            Some(half) if (1..=12).contains(&hour) => hour % 12 + half,
            None if time.contains(':') && (0..24).contains(&hour) => hour,
            Some(_) | None => return None,
        };
        let zone = match (zone, words.next()) {
            (Some("utc" | "gmt"), _) | (None, Some("utc" | "gmt")) => TimeZone::UTC,
            (Some(name), _) => TimeZone::get(name).ok()?,
            (None, Some(word)) if !NO_ZONE.contains(&word) => return None,
            (None, _) => here.clone(),
        };
        (0..60).contains(&minute).then_some(Self { date, hour, minute, zone })
    }

    fn moment(&self, now: Timestamp) -> Option<Timestamp> {
        let today = jiff::Timestamp::from_millisecond(now.as_millis()).ok()?.to_zoned(self.zone.clone()).date();
        let at = |date: Date| {
            let at = date.at(self.hour, self.minute, 0, 0).to_zoned(self.zone.clone()).ok()?;
            Some(Timestamp::from_millis(at.timestamp().as_millisecond()))
        };
        let on = |year, (month, day)| at(Date::new(year, month, day).ok()?);
        match self.date {
            Some((month, day, Some(year))) => on(year, (month, day)),
            Some((month, day, None)) => {
                let years = (today.year() - 1..=today.year() + 1).filter_map(|year| on(year, (month, day)));
                years.min_by_key(|at| at.as_millis().abs_diff(now.as_millis()))
            }
            None => {
                let days = [today.yesterday().ok(), Some(today), today.tomorrow().ok()];
                days.into_iter().flatten().filter_map(at).find(|at| now.since(*at) < STALE)
            }
        }
    }
}

fn month(word: &str) -> Option<i8> {
    let place = MONTHS.iter().position(|name| word.starts_with(name))?;
    i8::try_from(place + 1).ok()
}

fn day(word: &str) -> Option<i8> {
    ["st", "nd", "rd", "th"].iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word).parse().ok()
}

fn is_year(word: &str) -> bool {
    word.len() == 4 && word.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-11-22T10:00:00Z";

    fn over(words: &str, now: &str, here: &str) -> Option<String> {
        let now: Timestamp = now.parse().unwrap();
        wait(words, now, &TimeZone::posix(here).unwrap()).map(|wait| (now + wait).to_string())
    }

    fn hold(now: &str, here: &str, rows: &[(&str, &str)]) {
        for (words, at) in rows {
            assert_eq!(over(words, now, here).as_deref(), Some(&*at.replace('Z', ":00.000Z")), "{words}");
        }
    }

    #[test]
    fn the_ways_of_telling_a_time_are_understood() {
        let rows = [
            ("You've hit your limit · resets 1pm (Europe/Berlin)", "2026-11-22T12:00Z"),
            ("You've hit your limit · resets 1pm (UTC)", "2026-11-22T13:00Z"),
            ("5-hour limit reached ∙ resets 12pm", "2026-11-22T12:00Z"),
            ("Your limit will reset at 3pm (America/New_York).", "2026-11-22T20:00Z"),
            ("You've hit your usage limit. Upgrade (https://x.example) or try again at 3:05 PM.", "2026-11-22T15:05Z"),
            ("try again at 3:05 p.m. or later", "2026-11-22T15:05Z"),
            ("resets at 15:05 UTC", "2026-11-22T15:05Z"),
            ("resets 12:30 AM", "2026-11-23T00:30Z"),
            ("resets Nov 25, 2026 9am (UTC)", "2026-11-25T09:00Z"),
            ("try again at Nov 25th, 2026 9:41 AM.", "2026-11-25T09:41Z"),
            ("Weekly limit reached ∙ resets November 29 at 3am", "2026-11-29T03:00Z"),
            ("Claude AI usage limit reached|1795348800", "2026-11-22T12:00Z"),
            ("Claude AI usage limit reached|1795348800000", "2026-11-22T12:00Z"),
            ("resets at 2026-11-22T11:30:00Z", "2026-11-22T11:30Z"),
            ("Your quota will reset after 18h12m.", "2026-11-23T04:12Z"),
            ("or try again in 2 days 17 hours and 14 minutes.", "2026-11-25T03:14Z"),
            ("Please retry in 60.0s.", "2026-11-22T10:01Z"),
        ];
        hold(NOW, "UTC0", &rows);
    }

    #[test]
    fn a_time_of_day_that_is_over_is_tomorrows_unless_it_was_just_meant() {
        let rows = [
            ("resets 9am", "2026-11-23T09:00Z"),
            ("resets 9:30am", "2026-11-22T10:00Z"),
            ("resets 10am", "2026-11-22T10:00Z"),
            ("resets Nov 20, 9am", "2026-11-22T10:00Z"),
        ];
        hold(NOW, "UTC0", &rows);
        hold("2026-11-23T00:00:05Z", "UTC0", &[("resets 1:00am", "2026-11-23T01:00Z")]);
        assert_eq!(over("resets 11:59pm", "2026-11-23T00:00:05Z", "UTC0").unwrap(), "2026-11-23T00:00:05.000Z");
        hold("2026-12-30T10:00:00Z", "UTC0", &[("resets Jan 2, 3am", "2027-01-02T03:00Z")]);
        hold("2027-01-01T00:00:00Z", "UTC0", &[("resets Dec 31, 11:59pm", "2027-01-01T00:00Z")]);
    }

    #[test]
    fn clocks_that_are_changed_are_reckoned_with() {
        let rome = "CET-1CEST,M3.5.0,M10.5.0/3";
        let spring = [("resets 2:30am", "2026-03-29T01:30Z"), ("resets 4am", "2026-03-29T02:00Z")];
        hold("2026-03-29T00:00:00Z", rome, &spring);
        hold(NOW, rome, &[("resets 1pm", "2026-11-22T12:00Z"), ("resets at 15:05 UTC", "2026-11-22T15:05Z")]);
        let autumn = [("resets 2:30am", "2026-10-25T00:30Z"), ("resets 4am", "2026-10-25T03:00Z")];
        hold("2026-10-24T22:00:00Z", rome, &autumn);
    }

    #[test]
    fn what_is_far_away_is_as_far_as_a_job_waits() {
        for words in
            ["resets Dec 25, 3am", "try again in 400 days", "limit reached|4102444800", "resets Jan 1, 2999 1am"]
        {
            assert_eq!(over(words, NOW, "UTC0").as_deref(), Some("2026-11-29T10:00:00.000Z"), "{words}");
        }
        assert_eq!(wait_until(1_795_348_800, NOW.parse().unwrap()), Some(Duration::from_secs(7_200)));
        assert_eq!([wait_until(7, NOW.parse().unwrap()), wait_until(i64::MIN, NOW.parse().unwrap())], [None, None]);
    }

    #[test]
    fn what_cannot_be_understood_names_no_time() {
        let long = format!("resets {}", "9".repeat(1_000_000));
        let words = [
            "",
            "resets",
            "resets soon",
            "try again later",
            "resets at 9",
            "resets 13pm",
            "resets 0am",
            "resets -3pm",
            "resets 25:00",
            "resets 3:61pm",
            "resets 300:00",
            "resets Feb 30, 3am",
            "resets Nov 25",
            "resets 1pm (Nowhere/Land)",
            "resets 1pm (in an hour)",
            "resets 1pm (../../etc/passwd)",
            "resets 3pm PST",
            "resets 3pm JST",
            "resets 3pm GMT+2",
            "resets at 15:05 +02:00",
            "reset after 99999999999999999999 days",
            "try again in 18446744073709551615 days",
            "limit reached|7",
            "limit reached|99999999999999999999",
            &long,
        ];
        for words in words {
            assert_eq!(over(words, NOW, "UTC0"), None, "{}", words.chars().take(80).collect::<String>());
        }
    }
}
