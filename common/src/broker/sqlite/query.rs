//! What is known of jobs and queues, read from one consistent view: known ids, jobs as they are, lists, depths.
//! Batches, results, the dead set, workers and notes are `account.rs`.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, params};

use super::enqueue::{public_state, used};
use super::file::Fault;
use super::row::{JobRow, name, select_jobs};
use super::stage::Stage;
use crate::broker::backend::{Depth, QueueView};
use crate::codec;
use crate::error::{Error, Kind};
use crate::job::{BatchName, Fingerprint, JobId, Queue};
use crate::ledger::{JobFilter, JobView, Known, Page};
use crate::record::{Record, State};
use crate::time::Timestamp;

/// The most due but not yet promoted jobs that a depth counts as ready.
const DUE_COUNTED: i64 = 10_000;
/// How far back one page of a list looks where no index leads it, in jobs.
const WINDOW: i64 = 100_000;

/// What is known of each id.
pub(super) fn known(conn: &Connection, keys: &[(JobId, Fingerprint)]) -> Result<Vec<Known>, Fault> {
    let now = Timestamp::now().as_millis();
    let mut found = Vec::with_capacity(keys.len());
    for (id, fingerprint) in keys {
        found.push(match used(conn, *id, now)? {
            None => Known::New,
            Some((state, print)) if print == fingerprint.0 => Known::Same(state),
            Some((state, _)) => Known::Conflict(state),
        });
    }
    Ok(found)
}

/// Each job as it is now.
pub(super) fn fetch(conn: &Connection, ids: &[JobId]) -> Result<Vec<Option<JobView>>, Fault> {
    let mut statement = conn.prepare_cached(select_jobs!("WHERE j.id = ?1"))?;
    let mut views = Vec::with_capacity(ids.len());
    for id in ids {
        let mut rows = statement.query([id.as_bytes()])?;
        let job = rows.next()?.map(JobRow::read).transpose()?;
        views.push(job.map(|job| view(conn, job)).transpose()?);
    }
    Ok(views)
}

fn view(conn: &Connection, job: JobRow) -> Result<JobView, Fault> {
    let now = Timestamp::now().as_millis();
    let running = job.stage == Stage::Running;
    let seen = job.stage.seen(job.ready_at, now);
    let state = public_state(seen, (job.head.attempts, job.hold.is_some()), job.is_overdue(now));
    let cancel_requested = running && job.is_cancelled();
    let record = job.record.map(|seq| record(conn, seq)).transpose()?.flatten();
    Ok(JobView {
        id: job.head.id,
        queue: job.head.lane.queue,
        model: job.head.lane.model.map(|model| model.as_str().to_owned()),
        priority: job.head.priority.get(),
        batch: job.head.batch,
        row: job.head.row,
        custom_id: job.head.custom_id,
        tenant: job.head.tenant,
        tags: job.head.tags,
        state,
        epoch: job.head.epoch,
        attempts: job.head.attempts,
        deaths: job.deaths,
        created_at: job.head.created_at,
        deadline: job.head.deadline,
        due: (seen == Stage::Delayed && job.ready_at > now).then(|| Timestamp::from_millis(job.ready_at)),
        hold: job.hold.filter(|_| seen == Stage::Delayed).and_then(|hold| hold.parse().ok()),
        worker: job.worker.filter(|_| running),
        leased_at: job.leased_at.filter(|_| running).map(Timestamp::from_millis),
        cancel_requested,
        dropped: job.stage == Stage::Dead && job.dropped,
        paused: job.paused,
        record: record.map(Box::new),
    })
}

fn record(conn: &Connection, seq: i64) -> Result<Option<Record>, Fault> {
    let body: Option<Vec<u8>> =
        conn.prepare_cached("SELECT body FROM record WHERE seq = ?1")?.query_row([seq], |row| row.get(0)).optional()?;
    Ok(body.map(|body| codec::decode_record(&body)).transpose()?)
}

/// The encoded job, while it is kept.
pub(super) fn payload(conn: &Connection, id: JobId) -> Result<Option<Vec<u8>>, Fault> {
    Ok(conn
        .prepare_cached("SELECT p.bytes FROM job j JOIN payload p ON p.seq = j.seq WHERE j.id = ?1")?
        .query_row([id.as_bytes()], |row| row.get(0))
        .optional()?)
}

