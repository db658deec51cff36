//! The durable account of a job's end: the one commit point of its life.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::broker::{Head, LeaseId};
use crate::job::{BatchName, JobId, Queue};
use crate::outcome::{AnswerClass, Body, CostSource, Detail, FailureClass, History, Origin};
use crate::telemetry::trace::Context;
use crate::time::Timestamp;

/// How a job ended, what it gave and what it took. A success is never replaced by anything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The job.
    pub id: JobId,
    /// 0, and one more with each redrive.
    pub epoch: u32,
    /// How it ended.
    pub end: End,
    /// Its queue.
    pub queue: Queue,
    /// Its batch, if it had one.
    pub batch: Option<BatchName>,
    /// Its 1-based row in the batch's input.
    pub row: Option<u64>,
    /// The submitter's name for it.
    pub custom_id: Option<String>,
    /// The submitter's label for budgets.
    pub tenant: Option<String>,
    /// The submitter's labels.
    pub tags: BTreeMap<String, String>,
    /// The model as submitted.
    pub model: Option<String>,
    /// What a success gave.
    pub answer: Option<Answer>,
    /// Why it did not succeed.
    pub cause: Option<Cause>,
    /// Attempts spent in this epoch, the last one included.
    pub attempts: u32,
    /// Sums over those attempts and the last ten of them.
    pub history: History,
    /// The lease that wrote this; all zero when no lease did (cancel, expiry).
    pub lease: LeaseId,
    /// The worker that wrote this, if one did.
    pub worker: Option<String>,
    /// When the job was submitted.
    pub created_at: Timestamp,
    /// When its last attempt began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Timestamp,
    /// The delivery that ended it, or what the job was caused by; of one that never ran nothing. Stands before the rest of
    /// the record in its bytes (`codec`).
    #[serde(skip)]
    pub trace: Option<Context>,
}

impl Record {
    /// The class of the failure it died of, or of an answer that is not whole; `None` for the others.
    pub fn class_name(&self) -> Option<&'static str> {
        match (&self.cause, &self.answer) {
            (Some(cause), _) => cause.class.map(FailureClass::as_str),
            (None, Some(_)) => self.history.recent.last()?.fault().map(AnswerClass::as_str),
            (None, None) => None,
        }
    }

    /// Who says what it cost: of the answer, unless another call's part is a guess.
    pub fn cost_source(&self) -> Option<CostSource> {
        let told = || self.answer.as_ref()?.origin.as_ref()?.cost_source;
        if self.history.is_cost_guessed() { Some(CostSource::Estimate) } else { told() }
    }

    /// The record of a job that ended without running in this lease: cancelled, expired, or dead before a call.
    pub fn unrun(head: &Head, end: End, cause: Option<Cause>, at: Timestamp) -> Self {
        Self {
            id: head.id,
            epoch: head.epoch,
            end,
            queue: head.lane.queue.clone(),
            batch: head.batch.clone(),
            row: head.row,
            custom_id: head.custom_id.clone(),
            tenant: head.tenant.clone(),
            tags: head.tags.clone(),
            model: head.lane.model.as_ref().map(|model| model.as_str().to_owned()),
            answer: None,
            cause,
            attempts: head.attempts,
            history: head.history.clone(),
            lease: LeaseId::NONE,
            worker: None,
            created_at: head.created_at,
            started_at: None,
            ended_at: at,
            trace: None,
        }
    }
}

/// The four ways a job ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// It has an answer.
    Succeeded,
    /// Given up; can be redriven.
    Dead,
    /// A user stopped it.
    Cancelled,
    /// Its deadline passed before it ran.
    Expired,
}

impl End {
    /// Every end.
    pub const ALL: [Self; 4] = [Self::Succeeded, Self::Dead, Self::Cancelled, Self::Expired];

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for End {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|end| end.as_str() == text)
            .ok_or_else(|| format!("{text:?} is not one of succeeded, dead, cancelled, expired"))
    }
}

/// What a success gave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// HTTP status; 200 for runners without one.
    pub status_code: u16,
    /// The provider's id for the request.
    pub request_id: Option<String>,
    /// The model that answered.
    pub model: Option<String>,
    /// Why it stopped.
    pub finish_reason: Option<String>,
    /// The body, here or in object storage.
    pub output: Output,
    /// What else the provider said of it. Follows the rest of the record in its bytes (`codec`).
    #[serde(skip)]
    pub detail: Option<Box<Detail>>,
    /// Where it and its cost are from; kept as `detail` is.
    #[serde(skip)]
    pub origin: Option<Box<Origin>>,
}

impl Answer {
    /// A success of which nothing else is known.
    pub const fn plain(output: Output) -> Self {
        Self {
            status_code: 200,
            request_id: None,
            model: None,
            finish_reason: None,
            output,
            detail: None,
            origin: None,
        }
    }
}

/// Where an answer's body is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Output {
    /// In the record.
    Inline(Body),
    /// In object storage.
    Stored(Stored),
}

/// A body in object storage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Its key below the store's root, `out/<job>/<lease>`.
    pub key: String,
    /// SHA-256 of the bytes, hexadecimal.
    pub sha256: String,
    /// How many bytes.
    pub bytes: u64,
    /// Whether the bytes are one JSON value; else UTF-8 text.
    pub json: bool,
}

/// Why a job did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// The class of the last failure; `None` for cancelled and expired.
    pub class: Option<FailureClass>,
    /// A short, stable name (`crash_loop`, `context_length_exceeded`, `cancelled_by_user`); dead jobs are grouped by it.
    pub code: String,
    /// One line for people.
    pub detail: String,
    /// HTTP status, where there was one.
    pub status_code: Option<u16>,
}

/// A job's state, as people see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Waits for its time.
    Scheduled,
    /// Waits for a worker (or is held back: see its hold).
    Queued,
    /// Leased.
    Running,
    /// Waits for its next attempt.
    Retrying,
    /// Has an answer.
    Succeeded,
    /// Given up.
    Dead,
    /// Stopped by a user.
    Cancelled,
    /// Its deadline passed.
    Expired,
}

impl State {
    /// Every state, in the order of a job's life.
    pub const ALL: [Self; 8] = [
        Self::Scheduled,
        Self::Queued,
        Self::Running,
        Self::Retrying,
        Self::Succeeded,
        Self::Dead,
        Self::Cancelled,
        Self::Expired,
    ];

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Retrying => "retrying",
            Self::Succeeded => "succeeded",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }

    /// Whether nothing more will happen to the job by itself.
    pub const fn is_ended(self) -> bool {
        matches!(self, Self::Succeeded | Self::Dead | Self::Cancelled | Self::Expired)
    }
}

impl From<End> for State {
    fn from(end: End) -> Self {
        match end {
            End::Succeeded => Self::Succeeded,
            End::Dead => Self::Dead,
            End::Cancelled => Self::Cancelled,
            End::Expired => Self::Expired,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for State {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|state| state.as_str() == text).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|state| state.as_str()).collect();
            format!("{text:?} is not a state; they are {}", names.join(", "))
        })
    }
}
