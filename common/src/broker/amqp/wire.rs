//! Jobs as messages: what travels in the body, what in the properties, and how a foreign client's message is read.
//! Where a message goes is the topology's.

use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use super::topology;
use crate::broker::backend::{Envelope, Head};
use crate::broker::foreign::{Arrival, Labels};
use crate::codec;
use crate::error::{Error, Kind, Result};
use crate::job::{JobId, Queue};
use crate::record::Record;
use crate::telemetry::trace::Context;
use crate::time::Timestamp;

/// The content type of our own messages.
const OURS: &str = "application/x-promptq-job";
/// Of those of foreign clients, and of every result.
const JSON: &str = "application/json";
/// The header of a message that may stand in its queue already.
const DUPLICATE: &str = "pq-dup";
/// See [`Parcel::named`].
const NAMED: &str = "pq-named";
/// Messages survive a restart of the server.
const PERSISTENT: u8 = 2;
const BODY_V1: u8 = 1;
/// The largest payload that travels: what servers from 4.0 on take as they come (`max_message_size`, 16 MiB), less the
/// room for its head, which grows with each attempt.
pub(super) const LARGEST: usize = (16 << 20) - (256 << 10);

/// A job as it came, or goes.
#[derive(Clone, Debug)]
pub(super) struct Parcel {
    pub(super) envelope: Envelope,
    /// Who waits for the result, if the client said so.
    pub(super) reply: Option<Reply>,
    /// Whether a client named it that is not ours, and nobody has looked yet whether another job has that name.
    pub(super) named: bool,
    /// Whether it may have been delivered before, or stand in its queue already. A ledger that cannot claim counts the
    /// deaths of such jobs alone, so wherever the job goes, its message says so.
    pub(super) again: bool,
}

/// Where a foreign client wants its result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    /// Its queue.
    pub(super) to: String,
    /// What it calls the request.
    pub(super) correlation: Option<String>,
}

/// What a delivery comes to.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) parcel: Parcel,
    /// Why the job is dead on arrival, if it is.
    pub(super) dead: Option<Box<Record>>,
}

impl Parcel {
    /// The properties of this job's message, and its body; `again` marks it as [`Parcel::again`] does. None of them is
    /// the message's priority: its lane says that, and from 4.0 on servers would keep what is due in a delay queue
    /// behind whatever is more urgent there.
    ///
    /// # Errors
    /// `TooLarge` when the head alone is beyond the codec's limit.
    pub(super) fn message(&self, again: bool) -> Result<(BasicProperties, Vec<u8>)> {
        let Envelope { head, payload } = &self.envelope;
        let encoded = codec::encode_part("encode a head", head)?;
        let length =
            u32::try_from(encoded.len()).map_err(|_| Error::new(Kind::TooLarge, "encode a head", "more than 4 GiB"))?;
        let mut body = Vec::with_capacity(5 + encoded.len() + payload.len());
        body.push(BODY_V1);
        body.extend(length.to_be_bytes());
        body.extend(encoded);
        body.extend(payload);
        let mut headers = FieldTable::default();
        headers.insert("pq-epoch".into(), AMQPValue::LongUInt(head.epoch));
        headers.insert("pq-attempts".into(), AMQPValue::LongUInt(head.attempts));
        if again || self.again {
            headers.insert(DUPLICATE.into(), AMQPValue::Boolean(true));
        }
        if let Some(place) = codec::place_of(payload) {
            headers.insert(Context::NAME.into(), AMQPValue::LongString(place.to_string().into()));
        }
        if self.named {
            headers.insert(NAMED.into(), AMQPValue::Boolean(true));
        }
        let mut properties = BasicProperties::default()
            .with_content_type(OURS.into())
            .with_headers(headers)
            .with_delivery_mode(PERSISTENT)
            .with_message_id(head.id.to_string().into())
            .with_timestamp(u64::try_from(head.created_at.as_millis() / 1_000).unwrap_or(0));
        if let Some(reply) = &self.reply {
            properties = properties.with_reply_to(short(&reply.to));
            if let Some(correlation) = &reply.correlation {
                properties = properties.with_correlation_id(short(correlation));
            }
        }
        Ok((properties, body))
    }
}

/// Reads what was delivered for `queue`. It always comes to a job, if only to one that is dead and says why.
pub(super) fn read(delivery: &Delivery, queue: &Queue, now: Timestamp) -> Read {
    let properties = &delivery.properties;
    let content_type = properties.content_type().as_ref().map_or("", ShortString::as_str);
    let (reply, name) = (reply(properties), name(properties));
    let unread = (name.as_deref(), delivery.data.as_slice());
    if content_type == OURS {
        return match ours(&delivery.data) {
            Ok(envelope) => {
                let headers = properties.headers().as_ref().map(FieldTable::inner);
                let has = |name| headers.is_some_and(|headers| headers.contains_key(name));
                let (named, again) = (has(NAMED), has(DUPLICATE));
                Read { parcel: Parcel { envelope, reply, named, again }, dead: None }
            }
            Err(error) => arrived(Arrival::strange(unread, queue, error.to_string(), now), reply),
        };
    }
    let sent = properties.timestamp().and_then(|seconds| i64::try_from(seconds).ok());
    let now = sent.map_or(now, |seconds| Timestamp::from_millis(seconds.saturating_mul(1_000)).min(now));
    let kind = content_type.split(';').next().unwrap_or_default().trim();
    arrived(
        if kind.eq_ignore_ascii_case(JSON) {
            match labels(properties) {
                Ok(labels) => Arrival::message(&delivery.data, queue, labels, now),
                Err(why) => Arrival::strange(unread, queue, why, now),
            }
        } else {
            let why = format!("its content_type is {content_type:?}; a foreign client's job is {JSON}");
            Arrival::strange(unread, queue, why, now)
        },
        reply,
    )
}

