//! A record as the line people and programs read: an OpenAI batch output line with promptq's own account under
//! `promptq`. The one place that gives results their shape; fetching a stored body is the caller's.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::job::{BatchName, JobId, Queue};
use crate::outcome::{Attempt, Body, FailureClass, Usage, Usd};
use crate::record::{Answer, End, Output, Record};
use crate::time::Timestamp;

/// The longest announcement with its answer's body: 10,000 of them, which a stream holds, are some 600 MiB, within the 1
/// GiB that a results queue may take.
pub const ANNOUNCED_BYTES: usize = 64 * 1024;

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
    serde_json::to_string(&line)
        .unwrap_or_else(|error| format!(r#"{{"id":"batch_req_{}","error":"{error}"}}"#, record.id))
}

/// The text an answer gave: plain text as it is; of JSON the message of a chat completion, completion, response or
/// message, its parts joined. `None` where the shape has no text (embeddings).
pub fn answer_text(body: &Body) -> Option<Cow<'_, str>> {
    match body {
        Body::Text(text) => Some(Cow::Borrowed(text)),
        Body::Json(json) => {
            let shape: Shape<'_> = serde_json::from_str(json).ok()?;
            shape.text()
        }
    }
}

fn account<'a>(record: &'a Record, body: Option<&'a Body>) -> Account<'a> {
    let answer = record.answer.as_ref();
    let seconds = |from: Timestamp, to: Timestamp| to.since(from).as_secs_f64();
    Account {
        job_id: record.id,
        batch: record.batch.as_ref(),
        row: record.row,
        queue: &record.queue,
        state: record.end,
        class: record.cause.as_ref().and_then(|cause| cause.class),
        text: body.and_then(answer_text),
        model: answer.and_then(|answer| answer.model.as_deref()).or(record.model.as_deref()),
        finish_reason: answer.and_then(|answer| answer.finish_reason.as_deref()),
        output: answer.and_then(stored),
        tenant: record.tenant.as_deref(),
        tags: &record.tags,
        epoch: record.epoch,
        attempts: record.history.recent.iter().map(Try::of).collect(),
        timing: Timing {
            created_at: record.created_at,
            started_at: record.started_at,
            ended_at: record.ended_at,
            queued_s: record.started_at.map(|started| seconds(record.created_at, started)),
            run_s: record.started_at.map(|started| seconds(started, record.ended_at)),
        },
        usage: record.history.usage,
        cost_usd: record.history.cost,
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
    class: Option<FailureClass>,
    text: Option<Cow<'a, str>>,
    model: Option<&'a str>,
    finish_reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<Place<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    tags: &'a BTreeMap<String, String>,
    epoch: u32,
    attempts: Vec<Try<'a>>,
    timing: Timing,
    usage: Usage,
    cost_usd: Option<Usd>,
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
    class: Option<FailureClass>,
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
            class: attempt.class,
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
}

/// The parts of the providers' answers that hold text; whatever else they say is skipped unread.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Shape<'a> {
    #[serde(borrow)]
    choices: Vec<Choice<'a>>,
    #[serde(borrow)]
    output_text: Option<Said<'a>>,
    #[serde(borrow)]
    output: Vec<Item<'a>>,
    #[serde(borrow)]
    content: Option<Content<'a>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Choice<'a> {
    #[serde(borrow)]
    message: Option<Item<'a>>,
    #[serde(borrow)]
    text: Option<Said<'a>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Item<'a> {
    #[serde(borrow)]
    content: Option<Content<'a>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content<'a> {
    #[serde(borrow)]
    Text(Said<'a>),
    Parts(Vec<Part<'a>>),
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Part<'a> {
    #[serde(borrow)]
    text: Option<Said<'a>>,
}

/// A text, copied only where it is escaped.
#[derive(Deserialize)]
#[serde(transparent)]
struct Said<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a> Shape<'a> {
    fn text(self) -> Option<Cow<'a, str>> {
        if let Some(choice) = self.choices.into_iter().next() {
            return choice.text.map(|text| text.0).or_else(|| choice.message?.content?.text());
        }
        if let Some(text) = self.output_text {
            return Some(text.0);
        }
        let parts: Vec<_> = self.output.into_iter().filter_map(|item| item.content?.text()).collect();
        if parts.is_empty() { self.content?.text() } else { Some(parts.concat().into()) }
    }
}

impl<'a> Content<'a> {
    fn text(self) -> Option<Cow<'a, str>> {
        match self {
            Self::Text(text) => Some(text.0),
            Self::Parts(parts) => {
                let texts: Vec<_> = parts.into_iter().filter_map(|part| part.text).map(|text| text.0).collect();
                (!texts.is_empty()).then(|| texts.concat().into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::LeaseId;
    use crate::outcome::History;

    fn record(answer: Option<Answer>, cause: Option<crate::record::Cause>) -> Record {
        Record {
            id: JobId::from_bytes([7; 16]),
            epoch: 0,
            end: if answer.is_some() { End::Succeeded } else { End::Dead },
            queue: Queue::standard(),
            batch: Some(BatchName::new("nov").unwrap()),
            row: Some(1),
            custom_id: Some("r-1".into()),
            tenant: None,
            tags: BTreeMap::new(),
            model: Some("mock".into()),
            answer,
            cause,
            attempts: 1,
            history: History::default(),
            lease: LeaseId::NONE,
            worker: None,
            created_at: Timestamp::from_millis(0),
            started_at: Some(Timestamp::from_millis(1_500)),
            ended_at: Timestamp::from_millis(2_000),
        }
    }

    fn answer(body: Body) -> Answer {
        let output = Output::Inline(body);
        Answer { status_code: 200, request_id: None, model: None, finish_reason: Some("stop".into()), output }
    }

    #[test]
    fn a_success_is_an_openai_line_with_an_account() {
        let line = result_line(&record(Some(answer(Body::Text("wie \"geht's\"\n".into()))), None), None);
        assert_eq!(
            line,
            concat!(
                r#"{"id":"batch_req_07070707-0707-0707-0707-070707070707","custom_id":"r-1","#,
                r#""response":{"status_code":200,"request_id":null,"body":"wie \"geht's\"\n"},"error":null,"#,
                r#""promptq":{"job_id":"07070707-0707-0707-0707-070707070707","batch":"nov","row":1,"queue":"default","#,
                r#""state":"succeeded","class":null,"text":"wie \"geht's\"\n","model":"mock","finish_reason":"stop","#,
                r#""epoch":0,"attempts":[],"timing":{"created_at":"1970-01-01T00:00:00.000Z","#,
                r#""started_at":"1970-01-01T00:00:01.500Z","ended_at":"1970-01-01T00:00:02.000Z","#,
                r#""queued_s":1.5,"run_s":0.5},"usage":{"input_tokens":0,"output_tokens":0,"cached_tokens":0,"#,
                r#""reasoning_tokens":0},"cost_usd":null}}"#
            )
        );
    }

    #[test]
    fn a_body_of_many_lines_becomes_one_and_a_broken_one_a_string() {
        for body in ["{\n \"choices\": [{\"message\": {\"content\": \"hi\"}}]\r\n}", "{broken\n"] {
            let line = result_line(&record(Some(answer(Body::Json(body.into()))), None), None);
            assert!(!line.contains('\n'), "{line}");
            let _: serde_json::Value = serde_json::from_str(&line).unwrap();
        }
    }

    #[test]
    fn a_dead_job_has_its_error_and_no_response() {
        let cause = crate::record::Cause {
            class: Some(FailureClass::Fatal),
            code: "exit_1".into(),
            detail: "it broke".into(),
            status_code: None,
        };
        let line = result_line(&record(None, Some(cause)), None);
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line["response"], serde_json::Value::Null);
        assert_eq!(line["error"]["code"], "exit_1");
        assert_eq!((&line["promptq"]["state"], &line["promptq"]["class"]), (&"dead".into(), &"fatal".into()));
    }

    #[test]
    fn text_is_found_in_every_shape() {
        let json = |text: &str| Body::Json(text.to_owned());
        for (body, text) in [
            (json(r#"{"choices":[{"message":{"role":"assistant","content":"a"}}]}"#), Some("a")),
            (json(r#"{"choices":[{"text":"b"}]}"#), Some("b")),
            (json(r#"{"output":[{"type":"message","content":[{"type":"output_text","text":"c"}]}]}"#), Some("c")),
            (json(r#"{"content":[{"type":"text","text":"d"},{"type":"text","text":"e"}]}"#), Some("de")),
            (json(r#"{"data":[{"embedding":[0.1]}]}"#), None),
            (json(r#"{"choices":[{"message":{"content":null}}]}"#), None),
        ] {
            assert_eq!(answer_text(&body).as_deref(), text, "{body:?}");
        }
    }
}
