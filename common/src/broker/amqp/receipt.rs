//! What answers for one delivery: it can be acknowledged or given back, once. Dropped without either, as by work that
//! breaks, it goes back by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use lapin::Acker;
use lapin::message::Delivery;
use tokio::time::Instant;

use super::answers::Answers;

/// A delivery that nobody answered for yet.
#[derive(Debug)]
pub(super) struct Receipt {
    /// Knows whether the channel is still there; what is answered goes by `answers`.
    acker: Acker,
    number: u64,
    answers: Arc<Answers>,
    /// Whether nothing was said of it yet.
    is_open: bool,
    since: Instant,
    /// Whether the server took the message back.
    taken_back: Arc<AtomicBool>,
    /// `None` once the server counts it no more.
    counted: Option<Counted>,
}

/// What all deliveries of a consumer have in common.
#[derive(Clone, Debug, Default)]
pub(super) struct Origin {
    /// How many of its queue are not answered for.
    pub(super) count: Arc<AtomicU32>,
    /// Set when the server takes away the consumer, and its messages with it.
    pub(super) ended: Arc<AtomicBool>,
    /// Its channel's.
    pub(super) answers: Arc<Answers>,
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
    /// For a delivery, to be answered by `origin`, which counts it until then.
    pub(super) fn new(delivery: &Delivery, origin: &Origin) -> Self {
        let Origin { count, ended, answers } = origin;
        count.fetch_add(1, Ordering::Relaxed);
        answers.saw(delivery.delivery_tag);
        Self {
            acker: delivery.acker.clone(),
            number: delivery.delivery_tag,
            answers: Arc::clone(answers),
            is_open: true,
            since: Instant::now(),
            taken_back: Arc::clone(ended),
            counted: Some(Counted(Arc::clone(count))),
        }
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

    /// Has the message removed from its queue. Where the channel is gone or the server has taken it back, the message
    /// comes again and meets the ledger.
    pub(super) fn ack(mut self) {
        // A server may close the channel over what it does not know any more, and every other delivery with it.
        if self.take() {
            self.answers.done(self.number, &self.taken_back);
        }
    }

    /// Has the message put back in its queue, ahead of others.
    pub(super) fn give_back(self) {
        drop(self);
    }

    /// Whether there is something to say; it is said once.
    fn take(&mut self) -> bool {
        if !std::mem::take(&mut self.is_open) {
            return false;
        }
        if self.is_taken_back() {
            self.answers.forget(self.number);
            return false;
        }
        !self.acker.poisoned()
    }
}

impl Drop for Receipt {
    /// An unanswered delivery would be nobody's for as long as the channel lives, and a place less for others.
    fn drop(&mut self) {
        if self.take() {
            self.answers.back(self.number, &self.taken_back);
        }
    }
}