/// A part of a list: a condition, and the way to the jobs it holds for.
type Arm = (&'static str, Way);

/// How the jobs of an arm are found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Back through all jobs, a window at a time.
    Window,
    /// Down an index that is in order.
    Ordered,
    /// Through the whole of a small index, sorted afterwards.
    Sorted,
}

/// The arms that together hold the jobs of these states; `?3` is now. `away`: some wait at another broker.
fn arms(filter: &JobFilter, away: bool) -> Vec<Arm> {
    let any = if filter.code.is_some() { &State::ALL[5..] } else { &State::ALL[..0] };
    let states = if filter.states.is_empty() { any } else { &filter.states };
    if states.is_empty() {
        return vec![("1", Way::Window)];
    }
    let mut arms: Vec<Arm> = states
        .iter()
        .map(|state| match state {
            State::Scheduled => ("j.state = 1 AND j.hold IS NULL AND j.attempts = 0 AND j.deadline > ?3", Way::Sorted),
            State::Retrying => ("j.state = 1 AND j.hold IS NULL AND j.attempts > 0 AND j.deadline > ?3", Way::Sorted),
            State::Queued => ("j.state = 0 AND j.deadline > ?3", Way::Window),
            State::Running => ("j.state = 2", Way::Sorted),
            State::Succeeded => ("j.state = 3", Way::Window),
            State::Dead => ("j.state > 3 AND j.state = 4", Way::Ordered),
            State::Cancelled => ("j.state > 3 AND j.state = 5", Way::Ordered),
            State::Expired => ("j.state > 3 AND j.state = 6", Way::Ordered),
        })
        .collect();
    if states.contains(&State::Queued) {
        arms.push(("j.state = 1 AND j.hold IS NOT NULL AND j.deadline > ?3", Way::Sorted));
    }
    for state in states.iter().filter(|_| away) {
        arms.extend(away_arm(*state).map(|condition| (condition, Way::Window)));
    }
    if states.contains(&State::Expired) {
        arms.push(("j.state < 2 AND j.deadline <= ?3", Way::Sorted));
    }
    arms
}

/// Which of the jobs that wait at another broker are seen in this state.
fn away_arm(state: State) -> Option<&'static str> {
    match state {
        State::Queued => Some("j.state = -1 AND (j.ready_at <= ?3 OR j.hold IS NOT NULL) AND j.deadline > ?3"),
        State::Scheduled => {
            Some("j.state = -1 AND j.ready_at > ?3 AND j.hold IS NULL AND j.attempts = 0 AND j.deadline > ?3")
        }
        State::Retrying => {
            Some("j.state = -1 AND j.ready_at > ?3 AND j.hold IS NULL AND j.attempts > 0 AND j.deadline > ?3")
        }
        State::Running | State::Succeeded | State::Dead | State::Cancelled | State::Expired => None,
    }
}

/// One page of jobs, newest first, before the job number in `cursor`.
pub(super) fn list(
    conn: &Connection,
    filter: &JobFilter,
    cursor: Option<&str>,
    limit: usize,
) -> Result<Page<JobView>, Fault> {
    let before: i64 = match cursor {
        None => i64::MAX,
        Some(text) => text
            .parse()
            .map_err(|_| Error::new(Kind::Config, "list jobs", format!("{text:?} is not a cursor of this list")))?,
    };
    let newest: i64 = conn.query_row("SELECT ifnull(max(seq), 0) FROM job", [], |row| row.get(0))?;
    let away = conn.prepare_cached("SELECT 1 FROM job WHERE state = -1")?.exists([])?;
    let arms = arms(filter, away);
    let floor = if arms.iter().all(|(_, way)| *way != Way::Window) || filter.batch.is_some() {
        0
    } else {
        before.min(newest.saturating_add(1)).saturating_sub(WINDOW).max(0)
    };
    let mut jobs = Vec::new();
    for arm in arms {
        read_arm(conn, filter, arm, (before, floor, limit), &mut jobs)?;
    }
    jobs.sort_by_key(|job: &JobRow| std::cmp::Reverse(job.seq));
    let full = jobs.len() >= limit;
    jobs.truncate(limit);
    let next = match jobs.last() {
        Some(last) if full => Some(last.seq),
        Some(_) | None => (floor > 0).then_some(floor),
    };
    let items = jobs.into_iter().map(|job| view(conn, job)).collect::<Result<_, _>>()?;
    Ok(Page { items, next: next.map(|seq| seq.to_string()) })
}

