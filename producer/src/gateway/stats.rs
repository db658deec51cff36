//! How a queue stands, for autoscalers and dashboards: GET /v1/queues/{queue}/stats. Out of reach is 503, never zeros.

use std::collections::BTreeSet;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::{Extension, Json};
use promptq_common::job::Queue;

use super::Shared;
use super::auth::Caller;
use super::problem::{Problem, Result};
use crate::stats::{QueueStats, look};

/// The queue's jobs, its workers and what holds it back. One that nobody has named, used of late or serves is not there.
pub(super) async fn stats(
    State(gateway): State<Shared>,
    queue: Result<Path<String>, PathRejection>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<QueueStats>> {
    let Path(queue) = queue.map_err(|_| Problem::new("no-queue", "a queue's name is text"))?;
    let queue = Queue::new(&queue).map_err(|bad| Problem::new("no-queue", bad.to_string()))?;
    caller.must_cover(&queue)?;
    let concurrency = gateway.cx.config.worker.concurrency;
    let asked = [queue];
    let seen = gateway.call(look(gateway.broker()?, &asked, &BTreeSet::new(), concurrency)).await?;
    let [queue] = &asked;
    let away = || Problem::new("unreachable", "the broker did not say how the queue stands");
    let stats = seen.queues.into_iter().next().ok_or_else(away)?;
    let is_named = *queue == Queue::standard() || gateway.cx.config.named_queues().contains(queue);
    if is_named || stats.consumers > 0 || seen.unknown.is_empty() {
        return Ok(Json(stats));
    }
    Err(Problem::new("no-queue", format!("there is no queue {queue}: nobody has put a job in or serves it"))
        .hint("it is there with its first job, or once it is named in the settings: [queues.NAME], or worker.queues"))
}
