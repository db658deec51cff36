//! The filter language of `--where`: what it means for a job. Reading the text is `parse.rs`.
//!
//! `state=dead and model=gpt* and tag.run=42 and age>1h and state in (queued, running)`

mod parse;

use std::time::Duration;

use promptq_common::job::{BatchName, Queue};
use promptq_common::ledger::{JobFilter, JobView};
use promptq_common::record::State;
use promptq_common::time::Timestamp;

pub use parse::parse;

/// Which jobs are meant.
#[derive(Clone, Debug, PartialEq)]
pub enum Filter {
    /// Both.
    And(Box<Filter>, Box<Filter>),
    /// Either.
    Or(Box<Filter>, Box<Filter>),
    /// Not.
    Not(Box<Filter>),
    /// A field's text fits one of these patterns, in which `*` stands for any text.
    Text(Field, Vec<String>),
    /// The state is one of these.
    State(Vec<State>),
    /// A number compares so.
    Number(Count, Compare, u64),
    /// The time since it was submitted compares so.
    Age(Compare, Duration),
}

/// Fields that hold text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// The job's id.
    Id,
    /// Its queue.
    Queue,
    /// Its model as submitted.
    Model,
    /// Its batch.
    Batch,
    /// The submitter's name for it.
    CustomId,
    /// The submitter's label for budgets.
    Tenant,
    /// Who runs it.
    Worker,
    /// The code of its cause.
    Code,
    /// The class of its last failure, or of an answer that is not whole.
    Class,
    /// A tag.
    Tag(String),
}

/// Fields that hold whole numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// 0 to 9.
    Priority,
    /// Attempts spent.
    Attempts,
    /// Leases that ended without a verdict.
    Deaths,
    /// Redrives.
    Epoch,
    /// 1-based row of its batch's input.
    Row,
}

/// How to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    /// `=`
    Equal,
    /// `<`
    Less,
    /// `<=`
    AtMost,
    /// `>`
    More,
    /// `>=`
    AtLeast,
}

impl Compare {
    fn holds<T: PartialOrd>(self, a: &T, b: &T) -> bool {
        match self {
            Self::Equal => a == b,
            Self::Less => a < b,
            Self::AtMost => a <= b,
            Self::More => a > b,
            Self::AtLeast => a >= b,
        }
    }
}

impl Filter {
    /// Whether a job is meant, as of `now`.
    pub fn fits(&self, job: &JobView, now: Timestamp) -> bool {
        match self {
            Self::And(a, b) => a.fits(job, now) && b.fits(job, now),
            Self::Or(a, b) => a.fits(job, now) || b.fits(job, now),
            Self::Not(inner) => !inner.fits(job, now),
            Self::Text(field, patterns) => field
                .of(job)
                .is_some_and(|text| patterns.iter().any(|pattern| fits_pattern(pattern.as_bytes(), text.as_bytes()))),
            Self::State(states) => states.contains(&job.state),
            Self::Number(count, compare, number) => count.of(job).is_some_and(|own| compare.holds(&own, number)),
            Self::Age(compare, length) => compare.holds(&now.since(job.created_at), length),
        }
    }

    /// What the ledger can narrow by itself: every job that fits also fits this.
    pub fn narrow(&self) -> JobFilter {
        let mut narrowed = JobFilter::default();
        self.narrow_into(&mut narrowed);
        narrowed
    }

    fn narrow_into(&self, narrowed: &mut JobFilter) {
        match self {
            Self::And(a, b) => {
                a.narrow_into(narrowed);
                b.narrow_into(narrowed);
            }
            Self::State(states) if narrowed.states.is_empty() => narrowed.states.clone_from(states),
            Self::Text(field, patterns) => {
                let [only] = patterns.as_slice() else { return };
                if only.contains('*') {
                    return;
                }
                match field {
                    Field::Queue => narrowed.queue = Queue::new(only).ok(),
                    Field::Batch => narrowed.batch = BatchName::new(only).ok(),
                    Field::Code => narrowed.code = Some(only.clone()),
                    Field::Id
                    | Field::Model
                    | Field::CustomId
                    | Field::Tenant
                    | Field::Worker
                    | Field::Class
                    | Field::Tag(_) => {}
                }
            }
            Self::Or(..) | Self::Not(_) | Self::State(_) | Self::Number(..) | Self::Age(..) => {}
        }
    }
}

