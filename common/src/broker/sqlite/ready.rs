//! The next jobs of a lane as a lease reads them: with their payloads, and without what the lane says of all of them.

use std::collections::HashMap;

use rusqlite::{OptionalExtension, Row, params};

use super::away::SPARED;
use super::damage::is_unreadable;
use super::file::Fault;
use super::row::{name, tags_from};
use super::tx::Tx;
use crate::broker::backend::Head;
use crate::codec;
use crate::job::{BatchName, Fingerprint, JobId, Lane, Priority};
use crate::time::Timestamp;

/// Payloads above so many bytes are read one by one: many at once would be gigabytes, and a copy less saves nothing.
const BESIDE: i64 = 4_096;

/// The jobs that are next in a lane.
pub(super) const NEXT: &str = "SELECT j.seq, j.id, j.deadline, j.created_at, j.fingerprint, j.priority, j.keyed,
     j.batch, j.row, j.epoch, j.attempts, j.deaths, j.cancel, j.not_before, j.custom_id, j.tenant, j.tags, j.history,
     ifnull(j.away & ?3, 0), iif(typeof(p.bytes) = 'blob' AND length(p.bytes) <= ?4, p.bytes, NULL)
     FROM job j LEFT JOIN payload p ON p.seq = j.seq
     WHERE j.lane = ?1 AND j.state = 0 ORDER BY j.ready_at, j.seq LIMIT ?2";

/// A job that waits and is next in its lane.
#[derive(Debug)]
pub(super) struct Next {
    pub(super) seq: i64,
    pub(super) batch: Option<i64>,
    pub(super) deaths: u32,
    pub(super) cancelled: bool,
    pub(super) head: Head,
    /// Unless it is missing, no bytes, or large.
    pub(super) payload: Option<Vec<u8>>,
}

/// What jobs say of their batches, looked up once each.
#[derive(Default)]
pub(super) struct Batches(HashMap<i64, Option<(BatchName, bool)>>);

impl Batches {
    /// The batch's name, and whether it is cancelled.
    fn of(&mut self, tx: &Tx<'_>, batch: i64) -> Result<Option<(BatchName, bool)>, Fault> {
        if let Some(known) = self.0.get(&batch) {
            return Ok(known.clone());
        }
        let found: Option<(String, bool)> = tx
            .sql("SELECT name, cancelled FROM batch WHERE id = ?1")?
            .query_row([batch], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let known = match found {
            Some((text, cancelled)) => Some((name(BatchName::new(&text))?, cancelled)),
            None => None,
        };
        self.0.insert(batch, known.clone());
        Ok(known)
    }
}

/// The rows that are next in a lane; `None` for one that cannot be read.
pub(super) fn next_of_lane(
    tx: &Tx<'_>,
    (id, lane): (i64, &Lane),
    count: u32,
    batches: &mut Batches,
) -> Result<Vec<(i64, Option<Next>)>, Fault> {
    let mut statement = tx.sql(NEXT)?;
    let mut rows = statement.query(params![id, count, SPARED, BESIDE])?;
    let mut jobs = Vec::with_capacity(count as usize);
    while let Some(row) = rows.next()? {
        let job = match read(tx, row, lane, batches) {
            Ok(job) => Some(job),
            Err(fault) if is_unreadable(&fault) => None,
            Err(fault) => return Err(fault),
        };
        jobs.push((row.get(0)?, job));
    }
    Ok(jobs)
}

fn read(tx: &Tx<'_>, row: &Row<'_>, lane: &Lane, batches: &mut Batches) -> Result<Next, Fault> {
    let number: Option<i64> = row.get(7)?;
    let (batch, stopped) = number.map(|number| batches.of(tx, number)).transpose()?.flatten().unzip();
    let epoch: u32 = row.get(9)?;
    let spared: bool = row.get(18)?;
    let cancel: bool = row.get(12)?;
    let head = Head {
        id: JobId::from_bytes(row.get(1)?),
        lane: lane.clone(),
        priority: name(Priority::new(row.get(5)?))?,
        batch,
        row: row.get::<_, Option<i64>>(8)?.and_then(|row| u64::try_from(row).ok()),
        custom_id: row.get(14)?,
        tenant: row.get(15)?,
        tags: tags_from(row.get(16)?)?,
        keyed: row.get(6)?,
        fingerprint: Fingerprint(row.get(4)?),
        not_before: row.get::<_, Option<i64>>(13)?.map(Timestamp::from_millis),
        deadline: Timestamp::from_millis(row.get(2)?),
        created_at: Timestamp::from_millis(row.get(3)?),
        epoch,
        attempts: row.get(10)?,
        history: codec::decode_history(
            row.get_ref(17)?.as_blob_or_null().map_err(rusqlite::Error::from)?.unwrap_or_default(),
        )?,
    };
    Ok(Next {
        seq: row.get(0)?,
        batch: number,
        deaths: row.get(11)?,
        cancelled: cancel || (stopped == Some(true) && epoch == 0 && !spared),
        head,
        payload: row.get(19)?,
    })
}
