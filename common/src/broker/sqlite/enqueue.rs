//! Putting jobs in: one row, one payload, counted in its lane and batch; a known id is never put in twice.

use rusqlite::{Connection, OptionalExtension, params};

use super::file::Fault;
use super::hot::{GATHERED, Hot};
use super::row::{name, tags_text};
use super::stage::Stage;
use super::tx::Tx;
use crate::broker::backend::{Enqueued, Envelope, Head, Refusal};
use crate::codec;
use crate::job::{JobId, Queue};
use crate::record::State;
use crate::time::Timestamp;

/// Payloads above so many bytes are written by themselves: several are copied to be written with one statement.
const BESIDE: usize = 64 * 1024;

/// Takes each job or says why not, in order.
pub(super) fn enqueue(tx: &mut Tx<'_>, batch: &[Envelope]) -> Result<Vec<Enqueued>, Fault> {
    let has_past = tx.sql("SELECT EXISTS (SELECT 1 FROM past)")?.query_row([], |row| row.get(0))?;
    let (mut answers, mut payloads) = (Vec::with_capacity(batch.len()), Vec::with_capacity(GATHERED));
    for envelope in batch {
        let answer = match enqueue_one(tx, envelope, has_past)? {
            Ok(seq) => {
                payloads.push((seq, envelope.payload.as_slice()));
                if payloads.len() == GATHERED || envelope.payload.len() > BESIDE {
                    write_payloads(tx, &mut payloads)?;
                }
                Enqueued::New
            }
            Err(answer) => answer,
        };
        answers.push(answer);
    }
    write_payloads(tx, &mut payloads)?;
    Ok(answers)
}

/// Writes and forgets them: several with one statement, which costs more than a row does.
fn write_payloads(tx: &mut Tx<'_>, payloads: &mut Vec<(i64, &[u8])>) -> rusqlite::Result<()> {
    if payloads.len() < GATHERED {
        for (seq, payload) in payloads.drain(..) {
            tx.hot(Hot::Payload)?.execute(params![seq, payload])?;
            crate::crash_point!("sqlite.enqueue.after_payload");
        }
    } else {
        let statement = tx.hot(Hot::Payloads)?;
        for (place, (seq, payload)) in payloads.drain(..).enumerate() {
            statement.raw_bind_parameter(2 * place + 1, seq)?;
            statement.raw_bind_parameter(2 * place + 2, payload)?;
            crate::crash_point!("sqlite.enqueue.after_payload");
        }
        statement.raw_execute()?;
    }
    Ok(())
}

/// The row of a new job, whose payload is still to be written; or why there is none.
fn enqueue_one(tx: &mut Tx<'_>, envelope: &Envelope, has_past: bool) -> Result<Result<i64, Enqueued>, Fault> {
    let head = &envelope.head;
    if envelope.payload.len() > codec::MAX_BYTES {
        return Ok(Err(Enqueued::Refused(Refusal::TooLarge(envelope.payload.len()))));
    }
    // Nearly every job is new and has neighbours: then its own row tells, and nothing is looked up for it.
    if let Some(place) = tx.seen_place(head).filter(|_| !has_past)
        && let Some(seq) = take(tx, head, place)?
    {
        return Ok(Ok(seq));
    }
    if let Some((state, fingerprint)) = used_by(tx, head.id)? {
        return Ok(Err(if fingerprint == head.fingerprint.0 {
            Enqueued::Known(state)
        } else {
            Enqueued::Refused(Refusal::Conflict)
        }));
    }
    let batch = match batch_of(tx, head)? {
        Ok(batch) => batch,
        Err(owner) => return Ok(Err(Enqueued::Refused(Refusal::OtherQueue(owner)))),
    };
    let lane = tx.lane(&head.lane)?;
    let seq = take(tx, head, (lane, batch))?;
    Ok(Ok(seq.ok_or(rusqlite::Error::StatementChangedRows(0))?))
}

/// Puts a job in its lane and batch; `None`, and nothing done, if its id is in the file.
fn take(tx: &mut Tx<'_>, head: &Head, place: (i64, Option<i64>)) -> Result<Option<i64>, Fault> {
    let stage = if due(tx, head) > tx.now { Stage::Delayed } else { Stage::Ready };
    let seq = insert_if_new(tx, head, place, (stage, None))?;
    crate::crash_point!("sqlite.enqueue.after_job");
    Ok(seq)
}

/// The row of a new job's batch, made when missing; or the queue that has that batch, if it is another.
pub(super) fn batch_of(tx: &mut Tx<'_>, head: &Head) -> Result<Result<Option<i64>, Queue>, Fault> {
    let Some(batch) = &head.batch else { return Ok(Ok(None)) };
    let queue = tx.queue(&head.lane.queue)?;
    let row = tx.batch_or_new(batch, queue)?;
    Ok(if row.queue == queue { Ok(Some(row.id)) } else { Err(queue_name(tx, row.queue)?) })
}

