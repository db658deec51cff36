//! A job's row as Rust reads it: whole, with the names around it, or just its place in line.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, Row};

use super::away::SPARED;
use super::file::Fault;
use super::stage::Stage;
use super::tx::{Tx, band_from};
use crate::broker::backend::Head;
use crate::codec;
use crate::error::{Error, Kind, Result};
use crate::job::{BatchName, Fingerprint, JobId, Lane, ModelName, Priority, Queue};
use crate::time::Timestamp;

/// Selects whole rows for [`JobRow::read`]; what follows narrows `j`, the job.
macro_rules! select_jobs {
    ($tail:literal) => {
        concat!(
            "SELECT j.seq, j.id, j.lane, j.state, j.ready_at, j.deadline, j.created_at, j.fingerprint, j.priority, ",
            "j.keyed, j.batch, j.row, j.epoch, j.attempts, j.deaths, j.cancel, j.not_before, j.hold, j.custom_id, ",
            "j.tenant, j.tags, j.history, q.name, l.model, l.band, b.name, ifnull(b.cancelled, 0), q.paused, j.worker, ",
            "j.leased_at, j.record, j.dropped, j.away FROM job j JOIN lane l ON l.id = j.lane JOIN queue q ON q.id = l.queue ",
            "LEFT JOIN batch b ON b.id = j.batch ",
            $tail
        )
    };
}
pub(super) use select_jobs;

/// A job's whole row.
#[derive(Debug)]
pub(super) struct JobRow {
    pub(super) seq: i64,
    pub(super) lane: i64,
    pub(super) stage: Stage,
    pub(super) ready_at: i64,
    pub(super) batch: Option<i64>,
    pub(super) deaths: u32,
    pub(super) cancel: bool,
    pub(super) batch_cancelled: bool,
    pub(super) hold: Option<String>,
    pub(super) paused: Option<String>,
    pub(super) worker: Option<String>,
    pub(super) leased_at: Option<i64>,
    pub(super) record: Option<i64>,
    pub(super) dropped: bool,
    pub(super) away: Option<i64>,
    pub(super) head: Head,
}

impl JobRow {
    /// Reads a row of [`select_jobs`].
    pub(super) fn read(row: &Row<'_>) -> Result<Self, Fault> {
        let head = Head {
            id: JobId::from_bytes(row.get(1)?),
            lane: Lane {
                queue: name(Queue::new(row.get_ref(22)?.as_str().map_err(rusqlite::Error::from)?))?,
                model: row.get::<_, Option<String>>(23)?.map(|model| ModelName::new(&model)),
                band: band_from(row.get(24)?),
            },
            priority: name(Priority::new(row.get(8)?))?,
            batch: row.get::<_, Option<String>>(25)?.map(|batch| name(BatchName::new(&batch))).transpose()?,
            row: row.get::<_, Option<i64>>(11)?.and_then(|row| u64::try_from(row).ok()),
            custom_id: row.get(18)?,
            tenant: row.get(19)?,
            tags: tags_from(row.get(20)?)?,
            keyed: row.get(9)?,
            fingerprint: Fingerprint(row.get(7)?),
            not_before: row.get::<_, Option<i64>>(16)?.map(Timestamp::from_millis),
            deadline: Timestamp::from_millis(row.get(5)?),
            created_at: Timestamp::from_millis(row.get(6)?),
            epoch: row.get(12)?,
            attempts: row.get(13)?,
            history: codec::decode_history(
                row.get_ref(21)?.as_blob_or_null().map_err(rusqlite::Error::from)?.unwrap_or_default(),
            )?,
        };
        Ok(Self {
            seq: row.get(0)?,
            lane: row.get(2)?,
            stage: row.get(3)?,
            ready_at: row.get(4)?,
            batch: row.get(10)?,
            deaths: row.get(14)?,
            cancel: row.get(15)?,
            batch_cancelled: row.get(26)?,
            hold: row.get(17)?,
            paused: row.get(27)?,
            worker: row.get(28)?,
            leased_at: row.get(29)?,
            record: row.get(30)?,
            dropped: row.get(31)?,
            away: row.get(32)?,
            head,
        })
    }

