//! What was measured, kept in `benches/scaling.json` from one part's run to the next and to the page's.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::Kind;

/// Everything that was measured, by backend; what was not is empty.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Figures {
    /// With how many jobs waiting.
    pub(super) fill: BTreeMap<String, Filled>,
    /// Over how many queues.
    pub(super) queues: BTreeMap<String, Spreading>,
    /// With how many workers.
    pub(super) workers: BTreeMap<String, Fleet>,
}

/// Processor time for each job, in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Cost {
    /// Of this process.
    pub(super) ours: f64,
    /// Of the servers.
    pub(super) theirs: f64,
}

impl Cost {
    pub(super) fn sum(self) -> f64 {
        self.ours + self.theirs
    }
}

/// One backend as it fills up.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Filled {
    /// The day.
    pub(super) date: String,
    /// One for each number of waiting jobs.
    pub(super) rows: Vec<FilledRow>,
}

/// So many jobs waiting. Ratios are medians of pairs: this many beside few, by turns.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct FilledRow {
    pub(super) waiting: usize,
    pub(super) enqueue: Cost,
    pub(super) drain: Cost,
    pub(super) enqueue_ratio: [f64; 3],
    pub(super) drain_ratio: [f64; 3],
    /// Bytes of memory and disk at the servers for each waiting job, and of its encoded payload.
    pub(super) memory: f64,
    pub(super) disk: f64,
    pub(super) payload: f64,
}

/// One backend over more and more queues.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Spreading {
    pub(super) date: String,
    pub(super) jobs: usize,
    pub(super) rows: Vec<SpreadingRow>,
}

/// So many queues. Ratios are to one queue, by turns.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct SpreadingRow {
    pub(super) queues: usize,
    pub(super) enqueue: Cost,
    /// By a worker of all queues, and by workers of one queue each.
    pub(super) drain_all: Cost,
    pub(super) drain_one: Cost,
    pub(super) enqueue_ratio: [f64; 3],
    pub(super) drain_all_ratio: [f64; 3],
    pub(super) drain_one_ratio: [f64; 3],
    /// Memory at the servers for each queue, in bytes.
    pub(super) memory: f64,
}

/// One backend with more and more workers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Fleet {
    pub(super) date: String,
    /// Memory of a whole idle worker process, in bytes.
    pub(super) process: f64,
    pub(super) rows: Vec<FleetRow>,
}

/// So many workers, each with connections of its own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct FleetRow {
    pub(super) workers: usize,
    /// At Redis, and at RabbitMQ.
    pub(super) connections: [f64; 2],
    /// Memory for each worker, in bytes: in its own process beside others, and at the servers.
    pub(super) memory: [f64; 2],
    pub(super) threads: f64,
    /// While nothing comes: calls at Redis and packets at RabbitMQ a second, processor time of all workers and of the
    /// servers as a share of one processor.
    pub(super) idle_calls: [f64; 2],
    pub(super) idle: [f64; 2],
    /// While they drain: processor time for each job, calls and packets for each job; nothing where they did not end.
    pub(super) busy: Option<Cost>,
    pub(super) busy_calls: [f64; 2],
}

impl Figures {
    /// What the file holds; nothing where there is none.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        match std::fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).with_context(|| format!("{} is not ours", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes it over.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        Ok(std::fs::write(path, text)?)
    }

    /// Takes over from another what one part (`fill`, `queues`, `workers`) found out of one backend.
    pub fn take(&mut self, other: Self, part: &str, backend: &str) {
        let Self { fill, queues, workers } = other;
        match part {
            "fill" => self.fill.extend(fill.into_iter().filter(|(name, _)| name == backend)),
            "queues" => self.queues.extend(queues.into_iter().filter(|(name, _)| name == backend)),
            _ => self.workers.extend(workers.into_iter().filter(|(name, _)| name == backend)),
        }
    }

    pub(super) fn filled(&self, kind: Kind) -> Option<&Filled> {
        self.fill.get(kind.name())
    }

    pub(super) fn spreading(&self, kind: Kind) -> Option<&Spreading> {
        self.queues.get(kind.name())
    }

    pub(super) fn fleet(&self, kind: Kind) -> Option<&Fleet> {
        self.workers.get(kind.name())
    }
}

/// The least, the median and the most of what was measured; zeros of nothing.
pub(super) fn spread(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    let at = |place: usize| values.get(place).copied().unwrap_or_default();
    [at(0), at(values.len() / 2), at(values.len().saturating_sub(1))]
}

/// Each side's median.
pub(super) fn median(costs: &[Cost]) -> Cost {
    let middle = |side: fn(&Cost) -> f64| spread(costs.iter().map(side).collect())[1];
    Cost { ours: middle(|cost| cost.ours), theirs: middle(|cost| cost.theirs) }
}

/// What each pair's second cost of its first one.
pub(super) fn ratios(few: &[Cost], many: &[Cost]) -> [f64; 3] {
    spread(few.iter().zip(many).map(|(few, many)| many.sum() / few.sum()).collect())
}

/// Today as people write it.
pub(super) fn today() -> String {
    promptq_common::time::Timestamp::now().to_string().chars().take(10).collect()
}
