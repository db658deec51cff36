//! The RabbitMQ broker: it carries jobs as messages, and keeps what is known of them in a ledger beside it. The server is
//! reached by `address`, `dial`, `link`, `publisher` (with `outbox`, `window`, `trouble`), `fault`; what stands on it is
//! `topology`; a job as a message is `wire`. Into it: `enqueue`, `post`. Out of it: `subscription` and `source` (with
//! `plan`, `waiting`, `consumers`, `duplicates`, `share`, `closed`, `news`, `mend`), `desk` (with `held`, `receipt`, `hold`,
//! `swap`, `holds`, `leave`).
//! What people ask: `admin`, `dead`, `moving`, `check`. That there is one ledger: `identity`.

mod address;
mod admin;
mod answers;
mod check;
mod closed;
mod consumers;
mod crier;
mod dead;
mod desk;
mod dial;
mod duplicates;
mod enqueue;
mod fault;
mod folded;
mod held;
mod hold;
mod holds;
mod identity;
mod leave;
mod level;
mod link;
mod mend;
mod moving;
mod news;
mod opening;
mod outbox;
mod plan;
mod post;
mod publisher;
mod receipt;
mod share;
mod source;
mod subscription;
mod swap;
#[cfg(test)]
mod tests;
mod topology;
mod trouble;
mod waiting;
mod window;
mod wire;

pub use check::{Health, Hop, examine};
pub use identity::{examine_ledger, renew_ledger};

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use self::identity::Agreement;
use self::link::Link;
use self::moving::Walks;
use self::post::{Clock, Post};
use self::subscription::Subscription;
use super::Access;
use super::backend::{
    Backend, Cancel, CancelCounts, Declared, Depth, Enqueued, Envelope, HoldKey, MAX_BATCH, QueueView, Redriven,
    Refusal, Remark, Retention, Source, Swept, Terms, WorkerId,
};
use crate::error::{Error, Kind, Result};
use crate::job::{BatchName, JobId, ModelName, Queue};
use crate::ledger::{Claims, Page};

/// Where a process may be made to die, in the order a job meets them; see [`crate::crash_point!`].
pub const CRASH_POINTS: &[&str] = &[
    "amqp.enqueue.after_register",
    "amqp.enqueue.after_publish",
    "amqp.enqueue.after_confirm",
    "amqp.open.after_compare",
    "amqp.open.before_ledger",
    "amqp.open.after_ledger",
    "amqp.park.before_publish",
    "amqp.park.after_publish",
    "amqp.end.before_ledger",
    "amqp.end.after_ledger",
    "amqp.end.after_announcement",
    "amqp.answers.after_ack",
    "amqp.retry.after_publish",
    "amqp.retry.after_ledger",
    "amqp.release.after_ledger",
    "amqp.release.after_publish",
    "amqp.redrive.after_raise",
    "amqp.redrive.after_publish",
    "amqp.purge.after_ledger",
    "amqp.dead.after_ledger",
];

/// What is particular to RabbitMQ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What lane queues are.
    pub queues: QueueType,
    /// How long the server lets a delivery stay unacknowledged, as its operator says; jobs that take longer change
    /// their delivery for a new one at half of it, or after 25 minutes.
    pub consumer_timeout: Duration,
    /// How long messages stay in each delay queue, shortest first.
    pub levels: Vec<Duration>,
    /// The models of each queue that have lanes of their own; the others share one in each band.
    pub models: BTreeMap<Queue, Vec<ModelName>>,
}

/// What a lane's queue is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueType {
    /// Replicated, and on disk before it is confirmed.
    Quorum,
    /// On one node; may lose confirmed messages with the power.
    Classic,
}

impl QueueType {
    /// The setting's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Quorum => "quorum",
            Self::Classic => "classic",
        }
    }
}

impl fmt::Display for QueueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Default for Settings {
    /// Quorum queues, 30 minutes as servers come, seven levels from a second to six hours, no lanes for models.
    fn default() -> Self {
        let levels = [1, 5, 30, 120, 600, 3_600, 21_600].map(Duration::from_secs).to_vec();
        Self {
            queues: QueueType::Quorum,
            consumer_timeout: Duration::from_secs(1_800),
            levels,
            models: BTreeMap::new(),
        }
    }
}

