//! The right to run one job: claim, heartbeat and settle by row number and lease id.

use std::time::Duration;

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension};

use super::file::Fault;
use super::lease::extend;
use super::reader::Reader;
use super::settle::{Ending, settle};
use super::stage::Stage;
use super::writer::Writer;
use crate::broker::LeaseId;
use crate::broker::backend::{Beat, Claim, Hold, Settled, Verdict};
use crate::error::Result;
use crate::record::State;
use crate::time::Timestamp;

/// A lease on a row.
#[derive(Debug)]
pub(super) struct RowHold {
    pub(super) writer: Writer,
    pub(super) reader: Reader,
    pub(super) seq: i64,
    pub(super) epoch: u32,
    pub(super) lease: LeaseId,
    pub(super) length: Duration,
}

#[async_trait]
impl Hold for RowHold {
    async fn claim(&self) -> Result<Claim> {
        let (seq, epoch, lease) = (self.seq, self.epoch, self.lease);
        self.reader.read("claim a job", move |conn| claim(conn, seq, epoch, lease)).await
    }

    async fn beat(&self) -> Result<Beat> {
        let (seq, lease) = (self.seq, self.lease);
        let length = i64::try_from(self.length.as_millis()).unwrap_or(i64::MAX / 2);
        self.writer.write("beat", 0, move |tx| extend(tx, seq, lease, length)).await
    }

    async fn settle(&self, verdict: &Verdict) -> Result<Settled> {
        let (seq, lease) = (self.seq, self.lease);
        let ending = Ending::of(verdict)?;
        self.writer.write("settle", ending.bytes(), move |tx| settle(tx, seq, lease, &ending)).await
    }
}

/// On this backend the lease is the claim, unless the job has changed since.
fn claim(conn: &Connection, seq: i64, epoch: u32, lease: LeaseId) -> Result<Claim, Fault> {
    let mut statement = conn.prepare_cached(
        "SELECT j.state, j.epoch, j.lease, j.expires_at, j.deaths, j.cancel OR (j.epoch = 0 AND ifnull(b.cancelled, 0)),
         q.paused FROM job j JOIN lane l ON l.id = j.lane JOIN queue q ON q.id = l.queue
         LEFT JOIN batch b ON b.id = j.batch WHERE j.seq = ?1",
    )?;
    let now = Timestamp::now().as_millis();
    let answer = statement
        .query_row([seq], |row| {
            let found: Stage = row.get(0)?;
            let (newest, holder): (u32, Option<[u8; 16]>) = (row.get(1)?, row.get(2)?);
            let until = row.get::<_, Option<i64>>(3)?.unwrap_or(0);
            let paused: Option<String> = row.get(6)?;
            Ok(match found.ended() {
                Some(end) if end == State::Succeeded || newest == epoch => Claim::Ended(end),
                None if found == Stage::Running && holder.as_ref() != Some(lease.as_bytes()) => {
                    Claim::Taken { until: Timestamp::from_millis(until) }
                }
                None if found == Stage::Running && until > now => {
                    if row.get(5)? {
                        Claim::Cancelled
                    } else if let Some(reason) = paused {
                        Claim::Paused { reason }
                    } else {
                        Claim::Fresh { deaths: row.get(4)? }
                    }
                }
                Some(_) | None => Claim::Stale,
            })
        })
        .optional()?;
    Ok(answer.unwrap_or(Claim::Stale))
}
