//! Opening the file: pragmas, schema, and what SQLite's errors mean to us. Where it may live is `filesystem.rs`.

use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use super::filesystem;
use crate::error::{Error, Kind, Result};

const OP: &str = "open the embedded database";
/// What makes the tables, step by step. A file that has made some of them makes the rest when it is opened.
const STEPS: [&str; 3] = [include_str!("schema.sql"), include_str!("away.sql"), include_str!("lean.sql")];
/// How many steps that are.
const SCHEMA: i64 = 3;
/// "pqdb": tells our file from any other program's database.
const APPLICATION: i64 = 0x7071_6462;
/// How long a write waits for the other processes' turns. A turn is one group commit, milliseconds.
const BUSY: Duration = Duration::from_secs(10);

/// What went wrong inside a transaction.
#[derive(Debug)]
pub(super) enum Fault {
    /// SQLite refused.
    Sql(rusqlite::Error),
    /// Something of ours did.
    Own(Error),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Own(error)
    }
}

/// Makes the file and its tables where missing and opens it for writing.
pub(super) fn open_writer(path: &Path) -> Result<Connection> {
    filesystem::prepare(path)?;
    let mut conn = connect(path)?;
    let named = |error: rusqlite::Error| lift_at(OP, path, error);
    // Before anything is changed: it may be somebody else's.
    check(&conn, path)?;
    set_up(&conn).map_err(named)?;
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(named)?;
    let made = version(&tx).map_err(named)?;
    for step in STEPS.iter().skip(usize::try_from(made).unwrap_or(0)) {
        tx.execute_batch(step).map_err(named)?;
    }
    if made < SCHEMA {
        tx.pragma_update(None, "application_id", APPLICATION).map_err(named)?;
        tx.pragma_update(None, "user_version", SCHEMA).map_err(named)?;
    }
    tx.commit().map_err(named)?;
    conn.set_prepared_statement_cache_capacity(128);
    Ok(conn)
}

/// What is found where a broker's or ledger's file is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileState {
    /// Nothing; its first use makes it.
    Missing,
    /// Begun, or of an older promptq; its next use makes what it lacks.
    Older,
    /// As this promptq makes them, and it may be written.
    Current,
}

/// Looks at the file, and whether it may be written, and changes nothing.
///
/// # Errors
/// As [`open_writer`].
pub(super) fn look(path: &Path) -> Result<FileState> {
    filesystem::check_home(path)?;
    if !path.exists() {
        return Ok(FileState::Missing);
    }
    let conn = connect(path)?;
    check(&conn, path)?;
    let named = |error: rusqlite::Error| lift_at(OP, path, error);
    if version(&conn).map_err(named)? < SCHEMA {
        return Ok(FileState::Older);
    }
    conn.execute_batch("BEGIN IMMEDIATE; ROLLBACK").map_err(named)?;
    Ok(FileState::Current)
}

/// Opens a file that [`open_writer`] has made, for reading.
pub(super) fn open_reader(path: &Path) -> Result<Connection> {
    let conn = connect(path)?;
    conn.pragma_update(None, "query_only", true).map_err(|error| lift_at(OP, path, error))?;
    conn.set_prepared_statement_cache_capacity(48);
    Ok(conn)
}

fn connect(path: &Path) -> Result<Connection> {
    let named = |error: rusqlite::Error| lift_at(OP, path, error);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags).map_err(named)?;
    conn.busy_timeout(BUSY).map_err(named)?;
    // Without it the planner peeks at the number bound to a LIMIT and compiles the statement again for every call.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map_err(named)?;
    Ok(conn)
}

fn set_up(conn: &Connection) -> rusqlite::Result<()> {
    turn_on_wal(conn)?;
    conn.pragma_update(None, "synchronous", "FULL")?;
    conn.pragma_update(None, "mmap_size", 0)?;
    conn.pragma_update(None, "temp_store", "MEMORY")?;
    // 16 MiB holds the inner pages of every index of ten million jobs.
    conn.pragma_update(None, "cache_size", -16_384)?;
    // Ids come in no order, so that each commit writes pages all over their index, and many of them again soon: a log of
    // 16 MiB writes them back once where one of 4 MiB, the usual, does it three times.
    conn.pragma_update(None, "wal_autocheckpoint", 4_000)?;
    // A log grown by one large enqueue gives its space back at the next checkpoint.
    conn.pragma_update(None, "journal_size_limit", 64 << 20)
}

