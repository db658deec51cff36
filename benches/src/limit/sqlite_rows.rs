//! All that promptq writes of a job in SQLite, in the plainest form, into a file that promptq itself has laid out: the
//! same rows, with whatever indexes they have there.

// - enqueue: a row of `job`, one of `payload`; a transaction: the lane's counts, the batch's;
// - lease: the job's row becomes running, with lease id, worker, and since and until when; the counts;
// - end: a row of `record`, which its readers' cursors run over; the job's row succeeded, with the record's number and
//   without the lease, which has to be the one it was given; the payload's row goes; the counts, sums and bytes.
//
// Not done, being no writes: looking whether an id was used or a job or its queue was cancelled or paused, claims, what
// is due.

use anyhow::Context;
use promptq_common::broker::{Access, Broker};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::rows::{self, BATCH, Id, LEASE, Stored, WORKER};
use super::sqlite::{Claimed, Rows, int};

/// A job that succeeded, as `schema.sql` numbers them.
const SUCCEEDED: i64 = 3;
/// A week, in milliseconds: how long a job waits at most.
const DEADLINE: i64 = 7 * 86_400_000;

/// The rows that a file of promptq's gets.
pub(super) struct Everything {
    stored: Stored,
    /// The rows of queue, lane and batch.
    place: Option<(i64, i64, i64)>,
}

impl Everything {
    /// Has promptq make the file.
    pub(super) fn new(url: &str) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        drop(runtime.block_on(Broker::connect(&Access::new(url)?)).context("have promptq make the file")?);
        Ok(Self { stored: Stored::new()?, place: None })
    }

    /// The rows of queue, lane and batch, made when missing.
    fn place(&mut self, conn: &Connection) -> rusqlite::Result<(i64, i64, i64)> {
        if let Some(place) = self.place {
            return Ok(place);
        }
        let found = |sql: &str| conn.query_row(sql, [], |row| row.get::<_, i64>(0)).optional();
        if found("SELECT id FROM queue WHERE name = 'limit'")?.is_none() {
            conn.execute("INSERT INTO queue (name) VALUES ('limit')", [])?;
            conn.execute(
                "INSERT INTO lane (queue, band, model) SELECT id, 1, 'mock' FROM queue WHERE name = 'limit'",
                [],
            )?;
            conn.execute(
                "INSERT INTO batch (name, queue, created_at) SELECT ?1, id, ?2 FROM queue WHERE name = 'limit'",
                params![BATCH, rows::now()],
            )?;
        }
        let place = conn.query_row(
            "SELECT q.id, l.id, b.id FROM queue q JOIN lane l ON l.queue = q.id JOIN batch b ON b.queue = q.id
             WHERE q.name = 'limit'",
            [],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )?;
        self.place = Some(place);
        Ok(place)
    }

    /// Puts jobs with these payloads in.
    fn put_all<'a>(&mut self, conn: &Connection, payloads: impl Iterator<Item = &'a [u8]>) -> rusqlite::Result<()> {
        let (now, (_, lane, batch)) = (rows::now(), self.place(conn)?);
        let mut insert = conn.prepare_cached(
            "INSERT INTO job (id, lane, state, ready_at, deadline, created_at, fingerprint, priority, keyed, batch, row)
             VALUES (?1, ?2, 0, ?3, ?4, ?3, ?5, 5, 0, ?6, ?7)",
        )?;
        let mut keep = conn.prepare_cached("INSERT INTO payload (seq, bytes) VALUES (?1, ?2)")?;
        let mut count = 0;
        for payload in payloads {
            let id = rows::next_id();
            let seq = insert.insert(params![id, lane, now, now + DEADLINE, Id::default(), batch, 100_000])?;
            keep.execute(params![seq, payload])?;
            count += 1;
        }
        self.count_put(conn, count)
    }

    /// Counts jobs that were put in.
    fn count_put(&mut self, conn: &Connection, count: usize) -> rusqlite::Result<()> {
        let (_, lane, batch) = self.place(conn)?;
        conn.prepare_cached("UPDATE lane SET ready = ready + ?2, jobs = jobs + ?2 WHERE id = ?1")?
            .execute(params![lane, int(count)])?;
        conn.prepare_cached(
            "UPDATE batch SET total = total + ?2, queued = queued + ?2, jobs = jobs + ?2 WHERE id = ?1",
        )?
        .execute(params![batch, int(count)])?;
        Ok(())
    }

    /// Counts jobs that have ended, the newest with this record, and the bytes of each record.
    fn count_ended(
        conn: &Connection,
        (lane, batch): (i64, i64),
        count: i64,
        (newest, bytes): (i64, i64),
    ) -> rusqlite::Result<()> {
        conn.prepare_cached("UPDATE lane SET running = running - ?2 WHERE id = ?1")?.execute([lane, count])?;
        conn.prepare_cached(
            "UPDATE batch SET running = running - ?2, succeeded = succeeded + ?2, input_tokens = input_tokens + 70 * ?2,
             output_tokens = output_tokens + 60 * ?2, cost = cost + 1250 * ?2, cost_known = cost_known + ?2, last = ?3
             WHERE id = ?1",
        )?
        .execute([batch, count, newest])?;
        conn.prepare_cached("UPDATE total SET value = value + ?1 WHERE name = 'record_bytes'")?
            .execute([bytes * count])?;
        Ok(())
    }
}

