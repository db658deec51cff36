//! Opening a message of another broker: whether it may run, under a claim that is given here, or what became of its job.

use rusqlite::{OptionalExtension, params};

use super::admin::past;
use super::away::{ANNOUNCED, RAISED, SPARED, UNCONFIRMED, UNRUN};
use super::damage::{bury, is_unreadable, job_or_bury};
use super::enqueue::insert;
use super::file::Fault;
use super::lease::{extend, give_back};
use super::row::Place;
use super::settle::{Why, end_unrun};
use super::stage::Stage;
use super::tx::Tx;
use crate::broker::backend::{Beat, Claim, Head};
use crate::broker::{LeaseId, WorkerId};
use crate::codec;
use crate::job::JobId;
use crate::ledger::Opened;
use crate::record::State;
use crate::time::Timestamp;

/// Who asks for a claim, and for how many milliseconds.
#[derive(Debug)]
pub(super) struct Bid {
    pub(super) lease: LeaseId,
    pub(super) worker: WorkerId,
    pub(super) length: i64,
}

/// The claim on this job for whoever asks, or why not.
pub(super) fn open(tx: &mut Tx<'_>, head: &Head, bid: &Bid) -> Result<Opened, Fault> {
    let met = match Met::read(tx, head.id)? {
        Some(met) => met,
        None => match past(tx, head.id)? {
            Some(end) => return Ok(Opened { claim: Claim::Ended(end), announce: false, keep: false }),
            None => meet(tx, head)?,
        },
    };
    let seq = met.seq;
    let claim = find(tx, met, (head, bid))?;
    crate::crash_point!("sqlite.open.after_claim");
    tell(tx, seq, claim)
}

/// A job as its message meets it.
struct Met {
    seq: i64,
    stage: Stage,
    epoch: u32,
    attempts: u32,
    deaths: u32,
    lease: Option<[u8; 16]>,
    until: i64,
    deadline: i64,
    since: Option<i64>,
    lane: i64,
    batch: Option<i64>,
    spared: bool,
    batch_cancelled: bool,
    paused: Option<String>,
    purged: Option<i64>,
}

impl Met {
    /// The job, if it is known. One that cannot be read is ended as dead.
    fn read(tx: &mut Tx<'_>, id: JobId) -> Result<Option<Self>, Fault> {
        match Self::by_id(tx, id) {
            Err(fault) if is_unreadable(&fault) => {
                let seq = tx.sql("SELECT seq FROM job WHERE id = ?1")?.query_row([id.as_bytes()], |row| row.get(0))?;
                bury(tx, seq)?;
                Self::by_id(tx, id)
            }
            read => read,
        }
    }

    fn by_id(tx: &Tx<'_>, id: JobId) -> Result<Option<Self>, Fault> {
        let mut statement = tx.sql(
            "SELECT j.seq, j.state, j.epoch, j.attempts, j.deaths, j.lease, j.expires_at, j.deadline, j.since, j.lane,
             j.batch, ifnull(j.away & ?2, 0), ifnull(b.cancelled, 0), q.paused,
             (SELECT p.at FROM purge p WHERE p.queue = q.name)
             FROM job j JOIN lane l ON l.id = j.lane JOIN queue q ON q.id = l.queue
             LEFT JOIN batch b ON b.id = j.batch WHERE j.id = ?1",
        )?;
        let read = statement.query_row(params![id.as_bytes(), SPARED], |row| {
            Ok(Self {
                seq: row.get(0)?,
                stage: row.get(1)?,
                epoch: row.get(2)?,
                attempts: row.get(3)?,
                deaths: row.get(4)?,
                lease: row.get(5)?,
                until: row.get::<_, Option<i64>>(6)?.unwrap_or(0),
                deadline: row.get(7)?,
                since: row.get(8)?,
                lane: row.get(9)?,
                batch: row.get(10)?,
                spared: row.get(11)?,
                batch_cancelled: row.get(12)?,
                paused: row.get(13)?,
                purged: row.get(14)?,
            })
        });
        Ok(read.optional()?)
    }

    /// Why it may not run any more, if it waits.
    fn doom(&self, now: i64) -> Option<Why> {
        if self.batch_cancelled && self.epoch == 0 && !self.spared {
            Some(Why::Cancelled)
        } else if self.since.zip(self.purged).is_some_and(|(since, purged)| since < purged) {
            Some(Why::Purged)
        } else {
            (self.deadline <= now).then_some(Why::Expired)
        }
    }
}

/// Enters a job whose message is the first that is heard of it.
fn meet(tx: &mut Tx<'_>, head: &Head) -> Result<Met, Fault> {
    let queue = tx.queue(&head.lane.queue)?;
    let batch = match &head.batch {
        Some(name) => Some(tx.batch_or_new(name, queue)?.id),
        None => None,
    };
    let lane = tx.lane(&head.lane)?;
    let seq = insert(tx, head, (lane, batch), (Stage::Away, Some((0, head.created_at.as_millis()))))?;
    crate::crash_point!("sqlite.open.after_entry");
    let until: Option<i64> = tx
        .sql("DELETE FROM stop WHERE id = ?1 AND queue = ?2 RETURNING until")?
        .query_row(params![head.id.as_bytes(), head.lane.queue.as_str()], |row| row.get(0))
        .optional()?;
    if until.is_some_and(|until| until > tx.now) {
        end_waiting(tx, seq, Why::Cancelled)?;
    }
    // It is in here now.
    Ok(Met::read(tx, head.id)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?)
}

