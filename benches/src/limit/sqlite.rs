//! The limit on SQLite, by rusqlite: one thread, one connection, WAL, `synchronous = FULL`; what is handed in becomes
//! rows in transactions of a batch each, and a batch is ended and the next one claimed in the same transaction.
//!
//! With the least writes a job is a row, with an index of those that wait, and its result the row of another table. What
//! promptq writes is in `sqlite_rows`.

use std::path::Path;

use anyhow::{Context, ensure};
use rusqlite::{Connection, params};

use super::Contestant;
use super::arguments::{Setting, Writes};
use super::rows::{self, TEXT};
use super::sqlite_rows::Everything;

/// How a transaction changes the file: for each kind of writes one.
pub(super) trait Rows {
    /// Puts so many jobs in.
    fn put(&mut self, conn: &Connection, count: usize) -> rusqlite::Result<()>;
    /// Puts jobs with these payloads in.
    fn put_these(&mut self, conn: &Connection, payloads: &[Vec<u8>]) -> rusqlite::Result<()>;
    /// Ends these.
    fn end(&mut self, conn: &Connection, jobs: &[Claimed]) -> rusqlite::Result<()>;
    /// Claims up to so many.
    fn claim(&mut self, conn: &Connection, count: usize) -> rusqlite::Result<Vec<Claimed>>;
    /// Results there are, and jobs that somebody has.
    fn ended_and_leased(&self, conn: &Connection) -> rusqlite::Result<(i64, i64)>;
}

/// A job in hand.
pub(super) struct Claimed {
    pub(super) seq: i64,
    pub(super) lease: rows::Id,
}

/// A count as SQLite has them.
pub(super) fn int(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// The file, and what is done with it.
pub(super) struct Sqlite {
    conn: Connection,
    rows: Box<dyn Rows>,
    batch: usize,
}

impl Sqlite {
    pub(super) fn open(setting: &Setting) -> anyhow::Result<Self> {
        let path = Path::new(setting.url.trim_start_matches("sqlite://"));
        let rows: Box<dyn Rows> = match setting.writes {
            Writes::Bare => Box::new(Least),
            Writes::Promptq => Box::new(Everything::new(&setting.url)?),
        };
        let conn = Connection::open(path).with_context(|| format!("open {}", path.display()))?;
        // As `common/src/broker/sqlite/file.rs` has it.
        conn.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA mmap_size = 0; PRAGMA temp_store = MEMORY;
             PRAGMA cache_size = -16384; PRAGMA wal_autocheckpoint = 4000; PRAGMA journal_size_limit = 67108864; PRAGMA locking_mode = NORMAL;",
        )?;
        conn.set_prepared_statement_cache_capacity(64);
        if setting.writes == Writes::Bare {
            conn.execute_batch(LEAST)?;
        }
        Ok(Self { conn, rows, batch: setting.batch })
    }

    /// All of it in one transaction.
    pub(super) fn transact<T>(
        &mut self,
        work: impl FnOnce(&mut dyn Rows, &Connection) -> rusqlite::Result<T>,
    ) -> anyhow::Result<T> {
        self.conn.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        let done = work(&mut *self.rows, &self.conn)?;
        self.conn.prepare_cached("COMMIT")?.execute([])?;
        Ok(done)
    }
}

impl Contestant for Sqlite {
    fn enqueue(&mut self, mut jobs: usize) -> anyhow::Result<()> {
        while jobs > 0 {
            let count = jobs.min(self.batch);
            self.transact(|rows, conn| rows.put(conn, count))?;
            jobs -= count;
        }
        Ok(())
    }

    fn work(&mut self, mut jobs: usize) -> anyhow::Result<()> {
        let mut claimed = Vec::new();
        while jobs > 0 || !claimed.is_empty() {
            let count = jobs.min(self.batch);
            let next = self.transact(|rows, conn| {
                rows.end(conn, &claimed)?;
                if count > 0 { rows.claim(conn, count) } else { Ok(Vec::new()) }
            })?;
            ensure!(next.len() == count, "{jobs} jobs are not there");
            jobs -= next.len();
            claimed = next;
        }
        Ok(())
    }

