//! What people ask of queues and jobs: the ledger answers, since RabbitMQ can neither list nor change what waits in it.

use std::collections::{HashMap, HashSet};

use futures_util::stream::{self, StreamExt, TryStreamExt};
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicNackOptions};

use super::post::Post;
use super::publisher::Sent;
use super::topology;
use super::wire::{self, Parcel};
use crate::broker::backend::{
    ASKED_AT_ONCE, Claim, Depth, Envelope, Head, LeaseId, PAGE_BYTES, QueueView, Redriven, Verdict, WorkerId,
};
use crate::broker::head;
use crate::codec;
use crate::error::{Error, Kind, Result};
use crate::job::{Band, JobId, Lane, Queue};
use crate::ledger::{Asked, JobView, Raised};
use crate::record::State;

/// A purge claims what it should not have ended for so long at most.
const PURGE_LEASE: std::time::Duration = std::time::Duration::from_secs(10);
/// How many messages of a lane that have to stay a purge holds until it is done with the lane …
const KEPT: usize = 1_000;
/// … and how much of what they hold: as much as a submission sends at once, eight times.
const KEPT_BYTES: usize = 8 * PAGE_BYTES;

/// Whether a queue is not there for sure; and if it is not, whether no other is either.
pub(super) async fn is_missing(post: &Post, queue: &Queue) -> Option<bool> {
    let lane = Lane { queue: queue.clone(), model: None, band: Band::Normal };
    if is_absent(post, &topology::lane_queue(&lane)).await {
        return Some(is_absent(post, topology::DEAD).await);
    }
    None
}

async fn is_absent(post: &Post, name: &str) -> bool {
    matches!(topology::ready(&post.link, name).await, Ok(None))
}

/// What waits is counted by RabbitMQ, ready jobs by lane and delayed ones all together; what runs and is dead, by the
/// ledger.
pub(super) async fn depth(post: &Post, queue: &Queue) -> Result<QueueView> {
    let view = post.claims.standing(queue).await?;
    let delayed = delayed(post).await?;
    let of_all = delayed > 0 && post.claims.standings().await?.iter().any(|other| other.queue != *queue);
    counted(post, view, (delayed, of_all)).await
}

/// A queue that the ledger or RabbitMQ knows.
pub(super) async fn view(post: &Post, queue: &Queue) -> Result<Option<QueueView>> {
    let view = depth(post, queue).await?;
    // Delayed jobs of all queues tell of none.
    let alone = QueueView { depth: Depth { delayed: 0, delayed_of_all: false, ..view.depth }, ..view.clone() };
    let exists = !alone.is_blank() || is_missing(post, queue).await.is_none() || names(post).await?.contains(queue);
    Ok(exists.then_some(view))
}

/// Those of these queues that the ledger or RabbitMQ knows. What the ledger has of all queues is read once for several, and
/// not for one.
pub(super) async fn views(post: &Post, queues: &[Queue]) -> Result<Vec<Option<QueueView>>> {
    if let [queue] = queues {
        return Ok(vec![view(post, queue).await?]);
    }
    let known = post.claims.standings().await?.into_iter().map(|view| (view.queue.clone(), view)).collect();
    let delayed = delayed(post).await?;
    let asked: Vec<_> = queues.iter().map(|queue| among(post, &known, (queue, delayed))).collect();
    stream::iter(asked).buffered(ASKED_AT_ONCE).try_collect().await
}

/// One of them, where these are known to the ledger.
async fn among(
    post: &Post,
    known: &HashMap<Queue, QueueView>,
    (queue, delayed): (&Queue, u64),
) -> Result<Option<QueueView>> {
    let standing = known.get(queue);
    let of_all = delayed > 0 && known.len() > usize::from(standing.is_some());
    let blank = || QueueView { queue: queue.clone(), paused: None, depth: Depth::default() };
    let view = counted(post, standing.cloned().unwrap_or_else(blank), (delayed, of_all)).await?;
    let exists = standing.is_some() || view.depth.ready > 0 || is_missing(post, queue).await.is_none();
    Ok(exists.then_some(view))
}

