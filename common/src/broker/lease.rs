//! A worker's side of the facade: the subscription, what it delivers, and the lease on each.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::Instrument as _;

use super::meter::{Leases, Served};
use super::{Beat, Claim, Head, Hold, LeaseId, RawDelivery, Settled, Source, Trouble, Verdict, Want};
use crate::codec;
use crate::error::{Error, Kind, Result};
use crate::job::{Job, Lane};
use crate::outcome::FailureClass;
use crate::record::{Cause, End, Record};

/// A worker's subscription.
#[derive(Debug)]
pub struct Consumer {
    source: Box<dyn Source>,
    trouble: Trouble,
    served: Option<Served>,
}

/// What one call of [`Consumer::next`] gave.
#[derive(Debug)]
pub struct Deliveries {
    /// Leased jobs, first to be started first.
    pub deliveries: Vec<Delivery>,
    /// Lanes that hold ready jobs now, closed ones included.
    pub lanes_seen: Vec<Lane>,
}

impl Consumer {
    pub(super) fn new(source: Box<dyn Source>, trouble: Trouble, served: Option<Served>) -> Self {
        Self { source, trouble, served }
    }

    /// Waits for jobs and leases them; see [`Source::next`]. Cancel-safe.
    pub async fn next(&mut self, want: &Want) -> Result<Deliveries> {
        let leased = self.source.next(want).await?;
        let deliveries = leased.deliveries.into_iter().map(|raw| self.delivery(raw)).collect();
        Ok(Deliveries { deliveries, lanes_seen: leased.lanes_seen })
    }

    fn delivery(&self, raw: RawDelivery) -> Delivery {
        let meters = self.served.as_ref().and_then(|served| served.get(&raw.head.lane.queue)).cloned();
        let lease = Lease { id: raw.lease, hold: raw.hold, trouble: self.trouble.clone(), meters };
        Delivery { head: raw.head, payload: raw.payload, lease }
    }

    /// Ends the subscription; what was leased and never handed out is released.
    pub async fn close(self) -> Result<()> {
        self.source.close().await
    }
}

/// One leased job: dropping it lets the lease run out and spends one of the job's deaths.
#[derive(Debug)]
#[must_use = "a delivery that is dropped counts as a death of its job"]
pub struct Delivery {
    /// What the backend knows of the job.
    pub head: Head,
    /// The encoded job.
    pub payload: Vec<u8>,
    /// The right to run and settle it.
    pub lease: Lease,
}

impl Delivery {
    /// Decodes the job. An error is final: nobody can read it, it is for people.
    pub fn open(&self) -> Result<Job> {
        codec::decode_job(&self.payload)
    }
}

/// The right to run one job and to say how that ended, once.
#[derive(Debug)]
#[must_use = "a lease that is dropped counts as a death of its job"]
pub struct Lease {
    id: LeaseId,
    hold: Box<dyn Hold>,
    trouble: Trouble,
    meters: Option<Arc<Leases>>,
}

impl Lease {
    /// The fencing token.
    pub fn id(&self) -> LeaseId {
        self.id
    }

    /// See [`Hold::claim`].
    pub async fn claim(&self) -> Result<Claim> {
        let claim = self.hold.claim().await?;
        if let Some(meters) = &self.meters {
            meters.claimed(&claim);
        }
        Ok(claim)
    }

    /// See [`Hold::beat`].
    pub async fn beat(&self) -> Result<Beat> {
        self.hold.beat().await
    }

    /// Ends the lease and returns once what the verdict says is durable, trying again 50 ms to 2 s apart for as long as
    /// it is polled: an answer was paid for, so even an error that a person has to mend is waited out. A record that is
    /// too large to be kept ends its job as dead, `output_too_large`. `Err` only when this process can never settle
    /// anything again. Dropped before it returns: unknown; the lease runs out by itself.
    // As a block: `instrument` above a function has it twice in every job.
    pub fn settle(self, mut verdict: Verdict) -> impl Future<Output = Result<Settled>> + Send {
        let span = tracing::debug_span!("settle", lease = %self.id);
        let settling = async move {
            let mut pause = Duration::from_millis(50);
            let begun = self.meters.is_some().then(Instant::now);
            loop {
                let error = match self.hold.settle(&verdict).await {
                    Ok(settled) => return Ok(self.worked(settled, &verdict, begun)),
                    Err(error) => error,
                };
                if let Some(meters) = &self.meters {
                    meters.not_written();
                }
                match (error.kind(), &mut verdict) {
                    (Kind::Closed, _) => return Err(error),
                    (Kind::TooLarge, Verdict::End(record)) if record.answer.is_some() => give_up_answer(record, &error),
                    _ => Box::pin(self.wait_after(error, &mut pause)).await,
                }
            }
        };
        settling.instrument(span)
    }