/// When a job may begin.
fn due(tx: &Tx<'_>, head: &Head) -> i64 {
    head.not_before.map_or(tx.now, |at| at.as_millis().max(tx.now))
}

/// A new job in its lane and batch: at that stage, and if its message waits elsewhere, with those marks and since then.
pub(super) fn insert(
    tx: &mut Tx<'_>,
    head: &Head,
    place: (i64, Option<i64>),
    at: (Stage, Option<(i64, i64)>),
) -> Result<i64, Fault> {
    Ok(insert_if_new(tx, head, place, at)?.ok_or(rusqlite::Error::StatementChangedRows(0))?)
}

/// [`insert`]; `None`, and nothing done, if the job's id is in the file.
fn insert_if_new(
    tx: &mut Tx<'_>,
    head: &Head,
    (lane, batch): (i64, Option<i64>),
    (stage, away): (Stage, Option<(i64, i64)>),
) -> Result<Option<i64>, Fault> {
    let history = codec::encode_history(&head.history)?;
    let due = due(tx, head);
    let inserted = tx.hot(Hot::Job)?.execute(params![
        head.id.as_bytes(),
        lane,
        stage.code(),
        due,
        head.deadline.as_millis(),
        head.created_at.as_millis(),
        head.fingerprint.0,
        head.priority.get(),
        head.keyed,
        batch,
        head.row.map(|row| i64::try_from(row).unwrap_or(i64::MAX)),
        head.epoch,
        head.attempts,
        head.not_before.map(Timestamp::as_millis),
        head.custom_id,
        head.tenant,
        tags_text(&head.tags)?,
        (!history.is_empty()).then_some(history),
        away.map(|(marks, _)| marks),
        away.map(|(_, since)| since),
    ])?;
    if inserted == 0 {
        return Ok(None);
    }
    let seq = tx.conn.last_insert_rowid();
    tx.rows(lane, batch, 1);
    tx.moved(lane, batch, None, Some(stage));
    Ok(Some(seq))
}

/// The state and fingerprint of an id that has been used.
pub(super) fn used(conn: &Connection, id: JobId, now: i64) -> Result<Option<(State, [u8; 16])>, Fault> {
    let mut job = conn.prepare_cached(Hot::Used.sql())?;
    let living = job.query_row([id.as_bytes()], |row| living_state(row, now)).optional()?;
    if living.is_some() {
        return Ok(living);
    }
    Ok(conn.prepare_cached(Hot::Past.sql())?.query_row([id.as_bytes()], past_state).optional()?)
}

/// [`used`], inside a transaction.
pub(super) fn used_by(tx: &mut Tx<'_>, id: JobId) -> Result<Option<(State, [u8; 16])>, Fault> {
    let now = tx.now;
    let living = tx.hot(Hot::Used)?.query_row([id.as_bytes()], |row| living_state(row, now)).optional()?;
    if living.is_some() {
        return Ok(living);
    }
    Ok(tx.hot(Hot::Past)?.query_row([id.as_bytes()], past_state).optional()?)
}

/// A row of [`Hot::Used`]: state and fingerprint.
fn living_state(row: &rusqlite::Row<'_>, now: i64) -> rusqlite::Result<(State, [u8; 16])> {
    let (kept, held): (Stage, bool) = (row.get(0)?, row.get_ref(3)? != rusqlite::types::ValueRef::Null);
    let overdue = row.get::<_, i64>(4)? <= now;
    Ok((public_state(kept.seen(row.get(5)?, now), (row.get(2)?, held), overdue), row.get(1)?))
}

/// A row of `past`: state and fingerprint.
pub(super) fn past_state(row: &rusqlite::Row<'_>) -> rusqlite::Result<(State, [u8; 16])> {
    let stage: Stage = row.get(0)?;
    Ok((stage.ended().unwrap_or(State::Expired), row.get(1)?))
}

/// A job's state as people see it; of one that is away, its stage as seen.
pub(super) fn public_state(stage: Stage, (attempts, held): (u32, bool), overdue: bool) -> State {
    match stage {
        Stage::Away | Stage::Ready | Stage::Delayed if overdue => State::Expired,
        Stage::Delayed if !held => {
            if attempts > 0 {
                State::Retrying
            } else {
                State::Scheduled
            }
        }
        Stage::Away | Stage::Ready | Stage::Delayed => State::Queued,
        Stage::Running => State::Running,
        Stage::Succeeded => State::Succeeded,
        Stage::Dead => State::Dead,
        Stage::Cancelled => State::Cancelled,
        Stage::Expired => State::Expired,
    }
}

fn queue_name(tx: &Tx<'_>, id: i64) -> Result<Queue, Fault> {
    let text: String = tx.sql("SELECT name FROM queue WHERE id = ?1")?.query_row([id], |row| row.get(0))?;
    Ok(name(Queue::new(&text))?)
}
