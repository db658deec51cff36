//! Which limit keys a command may mean: those that workers use, that settings name, that are of a batch or a queue.

use promptq_common::broker::{Broker, HoldKey};
use promptq_common::error::Kind;

use crate::context::Context;
use crate::limits::waits;
use crate::problem::{Exit, Problem, Result};

/// The broker, whose ledger can share limits.
pub(super) async fn shared(cx: &Context) -> Result<&Broker> {
    let broker = cx.existing().await?;
    match broker.ledger().limits().await {
        Ok(_) => Ok(broker),
        Err(error) if error.kind() == Kind::Unsupported => Err(Problem::from(error)
            .detail("nothing was changed")
            .hint("each worker keeps to worker.limit_share of [limits]; over --ledger redis://… they share them")),
        Err(error) => Err(error.into()),
    }
}

/// Fails with `NotFound` for a key that no worker has used, that no setting here names, and that is of no batch or queue:
/// a mistake, more often than not.
pub(super) async fn known(cx: &Context, key: &str, is_meant: impl Fn(&str) -> bool) -> Result<()> {
    let broker = cx.existing().await?;
    let is_there = match HoldKey::of_limit(key) {
        HoldKey::Limit(_) => false,
        HoldKey::Batch(name) => broker.ledger().batch(&name).await?.is_some(),
        HoldKey::Budget(queue) => {
            let mut queues = cx.config.queues.keys().map(ToString::to_string).collect::<Vec<_>>();
            queues.extend(broker.queues().await?.into_iter().map(|view| view.queue.to_string()));
            queues.contains(&queue)
        }
    };
    let mut keys = waits::known(broker.ledger(), &broker.ledger().workers().await?).await?;
    keys.extend(cx.config.limits.iter().map(|rule| rule.key.clone()));
    if is_there || keys.iter().any(|known| known == key || is_meant(known)) {
        return Ok(());
    }
    let what = format!("no worker has used a limit of the key {key:?}, and none is configured here");
    let problem = Problem::new(Exit::NotFound, "not-found", what);
    let distance = |name: &String| strsim::osa_distance(name, key);
    let near = keys.iter().filter(|name| distance(name) <= 2).min_by_key(|name| distance(name));
    let known: Vec<&str> = keys.iter().take(NAMED).map(String::as_str).collect();
    Err(match near {
        Some(near) => problem.hint(format!("did you mean {near}?")),
        None if known.is_empty() => problem.hint("limits are set in [limits.\"PROVIDER/MODEL\"]"),
        None => problem.hint(format!("there are {}", known.join(", "))),
    })
}

/// The most keys that an error names.
const NAMED: usize = 10;
