//! Looking at what waits, for putting it in elsewhere: messages are taken without an answer, one walk at a time, and
//! acknowledged once their jobs are forgotten here. Those that are not go back when the walk ends, or this process. Other
//! queues' messages, which wait in the same delay queues, are sent behind what waits there and are not kept.

use std::collections::{HashMap, HashSet};

use lapin::Acker;
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicGetOptions};
use tokio::sync::Mutex;

use super::post::Post;
use super::publisher::Sent;
use super::wire::{self, Parcel};
use super::{level, topology};
use crate::broker::backend::{Envelope, Head, PAGE_BYTES};
use crate::error::{Error, Kind, Result};
use crate::job::{BatchName, JobId, Queue};
use crate::ledger::Page;
use crate::record::State;

const OP: &str = "look at waiting jobs";
/// How many messages are taken for one page, whosever they are: whoever moves jobs has to show between pages that it lives.
const LOOKED_AT: usize = 2_000;
/// How many of other queues are sent on together, with at most as many bytes as a page has.
const TOGETHER: usize = 200;
/// Beside what a delay queue held when the walk came to it, so many of other queues' are met at most: what their workers
/// gave back meanwhile. With them the walk is round.
const GIVEN_BACK: u64 = 1_000;

/// The walks of a connection.
#[derive(Debug, Default)]
pub(super) struct Walks(Mutex<HashMap<Queue, Walk>>);

/// One walk through everything that waits in a queue.
#[derive(Debug)]
struct Walk {
    channel: Channel,
    /// What is looked through: delay queues before lanes, where what comes due meanwhile is met, and after them, for what
    /// workers had in hand and passed on.
    sources: Vec<String>,
    /// How many of them are done.
    place: usize,
    /// How many messages of other queues may yet be met in this one.
    others: u64,
    /// The first of them that came behind the others: met again, the round is over.
    first: Option<JobId>,
    /// What was taken, by its job: epoch, attempts spent, and what answers for it.
    taken: HashMap<JobId, Vec<(u32, u32, Acker)>>,
    /// Taken, and too large for the page before.
    carried: Option<Envelope>,
    /// How many pages it has given.
    pages: u64,
}

impl Walks {
    /// A page; see [`crate::broker::Backend::waiting`].
    pub(super) async fn page(
        &self,
        post: &Post,
        queue: &Queue,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page<Envelope>> {
        // The number of the page behind it only tells places within one source apart.
        let source = |text: &str| text.split_once('.').map_or(text, |(source, _)| source).parse::<usize>();
        let place = after.map(source).transpose();
        let place = place.map_err(|_| Error::new(Kind::Config, OP, "that is no place in a list of ours"))?;
        let mut walks = self.0.lock().await;
        if place.is_none()
            && let Some(old) = walks.remove(queue)
        {
            old.end(post).await?;
        }
        if !walks.contains_key(queue) {
            walks.insert(queue.clone(), Walk::begin(post, queue, place.unwrap_or(0)).await?);
        }
        let Some(walk) = walks.get_mut(queue) else { return Ok(Page { items: Vec::new(), next: None }) };
        walk.page(post, queue, limit).await
    }

    /// Forgets jobs whose messages a walk has in hand, and acknowledges those. Any other job's message would be met
    /// later and run. How many there were.
    pub(super) async fn forget(&self, post: &Post, jobs: &[(JobId, u32)]) -> Result<u64> {
        let mut walks = self.0.lock().await;
        let taken = |(id, epoch): &(JobId, u32)| walks.values().any(|walk| walk.has(*id, *epoch));
        let jobs: Vec<_> = jobs.iter().copied().filter(taken).collect();
        post.claims.forget(&jobs).await?;
        let mut forgotten = 0;
        for (id, epoch) in &jobs {
            let mut found = false;
            for walk in walks.values_mut() {
                let Some(taken) = walk.taken.get_mut(id) else { continue };
                // Its earlier copies too: nobody would know that they are stale.
                for (_, _, acker) in taken.extract_if(.., |(of, _, _)| *of <= *epoch) {
                    let acked = acker.ack(BasicAckOptions::default()).await;
                    found |= acked.map_err(|error| post.link.peer().lift("forget jobs", &error))?;
                }
                if taken.is_empty() {
                    walk.taken.remove(id);
                }
            }
            forgotten += u64::from(found);
        }
        Ok(forgotten)
    }
}

impl Walk {
    async fn begin(post: &Post, queue: &Queue, place: usize) -> Result<Self> {
        let lanes = topology::lanes(post.ledger(), queue).await?;
        let delays = post.settings.levels.iter().map(|level| topology::delay_queue(*level));
        let mut sources = Vec::new();
        for name in delays.clone().chain(lanes.iter().map(topology::lane_queue)).chain(delays) {
            if topology::ready(&post.link, &name).await?.is_some() {
                sources.push(name);
            }
        }
        let channel = post.link.channel().await?;
        let mut walk =
            Self { channel, sources, place, others: 0, first: None, taken: HashMap::new(), carried: None, pages: 0 };
        walk.enter(post).await?;
        Ok(walk)
    }

