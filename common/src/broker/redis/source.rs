//! A worker's subscription: leases by turns from lanes it has seen, sleeps on a token when there is nothing to lease.
//! What a lease does to jobs is `lease.lua`; whose turn it is, `broker/rounds.rs`.

use std::collections::{HashMap, HashSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use deadpool_redis::redis::Value;
use futures_util::future::{join_all, try_join_all};
use rand::RngExt as _;
use tokio::time::Instant;

use super::Redis;
use super::call::Call;
use super::hold::{Desk, Granted, RedisHold, Tried, clamped};
use super::inbox;
use super::link::Link;
use super::stored::millis_of;
use super::turns::Turns;
use super::waker::{Token, Waker};
use super::wire::{Places, Seen, lane_from, prefix};
use crate::broker::LeaseId;
use crate::broker::backend::{Leased, RawDelivery, Source, Terms, Verdict, Want};
use crate::broker::rounds::{Open, Rounds};
use crate::error::{Error, Kind, Result};
use crate::job::{JobId, Lane, Queue};
use crate::time::Timestamp;

/// An empty call lasts at most this long.
const PATIENCE: Duration = Duration::from_secs(1);
/// Without a token a subscription looks after this time, or a third of its lease where that is shorter: nobody leaves a
/// token when a worker dies.
const LOOK: Duration = Duration::from_secs(5);
/// What is due is asked for at most this often.
const PAUSE: Duration = Duration::from_millis(5);
/// After an inbox could not be taken in: as long as an empty call lasts.
const INBOX_REST: Duration = PATIENCE;
/// How many lanes a caller is told of.
const LANES: usize = 1_000;
/// How many jobs one call leases at most.
const AT_ONCE: u32 = 1_000;
/// How many it leases at most from lanes that it is about to see first: what an idle worker is woken for is there one
/// round trip earlier, and more than this waits its turn.
const UNSEEN: u32 = 16;

/// One call to each queue, under way whether or not anybody waits for it.
type Flight = Pin<Box<dyn Future<Output = Vec<(Call, Result<Value>)>> + Send>>;

/// How many calls without an answer are remembered; what more of them leased comes back when it runs out.
const LOST: usize = 100;

pub(super) struct RedisSource {
    link: Link,
    desk: Arc<Desk>,
    terms: Terms,
    queues: Vec<Known>,
    rounds: Rounds,
    waker: Waker,
    /// The lease in flight when a call was dropped, and the turns it was asked by.
    flight: Option<(Flight, Turns)>,
    /// What that lease gave, until the next call says what of it is still wanted.
    held: Vec<RawDelivery>,
    /// Calls that may have leased what nobody was told of.
    lost: Vec<Call>,
    /// When that lease was asked for, or the last one.
    asked: Instant,
    /// Look again then, at the latest.
    look_at: Instant,
    /// Inboxes are left alone until then: the last attempt failed.
    inbox_rest: Instant,
}

/// What the last look at a queue saw.
struct Known {
    prefix: Arc<[u8]>,
    lanes: Vec<(Lane, u32)>,
    paused: bool,
    /// Whether something may be there that the last look did not see.
    stirred: bool,
    /// Hops of the token that woke us for it.
    hops: u32,
    /// Lines in its inbox.
    inbox: u64,
}

impl std::fmt::Debug for RedisSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisSource").field("terms", &self.terms).finish_non_exhaustive()
    }
}

