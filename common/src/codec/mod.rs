//! Jobs, heads and records as bytes: a version byte, then bincode under a size limit. The only user of bincode.
//! A payload that begins with `{` is a job line as a foreign producer writes it.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::job::{Job, Queue};
use crate::line::Line;
use crate::outcome::{Detail, History};
use crate::record::Record;
use crate::time::Timestamp;

/// The largest encoded job or record, in bytes: 16 MiB, the smallest message limit among current brokers.
pub const MAX_BYTES: usize = 16 * 1024 * 1024;
/// Room that is made at once: a prompt or an answer of a few sentences fits.
const USUAL_BYTES: usize = 512;

/// Begins the payload of a line that nobody could read, kept for people to see: no version of a job.
pub(crate) const UNREADABLE: u8 = 0;

const JOB_V1: u8 = 1;
const RECORD_V1: u8 = 1;
/// As the first, followed by what else the provider said of the answer; written only where it said something.
const RECORD_V2: u8 = 2;
const HISTORY_V1: u8 = 1;
const PART_V1: u8 = 1;

/// A job as bytes. `TooLarge` above [`MAX_BYTES`].
pub fn encode_job(job: &Job) -> Result<Vec<u8>> {
    encode("encode a job", JOB_V1, job)
}

/// A job from bytes. `Corrupt` for anything that is not one, `TooLarge` above [`MAX_BYTES`]; never panics and takes
/// no more memory than a few times the limit. A payload that begins with `{` is read as a job line in the standard
/// queue; its id is fresh unless it has a key, so whoever carried it knows the id better.
pub fn decode_job(bytes: &[u8]) -> Result<Job> {
    if bytes.first() == Some(&b'{') {
        return decode_line(bytes);
    }
    if bytes.first() == Some(&UNREADABLE) {
        let why =
            "it came from a foreign client as a line that nobody could read; push a mended line and drop this job";
        return Err(Error::new(Kind::Corrupt, "decode a job", why));
    }
    decode("decode a job", JOB_V1, bytes)
}

/// A record as bytes. `TooLarge` above [`MAX_BYTES`].
pub fn encode_record(record: &Record) -> Result<Vec<u8>> {
    const OP: &str = "encode a record";
    let mut bytes = encode(OP, RECORD_V1, record)?;
    if let Some(detail) = record.answer.as_ref().and_then(|answer| answer.detail.as_deref()) {
        bytes[0] = RECORD_V2;
        append(OP, detail, &mut bytes)?;
    }
    Ok(bytes)
}

/// A record from bytes; errors as [`decode_job`].
pub fn decode_record(bytes: &[u8]) -> Result<Record> {
    const OP: &str = "decode a record";
    if bytes.first() != Some(&RECORD_V2) {
        return decode(OP, RECORD_V1, bytes);
    }
    check_size(OP, bytes.len())?;
    let (mut record, rest): (Record, _) = part_of(OP, &bytes[1..])?;
    let (detail, left): (Detail, _) = part_of(OP, rest)?;
    match record.answer.as_mut().filter(|_| left.is_empty()) {
        Some(answer) => answer.detail = Some(Box::new(detail)),
        None => return Err(Error::new(Kind::Corrupt, OP, "bytes left over")),
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
