//! The rest of the ledger: results by cursor, batches, the dead set, workers, locks and notes.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::file::Fault;
use super::retention::WORKER_SILENCE;
use super::row::name;
use super::tx::Tx;
use crate::codec;
use crate::error::{Error, Kind};
use crate::job::{BatchName, JobId, Queue};
use crate::ledger::{BatchView, Counts, Cursor, DeadGroup, RESULT_BYTES, Results, Scope, WorkerReport};
use crate::outcome::{FailureClass, Usage, Usd};
use crate::time::Timestamp;

/// How far one page of a queue's results looks, in records of all queues: a few milliseconds' reading.
const WINDOW: i64 = 10_000;

/// Records of a batch or queue after a cursor, in the order they became durable.
pub(super) fn results(conn: &Connection, scope: &Scope, after: Cursor, limit: usize) -> Result<Results, Fault> {
    let from = i64::try_from(after.0).unwrap_or(i64::MAX);
    let (sql, whose, upto, beyond) = match scope {
        Scope::Batch(batch) => {
            let sql = "SELECT seq, body FROM record WHERE batch IS NOT NULL AND batch =
             (SELECT id FROM batch WHERE name = ?1) AND seq > ?2 AND seq <= ?3 ORDER BY seq LIMIT ?4";
            (sql, batch.as_str(), i64::MAX, false)
        }
        Scope::Queue(queue) => {
            let sql = "SELECT seq, body FROM record WHERE queue = (SELECT id FROM queue WHERE name = ?1)
             AND seq > ?2 AND seq <= ?3 ORDER BY seq LIMIT ?4";
            let newest: i64 =
                conn.prepare_cached("SELECT ifnull(max(seq), 0) FROM record")?.query_row([], |row| row.get(0))?;
            let upto = from.saturating_add(WINDOW).min(newest);
            (sql, queue.as_str(), upto, upto < newest)
        }
    };
    let mut page = Results { next: after, ..Results::default() };
    let mut statement = conn.prepare_cached(sql)?;
    // One more than asked for, to know whether there is one.
    let mut rows = statement.query(params![whose, from, upto, i64::try_from(limit + 1).unwrap_or(i64::MAX)])?;
    let mut bytes = 0;
    while let Some(row) = rows.next()? {
        let body = row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?;
        bytes += body.len();
        if page.records.len() == limit || (bytes > RESULT_BYTES && !page.records.is_empty()) {
            page.more = true;
            return Ok(page);
        }
        page.next = cursor(row.get(0)?);
        page.records.push((page.next, codec::decode_record(body)?));
    }
    if beyond {
        (page.next, page.more) = (cursor(upto), true);
    }
    Ok(page)
}

fn cursor(seq: i64) -> Cursor {
    Cursor(u64::try_from(seq).unwrap_or(0))
}

macro_rules! select_batches {
    ($tail:literal) => {
        concat!(
            "SELECT b.name, q.name, b.created_at, b.sealed, b.cancelled, b.total, b.queued, b.delayed, b.running, ",
            "b.succeeded, b.dead, b.stopped, b.expired, b.input_tokens, b.output_tokens, b.cached_tokens, ",
            "b.reasoning_tokens, b.cost, b.cost_known, b.cost_unknown, b.last FROM batch b JOIN queue q ON q.id = b.queue ",
            $tail
        )
    };
}

/// One batch.
pub(super) fn batch(conn: &Connection, batch: &BatchName) -> Result<Option<BatchView>, Fault> {
    let mut statement = conn.prepare_cached(select_batches!("WHERE b.name = ?1"))?;
    let mut rows = statement.query([batch.as_str()])?;
    rows.next()?.map(batch_view).transpose()
}

/// The newest batches.
pub(super) fn batches(conn: &Connection, limit: usize) -> Result<Vec<BatchView>, Fault> {
    let mut statement = conn.prepare_cached(select_batches!("ORDER BY b.id DESC LIMIT ?1"))?;
    let mut rows = statement.query([i64::try_from(limit).unwrap_or(i64::MAX)])?;
    let mut views = Vec::new();
    while let Some(row) = rows.next()? {
        views.push(batch_view(row)?);
    }
    Ok(views)
}

