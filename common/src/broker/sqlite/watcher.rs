//! A thread that looks for commits of others, so that an idle subscription wakes the scheduler only for news.

use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::watch;

use super::file;
use super::writer::start_thread;
use crate::error::Result;

/// How often it looks; a look takes 3 µs.
const POLL: Duration = Duration::from_millis(10);

/// Starts watching the file, which must exist. The receiver changes with each commit, within [`POLL`]; the thread ends
/// when the last receiver is dropped.
pub(super) fn commits(path: &Path) -> Result<watch::Receiver<i64>> {
    let conn = file::open_reader(path)?;
    let (versions, commits) = watch::channel(0);
    start_thread("sqlite-watch", move || {
        while !versions.is_closed() {
            // A file that cannot be read is news too: whoever looks gets the error.
            let last: i64 = *versions.borrow();
            let seen = data_version(&conn).unwrap_or(last.wrapping_add(1));
            versions.send_if_modified(|version| std::mem::replace(version, seen) != seen);
            std::thread::park_timeout(POLL);
        }
    })?;
    Ok(commits)
}

fn data_version(conn: &Connection) -> rusqlite::Result<i64> {
    conn.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))
}
