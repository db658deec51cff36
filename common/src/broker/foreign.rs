//! Jobs from clients that are not ours: a line of JSON becomes an envelope, or a job that is dead on arrival and says
//! why. How a line gets to the broker and away again is the backend's; what it may say, `line/`.

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{Envelope, Head, envelope};
use crate::codec;
use crate::job::{Job, JobId, Priority, Queue};
use crate::line::{BadLine, Line, NAME_CHARS};
use crate::outcome::FailureClass;
use crate::record::{Cause, End, Record};
use crate::telemetry::trace::Context;
use crate::time::Timestamp;
use crate::work::Work;

/// How much of a line that nobody can read is kept with its dead job: enough for a person to see what it was.
pub(super) const KEPT_BYTES: usize = 64 * 1024;

/// What a line comes to.
#[derive(Clone, Debug)]
pub(super) struct Arrival {
    /// The job.
    pub(super) envelope: Envelope,
    /// Why it is dead on arrival, if it is.
    pub(super) dead: Option<Box<Record>>,
}

/// What a message says of its line beside the body.
#[derive(Clone, Debug, Default)]
pub(super) struct Labels {
    /// What its id is derived from, unless the line says.
    pub(super) key: Option<String>,
    /// The model, for a line that names none.
    pub(super) model: Option<String>,
    /// The priority, 0 to 9.
    pub(super) priority: Option<u8>,
    /// Not before this: a moment, or a length of time.
    pub(super) not_before: Option<String>,
    /// What it was caused by.
    pub(super) trace: Option<Context>,
}

impl Labels {
    fn onto(self, mut line: Line) -> Result<Line, String> {
        line.terms.key = line.terms.key.or(self.key);
        line.terms.trace = line.terms.trace.or(self.trace);
        if line.work.model.is_none() {
            line.work.model = self.model;
        }
        if let (None, Some(priority)) = (line.terms.priority, self.priority) {
            line.terms.priority = Some(Priority::new(priority)?);
        }
        if let (None, Some(text)) = (line.terms.not_before, self.not_before) {
            line.terms.not_before = Some(text.parse()?);
        }
        Ok(line)
    }
}

impl Arrival {
    /// Reads a line that stood in the inbox of `queue`. Its id is derived from its `idempotency_key`, else from its
    /// `id`; one without either is a job of its own each time.
    pub(super) fn read(line: &[u8], queue: &Queue, now: Timestamp) -> Self {
        let parsed = std::str::from_utf8(line)
            .map_err(|_| "the line is not UTF-8".to_owned())
            .and_then(|text| Line::parse(text).map_err(|bad| said(&bad)))
            .and_then(|parsed| match &parsed.terms.queue {
                Some(other) if other != queue => {
                    Err(format!("it names queue {other} and stands in the inbox of {queue}"))
                }
                Some(_) | None => Ok(parsed),
            });
        let job = match parsed {
            Ok(mut line) => {
                line.terms.key = line.terms.key.or_else(|| line.custom_id.clone());
                line.into_job(queue, now)
            }
            Err(why) => return Self::unreadable(line, queue, now, why),
        };
        match envelope(&job) {
            Ok(envelope) => Self { envelope, dead: None },
            Err(limit) => Self::unreadable(line, queue, now, format!("the job is larger than {limit} bytes")),
        }
    }

    /// Reads a line that came as a message for `queue`, with what the message says of it beside. The labels yield to
    /// what the line says itself; without any id or key it is dead.
    pub(super) fn message(body: &[u8], queue: &Queue, labels: Labels, now: Timestamp) -> Self {
        let name = labels.key.clone();
        let parsed = std::str::from_utf8(body)
            .map_err(|_| "the body is not UTF-8".to_owned())
            .and_then(|text| Line::parse(text).map_err(|bad| said(&bad)))
            .and_then(|line| labels.onto(line).map_err(|why| format!("a header of the message is wrong: {why}")))
            .and_then(|line| match &line.terms.queue {
                Some(other) if other != queue => Err(format!("it names queue {other} and came for {queue}")),
                Some(_) | None => Ok(line),
            });
        let mut line = match parsed {
            Ok(line) => line,
            Err(why) => return Self::strange((name.as_deref(), body), queue, why, now),
        };
        line.terms.key = line.terms.key.or_else(|| line.custom_id.clone());
        let nameless = line.terms.key.is_none();
        if nameless {
            line.terms.key = Some(content_key(body));
        }
        let envelope = match envelope(&line.into_job(queue, now)) {
            Ok(envelope) => envelope,
            Err(limit) => {
                let why = format!("the job is larger than {limit} bytes");
                return Self::strange((name.as_deref(), body), queue, why, now);
            }
        };
        let dead = nameless.then(|| {
            let detail = "the message has no message_id, nor correlation_id with reply_to, and its line has no id: \
                          nobody could tell a repetition from a new job";
            record(&envelope, "no_id", detail.to_owned(), now)
        });
        Self { envelope, dead }
    }

