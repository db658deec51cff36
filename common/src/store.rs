//! Object storage for answers too large for a record and for batch roll-ups, behind one URL.
#![allow(unused_variables, clippy::unimplemented, reason = "being written")]

use crate::broker::LeaseId;
use crate::error::Result;
use crate::job::JobId;
use crate::outcome::Body;
use crate::record::Stored;

/// A folder, bucket or memory to keep objects in. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store;

impl Store {
    /// Opens `file:///path`, `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix` or `memory://`.
    pub async fn open(url: &str) -> Result<Self> {
        unimplemented!()
    }

    /// One in this process's memory.
    pub fn memory() -> Self {
        Self
    }

    /// Keeps an answer's body under `out/<job>/<lease>`; `Ok` means durable. Repeatable.
    pub async fn put_output(&self, job: JobId, lease: LeaseId, body: &Body) -> Result<Stored> {
        unimplemented!()
    }

    /// Fetches a body and checks its size and hash.
    pub async fn get_output(&self, stored: &Stored) -> Result<Body> {
        unimplemented!()
    }

    /// Deletes objects; ones that are gone already are no error.
    pub async fn delete(&self, keys: &[String]) -> Result<()> {
        unimplemented!()
    }

    /// Writes an object whole, replacing what was there; `Ok` means durable.
    pub async fn put(&self, key: &str, bytes: Vec<u8>) -> Result<()> {
        unimplemented!()
    }

    /// Reads an object whole, at most `limit` bytes (else `TooLarge`); `None` when there is none.
    pub async fn get(&self, key: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        unimplemented!()
    }
}
