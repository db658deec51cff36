//! Upkeep, in bounded script calls over all queues: deadlines, retention by age and by bytes, announcements, batches and
//! queues that are empty. Each step may be repeated, by anybody, at any time.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use deadpool_redis::redis::Value;
use futures_util::future::try_join_all;

use super::admin::one;
use super::global::{self, act, everywhere, queue_from};
use super::hold::{millis, text};
use super::link::Link;
use super::script::Script;
use super::wire::{Places, prefix};
use super::{BOOK, Redis, book_script};
use crate::broker::backend::{Retention, Swept};
use crate::error::Result;
use crate::job::{BatchName, Queue};

pub(super) static SWEEP: LazyLock<Script> = book_script!("sweep");

const OP: &str = "sweep";
/// How many chunks of overdue jobs one sweep looks at in a queue: some ten milliseconds' work.
const OVERDUE: usize = 8;
/// How many queues are swept at once: more would only keep the server from everybody else.
const QUEUES_AT_ONCE: usize = 4;
/// Protocol, section 8: announcements live a day …
const ANNOUNCED: Duration = Duration::from_secs(24 * 60 * 60);
/// … in at most 1 GiB.
const ANNOUNCED_BYTES: u64 = 1 << 30;
/// How many batches, oldest first, one sweep looks at.
const BATCHES: usize = 200;
/// How many unused queues one sweep looks at.
const UNUSED: usize = 50;
/// Who puts a job in takes far less than this from claiming its batch and noting its queue, which a process does once a
/// minute at most: what was empty for so long is not just being filled.
const GRACE: Duration = Duration::from_secs(10 * 60);

/// One round of upkeep.
pub(super) async fn sweep(redis: &Redis, retention: &Retention) -> Result<Swept> {
    let link = &redis.link;
    let mut swept = Swept::default();
    let queues = global::queues(link).await?;
    for group in queues.chunks(QUEUES_AT_ONCE) {
        for one in try_join_all(group.iter().map(|queue| sweep_queue(link, queue, retention))).await? {
            merge(&mut swept, one);
        }
    }
    make_room(link, retention, &mut swept).await?;
    let kept = retention.dead.max(retention.succeeded).max(GRACE);
    forget_batches(link, kept).await?;
    forget_queues(link, kept.max(retention.tombstones)).await?;
    Ok(swept)
}

fn merge(swept: &mut Swept, one: Swept) {
    swept.expired += one.expired;
    swept.forgotten += one.forgotten;
    swept.outputs.extend(one.outputs);
    swept.more |= one.more;
}

async fn call(link: &Link, queue: &Queue, args: Vec<Vec<u8>>) -> Result<Value> {
    link.call(OP, &SWEEP, &[prefix(queue)], args).await
}

/// Passed deadlines, what is past its age, old announcements.
async fn sweep_queue(link: &Link, queue: &Queue, retention: &Retention) -> Result<Swept> {
    let mut swept = Swept::default();
    let mut overdue = true;
    for _ in 0..OVERDUE {
        let mut answer = Places::of(call(link, queue, vec!["expire".into()]).await?)?;
        swept.expired += answer.number::<u64>()?;
        overdue = answer.flag()?;
        if !overdue {
            break;
        }
    }
    swept.more = overdue;
    let Retention { succeeded, dead, tombstones, bytes: _ } = *retention;
    let args = vec!["age".into(), millis(succeeded), millis(dead), millis(tombstones)];
    merge(&mut swept, buried(call(link, queue, args).await?)?);
    call(link, queue, vec!["trim".into(), millis(ANNOUNCED), text(ANNOUNCED_BYTES)]).await?;
    Ok(swept)
}

fn buried(answer: Value) -> Result<Swept> {
    let mut answer = Places::of(answer)?;
    let (forgotten, more) = (answer.number()?, answer.flag()?);
    let mut keys = answer.list()?;
    let outputs = (0..keys.left()).map(|_| keys.text()).collect::<Result<_>>()?;
    Ok(Swept { expired: 0, forgotten, outputs, more })
}

/// While all records together take too many bytes, each queue gives up its share of what is too much, oldest successes
/// first: the servers of a cluster could not compare ages across queues in one step.
async fn make_room(link: &Link, retention: &Retention, swept: &mut Swept) -> Result<()> {
    let held: Vec<(Queue, u64)> = everywhere(link, OP, &SWEEP, vec!["bytes".into()])
        .await?
        .into_iter()
        .map(|(queue, bytes)| Ok((queue, one(bytes)?.number()?)))
        .collect::<Result<_>>()?;
    let total: u64 = held.iter().map(|(_, bytes)| *bytes).sum();
    if total <= retention.bytes {
        return Ok(());
    }
    for (queue, bytes) in held.iter().filter(|(_, bytes)| *bytes > 0) {
        let share = u128::from(*bytes) * u128::from(retention.bytes) / u128::from(total);
        let args = vec!["room".into(), text(share), millis(retention.tombstones)];
        merge(swept, buried(call(link, queue, args).await?)?);
    }
    Ok(())
}

/// Batches that have been empty for long; the next call looks at the next ones.
async fn forget_batches(link: &Link, kept: Duration) -> Result<()> {
    let mut found = Places::of(act(link, OP, vec!["old".into(), millis(kept), text(BATCHES)]).await?)?;
    let _round_ended = found.flag()?;
    let mut queues: BTreeMap<Queue, Vec<BatchName>> = BTreeMap::new();
    for (name, queue) in global::pairs(found.list()?)? {
        queues.entry(queue).or_default().push(name);
    }
    for (queue, names) in queues {
        let mut args = vec!["batches".into(), millis(kept), millis(GRACE)];
        args.extend(names.iter().map(|name| name.as_str().into()));
        let mut gone = Places::of(call(link, &queue, args).await?)?;
        let mut dropped = vec!["drop".into()];
        while gone.left() > 0 {
            dropped.extend([gone.bytes()?, queue.as_str().into()]);
        }
        if dropped.len() > 1 {
            act(link, OP, dropped).await?;
        }
    }
    Ok(())
}

/// Queues that hold nothing and that nobody has used for long.
async fn forget_queues(link: &Link, kept: Duration) -> Result<()> {
    let mut unused = Places::of(act(link, OP, vec!["unused".into(), millis(kept), text(UNUSED)]).await?)?;
    let mut lost = vec!["lose".into(), millis(kept)];
    while unused.left() > 0 {
        let queue = queue_from(&mut unused)?;
        if one(call(link, &queue, vec!["close".into()]).await?)?.flag()? {
            lost.push(queue.as_str().into());
        } else {
            // It is in use, or those behind it would never have their turn.
            global::touch(link, &queue).await?;
        }
    }
    if lost.len() > 2 {
        act(link, OP, lost).await?;
    }
    Ok(())
}
