//! Rows that nobody can read any more: mended as far as reading goes and ended as dead, so that they hold up no other
//! job. What a row means is `row.rs`.

use rusqlite::params;

use super::file::Fault;
use super::row::{JobRow, tags_from};
use super::settle::{Why, end_unrun};
use super::tx::Tx;
use crate::codec;
use crate::job::{JobId, Priority};

/// A job's whole row. One that cannot be read is ended instead, and is nothing here.
pub(super) fn job_or_bury(tx: &mut Tx<'_>, seq: i64) -> Result<Option<JobRow>, Fault> {
    match JobRow::by_seq(tx, seq) {
        Err(fault) if is_unreadable(&fault) => {
            bury(tx, seq)?;
            Ok(None)
        }
        read => read,
    }
}

/// Ends a job as dead, `corrupt_job`. What in its row cannot be read gives way to what means nothing, so that the job
/// can be listed, fetched and redriven like any other.
pub(super) fn bury(tx: &mut Tx<'_>, seq: i64) -> Result<(), Fault> {
    mend(tx, seq)?;
    match JobRow::by_seq(tx, seq)? {
        Some(job) => end_unrun(tx, &job, Why::Corrupt),
        None => Ok(()),
    }
}

/// Whether this is about what a row holds, and not about the file it is in.
pub(super) fn is_unreadable(fault: &Fault) -> bool {
    use rusqlite::Error as Sql;
    match fault {
        Fault::Own(error) => matches!(error.kind(), crate::error::Kind::Corrupt | crate::error::Kind::TooLarge),
        Fault::Sql(error) => matches!(
            error,
            Sql::FromSqlConversionFailure(..)
                | Sql::IntegralValueOutOfRange(..)
                | Sql::InvalidColumnType(..)
                | Sql::Utf8Error(..)
        ),
    }
}

fn mend(tx: &Tx<'_>, seq: i64) -> Result<(), Fault> {
    let mut statement = tx.sql(
        "SELECT id, fingerprint, priority, epoch, attempts, deaths, custom_id, tenant, tags, history FROM job
         WHERE seq = ?1",
    )?;
    let mut rows = statement.query([seq])?;
    let Some(row) = rows.next()? else { return Ok(()) };
    let text = |place| row.get::<_, Option<String>>(place).ok().flatten();
    let count = |place| row.get::<_, u32>(place).unwrap_or_default();
    let id = row.get(0).map_or_else(|_| JobId::fresh(), JobId::from_bytes);
    let fingerprint: [u8; 16] = row.get(1).unwrap_or_default();
    let priority = row.get(2).ok().and_then(|priority| Priority::new(priority).ok()).unwrap_or_default();
    let tags = text(8).filter(|tags| tags_from(Some(tags.clone())).is_ok());
    let history = row.get::<_, Option<Vec<u8>>>(9).ok().flatten().filter(|bytes| codec::decode_history(bytes).is_ok());
    tx.sql(
        "UPDATE job SET id = ?2, fingerprint = ?3, priority = ?4, epoch = ?5, attempts = ?6, deaths = ?7, custom_id = ?8,
         tenant = ?9, tags = ?10, history = ?11, keyed = (keyed IS TRUE), cancel = (cancel IS TRUE), hold = NULL,
         worker = NULL, leased_at = NULL, since = NULL, settled = NULL,
         deadline   = iif(typeof(deadline) = 'integer', deadline, ?12),
         created_at = iif(typeof(created_at) = 'integer', created_at, ?12),
         ready_at   = iif(typeof(ready_at) = 'integer', ready_at, ?12),
         not_before = iif(typeof(not_before) = 'integer', not_before, NULL),
         away       = iif(typeof(away) = 'integer', away, NULL),
         row        = iif(typeof(row) = 'integer', row, NULL) WHERE seq = ?1",
    )?
    .execute(params![
        seq,
        id.as_bytes(),
        fingerprint,
        priority.get(),
        count(3),
        count(4),
        count(5),
        text(6),
        text(7),
        tags,
        history,
        tx.now,
    ])?;
    Ok(())
}
