//! What the doctor says of RabbitMQ: each hop to it, the ledger beside it, and what its settings are worth. What is tried
//! at the server is the broker's `check`.

use std::time::Duration;

use promptq_common::broker::{self, Access, Beside, Durability, Hop, QueueType};
use promptq_common::job::Queue;
use promptq_common::store::Store;
use promptq_common::time::format_duration;

use super::{Finding, Health, PATIENCE, place, tried};
use crate::context::Context;
use crate::problem::Problem;

/// What a server's `consumer_timeout` is unless somebody has changed it.
const SHIPPED: Duration = Duration::from_secs(1_800);

/// Whether the broker is RabbitMQ.
pub(super) fn is_meant(cx: &Context) -> bool {
    matches!(cx.config.broker.url.scheme(), "amqp" | "amqps")
}

/// Every check, none of which leaves anything at the server; `store` is what was found of the store, and whether there is
/// one. And whether there is a ledger to ask.
pub(super) async fn checks(cx: &Context, store: &(Finding, bool)) -> (Vec<Finding>, bool) {
    let access = cx.config.access(None);
    let mut findings: Vec<_> = broker::examine(&access, &queues(cx)).await.into_iter().map(finding).collect();
    let (ledger, is_there) = ledger(cx, store).await;
    findings.push(ledger);
    if is_there && findings.iter().all(|finding| finding.health != Health::Failed) {
        findings.push(identity(cx).await);
    }
    findings.extend(kind(&access));
    findings.push(consumer_timeout(&access));
    (findings, is_there)
}

/// Those that workers here would serve, and those with a policy of their own.
fn queues(cx: &Context) -> Vec<Queue> {
    let served = cx.config.worker.queues.iter().map(|(queue, _)| queue);
    let mut queues: Vec<Queue> = Vec::new();
    for queue in served.chain(cx.config.queues.keys()) {
        if !queues.contains(queue) {
            queues.push(queue.clone());
        }
    }
    queues
}

fn finding(hop: Hop) -> Finding {
    let health = match hop.health {
        broker::Health::Fine => Health::Ok,
        broker::Health::Doubtful => Health::Warning,
        broker::Health::Broken | broker::Health::Away => Health::Failed,
    };
    let unreachable = hop.health == broker::Health::Away;
    Finding { check: hop.name, health, what: hop.what, hint: hop.hint, unreachable }
}

/// Whether the ledger can be reached, and what it cannot promise. And whether there is one to ask.
async fn ledger(cx: &Context, store: &(Finding, bool)) -> (Finding, bool) {
    const CHECK: &str = "ledger";
    let access = cx.config.access(Some(&Store::memory()));
    let (found, is_there) = match &access.beside {
        Beside::Ledger(ledger) => {
            if let Some(found) = place::of_server(CHECK, ledger).await {
                (found, false)
            } else {
                let connecting = Box::pin(async { Ok(broker::ledger(&access).await.map(drop)?) });
                (tried(CHECK, ledger, connecting).await, true)
            }
        }
        // Which was tried, and is not to be filled by a look.
        Beside::Store(_) | Beside::Nothing => (Finding { check: CHECK, ..store.0.clone() }, store.1),
    };
    match access.caveat().filter(|_| found.health != Health::Failed) {
        None => (found, is_there),
        Some(caveat) => {
            (Finding { health: Health::Warning, what: format!("{}; {caveat}", found.what), ..found }, is_there)
        }
    }
}

/// Whether the virtual host is this ledger's.
async fn identity(cx: &Context) -> Finding {
    const CHECK: &str = "identity";
    let asking = async { Ok::<_, Problem>(broker::examine_ledger(&cx.access().await?).await) };
    match tokio::time::timeout(PATIENCE, asking).await {
        Ok(Ok(hop)) => finding(hop),
        Ok(Err(problem)) => Finding::failed(CHECK, &problem),
        Err(_) => Finding::unreachable(CHECK, "no answer within 10 s"),
    }
}

fn kind(access: &Access) -> Option<Finding> {
    let is_accepted = access.durability == Some(Durability::Relaxed);
    (access.amqp.queues == QueueType::Classic && !is_accepted).then(|| {
        let what = "classic: a confirmed job may be lost with the power, or with its node";
        Finding::new("queue type", Health::Warning, what)
            .hint("broker.queue_type = \"quorum\", or broker.durability = \"relaxed\" to accept it")
    })
}

/// AMQP does not tell it, so it is what was said.
fn consumer_timeout(access: &Access) -> Finding {
    let told = access.amqp.consumer_timeout;
    let (length, half) = (format_duration(told), format_duration((told / 2).min(SHIPPED * 5 / 6)));
    let what =
        format!("taken to be {length}: jobs that run for more than {half} change their message once in that time");
    let finding = Finding::new("consumer_timeout", Health::Ok, what);
    if told > SHIPPED {
        return finding.hint(
            "the server's own must be no less, or long jobs run twice (30 min as it comes): rabbitmqctl environment",
        );
    }
    finding
}
