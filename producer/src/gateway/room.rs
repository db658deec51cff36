//! How much is done at once: each kind of work has its places, and who finds none is told to come again.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::problem::{Problem, Result};

/// Held for as long as something is done; its place is free again when it is dropped.
pub(super) type Place = OwnedSemaphorePermit;

/// The places there are.
#[derive(Clone, Debug)]
pub(super) struct Room {
    calls: Arc<Semaphore>,
    waits: Arc<Semaphore>,
    large: Arc<Semaphore>,
    batches: Arc<Semaphore>,
}

/// Calls of the broker, its ledger and the store: one that is under way takes milliseconds.
const CALLS: usize = 512;
/// Clients that wait for a result.
const WAITS: usize = 2_000;
/// Bodies above [`SMALL`] in memory, coming or going: at most 16 MiB each.
const LARGE: usize = 16;
/// A body up to so many bytes needs no place.
pub(super) const SMALL: usize = 64 << 10;
/// Batches, each on disk until it is enqueued.
const BATCHES: usize = 16;

impl Room {
    /// Nothing is taken.
    pub(super) fn new() -> Self {
        let of = |places| Arc::new(Semaphore::new(places));
        Self { calls: of(CALLS), waits: of(WAITS), large: of(LARGE), batches: of(BATCHES) }
    }

    /// For one call.
    pub(super) fn call(&self) -> Result<Place> {
        take(&self.calls, "calls")
    }

    /// For one client that waits.
    pub(super) fn wait(&self) -> Result<Place> {
        take(&self.waits, "waiting clients")
    }

    /// For one large body.
    pub(super) fn large(&self) -> Result<Place> {
        take(&self.large, "large bodies")
    }

    /// For one batch.
    pub(super) fn batch(&self) -> Result<Place> {
        take(&self.batches, "batches")
    }
}

fn take(places: &Arc<Semaphore>, what: &str) -> Result<Place> {
    let place = Arc::clone(places).try_acquire_owned();
    place.map_err(|_| Problem::new("busy", format!("as many {what} are under way as may be")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_finds_no_place_is_told_to_come_again_and_a_free_one_is_found() {
        let room = Room::new();
        let mut taken: Vec<Place> = (0..LARGE).map(|_| room.large().unwrap()).collect();
        assert_eq!(room.large().unwrap_err().status(), 503);
        assert!(room.call().is_ok() && room.wait().is_ok() && room.batch().is_ok(), "each kind has its own");
        taken.pop();
        assert!(room.large().is_ok());
    }
}
