//! The lease transaction: what is due comes back, what is over is ended, and the rest is leased by turns.

use std::collections::HashMap;

use rusqlite::{OptionalExtension, params};

use super::away::SPARED;
use super::damage::{bury, job_or_bury};
use super::file::Fault;
use super::hot::Hot;
use super::lanes::{Candidate, Lanes, Names};
use super::ready::{Batches, Next, next_of_lane};
use super::row::Place;
use super::settle::{Spot, Why, end_unrun};
use super::stage::Stage;
use super::turned::turned;
use super::tx::Tx;
use crate::broker::LeaseId;
use crate::broker::backend::{Head, LEASE_BYTES, Terms, Want};
use crate::broker::rounds::Rounds;
use crate::job::Lane;

/// How many jobs one transaction promotes, recovers or ends beside leasing: about a millisecond's work.
pub(super) const CHORES: u32 = 200;
/// How many jobs one transaction leases at most.
const AT_ONCE: u32 = 1_000;
/// How many lanes a caller is told of.
const LANES: usize = 1_000;

/// What a lease transaction gave.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub(super) jobs: Vec<LeasedRow>,
    pub(super) lanes_seen: Vec<Lane>,
    /// Whether jobs were left behind because the answer holds enough bytes.
    full: bool,
    /// Whether others wrote to the file since this subscription's last lease.
    pub(super) contended: bool,
    /// The file's count of what has turned; see `turned.rs`.
    pub(super) turned: i64,
}

/// One job that was leased.
#[derive(Debug)]
pub(super) struct LeasedRow {
    pub(super) spot: Spot,
    pub(super) lease: LeaseId,
    /// When the lease runs out.
    pub(super) until: i64,
    pub(super) deaths: u32,
    pub(super) head: Head,
    pub(super) payload: Vec<u8>,
}

/// What a subscription remembers between its leases.
#[derive(Debug)]
pub(super) struct Memory {
    rounds: Rounds,
    version: i64,
    lanes: Lanes,
}

/// What a subscription remembered when a lease began.
#[derive(Debug)]
pub(super) struct Mark {
    rounds: Rounds,
    version: i64,
}

impl Memory {
    pub(super) fn new(names: Names) -> Self {
        Self { rounds: Rounds::default(), version: 0, lanes: Lanes::new(names) }
    }

    /// A lease begins. It has a mark already where its transaction came to nothing: then what it remembered is forgotten.
    pub(super) fn begin(&mut self, mark: &mut Option<Mark>) {
        match mark {
            None => *mark = Some(Mark { rounds: self.rounds.clone(), version: self.version }),
            Some(Mark { rounds, version }) => {
                self.rounds.clone_from(rounds);
                self.version = *version;
                self.lanes.spoil();
            }
        }
    }
}

/// Leases up to `want.total` jobs for `terms.worker`. A transaction that comes to nothing is left on the way.
pub(super) fn lease(tx: &mut Tx<'_>, terms: &Terms, want: &Want, memory: &mut Memory) -> Result<Taken, Fault> {
    promote_due(tx)?;
    crate::crash_point!("sqlite.lease.after_promote");
    recover_expired(tx)?;
    crate::crash_point!("sqlite.lease.after_recover");
    let mut ended = expire_overdue(tx, CHORES)?;
    let mut taken = Taken::default();
    if tx.is_in_vain() {
        return Ok(taken);
    }
    let version: i64 = tx.sql("PRAGMA data_version")?.query_row([], |row| row.get(0))?;
    taken.contended = version != std::mem::replace(&mut memory.version, version);
    let mut had: HashMap<i64, u32> = HashMap::new();
    let (total, Memory { rounds, lanes, .. }) = (want.total.min(AT_ONCE), memory);
    if tx.made_ready {
        lanes.spoil();
    }
    loop {
        tx.flush()?;
        let is_new = lanes.look(tx.conn, terms)?;
        let open = lanes.open(want, &had);
        let left = total.saturating_sub(u32::try_from(taken.jobs.len()).unwrap_or(u32::MAX));
        if !is_new && open.iter().map(|open| u64::from(open.room)).sum::<u64>() < u64::from(left) {
            lanes.spoil();
            continue;
        }
        let turns = rounds.take(&terms.queues, &open, left);
        let seen = lanes.list.iter().filter(|lane| !lane.paused && lane.ready > 0).map(|lane| lane.lane.clone());
        taken.lanes_seen = seen.take(LANES).collect();
        let over = take(tx, terms, (&mut lanes.list, &turns), &mut taken, &mut had)?;
        ended += over;
        let is_done = is_new || !taken.jobs.is_empty();
        if (over == 0 && is_done) || ended >= CHORES || taken.full || tx.is_in_vain() {
            break;
        }
        lanes.spoil();
    }
    taken.turned = turned(tx.conn)?;
    crate::crash_point!("sqlite.lease.after_take");
    Ok(taken)
}

