//! What people and successors ask of queues: depth, pause, purge, cancel, redrive, drop, wake, recover, move. Each
//! script call is bounded; what may be long is walked here, call by call. Upkeep is `sweep`.

use std::sync::LazyLock;

use deadpool_redis::redis::{Value, cmd};
use futures_util::future::try_join_all;

use super::global::{self, everywhere};
use super::hold::text;
use super::ledger::READ;
use super::link::Link;
use super::script::Script;
use super::sweep::SWEEP;
use super::wire::{Places, Seen, Stage, end_of, prefix, strange};
use super::{BOOK, Redis, book_script};
use crate::broker::backend::{
    Cancel, CancelCounts, Depth, Envelope, HoldKey, MAX_BATCH, PAGE_BYTES, QueueView, Redriven, WorkerId,
};
use crate::error::{Error, Kind, Result};
use crate::job::{BatchName, JobId, Queue};
use crate::ledger::Page;
use crate::time::Timestamp;

static ADMIN: LazyLock<Script> = book_script!("admin");

/// How many jobs one script call ends or moves: some milliseconds' work.
const STEP: usize = 200;
/// Jobs of one chunk: `CHUNK` in `book.lua`.
pub(super) const CHUNK: u64 = 256;
/// How many chunks one script call reads.
const CHUNKS: usize = 8;
/// What is shown of a pause that came without a reason: an empty one would mean that there is none.
const NO_REASON: &str = "no reason given";

/// A queue as it is now.
pub(super) async fn depth(redis: &Redis, queue: &Queue) -> Result<QueueView> {
    let answer = redis.link.call("read a depth", &READ, &[prefix(queue)], vec!["depth".into()]).await?;
    queue_view(queue.clone(), answer)
}

/// Every queue, by name.
pub(super) async fn queues(redis: &Redis) -> Result<Vec<QueueView>> {
    let answers = everywhere(&redis.link, "list queues", &READ, vec!["depth".into()]).await?;
    answers.into_iter().map(|(queue, answer)| queue_view(queue, answer)).collect()
}

fn queue_view(queue: Queue, answer: Value) -> Result<QueueView> {
    let mut places = Places::of(answer)?;
    let (ready, delayed, running, dead): (u64, u64, u64, u64) =
        (places.number()?, places.number()?, places.number()?, places.number()?);
    // Jobs of foreign producers could be leased as well: the next lease takes them in.
    let inbox: u64 = places.number()?;
    let oldest = places.time()?;
    let paused = Some(places.text()?).filter(|reason| !reason.is_empty());
    let oldest_ready = (oldest > Timestamp::from_millis(0)).then_some(oldest);
    let depth = Depth { ready: ready + inbox, delayed, running, dead, oldest_ready, ..Depth::default() };
    Ok(QueueView { queue, paused, depth })
}

/// Pauses or resumes a queue.
pub(super) async fn pause(redis: &Redis, queue: &Queue, reason: Option<&str>) -> Result<()> {
    let args = match reason {
        Some(reason) => vec!["pause".into(), Some(reason).filter(|why| !why.is_empty()).unwrap_or(NO_REASON).into()],
        None => vec!["resume".into()],
    };
    redis.link.call("pause", &ADMIN, &[prefix(queue)], args).await.map(drop)
}

/// Marks a batch as complete; it belongs to the queue.
pub(super) async fn seal(link: &Link, name: &BatchName, queue: &Queue) -> Result<()> {
    let args = vec!["seal".into(), name.as_str().into()];
    link.call("seal a batch", &ADMIN, &[prefix(queue)], args).await.map(drop)
}

/// Ends every waiting job that is there now; how many.
pub(super) async fn purge(redis: &Redis, queue: &Queue) -> Result<u64> {
    let (link, keys) = (&redis.link, [prefix(queue)]);
    let newest: u64 = one(link.call("purge", &SWEEP, &keys, vec!["newest".into()]).await?)?.number()?;
    let mut ended = 0;
    for chunk in chunks(link, queue).await? {
        let args = vec!["purge".into(), text(chunk), text(newest)];
        ended += one(link.call("purge", &SWEEP, &keys, args).await?)?.number::<u64>()?;
    }
    Ok(ended)
}

