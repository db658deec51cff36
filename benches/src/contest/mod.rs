//! The contests, each in a file: `queues` (enqueue, drain, live on one broker, all contestants by turns), `latency`,
//! `calls`, `rows`. Here: how much each does in which form, and what a measurement is made of.

mod calls;
mod latency;
mod programs;
mod queues;
mod rows;

use std::collections::BTreeMap;

use anyhow::{Context, bail};

pub(crate) use programs::{TEXT, prompt};

pub use crate::form::Form;
use crate::report::{Machine, Report, SCHEMA, Sample};
pub use crate::stage::Kind;

/// How many jobs are next to nothing, for a smoke.
const SMOKE: u64 = 200;

/// One of what is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contest {
    /// Enqueue, drain and live.
    Queues(Kind),
    /// What one job takes that comes alone.
    Latency,
    /// Many calls in flight in one worker.
    Calls,
    /// `promptq run` over many rows.
    Rows,
}

impl Contest {
    /// What a run without names has.
    pub const STANDARD: [Self; 7] = [
        Self::Queues(Kind::Redis),
        Self::Queues(Kind::Quorum),
        Self::Queues(Kind::Classic),
        Self::Queues(Kind::Sqlite),
        Self::Latency,
        Self::Calls,
        Self::Rows,
    ];

    /// By its name on the command line.
    pub fn named(name: &str) -> anyhow::Result<Self> {
        if let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.name() == name) {
            return Ok(Self::Queues(kind));
        }
        Ok(match name {
            "latency" => Self::Latency,
            "calls" => Self::Calls,
            "run" => Self::Rows,
            _ => bail!(
                "there is no contest {name:?}\n  hint: redis, redis-always, quorum, classic, sqlite, latency, calls, run"
            ),
        })
    }
}

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// `full`, `quick` or `smoke`.
    pub form: Form,
    /// How many rounds.
    pub rounds: u32,
    /// Whether peers take part.
    pub peers: bool,
}

impl Form {
    /// As many rounds as it has by itself; ten give an interval of the median that leaves out the strangest two.
    pub fn rounds(self) -> u32 {
        self.of(10, 3, 1)
    }
}

/// A run: the plan, and what was measured so far.
#[derive(Debug)]
pub struct Run {
    /// What is to be done.
    pub plan: Plan,
    /// What was.
    pub report: Report,
}

impl Run {
    /// Before anything was measured.
    pub fn new(plan: Plan) -> anyhow::Result<Self> {
        let report = Report {
            schema: SCHEMA,
            date: promptq_common::time::Timestamp::now().to_string(),
            form: plan.form.name().to_owned(),
            machine: Machine::seen()?,
            versions: BTreeMap::from([("promptq".to_owned(), env!("CARGO_PKG_VERSION").to_owned())]),
            samples: Vec::new(),
        };
        Ok(Self { plan, report })
    }

    /// Measures one contest.
    ///
    /// # Errors
    /// When something needed is missing or a contestant fails; what was measured before stays in the report.
    pub async fn hold(&mut self, contest: Contest) -> anyhow::Result<()> {
        match contest {
            Contest::Queues(kind) => queues::hold(self, kind).await.with_context(|| format!("contest {}", kind.name())),
            Contest::Latency => latency::hold(self).await.context("contest latency"),
            Contest::Calls => calls::hold(self).await.context("contest calls"),
            Contest::Rows => rows::hold(self).await.context("contest run"),
        }
    }

    fn note(&mut self, sample: Sample) {
        progress(&sample);
        self.report.samples.push(sample);
    }

    fn versions(&mut self, kind: Kind) {
        self.report.versions.extend(crate::stage::versions(kind));
    }
}

/// One line for whoever waits.
#[expect(clippy::print_stderr, reason = "a run takes minutes, and the table comes last")]
fn progress(sample: &Sample) {
    let Sample { contest, measure, contestant, round, .. } = sample;
    let what = match sample.p50_ms {
        Some(p50) => format!("p50 {p50:.2} ms"),
        None => format!("{:.0}/s, {:.1}+{:.1} us", sample.per_second, sample.cpu_us, sample.broker_us),
    };
    eprintln!("{contest:12} {round:>2}  {measure:8} {contestant:10} {what}  others {:.0} %", sample.others * 100.0);
}
