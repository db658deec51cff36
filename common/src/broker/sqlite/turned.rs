//! Whether anything has happened to running jobs since a lease was granted that its holder has to hear of. Nearly always
//! nothing has, and then what the lease said answers the claim. Who turns what is counted by `tx.rs`.

use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rusqlite::Connection;
use tokio::time::Instant;

use super::file;
use crate::error::Result;

/// For how long the file's count is taken as read: what another process does is met by a claim this much later, as if
/// the claim had been asked for so much earlier. What this process does is met at once.
const FRESH: Duration = Duration::from_micros(250);

/// The count of what has turned, and how to read it.
#[derive(Debug)]
pub(super) struct Turned {
    /// The count as of this process's last commit that changed it.
    ours: Arc<AtomicI64>,
    file: Mutex<InFile>,
}

#[derive(Debug)]
struct InFile {
    conn: Connection,
    /// What was read last, and when that was asked for.
    read: Option<(i64, Instant)>,
}

impl Turned {
    /// The count of the file at `path`, of which this process's writer tells through `ours`.
    pub(super) fn new(path: &Path, ours: Arc<AtomicI64>) -> Result<Self> {
        Ok(Self { ours, file: Mutex::new(InFile { conn: file::open_reader(path)?, read: None }) })
    }

    /// Whether the count is still what it was. False where that cannot be told.
    pub(super) fn is_still(&self, count: i64) -> bool {
        if self.ours.load(Ordering::Acquire) > count {
            return false;
        }
        let Ok(mut file) = self.file.lock() else { return false };
        let known = file.read.filter(|(read, at)| *read >= count && at.elapsed() < FRESH);
        if let Some((read, _)) = known {
            return read == count;
        }
        let now = Instant::now();
        match turned(&file.conn) {
            Ok(read) => {
                file.read = Some((read, now));
                read == count
            }
            Err(_) => false,
        }
    }
}

/// The file's count.
pub(super) fn turned(conn: &Connection) -> rusqlite::Result<i64> {
    conn.prepare_cached("SELECT value FROM total WHERE name = 'turned'")?.query_row([], |row| row.get(0))
}
