//! What answers for one delivery: it can be acknowledged or given back, once. Dropped without either, as by work that
//! breaks, it goes back by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use lapin::Acker;
use lapin::options::{BasicAckOptions, BasicNackOptions};
use tokio::time::Instant;

/// A delivery that nobody answered for yet.
#[derive(Debug)]
pub(super) struct Receipt {
    acker: Acker,
    since: Instant,
    /// Whether the server took the message back.
    taken_back: Arc<AtomicBool>,
    /// `None` once the server counts it no more.
    counted: Option<Counted>,
}

/// One of the deliveries of a consumer that are not answered for.
#[derive(Debug)]
struct Counted(Arc<AtomicU32>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Receipt {
    /// For a delivery that is counted in `count` until it is answered for. `taken_back` says whether the server has
    /// taken it back.
    pub(super) fn new(acker: Acker, count: &Arc<AtomicU32>, taken_back: Arc<AtomicBool>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self { acker, since: Instant::now(), taken_back, counted: Some(Counted(Arc::clone(count))) }
    }

    /// Whether the channel and the consumer it came by are still there.
    pub(super) fn is_usable(&self) -> bool {
        self.acker.usable() && !self.is_taken_back()
    }

    /// Whether the server took away the consumer it came by, and the message with it.
    pub(super) fn is_taken_back(&self) -> bool {
        self.taken_back.load(Ordering::Relaxed)
    }

    /// Counts it no more: the server has it back.
    pub(super) fn discount(&mut self) {
        self.counted = None;
    }

    /// How long the message has been in hand.
    pub(super) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// Removes the message from its queue. Where the channel is gone or the server has taken it back, the message comes
    /// again and meets the ledger.
    pub(super) async fn ack(self) {
        // A server may close the channel over what it does not know any more, and every other delivery with it.
        if self.is_taken_back() {
            return;
        }
        if let Err(error) = self.acker.ack(BasicAckOptions::default()).await {
            tracing::debug!(%error, "an acknowledgement was not sent");
        }
    }

    /// Puts the message back in its queue, ahead of others.
    pub(super) async fn give_back(self) {
        if self.is_taken_back() {
            return;
        }
        if let Err(error) = self.acker.nack(back()).await {
            tracing::debug!(%error, "a message was not given back");
        }
    }
}

impl Drop for Receipt {
    /// An unanswered delivery would be nobody's for as long as the channel lives, and a place less for others.
    fn drop(&mut self) {
        if !self.is_usable() {
            return;
        }
        // The first look at it is what sends it; how that went concerns nobody any more.
        if let Some(Err(error)) = self.acker.nack(back()).now_or_never() {
            tracing::debug!(%error, "a message was not given back");
        }
    }
}

fn back() -> BasicNackOptions {
    BasicNackOptions { requeue: true, ..BasicNackOptions::default() }
}
