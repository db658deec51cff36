//! The exchanges and queues that promptq's jobs need at a server: making them, and looking at them. Names are
//! `names`, arguments and bindings `wanted`; messages are none of its affair.

mod names;
mod talk;
mod wanted;

use std::time::Duration;

pub(super) use names::{
    DEAD, DELAY, IN, delay_header, delay_queue, hold_name, is_ours, key, lane_queue, queue_of_key, queue_of_lane,
    results_queue,
};
use talk::{Link, Refused, Talk};
use wanted::{Exchange, WantedQueue};

use super::Settings;
use crate::broker::{Declared, Remark, WorkerId};
use crate::error::Result;
use crate::job::{ModelName, Queue};

/// How long a failed declaration waits before it is tried once more: two processes that declare the same at once may
/// cost one of them its connection, which is there again within a second or two.
const AGAIN: [Duration; 4] =
    [Duration::from_millis(100), Duration::from_millis(400), Duration::from_secs(1), Duration::from_secs(2)];

/// Makes what is missing of the exchanges, the delay levels and the queue of rejected messages, and for this queue its
/// results and its lanes: `_`, and each of `models`, in three bands. What is there stays as it is, whatever its
/// arguments: [`compare`] tells. Idempotent, and safe beside others who do the same. Dead in the middle: the next call
/// makes the rest, and binds again what is there.
///
/// # Errors
/// `Config` where something is missing and the user may not make it, or somebody made it differently meanwhile.
pub(super) async fn declare(link: &Link, queue: &Queue, models: &[ModelName], settings: &Settings) -> Result<Declared> {
    for wait in AGAIN {
        match declare_once(link, queue, models, settings).await {
            Err(error) if error.is_transient() => tokio::time::sleep(wait).await,
            done => return done,
        }
    }
    declare_once(link, queue, models, settings).await
}

/// What of all that [`declare`] wants is there with other arguments than it would be made with today, and which.
///
/// # Errors
/// `Config` where the user may not declare, or something is not there at all and cannot be made.
pub(super) async fn compare(
    link: &Link,
    queue: &Queue,
    models: &[ModelName],
    settings: &Settings,
) -> Result<Vec<Remark>> {
    let mut talk = Talk::open(link).await?;
    let mut answers = Vec::new();
    for exchange in wanted::exchanges() {
        answers.push((exchange.name.clone(), talk.make_exchange(&exchange).await?));
    }
    for queue in wanted::shared(settings).into_iter().chain(wanted::of_queue(queue, models, settings)) {
        let answer = talk.make_queue(&queue).await?;
        answers.push((queue.name, answer));
    }
    talk.close().await;
    let remarks = answers.into_iter().filter_map(|(name, answer)| match answer {
        Ok(()) => None,
        Err(Refused { code: 406, said }) => Some(Ok(Remark { name, why: said })),
        Err(refused) => Some(Err(refused.error())),
    });
    remarks.collect()
}

/// Makes a worker's hold: a queue of its own, and the exchange of the same name that feeds it and goes with it.
/// Idempotent.
///
/// # Errors
/// `Config` where the user may not.
pub(super) async fn declare_hold(link: &Link, worker: &WorkerId, settings: &Settings) -> Result<()> {
    let (exchange, queue) = wanted::hold(worker, settings);
    let mut talk = Talk::open(link).await?;
    or_error(talk.make_exchange(&exchange).await?)?;
    or_error(talk.make_queue(&queue).await?)?;
    for binding in &queue.bindings {
        or_error(talk.bind(&queue.name, binding).await?)?;
    }
    talk.close().await;
    Ok(())
}

/// How many messages of a queue wait for a consumer; `None` when there is no such queue. Those that a consumer holds are
/// not counted.
///
/// # Errors
/// When the server cannot be asked.
pub(super) async fn ready(link: &Link, queue_name: &str) -> Result<Option<u32>> {
    let mut talk = Talk::open(link).await?;
    let look = talk.look(queue_name).await?;
    talk.close().await;
    Ok(look.map(|look| look.ready))
}

/// The models of a queue that have lanes of their own, as whoever declared them noted.
pub(super) async fn models(ledger: &dyn crate::ledger::Ledger, queue: &Queue) -> Result<Vec<ModelName>> {
    let note = ledger.note(&format!("amqp/lanes/{queue}")).await?;
    let names: Vec<String> = note.and_then(|note| serde_json::from_str(&note).ok()).unwrap_or_default();
    Ok(names.iter().map(|name| ModelName::new(name)).collect())
}

/// Removes a worker's hold queue unless it holds something or somebody consumes it. Whether it is gone.
pub(super) async fn drop_hold(link: &Link, worker: &WorkerId) -> Result<bool> {
    let mut talk = Talk::open(link).await?;
    let empty = match talk.look(&hold_name(worker)).await? {
        None => true,
        Some(look) if look.ready == 0 && look.consumers == 0 => talk.delete(&hold_name(worker)).await?.is_ok(),
        Some(_) => false,
    };
    talk.close().await;
    Ok(empty)
}

async fn declare_once(link: &Link, queue: &Queue, models: &[ModelName], settings: &Settings) -> Result<Declared> {
    let mut talk = Talk::open(link).await?;
    let mut declared = Declared::default();
    for exchange in wanted::exchanges() {
        ensure_exchange(&mut talk, &exchange, &mut declared).await?;
    }
    let mut may_bind = true;
    for queue in wanted::shared(settings).iter().chain(&wanted::of_queue(queue, models, settings)) {
        ensure_queue(&mut talk, queue, &mut declared, &mut may_bind).await?;
    }
    talk.close().await;
    Ok(declared)
}

async fn ensure_exchange(talk: &mut Talk<'_>, exchange: &Exchange, declared: &mut Declared) -> Result<()> {
    if talk.finds(exchange).await? {
        declared.there.push(exchange.name.clone());
        return Ok(());
    }
    or_error(talk.make_exchange(exchange).await?)?;
    declared.made.push(exchange.name.clone());
    Ok(())
}

async fn ensure_queue(
    talk: &mut Talk<'_>,
    queue: &WantedQueue,
    declared: &mut Declared,
    may_bind: &mut bool,
) -> Result<()> {
    let there = talk.look(&queue.name).await?.is_some();
    if !there {
        or_error(talk.make_queue(queue).await?)?;
    }
    for binding in &queue.bindings {
        // Whoever made it has bound it, but for a process that died in between.
        if there && !*may_bind {
            break;
        }
        match talk.bind(&queue.name, binding).await? {
            Err(refused) if refused.code == 403 && there => *may_bind = false,
            answer => or_error(answer)?,
        }
    }
    if there { &mut declared.there } else { &mut declared.made }.push(queue.name.clone());
    Ok(())
}

fn or_error(answer: Result<(), Refused>) -> Result<()> {
    answer.map_err(|refused| refused.error())
}
