//! What scripts are told and what they answer: lanes, what of a head they carry unread, a job as they show it. How a
//! job lies in its bytes is `stored.rs`.

use std::collections::BTreeMap;

use deadpool_redis::redis::Value;
use serde::{Deserialize, Serialize};

use super::stored::{Stored, time};
use crate::broker::HoldKey;
use crate::broker::backend::Head;
use crate::codec;
use crate::error::{Error, Kind, Result};
use crate::job::{Band, BatchName, Fingerprint, JobId, Lane, ModelName, Priority, Queue};
use crate::ledger::JobView;
use crate::record::{Cause, End, Record, State};
use crate::time::Timestamp;

/// The prefix of every key of a queue; the braces keep them in one slot of a cluster.
pub(super) fn prefix(queue: &Queue) -> Vec<u8> {
    format!("{{pq:{queue}}}").into_bytes()
}

/// A lane within its queue: the band's digit, and the model behind a colon if there is one.
pub(super) fn lane_text(lane: &Lane) -> String {
    let band = band_digit(lane.band);
    lane.model.as_ref().map_or_else(|| band.to_string(), |model| format!("{band}:{}", model.as_str()))
}

fn band_digit(band: Band) -> char {
    match band {
        Band::High => '0',
        Band::Normal => '1',
        Band::Low => '2',
    }
}

/// Whether [`lane_text`] wrote this text of a lane.
fn is_lane(lane: &Lane, text: &str) -> bool {
    let model = text.split_once(':').map(|(_, model)| model);
    text.starts_with(band_digit(lane.band)) && lane.model.as_ref().map(ModelName::as_str) == model
}

/// The lane that [`lane_text`] wrote.
pub(super) fn lane_from(queue: &Queue, text: &str) -> Result<Lane> {
    let (band, model) = text.split_once(':').map_or((text, None), |(band, model)| (band, Some(ModelName::new(model))));
    let band = match band {
        "0" => Band::High,
        "1" => Band::Normal,
        "2" => Band::Low,
        _ => return Err(strange("a lane")),
    };
    Ok(Lane { queue: queue.clone(), model, band })
}

/// What of a head no script reads.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Rest {
    priority: u8,
    keyed: bool,
    row: Option<u64>,
    custom_id: Option<String>,
    tenant: Option<String>,
    tags: BTreeMap<String, String>,
    not_before: Option<i64>,
}

/// What of a head no script reads, as bytes.
pub(super) fn head_rest(head: &Head) -> Result<Vec<u8>> {
    let rest = Rest {
        priority: head.priority.get(),
        keyed: head.keyed,
        row: head.row,
        custom_id: head.custom_id.clone(),
        tenant: head.tenant.clone(),
        tags: head.tags.clone(),
        not_before: head.not_before.map(Timestamp::as_millis),
    };
    codec::encode_part("encode a head", &rest)
}

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Ready,
    Delayed,
    /// Its message waits at another broker.
    Away,
    Running,
    Ended(End),
}

/// A job as scripts show it: `view` in `moves.lua`, its bytes taken apart by `stored.rs`.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) head: Head,
    pub(super) stage: Stage,
    pub(super) deaths: u32,
    pub(super) due: Timestamp,
    pub(super) hold: Option<HoldKey>,
    pub(super) worker: String,
    pub(super) leased_at: Timestamp,
    pub(super) cancel: bool,
    pub(super) dropped: bool,
    pub(super) ended_at: Timestamp,
    /// `c`, `p` or `e`, of a job that no worker ended.
    unrun: String,
    body: Vec<u8>,
    pub(super) payload: Vec<u8>,
}

impl Seen {
    /// Reads a view of a job of `queue`: its id, its bytes, and its record if that is not among them.
    pub(super) fn read(queue: &Queue, view: Value) -> Result<Self> {
        let mut places = Places::of(view)?;
        let (id, bytes) = (JobId::from_bytes(places.exactly()?), places.bytes()?);
        let mut seen = Self::of(queue, id, &bytes)?;
        let body = places.bytes()?;
        if !body.is_empty() {
            seen.body = body;
        }
        Ok(seen)
    }

    /// Reads the bytes of a job of `queue`.
    pub(super) fn of(queue: &Queue, id: JobId, bytes: &[u8]) -> Result<Self> {
        Self::after(None, queue, id, bytes)
    }

