//! What a worker consumes, and how much of each lane queue at once: decided anew whenever it is looked at. The arithmetic
//! is `share.rs`, the consumers are `consumers.rs`, what becomes of a message is the source's.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::closed::{CLOSED, Closed};
use super::consumers::{Consumers, Plan};
use super::desk::{Desk, Item};
use super::held::Held;
use super::share;
use super::waiting::{LaneQueue, LaneQueues};
use crate::broker::backend::Want;
use crate::job::{Lane, Queue};

/// Nothing new is taken once nothing could be published for so long.
const MUTE: Duration = Duration::from_secs(2);
/// Consumers change their prefetch at most this often; who has lost a message is looked for as often.
const SETTLE: Duration = Duration::from_millis(200);
/// For so long after a connection is there again the lanes of jobs that run here are consumed for the messages of those,
/// however full the worker is: the server has them back at once, and a channel is made anew after a second.
const SEARCH: Duration = Duration::from_secs(10);

/// What a worker asks for, and what it may not have.
pub(super) struct Allowed<'a> {
    caps: HashMap<&'a Lane, u32>,
    rest: u32,
    paused: &'a HashSet<Queue>,
}

/// What the plan is made of.
pub(super) struct Inputs<'a> {
    pub(super) want: &'a Want,
    pub(super) queues: &'a [(Queue, u32)],
    pub(super) paused: &'a HashSet<Queue>,
    pub(super) desk: &'a Desk,
    pub(super) consumers: &'a Consumers,
    /// The name of this worker's hold queue.
    pub(super) hold: &'a Arc<str>,
}

/// What is not to stay with this worker.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    /// Back where it came from.
    pub(super) returned: Vec<Item>,
    /// To wait elsewhere, from which queue and how long.
    pub(super) passed: Vec<(Arc<str>, Item, Duration)>,
}

/// What has to be known of earlier looks.
#[derive(Debug)]
pub(super) struct Planner {
    slots: u32,
    /// How large messages are on average.
    bytes: usize,
    planned: Instant,
    closed: Closed,
    /// Since when the worker takes nothing at all.
    full: Option<Instant>,
    search: Search,
}

/// The looking for messages that went back while their jobs run here.
#[derive(Debug, Default)]
struct Search {
    looked: Option<Instant>,
    /// Since when they may be had.
    since: Option<Instant>,
    /// How many there are, by lane queue; none while there is no connection to have them by.
    lost: HashMap<String, u32>,
}

impl<'a> Allowed<'a> {
    pub(super) fn new(want: &'a Want, paused: &'a HashSet<Queue>) -> Self {
        Self { caps: want.caps.iter().map(|(lane, cap)| (lane, *cap)).collect(), rest: want.rest, paused }
    }

    /// What a lane may give now: nothing while its queue is paused.
    pub(super) fn of(&self, lane: &Lane) -> u32 {
        if self.paused.contains(&lane.queue) {
            return 0;
        }
        self.caps.get(lane).copied().unwrap_or(self.rest)
    }
}

impl Planner {
    pub(super) fn new() -> Self {
        Self {
            slots: 1,
            bytes: 0,
            planned: Instant::now(),
            closed: Closed::default(),
            full: None,
            search: Search::default(),
        }
    }

    /// Takes note of how large a message is.
    pub(super) fn weigh(&mut self, size: usize) {
        self.bytes = if self.bytes == 0 { size } else { self.bytes - self.bytes / 8 + size / 8 };
    }

