//! Records on their way into the file: several go in with one statement, which costs more than a row does. What a record
//! says is `settle.rs`.

use super::hot::{GATHERED, Hot};
use super::tx::Tx;

/// A row of `record`.
#[derive(Debug)]
pub(super) struct RecordRow {
    pub(super) job: i64,
    pub(super) end: i64,
    pub(super) queue: i64,
    pub(super) batch: Option<i64>,
    pub(super) ended_at: i64,
    pub(super) body: Vec<u8>,
}

/// Rows that are numbered and not in the file yet.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    /// The number of the next row, once it was asked for.
    next: Option<i64>,
    rows: Vec<RecordRow>,
}

impl Tx<'_> {
    /// The number that the next record gets.
    pub(super) fn next_record(&mut self) -> rusqlite::Result<i64> {
        if let Some(next) = self.gathered.next {
            return Ok(next);
        }
        let newest: i64 = self
            .sql(
                "SELECT max(ifnull((SELECT max(seq) FROM record), 0),
                 ifnull((SELECT max(seq) FROM sqlite_sequence WHERE name = 'record'), 0))",
            )?
            .query_row([], |row| row.get(0))?;
        self.gathered.next = Some(newest + 1);
        Ok(newest + 1)
    }

    /// Takes a record in, under the number that [`Tx::next_record`] said.
    pub(super) fn gather(&mut self, row: RecordRow) -> rusqlite::Result<()> {
        let number = self.next_record()?;
        self.gathered.next = Some(number + 1);
        self.gathered.rows.push(row);
        if self.gathered.rows.len() == GATHERED { self.write_records() } else { Ok(()) }
    }

    /// Writes what was gathered: before anything reads records, and before the commit.
    pub(super) fn write_records(&mut self) -> rusqlite::Result<()> {
        let rows = std::mem::take(&mut self.gathered.rows);
        let Some(next) = self.gathered.next else { return Ok(()) };
        let first = next - i64::try_from(rows.len()).unwrap_or_default();
        let at_once = if rows.len() == GATHERED { GATHERED } else { 1 };
        for (rows, first) in rows.chunks(at_once).zip((first..).step_by(at_once)) {
            let statement = self.hot(if at_once == 1 { Hot::Record } else { Hot::Records })?;
            let mut place = 0;
            let mut bind = |value: &dyn rusqlite::ToSql| {
                place += 1;
                statement.raw_bind_parameter(place, value)
            };
            for (row, seq) in rows.iter().zip(first..) {
                let RecordRow { job, end, queue, batch, ended_at, body } = row;
                let bytes = i64::try_from(body.len()).unwrap_or(i64::MAX);
                bind(&seq)?;
                bind(job)?;
                bind(end)?;
                bind(queue)?;
                bind(batch)?;
                bind(ended_at)?;
                bind(&bytes)?;
                bind(body)?;
            }
            statement.raw_execute()?;
        }
        Ok(())
    }
}