/// Every queue the ledger knows.
pub(super) async fn queues(post: &Post) -> Result<Vec<QueueView>> {
    let known = post.claims.standings().await?;
    let delayed = delayed(post).await?;
    let of_all = delayed > 0 && known.len() > 1;
    let counting = known.into_iter().map(|view| counted(post, view, (delayed, of_all)));
    stream::iter(counting).buffered(ASKED_AT_ONCE).try_collect().await
}

/// Delayed jobs of all queues: each delay queue is for every lane.
async fn delayed(post: &Post) -> Result<u64> {
    let mut delayed = 0;
    for level in &post.settings.levels {
        delayed += u64::from(topology::ready(&post.link, &topology::delay_queue(*level)).await?.unwrap_or(0));
    }
    Ok(delayed)
}

/// What the ledger says of a queue, with what waits in its lanes and in all delay queues.
async fn counted(post: &Post, mut view: QueueView, (delayed, of_all): (u64, bool)) -> Result<QueueView> {
    let mut ready = 0;
    for lane in topology::lanes(post.ledger(), &view.queue).await? {
        ready += u64::from(topology::ready(&post.link, &topology::lane_queue(&lane)).await?.unwrap_or(0));
    }
    view.depth = Depth { ready, delayed, delayed_of_all: of_all, oldest_ready: None, ..view.depth };
    Ok(view)
}

/// The names of every queue the ledger knows.
pub(super) async fn names(post: &Post) -> Result<Vec<Queue>> {
    Ok(post.claims.standings().await?.into_iter().map(|view| view.queue).collect())
}

/// Ended jobs back in line: the ledger first, then their messages.
pub(super) async fn redrive(post: &Post, ids: &[JobId]) -> Result<Vec<Redriven>> {
    let raised = post.claims.raise(ids).await?;
    crate::crash_point!("amqp.redrive.after_raise");
    let mut places = Vec::new();
    let mut parcels = Vec::new();
    let mut seen = HashSet::new();
    for (place, raised) in raised.iter().enumerate() {
        // An id named twice is raised once.
        if let Raised::Publish(envelope) = raised
            && seen.insert(envelope.head.id)
        {
            places.push(place);
            parcels.push(Parcel { envelope: (**envelope).clone(), reply: None, named: false, again: true });
        }
    }
    let messages: Result<Vec<_>> =
        parcels.iter().map(|parcel| post.to_lane(parcel, post.wait(&parcel.envelope.head))).collect();
    let sent = post.link.publisher().publish_all(messages?).await;
    crate::crash_point!("amqp.redrive.after_publish");
    for (parcel, sent) in parcels.iter().zip(sent) {
        if sent? == Sent::Returned {
            let queue = &parcel.envelope.head.lane.queue;
            let why = format!("RabbitMQ has no queue for {queue}; hint: run `promptq queues declare {queue}`");
            return Err(Error::new(Kind::NotFound, "redrive jobs", why));
        }
    }
    let heads: Vec<_> = parcels.iter().map(|parcel| &parcel.envelope.head).collect();
    post.claims.published(&heads).await?;
    let answer = |(place, raised): (usize, &Raised)| match raised {
        Raised::Publish(_) if !places.contains(&place) => Redriven::Waiting,
        Raised::Publish(envelope) => Redriven::Queued { epoch: envelope.head.epoch },
        Raised::Restored { epoch } => Redriven::Queued { epoch: *epoch },
        Raised::Waiting => Redriven::Waiting,
        Raised::Succeeded => Redriven::Succeeded,
        Raised::Gone => Redriven::Gone,
        Raised::Unknown => Redriven::Unknown,
    };
    let answers: Vec<Redriven> = raised.iter().enumerate().map(answer).collect();
    let waiting = |(id, raised): (&JobId, &Raised)| (*raised == Raised::Waiting).then_some(*id);
    resend(post, ids.iter().zip(&raised).filter_map(waiting).collect()).await?;
    Ok(answers)
}