fn arrived(arrival: Arrival, reply: Option<Reply>) -> Read {
    let named = arrival.dead.is_none();
    Read { parcel: Parcel { envelope: arrival.envelope, reply, named, again: false }, dead: arrival.dead }
}

impl Read {
    /// What becomes of it when another job with other content has its name. The same again whenever it comes.
    pub(super) fn conflicting(parcel: Parcel, now: Timestamp) -> Self {
        let Parcel { envelope, reply, again, .. } = parcel;
        let id = Arrival::id_of_its_own(&envelope.head);
        let mut read = arrived(Arrival { envelope, dead: None }.conflicting(id, now), reply);
        read.parcel.again = again;
        read
    }
}

fn ours(body: &[u8]) -> Result<Envelope> {
    let bad = |why: &str| Error::new(Kind::Corrupt, "read a message", why);
    let (version, rest) = body.split_first().ok_or_else(|| bad("it is empty"))?;
    if *version != BODY_V1 {
        return Err(bad("a newer promptq wrote it; update this one"));
    }
    let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(|| bad("it is cut short"))?;
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    let (head, payload) = rest.split_at_checked(length).ok_or_else(|| bad("it is cut short"))?;
    let head: Head = codec::decode_part("decode a head", head)?;
    Ok(Envelope { head, payload: payload.to_vec() })
}

/// Where the result is wanted. A queue of ours is nobody's to write into, and is as good as none.
fn reply(properties: &BasicProperties) -> Option<Reply> {
    let to = properties.reply_to().as_ref()?.as_str();
    if to.is_empty() || topology::is_ours(to) {
        return None;
    }
    let correlation = properties.correlation_id().as_ref().map(|id| id.as_str().to_owned());
    Some(Reply { to: to.to_owned(), correlation })
}