/// Stops what is left of a batch.
pub(super) async fn cancel_batch(redis: &Redis, name: &BatchName) -> Result<CancelCounts> {
    const OP: &str = "cancel a batch";
    let mut counts = CancelCounts::default();
    let link = &redis.link;
    let Some(queue) = global::owner(link, name).await? else { return Ok(counts) };
    let keys = [prefix(&queue)];
    let mut range = Places::of(link.call(OP, &SWEEP, &keys, vec!["stop".into(), name.as_str().into()]).await?)?;
    if range.left() < 2 {
        return Ok(counts);
    }
    let (first, latest) = (place_in(&mut range)?, place_in(&mut range)?);
    for chunk in chunks(link, &queue).await? {
        if chunk < first.saturating_sub(1) / CHUNK || chunk > latest.saturating_sub(1) / CHUNK {
            continue;
        }
        let args = vec!["cancel".into(), text(chunk), name.as_str().into()];
        let mut answer = Places::of(link.call(OP, &SWEEP, &keys, args).await?)?;
        counts.ended += answer.number::<u64>()?;
        counts.flagged += answer.number::<u64>()?;
    }
    Ok(counts)
}

/// A number that need not be there.
fn place_in(places: &mut Places) -> Result<u64> {
    let text = places.text()?;
    if text.is_empty() { Ok(0) } else { text.parse().map_err(|_| strange("a place")) }
}

/// The chunks of a queue that hold jobs, oldest first.
pub(super) async fn chunks(link: &Link, queue: &Queue) -> Result<Vec<u64>> {
    let mut key = prefix(queue);
    key.extend_from_slice(b":alive");
    let found: Vec<String> = link.query("walk a queue", cmd("HKEYS").arg(key)).await?;
    let mut chunks =
        found.iter().map(|chunk| chunk.parse().map_err(|_| strange("a chunk"))).collect::<Result<Vec<u64>>>()?;
    chunks.sort_unstable();
    Ok(chunks)
}

/// Cancels each job or says why not.
pub(super) async fn cancel(redis: &Redis, ids: &[JobId]) -> Result<Vec<Cancel>> {
    let answers = each(&redis.link, "cancel jobs", "cancel", ids).await?;
    answers
        .iter()
        .map(|answer| match answer.split_at_checked(1) {
            None => Ok(Cancel::Unknown),
            Some(("E", _)) => Ok(Cancel::Ended),
            Some(("F", _)) => Ok(Cancel::Flagged),
            Some(("A", end)) => Ok(Cancel::Already(end_of(end)?.into())),
            Some(_) => Err(strange("a cancel")),
        })
        .collect()
}

/// Puts each ended job back in line, or says why not.
pub(super) async fn redrive(redis: &Redis, ids: &[JobId]) -> Result<Vec<Redriven>> {
    let answers = each(&redis.link, "redrive jobs", "redrive", ids).await?;
    answers
        .iter()
        .map(|answer| match answer.split_at_checked(1) {
            None => Ok(Redriven::Unknown),
            Some(("Q", epoch)) => Ok(Redriven::Queued { epoch: epoch.parse().map_err(|_| strange("an epoch"))? }),
            Some(("W", _)) => Ok(Redriven::Waiting),
            Some(("S", _)) => Ok(Redriven::Succeeded),
            Some(("G", _)) => Ok(Redriven::Gone),
            Some(_) => Err(strange("a redrive")),
        })
        .collect()
}

/// What the queue that knows the id answers of each; empty where none does.
async fn each(link: &Link, op: &'static str, what: &str, ids: &[JobId]) -> Result<Vec<String>> {
    let mut answers = Vec::with_capacity(ids.len());
    for ids in ids.chunks(STEP) {
        let mut step = vec![String::new(); ids.len()];
        for (_, found) in everywhere(link, op, &ADMIN, asked(what, ids)).await? {
            let mut found = Places::of(found)?;
            for answer in &mut step {
                let said = found.text()?;
                if said != "U" {
                    *answer = said;
                }
            }
        }
        answers.append(&mut step);
    }
    Ok(answers)
}

/// A script's arguments: what, and ids.
pub(super) fn asked(what: &str, ids: &[JobId]) -> Vec<Vec<u8>> {
    std::iter::once(what.into()).chain(ids.iter().map(|id| id.as_bytes().to_vec())).collect()
}

/// Takes dead jobs out of the dead set for good; how many.
pub(super) async fn drop_dead(redis: &Redis, ids: &[JobId]) -> Result<u64> {
    let mut dropped = 0;
    for ids in ids.chunks(STEP) {
        dropped += sum(everywhere(&redis.link, "drop dead jobs", &ADMIN, asked("drop", ids)).await?)?;
    }
    Ok(dropped)
}

