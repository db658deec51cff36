//! The file as a ledger: every question goes to a reading thread, every change to the writing one.

use std::time::Duration;

use async_trait::async_trait;
use rusqlite::Connection;

use super::{Sqlite, account, check_count, query};
use crate::broker::WorkerId;
use crate::error::{Error, Kind, Result};
use crate::job::{BatchName, Fingerprint, JobId, Queue};
use crate::ledger::{
    BatchView, Cursor, DeadGroup, JobFilter, JobView, KeptLimit, Known, Ledger, Page, Results, Scope, WorkerReport,
    check_limit,
};
use crate::time::Timestamp;

/// The longest name of a lock, in characters.
const LOCK_NAME: usize = 200;
/// The largest note, in bytes.
const NOTE: usize = 64 << 10;

#[async_trait]
impl Ledger for Sqlite {
    async fn known(&self, keys: &[(JobId, Fingerprint)]) -> Result<Vec<Known>> {
        check_count("look up known jobs", keys.len())?;
        let keys = keys.to_vec();
        self.queries.read("look up known jobs", move |conn| query::known(conn, &keys)).await
    }

    async fn fetch(&self, ids: &[JobId]) -> Result<Vec<Option<JobView>>> {
        let ids = ids.to_vec();
        self.queries.read("fetch jobs", move |conn| query::fetch(conn, &ids)).await
    }

    async fn payload(&self, id: JobId) -> Result<Option<Vec<u8>>> {
        self.queries.read("read a job", move |conn| query::payload(conn, id)).await
    }

    async fn list(&self, filter: &JobFilter, cursor: Option<&str>, limit: usize) -> Result<Page<JobView>> {
        check_count("list jobs", limit)?;
        let (filter, cursor) = (filter.clone(), cursor.map(str::to_owned));
        self.queries.read("list jobs", move |conn| query::list(conn, &filter, cursor.as_deref(), limit.max(1))).await
    }

    async fn results(&self, scope: &Scope, cursor: Cursor, limit: usize) -> Result<Results> {
        check_count("read results", limit)?;
        let scope = scope.clone();
        self.queries.read("read results", move |conn| account::results(conn, &scope, cursor, limit.max(1))).await
    }

    async fn batch(&self, name: &BatchName) -> Result<Option<BatchView>> {
        let name = name.clone();
        self.queries.read("read a batch", move |conn| account::batch(conn, &name)).await
    }

    async fn batches(&self, limit: usize) -> Result<Vec<BatchView>> {
        self.queries.read("list batches", move |conn| account::batches(conn, limit)).await
    }

    async fn seal(&self, name: &BatchName, queue: &Queue) -> Result<()> {
        let (name, queue) = (name.clone(), queue.clone());
        self.writer.write("seal a batch", 0, move |tx| account::seal(tx, &name, &queue)).await
    }

    async fn dead_groups(&self, queue: Option<&Queue>) -> Result<Vec<DeadGroup>> {
        let queue = queue.cloned();
        self.queries.read("group dead jobs", move |conn| account::dead_groups(conn, queue.as_ref())).await
    }

    async fn report(&self, worker: &WorkerReport) -> Result<()> {
        let body = serde_json::to_string(worker).map_err(|error| {
            Error::new(Kind::Corrupt, "report a worker", "the report cannot be written down").because(error)
        })?;
        let id = worker.id.clone();
        self.writer.write("report a worker", 0, move |tx| account::report(tx, id.as_str(), &body)).await
    }

    async fn leave(&self, worker: &WorkerId) -> Result<()> {
        let id = worker.clone();
        self.writer.write("forget a worker", 0, move |tx| account::leave(tx, id.as_str())).await
    }

    async fn workers(&self) -> Result<Vec<WorkerReport>> {
        self.queries.read("list workers", account::workers).await
    }

    async fn lock(&self, name: &str, owner: &WorkerId, length: Duration) -> Result<bool> {
        if name.chars().count() > LOCK_NAME {
            return Err(Error::new(Kind::TooLarge, "take a lock", format!("its name is above {LOCK_NAME} characters")));
        }
        let (name, owner) = (name.to_owned(), owner.clone());
        let length = i64::try_from(length.as_millis()).unwrap_or(i64::MAX / 2);
        self.writer.write("take a lock", 0, move |tx| account::lock(tx, &name, owner.as_str(), length)).await
    }

    async fn unlock(&self, name: &str, owner: &WorkerId) -> Result<()> {
        let (name, owner) = (name.to_owned(), owner.clone());
        self.writer.write("let go of a lock", 0, move |tx| account::unlock(tx, &name, owner.as_str())).await
    }

    async fn note(&self, key: &str) -> Result<Option<String>> {
        let key = key.to_owned();
        self.queries.read("read a note", move |conn| account::note(conn, &key)).await
    }

    async fn set_note(&self, key: &str, value: Option<&str>) -> Result<()> {
        if value.is_some_and(|value| value.len() > NOTE) {
            return Err(Error::new(Kind::TooLarge, "keep a note", format!("it is above {NOTE} bytes")));
        }
        let (key, value) = (key.to_owned(), value.map(str::to_owned));
        self.writer.write("keep a note", 0, move |tx| account::set_note(tx, &key, value.as_deref())).await
    }

    async fn limit(&self, key: &str) -> Result<KeptLimit> {
        let key = key.to_owned();
        let read = move |conn: &Connection| Ok(KeptLimit { bytes: account::limit(conn, &key)?, now: Timestamp::now() });
        self.queries.read("read a limit", read).await
    }

    async fn swap_limit(&self, key: &str, old: &[u8], new: &[u8]) -> Result<bool> {
        const OP: &str = "change a limit";
        check_limit(OP, new)?;
        let (key, old, new) = (key.to_owned(), old.to_owned(), new.to_owned());
        self.writer.write(OP, 0, move |tx| account::swap_limit(tx, &key, &old, &new)).await
    }

    async fn limits(&self) -> Result<Vec<String>> {
        self.queries.read("list limits", account::limits).await
    }
}