/// What the job has become, or else a new claim on it.
fn find(tx: &mut Tx<'_>, met: Met, (head, bid): (&Head, &Bid)) -> Result<Claim, Fault> {
    if let Some(end) = met.stage.ended().filter(|end| *end == State::Succeeded || met.epoch == head.epoch) {
        return Ok(Claim::Ended(end));
    }
    if (met.epoch, met.attempts) > (head.epoch, head.attempts) {
        return Ok(Claim::Stale);
    }
    if met.stage != Stage::Running {
        return grant(tx, met, (head, bid));
    }
    if met.lease.as_ref() == Some(bid.lease.as_bytes()) {
        let beat = extend(tx, met.seq, bid.lease, bid.length)?;
        return Ok(if beat == Beat::Cancelled { Claim::Cancelled } else { Claim::Fresh { deaths: met.deaths } });
    }
    if met.until > tx.now {
        return Ok(Claim::Taken { until: Timestamp::from_millis(met.until) });
    }
    give_back(tx, met.seq)?;
    let Some(met) = Met::read(tx, head.id)? else { return Ok(Claim::Stale) };
    match met.stage.ended() {
        Some(end) => Ok(Claim::Ended(end)),
        None => grant(tx, met, (head, bid)),
    }
}

/// Ends a job that may not run any more, or gives the claim unless the queue is paused.
fn grant(tx: &mut Tx<'_>, met: Met, (head, bid): (&Head, &Bid)) -> Result<Claim, Fault> {
    let met = adopt(tx, met, head)?;
    if let Some(why) = met.doom(tx.now) {
        return Ok(Claim::Ended(end_waiting(tx, met.seq, why)?));
    }
    if let Some(reason) = met.paused {
        return Ok(Claim::Paused { reason });
    }
    tx.sql(
        "UPDATE job SET state = 2, lease = ?2, worker = ?3, leased_at = ?4, expires_at = ?5, hold = NULL,
         away = ifnull(away, 0) & ?6 WHERE seq = ?1",
    )?
    .execute(params![
        met.seq,
        bid.lease.as_bytes(),
        bid.worker.as_str(),
        tx.now,
        tx.now.saturating_add(bid.length),
        !(UNCONFIRMED | RAISED),
    ])?;
    tx.moved(met.lane, met.batch, Some(met.stage), Some(Stage::Running));
    Ok(Claim::Fresh { deaths: met.deaths })
}

/// A message may be ahead of the ledger: a retry's copy is published before its claim ends.
fn adopt(tx: &mut Tx<'_>, mut met: Met, head: &Head) -> Result<Met, Fault> {
    if met.epoch < head.epoch {
        begin_epoch(tx, met.seq, head)?;
        let (attempts, deaths) = (0, 0);
        met = Met {
            stage: Stage::Away,
            epoch: head.epoch,
            attempts,
            deaths,
            deadline: head.deadline.as_millis(),
            since: Some(tx.now),
            ..met
        };
    }
    if met.attempts < head.attempts {
        let history = codec::encode_history(&head.history)?;
        tx.sql("UPDATE job SET attempts = ?2, history = ?3 WHERE seq = ?1")?.execute(params![
            met.seq,
            head.attempts,
            history
        ])?;
    }
    Ok(met)
}

/// Counts from zero in the epoch of this message; the end of an earlier one no longer counts.
fn begin_epoch(tx: &mut Tx<'_>, seq: i64, head: &Head) -> Result<(), Fault> {
    let Some(place) = Place::by_seq(tx, seq)? else { return Ok(()) };
    if place.stage == Stage::Dead && place.dropped {
        tx.dead_set(place.lane, 1);
    }
    tx.sql(
        "UPDATE job SET state = -1, epoch = ?2, deadline = ?3, ready_at = ?4, since = ?4, attempts = 0, deaths = 0,
         history = NULL, record = NULL, code = NULL, class = NULL, not_before = NULL, hold = NULL, dropped = 0,
         away = ifnull(away, 0) & ?5 WHERE seq = ?1",
    )?
    .execute(params![seq, head.epoch, head.deadline.as_millis(), tx.now, !(ANNOUNCED | UNRUN)])?;
    tx.moved(place.lane, place.batch, Some(place.stage), Some(Stage::Away));
    Ok(())
}

/// Ends a job that waits, and says how.
fn end_waiting(tx: &mut Tx<'_>, seq: i64, why: Why) -> Result<State, Fault> {
    if let Some(job) = job_or_bury(tx, seq)? {
        end_unrun(tx, &job, why)?;
    }
    let ended = Place::by_seq(tx, seq)?.and_then(|place| place.stage.ended());
    Ok(ended.unwrap_or(State::Dead))
}

/// The claim, and what its message has to do if it has none because of its job's end.
fn tell(tx: &Tx<'_>, seq: i64, claim: Claim) -> Result<Opened, Fault> {
    if !matches!(claim, Claim::Ended(_) | Claim::Stale) {
        return Ok(Opened { claim, announce: false, keep: false });
    }
    let (stage, announced, lacks): (Stage, bool, bool) = tx
        .sql(
            "SELECT state, ifnull(away & ?2, 1), ifnull(away & ?3, 0) AND NOT dropped
             AND NOT EXISTS (SELECT 1 FROM payload p WHERE p.seq = job.seq) FROM job WHERE seq = ?1",
        )?
        .query_row(params![seq, ANNOUNCED, UNRUN], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let keep = matches!(claim, Claim::Ended(_)) && lacks;
    Ok(Opened { claim, announce: stage.ended().is_some() && !announced, keep })
}