fn batch_view(row: &Row<'_>) -> Result<BatchView, Fault> {
    let count = |place| row.get::<_, i64>(place).map(|count| u64::try_from(count).unwrap_or(0));
    let text = |place| row.get::<_, String>(place);
    let known: i64 = row.get(18)?;
    Ok(BatchView {
        name: name(BatchName::new(&text(0)?))?,
        queue: name(Queue::new(&text(1)?))?,
        created_at: Timestamp::from_millis(row.get(2)?),
        sealed: row.get(3)?,
        cancelled: row.get(4)?,
        counts: Counts {
            total: count(5)?,
            queued: count(6)?,
            delayed: count(7)?,
            running: count(8)?,
            succeeded: count(9)?,
            dead: count(10)?,
            cancelled: count(11)?,
            expired: count(12)?,
        },
        usage: Usage {
            input_tokens: count(13)?,
            output_tokens: count(14)?,
            cached_tokens: count(15)?,
            reasoning_tokens: count(16)?,
        },
        cost: (known > 0).then_some(Usd::from_nanos(row.get(17)?)),
        cost_unknown: count(19)?,
        last: cursor(row.get(20)?),
    })
}

/// Marks a batch as complete, making it when there is none. `Conflict` when it belongs to another queue.
pub(super) fn seal(tx: &mut Tx<'_>, batch: &BatchName, queue: &Queue) -> Result<(), Fault> {
    let queue_id = tx.queue(queue)?;
    let row = tx.batch_or_new(batch, queue_id)?;
    if row.queue != queue_id {
        let why = format!("batch {batch} belongs to another queue than {queue}");
        return Err(Error::new(Kind::Conflict, "seal a batch", why).into());
    }
    tx.sql("UPDATE batch SET sealed = 1 WHERE id = ?1")?.execute([row.id])?;
    Ok(())
}

/// The dead set by cause, largest group first.
pub(super) fn dead_groups(conn: &Connection, queue: Option<&Queue>) -> Result<Vec<DeadGroup>, Fault> {
    let mut statement = conn.prepare_cached(
        "SELECT q.name, l.model, j.class, ifnull(j.code, ''), count(*), min(r.ended_at), max(r.ended_at), j.id, max(j.record)
         FROM job j JOIN lane l ON l.id = j.lane JOIN queue q ON q.id = l.queue JOIN record r ON r.seq = j.record
         WHERE j.state > 3 AND j.state = 4 AND j.dropped = 0 AND (?1 IS NULL OR q.name = ?1)
         GROUP BY q.id, l.model, j.class, j.code ORDER BY count(*) DESC, q.name, j.code LIMIT 1000",
    )?;
    let mut detail = conn.prepare_cached("SELECT body FROM record WHERE seq = ?1")?;
    let mut rows = statement.query([queue.map(Queue::as_str)])?;
    let mut groups = Vec::new();
    while let Some(row) = rows.next()? {
        let class: Option<String> = row.get(2)?;
        let body: Vec<u8> = detail.query_row([row.get::<_, i64>(8)?], |row| row.get(0))?;
        let said = codec::decode_record(&body).ok().and_then(|record| record.cause).map(|cause| cause.detail);
        groups.push(DeadGroup {
            queue: name(Queue::new(&row.get::<_, String>(0)?))?,
            model: row.get(1)?,
            class: class.and_then(|class| FailureClass::ALL.into_iter().find(|known| known.as_str() == class)),
            code: row.get(3)?,
            count: u64::try_from(row.get::<_, i64>(4)?).unwrap_or(0),
            first: Timestamp::from_millis(row.get(5)?),
            last: Timestamp::from_millis(row.get(6)?),
            sample: JobId::from_bytes(row.get(7)?),
            detail: said.unwrap_or_default(),
        });
    }
    Ok(groups)
}

/// Keeps what a worker told of itself.
pub(super) fn report(tx: &Tx<'_>, id: &str, body: &str) -> Result<(), Fault> {
    tx.sql("INSERT OR REPLACE INTO worker (id, seen_at, body) VALUES (?1, ?2, ?3)")?
        .execute(params![id, tx.now, body])?;
    Ok(())
}

/// Forgets a worker.
pub(super) fn leave(tx: &Tx<'_>, id: &str) -> Result<(), Fault> {
    tx.sql("DELETE FROM worker WHERE id = ?1")?.execute([id])?;
    Ok(())
}

