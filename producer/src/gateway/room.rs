//! How much is done at once: each kind of work has its places, and who finds none is told to come again. No key takes so
//! many of them that there are none for another.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::auth::Caller;
use super::problem::{Problem, Result};

/// Held for as long as something is done; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    of: Places,
    key: Option<String>,
}

/// The places there are.
#[derive(Clone, Debug)]
pub(super) struct Room {
    calls: Places,
    waits: Places,
    large: Places,
    batches: Places,
}

/// Those of one kind. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
struct Places(Arc<Mutex<Taken>>);

#[derive(Debug)]
struct Taken {
    free: usize,
    by_key: HashMap<String, usize>,
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
        Self {
            calls: Places::new(CALLS),
            waits: Places::new(WAITS),
            large: Places::new(LARGE),
            batches: Places::new(BATCHES),
        }
    }

    /// For one call; it ends by itself, whoever asked for it.
    pub(super) fn call(&self) -> Result<Place> {
        self.calls.take(None, "calls")
    }

    /// For one client that waits.
    pub(super) fn wait(&self, caller: &Caller) -> Result<Place> {
        self.waits.take(caller.key(), "waiting clients")
    }

    /// For one large body.
    pub(super) fn large(&self, caller: &Caller) -> Result<Place> {
        self.large.take(caller.key(), "large bodies")
    }

    /// For one batch.
    pub(super) fn batch(&self, caller: &Caller) -> Result<Place> {
        self.batches.take(caller.key(), "batches")
    }
}

impl Places {
    fn new(free: usize) -> Self {
        Self(Arc::new(Mutex::new(Taken { free, by_key: HashMap::new() })))
    }

    /// A key that has as many as are free gets no more: alone it has half of them, and there is one left for the next.
    /// Where nobody needs a key all come from this machine.
    fn take(&self, key: Option<&str>, what: &str) -> Result<Place> {
        let mut taken = self.lock();
        let has = key.and_then(|key| taken.by_key.get(key)).copied().unwrap_or(0);
        if taken.free == 0 {
            return Err(Problem::new("busy", format!("as many {what} are under way as may be")));
        }
        if has >= taken.free {
            let what = format!("{has} {what} of this key are under way, and no more are free than are for others");
            return Err(Problem::new("busy", what));
        }
        taken.free -= 1;
        if let Some(key) = key {
            *taken.by_key.entry(key.to_owned()).or_default() += 1;
        }
        Ok(Place { of: self.clone(), key: key.map(str::to_owned) })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.of.lock();
        taken.free += 1;
        if let Some(key) = &self.key
            && let Some(has) = taken.by_key.get_mut(key)
        {
            *has -= 1;
            if *has == 0 {
                taken.by_key.remove(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::key::Role;
    use super::*;

    #[test]
    fn who_finds_no_place_is_told_to_come_again_and_a_free_one_is_found() {
        let (room, anybody) = (Room::new(), Caller::anybody());
        let mut taken: Vec<Place> = (0..LARGE).map(|_| room.large(&anybody).unwrap()).collect();
        assert_eq!(room.large(&anybody).unwrap_err().status(), 503);
        let others = [room.call(), room.wait(&anybody), room.batch(&anybody)];
        assert!(others.iter().all(Result::is_ok), "each kind has its own");
        taken.pop();
        assert!(room.large(&anybody).is_ok());
    }

    #[test]
    fn one_key_leaves_places_for_others_and_has_its_own_again_when_they_are_free() {
        let room = Room::new();
        let caller = || Caller::some(Role::Submitter, &[], None);
        let (greedy, other) = (caller(), caller());
        for take in [Room::large, Room::batch, Room::wait] {
            let mut taken: Vec<Place> = std::iter::from_fn(|| take(&room, &greedy).ok()).collect();
            assert!(taken.len() >= LARGE / 2 && taken.len() <= WAITS / 2, "half of them: {}", taken.len());
            let theirs: Vec<Place> = std::iter::from_fn(|| take(&room, &other).ok()).collect();
            assert!(theirs.len() >= LARGE / 4, "{}", theirs.len());
            assert!(take(&room, &caller()).is_ok(), "there is one for whoever comes next");
            drop(theirs);
            assert_eq!(take(&room, &greedy).unwrap_err().status(), 503);
            taken.pop();
            assert!(take(&room, &greedy).is_ok());
        }
    }
}
