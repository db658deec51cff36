//! What the doctor says of RabbitMQ: each hop to it, the ledger beside it, and what its settings are worth. What is tried
//! at the server is the broker's `check`.

use std::time::{Duration, Instant};

use promptq_common::broker::{self, Access, Durability, Hop, QueueType};
use promptq_common::config::Ledger;
use promptq_common::job::Queue;
use promptq_common::time::format_duration;

use super::{Finding, Health, PATIENCE};
use crate::context::Context;
use crate::problem::{Problem, Result};

/// What a server's `consumer_timeout` is unless somebody has changed it.
const SHIPPED: Duration = Duration::from_secs(1_800);

/// Whether the broker is RabbitMQ.
pub(super) fn is_meant(cx: &Context) -> bool {
    matches!(cx.config.broker.url.scheme(), "amqp" | "amqps")
}

/// Every check, none of which leaves anything at the server.
pub(super) async fn checks(cx: &Context) -> Vec<Finding> {
    let access = cx.config.access(None);
    let mut findings: Vec<_> = broker::examine(&access, &queues(cx)).await.into_iter().map(finding).collect();
    findings.push(ledger(cx).await);
    findings.extend(kind(&access));
    findings.push(consumer_timeout(&access));
    findings
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

/// Whether the ledger can be reached, and what it cannot promise.
async fn ledger(cx: &Context) -> Finding {
    const CHECK: &str = "ledger";
    let shown = match (&cx.config.ledger, &cx.config.store.url) {
        (Some(Ledger::Elsewhere { url, .. }), _) | (Some(Ledger::Store), Some(url)) => url.to_string(),
        (Some(Ledger::Store), None) | (None, _) => "none".to_owned(),
    };
    let probe = async {
        let access = cx.access().await?;
        let begun = Instant::now();
        let ledger = broker::ledger(&access).await?;
        ledger.workers().await?;
        Ok::<_, Problem>((begun.elapsed(), access.caveat()))
    };
    let tried: std::result::Result<Result<_>, _> = tokio::time::timeout(PATIENCE, probe).await;
    match tried {
        Ok(Ok((took, caveat))) => {
            let what = format!("{shown}: connected and read in {} ms", took.as_millis());
            match caveat {
                None => Finding::new(CHECK, Health::Ok, what),
                Some(caveat) => Finding::new(CHECK, Health::Warning, format!("{what}; {caveat}")),
            }
        }
        Ok(Err(problem)) => Finding { what: format!("{shown}: {}", problem.what), ..Finding::failed(CHECK, &problem) },
        Err(_) => Finding::unreachable(CHECK, format!("{shown}: no answer within 10 s")),
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