    /// What both halves have for the one writer goes into one transaction.
    fn live(&mut self, jobs: usize) -> anyhow::Result<()> {
        let (mut to_put, mut to_take, mut claimed) = (jobs, jobs, Vec::new());
        while to_take > 0 || !claimed.is_empty() {
            let (puts, takes) = (to_put.min(self.batch), to_take.min(self.batch));
            let next = self.transact(|rows, conn| {
                rows.put(conn, puts)?;
                rows.end(conn, &claimed)?;
                rows.claim(conn, takes)
            })?;
            ensure!(next.len() == takes, "{to_take} jobs are not there");
            to_put -= puts;
            to_take -= next.len();
            claimed = next;
        }
        Ok(())
    }

    fn settled(&mut self) -> anyhow::Result<usize> {
        let (ended, leased) = self.rows.ended_and_leased(&self.conn)?;
        ensure!(leased == 0, "{leased} leases have not ended");
        Ok(usize::try_from(ended)?)
    }
}

/// The least there is.
struct Least;

const LEAST: &str = "
CREATE TABLE IF NOT EXISTS job (seq INTEGER PRIMARY KEY, state INTEGER NOT NULL DEFAULT 0, until INTEGER, body BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS job_ready ON job (seq) WHERE state = 0;
CREATE TABLE IF NOT EXISTS result (seq INTEGER PRIMARY KEY, job INTEGER NOT NULL, body BLOB NOT NULL);";

impl Rows for Least {
    fn put(&mut self, conn: &Connection, count: usize) -> rusqlite::Result<()> {
        let mut insert = conn.prepare_cached("INSERT INTO job (body) VALUES (?1)")?;
        (0..count).try_for_each(|_| insert.execute([[b'p'; TEXT].as_slice()]).map(drop))
    }

    fn put_these(&mut self, conn: &Connection, payloads: &[Vec<u8>]) -> rusqlite::Result<()> {
        let mut insert = conn.prepare_cached("INSERT INTO job (body) VALUES (?1)")?;
        payloads.iter().try_for_each(|payload| insert.execute([payload]).map(drop))
    }

    fn end(&mut self, conn: &Connection, jobs: &[Claimed]) -> rusqlite::Result<()> {
        let mut insert = conn.prepare_cached("INSERT INTO result (job, body) VALUES (?1, ?2)")?;
        let mut delete = conn.prepare_cached("DELETE FROM job WHERE seq = ?1")?;
        for job in jobs {
            insert.execute(params![job.seq, [b'r'; TEXT].as_slice()])?;
            delete.execute([job.seq])?;
        }
        Ok(())
    }

    fn claim(&mut self, conn: &Connection, count: usize) -> rusqlite::Result<Vec<Claimed>> {
        let mut next = conn.prepare_cached("SELECT seq, body FROM job WHERE state = 0 ORDER BY seq LIMIT ?1")?;
        let mut lease = conn.prepare_cached("UPDATE job SET state = 1, until = ?2 WHERE seq = ?1")?;
        let mut claimed = Vec::with_capacity(count);
        let mut rows = next.query([int(count)])?;
        while let Some(row) = rows.next()? {
            row.get_ref(1)?.as_blob()?;
            claimed.push(Claimed { seq: row.get(0)?, lease: rows::Id::default() });
        }
        let until = rows::now() + rows::LEASE;
        for job in &claimed {
            lease.execute([job.seq, until])?;
        }
        Ok(claimed)
    }

    fn ended_and_leased(&self, conn: &Connection) -> rusqlite::Result<(i64, i64)> {
        let count = |sql: &str| conn.query_row(sql, [], |row| row.get(0));
        Ok((count("SELECT count(*) FROM result")?, count("SELECT count(*) FROM job WHERE state = 1")?))
    }
}
