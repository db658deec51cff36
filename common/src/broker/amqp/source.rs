//! A worker's subscription: takes deliveries from its consumers, has the ledger open as many as are wanted, and hands
//! out those that may run. What waits for that is `waiting.rs`, what is consumed `plan.rs`, how consumers are kept
//! `consumers.rs`.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::consumers::{Arrival, Consumers};
use super::desk::{Desk, Item};
use super::duplicates::{Due, Duplicates};
use super::mend::Mender;
use super::news::{self, Feed};
use super::opening::Opening;
use super::plan::{Allowed, Inputs, Leaving, Planner, is_mute};
use super::post::Post;
use super::receipt::Receipt;
use super::waiting::{LaneQueue, LaneQueues};
use super::{leave, swap, topology, wire};
use crate::broker::backend::{LEASE_BYTES, Leased, RawDelivery, Terms, Want};
use crate::broker::rounds::{Open, Rounds};
use crate::error::{Error, Kind, Result};
use crate::job::{Lane, Queue};

/// An empty call lasts at most this long.
const PATIENCE: Duration = Duration::from_secs(1);
/// A worker that has not asked for so long has no hands free: otherwise it asks again at once.
const SILENT: Duration = Duration::from_millis(500);
/// How many lanes a caller is told of.
const LANES: usize = 1_000;
/// How long the last results may take to be announced when a worker leaves.
const LEAVING: Duration = Duration::from_secs(5);

/// A subscription.
#[derive(Debug)]
pub(super) struct AmqpSource {
    desk: Arc<Desk>,
    terms: Terms,
    consumers: Consumers,
    lanes: LaneQueues,
    feed: Feed,
    rounds: Rounds,
    opening: JoinSet<(Vec<Opening>, Asked)>,
    /// How many are being opened.
    asked: Arc<AtomicU32>,
    /// Second copies of what is in hand.
    duplicates: Duplicates,
    /// Claimed, not handed out.
    ready: VecDeque<RawDelivery>,
    /// What the next call says unless it has something to hand out.
    trouble: Option<Error>,
    planner: Planner,
    mender: Mender,
    /// When it was last asked for jobs.
    asked_at: Instant,
    /// Keeps the claims, the news and long jobs' messages.
    keepers: JoinSet<()>,
    hold: Arc<str>,
}

/// So many messages are being opened, however that ends.
#[derive(Debug)]
struct Asked(Arc<AtomicU32>, u32);

