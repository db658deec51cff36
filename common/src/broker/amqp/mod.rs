//! The RabbitMQ broker: it carries jobs as messages, and keeps what is known of them in a ledger beside it.

mod address;
mod dial;
mod fault;
#[cfg_attr(not(test), expect(dead_code, reason = "the backend that sends messages to these levels is built beside it"))]
mod level;
#[cfg_attr(not(test), expect(dead_code, reason = "the backend above it comes next"))]
mod link;
#[cfg_attr(not(test), expect(dead_code, reason = "the backend above it comes next"))]
mod publisher;
#[expect(dead_code, unused_imports, reason = "the backend that declares them is built beside it")]
mod topology;
mod trouble;
mod window;

use std::fmt;
use std::time::Duration;

/// What is particular to RabbitMQ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What lane queues are.
    pub queues: QueueType,
    /// How long the server lets a delivery stay unacknowledged, as its operator says; jobs that take longer change
    /// their delivery for a new one at half of it, or after 25 minutes.
    pub consumer_timeout: Duration,
    /// How long messages stay in each delay queue, shortest first.
    pub levels: Vec<Duration>,
}

/// What a lane's queue is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueType {
    /// Replicated, and on disk before it is confirmed.
    Quorum,
    /// On one node; may lose confirmed messages with the power.
    Classic,
}

impl QueueType {
    /// The setting's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Quorum => "quorum",
            Self::Classic => "classic",
        }
    }
}

impl fmt::Display for QueueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Default for Settings {
    /// Quorum queues, 30 minutes as servers come, seven levels from a second to six hours.
    fn default() -> Self {
        let levels = [1, 5, 30, 120, 600, 3_600, 21_600].map(Duration::from_secs).to_vec();
        Self { queues: QueueType::Quorum, consumer_timeout: Duration::from_secs(1_800), levels }
    }
}
