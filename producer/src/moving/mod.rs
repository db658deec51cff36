//! Moves what waits in a broker to another one: each job is durable there before it is forgotten here, and its queue is
//! paused from before the first until after the last, so that no job runs at both. What a page goes through: `page.rs`.
//!
//! The state of a move is kept in the source alone: the reason of the queue's pause says that it is under way and where
//! to, so that after a death only the same move can go on, and a note names the sealed batches whose seal is still due
//! over there.

mod open;
mod page;

use std::time::Duration;

use promptq_common::broker::{Broker, Depth, MAX_BATCH, WorkerId};
use promptq_common::job::{JobId, Queue};

use crate::problem::{Exit, Problem, Result};
use open::Open;

/// How often a queue is walked at most: the second walk takes what came back from workers since the first began, the
/// third what came meanwhile. Whoever submits faster than that has to be stopped first.
const WALKS: u32 = 3;
/// How long a move is believed to live without a sign: many times what a page takes.
const LOCK: Duration = Duration::from_secs(60);
/// The lock that keeps two moves of one broker apart.
const LOCK_NAME: &str = "broker-move";

/// A move from one broker to another.
#[derive(Debug)]
pub struct Move<'a> {
    from: &'a Broker,
    to: &'a Broker,
    /// Where to, without its password.
    target: String,
    owner: WorkerId,
    open: Open,
}

/// What became of a queue's jobs.
#[derive(Clone, Debug, Default)]
pub struct Moved {
    /// Gone from here and durable there.
    pub moved: u64,
    /// How many of those the target had already.
    pub known: u64,
    /// What it did not take, in the last walk.
    pub refused: Refused,
    /// What is left here.
    pub left: Depth,
}

/// Jobs that stay because the other broker does not take them.
#[derive(Clone, Debug, Default)]
pub struct Refused {
    /// How many.
    pub count: u64,
    /// The first few, each with the reason.
    pub samples: Vec<(JobId, String)>,
}

impl<'a> Move<'a> {
    /// Begins a move, or goes on with the same one after a death. `target` is where to, for people.
    ///
    /// # Errors
    /// `Usage` when both are one broker, `Conflict` while another move is under way from here.
    pub async fn begin(from: &'a Broker, to: &'a Broker, target: String) -> Result<Self> {
        if same(from, to).await? {
            return Err(same_problem());
        }
        // The same for the same target, so that a repeat after a death need not wait for the lock to run out.
        let name = JobId::derived(&Queue::standard(), None, &target);
        let owner = WorkerId::known(format!("move-{name}"));
        let open = Open::load(from, &owner).await?;
        let begun = Self { from, to, target, owner, open };
        begun.keep_lock().await?;
        Ok(begun)
    }

    /// Moves what waits in a queue, which is paused from here on. `seen` is told how many jobs are over after each page.
    /// Dropped or failed in between: the same move does the rest.
    pub async fn queue(&mut self, queue: &Queue, mut seen: impl FnMut(u64)) -> Result<Moved> {
        self.pause(queue).await?;
        let mut moved = Moved::default();
        for _ in 0..WALKS {
            let before = moved.moved;
            moved.refused = Refused::default();
            let mut after = None;
            loop {
                self.keep_lock().await?;
                self.still_paused(queue).await?;
                let page = self.from.waiting(queue, after.as_deref(), MAX_BATCH).await?;
                page::carry(self.from, self.to, (&mut self.open, page.items), &mut moved).await?;
                seen(moved.moved);
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
            if moved.moved == before {
                break;
            }
        }
        self.open.seal(self.from, self.to).await?;
        moved.left = self.from.depth(queue).await?;
        self.from.pause(queue, Some(&over(&self.target))).await?;
        Ok(moved)
    }

    /// Ends the move, so that another may begin.
    pub async fn end(self) -> Result<()> {
        Ok(self.from.ledger().unlock(LOCK_NAME, &self.owner).await?)
    }

    /// Nothing is leased from the queue any more, and whoever asks is told why.
    async fn pause(&self, queue: &Queue) -> Result<()> {
        let reason = under_way(&self.target);
        if let Some(other) = self.pause_reason(queue).await?.filter(|other| is_under_way(other) && *other != reason) {
            return Err(Problem::new(
                Exit::Conflict,
                "move-unfinished",
                format!("queue {queue} is paused by another move that has not ended: {other}"),
            )
            .hint("finish that one first: the same command again; else jobs may be at three brokers and run twice"));
        }
        Ok(self.from.pause(queue, Some(&reason)).await?)
    }

    async fn still_paused(&self, queue: &Queue) -> Result<()> {
        if self.pause_reason(queue).await?.as_deref() == Some(&*under_way(&self.target)) {
            return Ok(());
        }
        Err(Problem::new(Exit::Conflict, "resumed", format!("somebody resumed queue {queue} while its jobs moved"))
            .hint("run the same command again: it pauses the queue and finishes"))
    }

    async fn pause_reason(&self, queue: &Queue) -> Result<Option<String>> {
        let views = self.from.queues().await?;
        Ok(views.into_iter().find(|view| view.queue == *queue).and_then(|view| view.paused))
    }

    async fn keep_lock(&self) -> Result<()> {
        if self.from.ledger().lock(LOCK_NAME, &self.owner, LOCK).await? {
            return Ok(());
        }
        Err(Problem::new(Exit::Conflict, "move-under-way", "another move from this broker is under way")
            .hint("wait for it to end; one that died is forgotten after a minute"))
    }
}

/// Why a queue is paused while its jobs move to `target`.
pub fn under_way(target: &str) -> String {
    format!("moving to {target}")
}

/// Whether a pause says that a move has begun and not ended.
fn is_under_way(reason: &str) -> bool {
    reason.starts_with("moving to ")
}

fn over(target: &str) -> String {
    format!("moved to {target}")
}

/// What is wrong with moving from a broker to itself: every job would be known there, and then forgotten.
pub fn same_problem() -> Problem {
    Problem::usage("both are the same broker: there is nowhere to move to")
}

/// Whether both handles reach the same data, by whatever names: what is noted through one is read through the other.
async fn same(from: &Broker, to: &Broker) -> Result<bool> {
    let (key, value) = (format!("{LOCK_NAME}/{}", JobId::fresh()), "here");
    from.ledger().set_note(&key, Some(value)).await?;
    let seen = to.ledger().note(&key).await;
    from.ledger().set_note(&key, None).await?;
    Ok(seen?.is_some())
}