    /// Something for `queue` that nobody can read, dead under an id that its name and content give: should it come
    /// again, it is the same dead job; mended under the same name, it is another.
    pub(super) fn strange((name, body): (Option<&str>, &[u8]), queue: &Queue, why: String, now: Timestamp) -> Self {
        let mut arrival = Self::unreadable(body, queue, now, why);
        let id = JobId::derived(queue, None, &format!("unreadable:{}:{}", content_key(body), name.unwrap_or_default()));
        arrival.envelope.head.id = id;
        if let Some(record) = &mut arrival.dead {
            record.id = id;
        }
        arrival
    }

    /// A line of so many bytes that was not even looked at; `start` is how it begins.
    pub(super) fn too_large(start: &[u8], bytes: usize, queue: &Queue, now: Timestamp) -> Self {
        let why = format!("the line has {bytes} bytes; the limit is {}", codec::MAX_BYTES);
        Self::unreadable(start, queue, now, why)
    }

    /// The same job under an id of its own, dead, because another job has the id: a person may still have it run.
    pub(super) fn conflicting(self, id: JobId, now: Timestamp) -> Self {
        let mut envelope = self.envelope;
        (envelope.head.id, envelope.head.keyed) = (id, false);
        let own = |job| Job { id, keyed: false, ..job };
        if let Ok(payload) = codec::decode_job(&envelope.payload).and_then(|job| codec::encode_job(&own(job))) {
            envelope.payload = payload;
        }
        let detail = "another job with other content has its id or idempotency_key";
        let dead = Some(record(&envelope, "id_conflict", detail.to_owned(), now));
        Self { envelope, dead }
    }

    /// The id that [`Self::conflicting`] is given where the same message may come again: its content makes it.
    pub(super) fn id_of_its_own(head: &Head) -> JobId {
        let content = hex(&head.fingerprint.0);
        JobId::derived(&head.lane.queue, None, &format!("conflict:{}:{content}", head.id))
    }

    fn unreadable(line: &[u8], queue: &Queue, now: Timestamp, why: String) -> Self {
        let kept = line.get(..KEPT_BYTES).unwrap_or(line);
        let mut job = Job::new(queue.clone(), Work::prompt(None, String::from_utf8_lossy(kept)));
        (job.created_at, job.custom_id) = (now, custom_id(line));
        let payload = [&[codec::UNREADABLE], kept].concat();
        let envelope = Envelope { head: super::head(&job), payload };
        let dead = Some(record(&envelope, "unreadable_job", why, now));
        Self { envelope, dead }
    }
}

