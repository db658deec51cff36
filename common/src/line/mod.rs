//! A job line: one job as people and foreign producers write it in JSON, read strictly.
//! Which keys exist, and what an unknown one might have meant, is said here and nowhere else.

mod fields;
mod members;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde_json::Value;

use crate::job::{Job, Priority, Queue, Reuse};
use crate::limits::dollars_of;
use crate::outcome::{History, Usd};
use crate::telemetry::trace::Context;
use crate::time::{Timestamp, parse_duration};
use crate::work::{Input, Prompt, Work};
use fields::Fields;
pub use fields::{check_name, closest};
pub use members::Members;

/// The longest `custom_id`, key, tenant, tag name or tag value, in characters: they are shown in lists and kept in
/// indexes.
pub const NAME_CHARS: usize = 256;
/// The most tags of one job.
pub const MAX_TAGS: usize = 32;
/// The most attempts a job may ask for: beyond this a retry is a loop.
pub const MAX_ATTEMPTS: u32 = 1_000;
/// The most answers of one job that are put aside: each was paid for, and all of them stay in its history.
pub const MAX_REPAIRS: u32 = 9;
const _: () = assert!((MAX_REPAIRS as usize) < History::KEPT);

/// A job as a line says it; what a line leaves out is the submitter's to fill.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// The submitter's name for the job.
    pub custom_id: Option<String>,
    /// What to run.
    pub work: Work,
    /// Everything else it says about the job.
    pub terms: LineTerms,
}

/// What a line may say of its job beside the work.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LineTerms {
    /// Its queue.
    pub queue: Option<Queue>,
    /// Its priority.
    pub priority: Option<Priority>,
    /// Not leased before.
    pub not_before: Option<When>,
    /// Expired after.
    pub deadline: Option<When>,
    /// What the job's id is derived from.
    pub key: Option<String>,
    /// A label for budgets.
    pub tenant: Option<String>,
    /// Free labels.
    pub tags: BTreeMap<String, String>,
    /// Attempts in all.
    pub attempts: Option<u32>,
    /// How often an answer that is not whole is put aside and asked for again.
    pub repair_attempts: Option<u32>,
    /// The wait after the first failed attempt.
    pub backoff: Option<Duration>,
    /// The longest one attempt may run.
    pub timeout: Option<Duration>,
    /// The most that all its attempts may cost.
    pub max_cost: Option<Usd>,
    /// Whether a stored answer will do.
    pub reuse: Option<Reuse>,
    /// What it was caused by; what cannot be read as that is as good as nothing.
    pub trace: Option<Context>,
}

/// A moment, or a length of time from now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// At this moment.
    At(Timestamp),
    /// So long after the submission.
    In(Duration),
}

impl When {
    /// The moment it means when said at `now`.
    pub fn resolve(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(at) => at,
            Self::In(length) => now + length,
        }
    }
}

/// Reads `2026-11-22T00:00:00Z` or `90s`.
impl std::str::FromStr for When {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(length) = parse_duration(text) {
            return Ok(Self::In(length));
        }
        text.parse().map(Self::At).map_err(|_| {
            format!("{text:?} is neither a length of time such as 90s nor a moment such as 2026-11-22T00:00:00Z")
        })
    }
}

/// Why a line was refused. Never holds prompts; names of keys at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLine {
    /// The 1-based byte in the line where it goes wrong, when known.
    pub column: Option<usize>,
    /// What is wrong.
    pub what: String,
    /// How to mend it.
    pub hint: Option<String>,
}

impl fmt::Display for BadLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for BadLine {}

impl BadLine {
    fn new(what: impl Into<String>) -> Self {
        Self { column: None, what: what.into(), hint: None }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Moves the fault to where `part`, a slice of `line`, begins.
    fn at(mut self, line: &str, part: &str) -> Self {
        let offset = (part.as_ptr() as usize).checked_sub(line.as_ptr() as usize);
        self.column = self.column.or(offset.filter(|at| *at < line.len()).map(|at| at + 1));
        self
    }
}

impl Line {
    /// Reads one line: `{"prompt": …}`, or an OpenAI batch line (`custom_id`, `method`, `url`, `body`), whose body
    /// is kept byte for byte. Unknown and repeated keys are errors.
    pub fn parse(text: &str) -> Result<Self, BadLine> {
        let fields = Fields::parse(text)?;
        if fields.has("body") || fields.has("method") || fields.has("url") {
            batch_line(&fields)
        } else {
            prompt_line(&fields)
        }
    }

