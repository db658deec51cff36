//! Jobs on their way to another broker: what waits, whole and page by page, and its removal once it is there.

use rusqlite::{Connection, OptionalExtension, params};

use super::damage::is_unreadable;
use super::file::Fault;
use super::row::{JobRow, select_jobs};
use super::stage::Stage;
use super::tx::Tx;
use crate::broker::backend::{Envelope, PAGE_BYTES};
use crate::error::{Error, Kind, Result};
use crate::job::{JobId, Queue};
use crate::ledger::Page;
use crate::time::Timestamp;

/// How far one page looks, in jobs of any queue and state: a few tens of milliseconds' reading.
const WINDOW: i64 = 100_000;

/// The job number that a page begins after.
pub(super) fn place(after: Option<&str>) -> Result<i64> {
    after.map_or(Ok(0), str::parse).map_err(|_| {
        Error::new(Kind::Config, "list waiting jobs", format!("{:?} is no place of this list", after.unwrap_or("")))
    })
}

/// Jobs of a queue that wait here, whole, after the job number `after`.
pub(super) fn waiting(conn: &Connection, queue: &Queue, after: i64, limit: usize) -> Result<Page<Envelope>, Fault> {
    let now = Timestamp::now().as_millis();
    let newest: i64 = conn.query_row("SELECT ifnull(max(seq), 0) FROM job", [], |row| row.get(0))?;
    let end = after.saturating_add(WINDOW).min(newest);
    let seqs = seqs(conn, queue, (after, end), limit)?;
    // The page ends where it is full, else where the window does.
    let mut next = if seqs.len() < limit { end } else { seqs.last().copied().unwrap_or(end) };
    let mut page = Page { items: Vec::with_capacity(seqs.len()), next: None };
    let (mut bytes, mut last) = (0, after);
    for seq in seqs {
        // What nobody can read stays, and ends here when its turn comes.
        let found = match whole(conn, seq) {
            Err(fault) if is_unreadable(&fault) => None,
            found => found?,
        };
        if let Some((job, payload)) = found.filter(|(job, _)| !job.is_overdue(now) && !job.is_cancelled()) {
            bytes += payload.len();
            if bytes > PAGE_BYTES && !page.items.is_empty() {
                next = last;
                break;
            }
            page.items.push(envelope(job, payload));
        }
        last = seq;
    }
    page.next = (next < newest).then(|| next.to_string());
    Ok(page)
}

/// The numbers of waiting jobs within a stretch of all jobs, in their order.
fn seqs(conn: &Connection, queue: &Queue, (after, end): (i64, i64), limit: usize) -> rusqlite::Result<Vec<i64>> {
    conn.prepare_cached(
        "SELECT j.seq FROM job j NOT INDEXED WHERE j.seq > ?1 AND j.seq <= ?2 AND j.state IN (0, 1) AND j.lane IN
         (SELECT l.id FROM queue q JOIN lane l ON l.queue = q.id WHERE q.name = ?3) ORDER BY j.seq LIMIT ?4",
    )?
    .query_map(params![after, end, queue.as_str(), i64::try_from(limit).unwrap_or(i64::MAX)], |row| row.get(0))?
    .collect()
}

/// A job and its payload; nothing where either is gone.
fn whole(conn: &Connection, seq: i64) -> Result<Option<(JobRow, Vec<u8>)>, Fault> {
    let mut jobs = conn.prepare_cached(select_jobs!("WHERE j.seq = ?1"))?;
    let mut rows = jobs.query([seq])?;
    let Some(job) = rows.next()?.map(JobRow::read).transpose()? else { return Ok(None) };
    let mut payload = conn.prepare_cached("SELECT bytes FROM payload WHERE seq = ?1")?;
    Ok(payload.query_row([seq], |row| row.get(0)).optional()?.map(|payload| (job, payload)))
}

fn envelope(job: JobRow, payload: Vec<u8>) -> Envelope {
    let mut head = job.head;
    if job.stage == Stage::Delayed {
        head.not_before = Some(Timestamp::from_millis(job.ready_at));
    }
    Envelope { head, payload }
}

/// Removes jobs that wait in the epoch given, as though they had never been put in; how many.
pub(super) fn forget(tx: &mut Tx<'_>, jobs: &[(JobId, u32)]) -> Result<u64, Fault> {
    let mut count = 0;
    for (id, epoch) in jobs {
        let gone: Option<(i64, i64, Option<i64>, Stage)> = tx
            .sql("DELETE FROM job WHERE id = ?1 AND epoch = ?2 AND state < 2 RETURNING seq, lane, batch, state")?
            .query_row(params![id.as_bytes(), epoch], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
            .optional()?;
        if let Some((seq, lane, batch, stage)) = gone {
            tx.sql("DELETE FROM payload WHERE seq = ?1")?.execute([seq])?;
            tx.unsubmitted(lane, batch, stage);
            count += 1;
        }
    }
    Ok(count)
}
