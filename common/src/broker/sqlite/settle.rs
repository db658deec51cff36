//! How a lease ends and how a job does: the record, the job's row and every count, in one transaction.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, Statement, params};

use super::away::{ANNOUNCED, UNRUN};
use super::damage::job_or_bury;
use super::file::Fault;
use super::gathered::RecordRow;
use super::hot::{Hot, end_of_job};
use super::row::{JobRow, Place};
use super::stage::Stage;
use super::tx::Tx;
use crate::broker::backend::{Settled, Verdict};
use crate::broker::{HoldKey, LeaseId};
use crate::codec;
use crate::error::Result;
use crate::outcome::{Attempt, FailureClass};
use crate::record::{Cause, End, Record};

/// A verdict, encoded before it reaches the writing thread.
#[derive(Clone, Debug)]
pub(super) enum Ending {
    /// The record twice: as what the job's row and the counts need of it, and whole.
    End {
        record: Box<Record>,
        body: Vec<u8>,
    },
    Retry {
        after: i64,
        attempt: Box<Attempt>,
    },
    Release {
        after: i64,
        hold: Option<HoldKey>,
    },
}

impl Ending {
    /// `TooLarge` when the record cannot be stored.
    pub(super) fn of(verdict: &Verdict) -> Result<Self> {
        let millis = |after: &std::time::Duration| i64::try_from(after.as_millis()).unwrap_or(i64::MAX / 2);
        Ok(match verdict {
            Verdict::End(record) => Self::End { record: Box::new(lean(record)), body: codec::encode_record(record)? },
            Verdict::Retry { after, attempt } => Self::Retry { after: millis(after), attempt: attempt.clone() },
            Verdict::Release { after, hold } => Self::Release { after: millis(after), hold: hold.clone() },
        })
    }

    /// About what it writes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::End { body, .. } => body.len(),
            Self::Retry { .. } | Self::Release { .. } => 0,
        }
    }
}

/// A record without what only its encoded form has to hold: its answer and its names.
fn lean(record: &Record) -> Record {
    Record {
        id: record.id,
        epoch: record.epoch,
        end: record.end,
        queue: record.queue.clone(),
        batch: None,
        row: None,
        custom_id: None,
        tenant: None,
        tags: BTreeMap::new(),
        model: None,
        answer: None,
        cause: record.cause.clone(),
        attempts: record.attempts,
        history: record.history.clone(),
        lease: record.lease,
        worker: None,
        created_at: record.created_at,
        started_at: record.started_at,
        ended_at: record.ended_at,
        trace: None,
    }
}

/// Where a leased job is, as its lease knows it: none of it changes while the job is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) seq: i64,
    pub(super) lane: i64,
    pub(super) queue: i64,
    pub(super) batch: Option<i64>,
}

/// Ends a lease as [`settle`] does, and knows without looking where its job is.
pub(super) fn settle_at(tx: &mut Tx<'_>, spot: Spot, lease: LeaseId, ending: &Ending) -> Result<Settled, Fault> {
    if let Ending::End { record, body } = ending
        && end_at_once(tx, spot, lease, (record, body))?
    {
        return Ok(Settled::Applied);
    }
    settle(tx, spot.seq, lease, ending)
}

/// Ends a job that runs under this lease and has no record yet; false, and nothing done, if it does not or has.
fn end_at_once(tx: &mut Tx<'_>, spot: Spot, lease: LeaseId, (record, body): (&Record, &[u8])) -> Result<bool, Fault> {
    let seq = tx.next_record()?;
    if end_row(tx.hot(Hot::End)?, spot.seq, (record, seq), Some(lease))? == 0 {
        return Ok(false);
    }
    insert_record(tx, spot, (record, body))?;
    ended(tx, spot, Stage::Running, (record, body, seq));
    Ok(true)
}

fn insert_record(tx: &mut Tx<'_>, spot: Spot, (record, body): (&Record, &[u8])) -> Result<(), Fault> {
    // Records are in the order of this column, whatever a worker's clock says: one from the future would keep older ones.
    let ended_at = record.ended_at.as_millis().min(tx.now);
    let end = Stage::of(record.end).code();
    tx.gather(RecordRow { job: spot.seq, end, queue: spot.queue, batch: spot.batch, ended_at, body: body.to_vec() })?;
    crate::crash_point!("sqlite.settle.after_record");
    Ok(())
}