    /// The job it means, in `queue` unless it names one, submitted at `now`. The id is derived when the line has a
    /// key, else fresh.
    pub fn into_job(self, queue: &Queue, now: Timestamp) -> Job {
        let terms = self.terms;
        let mut job = Job::new(terms.queue.unwrap_or_else(|| queue.clone()), self.work);
        job.created_at = now;
        job.custom_id = self.custom_id;
        job.tenant = terms.tenant;
        job.tags = terms.tags;
        job.trace = terms.trace;
        job.priority = terms.priority.unwrap_or_default();
        job.not_before = terms.not_before.map(|when| when.resolve(now));
        let begins = job.not_before.unwrap_or(now).max(now);
        job.deadline = terms.deadline.map_or(begins + Job::DEADLINE, |when| when.resolve(now));
        if let Some(attempts) = terms.attempts {
            job.policy.attempts = attempts;
        }
        if let Some(repairs) = terms.repair_attempts {
            job.policy.repair_attempts = repairs;
        }
        if let Some(first) = terms.backoff {
            job.policy.backoff.first = first;
            job.policy.backoff.max = job.policy.backoff.max.max(first);
        }
        if let Some(timeout) = terms.timeout {
            job.policy.timeout = timeout;
        }
        if terms.max_cost.is_some() {
            job.extras.get_or_insert_default().max_cost = terms.max_cost;
        }
        if let Some(age) = terms.reuse.and_then(Reuse::age) {
            job.extras.get_or_insert_default().reuse = Some(age);
        }
        match terms.key {
            Some(key) => job.with_key(&key),
            None => job,
        }
    }
}

const PROMPT_KEYS: &[&str] =
    &["prompt", "system", "id", "custom_id", "model", "max_tokens", "temperature", "params", "tags", "promptq"];
const BATCH_KEYS: &[&str] = &["custom_id", "id", "method", "url", "body", "promptq"];
const EXTRA_KEYS: &[&str] = &[
    "queue",
    "priority",
    "not_before",
    "delay",
    "deadline",
    "idempotency_key",
    "tenant",
    "tags",
    "attempts",
    "repair_attempts",
    "backoff",
    "timeout",
    "max_cost_usd",
    "reuse",
    Context::NAME,
];
/// Keys of the format that this version does not act on: refused, since acting as if they were not there would lie.
const LATER_KEYS: &[&str] = &[
    "images",
    "vars",
    "metadata",
    "no_output_timeout",
    "lane",
    "route",
    "output",
    "depends_on",
    "callback",
    "agent",
    "provider",
    "schema",
];
/// The endpoints whose bodies a batch line may hold; `*` stands for one model.
pub const ENDPOINTS: &[&str] =
    &["/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/v1/messages", "/v1beta/models/*:generateContent"];

/// Whether a batch line may name this endpoint.
fn is_served(url: &str) -> bool {
    ENDPOINTS.contains(&url) || model_in(url).is_some()
}

/// The model that a url of Gemini's names, as its requests have it there and not in their bodies:
/// `/v1beta/models/MODEL:generateContent`. Of letters, digits, dots, dashes and underscores.
pub fn model_in(url: &str) -> Option<&str> {
    let model = url.strip_prefix("/v1beta/models/")?.strip_suffix(":generateContent")?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    ((1..=128).contains(&model.len()) && model.bytes().all(plain) && model != "." && model != "..").then_some(model)
}

fn prompt_line(fields: &Fields<'_>) -> Result<Line, BadLine> {
    fields.only(PROMPT_KEYS)?;
    let Some(text) = fields.text("prompt")? else {
        return Err(BadLine::new("there is no \"prompt\"")
            .hint("a job line is {\"prompt\":\"…\"}; `promptq submit -t '{{text}}'` makes prompts of other columns"));
    };
    if text.is_empty() {
        return Err(fields.fault("prompt", "the prompt is empty"));
    }
    let mut params = match fields.value("params")? {
        None => serde_json::Map::new(),
        Some(Value::Object(params)) => params,
        Some(_) => return Err(fields.fault("params", "\"params\" is not an object")),
    };
    for key in ["max_tokens", "temperature"] {
        match fields.value(key)? {
            None => {}
            Some(number @ Value::Number(_)) => drop(params.insert(key.to_owned(), number)),
            Some(_) => return Err(fields.fault(key, &format!("{key:?} is not a number"))),
        }
    }
    let prompt = Prompt { text, system: fields.text("system")?, params: params_text(params) };
    let mut terms = terms(fields)?;
    let tags = fields.tags("tags")?;
    if !tags.is_empty() && !terms.tags.is_empty() {
        return Err(fields.fault("tags", "there are tags twice: beside the prompt and under \"promptq\""));
    }
    terms.tags.extend(tags);
    let work = Work { model: fields.name("model")?, input: Input::Prompt(prompt) };
    Ok(Line { custom_id: fields.id()?, work, terms })
}

fn batch_line(fields: &Fields<'_>) -> Result<Line, BadLine> {
    fields.only(BATCH_KEYS)?;
    if fields.text("method")?.is_some_and(|method| method != "POST") {
        return Err(fields.fault("method", "the method is not POST"));
    }
    let missing = |key: &str| BadLine::new(format!("a line with a request needs {key:?}"));
    let url = fields.text("url")?.ok_or_else(|| missing("url"))?;
    if !is_served(&url) {
        return Err(fields
            .fault("url", "this endpoint is not supported by this version")
            .hint(format!("supported are {}", ENDPOINTS.join(", "))));
    }
    let body = fields.raw("body").ok_or_else(|| missing("body"))?;
    let shape = Some(body.get()).filter(|text| text.starts_with('{'));
    let shape: BodyShape = shape
        .and_then(|text| serde_json::from_str(text).ok())
        .ok_or_else(|| fields.fault("body", "the body is not an object with at most one \"model\", a text"))?;
    let model = shape.model.or_else(|| model_in(&url).map(str::to_owned));
    let input = Input::Request { url, body: body.get().to_owned() };
    Ok(Line { custom_id: fields.id()?, work: Work { model, input }, terms: terms(fields)? })
}

#[derive(serde::Deserialize)]
struct BodyShape {
    #[serde(default)]
    model: Option<String>,
}

/// What stands under `promptq`.
fn terms(fields: &Fields<'_>) -> Result<LineTerms, BadLine> {
    let Some(raw) = fields.raw("promptq") else { return Ok(LineTerms::default()) };
    let extras = fields.inside(raw).map_err(|_| fields.fault("promptq", "\"promptq\" is not an object"))?;
    extras.only(EXTRA_KEYS)?;
    let read = |key: &str| extras.text(key);
    let length = |key: &str| {
        let text = read(key)?;
        text.map(|text| parse_duration(&text).map_err(|what| extras.fault(key, &what))).transpose()
    };
    let when = |key: &str| {
        let text = read(key)?;
        text.map(|text| text.parse::<When>().map_err(|what| extras.fault(key, &what))).transpose()
    };
    if extras.has("delay") && extras.has("not_before") {
        return Err(extras.fault("delay", "\"delay\" and \"not_before\" say the same thing; give one"));
    }
    let delay = length("delay")?.map(When::In);
    let dollars = |text: String| dollars_of(&text).map_err(|what| extras.fault("max_cost_usd", &what));
    let queue = read("queue")?.map(|name| Queue::new(&name).map_err(|bad| extras.fault("queue", &bad.to_string())));
    // What cannot be read, of whatever type, is as good as nothing: the convention wants it so.
    let trace = extras.value(Context::NAME).ok().flatten();
    let reuse = read("reuse")?.map(|text| text.parse::<Reuse>().map_err(|what| extras.fault("reuse", &what)));
    Ok(LineTerms {
        queue: queue.transpose()?,
        priority: extras.number("priority", 0, 9)?.and_then(|number| Priority::new(u8::try_from(number).ok()?).ok()),
        not_before: delay.or(when("not_before")?),
        deadline: when("deadline")?,
        key: extras.name("idempotency_key")?,
        tenant: extras.name("tenant")?,
        tags: extras.tags("tags")?,
        attempts: extras.number("attempts", 1, MAX_ATTEMPTS)?,
        repair_attempts: extras.number("repair_attempts", 0, MAX_REPAIRS)?,
        backoff: length("backoff")?,
        timeout: length("timeout")?,
        max_cost: read("max_cost_usd")?.map(dollars).transpose()?,
        reuse: reuse.transpose()?,
        trace: trace.and_then(|said| Context::parse(said.as_str()?)),
    })
}

/// Parameters as the text that travels: keys sorted, so that equal ones are equal bytes; empty for none.
pub fn params_text(mut params: serde_json::Map<String, Value>) -> String {
    if params.is_empty() {
        return String::new();
    }
    params.sort_keys();
    Value::Object(params).to_string()
}

#[cfg(test)]
mod tests;
