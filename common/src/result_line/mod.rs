//! A record as the line people and programs read: an OpenAI batch output line with promptq's own account under
//! `promptq`. The one place that gives results their shape; fetching a stored body is the caller's.

mod cut;
#[cfg(test)]
mod tests;
mod text;

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use crate::job::{BatchName, JobId, Queue};
use crate::outcome::{Attempt, Body, CostSource, Usage, Usd};
use crate::record::{Answer, End, Output, Record};
use crate::time::Timestamp;

pub use cut::cut_line;
pub use text::answer_text;

/// The longest announcement with its answer's body: 10,000 of them, which a stream holds, are some 600 MiB, within the 1
/// GiB that a results queue may take.
pub const ANNOUNCED_BYTES: usize = 64 * 1024;
/// What a line has beside its answer, mostly less.
const USUAL_BYTES: usize = 1024;

/// One line of JSON without its newline. `body` is the answer's body where the record only names it in object
/// storage; an inline body is taken from the record. Without either, `response.body` is null and `promptq.output`
/// says where the body is.
pub fn result_line(record: &Record, body: Option<&Body>) -> String {
    line(record, inline(record).or(body))
}

/// The same line for those who listen: without the body where it would have more than [`ANNOUNCED_BYTES`]. Whoever wants
/// that one reads it by the job's id.
pub fn announcement(record: &Record) -> String {
    let whole = line(record, inline(record));
    if whole.len() > ANNOUNCED_BYTES { line(record, None) } else { whole }
}

fn inline(record: &Record) -> Option<&Body> {
    match &record.answer.as_ref()?.output {
        Output::Inline(inline) => Some(inline),
        Output::Stored(_) => None,
    }
}

fn line(record: &Record, body: Option<&Body>) -> String {
    let line = Line {
        id: RequestId(record.id),
        custom_id: record.custom_id.as_deref(),
        response: record.answer.as_ref().map(|answer| Response {
            status_code: answer.status_code,
            request_id: answer.request_id.as_deref(),
            body: body.map(json_of),
        }),
        error: record.cause.as_ref().map(|cause| Cause { code: &cause.code, message: &cause.detail }),
        promptq: account(record, body),
    };
    // The body, the text in it, and the account: a line that grows is copied again and again.
    let size = body.map_or(0, |(Body::Json(text) | Body::Text(text))| text.len());
    let mut text = Vec::with_capacity(USUAL_BYTES + 2 * size);
    let written = serde_json::to_writer(&mut text, &line).map_err(|error| error.to_string());
    let text = written.and_then(|()| String::from_utf8(text).map_err(|error| error.to_string()));
    text.unwrap_or_else(|error| format!(r#"{{"id":"batch_req_{}","error":"{error}"}}"#, record.id))
}

fn account<'a>(record: &'a Record, body: Option<&'a Body>) -> Account<'a> {
    let answer = record.answer.as_ref();
    let detail = answer.and_then(|answer| answer.detail.as_deref());
    let origin = answer.and_then(|answer| answer.origin.as_deref());
    let seconds = |from: Timestamp, to: Timestamp| to.since(from).as_secs_f64();
    Account {
        job_id: record.id,
        batch: record.batch.as_ref(),
        row: record.row,
        queue: &record.queue,
        state: record.end,
        class: record.class_name(),
        text: body.and_then(answer_text),
        model: answer.and_then(|answer| answer.model.as_deref()).or(record.model.as_deref()),
        finish_reason: answer.and_then(|answer| answer.finish_reason.as_deref()),
        service_tier: detail.and_then(|detail| detail.service_tier.as_deref()),
        output: answer.and_then(stored),
        tenant: record.tenant.as_deref(),
        tags: &record.tags,
        epoch: record.epoch,
        trace_id: record.trace.map(|place| place.trace_id()),
        attempts: record.history.recent.iter().map(Try::of).collect(),
        timing: Timing {
            created_at: record.created_at,
            started_at: record.started_at,
            ended_at: record.ended_at,
            queued_s: record.started_at.map(|started| seconds(record.created_at, started)),
            run_s: record.started_at.map(|started| seconds(started, record.ended_at)),
            time_to_first_chunk_s: detail.and_then(|detail| Some(detail.first_piece?.as_secs_f64())),
        },
        usage: record.history.usage,
        cache_write_tokens: detail.map(|detail| detail.cache_write_tokens).filter(|tokens| *tokens > 0),
        cost_usd: record.history.known_cost(),
        cost_partial: record.history.is_cost_partial(),
        cost_source: record.cost_source(),
        price_as_of: origin.and_then(|origin| origin.price_as_of.as_deref()),
        route: origin.and_then(|origin| origin.route.as_deref()),
        reused_from: origin.and_then(|origin| origin.reused_from),
    }
}

fn stored(answer: &Answer) -> Option<Place<'_>> {
    match &answer.output {
        Output::Inline(_) => None,
        Output::Stored(stored) => Some(Place { key: &stored.key, sha256: &stored.sha256, bytes: stored.bytes }),
    }
}

/// A body as one JSON value on one line: newlines in JSON can only be white space, so they may go.
fn json_of(body: &Body) -> Json<'_> {
    match body {
        Body::Json(json) if !json.contains(['\n', '\r']) => serde_json::from_str(json).map(Json::As).ok(),
        Body::Json(json) => RawValue::from_string(json.replace(['\n', '\r'], " ")).map(Json::Mended).ok(),
        Body::Text(_) => None,
    }
    .unwrap_or_else(|| {
        let (Body::Json(text) | Body::Text(text)) = body;
        Json::Text(text)
    })
}