    /// One job by its row number.
    pub(super) fn by_seq(tx: &Tx<'_>, seq: i64) -> Result<Option<Self>, Fault> {
        let mut statement = tx.sql(select_jobs!("WHERE j.seq = ?1"))?;
        let mut rows = statement.query([seq])?;
        rows.next()?.map(Self::read).transpose()
    }

    /// One job by its id.
    pub(super) fn by_id(tx: &Tx<'_>, id: JobId) -> Result<Option<Self>, Fault> {
        let mut statement = tx.sql(select_jobs!("WHERE j.id = ?1"))?;
        let mut rows = statement.query([id.as_bytes()])?;
        rows.next()?.map(Self::read).transpose()
    }

    /// Whether a user stopped it: by itself, or with its batch. A job redriven from a cancelled batch runs all the
    /// same: whoever redrove it asked for that.
    pub(super) fn is_cancelled(&self) -> bool {
        self.cancel || (self.batch_cancelled && self.head.epoch == 0 && !self.is_marked(SPARED))
    }

    /// Whether it waits at another broker when it waits, and this is noted of it there.
    pub(super) fn is_marked(&self, mark: i64) -> bool {
        self.away.is_some_and(|marks| marks & mark != 0)
    }

    /// Whether it waits although its deadline has passed.
    pub(super) fn is_overdue(&self, now: i64) -> bool {
        self.stage.is_waiting() && self.head.deadline.as_millis() <= now
    }
}

/// Where a job stands: what a change of state has to know.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) seq: i64,
    pub(super) stage: Stage,
    pub(super) lane: i64,
    pub(super) batch: Option<i64>,
    pub(super) epoch: u32,
    pub(super) lease: Option<[u8; 16]>,
    pub(super) settled: Option<[u8; 16]>,
    pub(super) record: Option<i64>,
    pub(super) dropped: bool,
    pub(super) away: Option<i64>,
}

impl Place {
    /// The place of one job.
    pub(super) fn by_seq(tx: &Tx<'_>, seq: i64) -> rusqlite::Result<Option<Self>> {
        tx.sql("SELECT seq, state, lane, batch, epoch, lease, settled, record, dropped, away FROM job WHERE seq = ?1")?
            .query_row([seq], Self::read)
            .optional()
    }

    /// The place of one job, by its id.
    pub(super) fn by_id(tx: &Tx<'_>, id: JobId) -> rusqlite::Result<Option<Self>> {
        tx.sql("SELECT seq, state, lane, batch, epoch, lease, settled, record, dropped, away FROM job WHERE id = ?1")?
            .query_row([id.as_bytes()], Self::read)
            .optional()
    }

    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            seq: row.get(0)?,
            stage: row.get(1)?,
            lane: row.get(2)?,
            batch: row.get(3)?,
            epoch: row.get(4)?,
            lease: row.get(5)?,
            settled: row.get(6)?,
            record: row.get(7)?,
            dropped: row.get(8)?,
            away: row.get(9)?,
        })
    }
}

/// Labels as text; nothing for none.
pub(super) fn tags_text(tags: &BTreeMap<String, String>) -> Result<Option<String>> {
    if tags.is_empty() {
        return Ok(None);
    }
    serde_json::to_string(tags).map(Some).map_err(|error| unreadable().because(error))
}

/// Labels from their text.
pub(super) fn tags_from(text: Option<String>) -> Result<BTreeMap<String, String>> {
    text.map_or_else(
        || Ok(BTreeMap::new()),
        |text| serde_json::from_str(&text).map_err(|error| unreadable().because(error)),
    )
}

/// A name that was checked before it was written.
pub(super) fn name<T, E: Into<Box<dyn std::error::Error + Send + Sync>>>(read: Result<T, E>) -> Result<T> {
    read.map_err(|bad| unreadable().because(bad))
}

fn unreadable() -> Error {
    Error::new(Kind::Corrupt, "read a job's row", "it holds something unexpected")
}
