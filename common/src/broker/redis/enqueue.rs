//! Putting jobs in: by queue, the batches they name claimed first, then in script calls of bounded size.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::script::{Script, When};
use super::stored::item;
use super::wire::{self, Places, state_of, strange};
use super::{BOOK, Redis, global};
use crate::broker::backend::{Enqueued, Envelope, Refusal};
use crate::codec;
use crate::error::Result;
use crate::job::{BatchName, Queue};

static ENQUEUE: LazyLock<Script> =
    LazyLock::new(|| Script::new("enqueue", When::Room, &[BOOK, ADMIT, include_str!("scripts/enqueue.lua")]));
/// What every script that puts jobs in has behind the book.
pub(super) const ADMIT: &str = include_str!("scripts/admit.lua");

/// A script keeps everybody else waiting: at most this many jobs a call …
const CALL_JOBS: usize = 200;
/// … or bytes of payload.
const CALL_BYTES: usize = 1 << 20;

/// Takes each job or says why not, in order. Calls of one queue follow one another, so that its order is kept.
pub(super) async fn enqueue(redis: &Redis, batch: &[Envelope]) -> Result<Vec<Enqueued>> {
    let mut answers: Vec<Option<Enqueued>> = vec![None; batch.len()];
    let mut queues: HashMap<&Queue, Vec<usize>> = HashMap::new();
    let mut owners: HashMap<&BatchName, Queue> = HashMap::new();
    for (place, envelope) in batch.iter().enumerate() {
        let queue = &envelope.head.lane.queue;
        if envelope.payload.len() > codec::MAX_BYTES {
            answers[place] = Some(Enqueued::Refused(Refusal::TooLarge(envelope.payload.len())));
            continue;
        }
        if let Some(name) = &envelope.head.batch {
            if !owners.contains_key(name) {
                owners.insert(name, global::claim_batch(&redis.link, name, queue).await?);
            }
            if let Some(owner) = owners.get(name).filter(|owner| *owner != queue) {
                answers[place] = Some(Enqueued::Refused(Refusal::OtherQueue(owner.clone())));
                continue;
            }
        }
        queues.entry(queue).or_default().push(place);
    }
    for (queue, places) in queues {
        redis.touch(queue).await?;
        for places in calls(batch, &places) {
            for (place, answer) in places.iter().zip(call(redis, queue, batch, places).await?) {
                answers[*place] = Some(answer);
            }
        }
    }
    Ok(answers.into_iter().flatten().collect())
}

/// The places cut into calls.
fn calls<'a>(batch: &[Envelope], places: &'a [usize]) -> Vec<&'a [usize]> {
    let mut calls = Vec::new();
    let (mut from, mut bytes) = (0, 0);
    for (at, &place) in places.iter().enumerate() {
        let size = batch[place].payload.len();
        if at > from && (at - from >= CALL_JOBS || bytes + size > CALL_BYTES) {
            calls.push(&places[from..at]);
            (from, bytes) = (at, 0);
        }
        bytes += size;
    }
    calls.push(&places[from..]);
    calls
}

async fn call(redis: &Redis, queue: &Queue, batch: &[Envelope], places: &[usize]) -> Result<Vec<Enqueued>> {
    let mut args = Vec::with_capacity(places.len() * 2);
    for &place in places {
        args.extend(item(&batch[place].head, &batch[place].payload)?);
    }
    crate::crash_point!("redis.enqueue.before_call");
    let answer = redis.link.call("enqueue jobs", &ENQUEUE, &[wire::prefix(queue)], args).await?;
    crate::crash_point!("redis.enqueue.after_call");
    let mut answers = Places::of(answer)?;
    places
        .iter()
        .map(|_| {
            let answer = answers.text()?;
            Ok(match answer.split_at_checked(1) {
                Some(("N", _)) => Enqueued::New,
                Some(("K", state)) => Enqueued::Known(state_of(state)?),
                Some(("C", _)) => Enqueued::Refused(Refusal::Conflict),
                _ => return Err(strange("an enqueue")),
            })
        })
        .collect()
}
