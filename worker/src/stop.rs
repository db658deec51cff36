//! How a worker is told to leave: running, then draining, then stopping. What each means is `intake.rs`.

use std::sync::Arc;

use promptq_common::error::{Error, Kind, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// Where a worker is on its way out; it never goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Takes jobs.
    Running,
    /// Takes no more; running ones may finish within the drain time.
    Draining,
    /// Leaves at once; what runs is cut, and handed back within about a second.
    Stopping,
}

/// Tells one worker, or several, to leave. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Stop(Arc<watch::Sender<Phase>>);

impl Stop {
    /// One that runs.
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Phase::Running)))
    }

    /// Asks to take no more jobs. Repeatable.
    pub fn drain(&self) {
        self.raise(Phase::Draining);
    }

    /// Asks to leave at once. Repeatable.
    pub fn now(&self) {
        self.raise(Phase::Stopping);
    }

    /// What was asked for last.
    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Follows the phase.
    pub fn watch(&self) -> watch::Receiver<Phase> {
        self.0.subscribe()
    }

    /// Drains at the first SIGTERM or SIGINT, leaves at once at the second, and then returns. To be raced with what
    /// it stops; dropping it leaves signals unheard from then on.
    ///
    /// # Errors
    /// `Config` when this process may not hear signals.
    pub async fn on_signals(&self) -> Result<()> {
        self.hear(|signals, phase| signals > 1 || phase >= Phase::Draining).await
    }

    /// The same for a worker that may drain by itself: the first signal leaves it its drain time all the same.
    ///
    /// # Errors
    /// As [`Stop::on_signals`].
    pub async fn on_two_signals(&self) -> Result<()> {
        self.hear(|signals, _| signals > 1).await
    }

    async fn hear(&self, enough: impl Fn(u32, Phase) -> bool) -> Result<()> {
        let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
        for signals in 1.. {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if enough(signals, self.phase()) {
                break;
            }
            self.drain();
        }
        self.now();
        Ok(())
    }

    fn raise(&self, to: Phase) {
        self.0.send_if_modified(|phase| {
            let later = to > *phase;
            *phase = to.max(*phase);
            later
        });
    }
}

impl Default for Stop {
    fn default() -> Self {
        Self::new()
    }
}

fn listen(kind: SignalKind) -> Result<Signal> {
    signal(kind).map_err(|error| Error::new(Kind::Config, "listen for signals", "refused by the system").because(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_never_goes_back() {
        let stop = Stop::new();
        assert_eq!(stop.phase(), Phase::Running);
        stop.now();
        stop.drain();
        assert_eq!(stop.phase(), Phase::Stopping);
    }
}