/// What the client calls its job: the message's id, or where the reply goes and under which.
fn name(properties: &BasicProperties) -> Option<String> {
    let text = |value: &Option<ShortString>| {
        value.as_ref().map(ShortString::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
    };
    text(properties.message_id()).or_else(|| {
        let (to, correlation) = (text(properties.reply_to())?, text(properties.correlation_id())?);
        Some(format!("{to}\n{correlation}"))
    })
}

/// What the properties and headers say of the job.
///
/// # Errors
/// What is wrong with a header, without its value: that may be anything.
fn labels(properties: &BasicProperties) -> Result<Labels, String> {
    let headers = properties.headers().as_ref().map(FieldTable::inner);
    let header = |name: &str| match headers.and_then(|headers| headers.get(name)) {
        None | Some(AMQPValue::Void) => Ok(None),
        Some(value) => {
            as_text(value).map(Some).ok_or_else(|| format!("the header {name} is neither text nor a whole number"))
        }
    };
    let priority = match header("priority")? {
        Some(text) => Some(text.parse().map_err(|_| "the header priority is no number from 0 to 9")?),
        None => *properties.priority(),
    };
    // What cannot be read is as good as nothing: the convention wants it so.
    let trace = header(Context::NAME).ok().flatten().and_then(|said| Context::parse(&said));
    Ok(Labels { key: name(properties), model: header("model")?, priority, not_before: header("not_before")?, trace })
}

/// The text in a header; a number as its digits.
#[expect(clippy::wildcard_enum_match_arm, reason = "nothing else is text or a whole number")]
fn as_text(value: &AMQPValue) -> Option<String> {
    Some(match value {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok()?.to_owned(),
        AMQPValue::ShortString(text) => text.to_string(),
        AMQPValue::ShortShortInt(n) => n.to_string(),
        AMQPValue::ShortShortUInt(n) => n.to_string(),
        AMQPValue::ShortInt(n) => n.to_string(),
        AMQPValue::ShortUInt(n) => n.to_string(),
        AMQPValue::LongInt(n) => n.to_string(),
        AMQPValue::LongUInt(n) => n.to_string(),
        AMQPValue::LongLongInt(n) => n.to_string(),
        _ => return None,
    })
}

/// The properties of a result: a JSON message under this job's id, caused by the delivery at this place.
pub(super) fn result(id: JobId, correlation: Option<&str>, place: Option<Context>) -> BasicProperties {
    let mut properties = BasicProperties::default()
        .with_content_type(JSON.into())
        .with_delivery_mode(PERSISTENT)
        .with_message_id(id.to_string().into());
    if let Some(place) = place {
        let mut headers = FieldTable::default();
        headers.insert(Context::NAME.into(), AMQPValue::LongString(place.to_string().into()));
        properties = properties.with_headers(headers);
    }
    match correlation {
        Some(correlation) => properties.with_correlation_id(short(correlation)),
        None => properties,
    }
}

/// What came as a short string goes as one; nothing longer reaches this.
fn short(text: &str) -> ShortString {
    ShortString::try_new(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(headers: &[(&str, AMQPValue)]) -> BasicProperties {
        let mut table = FieldTable::default();
        for (name, value) in headers {
            table.insert((*name).into(), value.clone());
        }
        BasicProperties::default().with_headers(table)
    }

    fn long(text: &str) -> AMQPValue {
        AMQPValue::LongString(text.into())
    }

    #[test]
    fn headers_say_what_the_line_does_not() {
        let said = labels(&with(&[
            ("model", long("m")),
            ("priority", long("7")),
            ("not_before", long("90s")),
            ("x-trace", AMQPValue::Boolean(true)),
        ]));
        let said = said.unwrap();
        assert_eq!(
            (said.model.as_deref(), said.priority, said.not_before.as_deref()),
            (Some("m"), Some(7), Some("90s"))
        );
        for number in [AMQPValue::ShortShortUInt(3), AMQPValue::LongInt(3), AMQPValue::LongLongInt(3)] {
            assert_eq!(labels(&with(&[("priority", number)])).unwrap().priority, Some(3));
        }
        let property = with(&[("priority", AMQPValue::Void)]).with_priority(8);
        assert_eq!(labels(&property).unwrap().priority, Some(8), "a header without a value says nothing");
        assert_eq!(labels(&with(&[("priority", long("2"))]).with_priority(8)).unwrap().priority, Some(2));
    }

    #[test]
    fn a_header_of_ours_that_says_nothing_sensible_is_refused_and_not_passed_over() {
        let strange = [AMQPValue::Boolean(true), AMQPValue::Double(7.5), AMQPValue::Timestamp(7), long("high")];
        for value in strange.into_iter().chain([long(""), long("-1"), long("7.0"), AMQPValue::LongInt(700)]) {
            let why = labels(&with(&[("priority", value.clone())])).unwrap_err();
            assert!(why.contains("priority") && !why.contains("high"), "{value:?}: {why}");
        }
        let broken = AMQPValue::LongString(vec![b'm', 0xff].into());
        for (name, value) in
            [("model", AMQPValue::Boolean(true)), ("model", broken), ("not_before", AMQPValue::Timestamp(7))]
        {
            assert!(labels(&with(&[(name, value)])).unwrap_err().contains(name), "{name}");
        }
    }

    #[test]
    fn an_id_is_the_messages_or_that_of_the_request_it_answers_to() {
        let key = |properties: BasicProperties| labels(&properties).unwrap().key;
        let (none, to) = (BasicProperties::default(), BasicProperties::default().with_reply_to("back".into()));
        assert_eq!((key(none.clone()), key(to.clone())), (None, None));
        let both = to.with_correlation_id("7".into());
        assert_eq!(key(both.clone()).as_deref(), Some("back\n7"));
        assert_eq!(key(both.with_message_id("one".into())).as_deref(), Some("one"));
        assert_eq!(key(none.with_message_id("".into())), None);
    }

    #[test]
    fn nobody_is_answered_in_a_queue_of_ours() {
        let to = |name: &str| reply(&BasicProperties::default().with_reply_to(name.into()));
        assert_eq!(to("amq.gen-x"), Some(Reply { to: "amq.gen-x".to_owned(), correlation: None }));
        assert_eq!((to(""), to("pq1.q.default._.high"), to("pq2.anything")), (None, None, None));
    }

    #[test]
    fn a_place_in_a_trace_is_read_from_its_header_and_told_there() {
        const SAID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let of = |value: AMQPValue| labels(&with(&[("traceparent", value)])).unwrap().trace;
        let place = of(long(SAID)).unwrap();
        assert_eq!(place.to_string(), SAID);
        for strange in [long("00-4bf9"), AMQPValue::Boolean(true), AMQPValue::LongString(vec![0xff].into())] {
            assert_eq!(of(strange), None, "as good as nothing");
        }
        let job = crate::job::Job::new(Queue::standard(), crate::work::Work::prompt(None, "hi"));
        let header = |job: &crate::job::Job| {
            let envelope = crate::broker::envelope(job).unwrap();
            let parcel = Parcel { envelope, reply: None, named: false, again: false };
            let properties = parcel.message(false).unwrap().0;
            let headers = properties.headers().as_ref().unwrap().inner().get("traceparent").cloned();
            headers.and_then(|value| as_text(&value))
        };
        assert_eq!(header(&job), None);
        assert_eq!(header(&crate::job::Job { trace: Some(place), ..job }).as_deref(), Some(SAID));
    }
}