impl Rows for Everything {
    fn put(&mut self, conn: &Connection, count: usize) -> rusqlite::Result<()> {
        let payload = std::mem::take(&mut self.stored.payload);
        let done = self.put_all(conn, std::iter::repeat_n(payload.as_slice(), count));
        self.stored.payload = payload;
        done
    }

    fn put_these(&mut self, conn: &Connection, payloads: &[Vec<u8>]) -> rusqlite::Result<()> {
        self.put_all(conn, payloads.iter().map(Vec::as_slice))
    }

    fn end(&mut self, conn: &Connection, jobs: &[Claimed]) -> rusqlite::Result<()> {
        let (now, (queue, lane, batch)) = (rows::now(), self.place(conn)?);
        let (bytes, count) = (int(self.stored.record.len()), int(jobs.len()));
        let mut record = conn.prepare_cached(
            "INSERT INTO record (job, end, queue, batch, ended_at, bytes, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?;
        let mut end = conn.prepare_cached(
            "UPDATE job SET state = ?2, record = ?3, attempts = 1, settled = lease, lease = NULL, worker = NULL,
             leased_at = NULL, expires_at = NULL WHERE seq = ?1 AND state = 2 AND lease = ?4",
        )?;
        let mut newest = 0;
        for job in jobs {
            newest =
                record.insert(params![job.seq, SUCCEEDED, queue, batch, now, bytes, self.stored.record.as_slice()])?;
            let ended = end.execute(params![job.seq, SUCCEEDED, newest, job.lease])?;
            if ended != 1 {
                return Err(rusqlite::Error::StatementChangedRows(ended));
            }
        }
        let mut spent = conn.prepare_cached("DELETE FROM payload WHERE seq BETWEEN ?1 AND ?2")?;
        for run in jobs.chunk_by(|one, next| one.seq + 1 == next.seq) {
            spent.execute([run[0].seq, run[run.len() - 1].seq])?;
        }
        if count > 0 {
            Self::count_ended(conn, (lane, batch), count, (newest, bytes))?;
        }
        Ok(())
    }

    fn claim(&mut self, conn: &Connection, count: usize) -> rusqlite::Result<Vec<Claimed>> {
        let (now, (_, lane, batch)) = (rows::now(), self.place(conn)?);
        let mut claimed = Vec::with_capacity(count);
        let mut next = conn.prepare_cached(
            "SELECT j.seq, p.bytes FROM job j JOIN payload p ON p.seq = j.seq WHERE j.lane = ?1 AND j.state = 0
             ORDER BY j.ready_at, j.seq LIMIT ?2",
        )?;
        let mut found = next.query(params![lane, int(count)])?;
        while let Some(row) = found.next()? {
            row.get_ref(1)?.as_blob()?;
            claimed.push(Claimed { seq: row.get(0)?, lease: rand::random() });
        }
        let mut grant = conn.prepare_cached(
            "UPDATE job SET state = 2, lease = ?2, worker = ?3, leased_at = ?4, expires_at = ?5 WHERE seq = ?1",
        )?;
        for job in &claimed {
            grant.execute(params![job.seq, job.lease, WORKER, now, now + LEASE])?;
        }
        conn.prepare_cached("UPDATE lane SET ready = ready - ?2, running = running + ?2 WHERE id = ?1")?
            .execute(params![lane, int(claimed.len())])?;
        conn.prepare_cached("UPDATE batch SET queued = queued - ?2, running = running + ?2 WHERE id = ?1")?
            .execute(params![batch, int(claimed.len())])?;
        Ok(claimed)
    }

    fn ended_and_leased(&self, conn: &Connection) -> rusqlite::Result<(i64, i64)> {
        let count = |sql: &str| conn.query_row(sql, [], |row| row.get(0));
        Ok((
            count("SELECT count(*) FROM job j JOIN record r ON r.seq = j.record WHERE j.state = 3")?,
            count("SELECT count(*) FROM job WHERE state = 2")?,
        ))
    }
}