impl Field {
    fn of(&self, job: &JobView) -> Option<String> {
        let cause = job.record.as_ref().and_then(|record| record.cause.as_ref());
        match self {
            Self::Id => Some(job.id.to_string()),
            Self::Queue => Some(job.queue.to_string()),
            Self::Model => job.model.clone(),
            Self::Batch => job.batch.as_ref().map(ToString::to_string),
            Self::CustomId => job.custom_id.clone(),
            Self::Tenant => job.tenant.clone(),
            Self::Worker => job.worker.clone().or_else(|| job.record.as_ref().and_then(|record| record.worker.clone())),
            Self::Code => cause.map(|cause| cause.code.clone()),
            Self::Class => job.record.as_ref().and_then(|record| record.class_name()).map(str::to_owned),
            Self::Tag(name) => job.tags.get(name).cloned(),
        }
    }
}

impl Count {
    fn of(self, job: &JobView) -> Option<u64> {
        match self {
            Self::Priority => Some(job.priority.into()),
            Self::Attempts => Some(job.attempts.into()),
            Self::Deaths => Some(job.deaths.into()),
            Self::Epoch => Some(job.epoch.into()),
            Self::Row => job.row,
        }
    }
}

/// Whether `text` fits `pattern`. Linear but for the last star, which may be tried at each place.
fn fits_pattern(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            p += 1;
            t += 1;
        } else if let Some((at, from)) = star {
            star = Some((at, from + 1));
            p = at + 1;
            t = from + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::view::tests::waiting;

    fn job() -> JobView {
        JobView {
            model: Some("gpt-large".into()),
            batch: Some(BatchName::new("nov reviews").unwrap()),
            row: Some(3),
            custom_id: Some("r-3".into()),
            tags: BTreeMap::from([("run".into(), "42".into())]),
            state: State::Retrying,
            attempts: 2,
            deadline: Timestamp::from_millis(9_000_000),
            ..waiting()
        }
    }

    fn fits(text: &str) -> bool {
        parse(text).unwrap().fits(&job(), Timestamp::from_millis(3_600_001))
    }

    #[test]
    fn a_job_fits_what_is_said_of_it() {
        for text in [
            "state=retrying and model=gpt* and tag.run=42 and age>1h",
            "state in (queued, retrying)",
            "not state=dead",
            "state!=dead",
            "batch='nov reviews'",
            "model=*large and custom_id=r-*",
            "attempts>=2 and row<4 and priority=5",
            "state=dead or (queue=default and epoch=0)",
            "tenant!=acme",
            "STATE=retrying AND age<=2h",
        ] {
            assert!(fits(text), "{text}");
        }
        for text in ["state=dead", "model=gpt", "tag.run=4", "tag.other=42", "age<1h", "tenant=*", "model in (a, b)"] {
            assert!(!fits(text), "{text}");
        }
    }

    #[test]
    fn the_ledger_narrows_by_what_every_fitting_job_has() {
        let narrowed =
            parse("state in (dead, expired) and queue=a and batch=b and code=c and age>1h").unwrap().narrow();
        assert_eq!(narrowed.states, [State::Dead, State::Expired]);
        assert_eq!((narrowed.queue.unwrap().as_str(), narrowed.batch.unwrap().as_str()), ("a", "b"));
        assert_eq!(narrowed.code.as_deref(), Some("c"));
        for text in ["state=dead or queue=a", "not state=dead", "queue=a*", "queue in (a, b)"] {
            let narrowed = parse(text).unwrap().narrow();
            assert!(narrowed.states.is_empty() && narrowed.queue.is_none(), "{text}");
        }
    }

    #[test]
    fn stars_stand_for_any_text() {
        for (pattern, text, fit) in
            [("*", "", true), ("a*b*c", "a-b-b-c", true), ("a*b", "ac", false), ("", "", true), ("**a", "ba", true)]
        {
            assert_eq!(fits_pattern(pattern.as_bytes(), text.as_bytes()), fit, "{pattern} {text}");
        }
    }
}