/// Runs a statement of [`end_of_job`]; how many rows it changed.
fn end_row(
    statement: &mut Statement<'_>,
    job: i64,
    (record, seq): (&Record, i64),
    lease: Option<LeaseId>,
) -> rusqlite::Result<usize> {
    let cause = record.cause.as_ref();
    statement.execute(params![
        job,
        Stage::of(record.end).code(),
        seq,
        record.attempts,
        cause.map(|cause| cause.code.as_str()),
        cause.and_then(|cause| cause.class).map(FailureClass::as_str),
        lease.as_ref().map(LeaseId::as_bytes),
        !(ANNOUNCED | UNRUN),
        if record.lease == LeaseId::NONE { UNRUN } else { 0 },
    ])
}

/// What follows from an end: the payload of a success goes, and everything is counted.
fn ended(tx: &mut Tx<'_>, spot: Spot, from: Stage, (record, body, seq): (&Record, &[u8], i64)) {
    let stage = Stage::of(record.end);
    if stage == Stage::Succeeded {
        tx.spent.push(spot.seq);
    }
    crate::crash_point!("sqlite.settle.after_job");
    tx.moved(spot.lane, spot.batch, Some(from), Some(stage));
    tx.consumed(spot.batch, &record.history, 1);
    tx.recorded(spot.batch, seq, i64::try_from(body.len()).unwrap_or(i64::MAX));
}

/// Ends the lease of the job in row `seq`, if it still is the job's lease; a late success is kept.
pub(super) fn settle(tx: &mut Tx<'_>, seq: i64, lease: LeaseId, ending: &Ending) -> Result<Settled, Fault> {
    let Some(place) = Place::by_seq(tx, seq)? else { return Ok(Settled::Stale) };
    if place.stage == Stage::Running && place.lease.as_ref() == Some(lease.as_bytes()) {
        match ending {
            Ending::End { record, body } => end(tx, &place, (record, body), Some(lease))?,
            Ending::Retry { after, attempt } => retry(tx, &place, lease, (*after, attempt))?,
            Ending::Release { after, hold } => release(tx, &place, lease, (*after, hold.as_ref()))?,
        }
        return Ok(Settled::Applied);
    }
    let ours = place.settled.as_ref() == Some(lease.as_bytes());
    match ending {
        Ending::End { record, body } if record.end == End::Succeeded && place.stage != Stage::Succeeded => {
            end(tx, &place, (record, body), None)?;
            Ok(Settled::Kept)
        }
        Ending::End { record, .. } if record.end == End::Succeeded && !ours && is_record_of(tx, &place, lease)? => {
            Ok(Settled::Kept)
        }
        Ending::End { .. } | Ending::Retry { .. } | Ending::Release { .. } => {
            Ok(if ours { Settled::Applied } else { Settled::Stale })
        }
    }
}

/// Whether the job's record was written by this lease: a late success told twice.
fn is_record_of(tx: &mut Tx<'_>, place: &Place, lease: LeaseId) -> Result<bool, Fault> {
    Ok(stored_record(tx, place)?.is_some_and(|record| record.lease == lease))
}

/// Ends a job wherever it stands; the caller has made sure that it has no success.
fn end(tx: &mut Tx<'_>, place: &Place, (record, body): (&Record, &[u8]), lease: Option<LeaseId>) -> Result<(), Fault> {
    take_back(tx, place, record.epoch)?;
    let queue = tx.sql("SELECT queue FROM lane WHERE id = ?1")?.query_row([place.lane], |row| row.get(0))?;
    let spot = Spot { seq: place.seq, lane: place.lane, queue, batch: place.batch };
    let seq = tx.next_record()?;
    insert_record(tx, spot, (record, body))?;
    let mut statement = tx.sql(end_of_job!("WHERE seq = ?1"))?;
    end_row(&mut statement, place.seq, (record, seq), lease)?;
    drop(statement);
    ended(tx, spot, place.stage, (record, body, seq));
    if place.stage == Stage::Dead && place.dropped {
        tx.dead_set(place.lane, 1);
    }
    // Whoever runs it has to hear that it is over.
    tx.turns |= place.stage == Stage::Running && lease.is_none();
    Ok(())
}

/// Takes the end that a late success of the same epoch stands in for out of its batch's sums: the history it shares
/// with that success counts once. What another epoch consumed was paid for all the same and stays.
fn take_back(tx: &mut Tx<'_>, place: &Place, epoch: u32) -> Result<(), Fault> {
    if let Some(old) = stored_record(tx, place)?.filter(|old| old.epoch == epoch) {
        tx.consumed(place.batch, &old.history, -1);
    }
    Ok(())
}

