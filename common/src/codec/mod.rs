//! Jobs, heads and records as bytes: a version byte, then bincode under a size limit. The only user of bincode.
//! A payload that begins with `{` is a job line as a foreign producer writes it.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::job::{Extras, Job, Queue};
use crate::limits::Pool;
use crate::line::Line;
use crate::outcome::{Detail, History, Origin};
use crate::record::{Answer, Record};
use crate::telemetry::trace::Context;
use crate::time::Timestamp;

/// The largest encoded job or record, in bytes: 16 MiB, the smallest message limit among current brokers.
pub const MAX_BYTES: usize = 16 * 1024 * 1024;
/// What a place in a trace adds to a job or record: one that has none yet may be given one on its way.
pub const PLACE_BYTES: usize = 1 + Context::BYTES;
/// Room that is made at once: a prompt or an answer of a few sentences fits.
const USUAL_BYTES: usize = 512;

/// Begins the payload of a line that nobody could read, kept for people to see: no version of a job.
pub(crate) const UNREADABLE: u8 = 0;

const JOB_V1: u8 = 1;
/// As the first, followed by what only some jobs ask for; written only for those.
const JOB_V2: u8 = 2;
/// As the first, followed by that, if it asks for anything, and how often it may be repaired; written only where it may.
const JOB_V3: u8 = 3;
/// A place in a trace, and then the job as one of the above, or as a foreign producer wrote it; only where there is one.
const JOB_TRACED: u8 = 4;
const RECORD_V1: u8 = 1;
/// As the first, followed by what else the provider said of the answer; written only where it said something.
const RECORD_V2: u8 = 2;
/// As the first, followed by what was said of the answer, if anything was, and where it is from; written only where that is known.
const RECORD_V3: u8 = 3;
/// A place in a trace, and then the record as one of the above; only where there is one.
const RECORD_TRACED: u8 = 4;
const HISTORY_V1: u8 = 1;
const PART_V1: u8 = 1;
/// As the first, followed by what its record says beside the rest of its answer.
const PART_V2: u8 = 2;
/// A place in a trace, which is its record's, and then the part as one of the above.
const PART_TRACED: u8 = 3;
const POOL_V1: u8 = 1;

/// A job as bytes. `TooLarge` above [`MAX_BYTES`].
pub fn encode_job(job: &Job) -> Result<Vec<u8>> {
    const OP: &str = "encode a job";
    let mut bytes = encode(OP, JOB_V1, job)?;
    match (job.extras.as_deref(), job.policy.repair_attempts) {
        (None, 0) => {}
        (Some(extras), 0) => {
            bytes[0] = JOB_V2;
            append(OP, extras, &mut bytes)?;
        }
        asked => {
            bytes[0] = JOB_V3;
            append(OP, &asked, &mut bytes)?;
        }
    }
    traced(OP, JOB_TRACED, job.trace, bytes)
}

/// Where in a trace a job belongs, from its bytes alone.
pub fn place_of(payload: &[u8]) -> Option<Context> {
    let (version, rest) = payload.split_first()?;
    Context::from_bytes(rest.first_chunk()?).filter(|_| *version == JOB_TRACED)
}

/// A job from bytes. `Corrupt` for anything that is not one, `TooLarge` above [`MAX_BYTES`]; never panics and takes
/// no more memory than a few times the limit. A payload that begins with `{` is read as a job line in the standard
/// queue; its id is fresh unless it has a key, so whoever carried it knows the id better.
pub fn decode_job(bytes: &[u8]) -> Result<Job> {
    const OP: &str = "decode a job";
    if let Some((place, rest)) = untraced(OP, JOB_TRACED, bytes)? {
        return Ok(Job { trace: Some(place), ..decode_job(rest)? });
    }
    if bytes.first() == Some(&b'{') {
        return decode_line(bytes);
    }
    if bytes.first() == Some(&UNREADABLE) {
        let why =
            "it came from a foreign client as a line that nobody could read; push a mended line and drop this job";
        return Err(Error::new(Kind::Corrupt, OP, why));
    }
    let version = match bytes.first() {
        Some(version @ &(JOB_V2 | JOB_V3)) => *version,
        _ => return decode(OP, JOB_V1, bytes),
    };
    check_size(OP, bytes.len())?;
    let (mut job, rest): (Job, _) = part_of(OP, &bytes[1..])?;
    if version == JOB_V2 {
        let extras: Extras = last_part(OP, rest)?;
        job.extras = Some(Box::new(extras));
    } else {
        let extras: Option<Extras>;
        (extras, job.policy.repair_attempts) = last_part(OP, rest)?;
        job.extras = extras.map(Box::new);
    }
    Ok(job)
}