fn read_arm(
    conn: &Connection,
    filter: &JobFilter,
    (condition, way): Arm,
    (before, floor, limit): (i64, i64, usize),
    jobs: &mut Vec<JobRow>,
) -> Result<(), Fault> {
    // The planner is led by the literal states, and away from the row numbers by the plus; what comes from outside is
    // bound.
    let seq = if way == Way::Sorted { "+j.seq" } else { "j.seq" };
    let batch = if filter.batch.is_some() { "j.batch = (SELECT id FROM batch WHERE name = ?5)" } else { "?5 IS NULL" };
    let sql = format!(
        "{} {condition} AND {seq} < ?1 AND {seq} >= ?2 AND ?3 > 0 AND {batch}
         AND (?6 IS NULL OR q.name = ?6) AND (?7 IS NULL OR j.code = ?7) ORDER BY {seq} DESC LIMIT ?4",
        select_jobs!("WHERE")
    );
    let mut statement = conn.prepare_cached(&sql)?;
    let mut rows = statement.query(params![
        before,
        floor,
        Timestamp::now().as_millis(),
        i64::try_from(limit).unwrap_or(i64::MAX),
        filter.batch.as_ref().map(BatchName::as_str),
        filter.queue.as_ref().map(Queue::as_str),
        filter.code,
    ])?;
    while let Some(row) = rows.next()? {
        jobs.push(JobRow::read(row)?);
    }
    Ok(())
}

/// Every queue with its depth, by name; `only` narrows to one.
pub(super) fn queues(conn: &Connection, only: Option<&Queue>) -> Result<Vec<QueueView>, Fault> {
    let now = Timestamp::now().as_millis();
    let due = due_counts(conn, now)?;
    let mut statement = conn.prepare_cached(
        "SELECT q.id, q.name, q.paused, ifnull(sum(l.ready), 0), ifnull(sum(l.delayed), 0), ifnull(sum(l.running), 0),
         ifnull(sum(l.dead), 0),
         min((SELECT min(j.ready_at) FROM job j WHERE j.lane = l.id AND j.state = 0)),
         min((SELECT min(j.ready_at) FROM job j WHERE j.lane = l.id AND j.state = 1))
         FROM queue q LEFT JOIN lane l ON l.queue = q.id WHERE ?1 IS NULL OR q.name = ?1 GROUP BY q.id ORDER BY q.name",
    )?;
    let mut rows = statement.query([only.map(Queue::as_str)])?;
    let mut views = Vec::new();
    while let Some(row) = rows.next()? {
        let due = due.get(&row.get(0)?).copied().unwrap_or(0);
        let count = |place| row.get::<_, i64>(place).map(|count| u64::try_from(count).unwrap_or(0));
        let due = due.min(count(4)?);
        let oldest = [row.get::<_, Option<i64>>(7)?, row.get::<_, Option<i64>>(8)?.filter(|at| *at <= now)];
        let depth = Depth {
            ready: count(3)? + due,
            delayed: count(4)? - due,
            delayed_of_all: false,
            running: count(5)?,
            dead: count(6)?,
            oldest_ready: oldest.into_iter().flatten().min().map(Timestamp::from_millis),
        };
        let queue = name(Queue::new(row.get_ref(1)?.as_str().map_err(rusqlite::Error::from)?))?;
        views.push(QueueView { queue, paused: row.get(2)?, depth });
    }
    Ok(views)
}

/// Delayed jobs whose time has come, by queue: without a worker nobody has promoted them, yet they could be leased.
fn due_counts(conn: &Connection, now: i64) -> Result<HashMap<i64, u64>, Fault> {
    let mut statement = conn.prepare_cached(
        "SELECT queue, count(*) FROM (SELECT l.queue AS queue FROM lane l CROSS JOIN job j
         ON j.lane = l.id AND j.state = 1 AND j.ready_at <= ?1 WHERE l.delayed > 0 LIMIT ?2) GROUP BY queue",
    )?;
    let counts = statement
        .query_map([now, DUE_COUNTED], |row| Ok((row.get(0)?, u64::try_from(row.get::<_, i64>(1)?).unwrap_or(0))))?
        .collect::<rusqlite::Result<_>>()?;
    Ok(counts)
}
