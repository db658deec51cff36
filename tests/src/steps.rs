//! The moves cases are made of: take a job, end it, look at it, wait for something with a deadline.

use std::time::Duration;

use promptq_common::broker::{
    Broker, Claim, Consumer, Delivery, Enqueued, Retention, Settled, Swept, Terms, Want, WorkerId,
};
use promptq_common::job::{BatchName, Job, JobId};
use promptq_common::ledger::{BatchView, Counts, Cursor, JobFilter, JobView, Scope};
use promptq_common::record::{End, Record, State};
use tokio::time::{Instant, timeout};

use crate::fixture;

/// How long anything may take before a test gives up on it.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// A worker that does only what the test says.
#[derive(Debug)]
pub struct Worker {
    /// Who it is.
    pub id: WorkerId,
    /// Its subscription.
    pub consumer: Consumer,
}

impl Worker {
    /// Subscribes.
    pub async fn on(broker: &Broker, terms: Terms) -> Self {
        let id = terms.worker.clone();
        Self { id, consumer: broker.consume(terms).await.expect("subscribes") }
    }

    /// Leases exactly `count` jobs from any lane, within [`PATIENCE`].
    pub async fn take(&mut self, count: usize) -> Vec<Delivery> {
        let mut taken = Vec::new();
        let start = Instant::now();
        while taken.len() < count {
            assert!(start.elapsed() < PATIENCE, "leased {} of {count} jobs", taken.len());
            taken.extend(self.consumer.next(&want(count - taken.len())).await.expect("leases").deliveries);
        }
        assert_eq!(taken.len(), count, "more was leased than asked for");
        taken
    }

    /// Leases one job, within [`PATIENCE`].
    pub async fn one(&mut self) -> Delivery {
        self.take(1).await.pop().expect("took one")
    }

    /// Leases one job as [`Worker::one`] does, but asks anew every few milliseconds: whatever is given out too early is
    /// met by one of the questions, not only by the one that waits for the right moment.
    pub async fn one_asking_often(&mut self) -> Delivery {
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < PATIENCE, "nothing was leased");
            let asked = timeout(Duration::from_millis(7), self.consumer.next(&want(1))).await;
            let found = asked.ok().and_then(|found| found.expect("leases").deliveries.pop());
            if let Some(delivery) = found {
                return delivery;
            }
        }
    }

    /// Waits as long as one `next` waits and finds nothing to lease.
    pub async fn finds_nothing(&mut self) {
        let found = self.consumer.next(&want(100)).await.expect("leases").deliveries;
        let ids: Vec<_> = found.iter().map(|delivery| delivery.head.id).collect();
        assert!(ids.is_empty(), "nothing should be ready, but {ids:?} was leased");
    }

    /// Leases one job and ends it so.
    pub async fn ends_one(&mut self, how: End) -> JobId {
        let delivery = self.one().await;
        let id = delivery.head.id;
        assert_eq!(end(delivery, how).await, Settled::Applied);
        id
    }

    /// Leases and answers everything there is, cancelled jobs aside; says what was answered.
    pub async fn drain(&mut self) -> Vec<JobId> {
        let mut answered = Vec::new();
        loop {
            let found = self.consumer.next(&want(100)).await.expect("leases").deliveries;
            if found.is_empty() {
                return answered;
            }
            for delivery in found {
                let id = delivery.head.id;
                if delivery.lease.claim().await.expect("claims") == Claim::Cancelled {
                    end(delivery, End::Cancelled).await;
                } else {
                    answered.push(id);
                    end(delivery, End::Succeeded).await;
                }
            }
        }
    }
}

/// So many jobs, from any lane.
pub fn want(total: usize) -> Want {
    let total = u32::try_from(total).expect("few");
    Want { total, caps: Vec::new(), rest: total }
}

/// Ends a delivery so.
pub async fn end(delivery: Delivery, how: End) -> Settled {
    let verdict = fixture::end(&delivery.head, delivery.lease.id(), how);
    delivery.lease.settle(verdict).await.expect("settles")
}

/// Puts jobs in that must be new.
pub async fn put(broker: &Broker, jobs: &[Job]) {
    for jobs in jobs.chunks(promptq_common::broker::MAX_BATCH) {
        let answers = broker.enqueue(jobs).await.expect("enqueues");
        assert!(answers.iter().all(|answer| *answer == Enqueued::New) && answers.len() == jobs.len(), "{answers:?}");
    }
}