impl RedisSource {
    /// A subscription. `Config` when a queue is named twice.
    pub(super) fn new(redis: &Redis, terms: Terms) -> Result<Self> {
        let mut seen = HashSet::new();
        if let Some((twice, _)) = terms.queues.iter().find(|(queue, _)| !seen.insert(queue)) {
            return Err(Error::new(Kind::Config, "subscribe", format!("queue {twice} is named twice")));
        }
        let prefixes: Vec<_> = terms.queues.iter().map(|(queue, _)| prefix(queue)).collect();
        let known = |prefix: &Vec<u8>| Known {
            prefix: prefix.as_slice().into(),
            lanes: Vec::new(),
            paused: false,
            stirred: true,
            hops: 0,
            inbox: 0,
        };
        Ok(Self {
            link: redis.link.clone(),
            desk: Arc::clone(&redis.desk),
            queues: prefixes.iter().map(known).collect(),
            rounds: Rounds::default(),
            waker: Waker::start(redis.link.clone(), prefixes),
            terms,
            flight: None,
            held: Vec::new(),
            lost: Vec::new(),
            asked: Instant::now(),
            look_at: Instant::now(),
            inbox_rest: Instant::now(),
        })
    }

    /// Lanes with ready jobs, as of the last look.
    fn lanes_seen(&self) -> Vec<Lane> {
        let open = self.queues.iter().filter(|known| !known.paused);
        open.flat_map(|known| known.lanes.iter().map(|(lane, _)| lane.clone())).take(LANES).collect()
    }

    /// How much of each lane this call may take.
    fn open(&self, want: &Want) -> impl Iterator<Item = Open> {
        let caps: HashMap<&Lane, u32> = want.caps.iter().map(|(lane, cap)| (lane, *cap)).collect();
        let lanes = self.queues.iter().filter(|known| !known.paused).flat_map(|known| &known.lanes);
        lanes.map(move |(lane, ready)| {
            let cap = caps.get(lane).copied().unwrap_or(want.rest);
            Open { lane: lane.clone(), room: cap.min(*ready) }
        })
    }

    /// Asks every queue that has a turn or was stirred; all of them when it is time to look.
    fn take_off(&mut self, want: &Want) {
        let open: Vec<Open> = self.open(want).collect();
        let turns = self.rounds.take(&self.terms.queues, &open, want.total.min(AT_ONCE));
        let (turns, counted) = Turns::of(&open, &turns);
        let mut counts: HashMap<&Queue, Vec<(&Lane, u32)>> = HashMap::new();
        for (lane, count) in turns.lanes.iter().zip(counted) {
            counts.entry(&lane.queue).or_default().push((lane, count));
        }
        let look = self.look_at <= Instant::now();
        let alone = want.total > 0 && turns.lanes.is_empty();
        let mut calls = Vec::new();
        for (place, (queue, _)) in self.terms.queues.iter().enumerate() {
            let lanes = counts.remove(queue).unwrap_or_default();
            let known = &mut self.queues[place];
            if !std::mem::take(&mut known.stirred) && lanes.is_empty() && !look {
                continue;
            }
            let hops = std::mem::take(&mut known.hops);
            // One queue at a time, so that no more than wanted comes of all.
            let unseen = alone && (hops > 0 || self.queues.len() == 1);
            let known = &self.queues[place];
            let (call, args) = if unseen {
                let caps = want.caps.iter().filter(|(lane, _)| lane.queue == *queue);
                let caps: Vec<_> = caps.map(|(lane, cap)| (lane, *cap)).collect();
                Call::new(&self.link, place, want.total.min(UNSEEN)).args(&self.terms, hops, Some(want.rest), &caps)
            } else {
                let jobs = lanes.iter().map(|(_, count)| count).sum();
                Call::new(&self.link, place, jobs).args(&self.terms, hops, None, &lanes)
            };
            calls.push(call.make(self.link.clone(), known.prefix.to_vec(), args));
        }
        self.asked = Instant::now();
        if look {
            self.look_at = self.asked + LOOK.min(self.terms.lease / 3).mul_f64(rand::rng().random_range(0.8..1.0));
        }
        self.flight = Some((Box::pin(join_all(calls)), turns));
    }

