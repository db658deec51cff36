//! What is forgotten, and when: overdue jobs, old records by age and by bytes, marks of used ids, what is empty.
//! Every step is one transaction over a bounded number of rows.

use rusqlite::params;

use super::file::Fault;
use super::lease::expire_overdue;
use super::stage::Stage;
use super::tx::Tx;
use crate::broker::backend::{Retention, Swept};
use crate::codec;
use crate::record::Output;

/// How many rows one step looks at: a few milliseconds' work.
pub(super) const STEP: u32 = 500;
/// A worker that has not reported for so long is forgotten, in milliseconds.
pub(super) const WORKER_SILENCE: i64 = 60_000;
/// A queue in which nothing is, and of which nobody has said for so long that it is used, is forgotten: an hour, in
/// milliseconds.
pub(super) const QUEUE_SILENCE: i64 = 3_600_000;

/// A record that may be forgotten.
struct Old {
    seq: i64,
    job: i64,
    stage: Stage,
    ended_at: i64,
    bytes: i64,
}

/// One round of upkeep.
pub(super) fn sweep(tx: &mut Tx<'_>, retention: &Retention) -> Result<Swept, Fault> {
    let mut swept = Swept { expired: u64::from(expire_overdue(tx, STEP)?), ..Swept::default() };
    swept.more |= swept.expired >= u64::from(STEP);
    let before = |length: std::time::Duration| (tx.clock() - length).as_millis();
    let (succeeded, dead, tombstones) =
        (before(retention.succeeded), before(retention.dead), before(retention.tombstones));
    let (due, more) = successes(tx, |record| record.ended_at <= succeeded)?;
    swept.more |= more;
    forget(tx, due, &mut swept)?;
    for stage in [Stage::Dead, Stage::Cancelled, Stage::Expired] {
        let due = old(tx, stage, dead)?;
        swept.more |= due.len() >= STEP as usize;
        forget(tx, due, &mut swept)?;
    }
    forget_for_room(tx, retention.bytes, &mut swept)?;
    let marks = tx
        .sql("DELETE FROM past WHERE id IN (SELECT id FROM past WHERE ended_at <= ?1 ORDER BY ended_at LIMIT ?2)")?
        .execute(params![tombstones, STEP])?;
    swept.more |= marks >= STEP as usize;
    tx.flush()?;
    forget_empty(tx, dead.min(succeeded))?;
    tx.forget_names();
    Ok(swept)
}

/// While all records together take too many bytes, the oldest successes go.
fn forget_for_room(tx: &mut Tx<'_>, limit: u64, swept: &mut Swept) -> Result<(), Fault> {
    tx.flush()?;
    let total: i64 = tx.sql("SELECT value FROM total WHERE name = 'record_bytes'")?.query_row([], |row| row.get(0))?;
    let mut over = total.saturating_sub(i64::try_from(limit).unwrap_or(i64::MAX));
    if over <= 0 {
        return Ok(());
    }
    let (going, more) = successes(tx, |record| {
        let goes = over > 0;
        over -= if goes { record.bytes } else { 0 };
        goes
    })?;
    swept.more |= over > 0 && more;
    forget(tx, going, swept)
}

/// Of the oldest records those of successes that are to go, and whether there is more to look at. The next look begins
/// at the first success that stays.
fn successes(tx: &Tx<'_>, mut goes: impl FnMut(&Old) -> bool) -> Result<(Vec<Old>, bool), Fault> {
    let swept: i64 = tx.sql("SELECT value FROM total WHERE name = 'swept'")?.query_row([], |row| row.get(0))?;
    let mut statement =
        tx.sql("SELECT seq, job, end, ended_at, bytes FROM record WHERE seq > ?1 ORDER BY seq LIMIT ?2")?;
    let mut rows = statement.query([swept, i64::from(STEP)])?;
    let (mut going, mut seen, mut stays, mut upto) = (Vec::new(), 0, false, swept);
    while let Some(row) = rows.next()? {
        seen += 1;
        let record =
            Old { seq: row.get(0)?, job: row.get(1)?, stage: row.get(2)?, ended_at: row.get(3)?, bytes: row.get(4)? };
        let seq = record.seq;
        if record.stage == Stage::Succeeded {
            if goes(&record) {
                going.push(record);
            } else {
                stays = true;
            }
        }
        if !stays {
            upto = seq;
        }
    }
    if upto > swept {
        tx.sql("UPDATE total SET value = ?1 WHERE name = 'swept'")?.execute([upto])?;
    }
    Ok((going, seen >= STEP && upto > swept))
}

