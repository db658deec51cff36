//! What people and successors ask of the queue: pause, cancel, purge, redrive, drop, wake, recover. Each call is one
//! bounded transaction; what may be long is walked in steps by the facade in `mod.rs`.

use rusqlite::{OptionalExtension, params};

use super::away::{ANNOUNCED, RAISED, UNRUN};
use super::damage::job_or_bury;
use super::enqueue::past_state;
use super::file::Fault;
use super::lease::give_back;
use super::row::{JobRow, Place};
use super::settle::{Why, end_unrun};
use super::stage::Stage;
use super::tx::Tx;
use crate::broker::HoldKey;
use crate::broker::backend::{Cancel, CancelCounts, Head, Redriven};
use crate::job::{BatchName, JobId, Queue};
use crate::record::State;

/// How many rows one step of a long walk looks at: a few milliseconds' work.
pub(super) const STEP: u32 = 500;

/// Pauses or resumes a queue.
pub(super) fn pause(tx: &mut Tx<'_>, queue: &Queue, reason: Option<&str>) -> Result<(), Fault> {
    let id = tx.queue(queue)?;
    tx.sql("UPDATE queue SET paused = ?2 WHERE id = ?1")?.execute(params![id, reason])?;
    tx.made_ready |= reason.is_none();
    tx.turns = true;
    Ok(())
}

/// Cancels each job or flags it, in order.
pub(super) fn cancel(tx: &mut Tx<'_>, ids: &[JobId]) -> Result<Vec<Cancel>, Fault> {
    ids.iter().map(|&id| cancel_one(tx, id)).collect()
}

pub(super) fn cancel_one(tx: &mut Tx<'_>, id: JobId) -> Result<Cancel, Fault> {
    let Some(job) = JobRow::by_id(tx, id)? else {
        return Ok(past(tx, id)?.map_or(Cancel::Unknown, Cancel::Already));
    };
    if let Some(state) = job.stage.ended() {
        return Ok(Cancel::Already(state));
    }
    if job.is_overdue(tx.now) {
        end_unrun(tx, &job, Why::Expired)?;
        return Ok(Cancel::Already(State::Expired));
    }
    stop(tx, &job)?;
    Ok(if job.stage == Stage::Running { Cancel::Flagged } else { Cancel::Ended })
}

/// Ends a waiting job as cancelled, flags a running one.
fn stop(tx: &mut Tx<'_>, job: &JobRow) -> Result<(), Fault> {
    if job.stage == Stage::Running {
        tx.sql("UPDATE job SET cancel = 1 WHERE seq = ?1")?.execute([job.seq])?;
        tx.turns = true;
        return Ok(());
    }
    end_unrun(tx, job, Why::Cancelled)
}

pub(super) fn past(tx: &Tx<'_>, id: JobId) -> Result<Option<State>, Fault> {
    let found = tx
        .sql("SELECT state, fingerprint FROM past WHERE id = ?1")?
        .query_row([id.as_bytes()], past_state)
        .optional()?;
    Ok(found.map(|(state, _)| state))
}

/// Marks a batch as cancelled; its row number and the newest job's, or `None` if there is no such batch.
pub(super) fn mark_batch(tx: &mut Tx<'_>, name: &BatchName) -> Result<Option<(i64, i64)>, Fault> {
    let Some(row) = tx.batch(name)? else { return Ok(None) };
    tx.sql("UPDATE batch SET cancelled = 1 WHERE id = ?1")?.execute([row.id])?;
    tx.turns = true;
    Ok(Some((row.id, newest(tx)?)))
}

/// The number of the newest job.
pub(super) fn newest(tx: &Tx<'_>) -> Result<i64, Fault> {
    Ok(tx.sql("SELECT ifnull(max(seq), 0) FROM job")?.query_row([], |row| row.get(0))?)
}

