//! What the marks of a batch or a queue come to, followed by listing: counts, how far they reach, and which came late.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::account::Account;
use super::keys::{self, Kind, Mark};
use super::{Ages, is_old, lock};
use crate::error::Result;
use crate::job::JobId;
use crate::record::End;
use crate::store::Store;
use crate::time::Timestamp;

/// Marks read at a time: five requests.
const PAGE: usize = 5_000;

/// How much earlier than the newest mark another may appear in the usual course: clocks that differ by [`super::clock`]'s
/// slack, and a slow write.
const OVERLAP: Duration = Duration::from_secs(60);

/// A whole list takes at most this part of the time.
const SHARE: u32 = 20;

/// More than the batches that anybody looks at; beyond, those that nobody looks at now are read anew.
const MOST: usize = 2_000;

/// A folder of marks, as far as it has been read.
#[derive(Debug, Default)]
pub(super) struct Tally {
    read: Option<Instant>,
    whole: Option<(Instant, Duration)>,
    done: HashSet<u64>,
    others: HashMap<u64, Mark>,
    /// What all of it comes to.
    pub(super) account: Account,
    /// The place of the newest mark.
    newest: u64,
    /// Up to where results are told.
    pub(super) frontier: u64,
    /// Marks that appeared after later ones had been read, each under a place after those.
    pub(super) late: BTreeMap<u64, Mark>,
    late_places: HashSet<u64>,
    /// Ids that were registered, and where that was read.
    jobs: HashSet<u64>,
    pub(super) windows: HashSet<String>,
    /// The last word of jobs that have gone elsewhere.
    pub(super) gone: Option<Vec<u8>>,
    /// Whether the batch is sealed, and whether it is cancelled.
    pub(super) flags: (bool, bool),
    /// How many jobs there are, of a batch that has ended, whose ids are no longer kept.
    closed: Option<u64>,
}

/// Which folder, and whether its names are in the order of time.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    pub(super) name: String,
    pub(super) ordered: bool,
}

#[derive(Debug, Default)]
pub(super) struct Tallies(Mutex<HashMap<String, Arc<tokio::sync::Mutex<Tally>>>>);

impl Tallies {
    pub(super) fn of(&self, folder: &str) -> Arc<tokio::sync::Mutex<Tally>> {
        let mut all = lock(&self.0);
        if all.len() >= MOST && !all.contains_key(folder) {
            all.retain(|_, tally| Arc::strong_count(tally) > 1);
        }
        Arc::clone(all.entry(folder.to_owned()).or_default())
    }

    /// Reads this folder anew when it is asked for next.
    pub(super) fn forget(&self, folder: &str) {
        lock(&self.0).remove(folder);
    }
}

impl Tally {
    /// Whether what was read is older than that.
    pub(super) fn is_old(&self, age: Duration) -> bool {
        is_old(self.read, age)
    }

    /// Begins anew when something has come to a batch that was over.
    pub(super) async fn reopen(&mut self, store: &Store, folder: &Folder) -> Result<()> {
        if self.is_closed() {
            let newer = store.list(&folder.name, Some(&keys::after(self.frontier)), 1).await?;
            if newer.is_empty() {
                self.read = Some(Instant::now());
            } else {
                *self = Self::default();
            }
        }
        Ok(())
    }

    /// How many jobs are known, ended ones included.
    pub(super) fn total(&self) -> u64 {
        self.closed.unwrap_or(self.jobs.len() as u64)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.is_some()
    }

    /// Reads what is new, unless what is known is young enough. Of a batch that is over nothing is: see
    /// [`Tally::reopen`].
    pub(super) async fn refresh(
        &mut self,
        store: &Store,
        folder: &Folder,
        (ages, now): (&Ages, Timestamp),
    ) -> Result<()> {
        if !self.is_old(ages.counts) || self.is_closed() {
            return Ok(());
        }
        let due = |(at, took): (Instant, Duration)| at.elapsed() >= ages.whole.max(took * SHARE);
        let whole = !folder.ordered || self.whole.is_none_or(due);
        let start = Instant::now();
        let before = Some(self.frontier).filter(|_| self.whole.is_some());
        let overlap = keys::floor(keys::time_of(self.newest) - OVERLAP);
        let mut from = (!whole).then(|| keys::after(overlap));
        loop {
            let page = store.list(&folder.name, from.as_deref(), PAGE).await?;
            for mark in page.iter().filter_map(|listed| Mark::parse(&listed.name)) {
                self.meet(&mark, before);
            }
            from = page.last().map(|listed| listed.name.clone());
            if page.len() < PAGE {
                break;
            }
        }
        if whole {
            self.whole = Some((Instant::now(), start.elapsed()));
        }
        self.read = Some(Instant::now());
        let told = if ages.untold.is_zero() { self.newest } else { keys::floor(now - ages.untold).min(self.newest) };
        self.frontier = self.frontier.max(told);
        Ok(())
    }

    fn meet(&mut self, mark: &Mark, before: Option<u64>) {
        let is_new = self.absorb(mark);
        if is_new
            && let Some(before) = before.filter(|before| mark.place <= *before)
            && self.late_places.insert(mark.place)
        {
            // Odd, so that it is the place of no other.
            let newest = self.late.last_key_value().map_or(before, |(place, _)| before.max(*place));
            self.late.insert((newest | 1) + 2, *mark);
        }
        self.newest = self.newest.max(mark.place);
    }

    /// Counts a mark; false for one that is known or has been overtaken.
    fn absorb(&mut self, mark: &Mark) -> bool {
        let key = key(mark.id);
        if self.done.contains(&key) {
            return false;
        }
        let old = self.others.get(&key).copied();
        if mark.kind == Kind::Ended(End::Succeeded) {
            self.done.insert(key);
            self.others.remove(&key);
        } else {
            if old.is_some_and(|old| rank(&old) >= rank(mark)) {
                return false;
            }
            self.others.insert(key, *mark);
        }
        if let Some(old) = old {
            self.account.take(&old, old.epoch == mark.epoch);
        }
        self.account.add(mark);
        true
    }

    /// Whether this mark is given out under a later place than its own.
    pub(super) fn is_late(&self, mark: &Mark) -> bool {
        self.late_places.contains(&mark.place)
    }

    /// Every job has ended and no more will come: what they come to is enough.
    pub(super) fn close(&mut self) {
        if self.closed.is_none() {
            self.closed = Some(self.jobs.len() as u64);
            // Nothing is on its way any more.
            self.frontier = self.newest;
            (self.done, self.others, self.jobs) = Default::default();
        }
    }

    /// Adds ids that were registered.
    pub(super) fn register(&mut self, ids: &[u8]) {
        self.jobs.extend(ids.as_chunks::<16>().0.iter().map(|id| key(JobId::from_bytes(*id))));
    }

    /// Takes out ids that have gone elsewhere.
    pub(super) fn remove(&mut self, ids: &[u8]) {
        for id in ids.as_chunks::<16>().0 {
            self.jobs.remove(&key(JobId::from_bytes(*id)));
        }
    }
}

/// Half of an id: enough to tell the jobs of one batch apart.
fn key(id: JobId) -> u64 {
    let (_, half) = id.as_bytes().split_at(8);
    half.iter().fold(0, |key, byte| key << 8 | u64::from(*byte))
}

/// Which of two marks of one job counts, whatever the clocks said: an epoch begins when its job is put back in line.
fn rank(mark: &Mark) -> (u32, bool, u64) {
    (mark.epoch, mark.kind != Kind::Raised, mark.place)
}