/// The end that stands, unless nobody can read it: that must not keep an answer from being stored.
pub(super) fn stored_record(tx: &mut Tx<'_>, place: &Place) -> Result<Option<Record>, Fault> {
    let Some(seq) = place.record else { return Ok(None) };
    tx.write_records()?;
    let body: Option<Vec<u8>> =
        tx.sql("SELECT body FROM record WHERE seq = ?1")?.query_row([seq], |row| row.get(0)).optional()?;
    Ok(body.and_then(|body| codec::decode_record(&body).ok()))
}

/// Why a job ends that no lease ran to an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    Cancelled,
    Purged,
    Expired,
    Corrupt,
}

/// Ends such a job.
pub(super) fn end_unrun(tx: &mut Tx<'_>, job: &JobRow, why: Why) -> Result<(), Fault> {
    let (end_as, code, detail) = match why {
        Why::Cancelled => (End::Cancelled, "cancelled_by_user", "cancelled by a user"),
        Why::Purged => (End::Cancelled, "purged", "its queue was purged"),
        Why::Expired => (End::Expired, "deadline_passed", "its deadline passed before it ran"),
        Why::Corrupt => (End::Dead, "corrupt_job", "its row in the database, or its input there, cannot be read"),
    };
    let class = (why == Why::Corrupt).then_some(FailureClass::Fatal);
    let cause = Cause { class, code: code.to_owned(), detail: detail.to_owned(), status_code: None };
    let record = Record::unrun(&job.head, end_as, Some(cause), tx.clock());
    let body = codec::encode_record(&record)?;
    let Some(place) = Place::by_seq(tx, job.seq)? else { return Ok(()) };
    end(tx, &place, (&record, &body), None)
}

fn retry(tx: &mut Tx<'_>, place: &Place, lease: LeaseId, (after, attempt): (i64, &Attempt)) -> Result<(), Fault> {
    let Some(mut job) = job_or_bury(tx, place.seq)? else { return Ok(()) };
    job.head.history.push(attempt.clone());
    job.head.attempts = job.head.attempts.saturating_add(1);
    if job.is_cancelled() {
        mark_settled(tx, place.seq, lease)?;
        return end_unrun(tx, &job, Why::Cancelled);
    }
    let stage = stage_after(&job, after);
    tx.sql(
        "UPDATE job SET state = ?2, ready_at = ?3, attempts = ?4, history = ?5, settled = ?6, since = ?7, hold = NULL,
         lease = NULL, worker = NULL, leased_at = NULL, expires_at = NULL WHERE seq = ?1",
    )?
    .execute(params![
        place.seq,
        stage.code(),
        tx.now.saturating_add(after),
        job.head.attempts,
        codec::encode_history(&job.head.history)?,
        lease.as_bytes(),
        job.away.is_some().then_some(tx.now),
    ])?;
    crate::crash_point!("sqlite.settle.after_job");
    tx.moved(place.lane, place.batch, Some(Stage::Running), Some(stage));
    Ok(())
}

fn release(
    tx: &mut Tx<'_>,
    place: &Place,
    lease: LeaseId,
    (after, hold): (i64, Option<&HoldKey>),
) -> Result<(), Fault> {
    let Some(job) = job_or_bury(tx, place.seq)? else { return Ok(()) };
    if job.is_cancelled() {
        mark_settled(tx, place.seq, lease)?;
        return end_unrun(tx, &job, Why::Cancelled);
    }
    let stage = stage_after(&job, after);
    let ready_at = if stage == Stage::Ready { job.ready_at } else { tx.now.saturating_add(after) };
    let since = if stage == Stage::Away { tx.now } else { job.ready_at };
    let hold = (after > 0).then(|| hold.map(ToString::to_string).unwrap_or_default());
    tx.sql(
        "UPDATE job SET state = ?2, ready_at = ?3, since = ?4, hold = ?5, settled = ?6, lease = NULL, worker = NULL,
         leased_at = NULL, expires_at = NULL WHERE seq = ?1",
    )?
    .execute(params![
        place.seq,
        stage.code(),
        ready_at,
        (stage != Stage::Ready).then_some(since),
        hold,
        lease.as_bytes()
    ])?;
    crate::crash_point!("sqlite.settle.after_job");
    tx.moved(place.lane, place.batch, Some(Stage::Running), Some(stage));
    Ok(())
}

/// Where a job waits that its worker gave back for so long.
fn stage_after(job: &JobRow, after: i64) -> Stage {
    match job.away {
        Some(_) => Stage::Away,
        None if after > 0 => Stage::Delayed,
        None => Stage::Ready,
    }
}

fn mark_settled(tx: &Tx<'_>, seq: i64, lease: LeaseId) -> Result<(), Fault> {
    tx.sql("UPDATE job SET settled = ?2 WHERE seq = ?1")?.execute(params![seq, lease.as_bytes()])?;
    Ok(())
}
