//! One write transaction: its clock, its names, and the counters of lanes and batches that change with it.
//! Counters are gathered in memory and written once, before anything reads them and before the commit.

use std::collections::HashMap;

use rusqlite::{CachedStatement, Connection, OptionalExtension, params};

use super::file::Fault;
use super::gathered::Gathered;
use super::hot::{self, Hot};
use super::stage::Stage;
use crate::broker::backend::Head;
use crate::job::{Band, BatchName, Lane, ModelName, Queue};
use crate::outcome::History;
use crate::time::Timestamp;

/// What the row of a batch says.
#[derive(Clone, Copy, Debug)]
pub(super) struct BatchRow {
    pub(super) id: i64,
    pub(super) queue: i64,
}

/// What changed about a lane: its jobs by stage (ready, delayed, running, dead) and in all.
#[derive(Default)]
struct LaneChange {
    stages: [i64; 4],
    jobs: i64,
}

/// What changed about a batch.
#[derive(Default)]
struct BatchChange {
    stages: [i64; 7],
    total: i64,
    jobs: i64,
    tokens: [i64; 4],
    cost: i64,
    cost_known: i64,
    cost_unknown: i64,
    last: i64,
}

/// Changes by row; mostly the same row again.
#[derive(Default)]
struct Changes<T> {
    rows: Vec<(i64, T)>,
    last: usize,
}

impl<T: Default> Changes<T> {
    fn of(&mut self, row: i64) -> &mut T {
        if self.rows.get(self.last).is_none_or(|(seen, _)| *seen != row) {
            self.last = self.rows.iter().position(|(seen, _)| *seen == row).unwrap_or(self.rows.len());
            if self.last == self.rows.len() {
                self.rows.push((row, T::default()));
            }
        }
        &mut self.rows[self.last].1
    }

    fn take(&mut self) -> Vec<(i64, T)> {
        self.last = 0;
        std::mem::take(&mut self.rows)
    }
}

/// How surely a transaction is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Kept {
    /// Its commit waits for a flush.
    #[default]
    Firmly,
    /// It waits for none: a loss of power may take it back.
    Lightly,
}

/// A write transaction under way.
pub(super) struct Tx<'a> {
    pub(super) conn: &'a Connection,
    /// The statements that every job meets.
    pub(super) hot: hot::Taken<'a>,
    /// When it began; no two transactions of a machine overlap.
    pub(super) now: i64,
    /// Whether a job became ready.
    pub(super) made_ready: bool,
    pub(super) kept: Kept,
    /// Whether something ended: a job, or a lease by its worker's death; or a job was leased that had such a death. That
    /// must be durable whoever does it.
    pub(super) is_grave: bool,
    /// Whether something happened to a running job that its worker has to hear of before it begins.
    pub(super) turns: bool,
    /// The file's count of that, once this transaction has raised it.
    pub(super) turned: Option<i64>,
    lanes: HashMap<Lane, i64>,
    queues: HashMap<Queue, i64>,
    batches: HashMap<BatchName, BatchRow>,
    lane_changes: Changes<LaneChange>,
    batch_changes: Changes<BatchChange>,
    record_bytes: i64,
    /// Records that are not in the file yet.
    pub(super) gathered: Gathered,
    /// Jobs whose payloads are to go.
    pub(super) spent: Vec<i64>,
}

impl<'a> Tx<'a> {
    pub(super) fn new(conn: &'a Connection) -> Self {
        Self {
            conn,
            now: Timestamp::now().as_millis(),
            made_ready: false,
            kept: Kept::default(),
            is_grave: false,
            turns: false,
            turned: None,
            hot: hot::Taken::default(),
            lanes: HashMap::new(),
            queues: HashMap::new(),
            batches: HashMap::new(),
            lane_changes: Changes::default(),
            batch_changes: Changes::default(),
            record_bytes: 0,
            gathered: Gathered::default(),
            spent: Vec::new(),
        }
    }

