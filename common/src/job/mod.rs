//! What is asked: a job, its names, its place in line and the policy that travels with it.
//! Every value here is valid by construction; what to run is `work.rs`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

mod extras;
mod name;
mod reuse;

pub use extras::Extras;
pub use name::{BadName, BatchName, ModelName, Queue};
pub use reuse::Reuse;

use crate::telemetry::trace::Context;
use crate::time::Timestamp;
use crate::work::Work;

/// One unit of work, as submitted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Who it is; the same for every attempt and epoch.
    pub id: JobId,
    /// The line it waits in.
    pub queue: Queue,
    /// What to run.
    pub work: Work,
    /// Where it stands among the others of its queue.
    pub priority: Priority,
    /// The batch it was submitted with.
    pub batch: Option<BatchName>,
    /// Its 1-based row in that batch's input.
    pub row: Option<u64>,
    /// The submitter's own name for it, echoed in the result.
    pub custom_id: Option<String>,
    /// A label for budgets.
    pub tenant: Option<String>,
    /// Free labels, echoed in the result.
    pub tags: BTreeMap<String, String>,
    /// Not leased before this.
    pub not_before: Option<Timestamp>,
    /// Expired when it has not run by then.
    pub deadline: Timestamp,
    /// Attempts, backoff and run time, resolved at submit.
    pub policy: Policy,
    /// When it was submitted.
    pub created_at: Timestamp,
    /// Whether the id was derived from a key, so that a resubmission is the same job.
    pub keyed: bool,
    /// What only some jobs ask for. Follows the rest of the job in its bytes (`codec`).
    #[serde(skip)]
    pub extras: Option<Box<Extras>>,
    /// What it was caused by. Stands before the rest of the job in its bytes (`codec`); no part of what it asks for.
    #[serde(skip)]
    pub trace: Option<Context>,
}

impl Job {
    /// The longest a job waits to run unless told otherwise.
    pub const DEADLINE: Duration = Duration::from_secs(7 * 86_400);

    /// A job with default priority, policy and deadline and a fresh v7 id.
    pub fn new(queue: Queue, work: Work) -> Self {
        let now = Timestamp::now();
        Self {
            id: JobId::fresh(),
            queue,
            work,
            priority: Priority::default(),
            batch: None,
            row: None,
            custom_id: None,
            tenant: None,
            tags: BTreeMap::new(),
            not_before: None,
            deadline: now + Self::DEADLINE,
            policy: Policy::standard(),
            created_at: now,
            keyed: false,
            extras: None,
            trace: None,
        }
    }

    /// Gives the job the id that `key` stands for in its queue and tenant.
    pub fn with_key(mut self, key: &str) -> Self {
        self.id = JobId::derived(&self.queue, self.tenant.as_deref(), key);
        self.keyed = true;
        self
    }

    /// The lane it waits in.
    pub fn lane(&self) -> Lane {
        Lane {
            queue: self.queue.clone(),
            model: self.work.model.as_deref().map(ModelName::new),
            band: self.priority.band(),
        }
    }

    /// A hash of what it asks for: equal for two submissions of the same work, whenever and however often made.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut hash = Sha256::new();
        self.work.hash_into(&mut hash);
        let digest = hash.finalize();
        let mut short = [0; 16];
        short.copy_from_slice(&digest[..16]);
        Fingerprint(short)
    }
}

/// A job's id: UUID v7, or v8 when derived from a key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct JobId(Uuid);

impl JobId {
    /// A new time-ordered id.
    pub fn fresh() -> Self {
        Self(Uuid::now_v7())
    }

    /// The id that `key` stands for: UUID v8 from SHA-256 over the length-prefixed queue, tenant and key. Of a key that
    /// ends in a number below 2^32, as those of rows do, the first 60 bits are 28 of the same hash over what stands before
    /// it, then the number: rows of a batch come in their order and side by side into an index. The others keep keys apart.
    pub fn derived(queue: &Queue, tenant: Option<&str>, key: &str) -> Self {
        let hash = |key: &str| {
            let mut hash = Sha256::new();
            for part in [queue.as_str(), tenant.unwrap_or(""), key] {
                hash.update((part.len() as u64).to_be_bytes());
                hash.update(part.as_bytes());
            }
            let mut bytes = [0; 16];
            bytes.copy_from_slice(&hash.finalize()[..16]);
            u128::from_be_bytes(bytes)
        };
        let mut id = hash(key);
        let (before, number) = key.split_at(key.trim_end_matches(|last: char| last.is_ascii_digit()).len());
        if let Ok(number) = number.parse::<u32>() {
            let ordered = hash(before) >> 100 << 32 | u128::from(number);
            // Behind 48 bits stand four that tell the version.
            id = ordered >> 12 << 80 | (ordered & 0xfff) << 64 | id & u128::from(u64::MAX);
        }
        Self(Uuid::new_v8(id.to_be_bytes()))
    }

    /// The 16 bytes, most significant first.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// From 16 bytes, as [`JobId::as_bytes`] gave them.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.hyphenated(), f)
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for JobId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::try_parse(text).map(Self)
    }
}

/// Where jobs of one queue, one model as submitted and one priority band wait: what is leased from and held back.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Lane {
    /// The queue.
    pub queue: Queue,
    /// The model; `None`, printed `_`, for jobs that name none.
    pub model: Option<ModelName>,
    /// The band.
    pub band: Band,
}