/// Publishes once more what waits and has its payload in the ledger: a job that was put back in line, whose message may be
/// gone since. Should it be there after all, the two meet at the claim; where a ledger gives none, both might be paid for,
/// and nothing is sent.
async fn resend(post: &Post, ids: Vec<JobId>) -> Result<()> {
    if ids.is_empty() || !post.claims.keeps_copies_apart() {
        return Ok(());
    }
    for (id, view) in ids.iter().zip(post.ledger().fetch(&ids).await?) {
        // What its attempts have cost is in its message alone.
        let waits = |view: &JobView| view.state == State::Queued && view.epoch > 0 && view.attempts == 0;
        let Some(view) = view.filter(waits) else { continue };
        let Some(payload) = post.ledger().payload(*id).await? else { continue };
        let Ok(job) = codec::decode_job(&payload) else { continue };
        let head = Head { epoch: view.epoch, deadline: view.deadline, not_before: None, ..head(&job) };
        let parcel = Parcel { envelope: Envelope { head, payload }, reply: None, named: false, again: true };
        post.send(&parcel, post.wait(&parcel.envelope.head)).await?;
    }
    Ok(())
}

/// Cancels what waits: what the ledger knows at once, and every message that stands in a lane now. Delayed ones meet the
/// purge when they surface.
pub(super) async fn purge(post: &Post, queue: &Queue) -> Result<u64> {
    let mut ended = post.claims.purge(queue).await?;
    crate::crash_point!("amqp.purge.after_ledger");
    for lane in topology::lanes(post.ledger(), queue).await? {
        ended += drain(post, &lane).await?;
    }
    Ok(ended)
}

/// Has the ledger end every message of a lane, and says how many jobs it had not known. Of what has to stay only the
/// right to give it back is kept, and after [`KEPT`] of those or [`KEPT_BYTES`] at the server the rest meets the purge when
/// it surfaces.
async fn drain(post: &Post, lane: &Lane) -> Result<u64> {
    let name = topology::lane_queue(lane);
    let count = topology::ready(&post.link, &name).await?.unwrap_or(0);
    let channel = post.link.channel().await?;
    let failed = |error: lapin::Error| post.link.peer().lift("purge", &error);
    let worker = WorkerId::random("purge");
    let (mut ended, mut kept, mut bytes) = (0, Vec::new(), 0);
    for _ in 0..count {
        if kept.len() >= KEPT || bytes >= KEPT_BYTES {
            break;
        }
        let asked = channel.basic_get(name.as_str().into(), BasicGetOptions::default());
        let got = post.link.answer("purge", asked).await?.map_err(failed)?;
        let Some(message) = got else { break };
        let read = wire::read(&message.delivery, &lane.queue, post.clock.now());
        let head = &read.parcel.envelope.head;
        let unknown = post.claims.fetch(&[head.id]).await?.first().is_none_or(Option::is_none);
        let lease = LeaseId::random();
        let opened =
            post.claims.open(head, &Asked { lease, worker: &worker, length: PURGE_LEASE, redelivered: false }).await?;
        match opened.claim {
            Claim::Ended(state) => {
                ended += u64::from(unknown && state == State::Cancelled);
                post.conclude(&read.parcel, &opened).await?;
                message.delivery.acker.ack(BasicAckOptions::default()).await.map_err(failed)?;
                continue;
            }
            Claim::Fresh { .. } | Claim::Cancelled => {
                let release = Verdict::Release { after: std::time::Duration::ZERO, hold: None };
                post.claims.settle(head, lease, &release, None).await?;
            }
            Claim::Stale | Claim::Taken { .. } | Claim::Paused { .. } => {}
        }
        bytes += message.delivery.data.len();
        kept.push(message.delivery.acker.clone());
    }
    for acker in kept {
        let back = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
        acker.nack(back).await.map_err(failed)?;
    }
    post.link.answer("purge", channel.close(200, "done".into())).await?.map_err(failed)?;
    Ok(ended)
}
