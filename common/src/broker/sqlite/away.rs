//! Jobs whose messages wait at another broker: how they are entered, what is noted of them, and how their claims end.
//! Who may run one is `open.rs`, putting them back in line `raise.rs`; the columns are `away.sql`.

use rusqlite::{OptionalExtension, params};

use super::admin::cancel_one;
use super::enqueue::{batch_of, insert, used_by};
use super::file::Fault;
use super::lease::{CHORES, recover_expired};
use super::retention;
use super::row::Place;
use super::settle::{Ending, settle};
use super::stage::Stage;
use super::tx::Tx;
use crate::broker::LeaseId;
use crate::broker::backend::{Cancel, Head, Retention, Settled, Swept};
use crate::job::{JobId, Queue};
use crate::ledger::Registered;
use crate::record::{End, Record};

/// Registered, and nobody has said yet that its message is durable.
pub(super) const UNCONFIRMED: i64 = 1;
/// Raised, and nobody has said that yet of the message of this epoch.
pub(super) const RAISED: i64 = 2;
/// Put back in line after its batch was cancelled, in the same epoch.
pub(super) const SPARED: i64 = 4;
/// Its end has been announced.
pub(super) const ANNOUNCED: i64 = 8;
/// Ended without having run: its message has the payload, unless that was handed over.
pub(super) const UNRUN: i64 = 16;

/// Enters each job or says why not, in order.
pub(super) fn register(tx: &mut Tx<'_>, jobs: &[Head]) -> Result<Vec<Registered>, Fault> {
    jobs.iter().map(|head| register_one(tx, head)).collect()
}

fn register_one(tx: &mut Tx<'_>, head: &Head) -> Result<Registered, Fault> {
    if let Some((state, fingerprint)) = used_by(tx, head.id)? {
        if fingerprint != head.fingerprint.0 {
            return Ok(Registered::Conflict);
        }
        let again = !state.is_ended()
            && tx
                .sql("SELECT 1 FROM job WHERE id = ?1 AND away & ?2")?
                .exists(params![head.id.as_bytes(), UNCONFIRMED])?;
        return Ok(if again { Registered::Again } else { Registered::Known(state) });
    }
    let batch = match batch_of(tx, head)? {
        Ok(batch) => batch,
        Err(owner) => return Ok(Registered::OtherQueue(owner)),
    };
    let lane = tx.lane(&head.lane)?;
    insert(tx, head, (lane, batch), (Stage::Away, Some((UNCONFIRMED, tx.now))))?;
    Ok(Registered::New)
}

/// Takes a mark from jobs that are still in this epoch.
pub(super) fn unmark(tx: &Tx<'_>, jobs: &[(JobId, u32)], mark: i64) -> Result<(), Fault> {
    let mut statement = tx.sql("UPDATE job SET away = away & ~?3 WHERE id = ?1 AND epoch = ?2 AND away & ?3")?;
    for (id, epoch) in jobs {
        statement.execute(params![id.as_bytes(), epoch, mark])?;
    }
    Ok(())
}

/// Notes that this end was announced, if it still is its job's. A success is one whatever its epoch.
pub(super) fn announced(tx: &Tx<'_>, id: JobId, epoch: u32, end: End) -> Result<(), Fault> {
    tx.sql("UPDATE job SET away = away | ?4 WHERE id = ?1 AND state = ?3 AND (epoch = ?2 OR state = 3)")?
        .execute(params![id.as_bytes(), epoch, Stage::of(end).code(), ANNOUNCED])?;
    Ok(())
}