/// Removes waiting jobs of that epoch without a trace; how many.
pub(super) async fn forget(redis: &Redis, jobs: &[(JobId, u32)]) -> Result<u64> {
    let mut forgotten = 0;
    for jobs in jobs.chunks(STEP) {
        let pairs = jobs.iter().flat_map(|(id, epoch)| [id.as_bytes().to_vec(), text(*epoch)]);
        let args = std::iter::once("forget".into()).chain(pairs).collect();
        forgotten += sum(everywhere(&redis.link, "forget jobs", &ADMIN, args).await?)?;
    }
    Ok(forgotten)
}

fn sum(answers: Vec<(Queue, Value)>) -> Result<u64> {
    answers.into_iter().map(|(_, count)| one(count)?.number::<u64>()).sum()
}

/// Ends the waiting of every job released under the key; how many.
pub(super) async fn wake(redis: &Redis, key: &HoldKey) -> Result<u64> {
    let (link, key) = (&redis.link, key.to_string());
    let woken = global::queues(link).await?.into_iter().map(|queue| {
        let args = vec!["wake".into(), key.clone().into(), text(STEP)];
        async move {
            let mut woken = 0;
            loop {
                let answer = link.call("wake jobs", &ADMIN, &[prefix(&queue)], args.clone()).await?;
                let count: u64 = one(answer)?.number()?;
                woken += count;
                if count < STEP as u64 {
                    return Ok(woken);
                }
            }
        }
    });
    Ok(try_join_all(woken).await?.into_iter().sum())
}

/// Gives back every lease of the worker; how many.
pub(super) async fn recover(redis: &Redis, worker: &WorkerId) -> Result<u64> {
    let link = &redis.link;
    let given = global::queues(link).await?.into_iter().map(|queue| async move {
        let (mut given, mut from) = (0, String::from("0"));
        loop {
            let args = vec!["recover".into(), worker.as_str().into(), from.into_bytes()];
            let mut answer = Places::of(link.call("recover jobs", &ADMIN, &[prefix(&queue)], args).await?)?;
            given += answer.number::<u64>()?;
            from = answer.text()?;
            if from == "0" {
                return Ok(given);
            }
        }
    });
    Ok(try_join_all(given).await?.into_iter().sum())
}

/// See [`Backend::waiting`](super::Backend::waiting): chunk by chunk, oldest first; a place is the number to go on from.
pub(super) async fn waiting(
    redis: &Redis,
    queue: &Queue,
    cursor: Option<&str>,
    limit: usize,
) -> Result<Page<Envelope>> {
    const OP: &str = "read waiting jobs";
    let mut from: u64 =
        cursor.map_or(Ok(1), str::parse).map_err(|_| Error::new(Kind::Config, OP, "not a cursor of ours"))?;
    let limit = limit.clamp(1, MAX_BATCH);
    let mut left = chunks(&redis.link, queue).await?;
    left.retain(|chunk| (chunk + 1) * CHUNK >= from);
    let (mut items, mut bytes) = (Vec::new(), 0);
    for group in left.chunks(CHUNKS) {
        let mut args = vec!["waiting".into(), text(from), text(limit - items.len()), text(PAGE_BYTES - bytes)];
        args.extend(group.iter().map(text));
        let mut answer = Places::of(redis.link.call(OP, &READ, &[prefix(queue)], args).await?)?;
        let next: u64 = answer.number()?;
        let mut rows = answer.list()?;
        while rows.left() > 0 {
            let Seen { mut head, payload, stage, due, .. } = Seen::read(queue, rows.value()?)?;
            if stage == Stage::Delayed {
                head.not_before = Some(due);
            }
            bytes = (bytes + payload.len()).min(PAGE_BYTES);
            items.push(Envelope { head, payload });
        }
        from = if next > 0 { next } else { group.last().map_or(from, |chunk| (chunk + 1) * CHUNK + 1) };
        if next > 0 || items.len() == limit || bytes == PAGE_BYTES {
            return Ok(Page { items, next: Some(from.to_string()) });
        }
    }
    Ok(Page { items, next: None })
}

/// An answer that is no list, to be read like one.
pub(super) fn one(answer: Value) -> Result<Places> {
    Places::of(Value::Array(vec![answer]))
}