/// Delayed jobs whose time has come wait in their lane as of that time; released ones where they stood before.
fn promote_due(tx: &mut Tx<'_>) -> Result<(), Fault> {
    let due: Vec<(i64, i64, Option<i64>)> = tx
        .sql(
            "SELECT j.seq, j.lane, j.batch FROM lane l CROSS JOIN job j
             ON j.lane = l.id AND j.state = 1 AND j.ready_at <= ?1 WHERE l.delayed > 0 LIMIT ?2",
        )?
        .query_map([tx.now, i64::from(CHORES)], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<rusqlite::Result<_>>()?;
    for (seq, lane, batch) in due {
        tx.sql(
            "UPDATE job SET state = 0, ready_at = ifnull(since, ready_at), since = NULL, hold = NULL WHERE seq = ?1",
        )?
        .execute([seq])?;
        tx.moved(lane, batch, Some(Stage::Delayed), Some(Stage::Ready));
    }
    Ok(())
}

/// Up to [`CHORES`] leases that ran out: their jobs wait again where they stood, with one death more. How many.
pub(super) fn recover_expired(tx: &mut Tx<'_>) -> Result<u32, Fault> {
    let lost: Vec<i64> = tx
        .sql("SELECT seq FROM job WHERE state = 2 AND expires_at <= ?1 ORDER BY expires_at LIMIT ?2")?
        .query_map([tx.now, i64::from(CHORES)], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let count = u32::try_from(lost.len()).unwrap_or(u32::MAX);
    for seq in lost {
        give_back(tx, seq)?;
        if tx.is_in_vain() {
            break;
        }
    }
    Ok(count)
}

/// Takes a running job from its worker, as if that had died.
pub(super) fn give_back(tx: &mut Tx<'_>, seq: i64) -> Result<(), Fault> {
    let Some(job) = job_or_bury(tx, seq)? else { return Ok(()) };
    if job.is_cancelled() {
        tx.sql("UPDATE job SET deaths = deaths + 1 WHERE seq = ?1")?.execute([seq])?;
        return end_unrun(tx, &job, Why::Cancelled);
    }
    let (stage, at, since) = match job.away {
        None => (Stage::Ready, job.ready_at, None),
        Some(_) => (Stage::Away, tx.now, Some(tx.now)),
    };
    tx.sql(
        "UPDATE job SET state = ?2, ready_at = ?3, since = ?4, deaths = deaths + 1, lease = NULL, worker = NULL,
         leased_at = NULL, expires_at = NULL WHERE seq = ?1",
    )?
    .execute(params![seq, stage.code(), at, since])?;
    tx.moved(job.lane, job.batch, Some(Stage::Running), Some(stage));
    (tx.turns, tx.is_grave) = (true, true);
    Ok(())
}

/// Ends up to `limit` waiting jobs whose deadline has passed, and says how many.
pub(super) fn expire_overdue(tx: &mut Tx<'_>, limit: u32) -> Result<u32, Fault> {
    let over: Vec<i64> = tx
        .sql("SELECT seq FROM job WHERE state < 2 AND deadline <= ?1 ORDER BY deadline LIMIT ?2")?
        .query_map([tx.now, i64::from(limit)], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let count = u32::try_from(over.len()).unwrap_or(u32::MAX);
    for seq in over {
        if let Some(job) = job_or_bury(tx, seq)? {
            end_unrun(tx, &job, Why::Expired)?;
        }
        if tx.is_in_vain() {
            break;
        }
    }
    Ok(count)
}

/// Leases what the turns say, in their order, until the answer holds [`LEASE_BYTES`]; jobs found to be over are ended
/// instead, and counted in the answer.
fn take(
    tx: &mut Tx<'_>,
    terms: &Terms,
    (lanes, turns): (&mut [Candidate], &[usize]),
    taken: &mut Taken,
    had: &mut HashMap<i64, u32>,
) -> Result<u32, Fault> {
    let mut counts: HashMap<usize, u32> = HashMap::new();
    for &place in turns {
        *counts.entry(place).or_default() += 1;
    }
    let (mut by_lane, mut batches) = (HashMap::new(), Batches::default());
    for (place, count) in counts {
        let Candidate { id, lane, ready, .. } = &mut lanes[place];
        let next = next_of_lane(tx, (*id, lane), count, &mut batches)?;
        *ready = if next.len() < count as usize { 0 } else { ready.saturating_sub(count) };
        by_lane.insert(place, next.into_iter());
    }
    let (mut over, mut bytes) = (0, taken.jobs.iter().map(|job| job.payload.len()).sum::<usize>());
    for &place in turns {
        if tx.is_in_vain() {
            break;
        }
        let Some((seq, job)) = by_lane.get_mut(&place).and_then(Iterator::next) else { continue };
        let Some((job, payload)) = whole(tx, seq, job)? else {
            over += 1;
            continue;
        };
        bytes += payload.len();
        if bytes > LEASE_BYTES && !taken.jobs.is_empty() {
            taken.full = true;
            break;
        }
        taken.jobs.push(grant(tx, terms, &lanes[place], (job, payload))?);
        *had.entry(lanes[place].id).or_default() += 1;
    }
    Ok(over)
}

/// The job and its payload, if it may run: what is over is ended instead, and so is what nobody can read.
fn whole(tx: &mut Tx<'_>, seq: i64, job: Option<Next>) -> Result<Option<(Next, Vec<u8>)>, Fault> {
    let Some(mut job) = job else {
        bury(tx, seq)?;
        return Ok(None);
    };
    let over = if job.head.deadline.as_millis() <= tx.now {
        Some(Why::Expired)
    } else {
        job.cancelled.then_some(Why::Cancelled)
    };
    if let Some(why) = over {
        if let Some(job) = job_or_bury(tx, seq)? {
            end_unrun(tx, &job, why)?;
        }
        return Ok(None);
    }
    let payload = match job.payload.take() {
        Some(payload) => Some(payload),
        None => payload(tx, seq)?,
    };
    if payload.is_none() {
        bury(tx, seq)?;
    }
    Ok(payload.map(|payload| (job, payload)))
}

/// The encoded job; `None` where it is missing or is no bytes.
fn payload(tx: &Tx<'_>, seq: i64) -> Result<Option<Vec<u8>>, Fault> {
    let mut statement = tx.sql("SELECT bytes FROM payload WHERE seq = ?1 AND typeof(bytes) = 'blob'")?;
    Ok(statement.query_row([seq], |row| row.get(0)).optional()?)
}

fn grant(
    tx: &mut Tx<'_>,
    terms: &Terms,
    lane: &Candidate,
    (job, payload): (Next, Vec<u8>),
) -> Result<LeasedRow, Fault> {
    let lease = LeaseId::random();
    let length = i64::try_from(terms.lease.as_millis()).unwrap_or(i64::MAX / 2);
    let (now, until) = (tx.now, tx.now.saturating_add(length));
    tx.hot(Hot::Grant)?.execute(params![job.seq, lease.as_bytes(), terms.worker.as_str(), now, until])?;
    tx.moved(lane.id, job.batch, Some(Stage::Ready), Some(Stage::Running));
    // It may take the machine down with it, and that death has to count.
    tx.is_grave |= job.deaths > 0;
    let spot = Spot { seq: job.seq, lane: lane.id, queue: lane.queue, batch: job.batch };
    Ok(LeasedRow { spot, lease, until, deaths: job.deaths, head: job.head, payload })
}

/// The job's answer to a heartbeat: extended when the lease is still its own.
pub(super) fn extend(
    tx: &Tx<'_>,
    seq: i64,
    lease: LeaseId,
    length: i64,
) -> Result<crate::broker::backend::Beat, Fault> {
    use crate::broker::backend::Beat;
    let Some(place) = Place::by_seq(tx, seq)? else { return Ok(Beat::Ended) };
    if place.stage.ended().is_some() {
        return Ok(Beat::Ended);
    }
    if place.stage != Stage::Running || place.lease.as_ref() != Some(lease.as_bytes()) {
        return Ok(Beat::Lost);
    }
    let cancelled: bool = tx
        .sql(
            "UPDATE job SET expires_at = ?2 WHERE seq = ?1 RETURNING cancel OR (epoch = 0 AND NOT ifnull(away & ?3, 0)
             AND ifnull((SELECT b.cancelled FROM batch b WHERE b.id = batch), 0))",
        )?
        .query_row(params![seq, tx.now.saturating_add(length), SPARED], |row| row.get(0))?;
    Ok(if cancelled { Beat::Cancelled } else { Beat::Kept })
}