    /// Notes what there is to be met in the source that comes next.
    async fn enter(&mut self, post: &Post) -> Result<()> {
        self.first = None;
        if let Some(source) = self.sources.get(self.place) {
            self.others = u64::from(topology::ready(&post.link, source).await?.unwrap_or(0)) + GIVEN_BACK;
        }
        Ok(())
    }

    async fn page(&mut self, post: &Post, queue: &Queue, limit: usize) -> Result<Page<Envelope>> {
        let mut items: Vec<Envelope> = self.carried.take().into_iter().collect();
        let mut bytes = items.iter().map(|item| item.payload.len()).sum::<usize>();
        let (mut looked, mut others) = (0, Others::default());
        while items.len() < limit && bytes < PAGE_BYTES && looked < LOOKED_AT {
            let Some(source) = self.sources.get(self.place) else { break };
            let got = match self.others {
                0 => Ok(None),
                _ => {
                    post.link
                        .answer(OP, self.channel.basic_get(source.as_str().into(), BasicGetOptions::default()))
                        .await?
                }
            };
            let Some(message) = got.map_err(|error| post.link.peer().lift(OP, &error))? else {
                others.pass_on(post).await?;
                self.place += 1;
                self.enter(post).await?;
                continue;
            };
            looked += 1;
            let read = wire::read(&message.delivery, queue, post.clock.now());
            if read.dead.is_some() {
                // Nobody can say when it is due: it goes back when the walk ends, so that it is not met again and again.
                continue;
            }
            if read.parcel.envelope.head.lane.queue != *queue {
                let id = read.parcel.envelope.head.id;
                self.others = if self.first == Some(id) { 0 } else { self.others - 1 };
                let is_behind = others.add(post, read.parcel, message.delivery.acker.clone(), source);
                self.first = self.first.or(is_behind.then_some(id));
                if others.are_many() {
                    others.pass_on(post).await?;
                }
                continue;
            }
            let Envelope { head, payload } = read.parcel.envelope;
            // An earlier attempt's copy may be about yet, and does not stand for the later one.
            let taken = self.taken.entry(head.id).or_default();
            let known = taken.iter().any(|(epoch, attempts, _)| (*epoch, *attempts) == (head.epoch, head.attempts));
            taken.push((head.epoch, head.attempts, message.delivery.acker.clone()));
            if known {
                continue;
            }
            bytes += payload.len();
            if bytes > PAGE_BYTES && !items.is_empty() {
                self.carried = Some(Envelope { head, payload });
                break;
            }
            items.push(Envelope { head, payload });
        }
        others.pass_on(post).await?;
        self.pages += 1;
        let more = self.carried.is_some() || self.place < self.sources.len();
        let next = more.then(|| format!("{}.{}", self.place, self.pages));
        Ok(Page { items: self.still_to_run(post, items).await?, next })
    }

    /// Leaves out what has only to be ended.
    async fn still_to_run(&mut self, post: &Post, mut items: Vec<Envelope>) -> Result<Vec<Envelope>> {
        let gone = ended(post, &mut items).await?;
        items.retain(|item| !gone.contains(&(item.head.id, (item.head.epoch, item.head.attempts))));
        // They are not what could be forgotten.
        for (id, of) in &gone {
            for (epoch, attempts, _) in self.taken.get_mut(id).into_iter().flatten() {
                *attempts = if (*epoch, *attempts) == *of { u32::MAX } else { *attempts };
            }
        }
        Ok(items)
    }