/// What stands for the id of something that has none.
fn content_key(body: &[u8]) -> String {
    format!("content:{}", hex(&Sha256::digest(body)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn record(envelope: &Envelope, code: &str, detail: String, now: Timestamp) -> Box<Record> {
    let cause = Cause { class: Some(FailureClass::Fatal), code: code.to_owned(), detail, status_code: None };
    Box::new(Record::unrun(&envelope.head, End::Dead, Some(cause), now))
}

/// A fault with its place and hint, in one line.
fn said(bad: &BadLine) -> String {
    let place = bad.column.map_or_else(String::new, |column| format!(" (byte {column})"));
    let hint = bad.hint.as_ref().map_or_else(String::new, |hint| format!("; {hint}"));
    format!("{bad}{place}{hint}")
}

/// The submitter's name for a job that is otherwise wrong, so that it can be told which one.
fn custom_id(line: &[u8]) -> Option<String> {
    let Ok(Value::Object(members)) = serde_json::from_slice(line) else { return None };
    let named = ["custom_id", "id"].iter().find_map(|key| members.get(*key)?.as_str());
    named.filter(|name| name.chars().count() <= NAME_CHARS).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Arrival {
        Arrival::read(line.as_bytes(), &Queue::standard(), Timestamp::now())
    }

    fn why(arrival: &Arrival) -> (&str, &str) {
        let cause = arrival.dead.as_ref().unwrap().cause.as_ref().unwrap();
        (&cause.code, &cause.detail)
    }

    #[test]
    fn an_id_or_a_key_makes_the_id_and_the_key_decides() {
        let derived = |key| JobId::derived(&Queue::standard(), None, key);
        let named = read(r#"{"id":"a","prompt":"hi"}"#).envelope.head;
        assert_eq!((named.id, named.keyed, named.custom_id.as_deref()), (derived("a"), true, Some("a")));
        let both = read(r#"{"id":"a","prompt":"hi","promptq":{"idempotency_key":"k"}}"#).envelope.head;
        assert_eq!((both.id, both.custom_id.as_deref()), (derived("k"), Some("a")));
        let plain = [read(r#"{"prompt":"hi"}"#), read(r#"{"prompt":"hi"}"#)].map(|arrival| arrival.envelope.head);
        assert!(plain[0].id != plain[1].id && !plain[0].keyed);
    }

    #[test]
    fn a_line_knows_its_place_in_a_trace_better_than_its_message() {
        let [of_line, of_message] = [(); 2].map(|()| Context::root(None, true));
        let message = |promptq: &str| {
            let body = format!(r#"{{"prompt":"hi","id":"a","promptq":{{{promptq}}}}}"#);
            let labels = Labels { trace: Some(of_message), ..Labels::default() };
            Arrival::message(body.as_bytes(), &Queue::standard(), labels, Timestamp::now())
        };
        let place = |arrival: Arrival| codec::place_of(&arrival.envelope.payload);
        assert_eq!(place(message(&format!(r#""traceparent":"{of_line}""#))), Some(of_line));
        assert_eq!(place(message(r#""traceparent":"00-4bf9-zz""#)), Some(of_message), "it says nothing");
        assert_eq!(place(message("")), Some(of_message));
        let own = message("").conflicting(JobId::fresh(), Timestamp::now());
        assert_eq!(place(own), Some(of_message), "also under an id of its own");
    }

    #[test]
    fn what_cannot_be_read_is_dead_and_never_taken_for_a_job() {
        for line in ["", "{", r#"{"prompt":""}"#, r#"{"id":"x","prompt":"hi","promptq":{"queue":"other"}}"#] {
            let arrival = read(line);
            assert_eq!(why(&arrival).0, "unreadable_job", "{line}");
            assert!(codec::decode_job(&arrival.envelope.payload).is_err(), "{line}");
        }
        let told = read(r#"{"id":"mine","prompt":"secret","colour":1}"#);
        assert!(why(&told).1.contains("colour") && !why(&told).1.contains("secret"), "{:?}", why(&told));
        assert_eq!(told.dead.unwrap().custom_id.as_deref(), Some("mine"));
        let large = Arrival::too_large(&vec![b'x'; KEPT_BYTES + 9], 20 << 20, &Queue::standard(), Timestamp::now());
        assert!(why(&large).1.contains("20971520 bytes") && large.envelope.payload.len() == KEPT_BYTES + 1);
    }

    #[test]
    fn a_conflict_keeps_its_work_under_an_id_of_its_own() {
        let first = read(r#"{"id":"a","prompt":"hi","model":"m"}"#);
        let refused = first.clone().conflicting(JobId::fresh(), Timestamp::now());
        let (head, job) = (&refused.envelope.head, codec::decode_job(&refused.envelope.payload).unwrap());
        assert!(head.id != first.envelope.head.id && job.id == head.id && !job.keyed && !head.keyed);
        assert_eq!((why(&refused).0, job.work.model.as_deref()), ("id_conflict", Some("m")));
        assert_eq!(refused.dead.as_ref().unwrap().id, head.id);
    }
}
