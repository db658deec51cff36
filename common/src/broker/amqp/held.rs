//! One claimed job and the message that stands for it: which delivery that is, until when the claim is good, and who is
//! at it. All jobs of a subscription are `desk.rs`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::receipt::Receipt;
use super::wire::Parcel;
use crate::broker::backend::{Head, LeaseId};
use crate::job::JobId;

/// A claimed job and its message.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) parcel: Parcel,
    pub(super) lease: LeaseId,
    since: Instant,
    /// Whether a copy of its message was seen meanwhile.
    copied: AtomicBool,
    state: Mutex<HeldState>,
}

#[derive(Debug)]
struct HeldState {
    /// `None` once it was answered for.
    receipt: Option<Receipt>,
    /// When the claim runs out unless it is beaten.
    until: Instant,
    /// How many calls are under way that settle it.
    settling: u32,
    /// Since when a copy is on its way to the hold queue.
    swapping: Option<Instant>,
}

/// A call that settles a job is under way.
#[derive(Debug)]
pub(super) struct Settling<'a>(&'a Held, Duration);

impl Held {
    /// A job that was claimed just now for `length`, and its message.
    pub(super) fn new(parcel: Parcel, lease: LeaseId, receipt: Receipt, length: Duration) -> Self {
        let now = Instant::now();
        let state = HeldState { receipt: Some(receipt), until: now + length, settling: 0, swapping: None };
        Self { parcel, lease, since: now, copied: AtomicBool::new(false), state: Mutex::new(state) }
    }

    pub(super) fn id(&self) -> JobId {
        self.parcel.envelope.head.id
    }

    /// Whether a message with this head is a copy of its.
    pub(super) fn is_same(&self, head: &Head) -> bool {
        let ours = &self.parcel.envelope.head;
        (ours.epoch, ours.attempts) == (head.epoch, head.attempts)
    }

    /// A copy of its message is about.
    pub(super) fn has_copy(&self) {
        self.copied.store(true, Ordering::Relaxed);
    }

    /// Whether its message is the first and only one, as far as can be seen here. `receipt` is what answers for it: where
    /// that is lost, the server has given the message to somebody else, or will.
    pub(super) fn is_only(&self, receipt: Option<&Receipt>) -> bool {
        let Parcel { envelope, again, .. } = &self.parcel;
        let is_first = !again && envelope.head.epoch == 0 && envelope.head.attempts == 0;
        is_first && !self.copied.load(Ordering::Relaxed) && receipt.is_some_and(Receipt::is_usable)
    }

    /// Its claim was extended.
    pub(super) fn beaten(&self, length: Duration) {
        self.state().until = Instant::now() + length;
    }

    /// Keeps its message here for as long as the answer lives and `length` beyond that, however long the ledger takes to
    /// hear of the end: were it given back, the job would run again while its answer waits to be stored.
    pub(super) fn settling(&self, length: Duration) -> Settling<'_> {
        self.state().settling += 1;
        Settling(self, length)
    }

    /// Whether its claim ran out and nobody is settling it.
    pub(super) fn is_over(&self) -> bool {
        let state = self.state();
        state.settling == 0 && state.until <= Instant::now()
    }

    /// Whether its message has been given to somebody else, or will be.
    pub(super) fn is_orphan(&self) -> bool {
        !self.state().receipt.as_ref().is_some_and(Receipt::is_usable)
    }

    /// Whether its message has been in hand for longer than `age` or was taken back, and no copy is on its way since
    /// then.
    pub(super) fn is_old(&self, age: Duration) -> bool {
        let state = self.state();
        let swapping = state.swapping.is_some_and(|since| since.elapsed() < age / 2);
        !swapping && state.receipt.as_ref().is_some_and(|receipt| receipt.age() >= age || receipt.is_taken_back())
    }

    /// A copy of its message is on its way to this worker.
    pub(super) fn swapping(&self) {
        self.state().swapping = Some(Instant::now());
    }

    /// No copy is on its way after all, or none that is known of.
    pub(super) fn not_swapping(&self) {
        self.state().swapping = None;
    }

    /// Another copy of the message stands for it from now on; the old one is to be acknowledged.
    pub(super) fn replace(&self, receipt: Receipt) -> Option<Receipt> {
        let mut state = self.state();
        state.swapping = None;
        let old = state.receipt.replace(receipt);
        // Lost, it may be with somebody besides.
        if old.as_ref().is_some_and(|old| !old.is_usable()) {
            self.has_copy();
        }
        old
    }

    /// Takes what answers for its message, if that is still there to be answered for.
    pub(super) fn take(&self) -> Option<Receipt> {
        self.state().receipt.take()
    }

    /// Its message is with the server again, which does not count it among those that wait for an answer from here.
    pub(super) fn discount(&self) {
        if let Some(receipt) = self.state().receipt.as_mut() {
            receipt.discount();
        }
    }

    /// How long it has been in hand.
    pub(super) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    fn state(&self) -> MutexGuard<'_, HeldState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
impl Held {
    /// Has whoever looks at its message wait, for as long as the answer lives.
    pub(super) fn stopped(&self) -> impl Sized + '_ {
        self.state()
    }
}

impl Drop for Settling<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.settling -= 1;
        state.until = state.until.max(Instant::now() + self.1);
    }
}