/// The oldest records of one kind of end, other than success, that are no younger than `before`.
fn old(tx: &Tx<'_>, stage: Stage, before: i64) -> Result<Vec<Old>, Fault> {
    let found = tx
        .sql(
            "SELECT seq, job, ended_at, bytes FROM record WHERE end = ?1 AND end <> 3 AND ended_at <= ?2
             ORDER BY ended_at LIMIT ?3",
        )?
        .query_map(params![stage.code(), before, STEP], |row| {
            Ok(Old { seq: row.get(0)?, job: row.get(1)?, stage, ended_at: row.get(2)?, bytes: row.get(3)? })
        })?
        .collect::<rusqlite::Result<_>>()?;
    Ok(found)
}

/// Deletes records, and turns the jobs whose last word they were into marks of used ids.
fn forget(tx: &mut Tx<'_>, records: Vec<Old>, swept: &mut Swept) -> Result<(), Fault> {
    for record in records {
        let body: Vec<u8> =
            tx.sql("SELECT body FROM record WHERE seq = ?1")?.query_row([record.seq], |row| row.get(0))?;
        tx.sql("DELETE FROM record WHERE seq = ?1")?.execute([record.seq])?;
        tx.unrecorded(record.bytes);
        swept.forgotten += 1;
        let answer = codec::decode_record(&body).ok().and_then(|record| record.answer);
        if let Some(Output::Stored(stored)) = answer.map(|answer| answer.output) {
            swept.outputs.push(stored.key);
        }
        forget_job(tx, &record)?;
    }
    Ok(())
}

fn forget_job(tx: &mut Tx<'_>, record: &Old) -> Result<(), Fault> {
    let gone = tx
        .sql("DELETE FROM job WHERE seq = ?1 AND record = ?2 RETURNING id, fingerprint, lane, batch, dropped")?
        .query_map([record.job, record.seq], |row| {
            Ok((row.get::<_, [u8; 16]>(0)?, row.get::<_, [u8; 16]>(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
        })?
        .collect::<rusqlite::Result<Vec<(_, _, i64, Option<i64>, bool)>>>()?;
    for (id, fingerprint, lane, batch, dropped) in gone {
        tx.sql("DELETE FROM payload WHERE seq = ?1")?.execute([record.job])?;
        tx.sql("INSERT OR REPLACE INTO past (id, fingerprint, state, ended_at) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![id, fingerprint, record.stage.code(), record.ended_at])?;
        tx.rows(lane, batch, -1);
        if record.stage == Stage::Dead && !dropped {
            tx.dead_set(lane, -1);
        }
    }
    Ok(())
}

/// Workers that fell silent, locks that ran out, and lanes, batches and queues that nothing names any more.
fn forget_empty(tx: &Tx<'_>, before: i64) -> Result<(), Fault> {
    tx.sql("DELETE FROM worker WHERE seen_at <= ?1")?.execute([tx.now - WORKER_SILENCE])?;
    tx.sql("DELETE FROM lock WHERE until <= ?1")?.execute([tx.now])?;
    tx.sql("DELETE FROM lane WHERE jobs = 0")?.execute([])?;
    tx.sql("DELETE FROM batch WHERE jobs = 0 AND created_at <= ?1")?.execute([before])?;
    tx.sql(
        "DELETE FROM queue WHERE paused IS NULL AND ifnull(used, 0) <= ?1 AND id NOT IN (SELECT queue FROM lane)
         AND id NOT IN (SELECT queue FROM batch) AND NOT EXISTS
         (SELECT 1 FROM record WHERE record.queue = queue.id AND record.end <> 3)",
    )?
    .execute([tx.now - QUEUE_SILENCE])?;
    Ok(())
}
