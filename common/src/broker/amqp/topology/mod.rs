//! The exchanges and queues that promptq's jobs need at a server: making them, and looking at them. Names are
//! `names`, arguments and bindings `wanted`; messages are none of its affair.

mod expected;
mod lanes;
mod ledger;
mod names;
mod prune;
mod retire;
mod talk;
mod wanted;

use std::time::Duration;

pub(super) use expected::{Expected, expected, some_lane};
use lanes::Change;
pub(super) use lanes::{lanes, models};
pub(super) use ledger::{Word, has_ledger, name_ledger, renew_ledger};
pub(super) use names::{
    DEAD, DELAY, IN, delay_header, delay_queue, hold_name, is_ours, key, lane_queue, queue_of_key, queue_of_lane,
    results_queue,
};
use talk::{Look, Refused, Talk};

use super::link::Link;
use super::{QueueType, Settings};
use crate::broker::{Declared, Remark, WorkerId};
use crate::error::Result;
use crate::job::{ModelName, Queue};
use crate::ledger::Ledger;

/// How long a failed declaration waits before it is tried once more: two processes that declare the same at once may
/// cost one of them its connection, which is there again within a second or two.
const AGAIN: [Duration; 4] =
    [Duration::from_millis(100), Duration::from_millis(400), Duration::from_secs(1), Duration::from_secs(2)];

/// Sees to it that a queue can be used: everything that all queues share, its results, and its lanes: `_`, each of
/// `models` and each that the ledger knows, in three bands; then notes the models in the ledger. Where all that is there
/// already nothing is changed, and no right to change anything is needed. What is there stays as it is, whatever its
/// arguments: [`declare_fully`] tells. Idempotent, and safe beside others who do the same. Dead in the middle: the next call
/// makes the rest, and binds again what is there.
///
/// # Errors
/// `Denied` where something is missing and the user may not make it; `Config` where somebody made it differently meanwhile.
pub(super) async fn declare(
    link: &Link,
    ledger: &dyn Ledger,
    queue: &Queue,
    models: &[ModelName],
    settings: &Settings,
) -> Result<Declared> {
    for wait in AGAIN {
        match declare_once(link, ledger, queue, models, settings).await {
            Err(error) if error.is_transient() => tokio::time::sleep(wait).await,
            done => return done,
        }
    }
    declare_once(link, ledger, queue, models, settings).await
}

/// [`declare`] for a person who asks for it: everything is bound again, what differs is told, and with `prune` the lanes
/// of all models but these are given up. With lanes to give up it takes 10 s and may take a minute.
///
/// # Errors
/// As [`declare`]; also where the user may not declare although all is there.
pub(super) async fn declare_fully(
    link: &Link,
    ledger: &dyn Ledger,
    (queue, models): (&Queue, &[ModelName]),
    prune: bool,
    settings: &Settings,
) -> Result<Declared> {
    let change = Change::begin(ledger, queue).await?;
    let done = async {
        let mut talk = Talk::about(link, queue).await?;
        let leaving = if prune { prune::begin(&mut talk, &change, models, settings).await? } else { Vec::new() };
        let mut declared = make_all(link, &change, models, settings).await?;
        let note = lanes::read(ledger, queue).await?;
        declared.differs = compare(&mut talk, queue, &note.bound(), settings).await?;
        prune::finish(&mut talk, &change, leaving, &mut declared).await?;
        Ok(declared)
    };
    let done = done.await;
    // Whoever waits for it waits half a minute more; what went wrong before is the better thing to tell.
    let ended = change.end().await;
    done.and_then(|declared| ended.map(|()| declared))
}

/// Gives up what a queue has for itself, whose jobs have all ended. Says what stays because it is used, and why.
///
/// # Errors
/// `Denied` where the user may not; else when the server or the ledger cannot be asked.
pub(super) async fn retire(
    link: &Link,
    ledger: &dyn Ledger,
    queue: &Queue,
    settings: &Settings,
) -> Result<Vec<Remark>> {
    let change = Change::begin(ledger, queue).await?;
    let done = async { retire::retire(&mut Talk::about(link, queue).await?, &change, settings).await }.await;
    let ended = change.end().await;
    done.and_then(|left| ended.map(|()| left))
}

/// Makes a worker's hold: a queue of its own, and the exchange of the same name that feeds it and goes with it.
/// Idempotent.
///
/// # Errors
/// `Denied` where the user may not.
pub(super) async fn declare_hold(link: &Link, worker: &WorkerId, lease: Duration, settings: &Settings) -> Result<()> {
    let (exchange, queue) = wanted::hold(worker, lease, settings);
    let mut talk = Talk::open(link).await?;
    or_error(talk.make_exchange(&exchange).await?)?;
    or_error(talk.make_queue(&queue).await?)?;
    for binding in &queue.bindings {
        or_error(talk.bind(&queue.name, binding).await?)?;
    }
    write_down(&mut talk, &format!("{}.after", queue.name), settings).await
}

/// Deletes a worker's hold if it is empty and nobody consumes it. Whether it is gone.
///
/// # Errors
/// `Denied` where the user may not; else when the server cannot be asked.
pub(super) async fn drop_hold(link: &Link, worker: &WorkerId) -> Result<bool> {
    let name = hold_name(worker);
    let mut talk = Talk::open(link).await?;
    match talk.look(&name).await? {
        None => Ok(true),
        Some(Look { ready: 0, consumers: 0 }) => {
            or_error(talk.delete(&name).await?)?;
            Ok(true)
        }
        Some(_) => Ok(false),
    }
}