    fn worked(&self, settled: Settled, verdict: &Verdict, begun: Option<Instant>) -> Settled {
        if let Some((meters, begun)) = self.meters.as_ref().zip(begun) {
            meters.settled(verdict, settled, begun);
        }
        if self.trouble.note(false) {
            tracing::info!("settling works again");
        }
        settled
    }

    async fn wait_after(&self, error: Error, pause: &mut Duration) {
        // Once for all jobs: a worker of many slots would say the same for each, several times a second.
        if self.trouble.note(true) {
            tracing::warn!(%error, "settling failed; trying again until it works");
        } else {
            tracing::debug!(%error, "settling failed; trying again");
        }
        tokio::time::sleep(*pause).await;
        *pause = (*pause * 2).min(Duration::from_secs(2));
    }
}

/// The job was run and paid for, and its answer can be kept nowhere: running it again would not change that.
fn give_up_answer(record: &mut Record, error: &Error) {
    let status_code = record.answer.take().map(|answer| answer.status_code);
    record.end = End::Dead;
    record.cause = Some(Cause {
        class: Some(FailureClass::Fatal),
        code: "output_too_large".to_owned(),
        detail: error.to_string(),
        status_code,
    });
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use async_trait::async_trait;

    use super::*;
    use crate::job::{Job, Queue};
    use crate::outcome::Body;
    use crate::record::{Answer, Output};
    use crate::time::Timestamp;
    use crate::work::Work;

    /// Refuses once for each kind of error, then keeps what it was told.
    #[derive(Debug)]
    struct Picky(Mutex<Vec<Kind>>, Arc<Mutex<Option<Verdict>>>);

    #[async_trait]
    impl Hold for Picky {
        async fn claim(&self) -> Result<Claim> {
            Ok(Claim::Stale)
        }

        async fn beat(&self) -> Result<Beat> {
            Ok(Beat::Lost)
        }

        async fn settle(&self, verdict: &Verdict) -> Result<Settled> {
            if let Some(kind) = self.0.lock().unwrap().pop() {
                return Err(Error::new(kind, "settle", "not now"));
            }
            *self.1.lock().unwrap() = Some(verdict.clone());
            Ok(Settled::Applied)
        }
    }

    async fn settled_after(refusals: &[Kind]) -> (Result<Settled>, Option<Record>) {
        let job = Job::new(Queue::standard(), Work::prompt(None, "x"));
        let head = crate::broker::envelope(&job).unwrap().head;
        let mut record = Record::unrun(&head, End::Succeeded, None, Timestamp::now());
        record.answer = Some(Answer::plain(Output::Inline(Body::Text("paid".into()))));
        let kept = Arc::new(Mutex::new(None));
        let hold = Box::new(Picky(Mutex::new(refusals.to_vec()), Arc::clone(&kept)));
        let lease = Lease { id: LeaseId::random(), hold, trouble: Trouble::default(), meters: None };
        let settled = lease.settle(Verdict::End(Box::new(record))).await;
        let record = kept.lock().unwrap().take().and_then(|verdict| match verdict {
            Verdict::End(record) => Some(*record),
            Verdict::Retry { .. } | Verdict::Release { .. } => None,
        });
        (settled, record)
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_outlasts_every_error_a_person_can_mend() {
        let (settled, record) = settled_after(&[Kind::Config, Kind::Corrupt, Kind::Unavailable, Kind::TimedOut]).await;
        assert_eq!(settled.unwrap(), Settled::Applied);
        assert_eq!(record.unwrap().end, End::Succeeded);
        assert!(settled_after(&[Kind::Closed]).await.0.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_no_record_can_hold_ends_its_job_once() {
        let record = settled_after(&[Kind::TooLarge]).await.1.unwrap();
        assert_eq!((record.end, record.answer), (End::Dead, None));
        assert_eq!(record.cause.unwrap().code, "output_too_large");
    }
}