    /// Whether it has taken a message of this job in this epoch.
    fn has(&self, id: JobId, epoch: u32) -> bool {
        self.taken
            .get(&id)
            .is_some_and(|taken| taken.iter().any(|(of, attempts, _)| *of == epoch && *attempts != u32::MAX))
    }

    async fn end(self, post: &Post) -> Result<()> {
        self.channel.close(200, "done".into()).await.map_err(|error| post.link.peer().lift(OP, &error))
    }
}

/// Messages of other queues, met in a delay queue.
#[derive(Default)]
struct Others {
    met: Vec<(Parcel, Acker)>,
    bytes: usize,
}

impl Others {
    /// Whether it is to come behind the others in the same queue. One that nothing says of when it is due is left where
    /// it is until the walk ends.
    fn add(&mut self, post: &Post, parcel: Parcel, acker: Acker, source: &str) -> bool {
        if parcel.envelope.head.not_before.is_none() {
            return false;
        }
        let wait = post.wait(&parcel.envelope.head);
        let level = level::next(&post.settings.levels, wait);
        self.bytes += parcel.envelope.payload.len();
        self.met.push((Parcel { again: true, ..parcel }, acker));
        !wait.is_zero() && topology::delay_queue(level) == source
    }

    fn are_many(&self) -> bool {
        self.met.len() >= TOGETHER || self.bytes >= PAGE_BYTES
    }

    /// Sends each on for the rest of its wait, and takes it away from where it was once that is durable. A death in
    /// between leaves both: the later one is marked as a possible copy.
    async fn pass_on(&mut self, post: &Post) -> Result<()> {
        let Self { met, .. } = std::mem::take(self);
        let mut messages = Vec::with_capacity(met.len());
        for (parcel, _) in &met {
            messages.push(post.to_lane(parcel, post.wait(&parcel.envelope.head))?);
        }
        let sent = post.link.publisher().publish_all(messages).await;
        for ((parcel, acker), sent) in met.into_iter().zip(sent) {
            if sent? == Sent::Returned {
                let Head { id, lane, .. } = &parcel.envelope.head;
                tracing::warn!(job = %id, queue = %lane.queue, "RabbitMQ has no queue for a job; it stays where it is");
                continue;
            }
            let acked = acker.ack(BasicAckOptions::default()).await;
            acked.map_err(|error| post.link.peer().lift(OP, &error))?;
        }
        Ok(())
    }
}

/// Those that have only to be ended yet, or have ended, with their epoch and attempts: their messages stay for a worker
/// to meet. The others get their deadline of today: one whose end was taken back has a later one than its message says.
async fn ended(post: &Post, items: &mut [Envelope]) -> Result<HashSet<(JobId, (u32, u32))>> {
    let ids: Vec<JobId> = items.iter().map(|item| item.head.id).collect();
    let now = post.clock.now();
    let mut gone = HashSet::new();
    let mut cancelled: HashMap<BatchName, bool> = HashMap::new();
    for (Envelope { head, .. }, view) in items.iter_mut().zip(post.ledger().fetch(&ids).await?) {
        if let (0, Some(batch)) = (head.epoch, &head.batch) {
            if !cancelled.contains_key(batch) {
                let is_cancelled = post.ledger().batch(batch).await?.is_some_and(|view| view.cancelled);
                cancelled.insert(batch.clone(), is_cancelled);
            }
            if cancelled.get(batch) == Some(&true) {
                gone.insert((head.id, (head.epoch, head.attempts)));
            }
        }
        if let Some(view) = view.as_ref().filter(|view| view.epoch == head.epoch) {
            head.deadline = head.deadline.max(view.deadline);
        }
        if head.deadline <= now {
            gone.insert((head.id, (head.epoch, head.attempts)));
        }
        let Some(view) = view else { continue };
        let waits = matches!(view.state, State::Scheduled | State::Queued | State::Retrying);
        if !waits || view.epoch > head.epoch || view.attempts > head.attempts {
            gone.insert((head.id, (head.epoch, head.attempts)));
        }
    }
    Ok(gone)
}