/// How many messages of a queue wait for a consumer; `None` when there is no such queue. Those that a consumer holds are
/// not counted.
///
/// # Errors
/// When the server cannot be asked.
pub(super) async fn ready(link: &Link, queue_name: &str) -> Result<Option<u32>> {
    let mut talk = Talk::open(link).await?;
    let look = talk.look(queue_name).await?;
    Ok(look.map(|look| look.ready))
}

/// Whether there is a queue to consume, for all that this user may see.
///
/// # Errors
/// When the server cannot be asked.
pub(super) async fn may_have(link: &Link, queue_name: &str) -> Result<bool> {
    Talk::open(link).await?.may_have(queue_name).await
}

async fn declare_once(
    link: &Link,
    ledger: &dyn Ledger,
    queue: &Queue,
    models: &[ModelName],
    settings: &Settings,
) -> Result<Declared> {
    let note = lanes::read(ledger, queue).await?;
    if note.whole
        && note.has(models)
        && let Some(there) = all_there(link, queue, &note.bound(), settings).await?
    {
        return Ok(Declared { there, ..Declared::default() });
    }
    let change = Change::begin(ledger, queue).await?;
    let made = make_all(link, &change, models, settings).await;
    let ended = change.end().await;
    made.and_then(|declared| ended.map(|()| declared))
}

/// The names of everything a queue needs, if it is all there.
async fn all_there(
    link: &Link,
    queue: &Queue,
    models: &[ModelName],
    settings: &Settings,
) -> Result<Option<Vec<String>>> {
    let mut talk = Talk::about(link, queue).await?;
    let mut there = Vec::new();
    for exchange in wanted::exchanges() {
        if !talk.finds(&exchange).await? {
            return Ok(None);
        }
        there.push(exchange.name);
    }
    for queue in wanted::all(queue, models, settings) {
        if !talk.may_have(&queue.name).await? {
            return Ok(None);
        }
        there.push(queue.name);
    }
    Ok(Some(there))
}

/// Makes what is missing and binds everything. Until that is done the note says that it is not; who may not even begin
/// leaves it as it was, or nobody who may not either could use what is there.
async fn make_all(link: &Link, change: &Change<'_>, models: &[ModelName], settings: &Settings) -> Result<Declared> {
    let before = lanes::read(change.ledger, change.queue).await?;
    let mut note = lanes::Note { whole: false, ..before.clone() };
    lanes::write(change.ledger, change.queue, &note).await?;
    note.take_up(models);
    let mut begun = false;
    match make(link, (change.queue, &note.bound()), settings, &mut begun).await {
        Ok(declared) => {
            note.whole = true;
            lanes::write(change.ledger, change.queue, &note).await?;
            Ok(declared)
        }
        Err(error) => {
            if !begun {
                lanes::write(change.ledger, change.queue, &before).await?;
            }
            Err(error)
        }
    }
}

/// `begun` is set by the first change.
async fn make(
    link: &Link,
    (queue, models): (&Queue, &[ModelName]),
    settings: &Settings,
    begun: &mut bool,
) -> Result<Declared> {
    let mut talk = Talk::about(link, queue).await?;
    let mut declared = Declared::default();
    for exchange in wanted::exchanges() {
        let there = talk.finds(&exchange).await?;
        if !there {
            or_error(talk.make_exchange(&exchange).await?)?;
            *begun = true;
        }
        if there { &mut declared.there } else { &mut declared.made }.push(exchange.name);
    }
    for queue in wanted::all(queue, models, settings) {
        let there = talk.may_have(&queue.name).await?;
        if !there {
            or_error(talk.make_queue(&queue).await?)?;
            *begun = true;
        }
        for binding in &queue.bindings {
            or_error(talk.bind(&queue.name, binding).await?)?;
            *begun = true;
        }
        if there { &mut declared.there } else { &mut declared.made }.push(queue.name);
    }
    write_down(&mut talk, WorkerId::random("pq1.after").as_str(), settings).await?;
    Ok(declared)
}

/// Has the server write down which files the queues are kept in that were made until now, by making one more, called
/// `name`, and deleting it: it keeps the last entry of that list in memory for up to 3 s, and one that is killed before
/// has forgotten what the queue holds, confirmed or not. Told of 3.10 by trying, of later ones by reading; classic queues
/// need none of it.
async fn write_down(talk: &mut Talk<'_>, name: &str, settings: &Settings) -> Result<()> {
    if settings.queues == QueueType::Quorum {
        or_error(talk.make_queue(&wanted::passing(name)).await?)?;
        or_error(talk.delete(name).await?)?;
    }
    Ok(())
}

/// What of all that [`declare`] wants is there with other arguments than it would be made with today, and which.
async fn compare(talk: &mut Talk<'_>, queue: &Queue, models: &[ModelName], settings: &Settings) -> Result<Vec<Remark>> {
    let mut answers = Vec::new();
    for exchange in wanted::exchanges() {
        answers.push((exchange.name.clone(), talk.make_exchange(&exchange).await?));
    }
    for queue in wanted::all(queue, models, settings) {
        let answer = talk.make_queue(&queue).await?;
        answers.push((queue.name, answer));
    }
    let remarks = answers.into_iter().filter_map(|(name, answer)| match answer {
        Ok(()) => None,
        Err(Refused { code: 406, said, .. }) => Some(Ok(Remark { name, why: said })),
        Err(refused) => Some(Err(refused.error())),
    });
    remarks.collect()
}

fn or_error(answer: Result<(), Refused>) -> Result<()> {
    answer.map_err(|refused| refused.error())
}
