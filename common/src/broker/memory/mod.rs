//! The reference backend.
#![allow(unused_variables, clippy::unimplemented, reason = "being written")]
use super::backend::*;
use crate::error::Result;
use crate::job::*;
use crate::ledger::*;
use crate::record::Record;
use async_trait::async_trait;
use std::time::Duration;

/// The reference backend.
#[derive(Debug, Default)]
pub struct Memory;

impl Memory {
    /// An empty one.
    pub fn new() -> Self {
        Self
    }
}

#[async_trait]
impl Backend for Memory {
    async fn enqueue(&self, batch: Vec<Envelope>) -> Result<Vec<Enqueued>> {
        unimplemented!()
    }
    async fn subscribe(&self, terms: Terms) -> Result<Box<dyn Source>> {
        unimplemented!()
    }
    async fn depth(&self, queue: &Queue) -> Result<Depth> {
        unimplemented!()
    }
    async fn queues(&self) -> Result<Vec<QueueView>> {
        unimplemented!()
    }
    async fn pause(&self, queue: &Queue, reason: Option<&str>) -> Result<()> {
        unimplemented!()
    }
    async fn purge(&self, queue: &Queue) -> Result<u64> {
        unimplemented!()
    }
    async fn cancel(&self, ids: &[JobId]) -> Result<Vec<Cancel>> {
        unimplemented!()
    }
    async fn cancel_batch(&self, batch: &BatchName) -> Result<CancelCounts> {
        unimplemented!()
    }
    async fn redrive(&self, ids: &[JobId]) -> Result<Vec<Redriven>> {
        unimplemented!()
    }
    async fn drop_dead(&self, ids: &[JobId]) -> Result<u64> {
        unimplemented!()
    }
    async fn wake(&self, key: &HoldKey) -> Result<u64> {
        unimplemented!()
    }
    async fn recover(&self, worker: &WorkerId) -> Result<u64> {
        unimplemented!()
    }
    async fn sweep(&self, retention: &Retention) -> Result<Swept> {
        unimplemented!()
    }
}

#[async_trait]
impl Ledger for Memory {
    async fn known(&self, keys: &[(JobId, Fingerprint)]) -> Result<Vec<Known>> {
        unimplemented!()
    }
    async fn fetch(&self, ids: &[JobId]) -> Result<Vec<Option<JobView>>> {
        unimplemented!()
    }
    async fn payload(&self, id: JobId) -> Result<Option<Vec<u8>>> {
        unimplemented!()
    }
    async fn list(&self, filter: &JobFilter, cursor: Option<&str>, limit: usize) -> Result<Page<JobView>> {
        unimplemented!()
    }
    async fn results(&self, scope: &Scope, cursor: Cursor, limit: usize) -> Result<Vec<(Cursor, Record)>> {
        unimplemented!()
    }
    async fn batch(&self, name: &BatchName) -> Result<Option<BatchView>> {
        unimplemented!()
    }
    async fn batches(&self, limit: usize) -> Result<Vec<BatchView>> {
        unimplemented!()
    }
    async fn seal(&self, name: &BatchName, queue: &Queue) -> Result<()> {
        unimplemented!()
    }
    async fn dead_groups(&self, queue: Option<&Queue>) -> Result<Vec<DeadGroup>> {
        unimplemented!()
    }
    async fn report(&self, worker: &WorkerReport) -> Result<()> {
        unimplemented!()
    }
    async fn workers(&self) -> Result<Vec<WorkerReport>> {
        unimplemented!()
    }
    async fn lock(&self, name: &str, owner: &WorkerId, length: Duration) -> Result<bool> {
        unimplemented!()
    }
    async fn unlock(&self, name: &str, owner: &WorkerId) -> Result<()> {
        unimplemented!()
    }
    async fn note(&self, key: &str) -> Result<Option<String>> {
        unimplemented!()
    }
    async fn set_note(&self, key: &str, value: Option<&str>) -> Result<()> {
        unimplemented!()
    }
}
