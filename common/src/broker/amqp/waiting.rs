//! The lane queues of a subscription: what each delivered that nobody has started, and what is known of it. What becomes
//! of that is the source's.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::desk::Item;
use super::{share, topology};
use crate::job::Lane;

/// What was fetched to be passed on and came to stay is kept for so long after the last that was passed on: by then the
/// lane is consumed with its usual prefetch, and does not give it to this worker again.
const SURPLUS: Duration = share::ACTIVE.saturating_add(Duration::from_secs(1));

/// What was fetched in search of other messages is kept for so long: by then another worker has room for it, whose it may
/// be.
const STRANGER: Duration = Duration::from_secs(1);

/// One lane's queue.
#[derive(Debug)]
pub(super) struct LaneQueue {
    /// Without a model: the queue of every model that has none of its own.
    pub(super) lane: Lane,
    pub(super) waiting: VecDeque<Item>,
    /// When it last delivered a job that may be started.
    pub(super) delivered: Option<Instant>,
    /// When it last delivered one that had to be passed on.
    pub(super) passed: Option<Instant>,
    /// Since when nothing is taken from it.
    pub(super) closed: Option<Instant>,
    passing: Arc<AtomicU32>,
}

/// A message on its way to where it has to wait; it stays counted until it is there.
#[derive(Debug)]
pub(super) struct Passing(Arc<AtomicU32>);

impl Drop for Passing {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl LaneQueue {
    fn new(lane: &Lane) -> Self {
        Self {
            lane: lane.clone(),
            waiting: VecDeque::new(),
            delivered: None,
            passed: None,
            closed: None,
            passing: Arc::default(),
        }
    }

    /// Counts a message that is passed on, for as long as the answer lives.
    pub(super) fn pass_on(&mut self) -> Passing {
        self.passed = Some(Instant::now());
        self.passing.fetch_add(1, Ordering::Relaxed);
        Passing(Arc::clone(&self.passing))
    }

    /// How many messages of it are on their way elsewhere.
    pub(super) fn passing(&self) -> u32 {
        self.passing.load(Ordering::Relaxed)
    }

    /// What came to stay, once, of what was fetched to be passed on: beyond `slots` it is for other workers.
    pub(super) fn surplus(&mut self, slots: u32, now: Instant) -> VecDeque<Item> {
        if self.passed.is_none_or(|at| now - at <= SURPLUS) {
            return VecDeque::new();
        }
        self.passed = None;
        self.waiting.split_off(self.waiting.len().min(usize::try_from(slots).unwrap_or(usize::MAX)))
    }

    /// What came in a search for messages of jobs that run here, and is none of them: beyond the `free` hands there are it
    /// is for other workers.
    pub(super) fn strangers(&mut self, free: u32) -> Vec<Item> {
        let free = usize::try_from(free).unwrap_or(usize::MAX);
        if self.waiting.len() <= free {
            return Vec::new();
        }
        let (mut go, rest) = (Vec::new(), self.waiting.split_off(free));
        for item in rest {
            if item.receipt.age() > STRANGER { go.push(item) } else { self.waiting.push_back(item) }
        }
        go
    }
}

/// The lane queues, by name.
#[derive(Debug, Default)]
pub(super) struct LaneQueues(BTreeMap<Arc<str>, LaneQueue>);

impl LaneQueues {
    /// Keeps to these lanes. What waited in others is given up.
    pub(super) fn keep(&mut self, lanes: &[Lane]) -> Vec<Item> {
        let there: BTreeMap<Arc<str>, &Lane> =
            lanes.iter().map(|lane| (topology::lane_queue(lane).into(), lane)).collect();
        let gone: Vec<_> = self.0.keys().filter(|name| !there.contains_key(*name)).cloned().collect();
        let given_up = gone.iter().filter_map(|name| self.0.remove(name)).flat_map(|lane| lane.waiting).collect();
        for (name, lane) in there {
            self.0.entry(name).or_insert_with(|| LaneQueue::new(lane));
        }
        given_up
    }

    pub(super) fn names(&self) -> Vec<Arc<str>> {
        self.0.keys().cloned().collect()
    }

    pub(super) fn get_mut(&mut self, name: &str) -> Option<&mut LaneQueue> {
        self.0.get_mut(name)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &LaneQueue> {
        self.0.values()
    }

    pub(super) fn lane(&self, name: &str) -> Option<&Lane> {
        self.0.get(name).map(|queue| &queue.lane)
    }

    /// The lane queue of this name; made for this lane if it has been given up meanwhile.
    pub(super) fn place(&mut self, name: Arc<str>, lane: &Lane) -> &mut LaneQueue {
        self.0.entry(name).or_insert_with(|| LaneQueue::new(lane))
    }

    /// Forgets what came by a channel that is lost: others have it by now.
    pub(super) fn drop_lost(&mut self) {
        for queue in self.0.values_mut() {
            queue.waiting.retain(|item| item.receipt.is_usable());
        }
    }

    /// How many jobs of each lane wait.
    pub(super) fn counts(&self) -> BTreeMap<&Lane, u32> {
        let mut counts = BTreeMap::new();
        // Mostly one lane after another.
        let mut last: Option<(&Lane, u32)> = None;
        for item in self.items() {
            let lane = &item.parcel.envelope.head.lane;
            match &mut last {
                Some((same, count)) if *same == lane => *count += 1,
                Some(_) | None => {
                    if let Some((lane, count)) = last.replace((lane, 1)) {
                        *counts.entry(lane).or_default() += count;
                    }
                }
            }
        }
        if let Some((lane, count)) = last {
            *counts.entry(lane).or_default() += count;
        }
        counts
    }

    /// The first waiting message of a lane, wherever it waits.
    pub(super) fn pull(&mut self, lane: &Lane) -> Option<Item> {
        self.0.values_mut().find_map(|queue| {
            let place = queue.waiting.iter().position(|item| item.parcel.envelope.head.lane == *lane)?;
            queue.waiting.remove(place)
        })
    }

    /// Puts a message back at the front; gives it back when its lane was given up meanwhile.
    pub(super) fn put_back(&mut self, item: Item) -> Option<Item> {
        match self.0.get_mut(self.name_of(&item.parcel.envelope.head.lane).as_str()) {
            Some(queue) => queue.waiting.push_front(item),
            None => return Some(item),
        }
        None
    }

    /// The name of the queue that a lane's jobs wait in.
    pub(super) fn name_of(&self, lane: &Lane) -> String {
        let named = topology::lane_queue(lane);
        if self.0.contains_key(named.as_str()) {
            return named;
        }
        topology::lane_queue(&Lane { model: None, ..lane.clone() })
    }

    /// Every message that waits.
    pub(super) fn items(&self) -> impl Iterator<Item = &Item> {
        self.0.values().flat_map(|queue| &queue.waiting)
    }

    /// Every message that waits, for good.
    pub(super) fn into_items(self) -> Vec<Item> {
        self.0.into_values().flat_map(|queue| queue.waiting).collect()
    }
}