/// One step of a batch's cancelling, over its jobs after `from` up to `upto`. Where to go on, if there is more.
pub(super) fn cancel_batch_step(
    tx: &mut Tx<'_>,
    batch: i64,
    (from, upto): (i64, i64),
) -> Result<(CancelCounts, Option<i64>), Fault> {
    let rows: Vec<(i64, Stage)> = tx
        .sql("SELECT seq, state FROM job WHERE batch = ?1 AND seq > ?2 AND seq <= ?3 ORDER BY seq LIMIT ?4")?
        .query_map(params![batch, from, upto, STEP], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let mut counts = CancelCounts::default();
    for &(seq, stage) in rows.iter().filter(|(_, stage)| stage.ended().is_none()) {
        let Some(job) = job_or_bury(tx, seq)? else { continue };
        stop(tx, &job)?;
        if stage == Stage::Running {
            counts.flagged += 1;
        } else {
            counts.ended += 1;
        }
    }
    let next = if rows.len() >= STEP as usize { rows.last().map(|(seq, _)| *seq) } else { None };
    Ok((counts, next))
}

/// One step of a queue's purge: ends up to [`STEP`] waiting jobs no newer than `upto`, and says how many.
pub(super) fn purge_step(tx: &mut Tx<'_>, queue: &Queue, upto: i64) -> Result<u64, Fault> {
    let mut rows: Vec<i64> = Vec::new();
    for sql in [
        "SELECT j.seq FROM queue q JOIN lane l ON l.queue = q.id CROSS JOIN job j ON j.lane = l.id AND j.state = 0
         WHERE q.name = ?1 AND j.seq <= ?2 LIMIT ?3",
        "SELECT j.seq FROM queue q JOIN lane l ON l.queue = q.id CROSS JOIN job j ON j.lane = l.id AND j.state = 1
         WHERE q.name = ?1 AND j.seq <= ?2 LIMIT ?3",
        "SELECT j.seq FROM queue q JOIN lane l ON l.queue = q.id CROSS JOIN job j ON j.lane = l.id AND j.state = -1
         WHERE q.name = ?1 AND j.seq <= ?2 LIMIT ?3",
    ] {
        let left = STEP.saturating_sub(u32::try_from(rows.len()).unwrap_or(STEP));
        let mut statement = tx.sql(sql)?;
        for seq in statement.query_map(params![queue.as_str(), upto, left], |row| row.get(0))? {
            rows.push(seq?);
        }
    }
    for &seq in &rows {
        if let Some(job) = job_or_bury(tx, seq)? {
            end_unrun(tx, &job, Why::Purged)?;
        }
    }
    Ok(rows.len() as u64)
}

/// Puts each ended job back in line, or says why not, in order.
pub(super) fn redrive(tx: &mut Tx<'_>, ids: &[JobId]) -> Result<Vec<Redriven>, Fault> {
    ids.iter().map(|&id| redrive_one(tx, id)).collect()
}

pub(super) fn redrive_one(tx: &mut Tx<'_>, id: JobId) -> Result<Redriven, Fault> {
    let Some(job) = JobRow::by_id(tx, id)? else {
        return Ok(match past(tx, id)? {
            None => Redriven::Unknown,
            Some(State::Succeeded) => Redriven::Succeeded,
            Some(_) => Redriven::Gone,
        });
    };
    if job.is_overdue(tx.now) {
        end_unrun(tx, &job, Why::Expired)?;
    } else if job.stage.ended().is_none() {
        return Ok(Redriven::Waiting);
    }
    let Some(place) = Place::by_seq(tx, job.seq)? else { return Ok(Redriven::Unknown) };
    if place.stage == Stage::Succeeded {
        return Ok(Redriven::Succeeded);
    }
    let kept = tx.sql("SELECT 1 FROM payload WHERE seq = ?1")?.exists([job.seq])?;
    if !kept {
        return Ok(Redriven::Gone);
    }
    let epoch = place.epoch + 1;
    let stage = if place.away.is_some() { Stage::Away } else { Stage::Ready };
    tx.sql(
        "UPDATE job SET state = ?5, epoch = ?2, ready_at = ?3, deadline = ?4, attempts = 0, deaths = 0, history = NULL,
         record = NULL, code = NULL, class = NULL, not_before = NULL, since = iif(away IS NULL, NULL, ?3),
         away = (away & ?6) | ?7 WHERE seq = ?1",
    )?
    .execute(params![
        job.seq,
        epoch,
        tx.now,
        renewed(&job.head, tx.now),
        stage.code(),
        !(ANNOUNCED | UNRUN),
        RAISED
    ])?;
    tx.moved(place.lane, place.batch, Some(place.stage), Some(stage));
    Ok(Redriven::Queued { epoch })
}

/// The deadline of a job put back in line: it gets as long to run as it was given when it was submitted.
pub(super) fn renewed(head: &Head, now: i64) -> i64 {
    let span = head.deadline.as_millis().saturating_sub(head.created_at.as_millis()).max(0);
    now.saturating_add(span).max(head.deadline.as_millis())
}

/// Takes dead jobs out of the dead set for good; how many.
pub(super) fn drop_dead(tx: &mut Tx<'_>, ids: &[JobId]) -> Result<u64, Fault> {
    let mut count = 0;
    for id in ids {
        let found: Option<(i64, i64)> = tx
            .sql("UPDATE job SET dropped = 1 WHERE id = ?1 AND state = 4 AND dropped = 0 RETURNING seq, lane")?
            .query_row([id.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        if let Some((seq, lane)) = found {
            tx.sql("DELETE FROM payload WHERE seq = ?1")?.execute([seq])?;
            tx.dead_set(lane, -1);
            count += 1;
        }
    }
    Ok(count)
}

/// Ends the waiting of every job released under `key`; how many.
pub(super) fn wake(tx: &mut Tx<'_>, key: &HoldKey) -> Result<u64, Fault> {
    let now = tx.now;
    let woken: Vec<(i64, Option<i64>)> = tx
        .sql(
            "UPDATE job SET state = 0, ready_at = ifnull(since, min(ready_at, ?2)), since = NULL, hold = NULL
             WHERE state = 1 AND hold <> '' AND hold = ?1 RETURNING lane, batch",
        )?
        .query_map(params![key.to_string(), now], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    for &(lane, batch) in &woken {
        tx.moved(lane, batch, Some(Stage::Delayed), Some(Stage::Ready));
    }
    Ok(woken.len() as u64)
}

/// Gives back every lease of a worker; how many.
pub(super) fn recover(tx: &mut Tx<'_>, worker: &str) -> Result<u64, Fault> {
    let rows: Vec<i64> = tx
        .sql("SELECT seq FROM job WHERE state = 2 AND worker = ?1")?
        .query_map([worker], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    for &seq in &rows {
        give_back(tx, seq)?;
    }
    Ok(rows.len() as u64)
}
