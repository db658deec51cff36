//! Which jobs a command is about: ids as given, or everything that fits a filter, a page at a time.

use promptq_common::broker::{Broker, MAX_BATCH};
use promptq_common::job::JobId;
use promptq_common::ledger::{JobFilter, JobView};
use promptq_common::time::Timestamp;

use crate::command::queues::is_doctors;
use crate::filter::Filter;
use crate::problem::{Problem, Result};

/// Everything that fits.
#[derive(Clone, Debug, Default)]
pub struct Pick {
    /// What the ledger narrows to.
    pub narrowed: JobFilter,
    /// What it must fit besides.
    pub filter: Option<Filter>,
    /// Whether dropped dead jobs are left out.
    pub redrivable: bool,
    /// Whether jobs that `doctor` tried the broker with are left out.
    pub without_doctors: bool,
}

/// How many there are, and a few of them.
#[derive(Clone, Debug, Default)]
pub struct Counted {
    /// All of them.
    pub count: u64,
    /// The first three, as text.
    pub samples: Vec<String>,
}

impl Pick {
    /// What a `--where` means.
    pub fn by(filter: Filter) -> Self {
        Self { narrowed: filter.narrow(), filter: Some(filter), ..Self::default() }
    }

    /// At most `most` jobs from `cursor` on, and where to go on. Looks at pages until one holds a fitting job.
    pub async fn page(
        &self,
        broker: &Broker,
        cursor: Option<String>,
        most: usize,
    ) -> Result<(Vec<JobView>, Option<String>)> {
        let now = Timestamp::now();
        let fits = |job: &JobView| {
            self.filter.as_ref().is_none_or(|filter| filter.fits(job, now))
                && !(self.redrivable && job.dropped)
                && !(self.without_doctors && is_doctors(&job.queue))
        };
        let mut cursor = cursor;
        loop {
            let page = broker.ledger().list(&self.narrowed, cursor.as_deref(), most.clamp(1, MAX_BATCH)).await?;
            let items: Vec<JobView> = page.items.into_iter().filter(fits).collect();
            if !items.is_empty() || page.next.is_none() {
                return Ok((items, page.next));
            }
            cursor = page.next;
        }
    }

    /// Counts them all.
    pub async fn count(&self, broker: &Broker) -> Result<Counted> {
        let mut counted = Counted::default();
        let mut cursor = None;
        loop {
            let (jobs, next) = self.page(broker, cursor, MAX_BATCH).await?;
            counted.count += jobs.len() as u64;
            let missing = 3_usize.saturating_sub(counted.samples.len());
            counted.samples.extend(jobs.iter().take(missing).map(sample));
            if next.is_none() {
                return Ok(counted);
            }
            cursor = next;
        }
    }
}

fn sample(job: &JobView) -> String {
    let name = job.custom_id.as_deref().map(|name| format!(" {name}")).unwrap_or_default();
    format!("{}{name} {} in {}", job.id, job.state, job.queue)
}

/// Ids as given on the command line, each named at most once.
pub fn ids(given: &[String]) -> Result<Vec<JobId>> {
    let mut ids: Vec<JobId> = Vec::with_capacity(given.len());
    for text in given {
        let id = text.parse::<JobId>().map_err(|_| {
            Problem::usage(format!("{text:?} is not a job's id"))
                .hint("ids look like 019abcde-0123-7abc-8def-0123456789ab; batches are named by --batch NAME")
        })?;
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    Ok(ids)
}