    /// Waits for the lease in flight. An error only when nothing was leased anywhere.
    async fn land(&mut self) -> Result<Vec<RawDelivery>> {
        let Some((flight, _)) = &mut self.flight else { return Ok(Vec::new()) };
        let answers = flight.await;
        let turns = self.flight.take().map(|(_, turns)| turns).unwrap_or_default();
        let (mut leased, mut trouble) = (Vec::new(), None);
        for (call, answer) in answers {
            match answer.and_then(|answer| self.note(&call, answer)) {
                Ok(jobs) => leased.extend(jobs),
                Err(error) => {
                    trouble = Some(error);
                    if !call.leases.is_empty() && self.lost.len() < LOST {
                        self.lost.push(call);
                    }
                }
            }
        }
        let in_turn = turns.sort(leased);
        match trouble {
            Some(error) if in_turn.is_empty() => {
                // A queue that fails again and again must not be the only one that is asked.
                for known in &mut self.queues {
                    known.stirred = true;
                }
                Err(error)
            }
            Some(error) => {
                tracing::warn!(%error, "one queue could not be leased from");
                Ok(in_turn)
            }
            None => Ok(in_turn),
        }
    }

    /// Gives back what calls without an answer may have leased. A queue in which that cannot be done holds up no other:
    /// what was leased there comes back when it runs out.
    async fn disown(&mut self) -> Result<()> {
        while let Some(call) = self.lost.last() {
            match call.give_back(&self.link, &self.queues[call.place].prefix, &self.terms).await {
                Err(error) if error.is_transient() => return Err(error),
                Err(error) => tracing::warn!(%error, "leases that nobody heard of could not be given back"),
                Ok(()) => {}
            }
            self.lost.pop();
        }
        Ok(())
    }

    /// Remembers what a queue answered, and gives the jobs it leased.
    fn note(&mut self, call: &Call, answer: Value) -> Result<Vec<RawDelivery>> {
        let Call { place, leases, made } = call;
        let place = *place;
        let queue = &self.terms.queues[place].0;
        let known = &mut self.queues[place];
        let mut places = Places::of(answer)?;
        let now = places.time()?;
        known.paused = !places.text()?.is_empty();
        let due = places.time()?;
        known.inbox = places.number()?;
        let turned = places.exactly()?;
        let mut lanes = places.list()?;
        known.lanes.clear();
        while lanes.left() > 1 && known.lanes.len() < LANES {
            known.lanes.push((lane_from(queue, &lanes.text()?)?, lanes.number()?));
        }
        if due > Timestamp::from_millis(0) {
            self.look_at = self.look_at.min(self.asked + due.since(now).max(PAUSE));
        }
        let (ids, mut jobs) = (places.bytes()?, places.list()?);
        let till = millis_of(now) + clamped(self.terms.lease);
        let mut delivered = Vec::with_capacity(jobs.left());
        for (id, lease) in ids.as_chunks().0.iter().zip(leases.as_chunks().0) {
            let bytes = jobs.bytes()?;
            let (id, lease) = (JobId::from_bytes(*id), LeaseId::from_bytes(*lease));
            let before = delivered.last().map(|job: &RawDelivery| &job.head);
            match Seen::after(before, &self.terms.queues[place].0, id, &bytes) {
                Ok(job) => {
                    let granted = Granted::new(*made, job.deaths, till, turned);
                    delivered.push(self.deliver(place, job, lease, granted));
                }
                Err(error) => tracing::error!(%error, "a leased job cannot be read; its lease runs out"),
            }
        }
        for job in places.bytes()?.as_chunks().0 {
            tracing::error!(job = %JobId::from_bytes(*job), %queue, "a job cannot be read: it does not run; its bytes stay where they are");
        }
        Ok(delivered)
    }

    fn deliver(&self, place: usize, job: Seen, lease: LeaseId, granted: Granted) -> RawDelivery {
        let hold = RedisHold {
            link: self.link.clone(),
            desk: Arc::clone(&self.desk),
            key: Arc::clone(&self.queues[place].prefix),
            tried: Tried::from(&job.head),
            lease,
            length: self.terms.lease,
            granted,
        };
        RawDelivery { head: job.head, payload: job.payload, lease, hold: Box::new(hold) }
    }

