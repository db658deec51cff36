//! A worker's side of the facade: the subscription, what it delivers, and the lease on each.

use std::time::Duration;

use super::{Beat, Claim, Head, Hold, LeaseId, RawDelivery, Settled, Source, Trouble, Verdict, Want};
use crate::codec;
use crate::error::Result;
use crate::job::{Job, Lane};

/// A worker's subscription.
#[derive(Debug)]
pub struct Consumer {
    source: Box<dyn Source>,
    trouble: Trouble,
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
    pub(super) fn new(source: Box<dyn Source>, trouble: Trouble) -> Self {
        Self { source, trouble }
    }

    /// Waits for jobs and leases them; see [`Source::next`]. Cancel-safe.
    pub async fn next(&mut self, want: &Want) -> Result<Deliveries> {
        let leased = self.source.next(want).await?;
        let deliveries = leased.deliveries.into_iter().map(|raw| Delivery::new(raw, &self.trouble)).collect();
        Ok(Deliveries { deliveries, lanes_seen: leased.lanes_seen })
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
    fn new(raw: RawDelivery, trouble: &Trouble) -> Self {
        let lease = Lease { id: raw.lease, hold: raw.hold, trouble: trouble.clone() };
        Self { head: raw.head, payload: raw.payload, lease }
    }

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
}

impl Lease {
    /// The fencing token.
    pub fn id(&self) -> LeaseId {
        self.id
    }

    /// See [`Hold::claim`].
    pub async fn claim(&self) -> Result<Claim> {
        self.hold.claim().await
    }

    /// See [`Hold::beat`].
    pub async fn beat(&self) -> Result<Beat> {
        self.hold.beat().await
    }

    /// Ends the lease and returns once what the verdict says is durable, retrying transient errors 50 ms to 2 s apart
    /// for as long as it is polled. `Err` only when it can never be stored. Dropped before it returns: unknown; the
    /// lease runs out by itself.
    #[tracing::instrument(skip_all, level = "debug", fields(lease = %self.id))]
    pub async fn settle(self, verdict: Verdict) -> Result<Settled> {
        let mut pause = Duration::from_millis(50);
        loop {
            match self.hold.settle(&verdict).await {
                Ok(settled) => {
                    self.trouble.note(false);
                    return Ok(settled);
                }
                Err(error) if error.is_transient() => {
                    self.trouble.note(true);
                    tracing::warn!(%error, "settling failed; trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(2));
                }
                Err(error) => return Err(error),
            }
        }
    }
}
