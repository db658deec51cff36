//! The right to run one job: claim, heartbeat and settle by row number and lease id.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension};

use super::file::Fault;
use super::lease::extend;
use super::reader::Reader;
use super::settle::{Ending, Spot, settle_at};
use super::stage::Stage;
use super::turned::Turned;
use super::writer::Writer;
use crate::broker::LeaseId;
use crate::broker::backend::{Beat, Claim, Hold, Settled, Verdict};
use crate::error::Result;
use crate::record::State;
use crate::time::Timestamp;

/// What the holds of a subscription share.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) writer: Writer,
    pub(super) reader: Reader,
    pub(super) turned: Turned,
    pub(super) length: Duration,
}

/// A lease on a row.
#[derive(Debug)]
pub(super) struct RowHold {
    pub(super) desk: Arc<Desk>,
    pub(super) spot: Spot,
    pub(super) epoch: u32,
    pub(super) lease: LeaseId,
    pub(super) granted: Granted,
}

/// What the transaction that granted a lease knew of it: a claim is answered by that as long as nothing has turned.
#[derive(Debug)]
pub(super) struct Granted {
    deaths: u32,
    /// When the lease runs out.
    until: i64,
    /// The file's count of what has turned.
    turned: i64,
    /// Whether the holder has asked or said anything: from then on only the row itself tells.
    used: AtomicBool,
}

impl Granted {
    pub(super) fn new(deaths: u32, until: i64, turned: i64) -> Self {
        Self { deaths, until, turned, used: AtomicBool::new(false) }
    }
}

#[async_trait]
impl Hold for RowHold {
    async fn claim(&self) -> Result<Claim> {
        let Granted { deaths, until, turned, used } = &self.granted;
        if !used.swap(true, Relaxed) && Timestamp::now().as_millis() < *until && self.desk.turned.is_still(*turned) {
            return Ok(Claim::Fresh { deaths: *deaths });
        }
        let (seq, epoch, lease) = (self.spot.seq, self.epoch, self.lease);
        self.desk.reader.read("claim a job", move |conn| claim(conn, seq, epoch, lease)).await
    }

    async fn beat(&self) -> Result<Beat> {
        let (seq, lease) = (self.spot.seq, self.lease);
        let length = i64::try_from(self.desk.length.as_millis()).unwrap_or(i64::MAX / 2);
        self.desk.writer.write_light("beat", move |tx| extend(tx, seq, lease, length)).await
    }

    async fn settle(&self, verdict: &Verdict) -> Result<Settled> {
        self.granted.used.store(true, Relaxed);
        let (spot, lease) = (self.spot, self.lease);
        let ending = Ending::of(verdict)?;
        self.desk.writer.write("settle", ending.bytes(), move |tx| settle_at(tx, spot, lease, &ending)).await
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
