//! What the gateway shows of itself on the admin port: its requests in numbers, and whether it can do its work.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::http::Method;
use promptq_common::job::Queue;
use promptq_common::telemetry::exposition::Page;
use promptq_common::telemetry::health::Health;
use promptq_common::telemetry::label::OTHER;
use promptq_common::telemetry::metric as m;
use promptq_common::telemetry::recorder::{self, Piece};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::Gateway;
use super::route::ROUTES;
use crate::scale::whole_f64;

/// Between two looks at the broker that answered, and at one that did not.
const LOOK: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(1)];
/// A broker that takes longer for its depth cannot be submitted to.
const PATIENCE: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_secs(1);

/// What is counted.
#[derive(Debug)]
pub(super) struct Watched(Arc<Shown>);

#[derive(Debug)]
struct Shown {
    backend: &'static str,
    in_flight: AtomicU64,
    is_connected: AtomicBool,
}

impl Watched {
    /// Numbers that begin at 0, shown if this process shows any.
    pub(super) fn new(backend: &'static str) -> Self {
        let shown = Shown { backend, in_flight: AtomicU64::new(0), is_connected: AtomicBool::new(false) };
        let watched = Self(Arc::new(shown));
        if let Some(recorder) = recorder::installed() {
            recorder.add(Arc::<Shown>::clone(&watched.0));
            for route in ROUTES {
                recorder.counter(&m::HTTP_REQUESTS, &[route.path, route.method.as_str(), "200"]).increment(0);
            }
        }
        watched
    }

    /// A request has come; it counts until this is dropped.
    pub(super) fn begin(&self) -> InFlight {
        self.0.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(Arc::clone(&self.0))
    }

    /// A request was answered so; `is_counted`: what was wrong with it is counted as its job's already.
    pub(super) fn answered((route, method): (&str, &Method), (code, is_counted): (u16, bool), took: Duration) {
        let Some(recorder) = recorder::installed() else { return };
        let known =
            [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];
        let method = if known.contains(method) { method.as_str() } else { OTHER };
        recorder.counter(&m::HTTP_REQUESTS, &[route, method, &code.to_string()]).increment(1);
        recorder.histogram(&m::HTTP_DURATION, &[route, method]).record(took.as_secs_f64());
        let reason = match code {
            400 | 422 => "invalid",
            401 | 403 => "unauthorized",
            413 if !is_counted => "too_large",
            429 => "rate_limited",
            _ => return,
        };
        recorder.counter(&m::REJECTED, &["_", reason]).increment(1);
    }
}

impl Piece for Shown {
    fn write(&self, page: &mut Page) {
        page.family(&m::HTTP_IN_FLIGHT, [([], whole_f64(self.in_flight.load(Ordering::Relaxed)))]);
        let is_connected = f64::from(u8::from(self.is_connected.load(Ordering::Relaxed)));
        page.family(&m::CONNECTED, [([self.backend], is_connected)]);
    }
}

/// A request that is not answered yet.
#[derive(Debug)]
pub(super) struct InFlight(Arc<Shown>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Says of the gateway that it lives, and that it is ready while the broker answers.
pub(super) async fn tell(gateway: &Gateway, health: &Health) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pause = Duration::ZERO;
    loop {
        let stands = {
            let mut looking = std::pin::pin!(async {
                sleep(pause).await;
                look(gateway).await
            });
            loop {
                tokio::select! {
                    stands = &mut looking => break stands,
                    _ = ticks.tick() => health.tick(),
                }
            }
        };
        health.started();
        health.report("broker", stands.as_ref().copied().map_err(String::as_str));
        gateway.watched.0.is_connected.store(stands.is_ok(), Ordering::Relaxed);
        pause = LOOK[usize::from(stands.is_err())];
    }
}

async fn look(gateway: &Gateway) -> Result<(), String> {
    let Some(broker) = gateway.broker.get() else { return Err("the broker has not been reached yet".to_owned()) };
    match timeout(PATIENCE, broker.depth(&Queue::standard())).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("the broker has not answered within {} s", PATIENCE.as_secs())),
    }
}
