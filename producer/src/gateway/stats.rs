//! How a queue stands, for autoscalers and dashboards: GET /v1/queues/{queue}/stats. Out of reach is 503, never zeros.

use axum::Extension;
use axum::extract::{self, Path};
use promptq_common::broker::{Broker, Depth, QueueView};
use promptq_common::job::Queue;
use promptq_common::ledger::WorkerReport;
use promptq_common::time::Timestamp;
use serde_json::{Value, json};

use super::Shared;
use super::auth::Caller;
use super::problem::{Problem, Result};
use crate::limits::{Standing, State, waits, words};
use crate::problem;

/// The queue's jobs, its workers and what holds it back. One that nobody has used yet is empty.
pub(super) async fn stats(
    extract::State(gateway): extract::State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(queue): Path<String>,
) -> Result<axum::Json<Value>> {
    let queue = Queue::new(&queue).map_err(|bad| Problem::new("no-queue", bad.to_string()))?;
    caller.must_cover(&queue)?;
    let broker = gateway.broker()?;
    let seen = gateway.call(Seen::look(broker, &queue)).await?;
    let concurrency = gateway.cx.config.worker.concurrency;
    let backend = backend(gateway.cx.config.broker.url.scheme());
    Ok(axum::Json(seen.object(&queue, backend, concurrency, Timestamp::now())))
}

/// What there is to see of a queue.
#[derive(Debug)]
struct Seen {
    view: Option<QueueView>,
    workers: Vec<WorkerReport>,
    standings: Vec<Standing>,
}

impl Seen {
    async fn look(broker: &Broker, queue: &Queue) -> Result<Self, problem::Problem> {
        let ledger = broker.ledger();
        let (views, workers) = (broker.queues().await?, ledger.workers().await?);
        let view = views.into_iter().find(|view| view.queue == *queue);
        let mut of = waits::of_queues(ledger, std::slice::from_ref(queue)).await?;
        Ok(Self { view, workers, standings: of.remove(queue).unwrap_or_default() })
    }

    fn object(&self, queue: &Queue, backend: &str, concurrency: u32, now: Timestamp) -> Value {
        let depth = self.view.as_ref().map_or_else(Depth::default, |view| view.depth);
        let serving = self.workers.iter().filter(|worker| waits::serves(worker, queue) && !worker.draining);
        let slots: Vec<u32> = serving.map(|worker| worker.slots).collect();
        let consumers = slots.len();
        let mean = slots.iter().sum::<u32>().checked_div(u32::try_from(consumers).unwrap_or(u32::MAX));
        let age = depth.oldest_ready.map(|at| now.since(at).as_secs());
        json!({
            "queue": queue,
            "backend": backend,
            "paused": self.view.as_ref().is_some_and(|view| view.paused.is_some()),
            "ready": depth.ready,
            "running": depth.running,
            "delayed": (!depth.delayed_of_all).then_some(depth.delayed),
            "dead": depth.dead,
            "unfinished": depth.ready + depth.running,
            "oldest_ready_age_seconds": if depth.ready == 0 { Some(0) } else { age },
            "age_source": if depth.ready == 0 || age.is_some() { "exact" } else { "estimate" },
            "consumers": consumers,
            "concurrency_per_worker": mean.unwrap_or(concurrency),
            "blocked": self.blocked(depth),
        })
    }

    fn blocked(&self, depth: Depth) -> Vec<Value> {
        let pause = self.view.as_ref().and_then(|view| view.paused.as_ref());
        let pause = pause.map(|_| json!({ "reason": "paused", "jobs": depth.ready, "until": null }));
        // How many of the queue's jobs are behind one key, no broker counts.
        let limit = |standing: &Standing| json!({ "reason": reason(standing), "jobs": null, "until": until(standing) });
        pause.into_iter().chain(self.standings.iter().map(limit)).collect()
    }
}

fn reason(standing: &Standing) -> &'static str {
    match standing.state() {
        State::Refused(_) => "account",
        State::Down(_) | State::Bounded(..) => "capacity",
        State::Full(..) if words::is_budget(&standing.key) => "budget",
        State::Full(..) | State::Frozen(_) | State::Throttled(_) | State::Cautious(_) | State::Open => "throttled",
    }
}

fn backend(scheme: &str) -> &str {
    match scheme {
        "amqp" | "amqps" => "rabbitmq",
        "rediss" => "redis",
        scheme => scheme,
    }
}

/// When it holds nobody back any more, where somebody has said so.
fn until(standing: &Standing) -> Option<Timestamp> {
    match standing.state() {
        State::Refused(held) | State::Down(held) | State::Throttled(held) | State::Bounded(held, _) => Some(held.until),
        State::Frozen(until) => Some(until),
        State::Full(_, until) => until,
        State::Cautious(_) | State::Open => None,
    }
}

#[cfg(test)]
mod tests {
    use promptq_common::broker::WorkerId;

    use super::*;

    fn worker(queues: &[&str], slots: u32, draining: bool) -> WorkerReport {
        WorkerReport {
            id: WorkerId::known("w"),
            host: "h".into(),
            pid: 1,
            version: "0".into(),
            started_at: Timestamp::from_millis(0),
            seen_at: Timestamp::from_millis(0),
            slots,
            running: 0,
            queues: queues.iter().map(|name| (*name).to_owned()).collect(),
            draining,
            blocked: None,
            held: Vec::new(),
        }
    }

    #[test]
    fn what_is_unfinished_runs_or_could_and_only_those_who_take_jobs_count() {
        let queue = Queue::standard();
        let depth = Depth {
            ready: 5,
            running: 3,
            delayed: 9,
            dead: 2,
            oldest_ready: Some(Timestamp::from_millis(1_000)),
            ..Depth::default()
        };
        let view = Some(QueueView { queue: queue.clone(), paused: Some("night".into()), depth });
        let workers = vec![
            worker(&["default:5"], 8, false),
            worker(&["default:1", "b:1"], 4, false),
            worker(&["default:1"], 99, true),
            worker(&["b:1"], 99, false),
        ];
        let seen = Seen { view, workers, standings: Vec::new() };
        let of = seen.object(&queue, "sqlite", 16, Timestamp::from_millis(31_500));
        for (name, value) in
            [("ready", 5), ("running", 3), ("unfinished", 8), ("consumers", 2), ("concurrency_per_worker", 6)]
        {
            assert_eq!(of[name], value, "{name}");
        }
        assert_eq!((&of["oldest_ready_age_seconds"], &of["age_source"]), (&json!(30), &json!("exact")));
        assert_eq!(of["blocked"][0]["reason"], "paused");
        let nobody = Seen { view: None, workers: Vec::new(), standings: Vec::new() };
        let of = nobody.object(&queue, "sqlite", 16, Timestamp::now());
        assert_eq!((&of["unfinished"], &of["concurrency_per_worker"]), (&json!(0), &json!(16)));
    }

    #[test]
    fn an_age_that_the_broker_cannot_tell_is_not_made_up() {
        let queue = Queue::standard();
        let depth = Depth { ready: 5, ..Depth::default() };
        let view = Some(QueueView { queue: queue.clone(), paused: None, depth });
        let of =
            Seen { view, workers: Vec::new(), standings: Vec::new() }.object(&queue, "rabbitmq", 1, Timestamp::now());
        assert_eq!((&of["oldest_ready_age_seconds"], &of["age_source"]), (&Value::Null, &json!("estimate")));
    }
}