impl Lane {
    /// The model part of the lane's name: the model, or `_`.
    pub fn model_str(&self) -> &str {
        self.model.as_ref().map_or("_", ModelName::as_str)
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.queue, self.model_str(), self.band)
    }
}

/// Priority 0 (last) to 9 (first); 5 unless told otherwise.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Priority(u8);

impl Priority {
    /// Checks and takes a priority of 0 to 9.
    pub fn new(priority: u8) -> Result<Self, String> {
        if priority > 9 {
            return Err(format!("priority {priority} is not 0 to 9"));
        }
        Ok(Self(priority))
    }

    /// The number.
    pub fn get(self) -> u8 {
        self.0
    }

    /// High 7 to 9, normal 4 to 6, low 0 to 3.
    pub fn band(self) -> Band {
        match self.0 {
            7.. => Band::High,
            4..=6 => Band::Normal,
            _ => Band::Low,
        }
    }
}

impl Default for Priority {
    fn default() -> Self {
        Self(5)
    }
}

impl TryFrom<u8> for Priority {
    type Error = String;

    fn try_from(priority: u8) -> Result<Self, String> {
        Self::new(priority)
    }
}

impl From<Priority> for u8 {
    fn from(priority: Priority) -> Self {
        priority.0
    }
}

/// A priority band. Bands of one queue are served 8 : 3 : 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Band {
    /// Priorities 7 to 9.
    High,
    /// Priorities 4 to 6.
    Normal,
    /// Priorities 0 to 3.
    Low,
}

impl Band {
    /// Every band, first served first.
    pub const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];

    /// Its share of the leases when every band has jobs.
    pub const fn weight(self) -> u32 {
        match self {
            Self::High => 8,
            Self::Normal => 3,
            Self::Low => 1,
        }
    }
}

impl fmt::Display for Band {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        })
    }
}

/// How often, how long and how far apart a job is tried.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Policy {
    /// Attempts in all, at least 1.
    pub attempts: u32,
    /// The wait between them.
    pub backoff: Backoff,
    /// The longest one attempt may run; of an answer that is streamed, the longest silence in it.
    pub timeout: Duration,
    /// How often an answer that is not whole is put aside and the job called again, beside those attempts. Follows the rest
    /// of the job in its bytes (`codec`).
    #[serde(skip)]
    pub repair_attempts: u32,
}

impl Policy {
    /// 5 attempts, 1 s to 5 min apart, 10 minutes each; a paid answer is kept, whole or not.
    pub const fn standard() -> Self {
        Self { attempts: 5, backoff: Backoff::standard(), timeout: Duration::from_secs(600), repair_attempts: 0 }
    }
}

/// Exponential waits: `first`, then `factor` times longer each time, never above `max`; jitter is the judge's.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Backoff {
    /// After the first failed attempt.
    pub first: Duration,
    /// The ceiling.
    pub max: Duration,
    /// Growth per attempt, at least 1.
    pub factor: f64,
}

impl Backoff {
    /// 1 s, doubling, at most 5 min.
    pub const fn standard() -> Self {
        Self { first: Duration::from_secs(1), max: Duration::from_secs(300), factor: 2.0 }
    }
}

/// The first 16 bytes of a SHA-256 over what a job asks for: tells a resubmission from a conflict.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Fingerprint(pub [u8; 16]);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_rows_come_in_the_order_of_the_rows() {
        let id = |key: &str| JobId::derived(&Queue::standard(), None, key);
        let rows = [0, 1, 2, 10, 4_095, 4_096, 70_000, u32::MAX].map(|row| id(&format!("nov/{row}")));
        assert!(rows.is_sorted(), "{rows:?}");
        assert!(rows.iter().all(|row| row.as_bytes()[..3] == rows[0].as_bytes()[..3]), "{rows:?}");
        assert_ne!(id("dec/1").as_bytes()[..3], rows[1].as_bytes()[..3], "each batch where it is");
        let alike = ["nov/7", "nov/07", "nov/007", "nov/4294967303", "dec/7", "7"].map(id);
        assert!(alike.iter().enumerate().all(|(place, id)| !alike[..place].contains(id)), "{alike:?}");
    }

    #[test]
    fn a_derived_id_is_the_same_in_every_build() {
        let ids = ["nov/7", "order-a"].map(|key| JobId::derived(&Queue::standard(), Some("acme"), key).to_string());
        assert_eq!(ids, ["232add70-0000-8007-8afa-5fee626d61ba", "d8aed09e-d9cd-814f-8524-763dbb443a11"]);
    }

    #[test]
    fn a_derived_id_depends_on_every_part_and_on_nothing_else() {
        let queue = Queue::standard();
        let id = JobId::derived(&queue, None, "nov/1");
        assert_eq!(id, JobId::derived(&queue, None, "nov/1"));
        assert_eq!(id.to_string().as_bytes()[14], b'8');
        let others = [
            JobId::derived(&Queue::new("other").unwrap(), None, "nov/1"),
            JobId::derived(&queue, Some("acme"), "nov/1"),
            JobId::derived(&queue, None, "nov/2"),
            JobId::derived(&queue, Some("n"), "ov/1"),
        ];
        assert!(others.iter().all(|other| *other != id));
    }

    #[test]
    fn bands_cover_the_priorities() {
        let band = |p| Priority::new(p).unwrap().band();
        assert_eq!(
            [band(0), band(3), band(4), band(6), band(7), band(9)],
            [Band::Low, Band::Low, Band::Normal, Band::Normal, Band::High, Band::High]
        );
        assert!(Priority::new(10).is_err());
    }
}
