//! The way out: jobs to their lanes and delay queues, results to those who listen, with the ledger's clock.
//! One per connection, shared by its subscriptions and commands.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;

use super::folded::KnownLanes;
use super::held::Held;
use super::link::Link;
use super::publisher::{Message, Sent};
use super::receipt::Receipt;
use super::wire::{self, Parcel, Reply};
use super::{Settings, level, topology};
use crate::broker::backend::{Envelope, Head};
use crate::error::{Error, Kind, Result};
use crate::job::JobId;
use crate::ledger::{Announced, Claims, Ledger, Opened};
use crate::record::{End, Record};
use crate::result_line::announcement;
use crate::telemetry::trace::Context;
use crate::time::Timestamp;

/// A connection and the ledger beside it.
#[derive(Debug)]
pub(super) struct Post {
    pub(super) link: Link,
    pub(super) claims: Arc<dyn Claims>,
    pub(super) settings: Settings,
    pub(super) clock: Clock,
    pub(super) lanes: Arc<KnownLanes>,
    /// What outlives the subscription it belongs to.
    pub(super) leaving: Mutex<JoinSet<()>>,
}

/// The ledger's clock, as far as this process knows it: a worker's own may be wrong.
#[derive(Debug, Default)]
pub(super) struct Clock {
    /// Milliseconds by which it is ahead of ours.
    ahead: AtomicI64,
}

impl Clock {
    pub(super) fn now(&self) -> Timestamp {
        Timestamp::from_millis(Timestamp::now().as_millis() + self.ahead.load(Ordering::Relaxed))
    }

    /// Compares with the ledger's.
    pub(super) async fn set(&self, claims: &dyn Claims) -> Result<()> {
        let theirs = claims.now().await?;
        self.ahead.store(theirs.as_millis() - Timestamp::now().as_millis(), Ordering::Relaxed);
        Ok(())
    }
}

/// What is told of an ended job.
#[derive(Debug)]
pub(super) struct Notice {
    pub(super) of: Announced,
    text: String,
    place: Option<Context>,
    /// Whether the ledger is told that it was announced, for other copies of the message to know.
    is_noted: bool,
}

impl Notice {
    pub(super) fn new(record: &Record) -> Self {
        Self { of: Announced::of(record), text: announcement(record), place: record.trace, is_noted: true }
    }

    /// Of a job that ended here, and what answers for its message. A success whose message is the only one is not noted:
    /// the message goes right behind the announcement, and should it come again before that, it is announced again and
    /// noted then.
    pub(super) fn of_run(record: &Record, held: &Held, receipt: Option<&Receipt>) -> Self {
        Self { is_noted: record.end != End::Succeeded || !held.is_only(receipt), ..Self::new(record) }
    }

    fn message(&self, key: String, correlation: Option<&str>) -> Message {
        let properties = wire::result(self.of.id, correlation, self.place);
        let body = self.text.clone().into_bytes();
        Message { exchange: String::new(), key, properties, body, mandatory: true }
    }
}

impl Post {
    /// What is known of jobs.
    pub(super) fn ledger(&self) -> &dyn Ledger {
        &*self.claims
    }

    /// Goes on with something that the subscription it belongs to does not wait for. It ends with the connection.
    pub(super) fn outlive(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        while leaving.try_join_next().is_some() {}
        leaving.spawn(work);
    }

    /// Looks, beside what goes on, which models have lanes in the queues of these jobs.
    pub(super) fn look_at_lanes(&self, batch: &[Envelope]) {
        let mut last = None;
        for Envelope { head, .. } in batch {
            let queue = &head.lane.queue;
            if head.lane.model.is_some() && last.replace(queue) != Some(queue) && self.lanes.is_due(queue) {
                let (lanes, claims, queue) = (Arc::clone(&self.lanes), Arc::clone(&self.claims), queue.clone());
                self.outlive(async move { lanes.look(&*claims, &queue).await });
            }
        }
    }

    /// Whether there is a connection.
    ///
    /// # Errors
    /// `Unavailable` when there is none.
    pub(super) fn check(&self) -> Result<()> {
        if *self.link.up().borrow() {
            return Ok(());
        }
        Err(Error::new(Kind::Unavailable, "lease jobs", "RabbitMQ is away; connecting again"))
    }

    /// How long this job has to wait yet.
    pub(super) fn wait(&self, head: &Head) -> Duration {
        head.not_before.map_or(Duration::ZERO, |at| at.since(self.clock.now()))
    }

    /// The message that takes a job to its lane, or first to the delay queue that fits `wait`.
    ///
    /// # Errors
    /// `TooLarge` for a head that cannot travel.
    pub(super) fn to_lane(&self, parcel: &Parcel, wait: Duration) -> Result<Message> {
        let (properties, body) = parcel.message(false)?;
        let lane = &parcel.envelope.head.lane;
        if wait.is_zero() {
            let key = self.lanes.key(lane);
            return Ok(Message { exchange: topology::IN.to_owned(), key, properties, body, mandatory: true });
        }
        let (name, value) = topology::delay_header(level::next(&self.settings.levels, wait));
        let mut headers = properties.headers().clone().unwrap_or_default();
        headers.insert(name.into(), value);
        let properties = properties.with_headers(headers);
        // By then its model may have a lane.
        let key = topology::key(lane);
        Ok(Message { exchange: topology::DELAY.to_owned(), key, properties, body, mandatory: true })
    }