    /// As [`Self::of`], of a job whose names are often those of the job `before` it.
    pub(super) fn after(before: Option<&Head>, queue: &Queue, id: JobId, bytes: &[u8]) -> Result<Self> {
        let job = Stored::read(bytes)?;
        let rest: Rest = codec::decode_part("decode a head", job.head).unwrap_or_else(|error| damaged(id, &error));
        let (lane, batch) = (utf8(job.lane)?, Some(utf8(job.batch)?).filter(|name| !name.is_empty()));
        let same_lane = before.filter(|before| is_lane(&before.lane, lane)).map(|before| before.lane.clone());
        let same_batch = before.filter(|before| before.batch.as_ref().map(BatchName::as_str) == batch);
        let batch = match same_batch {
            Some(before) => before.batch.clone(),
            None => batch.map(BatchName::new).transpose().map_err(|_| strange("a batch"))?,
        };
        let head = Head {
            id,
            lane: same_lane.map_or_else(|| lane_from(queue, lane), Ok)?,
            priority: Priority::new(rest.priority).map_err(|_| strange("a priority"))?,
            batch,
            row: rest.row,
            custom_id: rest.custom_id,
            tenant: rest.tenant,
            tags: rest.tags,
            keyed: rest.keyed,
            fingerprint: Fingerprint(job.fingerprint.try_into().map_err(|_| strange("a fingerprint"))?),
            not_before: rest.not_before.map(Timestamp::from_millis),
            deadline: time(job.deadline),
            created_at: time(job.created),
            epoch: job.epoch,
            attempts: job.attempts,
            history: codec::decode_history(job.history).unwrap_or_else(|error| damaged(id, &error)),
        };
        Ok(Self {
            head,
            stage: stage_of(utf8(&[job.stage])?)?,
            deaths: job.deaths,
            due: time(job.due),
            hold: Some(utf8(job.hold)?).filter(|key| !key.is_empty()).and_then(|key| key.parse().ok()),
            worker: utf8(job.worker)?.to_owned(),
            leased_at: time(job.leased),
            cancel: job.cancel,
            dropped: job.dropped,
            ended_at: time(job.ended),
            unrun: utf8(job.unrun)?.to_owned(),
            body: job.record.to_vec(),
            payload: job.payload.to_vec(),
        })
    }

    /// The bytes of its encoded record.
    pub(super) fn body_len(&self) -> usize {
        self.body.len()
    }

    /// The job's record, if it has ended and the view holds it.
    pub(super) fn record(&self) -> Result<Option<Record>> {
        let Stage::Ended(end) = self.stage else { return Ok(None) };
        if !self.body.is_empty() {
            return codec::decode_record(&self.body).map(Some);
        }
        let (code, detail) = match self.unrun.as_str() {
            "c" => ("cancelled_by_user", "cancelled by a user"),
            "p" => ("purged", "its queue was purged"),
            "e" => ("deadline_passed", "its deadline passed before it ran"),
            _ => return Ok(None),
        };
        let cause = Cause { class: None, code: code.to_owned(), detail: detail.to_owned(), status_code: None };
        Ok(Some(Record::unrun(&self.head, end, Some(cause), self.ended_at)))
    }

    /// The job as people see it.
    pub(super) fn into_view(self, state: State, paused: Option<String>) -> Result<JobView> {
        let record = self.record()?;
        let running = self.stage == Stage::Running;
        let delayed = match self.stage {
            Stage::Delayed => true,
            Stage::Away => self.due > Timestamp::from_millis(0),
            Stage::Ready | Stage::Running | Stage::Ended(_) => false,
        };
        let Self { head, .. } = self;
        Ok(JobView {
            id: head.id,
            queue: head.lane.queue,
            model: head.lane.model.as_ref().map(|model| model.as_str().to_owned()),
            priority: head.priority.get(),
            batch: head.batch,
            row: head.row,
            custom_id: head.custom_id,
            tenant: head.tenant,
            tags: head.tags,
            state,
            epoch: head.epoch,
            attempts: record.as_ref().map_or(head.attempts, |record| record.attempts),
            deaths: self.deaths,
            created_at: head.created_at,
            deadline: head.deadline,
            due: delayed.then_some(self.due),
            hold: self.hold.filter(|_| delayed),
            worker: running.then_some(self.worker),
            leased_at: running.then_some(self.leased_at),
            cancel_requested: running && self.cancel,
            dropped: self.dropped && state == State::Dead,
            paused,
            record: record.map(Box::new),
        })
    }
}