/// Workers heard of within the last minute.
pub(super) fn workers(conn: &Connection) -> Result<Vec<WorkerReport>, Fault> {
    let since = Timestamp::now().as_millis() - WORKER_SILENCE;
    let mut statement = conn.prepare_cached("SELECT body FROM worker WHERE seen_at > ?1 ORDER BY id")?;
    let mut rows = statement.query([since])?;
    let mut reports = Vec::new();
    while let Some(row) = rows.next()? {
        let body = row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?;
        // A report of another version that this one cannot read is left out.
        reports.extend(serde_json::from_str::<WorkerReport>(body).ok());
    }
    Ok(reports)
}

/// Takes or extends a lock; false while another owner holds it.
pub(super) fn lock(tx: &Tx<'_>, key: &str, owner: &str, length: i64) -> Result<bool, Fault> {
    let taken = tx
        .sql(
            "INSERT INTO lock (name, owner, until) VALUES (?1, ?2, ?3) ON CONFLICT (name) DO UPDATE
             SET owner = excluded.owner, until = excluded.until WHERE owner = excluded.owner OR until <= ?4",
        )?
        .execute(params![key, owner, tx.now.saturating_add(length), tx.now])?;
    Ok(taken > 0)
}

/// Lets go of an owner's lock.
pub(super) fn unlock(tx: &Tx<'_>, key: &str, owner: &str) -> Result<(), Fault> {
    tx.sql("DELETE FROM lock WHERE name = ?1 AND owner = ?2")?.execute([key, owner])?;
    Ok(())
}

/// The value under a key.
pub(super) fn note(conn: &Connection, key: &str) -> Result<Option<String>, Fault> {
    Ok(conn.prepare_cached("SELECT value FROM note WHERE key = ?1")?.query_row([key], |row| row.get(0)).optional()?)
}

/// The value under a key, which is `value` from now on if there was none.
pub(super) fn first_note(tx: &Tx<'_>, key: &str, value: &str) -> Result<String, Fault> {
    tx.sql("INSERT OR IGNORE INTO note (key, value) VALUES (?1, ?2)")?.execute([key, value])?;
    Ok(tx.sql("SELECT value FROM note WHERE key = ?1")?.query_row([key], |row| row.get(0))?)
}

/// What a note's key begins with that holds the shared state of a limit key, as a blob.
const LIMIT: &str = "limit:";

/// What is kept of a limit key.
pub(super) fn limit(conn: &Connection, key: &str) -> Result<Vec<u8>, Fault> {
    let mut found = conn.prepare_cached("SELECT value FROM note WHERE key = ?1")?;
    Ok(found.query_row([format!("{LIMIT}{key}")], |row| row.get(0)).optional()?.unwrap_or_default())
}

/// Replaces that if it is `old`, by nothing if `new` is empty; whether it was.
pub(super) fn swap_limit(tx: &Tx<'_>, key: &str, old: &[u8], new: &[u8]) -> Result<bool, Fault> {
    let key = format!("{LIMIT}{key}");
    let changed = if new.is_empty() {
        tx.sql("DELETE FROM note WHERE key = ?1 AND value = ?2")?.execute(params![key, old])?
    } else if old.is_empty() {
        tx.sql("INSERT OR IGNORE INTO note (key, value) VALUES (?1, ?2)")?.execute(params![key, new])?
    } else {
        tx.sql("UPDATE note SET value = ?2 WHERE key = ?1 AND value = ?3")?.execute(params![key, new, old])?
    };
    Ok(changed > 0)
}

/// Every limit key, by name.
pub(super) fn limits(conn: &Connection) -> Result<Vec<String>, Fault> {
    let mut found = conn.prepare_cached(
        "SELECT substr(key, length(?1) + 1) FROM note WHERE key >= ?1 AND key < 'limit;' ORDER BY key",
    )?;
    let keys = found.query_map([LIMIT], |row| row.get(0))?;
    Ok(keys.collect::<Result<_, _>>()?)
}

/// Keeps or removes the value under a key.
pub(super) fn set_note(tx: &Tx<'_>, key: &str, value: Option<&str>) -> Result<(), Fault> {
    match value {
        Some(value) => tx.sql("INSERT OR REPLACE INTO note (key, value) VALUES (?1, ?2)")?.execute([key, value])?,
        None => tx.sql("DELETE FROM note WHERE key = ?1")?.execute([key])?,
    };
    Ok(())
}