/// Keeps the payload of a job that ended without it. False: it has been put back in line, and is still in this epoch.
pub(super) fn keep(tx: &Tx<'_>, (id, epoch): (JobId, u32), payload: &[u8]) -> Result<bool, Fault> {
    let found: Option<(i64, Stage, u32, bool)> = tx
        .sql("SELECT seq, state, epoch, ifnull(away & ?2, 0) AND NOT dropped FROM job WHERE id = ?1")?
        .query_row(params![id.as_bytes(), UNRUN], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
        .optional()?;
    let Some((seq, stage, newest, unrun)) = found else { return Ok(true) };
    let ended = stage.ended().is_some();
    if ended && unrun {
        store(tx, seq, payload)?;
    }
    Ok(ended || newest > epoch)
}

/// Stores a payload unless there is one.
fn store(tx: &Tx<'_>, seq: i64, payload: &[u8]) -> Result<(), Fault> {
    tx.sql("INSERT OR IGNORE INTO payload (seq, bytes) VALUES (?1, ?2)")?.execute(params![seq, payload])?;
    Ok(())
}

/// Ends a claim as any lease is ended; a job that its worker ended without a success keeps the payload.
pub(super) fn end_claim(
    tx: &mut Tx<'_>,
    (id, lease): (JobId, LeaseId),
    ending: &Ending,
    payload: Option<&[u8]>,
) -> Result<Settled, Fault> {
    let Some(place) = Place::by_id(tx, id)? else { return Ok(Settled::Stale) };
    let current = place.stage == Stage::Running && place.lease.as_ref() == Some(lease.as_bytes());
    let settled = settle(tx, place.seq, lease, ending)?;
    let Ending::End { record, .. } = ending else { return Ok(settled) };
    if current && record.end != End::Succeeded {
        if let Some(payload) = payload {
            store(tx, place.seq, payload)?;
            crate::crash_point!("sqlite.settle.after_payload");
        }
        leave_dead_set(tx, &place, record)?;
    }
    Ok(settled)
}

/// A dead job without a payload is not one that can be redriven.
fn leave_dead_set(tx: &mut Tx<'_>, place: &Place, record: &Record) -> Result<(), Fault> {
    if record.end == End::Dead && !has_payload(tx, place.seq)? {
        tx.sql("UPDATE job SET dropped = 1 WHERE seq = ?1")?.execute([place.seq])?;
        tx.dead_set(place.lane, -1);
    }
    Ok(())
}

pub(super) fn has_payload(tx: &Tx<'_>, seq: i64) -> Result<bool, Fault> {
    Ok(tx.sql("SELECT 1 FROM payload WHERE seq = ?1")?.exists([seq])?)
}

/// Cancels each job or flags it, in order; notes in these queues what was never seen.
pub(super) fn cancel(tx: &mut Tx<'_>, ids: &[JobId], queues: &[Queue]) -> Result<Vec<Cancel>, Fault> {
    ids.iter().map(|&id| cancel_here_or_there(tx, id, queues)).collect()
}

fn cancel_here_or_there(tx: &mut Tx<'_>, id: JobId, queues: &[Queue]) -> Result<Cancel, Fault> {
    let told = cancel_one(tx, id)?;
    if told != Cancel::Unknown || queues.is_empty() {
        return Ok(told);
    }
    let until = (tx.clock() + Retention::standard().tombstones).as_millis();
    for queue in queues {
        tx.sql("INSERT OR REPLACE INTO stop (id, queue, until) VALUES (?1, ?2, ?3)")?.execute(params![
            id.as_bytes(),
            queue.as_str(),
            until
        ])?;
    }
    Ok(Cancel::Flagged)
}

/// Notes that what has begun to wait in this queue before now ends when its message is seen.
pub(super) fn note_purge(tx: &Tx<'_>, queue: &Queue) -> Result<(), Fault> {
    tx.sql("INSERT OR REPLACE INTO purge (queue, at) VALUES (?1, ?2)")?.execute(params![queue.as_str(), tx.now])?;
    Ok(())
}

/// Notes that messages are expected in this queue.
pub(super) fn touch(tx: &mut Tx<'_>, queue: &Queue) -> Result<(), Fault> {
    let id = tx.queue(queue)?;
    tx.sql("UPDATE queue SET used = ?2 WHERE id = ?1")?.execute([id, tx.now])?;
    Ok(())
}

/// One round of upkeep: besides what is any file's, claims that ran out and cancels that were never met.
pub(super) fn sweep(tx: &mut Tx<'_>, retention: &Retention) -> Result<Swept, Fault> {
    let ended = recover_expired(tx)?;
    let forgotten = tx
        .sql(
            "DELETE FROM stop WHERE (id, queue) IN
             (SELECT id, queue FROM stop WHERE until <= ?1 ORDER BY until LIMIT ?2)",
        )?
        .execute(params![tx.now, retention::STEP])?;
    let mut swept = retention::sweep(tx, retention)?;
    swept.more |= ended >= CHORES || forgotten >= retention::STEP as usize;
    Ok(swept)
}