    /// Sets what is consumed, and takes out what waits in lanes that stay closed.
    pub(super) fn plan(&mut self, inputs: &Inputs<'_>, lanes: &mut LaneQueues) -> Leaving {
        let now = Instant::now();
        let Inputs { want, paused, desk, consumers, .. } = *inputs;
        let running = u32::try_from(desk.count()).unwrap_or(u32::MAX);
        self.slots = self.slots.max(want.total + running);
        self.full = if want.total > 0 { None } else { self.full.or(Some(now)) };
        let full = is_mute(desk) || self.full.is_some_and(|since| now - since > CLOSED);
        let allowed = Allowed::new(want, paused);
        self.closed.note(want, now);
        self.search.look(desk, lanes, now);
        let mut leaving = Leaving::default();
        let mut views = Vec::new();
        let names = lanes.names();
        for name in &names {
            let Some(queue) = lanes.get_mut(name) else { continue };
            let lost = self.search.lost(name, now);
            let open = allowed.of(&queue.lane) > 0 && !full;
            queue.closed = if open { None } else { queue.closed.or(Some(now)) };
            let paused = paused.contains(&queue.lane.queue);
            let shut = paused || lost == 0 && (full || queue.closed.is_some_and(|since| now - since > CLOSED));
            if shut {
                leaving.returned.extend(queue.waiting.drain(..));
            }
            if self.search.is_recent(now) {
                leaving.returned.extend(queue.strangers(want.total));
            }
            leaving.returned.extend(queue.surplus(self.slots, now));
            let parted = self.closed.part(&queue.lane, &mut queue.waiting, now);
            let unstarted = u32::try_from(queue.waiting.len() + parted.len()).unwrap_or(u32::MAX) + queue.passing();
            let view = share::Lane {
                open: !shut,
                running: consumers.unanswered(name).saturating_sub(unstarted) + lost,
                ..view(queue, inputs.queues, now)
            };
            views.push(share::Lane { passed: view.passed || !parted.is_empty(), ..view });
            leaving.passed.extend(parted.into_iter().map(|(item, wait)| (Arc::clone(name), item, wait)));
        }
        self.set(inputs, &names, &views);
        leaving
    }

    fn set(&mut self, inputs: &Inputs<'_>, names: &[Arc<str>], views: &[share::Lane]) {
        let Inputs { want, desk, consumers, hold, .. } = *inputs;
        let worker = share::Worker { free: want.total, slots: self.slots, usual: desk.usual(), bytes: self.bytes };
        let old = consumers.plan();
        let mut plan = Plan::new();
        for ((name, view), prefetch) in names.iter().zip(views).zip(share::prefetch(&worker, views)) {
            let Some(wanted) = prefetch else { continue };
            let now = old.get(name).copied();
            let early = self.planned.elapsed() < SETTLE && now.is_some_and(|now| now > 1);
            let keep = now.filter(|now| early || !share::is_off(*now, wanted, view.running));
            plan.insert(Arc::clone(name), keep.unwrap_or(wanted));
        }
        if desk.holding.load(Ordering::Relaxed) {
            plan.insert(Arc::clone(hold), 0);
        }
        if plan != old {
            self.planned = Instant::now();
            consumers.set(plan);
        }
    }
}

/// Whether nothing new is to be taken, since no end of it could be told.
pub(super) fn is_mute(desk: &Desk) -> bool {
    desk.post.link.publisher().trouble().is_some_and(|trouble| trouble > MUTE)
}

/// What a lane queue says by itself of its share.
fn view(queue: &LaneQueue, queues: &[(Queue, u32)], now: Instant) -> share::Lane {
    let lately = |at: Option<Instant>| at.is_some_and(|at| now - at < share::ACTIVE);
    let weight = queues.iter().find(|one| one.0 == queue.lane.queue).map_or(1, |one| one.1);
    share::Lane {
        active: lately(queue.delivered),
        passed: lately(queue.passed),
        weight: queue.lane.band.weight() * weight,
        ..share::Lane::default()
    }
}

impl Search {
    /// Looks who has lost a message. The search begins when there are more than before.
    fn look(&mut self, desk: &Desk, lanes: &LaneQueues, now: Instant) {
        if self.looked.is_some_and(|at| now - at < SETTLE) {
            return;
        }
        self.looked = Some(now);
        let before: u32 = self.lost.values().sum();
        self.lost.clear();
        if !*desk.post.link.up().borrow() {
            return;
        }
        for held in desk.held(Held::is_orphan) {
            held.discount();
            *self.lost.entry(lanes.name_of(&held.parcel.envelope.head.lane)).or_default() += 1;
        }
        if self.lost.values().sum::<u32>() > before {
            self.since = Some(now);
        }
    }

    /// How many messages of jobs that run here are to be had from this lane queue.
    fn lost(&self, name: &str, now: Instant) -> u32 {
        let searching = self.since.is_some_and(|since| now - since <= SEARCH);
        self.lost.get(name).copied().filter(|_| searching).unwrap_or(0)
    }

    /// Whether messages may be here that came by the way.
    fn is_recent(&self, now: Instant) -> bool {
        self.since.is_some_and(|since| now - since <= SEARCH * 2)
    }
}
