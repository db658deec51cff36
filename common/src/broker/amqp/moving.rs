//! Looking at what waits, for putting it in elsewhere: messages are taken without an answer, one walk at a time, and
//! acknowledged once their jobs are forgotten here. Those that are not go back when the walk ends, or this process.

use std::collections::{HashMap, HashSet};

use lapin::Acker;
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicGetOptions};
use tokio::sync::Mutex;

use super::post::Post;
use super::{admin, topology, wire};
use crate::broker::backend::{Envelope, PAGE_BYTES};
use crate::error::{Error, Kind, Result};
use crate::job::{BatchName, JobId, Queue};
use crate::ledger::Page;
use crate::record::State;

const OP: &str = "look at waiting jobs";

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
            }
            forgotten += u64::from(found);
        }
        Ok(forgotten)
    }
}

impl Walk {
    async fn begin(post: &Post, queue: &Queue, place: usize) -> Result<Self> {
        let lanes = admin::lanes(post, queue).await?;
        let delays = post.settings.levels.iter().map(|level| topology::delay_queue(*level));
        let mut sources = Vec::new();
        for name in delays.clone().chain(lanes.iter().map(topology::lane_queue)).chain(delays) {
            if topology::ready(&post.link, &name).await?.is_some() {
                sources.push(name);
            }
        }
        Ok(Self { channel: post.link.channel().await?, sources, place, taken: HashMap::new(), carried: None, pages: 0 })
    }

    async fn page(&mut self, post: &Post, queue: &Queue, limit: usize) -> Result<Page<Envelope>> {
        let mut items: Vec<Envelope> = self.carried.take().into_iter().collect();
        let mut bytes = items.iter().map(|item| item.payload.len()).sum::<usize>();
        while items.len() < limit && bytes < PAGE_BYTES {
            let Some(source) = self.sources.get(self.place) else { break };
            let got = self.channel.basic_get(source.as_str().into(), BasicGetOptions::default()).await;
            let Some(message) = got.map_err(|error| post.link.peer().lift(OP, &error))? else {
                self.place += 1;
                continue;
            };
            let read = wire::read(&message.delivery, queue, post.clock.now());
            let Envelope { head, payload } = read.parcel.envelope;
            if head.lane.queue != *queue || read.dead.is_some() {
                // Held until the walk ends, so that it is not met again and again.
                self.taken.entry(head.id).or_default().push((u32::MAX, 0, message.delivery.acker.clone()));
                continue;
            }
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
        self.pages += 1;
        let more = self.carried.is_some() || self.place < self.sources.len();
        let next = more.then(|| format!("{}.{}", self.place, self.pages));
        let gone = ended(post, &mut items).await?;
        items.retain(|item| !gone.contains(&(item.head.id, (item.head.epoch, item.head.attempts))));
        // They are not what could be forgotten.
        for (id, of) in &gone {
            for (epoch, attempts, _) in self.taken.get_mut(id).into_iter().flatten() {
                *attempts = if (*epoch, *attempts) == *of { u32::MAX } else { *attempts };
            }
        }
        Ok(Page { items, next })
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