    /// What of an earlier call's lease fits this one; the rest goes back at once, ahead of its lane.
    async fn left_over(&mut self, want: &Want) -> Result<Vec<RawDelivery>> {
        if self.flight.is_some() {
            let landed = self.land().await?;
            self.held.extend(landed);
        }
        if self.held.is_empty() {
            return Ok(Vec::new());
        }
        let old = self.asked.elapsed() > self.terms.lease / 2;
        let fits = want.fitting(self.held.iter().map(|job| &job.head.lane));
        let going = self.held.iter().zip(&fits).filter(|(_, fits)| old || !**fits).map(|(job, _)| job);
        // Until they have gone back everything stays held: this future may be dropped while it waits.
        release(going).await?;
        let mut fits = fits.into_iter();
        self.held.retain(|_| !old && fits.next().unwrap_or(false));
        Ok(std::mem::take(&mut self.held))
    }

    /// Takes in what foreign clients left in the inboxes that the last look saw. Leasing goes on when that fails: a full
    /// server takes no more jobs and has to be drained.
    async fn take_in(&mut self) {
        for place in 0..self.queues.len() {
            if self.queues[place].inbox == 0 || self.inbox_rest > Instant::now() {
                continue;
            }
            match inbox::take_in(&self.link, &self.terms.queues[place].0).await {
                Ok(_) => (self.queues[place].inbox, self.queues[place].stirred) = (0, true),
                Err(error) => {
                    tracing::warn!(%error, queue = %self.terms.queues[place].0, "jobs of foreign clients stay in the inbox");
                    self.inbox_rest = Instant::now() + INBOX_REST;
                }
            }
        }
    }

    /// Waits until a token comes, something is due, or `until`.
    async fn wait(&mut self, until: Instant) {
        let look_at = self.look_at;
        let token = tokio::select! {
            () = tokio::time::sleep_until(until.min(look_at)) => return,
            token = self.waker.token() => token,
        };
        let Some(Token { key, hops }) = token else {
            return tokio::time::sleep_until(until.min(look_at)).await;
        };
        if let Some(known) = self.queues.iter_mut().find(|known| *known.prefix == *key) {
            (known.stirred, known.hops) = (true, hops);
        }
    }
}

#[async_trait]
impl Source for RedisSource {
    async fn next(&mut self, want: &Want) -> Result<Leased> {
        let until = Instant::now() + PATIENCE;
        let mut deliveries = self.left_over(want).await?;
        let mut in_vain = 0;
        while deliveries.is_empty() && Instant::now() < until {
            if want.total > 0 {
                self.take_in().await;
            }
            let offered = want.total > 0 && self.open(want).any(|open| open.room > 0);
            let stirred = self.queues.iter().any(|known| known.stirred);
            if offered || stirred || self.look_at <= Instant::now() {
                // The first look finds lanes, the second leases from them, unless others were faster.
                if in_vain > 1 {
                    tokio::time::sleep(PAUSE).await;
                }
                self.disown().await?;
                self.take_off(want);
                deliveries = self.land().await?;
                in_vain += 1;
            } else {
                self.wait(until).await;
                in_vain = 0;
            }
        }
        Ok(Leased { deliveries, lanes_seen: self.lanes_seen() })
    }

    async fn close(mut self: Box<Self>) -> Result<()> {
        let landed = self.land().await;
        self.disown().await?;
        self.held.extend(landed?);
        release(self.held.iter()).await
    }
}

/// Hands leases back: available at once, ahead of their lanes, spending nothing.
async fn release(jobs: impl Iterator<Item = &RawDelivery>) -> Result<()> {
    let verdict = Verdict::Release { after: Duration::ZERO, hold: None };
    try_join_all(jobs.map(|job| job.hold.settle(&verdict))).await.map(drop)
}
