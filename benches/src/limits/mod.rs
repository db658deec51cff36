//! What the limits of a fleet are worth, measured with real programs against a provider with true sliding windows. Here: which
//! measures there are and how long each takes; `fleet` and `fake` are what they are made with, `calls` reckons, `findings` shows.

mod beside;
pub mod calls;
mod fake;
pub mod findings;
mod fleet;
mod headers;
mod kept;
mod killed;
mod money;
mod prompts;
mod queues;
mod store;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::time::Duration;

use anyhow::bail;
use futures_util::future::join_all;
use promptq_common::time::Timestamp;

pub use crate::form::Form;
use crate::machine::Load;
use crate::report::Machine;
use crate::stage::{Kind, versions};
use findings::{Finding, Findings, SCHEMA};

/// One of what is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// How much of a limit eight workers use, and that they are never over.
    Kept,
    /// Workers killed at random: what is lost of a limit.
    Killed,
    /// The store away for 20 s.
    Store,
    /// Limits halved by headers alone.
    Headers,
    /// Two queues on one account.
    Queues,
    /// A free model beside a throttled one.
    Beside,
    /// `--max-cost`, and a run killed at half.
    Money,
}

impl Measure {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Kept, Self::Killed, Self::Store, Self::Headers, Self::Queues, Self::Beside, Self::Money];

    /// On the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Killed => "killed",
            Self::Store => "store",
            Self::Headers => "headers",
            Self::Queues => "queues",
            Self::Beside => "beside",
            Self::Money => "money",
        }
    }

    /// By its name.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn named(name: &str) -> anyhow::Result<Self> {
        match Self::ALL.into_iter().find(|measure| measure.name() == name) {
            Some(measure) => Ok(measure),
            None => bail!("there is no measure {name:?}\n  hint: {}", Self::ALL.map(Self::name).join(", ")),
        }
    }

    /// Whether it measures moments, and not what fits into minutes: then nobody else should be on the machine.
    fn is_delicate(self) -> bool {
        matches!(self, Self::Beside | Self::Money)
    }

    fn parts(self, form: Form) -> Vec<Part> {
        match self {
            Self::Kept => kept::VARIANTS.iter().map(|variant| part(kept::measured(form, variant))).collect(),
            Self::Killed => vec![part(killed::measured(form))],
            Self::Store => store::AWAY.into_iter().map(|away| part(store::measured(form, away))).collect(),
            Self::Headers => vec![part(headers::measured(form))],
            Self::Queues => vec![part(queues::measured(form))],
            Self::Beside => beside::PLACES.into_iter().map(|place| part(beside::measured(form, place))).collect(),
            Self::Money => {
                let stopped = money::LUCK.into_iter().map(|luck| part(money::stopped(form, luck)));
                stopped.chain([part(money::killed(form))]).collect()
            }
        }
    }
}

/// What one part has seen, under its name; or its name, and why it broke off.
type Seen = (String, anyhow::Result<Vec<Finding>>);
type Part = Pin<Box<dyn Future<Output = Seen>>>;

fn part(part: impl Future<Output = Seen> + 'static) -> Part {
    Box::pin(part)
}

impl Form {
    /// The first window, in which nothing counts yet.
    fn first(self) -> Duration {
        self.seconds(60, 60, 3)
    }

    /// By then calls that were let in have ended, and are in the ledger: no answer takes longer than 8 s here.
    fn late(self) -> Duration {
        self.seconds(9, 9, 2)
    }

    fn seconds(self, full: u64, quick: u64, smoke: u64) -> Duration {
        Duration::from_secs(self.of(full, quick, smoke))
    }
}

/// What is to be measured, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How long.
    pub form: Form,
    /// What, in this order.
    pub measures: Vec<Measure>,
    /// One after the other, also those that mostly wait for minutes to pass.
    pub alone: bool,
}

/// Takes all measures. One that breaks off is told with the others' findings.
///
/// # Errors
/// When this machine cannot be looked at.
pub async fn take(plan: &Plan) -> anyhow::Result<Findings> {
    let date = Timestamp::now().to_string();
    let (delicate, patient): (Vec<_>, Vec<_>) =
        plan.measures.iter().copied().partition(|measure| measure.is_delicate());
    let all = |measures: Vec<Measure>| -> Vec<Part> {
        measures.into_iter().flat_map(|measure| measure.parts(plan.form)).collect()
    };
    let (load, mut seen) = (Load::start()?, Vec::new());
    if plan.alone {
        seen.extend(one_by_one(all(patient)).await);
    } else {
        seen.extend(join_all(all(patient)).await);
    }
    let busy = Finding::new("of the processors in use meanwhile, by everybody", load.of_others(0.0)? * 100.0, "%");
    let is_of_use = !seen.is_empty();
    seen.extend(one_by_one(all(delicate)).await);
    let mut findings = Findings {
        schema: SCHEMA,
        date,
        form: plan.form.name().to_owned(),
        alone: plan.alone,
        machine: Machine::seen()?,
        versions: names(),
        findings: Vec::new(),
        trouble: Vec::new(),
    };
    for (measure, found) in seen {
        match found {
            Ok(found) => {
                findings.findings.extend(found.into_iter().map(|one| Finding { measure: measure.clone(), ..one }));
            }
            Err(error) => findings.trouble.push(format!("{measure}: {error:#}")),
        }
    }
    let machine = Finding { measure: "the machine, while minutes passed".to_owned(), ..busy };
    findings.findings.extend(is_of_use.then_some(machine));
    Ok(findings)
}

async fn one_by_one(parts: Vec<Part>) -> Vec<Seen> {
    let mut seen = Vec::new();
    for part in parts {
        seen.push(part.await);
    }
    seen
}

fn names() -> BTreeMap<String, String> {
    let own = [("promptq".to_owned(), env!("CARGO_PKG_VERSION").to_owned())];
    let brokers = [Kind::Redis, Kind::Quorum, Kind::Sqlite].into_iter().flat_map(versions);
    own.into_iter().chain(brokers).collect()
}