/// A record as bytes. `TooLarge` above [`MAX_BYTES`].
pub fn encode_record(record: &Record) -> Result<Vec<u8>> {
    const OP: &str = "encode a record";
    let mut bytes = encode(OP, RECORD_V1, record)?;
    match record.answer.as_ref().map(|answer| (answer.detail.as_deref(), answer.origin.as_deref())) {
        None | Some((None, None)) => {}
        Some((Some(detail), None)) => {
            bytes[0] = RECORD_V2;
            append(OP, detail, &mut bytes)?;
        }
        Some((detail, Some(origin))) => {
            bytes[0] = RECORD_V3;
            append(OP, &(detail, origin), &mut bytes)?;
        }
    }
    traced(OP, RECORD_TRACED, record.trace, bytes)
}

/// A record from bytes; errors as [`decode_job`].
pub fn decode_record(bytes: &[u8]) -> Result<Record> {
    const OP: &str = "decode a record";
    if let Some((place, rest)) = untraced(OP, RECORD_TRACED, bytes)? {
        return Ok(Record { trace: Some(place), ..decode_record(rest)? });
    }
    let version = match bytes.first() {
        Some(version @ &(RECORD_V2 | RECORD_V3)) => *version,
        _ => return decode(OP, RECORD_V1, bytes),
    };
    check_size(OP, bytes.len())?;
    let (mut record, rest): (Record, _) = part_of(OP, &bytes[1..])?;
    let Some(answer) = record.answer.as_mut() else {
        return Err(Error::new(Kind::Corrupt, OP, "bytes left over"));
    };
    if version == RECORD_V2 {
        let detail: Detail = last_part(OP, rest)?;
        answer.detail = Some(Box::new(detail));
    } else {
        let (detail, origin): (Option<Detail>, Origin) = last_part(OP, rest)?;
        (answer.detail, answer.origin) = (detail.map(Box::new), Some(Box::new(origin)));
    }
    Ok(record)
}

/// A history as bytes; empty for one without attempts.
pub fn encode_history(history: &History) -> Result<Vec<u8>> {
    if *history == History::default() {
        return Ok(Vec::new());
    }
    encode("encode a history", HISTORY_V1, history)
}

/// A history from bytes; errors as [`decode_job`].
pub fn decode_history(bytes: &[u8]) -> Result<History> {
    if bytes.is_empty() {
        return Ok(History::default());
    }
    decode("decode a history", HISTORY_V1, bytes)
}

/// A part of a job that a backend carries beside the payload, as bytes.
pub(crate) fn encode_part<T: Serialize>(op: &'static str, part: &T) -> Result<Vec<u8>> {
    encode(op, PART_V1, part)
}

/// Such a part from bytes; errors as [`decode_job`].
pub(crate) fn decode_part<T: for<'de> Deserialize<'de>>(op: &'static str, bytes: &[u8]) -> Result<T> {
    decode(op, PART_V1, bytes)
}

/// A part that holds a record, as bytes that keep all of its answer.
pub(crate) fn encode_account<T: Serialize>(op: &'static str, part: &T, record: Option<&Record>) -> Result<Vec<u8>> {
    let mut bytes = encode(op, PART_V1, part)?;
    if let Some(Answer { detail, origin, .. }) = record.and_then(|record| record.answer.as_ref())
        && (detail.is_some() || origin.is_some())
    {
        bytes[0] = PART_V2;
        append(op, &(detail, origin), &mut bytes)?;
    }
    traced(op, PART_TRACED, record.and_then(|record| record.trace), bytes)
}

/// Such a part from bytes; `record` finds its record. Errors as [`decode_job`].
pub(crate) fn decode_account<T: for<'de> Deserialize<'de>>(
    op: &'static str,
    bytes: &[u8],
    record: impl FnOnce(&mut T) -> Option<&mut Record>,
) -> Result<T> {
    let (place, bytes) = match untraced(op, PART_TRACED, bytes)? {
        Some((place, rest)) => (Some(place), rest),
        None => (None, bytes),
    };
    if bytes.first() != Some(&PART_V2) && place.is_none() {
        return decode(op, PART_V1, bytes);
    }
    check_size(op, bytes.len())?;
    let (mut part, rest): (T, _) = part_of(op, bytes.get(1..).unwrap_or_default())?;
    let left_over = || Error::new(Kind::Corrupt, op, "bytes left over");
    let record = record(&mut part).ok_or_else(left_over)?;
    record.trace = place;
    match (bytes.first(), rest) {
        (Some(&PART_V2), rest) => {
            let answer = record.answer.as_mut().ok_or_else(left_over)?;
            (answer.detail, answer.origin) = last_part(op, rest)?;
        }
        (Some(&PART_V1), []) => {}
        _ => return Err(left_over()),
    }
    Ok(part)
}