/// Puts one job in and gives its id.
pub async fn put_one(broker: &Broker, job: Job) -> JobId {
    put(broker, std::slice::from_ref(&job)).await;
    job.id
}

/// A job as it is now; it must be known.
pub async fn see(broker: &Broker, id: JobId) -> JobView {
    broker.ledger().fetch(&[id]).await.expect("fetches").pop().flatten().expect("the job is known")
}

/// A job's state now.
pub async fn state(broker: &Broker, id: JobId) -> State {
    see(broker, id).await.state
}

/// A job's record; it must have ended.
pub async fn record(broker: &Broker, id: JobId) -> Record {
    *see(broker, id).await.record.expect("the job has ended")
}

/// Every job that fits, newest first, page by page.
pub async fn list(broker: &Broker, filter: &JobFilter, page: usize) -> Vec<JobView> {
    let (mut all, mut cursor) = (Vec::new(), None);
    loop {
        let next = broker.ledger().list(filter, cursor.as_deref(), page).await.expect("lists");
        assert!(next.items.len() <= page, "a page may not be longer than asked for");
        all.extend(next.items);
        assert!(next.next.is_none() || next.next != cursor, "a page may not end where it began");
        cursor = next.next;
        if cursor.is_none() {
            return all;
        }
    }
}

/// Every record of a batch, in order.
pub async fn results(broker: &Broker, batch: &BatchName) -> Vec<(Cursor, Record)> {
    let scope = Scope::Batch(batch.clone());
    broker.ledger().results(&scope, Cursor(0), 1_000).await.expect("reads results").records
}

/// Sweeps until there is nothing more to do.
pub async fn sweep(broker: &Broker, retention: &Retention) -> Swept {
    let mut all = Swept::default();
    loop {
        let swept = broker.sweep(retention).await.expect("sweeps");
        all.expired += swept.expired;
        all.forgotten += swept.forgotten;
        all.outputs.extend(swept.outputs);
        if !swept.more {
            return all;
        }
    }
}

/// A batch as it is now; it must be known.
pub async fn view(broker: &Broker, batch: &BatchName) -> BatchView {
    broker.ledger().batch(batch).await.expect("reads a batch").expect("the batch is known")
}

/// Checks a batch's counts, usage and cost against its jobs, one by one.
pub async fn recount(broker: &Broker, batch: &BatchName) -> Counts {
    sweep(broker, &Retention::standard()).await;
    let jobs = list(broker, &JobFilter { batch: Some(batch.clone()), ..JobFilter::default() }, 100).await;
    let of = |state| jobs.iter().filter(|job| job.state == state).count() as u64;
    let found = view(broker, batch).await;
    let counts = found.counts;
    let waiting = of(State::Queued) + of(State::Scheduled) + of(State::Retrying);
    assert_eq!(counts.total, jobs.len() as u64, "total");
    assert_eq!(counts.queued + counts.delayed, waiting, "waiting: {counts:?}");
    assert_eq!(counts.running, of(State::Running), "running");
    assert_eq!(counts.succeeded, of(State::Succeeded), "succeeded");
    assert_eq!(counts.dead, of(State::Dead), "dead");
    assert_eq!(counts.cancelled, of(State::Cancelled), "cancelled");
    assert_eq!(counts.expired, of(State::Expired), "expired");
    let (mut usage, mut cost) = (promptq_common::outcome::Usage::default(), None);
    for record in jobs.iter().filter_map(|job| job.record.as_ref()) {
        usage += record.history.usage;
        if let Some(known) = record.history.cost {
            *cost.get_or_insert_default() += known;
        }
    }
    // What earlier epochs consumed stays in the sums and is in no record a list shows.
    if jobs.iter().all(|job| job.epoch == 0) {
        assert_eq!((found.usage, found.cost), (usage, cost), "usage and cost");
    }
    counts
}

/// Polls until `check` gives something, within [`PATIENCE`].
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut check: impl FnMut() -> F) -> T {
    let polling = async {
        loop {
            if let Some(found) = check().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, polling).await.unwrap_or_else(|_| panic!("waited in vain until {what}"))
}
