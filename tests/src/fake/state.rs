//! What all calls share, behind one lock: rules, windows, book and ledger, and the clock they go by.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use promptq_common::time::Timestamp;
use tokio::time::Instant;

use super::allowance::LimitRule;
use super::bill::{Bill, Book, price};
use super::config::Config;
use super::fault::{FaultRule, Faults};
use super::ledger::{Call, End, Ledger};
use super::limits::Limits;
use super::shape::Api;

/// One clock for windows, which must not jump, and for people.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    began: Instant,
    began_ms: i64,
}

impl Clock {
    fn new() -> Self {
        Self { began: Instant::now(), began_ms: Timestamp::now().as_millis() }
    }

    /// Milliseconds since the start.
    pub(super) fn now(self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Milliseconds since 1970.
    pub(super) fn unix(self) -> i64 {
        self.began_ms.saturating_add(i64::try_from(self.now()).unwrap_or(i64::MAX))
    }
}

/// Shared by all connections.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) seed: u64,
    pub(super) clock: Clock,
    at_start: Config,
    state: Mutex<State>,
}

/// What changes.
#[derive(Debug)]
pub(super) struct State {
    /// Its limits may change; its faults are those of the start.
    pub(super) config: Arc<Config>,
    pub(super) limits: Limits,
    pub(super) faults: Faults,
    pub(super) book: Book,
    pub(super) ledger: Ledger,
    /// Calls that have come.
    pub(super) calls: u64,
    /// Grows with each reset.
    epoch: u64,
}

impl Shared {
    /// # Errors
    /// When the configuration cannot be meant or the ledger not be written.
    pub(super) fn new(config: Config, seed: u64, ledger: Option<&Path>) -> anyhow::Result<Self> {
        config.check()?;
        let state = State {
            config: Arc::new(config.clone()),
            limits: Limits::new(config.minute.as_millis(), config.day.as_millis()),
            faults: Faults::new(seed, 0, &config.faults),
            book: Book::default(),
            ledger: Ledger::open(ledger, config.calls_kept)?,
            calls: 0,
            epoch: 0,
        };
        Ok(Self { seed, clock: Clock::new(), at_start: config, state: Mutex::new(state) })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_faults(&self, rules: &[FaultRule]) {
        let mut state = self.lock();
        state.faults = Faults::new(self.seed, self.clock.now(), rules);
    }

    pub(super) fn set_limits(&self, rules: Vec<LimitRule>) {
        let mut state = self.lock();
        let config = Config { limits: rules, ..Config::clone(&state.config) };
        state.config = Arc::new(config);
    }

    /// As at the start; calls in flight end without being counted, and the ledger's numbers go on.
    pub(super) fn reset(&self) {
        let config = self.at_start.clone();
        let mut state = self.lock();
        state.limits = Limits::new(config.minute.as_millis(), config.day.as_millis());
        state.faults = Faults::new(self.seed, self.clock.now(), &config.faults);
        state.config = Arc::new(config);
        state.book = Book::default();
        state.ledger.forget();
        state.epoch += 1;
    }

    pub(super) fn bill(&self) -> Bill {
        let mut state = self.lock();
        let (uses, trouble) = (state.limits.uses(self.clock.now()), state.ledger.trouble.clone());
        state.book.bill(uses, trouble)
    }
}

/// A call that has begun: it ends exactly once, also when its connection is dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    shared: Arc<Shared>,
    epoch: u64,
    /// The windows it was let into.
    group: Option<String>,
    /// As the ledger will have it.
    pub(super) call: Call,
    has_ended: bool,
}

impl Ticket {
    /// Counts a call as begun.
    pub(super) fn begin(shared: &Arc<Shared>, state: &mut State, call: Call) -> Self {
        state.book.begin();
        Self { shared: Arc::clone(shared), epoch: state.epoch, group: None, call, has_ended: false }
    }

    /// It was let in.
    pub(super) fn let_in(&mut self, group: String) {
        self.group = Some(group);
    }

    /// Output has been made.
    pub(super) fn appeared(&mut self, tokens: u64) {
        self.call.output_tokens += tokens;
        if let (Some(group), false) = (&self.group, self.call.api == Api::OpenAi) {
            let mut state = self.shared.lock();
            if state.epoch == self.epoch {
                // Behind the lock, or charges were told out of their order.
                let now = self.shared.clock.now();
                state.limits.appeared(now, group, self.call.api, tokens);
            }
        }
    }

    /// It has ended so, and is paid for or not.
    pub(super) fn end(mut self, status: u16, end: End, is_billed: bool) {
        self.note(status, end, is_billed);
    }

    fn note(&mut self, status: u16, end: End, is_billed: bool) {
        if std::mem::replace(&mut self.has_ended, true) {
            return;
        }
        let mut state = self.shared.lock();
        let call = &mut self.call;
        call.ended_ms = self.shared.clock.unix();
        (call.status, call.end) = (status, end);
        let tokens = (call.input_tokens, call.cached_tokens, call.output_tokens);
        let tokens = if is_billed { tokens } else { (0, 0, 0) };
        call.usd = price(&state.config, &call.model, tokens);
        if state.epoch == self.epoch {
            if let Some(group) = &self.group {
                state.limits.ended(group);
            }
            state.book.end(call);
            state.ledger.add(call.clone());
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.note(0, End::Gone, true);
    }
}
