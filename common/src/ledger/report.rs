//! What workers tell of themselves: that they live, what holds their jobs back, how fast they go.

use serde::{Deserialize, Serialize};

use crate::broker::WorkerId;
use crate::job::Queue;
use crate::limits::Cap;
use crate::outcome::FailureClass;
use crate::time::Timestamp;

/// What a worker tells of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerReport {
    /// Its identity.
    pub id: WorkerId,
    /// The machine it runs on.
    pub host: String,
    /// Its process id there.
    pub pid: u32,
    /// promptq's version.
    pub version: String,
    /// When it started.
    pub started_at: Timestamp,
    /// When it last reported.
    pub seen_at: Timestamp,
    /// How many jobs it runs at once at most.
    pub slots: u32,
    /// How many it runs.
    pub running: u32,
    /// What it leases from, as `name:weight`.
    pub queues: Vec<String>,
    /// Whether it takes no more jobs.
    pub draining: bool,
    /// Why it takes no jobs now, if something holds it back.
    pub blocked: Option<String>,
    /// The limit keys that hold jobs back here, longest first, at most [`HELD_KEYS`].
    #[serde(default)]
    pub held: Vec<HeldKey>,
    /// How fast its queues went of late, the busiest first, at most [`PACES`]; none of those that did not move.
    #[serde(default)]
    pub paces: Vec<Pace>,
}

/// The most queues of which a worker reports how fast they go.
pub const PACES: usize = 50;
/// The most limit keys reported of each.
pub const PACE_KEYS: usize = 20;

/// What one worker did of a queue's jobs of late.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pace {
    /// The queue.
    pub queue: Queue,
    /// Within so many milliseconds.
    pub over_ms: u64,
    /// Jobs that ended.
    pub ended: u64,
    /// Calls, and how long they took together.
    pub calls: u64,
    /// In milliseconds.
    pub call_ms: u64,
    /// Tokens that they sent.
    pub input_tokens: u64,
    /// And received.
    pub output_tokens: u64,
    /// The longest that a job had waited for its start.
    pub waited_ms: u64,
    /// The limit keys that its jobs have come under.
    pub keys: Vec<String>,
}

/// The most limit keys that a worker reports as held: a report is read by everybody who asks how work stands.
pub const HELD_KEYS: usize = 20;
/// The most lanes reported of each.
pub const HELD_LANES: usize = 20;

/// A limit key that holds jobs back at a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldKey {
    /// The key: of a rule, or of provider and model.
    pub key: String,
    /// `throttled`, `capacity` or `account`.
    pub class: FailureClass,
    /// What the other side said, or which limit it is.
    pub detail: String,
    /// Since when.
    pub since: Timestamp,
    /// When it is tried again, or opens.
    pub until: Timestamp,
    /// Whether a job tries it now.
    pub probing: bool,
    /// Queue and model (as submitted) of jobs behind it, at most [`HELD_LANES`].
    pub lanes: Vec<(Queue, Option<String>)>,
    /// It is not shut: its endpoint has too much to do, and gets so many calls at once from this worker.
    #[serde(default)]
    pub at_once: Option<u32>,
    /// The cap that has nothing left, as this worker was told last; `None` where something else holds jobs back, and in the
    /// reports of earlier builds.
    #[serde(default)]
    pub cap: Option<Cap>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{Measure, Per};

    #[test]
    fn what_workers_of_an_earlier_build_report_is_read() {
        let held = HeldKey {
            key: "acme".into(),
            class: FailureClass::Throttled,
            detail: "all of it is used".into(),
            since: Timestamp::from_millis(1),
            until: Timestamp::from_millis(2),
            probing: false,
            lanes: vec![(Queue::standard(), None)],
            at_once: None,
            cap: Some(Cap { measure: Measure::Usd, per: Per::Day, most: 25_000_000_000 }),
        };
        let mut told = serde_json::to_value(&held).unwrap();
        assert_eq!(serde_json::from_value::<HeldKey>(told.clone()).unwrap(), held);
        told.as_object_mut().unwrap().remove("cap").expect("it is told");
        assert_eq!(serde_json::from_value::<HeldKey>(told).unwrap(), HeldKey { cap: None, ..held });
    }
}
