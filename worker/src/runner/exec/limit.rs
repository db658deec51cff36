//! Whether a program says that its account's usage limit is reached: with the last words of a failed run, or with its final
//! record. What it answers to a job is never read for that. When the account may be used again is `reset.rs`.

use std::time::Duration;

use jiff::tz::TimeZone;
use promptq_common::config::LimitTexts;
use promptq_common::time::Timestamp;
use serde_json::Value;
use serde_json::value::RawValue;

use super::reset;

/// How far from the end of an output words and records are looked for, in lines that are not empty.
const WORDS: usize = 5;
const RECORDS: usize = 50;
/// How much of such words is read, in characters: they end with the time.
const SAID: usize = 500;
/// HTTP's 429 as an exit code, which has eight bits.
const EXIT_429: i32 = 429 % 256;
/// Limits of one run, and of no account.
const OF_A_RUN: [&str; 8] = ["context", "turn", "token", "memory", "time", "budget", "output", "length"];
/// How such words begin, in small letters; after these the name of a limit comes.
const YOURS: [&str; 4] = ["you've hit your ", "you have hit your ", "you've reached your ", "you have reached your "];
const BEGINNINGS: [&str; 8] = [
    "usage limit reached",
    "claude usage limit reached",
    "claude ai usage limit reached",
    "you have exhausted your capacity",
    "you have exhausted your daily quota",
    "you exceeded your current quota",
    "you're out of extra usage",
    "quota exceeded",
];
/// What they begin with otherwise, but for a name of at most [`NAME`] bytes.
const REACHED: [&str; 6] = [
    "hour limit reached",
    "session limit reached",
    "daily limit reached",
    "weekly limit reached",
    "opus limit reached",
    "sonnet limit reached",
];
const NAME: usize = 12;
/// The longest prefix of such words, and the longest name of a limit, in characters.
const HEAD: usize = 40;

/// A limit that is reached.
#[derive(Debug)]
pub(super) struct Reached {
    /// The program's words.
    pub(super) said: String,
    /// How long its account is to be left alone; `None` where nobody can tell.
    pub(super) wait: Option<Duration>,
}

/// How a run ended, and what came out of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended<'a> {
    pub(super) code: i32,
    pub(super) stdout: &'a [u8],
    pub(super) stderr: &'a [u8],
}

/// The limit that the run met, if it says so. Words that repeat what the job said, by `is_echo`, are the job's.
pub(super) fn reached(texts: LimitTexts, ended: Ended<'_>, is_echo: impl Fn(&str) -> bool) -> Option<Reached> {
    let Ended { code, stdout, stderr } = ended;
    let by_words = |output| in_words(output, &is_echo);
    match (texts, code) {
        (LimitTexts::Text, 0) => None,
        (LimitTexts::Text, _) => by_words(stderr).or_else(|| by_words(stdout)),
        (LimitTexts::Json, 0) => in_records(stdout, 0),
        (LimitTexts::Json, EXIT_429) => {
            // Only here: elsewhere the records of standard error may be the prompt's.
            let told = in_records(stdout, code).or_else(|| in_records(stderr, code));
            told.or_else(|| Some(Reached { said: format!("it exited with {code}, for 429"), wait: None }))
        }
        (LimitTexts::Json, _) => in_records(stdout, code).or_else(|| by_words(stderr)),
    }
}

fn in_records(output: &[u8], code: i32) -> Option<Reached> {
    let records = records(&String::from_utf8_lossy(output));
    let last = records.last().filter(|last| last.is_object())?;
    let is_error = || {
        let is_named = matches!(last["type"].as_str(), Some("error" | "turn.failed"));
        code != 0 || is_named || last["status"] == "error" || last["error"].is_object()
    };
    let is_429 = last["api_error_status"] == 429 || last["error"]["code"] == 429 || code == EXIT_429;
    let rejected = rejected(&records);
    let mut places = ["/result", "/error/message", "/message", "/errors/0", "/error"].into_iter();
    let said = plain(places.find_map(|place| last.pointer(place)?.as_str()).unwrap_or_default());
    let is_told = tells(&said);
    let is_limit = is_429 || rejected.is_some() || is_told;
    if !(is_limit && last["is_error"].as_bool().unwrap_or_else(is_error)) {
        return None;
    }
    let told = rejected.and_then(|info| ["resetsAt", "resets_at"].iter().find_map(|name| info[*name].as_i64()));
    let wait = told.and_then(|epoch| reset::wait_until(epoch, Timestamp::now())).or_else(|| wait(&said));
    // Other words may be of an answer that was cut off.
    Some(Reached { said: if is_told { said } else { "its usage limit is reached".to_owned() }, wait })
}

/// The last records of an output: what begins with its first bracket is one, or a list of them, or else each line is one.
fn records(output: &str) -> Vec<Value> {
    let (_, whole) = output.split_at(output.find(['{', '[']).unwrap_or_default());
    let read = |record: &str| serde_json::from_str(record).ok();
    if let Ok(list) = serde_json::from_str::<Vec<&RawValue>>(whole) {
        let last = list.len().saturating_sub(RECORDS);
        return list[last..].iter().filter_map(|record| read(record.get())).collect();
    }
    if let Some(record) = read(whole) {
        return vec![record];
    }
    let mut last: Vec<_> = lines(output).take(RECORDS).filter_map(read).collect();
    last.reverse();
    last
}

/// The latest word on the account's limits, if it is that nothing is left of them, nor beyond them.
fn rejected(records: &[Value]) -> Option<&Value> {
    let last = records.iter().rev().find(|record| record["type"] == "rate_limit_event")?;
    let info = &last["rate_limit_info"];
    let info = if info.is_object() { info } else { last };
    (info["status"] == "rejected" && info["isUsingOverage"] != true).then_some(info)
}

fn in_words(output: &[u8], is_echo: impl Fn(&str) -> bool) -> Option<Reached> {
    let output = String::from_utf8_lossy(output);
    let said = lines(&output).take(WORDS).map(plain).find(|said| tells(said) && !is_echo(said))?;
    Some(Reached { wait: wait(&said), said })
}

/// Lines with something in them, the last first.
fn lines(output: &str) -> impl Iterator<Item = &str> {
    output.lines().rev().map(str::trim).filter(|line| !line.is_empty())
}

fn plain(words: &str) -> String {
    words.chars().filter(|c| !c.is_control()).take(SAID).collect()
}

fn wait(said: &str) -> Option<Duration> {
    reset::wait(said, Timestamp::now(), &TimeZone::system())
}

/// Whether these are words for a limit that is reached, perhaps after "Error: ".
fn tells(said: &str) -> bool {
    let said = said.to_lowercase().replace('\u{2019}', "'");
    let after = said.split_once("error: ").filter(|(before, _)| before.chars().count() <= HEAD);
    let said = after.map_or(said.as_str(), |(_, after)| after).trim_start_matches(|c: char| !c.is_alphanumeric());
    let yours = YOURS.iter().find_map(|beginning| said.strip_prefix(beginning));
    let named = yours.map(|rest| rest.chars().take(HEAD).collect::<String>());
    let named = named.as_deref().and_then(|rest| rest.split_once("limit")).map(|(name, _)| name);
    named.is_some_and(|name| !OF_A_RUN.iter().any(|other| name.contains(other)))
        || BEGINNINGS.iter().any(|beginning| said.starts_with(beginning))
        || REACHED.iter().any(|words| said.find(words).is_some_and(|at| at <= NAME))
}