/// The shared state of a limit key as bytes.
pub(crate) fn encode_pool(pool: &Pool) -> Result<Vec<u8>> {
    encode("encode a limit", POOL_V1, pool)
}

/// The shared state of a limit key from bytes, a fresh one from none; errors as [`decode_job`].
pub(crate) fn decode_pool(bytes: &[u8]) -> Result<Pool> {
    if bytes.is_empty() {
        return Ok(Pool::default());
    }
    decode("decode a limit", POOL_V1, bytes)
}

/// These bytes, behind a place in a trace where there is one.
fn traced(op: &'static str, version: u8, place: Option<Context>, bytes: Vec<u8>) -> Result<Vec<u8>> {
    let Some(place) = place else { return Ok(bytes) };
    let whole = [&[version], place.to_bytes().as_slice(), &bytes].concat();
    check_size(op, whole.len()).map(|()| whole)
}

/// A place in a trace, and the bytes behind it, if they begin so; never one behind another.
fn untraced<'a>(op: &'static str, version: u8, bytes: &'a [u8]) -> Result<Option<(Context, &'a [u8])>> {
    let Some(rest) = bytes.strip_prefix(&[version]) else { return Ok(None) };
    let behind = rest.split_first_chunk().and_then(|(place, rest)| Some((Context::from_bytes(place)?, rest)));
    match behind.filter(|(_, rest)| rest.first() != Some(&version)) {
        Some(behind) => check_size(op, bytes.len()).map(|()| Some(behind)),
        None => Err(Error::new(Kind::Corrupt, op, "the bytes do not fit")),
    }
}

fn decode_line(bytes: &[u8]) -> Result<Job> {
    const OP: &str = "decode a job line";
    check_size(OP, bytes.len())?;
    let text = std::str::from_utf8(bytes).map_err(|error| Error::new(Kind::Corrupt, OP, "not UTF-8").because(error))?;
    let line = Line::parse(text).map_err(|bad| Error::new(Kind::Corrupt, OP, bad.what))?;
    Ok(line.into_job(&Queue::standard(), Timestamp::now()))
}

fn encode<T: Serialize>(op: &'static str, version: u8, value: &T) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(USUAL_BYTES);
    bytes.push(version);
    append(op, value, &mut bytes)?;
    Ok(bytes)
}

fn append<T: Serialize>(op: &'static str, value: &T, bytes: &mut Vec<u8>) -> Result<()> {
    bincode::serde::encode_into_std_write(value, bytes, bincode::config::standard())
        .map_err(|error| Error::new(Kind::Corrupt, op, "cannot be encoded").because(error))?;
    check_size(op, bytes.len())
}

fn decode<T: for<'de> Deserialize<'de>>(op: &'static str, version: u8, bytes: &[u8]) -> Result<T> {
    check_size(op, bytes.len())?;
    let Some((&found, body)) = bytes.split_first() else {
        return Err(Error::new(Kind::Corrupt, op, "no bytes"));
    };
    if found != version {
        return Err(Error::new(Kind::Corrupt, op, format!("version {found} is not known to this release")));
    }
    last_part(op, body)
}

/// A value that all of `body` is.
fn last_part<T: for<'de> Deserialize<'de>>(op: &'static str, body: &[u8]) -> Result<T> {
    match part_of(op, body)? {
        (value, []) => Ok(value),
        (_, _) => Err(Error::new(Kind::Corrupt, op, "bytes left over")),
    }
}

/// A value from the front of `body`, and what follows it.
fn part_of<'a, T: for<'de> Deserialize<'de>>(op: &'static str, body: &'a [u8]) -> Result<(T, &'a [u8])> {
    let config = bincode::config::standard().with_limit::<MAX_BYTES>();
    let (value, used) = bincode::serde::decode_from_slice(body, config)
        .map_err(|error| Error::new(Kind::Corrupt, op, "the bytes do not fit").because(error))?;
    Ok((value, body.get(used..).unwrap_or_default()))
}

fn check_size(op: &'static str, bytes: usize) -> Result<()> {
    if bytes > MAX_BYTES {
        return Err(Error::new(Kind::TooLarge, op, format!("{bytes} bytes; the limit is {MAX_BYTES}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
