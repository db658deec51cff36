//! What a worker is just now: read when the page is asked for, so that no job pays for it.

use std::collections::BTreeSet;
use std::sync::Arc;

use promptq_common::telemetry::exposition::Page;
use promptq_common::telemetry::label::{HELD_BY, STATE};
use promptq_common::telemetry::metric as m;
use promptq_common::telemetry::recorder::{self, Piece};
use tokio::time::Instant;

use super::{Meter, lock};
use crate::status::{BlockedBy, Board};

/// What a worker is just now, for the page.
#[derive(Debug)]
pub(crate) struct Now {
    pub(crate) meter: Arc<Meter>,
    pub(crate) board: Board,
    pub(crate) backend: &'static str,
    pub(crate) slots: u32,
}

impl Now {
    /// Has the page say so, where there is one.
    pub(crate) fn show(self) {
        if let Some(recorder) = recorder::installed() {
            recorder.add(Arc::new(self));
        }
    }
}

impl Piece for Now {
    fn write(&self, page: &mut Page) {
        let (now, status) = (Instant::now(), self.board.now());
        let hands = self.meter.lines.iter().filter_map(|(queue, line)| Some((queue.as_str(), line.kept.as_ref()?)));
        let hands: Vec<_> = hands
            .map(|(queue, kept)| {
                let slots = &lock(&kept.hands).since;
                let oldest = slots.iter().flatten().min().map_or(0.0, |since| (now - *since).as_secs_f64());
                (queue, slots.iter().flatten().count(), oldest)
            })
            .collect();
        #[expect(clippy::cast_precision_loss, reason = "20,000 at most")]
        page.family(&m::JOBS_RUNNING, hands.iter().map(|(queue, running, _)| ([*queue], *running as f64)));
        page.family(&m::OLDEST_RUNNING, hands.iter().map(|(queue, _, oldest)| ([*queue], *oldest)));
        page.family(&m::CONCURRENCY, [([""; 0], f64::from(self.slots))]);
        let state = match (status.draining, status.consuming) {
            (true, _) => "draining",
            (false, true) => "running",
            (false, false) => "starting",
        };
        page.family(&m::WORKER_STATE, STATE.values.iter().map(|one| ([*one], f64::from(u8::from(*one == state)))));
        let by: BTreeSet<_> = status.blocked.iter().map(|blocked| held_by(&blocked.by)).collect();
        let is_held = |one: &'static &str| ([*one], f64::from(u8::from(by.contains(*one))));
        page.family(&m::WORKER_BLOCKED, HELD_BY.values.iter().map(is_held));
        let connected = f64::from(u8::from(status.consuming && !by.contains("broker")));
        page.family(&m::CONNECTED, [([self.backend], connected)]);
    }
}

fn held_by(by: &BlockedBy) -> &'static str {
    match by {
        BlockedBy::Limit { .. } => "limit",
        BlockedBy::Memory => "memory",
        BlockedBy::Disk => "disk",
        BlockedBy::Settling => "settling",
        BlockedBy::Broker => "broker",
    }
}