    /// A statement, compiled once per connection.
    pub(super) fn sql(&self, sql: &str) -> rusqlite::Result<CachedStatement<'a>> {
        self.conn.prepare_cached(sql)
    }

    /// Whether it comes to nothing, and is done anew and firmly: who sees that leaves off.
    pub(super) fn is_in_vain(&self) -> bool {
        self.is_grave && self.kept == Kept::Lightly
    }

    pub(super) fn clock(&self) -> Timestamp {
        Timestamp::from_millis(self.now)
    }

    /// The queue's row, made when missing.
    pub(super) fn queue(&mut self, queue: &Queue) -> rusqlite::Result<i64> {
        if let Some(&id) = self.queues.get(queue) {
            return Ok(id);
        }
        let found = self
            .sql("SELECT id FROM queue WHERE name = ?1")?
            .query_row([queue.as_str()], |row| row.get(0))
            .optional()?;
        let id = match found {
            Some(id) => id,
            None => self.sql("INSERT INTO queue (name) VALUES (?1)")?.insert([queue.as_str()])?,
        };
        self.queues.insert(queue.clone(), id);
        Ok(id)
    }

    /// The lane's row, made when missing.
    pub(super) fn lane(&mut self, lane: &Lane) -> rusqlite::Result<i64> {
        if let Some(&id) = self.lanes.get(lane) {
            return Ok(id);
        }
        let queue = self.queue(&lane.queue)?;
        let (model, band) = (lane.model.as_ref().map(ModelName::as_str), band_code(lane.band));
        let found = self
            .sql("SELECT id FROM lane WHERE queue = ?1 AND band = ?2 AND ifnull(model, x'') = ifnull(?3, x'')")?
            .query_row(params![queue, band, model], |row| row.get(0))
            .optional()?;
        let id = match found {
            Some(id) => id,
            None => self
                .sql("INSERT INTO lane (queue, band, model) VALUES (?1, ?2, ?3)")?
                .insert(params![queue, band, model])?,
        };
        self.lanes.insert(lane.clone(), id);
        Ok(id)
    }

    /// The batch's row, if there is one.
    pub(super) fn batch(&mut self, name: &BatchName) -> rusqlite::Result<Option<BatchRow>> {
        if let Some(&row) = self.batches.get(name) {
            return Ok(Some(row));
        }
        let found = self
            .sql("SELECT id, queue FROM batch WHERE name = ?1")?
            .query_row([name.as_str()], |row| Ok(BatchRow { id: row.get(0)?, queue: row.get(1)? }))
            .optional()?;
        if let Some(row) = found {
            self.batches.insert(name.clone(), row);
        }
        Ok(found)
    }

    /// The batch's row, made for `queue` when missing.
    pub(super) fn batch_or_new(&mut self, name: &BatchName, queue: i64) -> rusqlite::Result<BatchRow> {
        if let Some(row) = self.batch(name)? {
            return Ok(row);
        }
        let id = self.sql("INSERT INTO batch (name, queue, created_at) VALUES (?1, ?2, ?3)")?.insert(params![
            name.as_str(),
            queue,
            self.now
        ])?;
        let row = BatchRow { id, queue };
        self.batches.insert(name.clone(), row);
        Ok(row)
    }

    /// The rows of a job's lane and batch, where this transaction has met both and the batch is of the job's queue.
    pub(super) fn seen_place(&self, head: &Head) -> Option<(i64, Option<i64>)> {
        let lane = *self.lanes.get(&head.lane)?;
        let Some(batch) = &head.batch else { return Some((lane, None)) };
        let (row, queue) = (self.batches.get(batch)?, self.queues.get(&head.lane.queue)?);
        (row.queue == *queue).then_some((lane, Some(row.id)))
    }

    /// Counts a job that goes from one stage to another; `None` is nowhere.
    pub(super) fn moved(&mut self, lane: i64, batch: Option<i64>, from: Option<Stage>, to: Option<Stage>) {
        self.made_ready |= to == Some(Stage::Ready);
        let change = self.lane_changes.of(lane);
        for (stage, by) in [(from, -1), (to, 1)] {
            if let Some(place) = stage.and_then(Stage::lane_place) {
                change.stages[place] += by;
            }
        }
        let Some(batch) = batch else { return };
        let change = self.batch_changes.of(batch);
        for (stage, by) in [(from, -1), (to, 1)] {
            if let Some(stage) = stage {
                change.stages[stage.batch_place()] += by;
            }
        }
    }

    /// Counts a dead job that leaves (-1) or enters (1) the dead set of its lane while its batch counts it as before.
    pub(super) fn dead_set(&mut self, lane: i64, by: i64) {
        self.lane_changes.of(lane).stages[3] += by;
    }

    /// Counts a row of `job` that came (1) or went (-1).
    pub(super) fn rows(&mut self, lane: i64, batch: Option<i64>, by: i64) {
        self.lane_changes.of(lane).jobs += by;
        if let Some(batch) = batch {
            let change = self.batch_changes.of(batch);
            change.jobs += by;
            change.total += by.max(0);
        }
    }

    /// Counts a waiting job that went as though it had never come.
    pub(super) fn unsubmitted(&mut self, lane: i64, batch: Option<i64>, stage: Stage) {
        self.moved(lane, batch, Some(stage), None);
        self.rows(lane, batch, -1);
        if let Some(batch) = batch {
            self.batch_changes.of(batch).total -= 1;
        }
    }

    /// Adds (`sign` 1) or takes back (-1) what an ended job consumed.
    pub(super) fn consumed(&mut self, batch: Option<i64>, history: &History, sign: i64) {
        let Some(batch) = batch else { return };
        let change = self.batch_changes.of(batch);
        let usage = &history.usage;
        let tokens = [usage.input_tokens, usage.output_tokens, usage.cached_tokens, usage.reasoning_tokens];
        for (sum, count) in change.tokens.iter_mut().zip(tokens) {
            *sum += sign * i64::try_from(count).unwrap_or(i64::MAX / 4);
        }
        if let Some(cost) = history.cost {
            change.cost += sign * cost.as_nanos();
            change.cost_known += sign;
        }
        if history.is_cost_unknown() {
            change.cost_unknown += sign;
        }
    }

    /// Counts a stored record of so many bytes, newest of its batch.
    pub(super) fn recorded(&mut self, batch: Option<i64>, seq: i64, bytes: i64) {
        self.record_bytes += bytes;
        self.is_grave = true;
        if let Some(batch) = batch {
            let change = self.batch_changes.of(batch);
            change.last = change.last.max(seq);
        }
    }

    /// Counts a record of so many bytes that was forgotten.
    pub(super) fn unrecorded(&mut self, bytes: i64) {
        self.record_bytes -= bytes;
    }

    /// Forgets the row numbers it has looked up, after rows were deleted that they may name.
    pub(super) fn forget_names(&mut self) {
        self.lanes.clear();
        self.queues.clear();
        self.batches.clear();
    }

    /// Writes the gathered records and counters, and lets go of what is spent.
    pub(super) fn flush(&mut self) -> Result<(), Fault> {
        self.write_records()?;
        self.delete_spent()?;
        for (id, change) in self.lane_changes.take() {
            let [ready, delayed, running, dead] = change.stages;
            self.conn
                .prepare_cached(
                    "UPDATE lane SET ready = ready + ?2, delayed = delayed + ?3, running = running + ?4,
                     dead = dead + ?5, jobs = jobs + ?6 WHERE id = ?1",
                )?
                .execute(params![id, ready, delayed, running, dead, change.jobs])?;
        }
        for (id, change) in self.batch_changes.take() {
            flush_batch(self.conn, id, &change)?;
        }
        if self.record_bytes != 0 {
            self.sql("UPDATE total SET value = value + ?1 WHERE name = 'record_bytes'")?
                .execute([self.record_bytes])?;
            self.record_bytes = 0;
        }
        if std::mem::take(&mut self.turns) {
            let raise = "UPDATE total SET value = value + 1 WHERE name = 'turned' RETURNING value";
            self.turned = Some(self.sql(raise)?.query_row([], |row| row.get(0))?);
        }
        Ok(())
    }
}

