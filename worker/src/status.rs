//! What a worker shows while it works: counts, and what holds it back. It decides nothing here.

use std::sync::Arc;
use std::time::Duration;

use promptq_common::limits::Cap;
use promptq_common::outcome::FailureClass;
use promptq_common::telemetry::health::Health;
use promptq_common::time::Timestamp;
use tokio::sync::watch;

/// Where a worker shows its [`Status`]. Cheap to clone; made by the caller, so that it can look on.
#[derive(Clone, Debug)]
pub struct Board(Arc<watch::Sender<Status>>, Option<Health>);

impl Board {
    /// An empty one.
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Status::default())), None)
    }

    /// One that tells `health` as well: each time the worker's loop comes round, and how its work stands.
    pub fn telling(health: Health) -> Self {
        // Whatever else reports before the loop does: it takes nothing yet.
        health.report("consuming", Err(NOT_YET));
        Self(Arc::new(watch::Sender::new(Status::default())), Some(health))
    }

    /// Who is told as well.
    pub(crate) fn health(&self) -> Option<&Health> {
        self.1.as_ref()
    }

    /// Follows the status; the worker shows changes at most ten times a second, and at its end.
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.0.subscribe()
    }

    /// The status now.
    pub fn now(&self) -> Status {
        self.0.borrow().clone()
    }

    pub(crate) fn show(&self, status: Status) {
        if let Some(health) = &self.1 {
            tell(health, &status);
        }
        self.0.send_if_modified(|shown| {
            let differs = *shown != status;
            *shown = status;
            differs
        });
    }
}

const NOT_YET: &str = "the broker has not answered yet";

/// What probes hear of a worker. Limits that are used up and slots that are full are work like any other.
fn tell(health: &Health, status: &Status) {
    health.tick();
    if status.draining {
        health.draining();
    }
    let fault = |by: &BlockedBy| status.blocked.iter().find(|blocked| blocked.by == *by);
    health.report(
        "consuming",
        match fault(&BlockedBy::Broker) {
            Some(blocked) => Err(blocked.detail.as_str()),
            None if !status.consuming => Err(NOT_YET),
            None => Ok(()),
        },
    );
    health.report("settling", fault(&BlockedBy::Settling).map_or(Ok(()), |blocked| Err(blocked.detail.as_str())));
}

impl Default for Board {
    fn default() -> Self {
        Self::new()
    }
}

/// What a worker does now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Jobs it runs.
    pub running: u32,
    /// Of those, probes of a held-back limit key.
    pub probing: u32,
    /// What it has done since it started.
    pub finished: Finished,
    /// What holds it back, longest first; empty when nothing does.
    pub blocked: Vec<Blocked>,
    /// Whether it takes no more jobs.
    pub draining: bool,
    /// Whether the broker has answered when it was asked for jobs.
    pub consuming: bool,
    /// When a job last ended or spent an attempt here.
    pub progress_at: Option<Timestamp>,
    /// The keys of money that is spent, or may not be: only a person, or another day, helps jobs that wait for it.
    pub spent: Vec<String>,
    /// Until when a job that spent an attempt here waits for its next one, at the latest.
    pub retries_until: Option<Timestamp>,
}

impl Status {
    /// What everything waits for, when this worker has got nowhere for `length` and only a person, or the other side,
    /// can change that: an account, a provider out of reach, or this machine's memory or disk.
    pub fn stuck(&self, length: Duration, now: Timestamp) -> Option<&Blocked> {
        let idle = self.running <= self.probing
            && self.progress_at.is_none_or(|at| now.since(at) >= length)
            && self.retries_until.is_none_or(|until| until < now);
        let hard = |blocked: &&Blocked| match blocked.by {
            BlockedBy::Limit { class, .. } => matches!(class, FailureClass::Account | FailureClass::Capacity),
            BlockedBy::Memory | BlockedBy::Disk | BlockedBy::Settling | BlockedBy::Broker => true,
        };
        let soft = self.blocked.iter().any(|blocked| !hard(&blocked));
        if !idle || soft {
            return None;
        }
        self.blocked.iter().filter(hard).find(|blocked| now.since(blocked.since) >= length)
    }
}