    /// Sends a job on its way and waits until that is durable.
    ///
    /// # Errors
    /// `NotFound` when no queue took it, `TooLarge` when the server takes nothing so large; else what publishing said.
    pub(super) async fn send(&self, parcel: &Parcel, wait: Duration) -> Result<()> {
        match self.link.publisher().publish(self.to_lane(parcel, wait)?).await? {
            Sent::Taken => Ok(()),
            Sent::Returned => {
                let queue = &parcel.envelope.head.lane.queue;
                let why = format!("RabbitMQ has no queue for {queue}; hint: run `promptq queues declare {queue}`");
                Err(Error::new(Kind::NotFound, "send a job", why))
            }
        }
    }

    /// Has a message wait, and takes it off its queue. When that fails, it goes back after a second; one that cannot be
    /// moved at all, being too large, comes and goes so until its wait is over.
    pub(super) async fn park(&self, mut parcel: Parcel, receipt: Receipt, wait: Duration) {
        let head = &mut parcel.envelope.head;
        head.not_before = head.not_before.max(Some(self.clock.now() + wait));
        crate::crash_point!("amqp.park.before_publish");
        match self.send(&parcel, wait.max(Duration::from_millis(1))).await {
            Ok(()) => {
                crate::crash_point!("amqp.park.after_publish");
                receipt.ack();
            }
            Err(error) => {
                tracing::warn!(%error, job = %parcel.envelope.head.id, "a job that has to wait was not moved");
                tokio::time::sleep(Duration::from_secs(1)).await;
                receipt.give_back();
            }
        }
    }

    /// Tells those who listen to the results of a queue, and the ledger that they were told where that is to be noted: one
    /// answer each, in order.
    /// A result that is refused for good is warned of and left: trying again would not change that, and it is in the ledger.
    ///
    /// # Errors
    /// When it may be taken later, or the ledger does not hear of it.
    pub(super) async fn announce(&self, results: &[&Notice]) -> Vec<Result<()>> {
        let message = |notice: &&Notice| notice.message(topology::results_queue(&notice.of.queue), None);
        let sent = self.link.publisher().publish_all(results.iter().map(message).collect()).await;
        let mut told = Vec::with_capacity(results.len());
        let mut answers: Vec<Result<bool>> = Vec::with_capacity(results.len());
        let hears_all = self.claims.hears_of_all_announced();
        for (Notice { of, is_noted, .. }, sent) in results.iter().zip(sent) {
            answers.push(match sent {
                Ok(sent) => {
                    if sent == Sent::Returned {
                        tracing::debug!(queue = %of.queue, "no results queue; results are in the ledger");
                    }
                    let is_noted = *is_noted || hears_all;
                    told.extend(is_noted.then(|| of.clone()));
                    Ok(is_noted)
                }
                Err(error) if error.is_transient() || error.kind() == Kind::Closed => Err(error),
                Err(error) => {
                    tracing::warn!(%error, job = %of.id, "a result is not announced; read it with `promptq results`");
                    Ok(false)
                }
            });
        }
        let noted = if told.is_empty() { Ok(()) } else { self.claims.announced(&told).await };
        let answer = |answer| match (answer, &noted) {
            (Ok(true), Err(error)) => Err(error.shared()),
            (Ok(_), _) => Ok(()),
            (Err(error), _) => Err(error),
        };
        answers.into_iter().map(answer).collect()
    }

    /// As [`Self::announce`], of one.
    pub(super) async fn announce_one(&self, notice: &Notice) -> Result<()> {
        self.announce(&[notice]).await.pop().unwrap_or(Ok(()))
    }

    /// Answers the client that sent a job, if it asked for that and is still there.
    pub(super) async fn reply(&self, reply: &Reply, notice: &Notice) {
        let (message, job) = (notice.message(reply.to.clone(), reply.correlation.as_deref()), notice.of.id);
        match self.link.publisher().publish(message).await {
            Ok(Sent::Taken) => {}
            Ok(Sent::Returned) => tracing::info!(%job, "nobody waits for this reply any more"),
            Err(error) => tracing::info!(%error, %job, "a reply was not sent"),
        }
    }

    /// What is left to do for a message whose job has ended, before it is acknowledged.
    pub(super) async fn conclude(&self, parcel: &Parcel, opened: &Opened) -> Result<()> {
        let head = &parcel.envelope.head;
        if opened.keep && !self.claims.keep(head, &parcel.envelope.payload).await? {
            return Err(Error::new(Kind::Unavailable, "end a message", "its job was put back in line meanwhile"));
        }
        if opened.announce
            && let Some(record) = self.record(head.id).await?
        {
            let notice = Notice::new(&record);
            self.announce_one(&notice).await?;
            if let Some(reply) = &parcel.reply {
                self.reply(reply, &notice).await;
            }
        }
        Ok(())
    }

    async fn record(&self, id: JobId) -> Result<Option<Record>> {
        let view = self.claims.fetch(&[id]).await?.into_iter().next().flatten();
        Ok(view.and_then(|view| view.record).map(|record| *record))
    }
}
