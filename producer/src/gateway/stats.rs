//! How a queue stands, for autoscalers and dashboards: GET /v1/queues/{queue}/stats. Out of reach is 503, never zeros.

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::{Extension, Json};
use promptq_common::job::Queue;

use super::Shared;
use super::auth::Caller;
use super::problem::{Problem, Result};
use crate::stats::{QueueStats, look};

/// The queue's jobs, its workers and what holds it back. One that nobody has used yet is empty.
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
    let seen = gateway.call(look(gateway.broker()?, &asked, concurrency)).await?;
    let stats = seen.queues.into_iter().next();
    stats.map(Json).ok_or_else(|| Problem::new("unreachable", "the broker did not say how the queue stands"))
}