/// A RabbitMQ server, with a ledger beside it.
#[derive(Debug)]
pub struct Amqp {
    post: Arc<Post>,
    /// Queues that this process has found, or made.
    found: Mutex<HashSet<Queue>>,
    walks: Walks,
    agreement: Agreement,
}

impl Amqp {
    /// Connects. Nothing is declared before a queue is used.
    ///
    /// # Errors
    /// `Config` or `Unsupported` for what a person has to mend, a virtual host of another ledger among it; `Unavailable`
    /// or `TimedOut` when it may work later.
    pub async fn connect(access: &Access, claims: Arc<dyn Claims>) -> Result<Self> {
        let link = Link::connect(access).await?;
        let post = Post {
            link,
            claims,
            settings: access.amqp.clone(),
            clock: Clock::default(),
            lanes: Arc::default(),
            leaving: Mutex::default(),
        };
        let agreement = Agreement::default();
        tokio::try_join!(post.clock.set(&*post.claims), agreement.look(&post.link, &*post.claims))?;
        Ok(Self { post: Arc::new(post), found: Mutex::default(), walks: Walks::default(), agreement })
    }

    /// Sees to it that the virtual host is our ledger's, before anything is put into it or taken from it.
    async fn agree(&self) -> Result<()> {
        self.agreement.reach(&self.post.link, &*self.post.claims).await
    }

    /// Sees to it that a queue's lanes are there, if this user may make them, and notes that it is used.
    async fn find(&self, queue: &Queue) -> Result<()> {
        if self.found.lock().unwrap_or_else(PoisonError::into_inner).contains(queue) {
            return Ok(());
        }
        let Post { link, settings, .. } = &*self.post;
        let models = settings.models.get(queue).map_or(&[][..], Vec::as_slice);
        topology::declare(link, self.post.ledger(), queue, models, settings).await?;
        // In this order: one that cannot be made is not one that is used.
        self.post.claims.touch(queue).await?;
        self.found.lock().unwrap_or_else(PoisonError::into_inner).insert(queue.clone());
        Ok(())
    }

    /// Puts jobs in; with `lost`, as [`Backend::republish`] does.
    async fn put(&self, batch: Vec<Envelope>, lost: bool) -> Result<Vec<Enqueued>> {
        check_count("enqueue jobs", batch.len())?;
        self.agree().await?;
        let unseen = |queue: &Queue| !self.found.lock().unwrap_or_else(PoisonError::into_inner).contains(queue);
        let queues = enqueue::asked_for(&self.post, &batch, unseen).await?;
        let (denied, nowhere) = self.seek(&queues).await?;
        let answers = match enqueue::enqueue(&self.post, batch, (lost, &nowhere)).await {
            // Who may not make what is missing is told how it is made.
            Err(error) if error.kind() == Kind::NotFound => return Err(denied.unwrap_or(error)),
            answers => answers?,
        };
        if answers.contains(&Enqueued::Refused(Refusal::NoSuchQueue)) {
            self.forget_found();
            self.agreement.doubt();
        }
        Ok(answers)
    }

    /// [`Self::find`] for those who publish: without the right to make it, which it says, a queue may be there all the
    /// same. Which are not, as far as they may look; of the others their messages will tell.
    async fn seek(&self, queues: &HashSet<Queue>) -> Result<(Option<Error>, HashSet<Queue>)> {
        let (mut denied, mut nowhere) = (None, HashSet::new());
        for queue in queues {
            match self.find(queue).await {
                Err(error) if matches!(error.kind(), Kind::Denied | Kind::Config) => {
                    tracing::debug!(%error, %queue, "a queue was not made");
                    match admin::is_missing(&self.post, queue).await {
                        // Nothing of promptq's is there.
                        Some(true) => return Err(error),
                        Some(false) => {
                            nowhere.insert(queue.clone());
                        }
                        None => self.post.claims.touch(queue).await?,
                    }
                    denied = Some(error);
                }
                found => found?,
            }
        }
        Ok((denied, nowhere))
    }