/// A body on its way into a line.
#[derive(Serialize)]
#[serde(untagged)]
enum Json<'a> {
    As(&'a RawValue),
    Mended(Box<RawValue>),
    Text(&'a str),
}

/// `batch_req_` and the job's id.
struct RequestId(JobId);

impl Serialize for RequestId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("batch_req_{}", self.0))
    }
}

#[derive(Serialize)]
struct Line<'a> {
    id: RequestId,
    custom_id: Option<&'a str>,
    response: Option<Response<'a>>,
    error: Option<Cause<'a>>,
    promptq: Account<'a>,
}

#[derive(Serialize)]
struct Response<'a> {
    status_code: u16,
    request_id: Option<&'a str>,
    body: Option<Json<'a>>,
}

#[derive(Serialize)]
struct Cause<'a> {
    code: &'a str,
    message: &'a str,
}

#[derive(Serialize)]
struct Account<'a> {
    job_id: JobId,
    batch: Option<&'a BatchName>,
    row: Option<u64>,
    queue: &'a Queue,
    state: End,
    class: Option<&'static str>,
    text: Option<Cow<'a, str>>,
    model: Option<&'a str>,
    finish_reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_tier: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<Place<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    tags: &'a BTreeMap<String, String>,
    epoch: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
    attempts: Vec<Try<'a>>,
    timing: Timing,
    usage: Usage,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_write_tokens: Option<u64>,
    cost_usd: Option<Usd>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    cost_partial: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    cost_source: Option<CostSource>,
    #[serde(skip_serializing_if = "Option::is_none")]
    price_as_of: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reused_from: Option<JobId>,
}

#[derive(Serialize)]
struct Place<'a> {
    key: &'a str,
    sha256: &'a str,
    bytes: u64,
}

#[derive(Serialize)]
struct Try<'a> {
    n: u32,
    worker: &'a str,
    started_at: Timestamp,
    ended_at: Timestamp,
    class: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status_code: Option<u16>,
    cost_usd: Option<Usd>,
}

impl<'a> Try<'a> {
    fn of(attempt: &'a Attempt) -> Self {
        Self {
            n: attempt.n,
            worker: &attempt.worker,
            started_at: attempt.started_at,
            ended_at: attempt.ended_at,
            class: attempt.class_name(),
            code: attempt.code.as_deref(),
            detail: attempt.detail.as_deref(),
            status_code: attempt.status_code,
            cost_usd: attempt.cost,
        }
    }
}

#[derive(Serialize)]
struct Timing {
    created_at: Timestamp,
    started_at: Option<Timestamp>,
    ended_at: Timestamp,
    queued_s: Option<f64>,
    run_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    time_to_first_chunk_s: Option<f64>,
}