/// Two processes that make the same file at once meet here: the switch does not wait for locks, so it is tried again
/// for up to as long as any other write would wait.
fn turn_on_wal(conn: &Connection) -> rusqlite::Result<()> {
    const PAUSE: Duration = Duration::from_millis(20);
    let mut left = BUSY.as_millis() / PAUSE.as_millis();
    loop {
        match conn.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0)) {
            Ok(mode) if mode.eq_ignore_ascii_case("wal") => return Ok(()),
            Err(error) if left == 0 || error.sqlite_error_code() != Some(ErrorCode::DatabaseBusy) => return Err(error),
            Ok(_) if left == 0 => return Err(rusqlite::Error::InvalidQuery),
            Ok(_) | Err(_) => {}
        }
        left -= 1;
        std::thread::park_timeout(PAUSE);
    }
}

fn version(conn: &Connection) -> rusqlite::Result<i64> {
    conn.pragma_query_value(None, "user_version", |row| row.get(0))
}

fn check(conn: &Connection, path: &Path) -> Result<()> {
    let named = |error: rusqlite::Error| lift_at(OP, path, error);
    // One view, or a file that another process makes meanwhile would look half made.
    let view = conn.unchecked_transaction().map_err(named)?;
    let application: i64 = conn.pragma_query_value(None, "application_id", |row| row.get(0)).map_err(named)?;
    let tables: i64 = conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(named)?;
    let bad =
        |why: String, hint: &str| Err(Error::new(Kind::Config, OP, format!("{}: {why}\nhint: {hint}", path.display())));
    if application != APPLICATION && tables > 0 {
        return bad("is another program's database".into(), "name another file: sqlite:///path/to/file.db");
    }
    let found = version(conn).map_err(named)?;
    if found > SCHEMA {
        return bad(
            format!("was written by a newer promptq (schema {found}; this one knows {SCHEMA})"),
            "use the newer promptq, or name another file",
        );
    }
    view.finish().map_err(named)
}

/// What a fault met while doing `op` means: is it worth another try, or must a person mend something.
pub(super) fn lift(op: &'static str, fault: Fault) -> Error {
    match fault {
        Fault::Own(error) => error,
        Fault::Sql(error) => lift_with(op, "", error),
    }
}

fn lift_at(op: &'static str, path: &Path, error: rusqlite::Error) -> Error {
    lift_with(op, &format!("{}: ", path.display()), error)
}

fn lift_with(op: &'static str, place: &str, error: rusqlite::Error) -> Error {
    let (kind, why) = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::FileLockingProtocolFailed) => {
            (Kind::Unavailable, "other processes kept it locked for 10 s")
        }
        Some(ErrorCode::DiskFull) => (Kind::Unavailable, "no space is left on its disk\nhint: free some space"),
        Some(ErrorCode::SystemIoFailure) => (Kind::Unavailable, "its disk failed to read or write"),
        Some(ErrorCode::OutOfMemory | ErrorCode::OperationInterrupted | ErrorCode::OperationAborted) => {
            (Kind::Unavailable, "it was interrupted")
        }
        Some(ErrorCode::NotADatabase) => {
            (Kind::Config, "is not a database\nhint: name another file: sqlite:///path/to/file.db")
        }
        Some(ErrorCode::DatabaseCorrupt) => {
            (Kind::Corrupt, "is damaged\nhint: recover it with `sqlite3 FILE .recover` while nothing has it open")
        }
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
            (Kind::Denied, "may not be written\nhint: check the owner and mode of the file and of its folder")
        }
        Some(ErrorCode::TooBig) => (Kind::TooLarge, "is above SQLite's limit of 1 GB"),
        _ => (Kind::Corrupt, "holds something unexpected"),
    };
    Error::new(kind, op, format!("{place}{why}")).because(error)
}