impl Tx<'_> {
    /// Run by run: what was leased together mostly ends together.
    fn delete_spent(&mut self) -> rusqlite::Result<()> {
        let mut spent = std::mem::take(&mut self.spent);
        spent.sort_unstable();
        for run in spent.chunk_by(|before, after| after - before <= 1) {
            if let (Some(first), Some(last)) = (run.first(), run.last()) {
                self.hot(Hot::Spent)?.execute([first, last])?;
            }
        }
        Ok(())
    }
}

/// What is taken back as of unknown cost, an earlier build may not have counted.
fn flush_batch(conn: &Connection, id: i64, change: &BatchChange) -> rusqlite::Result<()> {
    let [queued, delayed, running, succeeded, dead, stopped, expired] = change.stages;
    let [input, output, cached, reasoning] = change.tokens;
    conn.prepare_cached(
        "UPDATE batch SET total = total + ?2, queued = queued + ?3, delayed = delayed + ?4, running = running + ?5,
         succeeded = succeeded + ?6, dead = dead + ?7, stopped = stopped + ?8, expired = expired + ?9,
         jobs = jobs + ?10, input_tokens = input_tokens + ?11, output_tokens = output_tokens + ?12,
         cached_tokens = cached_tokens + ?13, reasoning_tokens = reasoning_tokens + ?14, cost = cost + ?15,
         cost_known = cost_known + ?16, cost_unknown = max(0, cost_unknown + ?17), last = max(last, ?18) WHERE id = ?1",
    )?
    .execute(params![
        id,
        change.total,
        queued,
        delayed,
        running,
        succeeded,
        dead,
        stopped,
        expired,
        change.jobs,
        input,
        output,
        cached,
        reasoning,
        change.cost,
        change.cost_known,
        change.cost_unknown,
        change.last
    ])?;
    Ok(())
}

pub(super) fn band_code(band: Band) -> i64 {
    match band {
        Band::High => 0,
        Band::Normal => 1,
        Band::Low => 2,
    }
}

pub(super) fn band_from(code: i64) -> Band {
    match code {
        0 => Band::High,
        1 => Band::Normal,
        _ => Band::Low,
    }
}
