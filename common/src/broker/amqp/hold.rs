//! The right to run one job whose message is in hand: heartbeats go to the ledger, ends to the ledger first and to
//! RabbitMQ afterwards, retries the other way round once the ledger has said that they are not too late.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::OwnedSemaphorePermit;

use super::crier::{self, Ending};
use super::desk::Desk;
use super::held::Held;
use super::post::Notice;
use super::receipt::Receipt;
use crate::broker::backend::{Beat, Claim, Head, Hold, Settled, Verdict};
use crate::error::{Kind, Result};
use crate::outcome::{Attempt, Failure, FailureClass};
use crate::record::{Cause, End, Record};

/// Protocol, section 2: a released job waits at most so long, since nothing can wake it.
const LONGEST_RELEASE: Duration = Duration::from_secs(600);
/// How long a worker that leaves waits for a result's announcement; whoever gets the message next would do it.
const LEAVING: Duration = Duration::from_secs(2);

/// A claimed job.
#[derive(Debug)]
pub(super) struct AmqpHold {
    pub(super) desk: Arc<Desk>,
    pub(super) held: Arc<Held>,
    /// What the ledger said when the message was opened, just before it was handed out.
    pub(super) claim: Claim,
    /// What became of a retry's copy, once that is known: repeating the verdict sends no second one.
    pub(super) copied: OnceLock<Copied>,
}

/// What became of the copy of a retry.
#[derive(Debug)]
pub(super) enum Copied {
    /// It is durable.
    Sent,
    /// The server takes nothing so large, and says so here.
    TooLarge(String),
}

#[async_trait]
impl Hold for AmqpHold {
    async fn claim(&self) -> Result<Claim> {
        Ok(self.claim.clone())
    }

    async fn beat(&self) -> Result<Beat> {
        let length = self.desk.lease;
        let said = self.desk.post.claims.beat(self.head(), self.held.lease, length).await?;
        if said == Beat::Kept {
            self.held.beaten(length);
        }
        Ok(said)
    }

    async fn settle(&self, verdict: &Verdict) -> Result<Settled> {
        let _settling = self.held.settling(self.desk.lease);
        match verdict {
            Verdict::End(record) => self.end(verdict, record, None).await,
            Verdict::Retry { after, attempt } => self.retry(verdict, *after, attempt).await,
            Verdict::Release { after, .. } => self.release(verdict, (*after).min(LONGEST_RELEASE)).await,
        }
    }
}

impl AmqpHold {
    fn head(&self) -> &Head {
        &self.held.parcel.envelope.head
    }

    /// Ends a job that was dead as it came, with the room there is for that.
    pub(super) async fn bury(&self, record: &Record, room: Option<OwnedSemaphorePermit>) -> Result<Settled> {
        let _settling = self.held.settling(self.desk.lease);
        self.end(&Verdict::End(Box::new(record.clone())), record, room).await
    }

    /// Ledger, announcement, acknowledgement, reply; the caller waits for the ledger alone, and for room.
    async fn end(&self, verdict: &Verdict, record: &Record, room: Option<OwnedSemaphorePermit>) -> Result<Settled> {
        crate::crash_point!("amqp.end.before_ledger");
        let payload = (record.end != End::Succeeded).then_some(self.held.parcel.envelope.payload.as_slice());
        let settled = self.desk.post.claims.settle(self.head(), self.held.lease, verdict, payload).await?;
        crate::crash_point!("amqp.end.after_ledger");
        // The record is durable whatever becomes of the rest; a worker whose results nobody takes goes no further.
        let room = if room.is_some() { room } else { self.desk.room().await };
        let receipt = self.desk.let_go(&self.held);
        if settled == Settled::Stale {
            give_back(receipt);
            return Ok(settled);
        }
        // Of a late success another copy is about.
        let is_late = settled != Settled::Applied;
        let notice = if is_late { Notice::new(record) } else { Notice::of_run(record, &self.held, receipt.as_ref()) };
        let reply = self.held.parcel.reply.clone();
        let ending = Ending { notice, reply, receipt, _room: room };
        if !self.desk.leaving.load(Ordering::Relaxed) {
            crier::cry(&self.desk, ending);
            return Ok(settled);
        }
        let desk = Arc::clone(&self.desk);
        let mut rest = Box::pin(async move { crier::finish(&desk, ending).await });
        if tokio::time::timeout(LEAVING, &mut rest).await.is_err() {
            self.desk.spawn(rest);
        }
        Ok(settled)
    }

