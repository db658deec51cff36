//! The Redis broker, its own ledger: what a queue holds is in `scripts/book.lua`, and only scripts change it. Here: the
//! way in. How a server is reached: `address`, `link`, `blocker`, `check`, `fault`, `script`; each step: `enqueue`,
//! `source` (with `call`, `waker` and `inbox`), `hold` (with `gather`), `admin`, `sweep`, `ledger` (with `list`, `account`), and
//! `claims` for another broker; what belongs to no queue: `global`; how scripts are spoken to: `wire`, `stored`.

mod account;
mod address;
mod admin;
mod blocker;
mod call;
mod check;
mod claims;
mod enqueue;
mod fault;
mod gather;
mod global;
mod hold;
mod inbox;
mod ledger;
mod link;
mod list;
mod script;
mod source;
mod stored;
mod sweep;
#[cfg(test)]
mod tests;
mod turns;
mod waker;
mod wire;

pub use check::{Fsync, Survey};
pub(super) use check::{lacking, survey};
pub use claims::CRASH_POINTS as CLAIMS_CRASH_POINTS;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use self::gather::Gather;
use self::hold::Desk;
use self::link::Link;
use self::script::{Script, When};
use self::source::RedisSource;
use super::Access;
use super::backend::{
    Backend, Cancel, CancelCounts, Depth, Enqueued, Envelope, HoldKey, MAX_BATCH, QueueView, Redriven, Retention,
    Source, Swept, Terms, WorkerId,
};
use crate::error::{Error, Kind, Result};
use crate::job::{BatchName, JobId, Queue};
use crate::ledger::Page;

/// Where a process may be made to die, in the order a job meets them; see [`crate::crash_point!`].
pub const CRASH_POINTS: &[&str] = &[
    "redis.enqueue.before_call",
    "redis.enqueue.after_call",
    "redis.lease.before_call",
    "redis.lease.after_call",
    "redis.settle.before_call",
    "redis.settle.after_call",
    "redis.inbox.before_call",
    "redis.inbox.after_call",
];

/// A script over the book, which may run on a full server.
macro_rules! book_script {
    ($name:literal) => {
        LazyLock::new(|| {
            let own = include_str!(concat!("scripts/", $name, ".lua"));
            $crate::broker::redis::Script::new($name, $crate::broker::redis::When::Always, &[BOOK, own])
        })
    };
}
use book_script;

/// What every script over jobs begins with.
const BOOK: &str = concat!(include_str!("scripts/book.lua"), "\n", include_str!("scripts/moves.lua"));

static CLAIM: LazyLock<Script> = book_script!("claim");
static BEAT: LazyLock<Script> = book_script!("beat");
static SETTLE: LazyLock<Script> = book_script!("settle");

/// A queue is noted as used at most this often by one process.
const TOUCH: Duration = Duration::from_secs(60);

/// A Redis server as broker and ledger.
#[derive(Debug)]
pub struct Redis {
    link: Link,
    desk: Arc<Desk>,
    /// When this process last noted a queue as used.
    touched: Mutex<HashMap<Queue, Instant>>,
}

impl Redis {
    /// Connects, and looks whether the server can be what it has to be.
    ///
    /// # Errors
    /// `Config` or `Unsupported` for what a person has to mend; `Unavailable` or `TimedOut` when it may work later.
    pub async fn connect(access: &Access) -> Result<Self> {
        let link = Link::connect(access).await?;
        global::check_form(&link).await?;
        let desk = Desk {
            claims: Gather::start(link.clone(), "claim a job", &CLAIM),
            beats: Gather::start(link.clone(), "beat", &BEAT),
            settles: Gather::start(link.clone(), "settle", &SETTLE),
            messages: Gather::start(link.clone(), "claim a message", &claims::CLAIMS),
        };
        Ok(Self { link, desk: Arc::new(desk), touched: Mutex::default() })
    }

    /// Notes that the queue is used, so that it is listed even while it is empty.
    async fn touch(&self, queue: &Queue) -> Result<()> {
        let fresh = |at: &Instant| at.elapsed() < TOUCH;
        if self.touched.lock().unwrap_or_else(PoisonError::into_inner).get(queue).is_some_and(fresh) {
            return Ok(());
        }
        global::touch(&self.link, queue).await?;
        self.touched.lock().unwrap_or_else(PoisonError::into_inner).insert(queue.clone(), Instant::now());
        Ok(())
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
impl Backend for Redis {
    fn name(&self) -> &'static str {
        "redis"
    }

    async fn enqueue(&self, batch: Vec<Envelope>) -> Result<Vec<Enqueued>> {
        check_count("enqueue jobs", batch.len())?;
        self.link.tell();
        enqueue::enqueue(self, &batch).await
    }

    async fn subscribe(&self, terms: Terms) -> Result<Box<dyn Source>> {
        self.link.tell();
        for (queue, _) in &terms.queues {
            self.touch(queue).await?;
        }
        Ok(Box::new(RedisSource::new(self, terms)?))
    }

    async fn depth(&self, queue: &Queue) -> Result<Depth> {
        admin::depth(self, queue).await.map(|view| view.depth)
    }

    async fn queues(&self) -> Result<Vec<QueueView>> {
        admin::queues(self).await
    }

    async fn queue(&self, queue: &Queue) -> Result<Option<QueueView>> {
        let view = admin::depth(self, queue).await?;
        let exists = !view.is_blank() || global::is_used(&self.link, queue).await?;
        Ok(exists.then_some(view))
    }

    async fn pause(&self, queue: &Queue, reason: Option<&str>) -> Result<()> {
        self.touch(queue).await?;
        admin::pause(self, queue, reason).await
    }

    async fn waiting(&self, queue: &Queue, after: Option<&str>, limit: usize) -> Result<Page<Envelope>> {
        if after.is_none() {
            inbox::take_all(&self.link, queue).await?;
        }
        admin::waiting(self, queue, after, limit).await
    }

    async fn forget(&self, jobs: &[(JobId, u32)]) -> Result<u64> {
        check_count("forget jobs", jobs.len())?;
        admin::forget(self, jobs).await
    }

    async fn purge(&self, queue: &Queue) -> Result<u64> {
        admin::purge(self, queue).await
    }

    async fn cancel(&self, ids: &[JobId]) -> Result<Vec<Cancel>> {
        check_count("cancel jobs", ids.len())?;
        admin::cancel(self, ids).await
    }

    async fn cancel_batch(&self, batch: &BatchName) -> Result<CancelCounts> {
        admin::cancel_batch(self, batch).await
    }

    async fn redrive(&self, ids: &[JobId]) -> Result<Vec<Redriven>> {
        check_count("redrive jobs", ids.len())?;
        admin::redrive(self, ids).await
    }

    async fn drop_dead(&self, ids: &[JobId]) -> Result<u64> {
        check_count("drop dead jobs", ids.len())?;
        admin::drop_dead(self, ids).await
    }

    async fn wake(&self, key: &HoldKey) -> Result<u64> {
        admin::wake(self, key).await
    }

    async fn recover(&self, worker: &WorkerId) -> Result<u64> {
        admin::recover(self, worker).await
    }

    async fn sweep(&self, retention: &Retention) -> Result<Swept> {
        sweep::sweep(self, retention).await
    }
}
