//! What batches add up to, and the dead set by cause.

use std::collections::HashMap;

use deadpool_redis::redis::{FromRedisValue, cmd};

use super::global::{newest_batches, owner, queues};
use super::hold::text;
use super::ledger::READ;
use super::link::Link;
use super::wire::{Places, Seen, prefix, strange};
use crate::error::Result;
use crate::job::{BatchName, Queue};
use crate::ledger::{BatchView, Counts, Cursor, DeadGroup, RESULT_BYTES};
use crate::outcome::{FailureClass, Usage, Usd};
use crate::record::Record;
use crate::time::Timestamp;

/// How many batches one round trip reads.
const BATCHES: usize = 200;
/// How many dead jobs one script call reads.
const DEAD: usize = 500;
/// The most groups one answer names.
const GROUPS: usize = 1_000;
/// The most causes that are told apart on the way there.
const CAUSES: usize = 10 * GROUPS;

/// A batch as it is now.
pub(super) async fn batch(link: &Link, name: &BatchName) -> Result<Option<BatchView>> {
    let Some(queue) = owner(link, name).await? else { return Ok(None) };
    let found = link.query("read a batch", cmd("HGETALL").arg(key(&queue, name))).await?;
    view(name, &queue, &found)
}

fn key(queue: &Queue, name: &BatchName) -> Vec<u8> {
    let mut key = prefix(queue);
    key.extend_from_slice(b":b:");
    key.extend_from_slice(name.as_str().as_bytes());
    key
}

/// Batches, newest first; those that are claimed and not yet used are none.
pub(super) async fn batches(link: &Link, limit: usize) -> Result<Vec<BatchView>> {
    let (mut views, mut rank) = (Vec::new(), 0);
    while views.len() < limit {
        let names = newest_batches(link, rank, BATCHES.min(limit)).await?;
        if names.is_empty() {
            break;
        }
        rank += names.len();
        let asks: Vec<_> = names.iter().map(|(name, queue)| cmd("HGETALL").arg(key(queue, name)).clone()).collect();
        for ((name, queue), answer) in names.iter().zip(link.pipe("list batches", &asks).await?) {
            let fields = HashMap::from_redis_value(answer?).map_err(|_| strange("a batch"))?;
            views.extend(view(name, queue, &fields)?);
        }
    }
    views.truncate(limit);
    Ok(views)
}

fn view(name: &BatchName, queue: &Queue, fields: &HashMap<String, Vec<u8>>) -> Result<Option<BatchView>> {
    if !fields.contains_key("created") {
        return Ok(None);
    }
    let number = |field: &str| -> Result<i64> {
        let Some(bytes) = fields.get(field) else { return Ok(0) };
        std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok()).ok_or_else(|| strange("a count"))
    };
    let count = |field: &str| number(field).map(|count| u64::try_from(count).unwrap_or(0));
    Ok(Some(BatchView {
        name: name.clone(),
        queue: queue.clone(),
        created_at: Timestamp::from_millis(number("created")?),
        sealed: number("sealed")? != 0,
        cancelled: number("stopped")? != 0,
        counts: Counts {
            total: count("total")?,
            queued: count("queued")?,
            delayed: count("delayed")?,
            running: count("running")?,
            succeeded: count("succeeded")?,
            dead: count("dead")?,
            cancelled: count("cancelled")?,
            expired: count("expired")?,
        },
        usage: Usage {
            input_tokens: count("input")?,
            output_tokens: count("output")?,
            cached_tokens: count("cached")?,
            reasoning_tokens: count("reasoning")?,
        },
        cost: (number("cost_known")? > 0).then_some(Usd::from_nanos(number("cost")?)),
        cost_unknown: count("cost_unknown")?,
        last: Cursor(count("cursor")?),
    }))
}

/// What tells groups of dead jobs of one queue apart: model, class, code.
type Cause = (Option<String>, Option<FailureClass>, String);

/// The dead set by cause, largest group first.
pub(super) async fn dead_groups(link: &Link, queue: Option<&Queue>) -> Result<Vec<DeadGroup>> {
    let queues = match queue {
        Some(queue) => vec![queue.clone()],
        None => queues(link).await?,
    };
    let mut all = Vec::new();
    for queue in queues {
        let mut groups: HashMap<Cause, DeadGroup> = HashMap::new();
        let mut rank = 0;
        loop {
            let args = vec!["dead".into(), text(rank), text(DEAD), text(RESULT_BYTES)];
            let mut rows = Places::of(link.call("group dead jobs", &READ, &[prefix(&queue)], args).await?)?;
            if rows.left() == 0 {
                break;
            }
            rank += rows.left();
            while rows.left() > 0 {
                if let Some(record) = Seen::read(&queue, rows.value()?)?.record()? {
                    add(&mut groups, &queue, &record);
                }
            }
        }
        all.extend(groups.into_values());
    }
    all.sort_by(|one, other| {
        let rank = |group: &DeadGroup| (std::cmp::Reverse(group.count), group.first, group.sample);
        rank(one).cmp(&rank(other))
    });
    all.truncate(GROUPS);
    Ok(all)
}

fn add(groups: &mut HashMap<Cause, DeadGroup>, queue: &Queue, record: &Record) {
    let class = record.cause.as_ref().and_then(|cause| cause.class);
    let (code, detail) = record.cause.as_ref().map_or(("", ""), |cause| (&cause.code, &cause.detail));
    let full = groups.len() >= CAUSES;
    let cause = (record.model.clone(), class, code.to_owned());
    if let Some(group) = groups.get_mut(&cause) {
        group.count += 1;
        group.first = group.first.min(record.ended_at);
        group.last = group.last.max(record.ended_at);
    } else if !full {
        let group = DeadGroup {
            queue: queue.clone(),
            model: record.model.clone(),
            class,
            code: code.to_owned(),
            count: 1,
            first: record.ended_at,
            last: record.ended_at,
            sample: record.id,
            detail: detail.to_owned(),
        };
        groups.insert(cause, group);
    }
}