    /// The copy first: were the ledger first and this process gone, the old message would be stale and the job lost.
    async fn retry(&self, verdict: &Verdict, after: Duration, attempt: &Attempt) -> Result<Settled> {
        if self.copied.get().is_none() {
            // Too late, the job has a claim or an end that this attempt is no part of: its message is for that alone.
            let said = self.desk.post.claims.beat(self.head(), self.held.lease, self.desk.lease).await?;
            if matches!(said, Beat::Ended | Beat::Lost) {
                give_back(self.desk.let_go(&self.held));
                return Ok(Settled::Stale);
            }
            self.copy(after, attempt).await?;
        }
        if let Some(Copied::TooLarge(why)) = self.copied.get() {
            return self.give_up(attempt, why).await;
        }
        crate::crash_point!("amqp.retry.after_publish");
        let settled = self.desk.post.claims.settle(self.head(), self.held.lease, verdict, None).await?;
        crate::crash_point!("amqp.retry.after_ledger");
        if let Some(receipt) = self.desk.let_go(&self.held) {
            receipt.ack();
        }
        Ok(settled)
    }

    /// The ledger first: no copy can become stale by that.
    async fn release(&self, verdict: &Verdict, after: Duration) -> Result<Settled> {
        let settled = self.desk.post.claims.settle(self.head(), self.held.lease, verdict, None).await?;
        crate::crash_point!("amqp.release.after_ledger");
        let receipt = self.desk.let_go(&self.held);
        if after.is_zero() || settled != Settled::Applied {
            give_back(receipt);
        } else if let Some(receipt) = receipt {
            self.desk.post.park(self.held.parcel.clone(), receipt, after).await;
            crate::crash_point!("amqp.release.after_publish");
        }
        Ok(settled)
    }

    /// Sends the message of the next attempt on its way, if the server takes it.
    async fn copy(&self, after: Duration, attempt: &Attempt) -> Result<()> {
        let post = &self.desk.post;
        let mut parcel = self.held.parcel.clone();
        let head = &mut parcel.envelope.head;
        head.attempts = head.attempts.saturating_add(1);
        head.history.push(attempt.clone());
        head.not_before = (!after.is_zero()).then(|| post.clock.now() + after);
        let copied = match post.send(&parcel, after).await {
            Ok(()) => Copied::Sent,
            Err(error) if error.kind() == Kind::TooLarge => Copied::TooLarge(error.to_string()),
            Err(error) => return Err(error),
        };
        self.copied.get_or_init(|| copied);
        Ok(())
    }

    /// Ends a job whose next attempt cannot travel: trying again would not change that. The record has its payload, and
    /// a redrive begins with a head as small as the first.
    async fn give_up(&self, attempt: &Attempt, why: &str) -> Result<Settled> {
        let code = attempt.code.as_deref().unwrap_or("no reason");
        let detail = format!("attempt {} failed ({code}), and the job is too large for another: {why}", attempt.n);
        let Failure { class, code, detail, .. } = Failure::new(FailureClass::Fatal, "job_too_large", &detail);
        let cause = Cause { class: Some(class), code, detail, status_code: attempt.status_code };
        let mut record = Record::unrun(self.head(), End::Dead, Some(cause), self.desk.post.clock.now());
        record.attempts = record.attempts.saturating_add(1);
        record.history.push(attempt.clone());
        record.lease = self.held.lease;
        record.worker = Some(attempt.worker.clone());
        record.started_at = Some(attempt.started_at);
        self.end(&Verdict::End(Box::new(record.clone())), &record, None).await
    }
}

fn give_back(receipt: Option<Receipt>) {
    if let Some(receipt) = receipt {
        receipt.give_back();
    }
}
