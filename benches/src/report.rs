//! What one run measured, as it is kept: every single measurement, and on what. What follows from them is `account`'s and
//! `goals`'s.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

/// The form of the file; another one is refused.
pub const SCHEMA: u32 = 1;

/// One run of `benches/run`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// When it began, RFC 3339 in UTC.
    pub date: String,
    /// `full` or `quick`.
    pub form: String,
    /// Where.
    pub machine: Machine,
    /// Of promptq, brokers, peers and what these run on, by name.
    pub versions: BTreeMap<String, String>,
    /// Every measurement, in the order they were made.
    pub samples: Vec<Sample>,
}

/// Where it was measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Its model.
    pub processor: String,
    /// How many.
    pub processors: u32,
    /// Of memory.
    pub memory_mib: u64,
    /// As `uname -srm` says.
    pub kernel: String,
    /// The compiler.
    pub rustc: String,
}

/// One measurement of one contestant.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// `redis`, `quorum`, `classic`, `sqlite`, …
    pub contest: String,
    /// `enqueue`, `drain`, `live`, `latency`, `calls`, `run`.
    pub measure: String,
    /// `promptq`, `limit` (with promptq's writes), `bare` (the limit program without), `raw` (a socket loop), or a peer.
    pub contestant: String,
    /// Measurements of one round were made after one another, and are compared with each other; from 1.
    pub round: u32,
    /// How many jobs were measured, the warm-up not counted.
    pub jobs: u64,
    /// How long they took.
    pub seconds: f64,
    /// Jobs by seconds.
    pub per_second: f64,
    /// Processor time of the contestant's processes for each job, in microseconds.
    pub cpu_us: f64,
    /// That of the broker's servers, warm-up jobs included on both sides.
    pub broker_us: f64,
    /// The most memory that a process of the contestant held.
    pub peak_kib: u64,
    /// The share of all processors that others had meanwhile, 0 to 1.
    pub others: f64,
    /// Of latencies, from before the submit to the start, in milliseconds: the median.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p50_ms: Option<f64>,
    /// As before: what 99 of 100 do not exceed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_ms: Option<f64>,
    /// The most calls that were under way at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_once: Option<u64>,
}

impl Report {
    /// From a file.
    ///
    /// # Errors
    /// When it cannot be read, or is of another form.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
        let report: Self =
            serde_json::from_str(&text).with_context(|| format!("{} is no report of benches/run", path.display()))?;
        ensure!(report.schema == SCHEMA, "{} has schema {}, not {SCHEMA}", path.display(), report.schema);
        Ok(report)
    }

    /// Into a file, and its folder.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let text = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(path, text).with_context(|| format!("{} cannot be written", path.display()))
    }

    /// What was measured so, in the order of its rounds.
    pub fn of<'a>(&'a self, contest: &str, measure: &str, contestant: &str) -> Vec<&'a Sample> {
        let wanted = |sample: &&Sample| {
            sample.contest == contest && sample.measure == measure && sample.contestant == contestant
        };
        self.samples.iter().filter(wanted).collect()
    }
}