impl Asked {
    /// The part of one of them, which takes longer than the others.
    fn one(&mut self) -> Self {
        let part = self.1.min(1);
        self.1 -= part;
        Self(Arc::clone(&self.0), part)
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

impl AmqpSource {
    /// Subscribes. `Config` when a queue is named twice.
    pub(super) async fn open(post: Arc<Post>, terms: Terms) -> Result<Self> {
        let mut seen = HashSet::new();
        if let Some((twice, _)) = terms.queues.iter().find(|(queue, _)| !seen.insert(queue)) {
            return Err(Error::new(Kind::Config, "subscribe", format!("queue {twice} is named twice")));
        }
        let desk = Desk::new(Arc::clone(&post), &terms);
        let queues: Vec<Queue> = terms.queues.iter().map(|(queue, _)| queue.clone()).collect();
        let mut keepers = JoinSet::new();
        let feed = news::follow(&post, queues, &mut keepers).await?;
        let hold: Arc<str> = topology::hold_name(&terms.worker).into();
        keepers.spawn(swap::keep(Arc::downgrade(&desk), post.settings.consumer_timeout, terms.lease));
        let mut source = Self {
            consumers: Consumers::open(&post),
            desk,
            terms,
            lanes: LaneQueues::default(),
            feed,
            rounds: Rounds::default(),
            opening: JoinSet::new(),
            asked: Arc::default(),
            duplicates: Duplicates::default(),
            ready: VecDeque::new(),
            trouble: None,
            planner: Planner::new(),
            mender: Mender::default(),
            asked_at: Instant::now(),
            keepers,
            hold,
        };
        source.learn();
        Ok(source)
    }

    /// Takes over which lanes there are.
    fn learn(&mut self) {
        let news = self.feed.news.borrow_and_update().clone();
        // A lane that was given up is consumed no more, so that it can go.
        leave::give_back(self.lanes.keep(&news.lanes));
    }

    /// Sees to everything that can be done without waiting.
    fn go_on(&mut self, want: &Want) {
        while let Some(arrival) = self.consumers.try_next() {
            self.take_in(arrival);
        }
        if self.feed.news.has_changed().unwrap_or(false) {
            self.learn();
        }
        self.plan(want);
        self.mend();
        self.tell_closed();
        self.see_to_duplicates();
        self.choose(want);
        while let Some(opened) = self.opening.try_join_next() {
            self.sort(opened.ok());
        }
    }

    /// Goes on for a worker that does not ask, as one that has all hands full: what runs is kept, the rest goes back.
    pub(super) fn tend(&mut self) {
        if self.asked_at.elapsed() > SILENT {
            self.go_on(&Want::default());
            self.hand_out(&Want::default());
        }
    }

    /// Puts what was delivered where it waits to be opened.
    fn take_in(&mut self, arrival: Arrival) {
        let Arrival { queue, delivery, origin } = arrival;
        if !delivery.acker.usable() {
            // Its channel is lost: the message itself comes again, here or elsewhere.
            return origin.answers.forget(delivery.delivery_tag);
        }
        let (held, redelivered) = (queue == self.hold, delivery.redelivered);
        let receipt = Receipt::new(&delivery, &origin);
        let named = self.lanes.lane(&queue).map(|lane| lane.queue.clone());
        let named = named.or_else(|| topology::queue_of_key(delivery.routing_key.as_str()));
        let now = self.desk.post.clock.now();
        let read = wire::read(&delivery, &named.unwrap_or_else(|| self.terms.queues[0].0.clone()), now);
        let Some(item) = self.desk.attach(Item::new(read, receipt, redelivered, held)) else { return };
        self.planner.weigh(item.parcel.envelope.payload.len());
        let wait = self.desk.post.wait(&item.parcel.envelope.head);
        // What comes from the hold queue and does not run here any more goes the ordinary way.
        if held || (!wait.is_zero() && item.dead.is_none()) {
            return self.pass_on(&queue, item, wait);
        }
        let place = self.lanes.place(queue, &item.parcel.envelope.head.lane);
        // One that nothing is taken from is to have no more of the worker for what it gave.
        if place.closed.is_none() {
            place.delivered = Some(Instant::now());
        }
        place.waiting.push_back(item);
    }

    /// Has a message wait elsewhere. Nothing waits for that.
    fn pass_on(&mut self, queue: &str, item: Item, wait: Duration) {
        let passing = self.lanes.get_mut(queue).map(LaneQueue::pass_on);
        let desk = Arc::clone(&self.desk);
        self.desk.spawn(async move {
            item.put_off(&desk.post, wait).await;
            drop(passing);
        });
    }

    /// Has the ledger open as many of the waiting messages as are wanted beyond what is on its way already.
    fn choose(&mut self, want: &Want) {
        self.lanes.drop_lost();
        let under_way = self.asked.load(Ordering::Relaxed) + u32::try_from(self.ready.len()).unwrap_or(0);
        let total = want.total.saturating_sub(under_way);
        if total == 0 || self.lanes.items().next().is_none() || is_mute(&self.desk) {
            return;
        }
        let open: Vec<Open> = {
            let news = self.feed.news.borrow();
            let allowed = Allowed::new(want, &news.paused);
            let counts = self.lanes.counts().into_iter();
            counts.map(|(lane, count)| Open { room: count.min(allowed.of(lane)), lane: lane.clone() }).collect()
        };
        let turns = self.rounds.take(&self.terms.queues, &open, total);
        let mut bytes: usize = self.ready.iter().map(|job| job.payload.len()).sum();
        let mut chosen = Vec::with_capacity(turns.len());
        for place in turns {
            let Some(item) = self.lanes.pull(&open[place].lane) else { continue };
            let size = item.parcel.envelope.payload.len();
            if bytes > 0 && bytes + size > LEASE_BYTES {
                self.put_back(item);
                break;
            }
            bytes += size;
            chosen.push(item);
        }
        if !chosen.is_empty() {
            let count = u32::try_from(chosen.len()).unwrap_or(u32::MAX);
            self.asked.fetch_add(count, Ordering::Relaxed);
            let (desk, mut asked) = (Arc::clone(&self.desk), Asked(Arc::clone(&self.asked), count));
            self.opening.spawn(async move { (desk.open_all(chosen, || asked.one()).await, asked) });
        }
    }

    fn put_back(&mut self, item: Item) {
        if let Some(item) = self.lanes.put_back(item) {
            leave::give_back(vec![item]);
        }
    }

    /// Has a message wait where it cannot be seen. Nothing waits for that.
    fn put_off(&self, item: Item, wait: Duration) {
        let desk = Arc::clone(&self.desk);
        self.desk.spawn(async move { item.put_off(&desk.post, wait).await });
    }

    /// Sorts what the ledger said.
    fn sort(&mut self, opened: Option<(Vec<Opening>, Asked)>) {
        let Some((opened, _asked)) = opened else { return };
        let mut granted = Vec::with_capacity(opened.len());
        for opening in opened.into_iter().rev() {
            match opening {
                Opening::Granted(delivery) => granted.push(*delivery),
                // Its queue is closed as soon as the news says so.
                Opening::Paused(item) => self.put_off(*item, PATIENCE),
                Opening::Second(item) => {
                    if let Some(third) = self.duplicates.keep(*item) {
                        self.put_off(third, self.terms.lease);
                    }
                }
                Opening::Failed(item, error) => {
                    self.trouble = Some(error);
                    self.put_back(*item);
                }
            }
        }
        // Behind what was opened before it and waits to be handed out.
        self.ready.extend(granted.into_iter().rev());
    }

    /// Hands out what is ready and wanted; what is not wanted any more goes back.
    fn hand_out(&mut self, want: &Want) -> Vec<RawDelivery> {
        let fits = want.fitting(self.ready.iter().map(|job| &job.head.lane));
        let (mut out, mut unwanted) = (Vec::new(), Vec::new());
        for (job, fits) in std::mem::take(&mut self.ready).into_iter().zip(fits) {
            if fits { out.push(job) } else { unwanted.push(job) }
        }
        if !unwanted.is_empty() {
            self.desk.spawn(leave::release(unwanted, self.terms.lease));
        }
        out
    }

    /// Sets what is consumed, and has leave what is not to stay.
    fn plan(&mut self, want: &Want) {
        let Leaving { returned, passed } = {
            let news = self.feed.news.borrow();
            let (desk, consumers, hold) = (&self.desk, &self.consumers, &self.hold);
            let inputs = Inputs { want, queues: &self.terms.queues, paused: &news.paused, desk, consumers, hold };
            self.planner.plan(&inputs, &mut self.lanes)
        };
        for (name, item, wait) in passed {
            self.pass_on(&name, item, wait);
        }
        leave::give_back(returned);
    }

    /// Sees to second copies.
    fn see_to_duplicates(&mut self) {
        let Due { alone, old } = self.duplicates.due(&self.desk, self.desk.post.settings.consumer_timeout);
        for item in alone {
            self.put_back(item);
        }
        for item in old {
            self.put_off(item, self.terms.lease);
        }
    }

    /// Has lane queues made again that somebody deleted.
    fn mend(&mut self) {
        self.mender.see_to(self.consumers.missing(), |name| Some(self.lanes.lane(name)?.queue.clone()), &self.desk);
    }

    /// Lanes with jobs that wait, closed ones included.
    fn lanes_seen(&self) -> Vec<Lane> {
        let here = self.lanes.counts().into_keys().cloned();
        let mut lanes: Vec<Lane> = here.chain(self.feed.news.borrow().waiting.iter().cloned()).collect();
        lanes.sort_unstable();
        lanes.dedup();
        lanes.truncate(LANES);
        lanes
    }

    /// Lanes nothing is taken from, for the news to look whether jobs wait there.
    fn tell_closed(&self) {
        let closed = self.lanes.values().filter(|queue| queue.closed.is_some()).map(|queue| queue.lane.clone());
        let closed: Vec<Lane> = closed.take(LANES).collect();
        self.feed.closed.send_if_modified(|old| {
            let new = *old != closed;
            *old = closed;
            new
        });
    }

    /// See [`crate::broker::Source::next`].
    pub(super) async fn next(&mut self, want: &Want) -> Result<Leased> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.asked_at = Instant::now();
            self.go_on(want);
            let deliveries = self.hand_out(want);
            if !deliveries.is_empty() || self.trouble.is_some() || Instant::now() >= deadline {
                if let Some(error) = self.trouble.take().filter(|_| deliveries.is_empty()) {
                    return Err(error);
                }
                if deliveries.is_empty() {
                    self.desk.post.check()?;
                    self.consumers.check()?;
                }
                return Ok(Leased { deliveries, lanes_seen: self.lanes_seen() });
            }
            tokio::select! {
                Some(arrival) = self.consumers.next() => self.take_in(arrival),
                Some(opened) = self.opening.join_next() => self.sort(opened.ok()),
                () = tokio::time::sleep_until(self.duplicates.next_look().map_or(deadline, |at| at.min(deadline))) => {}
            }
        }
    }

    /// See [`crate::broker::Source::close`].
    pub(super) async fn close(mut self) -> Result<()> {
        while let Some(opened) = self.opening.join_next().await {
            self.sort(opened.ok());
        }
        let holding = self.desk.holding.load(Ordering::Relaxed);
        self.consumers.set(holding.then(|| (Arc::clone(&self.hold), 0)).into_iter().collect());
        self.desk.leaving.store(true, Ordering::Relaxed);
        self.desk.spawn(leave::release(std::mem::take(&mut self.ready).into(), self.terms.lease));
        let duplicates = std::mem::take(&mut self.duplicates).into_items();
        leave::give_back(std::mem::take(&mut self.lanes).into_items().into_iter().chain(duplicates).collect());
        self.desk.finish(LEAVING).await;
        let Self { desk, consumers, keepers, hold, .. } = self;
        leave::quit(desk, consumers, keepers, hold).await;
        Ok(())
    }
}