impl Status {
    /// What has no money for the jobs that wait, when this worker runs nothing and has got nowhere for `length`.
    pub fn broke(&self, length: Duration, now: Timestamp) -> Option<&Blocked> {
        let waits = self.retries_until.is_none_or(|until| until < now);
        let idle = self.running == 0 && self.progress_at.is_none_or(|at| now.since(at) >= length);
        let is_spent = |blocked: &&Blocked| {
            matches!(&blocked.by, BlockedBy::Limit { key, .. } if self.spent.contains(key))
                && now.since(blocked.since) >= length
        };
        self.blocked.iter().find(is_spent).filter(|_| idle && waits)
    }
}

/// Counts since the worker started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Finished {
    /// Answered.
    pub succeeded: u64,
    /// Given up.
    pub dead: u64,
    /// Stopped by a user.
    pub cancelled: u64,
    /// Met after their deadline.
    pub expired: u64,
    /// Attempts spent that will be followed by another.
    pub retried: u64,
    /// Given back, spending nothing.
    pub released: u64,
    /// Not this worker's any more: ended or run elsewhere.
    pub dropped: u64,
}

impl Finished {
    /// Jobs that ended here.
    pub fn ended(&self) -> u64 {
        self.succeeded + self.dead + self.cancelled + self.expired
    }
}

/// One thing that holds jobs back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// What it is.
    pub by: BlockedBy,
    /// One line for people: what the other side said, or the figure.
    pub detail: String,
    /// Since when.
    pub since: Timestamp,
    /// When it is tried again or ends, if known.
    pub until: Option<Timestamp>,
    /// The cap that has nothing left, if that is it.
    pub cap: Option<Cap>,
}

/// What holds jobs back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockedBy {
    /// A limit key: a rate limit (`throttled`), an outage (`capacity`) or an account that does not work (`account`).
    Limit {
        /// The key.
        key: String,
        /// Which of the three.
        class: FailureClass,
    },
    /// This machine's memory.
    Memory,
    /// A file system that runs full.
    Disk,
    /// Settling fails: nothing new is taken until what is done is stored.
    Settling,
    /// The broker is out of reach.
    Broker,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1_000)
    }

    fn blocked(class: FailureClass) -> Blocked {
        let by = BlockedBy::Limit { key: "k".into(), class };
        Blocked { by, detail: String::new(), since: at(0), until: None, cap: None }
    }

    #[test]
    fn stuck_means_nothing_moves_and_nothing_will() {
        let minute = Duration::from_secs(60);
        let stuck = Status { blocked: vec![blocked(FailureClass::Account)], ..Status::default() };
        assert!(stuck.stuck(minute, at(60)).is_some());
        assert!(stuck.stuck(minute, at(59)).is_none(), "not for long enough");
        let not = |change: fn(&mut Status)| {
            let mut status = stuck.clone();
            change(&mut status);
            assert!(status.stuck(minute, at(60)).is_none(), "{status:?}");
        };
        not(|status| status.running = 1);
        not(|status| status.progress_at = Some(at(10)));
        not(|status| status.retries_until = Some(at(70)));
        not(|status| status.blocked.push(blocked(FailureClass::Throttled)));
        not(|status| status.blocked.clear());
        let broke = |spent: &str| Status { spent: vec![spent.into()], ..stuck.clone() }.broke(minute, at(60)).is_some();
        assert!(broke("k") && !broke("other"), "money is what it waits for");
        let running = Status { running: 1, spent: vec!["k".into()], ..stuck.clone() };
        assert!(running.broke(minute, at(60)).is_none());
        let probing = Status { running: 1, probing: 1, ..stuck };
        assert!(probing.stuck(minute, at(60)).is_some(), "a probe is no progress");
    }
}
