//! Answers that are none: the status, headers and body with which each API says no. What each API says is in a file of its
//! own; what they share is here.

pub mod anthropic;
pub mod gemini;
pub mod openai;

use jiff::fmt::rfc2822::DateTimePrinter;
use serde_json::Value;

use super::allowance::RetryAfter;
use super::fault::FaultRule;
use super::kind::Kind;
use super::limits::Denied;
use super::shape::Api;

/// A whole answer that says no.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// Headers of its own.
    pub headers: Vec<(String, String)>,
    /// What the body is.
    pub content_type: &'static str,
    /// The body.
    pub body: String,
}

/// What a refusal may mention.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    /// The model asked for.
    pub model: &'a str,
    /// The call's id.
    pub request_id: &'a str,
    /// Milliseconds since 1970.
    pub unix_ms: i64,
}

/// One row of an API's table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Said {
    pub(super) status: u16,
    /// The error's type, or Gemini's status.
    pub(super) kind: &'static str,
    /// The error's code, where the API has one beside the type; Gemini's quota.
    pub(super) code: &'static str,
    /// For people.
    pub(super) message: &'static str,
}

/// A row: kind of fault, status, type, code, sentence. `{model}` stands for the model.
pub(super) type Row = (Kind, u16, &'static str, &'static str, &'static str);

pub(super) fn look_up(table: &[Row], kind: Kind) -> Option<Said> {
    let row = table.iter().find(|row| row.0 == kind)?;
    Some(Said { status: row.1, kind: row.2, code: row.3, message: row.4 })
}

impl Refusal {
    /// A fault that strikes before any work.
    pub fn of_fault(api: Api, rule: &FaultRule, about: About<'_>) -> Self {
        let wait = rule.retry_after.map(super::random::Span::as_millis);
        let mut refusal = Self::of_kind(api, rule.kind, rule.message.as_deref(), wait, about);
        if let Some(body) = &rule.body {
            refusal.body.clone_from(body);
        }
        if let (Api::Gemini, Kind::Content, None) = (api, rule.kind, &rule.body) {
            // Gemini answers such a prompt, without a candidate.
            refusal.status = 200;
            refusal.body = super::shape::gemini::blocked(about.model).to_string();
        }
        refusal.status = rule.status.unwrap_or(refusal.status);
        if let Some(wait) = wait {
            refusal.headers.extend(headers(default_of(api), wait, about.unix_ms));
        }
        refusal.headers.extend(rule.headers.iter().map(|(name, value)| (name.clone(), value.clone())));
        refusal
    }

    /// What an API says in such a case, with another sentence where one is given.
    pub fn of_kind(api: Api, kind: Kind, message: Option<&str>, wait: Option<u64>, about: About<'_>) -> Self {
        if kind == Kind::BadGateway {
            let body = "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n<center><h1>502 Bad Gateway</h1>\
                        </center>\r\n</body>\r\n</html>\r\n";
            return Self { status: 502, headers: Vec::new(), content_type: "text/html", body: body.to_owned() };
        }
        let (status, body) = said(api, kind, message, wait, about);
        Self { status, headers: Vec::new(), content_type: "application/json", body: body.to_string() }
    }

    /// A limit is used up.
    pub fn denied(api: Api, denied: &Denied, mode: Option<RetryAfter>, about: About<'_>) -> Self {
        let mode = mode.unwrap_or(default_of(api));
        let told = denied.wait.filter(|_| mode != RetryAfter::None);
        let body = match api {
            Api::OpenAi => openai::denied(denied, told, about),
            Api::Anthropic => anthropic::denied(denied, about),
            Api::Gemini => gemini::denied(denied, told, about),
        };
        let headers = told.map(|wait| headers(mode, wait, about.unix_ms)).unwrap_or_default();
        Self { status: 429, headers, content_type: "application/json", body: body.to_string() }
    }
}

/// The body of a refusal, and its status.
pub fn said(api: Api, kind: Kind, message: Option<&str>, wait: Option<u64>, about: About<'_>) -> (u16, Value) {
    let (table, otherwise) = match api {
        Api::OpenAi => (openai::TABLE, openai::OTHERWISE),
        Api::Anthropic => (anthropic::TABLE, anthropic::OTHERWISE),
        Api::Gemini => (gemini::TABLE, gemini::OTHERWISE),
    };
    let nearest = otherwise.iter().find(|(from, _)| *from == kind).map_or(Kind::ServerError, |(_, to)| *to);
    let said = look_up(table, kind).or_else(|| look_up(table, nearest));
    let said = said.unwrap_or(Said { status: 500, kind: "", code: "", message: "" });
    let message = message.map_or_else(|| said.message.replace("{model}", about.model), str::to_owned);
    let body = match api {
        Api::OpenAi => openai::body(said, kind, &message),
        Api::Anthropic => anthropic::body(said, &message, about),
        Api::Gemini => gemini::body(said, kind, &message, wait, about),
    };
    (said.status, body)
}

fn default_of(api: Api) -> RetryAfter {
    match api {
        Api::OpenAi => RetryAfter::Both,
        Api::Anthropic => RetryAfter::Seconds,
        Api::Gemini => RetryAfter::Body,
    }
}

fn headers(mode: RetryAfter, wait: u64, unix_ms: i64) -> Vec<(String, String)> {
    let seconds = || ("retry-after".to_owned(), wait.div_ceil(1_000).to_string());
    let millis = || ("retry-after-ms".to_owned(), wait.to_string());
    match mode {
        RetryAfter::Seconds => vec![seconds()],
        RetryAfter::Millis => vec![millis()],
        RetryAfter::Both => vec![seconds(), millis()],
        RetryAfter::Date => {
            let at = unix_ms.saturating_add(i64::try_from(wait.div_ceil(1_000) * 1_000).unwrap_or(i64::MAX)) + 999;
            let at = jiff::Timestamp::from_millisecond(at).unwrap_or_default();
            let date = DateTimePrinter::new().timestamp_to_rfc9110_string(&at).unwrap_or_default();
            vec![("retry-after".to_owned(), date)]
        }
        RetryAfter::Body | RetryAfter::None => Vec::new(),
    }
}

/// `12ms`, `1.5s`, `6m0s`, `1h0m0s`: as Go writes lengths of time, and `OpenAI` its resets.
pub fn go_duration(millis: u64) -> String {
    let (hours, minutes, seconds, rest) =
        (millis / 3_600_000, millis / 60_000 % 60, millis / 1_000 % 60, millis % 1_000);
    if millis < 1_000 {
        return format!("{millis}ms");
    }
    let fraction = if rest == 0 { String::new() } else { format!(".{rest:03}").trim_end_matches('0').to_owned() };
    match (hours, minutes) {
        (0, 0) => format!("{seconds}{fraction}s"),
        (0, _) => format!("{minutes}m{seconds}{fraction}s"),
        _ => format!("{hours}h{minutes}m{seconds}{fraction}s"),
    }
}

#[cfg(test)]
mod tests;
