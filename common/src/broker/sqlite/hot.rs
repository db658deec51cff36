//! The statements that every job meets. A transaction takes each from the connection's cache once, however many jobs it
//! moves. What they mean is `enqueue.rs`, `lease.rs`, `settle.rs`.

use rusqlite::CachedStatement;

use super::tx::Tx;

/// A statement that runs for every job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hot {
    /// Whether an id is in the file.
    Used,
    /// Whether an id was, before retention.
    Past,
    /// A new job; nothing where its id is in the file.
    Job,
    /// Its payload.
    Payload,
    /// So many payloads as [`GATHERED`] says.
    Payloads,
    /// A lease on a job that waits.
    Grant,
    /// A record.
    Record,
    /// So many as [`GATHERED`] says.
    Records,
    /// The end of a job that runs under a lease and has no record.
    End,
    /// The payloads of successes, a run of them.
    Spent,
}

/// How many they are.
pub(super) const HOT: usize = 10;
/// How many payloads or records go in with one statement.
pub(super) const GATHERED: usize = 8;

/// What a job's end sets, whoever ends it.
macro_rules! end_of_job {
    ($tail:literal) => {
        concat!(
            "UPDATE job SET state = ?2, record = ?3, attempts = ?4, code = ?5, class = ?6, ",
            "settled = ifnull(?7, settled), lease = NULL, worker = NULL, leased_at = NULL, expires_at = NULL, ",
            "cancel = 0, dropped = 0, hold = NULL, since = NULL, history = NULL, away = (away & ?8) | ?9 ",
            $tail
        )
    };
}
pub(super) use end_of_job;

/// Records, in the order of their columns.
macro_rules! records {
    ($rows:literal) => {
        concat!("INSERT INTO record (seq, job, end, queue, batch, ended_at, bytes, body) VALUES ", $rows)
    };
}

impl Hot {
    #[cfg(test)]
    pub(super) const ALL: [Self; HOT] = [
        Self::Used,
        Self::Past,
        Self::Job,
        Self::Payload,
        Self::Payloads,
        Self::Grant,
        Self::Record,
        Self::Records,
        Self::End,
        Self::Spent,
    ];

    pub(super) fn sql(self) -> &'static str {
        match self {
            Self::Used => "SELECT state, fingerprint, attempts, hold, deadline, ready_at FROM job WHERE id = ?1",
            Self::Past => "SELECT state, fingerprint FROM past WHERE id = ?1",
            Self::Job => {
                "INSERT INTO job (id, lane, state, ready_at, deadline, created_at, fingerprint, priority, keyed, batch,
                 row, epoch, attempts, not_before, custom_id, tenant, tags, history, away, since) VALUES
                 (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20)
                 ON CONFLICT (id) DO NOTHING"
            }
            Self::Payload => "INSERT INTO payload (seq, bytes) VALUES (?1, ?2)",
            Self::Payloads => {
                "INSERT INTO payload (seq, bytes) VALUES (?, ?), (?, ?), (?, ?), (?, ?), (?, ?), (?, ?), (?, ?), (?, ?)"
            }
            Self::Grant => {
                "UPDATE job SET state = 2, lease = ?2, worker = ?3, leased_at = ?4, expires_at = ?5, hold = NULL
                 WHERE seq = ?1"
            }
            Self::Record => records!("(?, ?, ?, ?, ?, ?, ?, ?)"),
            Self::Records => records!(
                "(?, ?, ?, ?, ?, ?, ?, ?), (?, ?, ?, ?, ?, ?, ?, ?), (?, ?, ?, ?, ?, ?, ?, ?), (?, ?, ?, ?, ?, ?, ?, ?),
                 (?, ?, ?, ?, ?, ?, ?, ?), (?, ?, ?, ?, ?, ?, ?, ?), (?, ?, ?, ?, ?, ?, ?, ?), (?, ?, ?, ?, ?, ?, ?, ?)"
            ),
            Self::End => end_of_job!("WHERE seq = ?1 AND state = 2 AND lease = ?7 AND record IS NULL"),
            Self::Spent => "DELETE FROM payload WHERE seq BETWEEN ?1 AND ?2",
        }
    }
}

/// The statements that a transaction has taken.
#[derive(Default)]
pub(super) struct Taken<'a>([Option<CachedStatement<'a>>; HOT]);

impl<'a> Tx<'a> {
    /// A hot statement, for this transaction's use.
    pub(super) fn hot(&mut self, which: Hot) -> rusqlite::Result<&mut CachedStatement<'a>> {
        let place = &mut self.hot.0[which as usize];
        match place {
            Some(statement) => Ok(statement),
            None => Ok(place.insert(self.conn.prepare_cached(which.sql())?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gathered_goes_in_with_as_many_rows_as_the_constant_says() {
        for (one, many, columns) in [(Hot::Payload, Hot::Payloads, 2), (Hot::Record, Hot::Records, 8)] {
            let values = |which: Hot| which.sql().split_once("VALUES").unwrap().1.matches('?').count();
            assert_eq!((values(one), values(many)), (columns, columns * GATHERED), "{many:?}");
        }
    }
}
