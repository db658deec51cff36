//! Putting jobs back in line whose messages wait at another broker: a new message, or the old one if it is still about.

use rusqlite::{OptionalExtension, params};

use super::admin::{past, redrive_one, renewed};
use super::away::{ANNOUNCED, RAISED, SPARED, UNRUN, has_payload};
use super::file::Fault;
use super::row::{JobRow, Place};
use super::settle::stored_record;
use super::stage::Stage;
use super::tx::Tx;
use crate::broker::Envelope;
use crate::broker::backend::{Head, Redriven};
use crate::codec;
use crate::job::JobId;
use crate::ledger::Raised;

/// The first step of a redrive, for each job in order.
pub(super) fn raise(tx: &mut Tx<'_>, ids: &[JobId]) -> Result<Vec<Raised>, Fault> {
    ids.iter().map(|&id| raise_one(tx, id)).collect()
}

fn raise_one(tx: &mut Tx<'_>, id: JobId) -> Result<Raised, Fault> {
    let Some(job) = JobRow::by_id(tx, id)? else {
        return Ok(if past(tx, id)?.is_some() { Raised::Gone } else { Raised::Unknown });
    };
    let waited = job.is_overdue(tx.now) && job.away.is_some();
    let unrun = job.stage.ended().is_some() && job.is_marked(UNRUN) && !job.dropped;
    if (waited || unrun) && !has_payload(tx, job.seq)? {
        return restore(tx, &job);
    }
    match redrive_one(tx, id)? {
        Redriven::Queued { .. } => {
            take_over(tx, &job)?;
            publish(tx, id)
        }
        Redriven::Waiting if job.is_marked(RAISED) => publish(tx, id),
        Redriven::Waiting => Ok(Raised::Waiting),
        Redriven::Succeeded => Ok(Raised::Succeeded),
        Redriven::Gone => Ok(Raised::Gone),
        Redriven::Unknown => Ok(Raised::Unknown),
    }
}

/// A job of the file's own waits at the other broker from now on.
fn take_over(tx: &mut Tx<'_>, job: &JobRow) -> Result<(), Fault> {
    if job.away.is_none() {
        tx.sql("UPDATE job SET state = -1, away = ?2, since = ?3 WHERE seq = ?1")?
            .execute(params![job.seq, RAISED, tx.now])?;
        tx.moved(job.lane, job.batch, Some(Stage::Ready), Some(Stage::Away));
    }
    Ok(())
}

fn publish(tx: &Tx<'_>, id: JobId) -> Result<Raised, Fault> {
    let Some(job) = JobRow::by_id(tx, id)? else { return Ok(Raised::Unknown) };
    let payload: Option<Vec<u8>> =
        tx.sql("SELECT bytes FROM payload WHERE seq = ?1")?.query_row([job.seq], |row| row.get(0)).optional()?;
    let head = Head { not_before: None, ..job.head };
    Ok(payload.map_or(Raised::Gone, |payload| Raised::Publish(Box::new(Envelope { head, payload }))))
}

/// Takes back an end that its message has not met, which comes when it would have come. What was consumed goes into the next record of the same epoch.
fn restore(tx: &mut Tx<'_>, job: &JobRow) -> Result<Raised, Fault> {
    let Some(place) = Place::by_seq(tx, job.seq)? else { return Ok(Raised::Unknown) };
    let old = stored_record(tx, &place)?;
    if let Some(old) = &old {
        tx.consumed(place.batch, &old.history, -1);
    }
    let history = codec::encode_history(old.as_ref().map_or(&job.head.history, |old| &old.history))?;
    tx.sql(
        "UPDATE job SET state = -1, deadline = ?2, ready_at = max(ready_at, ?3), since = ?3, history = ?4, record = NULL, code = NULL,
         class = NULL, away = (away & ?5) | ?6 WHERE seq = ?1",
    )?
    .execute(params![
        job.seq,
        renewed(&job.head, tx.now),
        tx.now,
        (!history.is_empty()).then_some(history),
        !(ANNOUNCED | UNRUN),
        SPARED,
    ])?;
    tx.moved(place.lane, place.batch, Some(place.stage), Some(Stage::Away));
    Ok(Raised::Restored { epoch: place.epoch })
}
