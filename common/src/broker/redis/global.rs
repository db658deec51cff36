//! What belongs to no queue: which queues there are, which queue a batch belongs to, workers, locks. Scripts move it
//! (`scripts/global.lua`), by the server's clock.

use std::sync::LazyLock;

use deadpool_redis::redis::{Value, cmd};
use futures_util::future::try_join_all;

use super::address::OP;
use super::hold::text;
use super::link::Link;
use super::script::{Script, When};
use super::wire::{Places, prefix, strange};
use crate::error::{Error, Kind, Result};
use crate::job::{BatchName, Queue};
use crate::ledger::LedgerId;

static GLOBAL: LazyLock<Script> =
    LazyLock::new(|| Script::new("global", When::Always, &[include_str!("scripts/global.lua")]));

/// What every global key begins with.
const PREFIX: &str = "{pq}";
/// Batch -> queue.
const BATCHES: &str = "{pq}:batches";
/// Queues by when they were last used.
const QUEUES: &str = "{pq}:queues";
/// The form in which queues are kept: another one whenever a version could not lease, move or count what another keeps, or
/// would be misread. Of the bytes of jobs and records it says nothing: those say their versions themselves (`codec`), and
/// there an older build meets newer ones while it is updated. Builds that kept what changes about a job in a hash of its own (`:state`) wrote none.
const FORM: &str = "2";
/// How many queues are asked at once: their answers are held together.
const AT_ONCE: usize = 64;

/// Runs one of the global script's actions.
pub(super) async fn act(link: &Link, op: &'static str, args: Vec<Vec<u8>>) -> Result<Value> {
    link.call(op, &GLOBAL, &[PREFIX.into()], args).await
}

/// Notes that a queue is used, so that everybody else finds it. `Config` as [`check_form`].
pub(super) async fn touch(link: &Link, queue: &Queue) -> Result<()> {
    const OP: &str = "note a queue";
    same_form(link, OP, act(link, OP, vec!["touch".into(), queue.as_str().into(), FORM.into()]).await?)
}

/// Whether the queues there, if any, are in the form that this version reads and writes. Changes nothing.
///
/// # Errors
/// `Config` when they are not.
pub(super) async fn check_form(link: &Link) -> Result<()> {
    same_form(link, OP, act(link, OP, vec!["form".into(), FORM.into()]).await?)
}

fn same_form(link: &Link, op: &'static str, other: Value) -> Result<()> {
    if other == Value::Nil {
        return Ok(());
    }
    let form = Places::of(Value::Array(vec![other]))?.text()?;
    let form = if form.is_empty() { "an older form".to_owned() } else { format!("form {form:?}") };
    let why = format!(
        "{}: another version of promptq keeps queues there, in {form}; this one knows form {FORM} alone. Let that version \
         finish what waits and empty the database, or name another database (redis://HOST:PORT/1)",
        link.peer().shown
    );
    Err(Error::new(Kind::Config, op, why))
}

/// Which ledger this is, from now on if nobody has asked before.
pub(super) async fn identity(link: &Link) -> Result<LedgerId> {
    let args = vec!["identity".into(), LedgerId::random().to_string().into()];
    let answer = act(link, "read the ledger's identity", args).await?;
    LedgerId::parse(&Places::of(Value::Array(vec![answer]))?.text()?)
}

/// Gives the batch to the queue unless it belongs to one; the queue that has it. Repeatable.
pub(super) async fn claim_batch(link: &Link, name: &BatchName, queue: &Queue) -> Result<Queue> {
    let args = vec!["claim".into(), name.as_str().into(), queue.as_str().into()];
    queue_from(&mut Places::of(Value::Array(vec![act(link, "claim a batch", args).await?]))?)
}

/// The queue a batch belongs to, if there is such a batch.
pub(super) async fn owner(link: &Link, name: &BatchName) -> Result<Option<Queue>> {
    let found: Option<String> = link.query("find a batch", cmd("HGET").arg(BATCHES).arg(name.as_str())).await?;
    found.map(|queue| Queue::new(&queue).map_err(|_| strange("a queue"))).transpose()
}

/// At most `most` batches from that rank on, newest first.
pub(super) async fn newest_batches(link: &Link, from: usize, most: usize) -> Result<Vec<(BatchName, Queue)>> {
    pairs(Places::of(act(link, "list batches", vec!["newest".into(), text(from), text(most)]).await?)?)
}

/// Batches with their queues, from an answer that has them in turn.
pub(super) fn pairs(mut places: Places) -> Result<Vec<(BatchName, Queue)>> {
    let mut found = Vec::with_capacity(places.left() / 2);
    while places.left() > 0 {
        let name = BatchName::new(&places.text()?).map_err(|_| strange("a batch"))?;
        found.push((name, queue_from(&mut places)?));
    }
    Ok(found)
}

pub(super) fn queue_from(places: &mut Places) -> Result<Queue> {
    Queue::new(&places.text()?).map_err(|_| strange("a queue"))
}

/// Every queue that was used within retention, by name.
pub(super) async fn queues(link: &Link) -> Result<Vec<Queue>> {
    let names: Vec<String> = link.query("list queues", cmd("ZRANGE").arg(QUEUES).arg(0).arg(-1)).await?;
    let mut queues =
        names.iter().map(|name| Queue::new(name).map_err(|_| strange("a queue"))).collect::<Result<Vec<_>>>()?;
    queues.sort_unstable();
    Ok(queues)
}

/// Whether a queue is one of those.
pub(super) async fn is_used(link: &Link, queue: &Queue) -> Result<bool> {
    let used: Option<f64> = link.query("find a queue", cmd("ZSCORE").arg(QUEUES).arg(queue.as_str())).await?;
    Ok(used.is_some())
}

/// Asks every queue the same thing; the answers by name. An id does not tell its queue, so ids are asked for everywhere.
///
/// # Errors
/// Of one queue: of the whole. Others may have done what they were told.
pub(super) async fn everywhere(
    link: &Link,
    op: &'static str,
    script: &'static Script,
    args: Vec<Vec<u8>>,
) -> Result<Vec<(Queue, Value)>> {
    let mut answers = Vec::new();
    for group in queues(link).await?.chunks(AT_ONCE) {
        let calls = group.iter().map(|queue| {
            let args = args.clone();
            async move { Ok((queue.clone(), link.call(op, script, &[prefix(queue)], args).await?)) }
        });
        answers.extend(try_join_all(calls).await?);
    }
    Ok(answers)
}