    fn forget_found(&self) {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Refuses calls above the documented size.
fn check_count(op: &'static str, count: usize) -> Result<()> {
    if count > MAX_BATCH {
        return Err(Error::new(Kind::TooLarge, op, format!("{count} at once; at most {MAX_BATCH}")));
    }
    Ok(())
}

#[async_trait]
impl Backend for Amqp {
    fn name(&self) -> &'static str {
        "rabbitmq"
    }

    async fn enqueue(&self, batch: Vec<Envelope>) -> Result<Vec<Enqueued>> {
        self.put(batch, false).await
    }

    async fn republish(&self, batch: Vec<Envelope>) -> Result<Vec<Enqueued>> {
        self.put(batch, true).await
    }

    async fn subscribe(&self, terms: Terms) -> Result<Box<dyn Source>> {
        self.agree().await?;
        for (queue, _) in &terms.queues {
            self.find(queue).await?;
        }
        Ok(Box::new(Subscription::open(Arc::clone(&self.post), terms).await?))
    }

    async fn depth(&self, queue: &Queue) -> Result<Depth> {
        Ok(admin::depth(&self.post, queue).await?.depth)
    }

    async fn queues(&self) -> Result<Vec<QueueView>> {
        admin::queues(&self.post).await
    }

    async fn queue(&self, queue: &Queue) -> Result<Option<QueueView>> {
        admin::view(&self.post, queue).await
    }

    async fn several(&self, queues: &[Queue]) -> Result<Vec<Option<QueueView>>> {
        admin::views(&self.post, queues).await
    }

    /// Asked by every worker every few seconds: of the ledger alone, whatever waits here.
    async fn paused(&self, queue: &Queue) -> Result<Option<String>> {
        self.post.claims.paused(queue).await
    }

    async fn pause(&self, queue: &Queue, reason: Option<&str>) -> Result<()> {
        self.post.claims.pause(queue, reason).await
    }

    async fn purge(&self, queue: &Queue) -> Result<u64> {
        admin::purge(&self.post, queue).await
    }

    async fn cancel(&self, ids: &[JobId]) -> Result<Vec<Cancel>> {
        check_count("cancel jobs", ids.len())?;
        self.post.claims.cancel(ids, &admin::names(&self.post).await?).await
    }

    async fn cancel_batch(&self, batch: &BatchName) -> Result<CancelCounts> {
        self.post.claims.cancel_batch(batch).await
    }

    async fn redrive(&self, ids: &[JobId]) -> Result<Vec<Redriven>> {
        check_count("redrive jobs", ids.len())?;
        self.agree().await?;
        // Its lanes may have gone with the run that it was of.
        let views = self.post.claims.fetch(ids).await?;
        self.seek(&views.into_iter().flatten().map(|view| view.queue).collect()).await?;
        let redriven = admin::redrive(&self.post, ids).await;
        if redriven.as_ref().is_err_and(|error| error.kind() == Kind::NotFound) {
            self.forget_found();
        }
        redriven
    }

    async fn drop_dead(&self, ids: &[JobId]) -> Result<u64> {
        self.post.claims.drop_dead(ids).await
    }

    /// What is released waits in a delay queue, at most 10 minutes, and nothing there can be woken.
    async fn wake(&self, _key: &HoldKey) -> Result<u64> {
        Ok(0)
    }

    async fn recover(&self, worker: &WorkerId) -> Result<u64> {
        self.post.claims.recover(worker).await
    }

    async fn waiting(&self, queue: &Queue, after: Option<&str>, limit: usize) -> Result<Page<Envelope>> {
        self.walks.page(&self.post, queue, after, limit).await
    }

    async fn forget(&self, jobs: &[(JobId, u32)]) -> Result<u64> {
        check_count("forget jobs", jobs.len())?;
        self.walks.forget(&self.post, jobs).await
    }

    async fn declare(&self, queue: &Queue, models: &[ModelName], prune: bool) -> Result<Option<Declared>> {
        self.agree().await?;
        let Post { link, settings, claims, .. } = &*self.post;
        claims.touch(queue).await?;
        let declared = topology::declare_fully(link, self.post.ledger(), (queue, models), prune, settings).await;
        self.post.lanes.forget(queue);
        declared.map(Some)
    }

    async fn retire(&self, queue: &Queue) -> Result<Vec<Remark>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).remove(queue);
        topology::retire(&self.post.link, self.post.ledger(), queue, &self.post.settings).await
    }

    async fn sweep(&self, retention: &Retention) -> Result<Swept> {
        let mut swept = self.post.claims.sweep(retention).await?;
        swept.more |= dead::take_in(&self.post).await?;
        holds::sweep(&self.post).await?;
        Ok(swept)
    }
}
