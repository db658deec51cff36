//! The small things kept beside jobs: workers' reports, locks, notes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::batches::{from_json, json};
use super::{LARGEST, ObjectLedger, all, keys};
use crate::broker::WorkerId;
use crate::error::{Error, Kind, Result};
use crate::ledger::{LedgerId, WorkerReport};
use crate::store::PutNew;
use crate::time::Timestamp;

/// The longest name of a lock, in characters.
const LOCK_NAME: usize = 200;

/// The largest note, in bytes.
const NOTE: usize = 64 * 1024;

/// How long a worker is believed to live without a report.
const WORKER_SILENCE: Duration = Duration::from_secs(60);

/// The most workers that are told of.
const WORKERS: usize = 10_000;

/// Who holds a lock, and until when by the store's clock.
#[derive(Debug, Serialize, Deserialize)]
struct Held {
    owner: WorkerId,
    until: Timestamp,
}

impl ObjectLedger {
    pub(super) async fn report_worker(&self, report: &WorkerReport) -> Result<()> {
        self.store.put(&keys::aside("workers", report.id.as_str()), json(report)?).await
    }

    pub(super) async fn forget_worker(&self, worker: &WorkerId) -> Result<()> {
        self.store.delete(&[keys::aside("workers", worker.as_str())]).await
    }

    pub(super) async fn live_workers(&self) -> Result<Vec<WorkerReport>> {
        let since = self.clock.now() - WORKER_SILENCE;
        let listed = self.store.list("ledger/workers", None, WORKERS).await?;
        let alive = listed.into_iter().filter(|listed| listed.modified > since);
        let reports = alive.map(|listed| async move {
            let bytes = self.store.get(&format!("ledger/workers/{}", listed.name), LARGEST).await?;
            bytes.map(|bytes| from_json(&bytes)).transpose()
        });
        let reports: Vec<Option<WorkerReport>> = all(reports.collect()).await?;
        Ok(reports.into_iter().flatten().collect())
    }

    /// One that ran out is taken over only as it was read. A holder that is slower than its lock is long holds it no
    /// more and does not know; and where the store cannot compare (see [`crate::store::Store::swap`]), two may take over
    /// in the same moment. What is done under these locks bears both.
    pub(super) async fn take_lock(&self, name: &str, owner: &WorkerId, length: Duration) -> Result<bool> {
        if name.chars().count() > LOCK_NAME {
            return Err(Error::new(Kind::TooLarge, "take a lock", format!("its name is over {LOCK_NAME} characters")));
        }
        let (key, now) = (keys::aside("locks", name), self.clock.now());
        let ours = json(&Held { owner: owner.clone(), until: now + length })?;
        let Some(was) = self.store.get_tagged(&key, LARGEST).await? else {
            if !self.conditional {
                return self.store.put(&key, ours).await.map(|()| true);
            }
            return Ok(matches!(self.store.put_new(&key, ours).await?, PutNew::Ours));
        };
        let held: Held = from_json(&was.bytes)?;
        if held.owner != *owner && held.until > now {
            return Ok(false);
        }
        self.store.swap(&key, &was, ours).await
    }

    pub(super) async fn drop_lock(&self, name: &str, owner: &WorkerId) -> Result<()> {
        let key = keys::aside("locks", name);
        let Some(was) = self.store.get_tagged(&key, LARGEST).await? else { return Ok(()) };
        let held: Held = from_json(&was.bytes)?;
        // Run out in this moment, and so that nobody's newer lock is deleted in its place.
        let over = json(&Held { owner: owner.clone(), until: Timestamp::from_millis(0) })?;
        if held.owner == *owner {
            self.store.swap(&key, &was, over).await?;
        }
        Ok(())
    }

    /// Created once. Where the store cannot create only where nothing is, the last of several at once stays; whoever has
    /// read an earlier one learns of it at its next start.
    pub(super) async fn own_identity(&self) -> Result<LedgerId> {
        const KEY: &str = "ledger/identity";
        let parse = |bytes: &[u8]| LedgerId::parse(&super::opening::text(bytes));
        if let Some(kept) = self.store.get(KEY, LARGEST).await? {
            return parse(&kept);
        }
        let fresh = LedgerId::random().to_string().into_bytes();
        if !self.conditional {
            self.store.put(KEY, fresh.clone()).await?;
            return parse(&self.store.get(KEY, LARGEST).await?.unwrap_or(fresh));
        }
        match self.store.put_new(KEY, fresh.clone()).await? {
            PutNew::Ours => parse(&fresh),
            PutNew::Theirs(kept) => parse(&kept),
        }
    }

    pub(super) async fn read_note(&self, key: &str) -> Result<Option<String>> {
        let note = self.store.get(&keys::aside("notes", key), LARGEST).await?;
        Ok(note.as_deref().map(super::opening::text))
    }

    pub(super) async fn write_note(&self, key: &str, value: Option<&str>) -> Result<()> {
        let object = keys::aside("notes", key);
        match value {
            Some(value) if value.len() > NOTE => {
                Err(Error::new(Kind::TooLarge, "keep a note", format!("over {NOTE} bytes")))
            }
            Some(value) => self.store.put(&object, value.into()).await,
            None => self.store.delete(&[object]).await,
        }
    }
}