/// Text of ours.
fn utf8(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|_| strange("text that is not UTF-8"))
}

/// A job whose labels or history nobody can read any more must not keep its lane from being leased.
fn damaged<T: Default>(id: JobId, error: &Error) -> T {
    tracing::error!(%error, job = %id, "part of a job is damaged; going on without it");
    T::default()
}

fn stage_of(letter: &str) -> Result<Stage> {
    Ok(match letter {
        "r" => Stage::Ready,
        "d" => Stage::Delayed,
        "a" => Stage::Away,
        "l" => Stage::Running,
        ended => Stage::Ended(end_of(ended)?),
    })
}

/// The end behind a stage's letter.
pub(super) fn end_of(letter: &str) -> Result<End> {
    Ok(match letter {
        "S" => End::Succeeded,
        "D" => End::Dead,
        "C" => End::Cancelled,
        "E" => End::Expired,
        _ => return Err(strange("a stage")),
    })
}

/// The letter of an end.
pub(super) fn end_letter(end: End) -> &'static str {
    match end {
        End::Succeeded => "S",
        End::Dead => "D",
        End::Cancelled => "C",
        End::Expired => "E",
    }
}

/// A state as people see it: `seen_as` in `moves.lua`.
pub(super) fn state_of(letter: &str) -> Result<State> {
    Ok(match letter {
        "s" => State::Scheduled,
        "q" => State::Queued,
        "l" => State::Running,
        "y" => State::Retrying,
        ended => end_of(ended)?.into(),
    })
}

/// The letter of a state.
pub(super) fn state_letter(state: State) -> char {
    match state {
        State::Scheduled => 's',
        State::Queued => 'q',
        State::Running => 'l',
        State::Retrying => 'y',
        State::Succeeded => 'S',
        State::Dead => 'D',
        State::Cancelled => 'C',
        State::Expired => 'E',
    }
}

/// The places of an answer, read from first to last.
#[derive(Debug)]
pub(super) struct Places(std::vec::IntoIter<Value>);

impl Places {
    /// An answer that is a list.
    pub(super) fn of(value: Value) -> Result<Self> {
        if let Value::Array(values) = value {
            Ok(Self(values.into_iter()))
        } else if value == Value::Nil {
            Ok(Self(Vec::new().into_iter()))
        } else {
            Err(strange("an answer that is no list"))
        }
    }

    /// How many are left.
    pub(super) fn left(&self) -> usize {
        self.0.len()
    }

    /// The next, as it is.
    pub(super) fn value(&mut self) -> Result<Value> {
        self.0.next().ok_or_else(|| strange("an answer that is too short"))
    }

    pub(super) fn list(&mut self) -> Result<Self> {
        Self::of(self.value()?)
    }

    pub(super) fn bytes(&mut self) -> Result<Vec<u8>> {
        let value = self.value()?;
        if let Value::BulkString(bytes) = value {
            Ok(bytes)
        } else if let Value::SimpleString(text) = value {
            Ok(text.into_bytes())
        } else if let Value::Int(number) = value {
            Ok(number.to_string().into_bytes())
        } else if value == Value::Nil {
            Ok(Vec::new())
        } else {
            Err(strange("a value of another kind"))
        }
    }

    /// So many bytes.
    pub(super) fn exactly<const COUNT: usize>(&mut self) -> Result<[u8; COUNT]> {
        self.bytes()?.try_into().map_err(|_| strange("bytes"))
    }

    pub(super) fn text(&mut self) -> Result<String> {
        String::from_utf8(self.bytes()?).map_err(|_| strange("text that is not UTF-8"))
    }

    /// A number that is never negative.
    pub(super) fn number<T: TryFrom<i64>>(&mut self) -> Result<T> {
        let text = self.text()?;
        text.parse::<i64>().ok().and_then(|number| T::try_from(number).ok()).ok_or_else(|| strange("a number"))
    }

    pub(super) fn flag(&mut self) -> Result<bool> {
        Ok(self.number::<i64>()? != 0)
    }

    pub(super) fn time(&mut self) -> Result<Timestamp> {
        self.number().map(Timestamp::from_millis)
    }
}

/// Something in the answer that no script of ours writes.
pub(super) fn strange(what: &str) -> Error {
    Error::new(Kind::Corrupt, "read an answer of Redis", format!("it holds {what} that is not ours"))
}
