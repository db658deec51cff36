//! Small objects that are asked for again and again: pauses, purges, cancelled batches. Read once for all who ask
//! within an age.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::{is_old, lock};
use crate::error::Result;
use crate::store::Store;

/// The largest flag: a pause's reason.
const LARGEST: u64 = 64 * 1024;

/// More than the queues and running batches of one process; beyond, what was read is read anew.
const MOST: usize = 10_000;

/// What was read, and when.
#[derive(Debug, Default)]
struct Slot {
    read: Option<Instant>,
    value: Option<Vec<u8>>,
}

/// Small objects, remembered for a while.
#[derive(Debug)]
pub(super) struct Flags {
    store: Store,
    slots: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Slot>>>>,
}

impl Flags {
    pub(super) fn new(store: Store) -> Self {
        Self { store, slots: Mutex::default() }
    }

    /// What the object holds, as it was at most so long ago. Many who ask at once cost one request.
    pub(super) async fn get(&self, key: String, age: Duration) -> Result<Option<Vec<u8>>> {
        let slot = self.slot(&key);
        let mut slot = slot.lock().await;
        if is_old(slot.read, age) {
            slot.value = self.store.get(&key, LARGEST).await?;
            slot.read = Some(Instant::now());
        }
        Ok(slot.value.clone())
    }

    /// Writes (`Some`) or removes the object, seen here at once.
    pub(super) async fn set(&self, key: String, value: Option<Vec<u8>>) -> Result<()> {
        let slot = self.slot(&key);
        let mut slot = slot.lock().await;
        slot.read = None;
        match &value {
            Some(bytes) => self.store.put(&key, bytes.clone()).await?,
            None => self.store.delete(&[key]).await?,
        }
        *slot = Slot { read: Some(Instant::now()), value };
        Ok(())
    }

    fn slot(&self, key: &str) -> Arc<tokio::sync::Mutex<Slot>> {
        let mut slots = lock(&self.slots);
        if slots.len() >= MOST && !slots.contains_key(key) {
            slots.clear();
        }
        Arc::clone(slots.entry(key.to_owned()).or_default())
    }
}
