//! Second copies of jobs that this worker has in hand: each is kept until the first one is out of hand, and asked about
//! then. None is answered for before: a second copy looks like the first one that a server has taken back and not said
//! so, and with that acknowledged the job would have no message.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;

use tokio::time::Instant;

use super::desk::{Desk, Item};
use super::swap;
use crate::job::JobId;

/// By so long after its end a job's result has been announced, and the ledger been told so where there is a copy: whoever
/// asks earlier may announce it again.
const ENDING: Duration = Duration::from_secs(1);
/// How often it is looked whether their jobs have ended.
const LOOK: Duration = Duration::from_millis(100);

/// One copy of each job that has two here.
#[derive(Debug, Default)]
pub(super) struct Duplicates(HashMap<JobId, Duplicate>);

#[derive(Debug)]
struct Duplicate {
    item: Item,
    /// Since when its job is not in hand any more.
    alone: Option<Instant>,
}

/// What is to be done about some of them.
#[derive(Debug, Default)]
pub(super) struct Due {
    /// To be opened: nothing of their job is in hand.
    pub(super) alone: Vec<Item>,
    /// To wait elsewhere: the server's patience with them is half over.
    pub(super) old: Vec<Item>,
}

impl Duplicates {
    /// Keeps a copy. Gives it back where there is one of that job.
    pub(super) fn keep(&mut self, item: Item) -> Option<Item> {
        match self.0.entry(item.parcel.envelope.head.id) {
            Entry::Occupied(mut place) if !place.get().item.receipt.is_usable() => {
                place.insert(Duplicate { item, alone: None });
                None
            }
            Entry::Occupied(_) => Some(item),
            Entry::Vacant(place) => {
                place.insert(Duplicate { item, alone: None });
                None
            }
        }
    }

    /// Takes out those that something is to be done about. One whose job has lost its message becomes that; what came by
    /// a channel that is lost is forgotten. `timeout` is the server's patience with a delivery.
    pub(super) fn due(&mut self, desk: &Desk, timeout: Duration) -> Due {
        let (now, oldest) = (Instant::now(), swap::patience(timeout));
        let mut due = Due::default();
        for (id, Duplicate { item, alone }) in std::mem::take(&mut self.0) {
            if !item.receipt.is_usable() {
                continue;
            }
            let Some(item) = desk.attach(item) else { continue };
            let alone = if desk.has(id) { None } else { alone.or(Some(now)) };
            if alone.is_some_and(|since| now - since >= ENDING) {
                due.alone.push(item);
            } else if item.receipt.age() >= oldest {
                due.old.push(item);
            } else {
                self.0.insert(id, Duplicate { item, alone });
            }
        }
        due
    }

    /// When something may be to be done about one.
    pub(super) fn next_look(&self) -> Option<Instant> {
        (!self.0.is_empty()).then(|| Instant::now() + LOOK)
    }

    /// All of them, for good.
    pub(super) fn into_items(self) -> Vec<Item> {
        self.0.into_values().map(|duplicate| duplicate.item).collect()
    }
}
