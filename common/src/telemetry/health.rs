//! Whether a process lives, has started and does its work, as it says itself: its loop ticks, its parts report. Nothing is
//! asked of anybody to answer a probe. The same tick feeds systemd's watchdog.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use serde::Serialize;

use super::recorder::VERSION;
use crate::time::Timestamp;

/// A loop that has not come round for so long hangs.
const HUNG: Duration = Duration::from_secs(15);
/// While a process leaves, systemd is asked for so much more time with each tick.
const MORE: Duration = Duration::from_secs(30);

/// What a process says of itself. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Health(Arc<State>);

#[derive(Debug)]
struct State {
    begun: Instant,
    /// Milliseconds from then to the last tick; 0 before the first.
    ticked: AtomicU64,
    /// The same of what systemd was told last.
    told: AtomicU64,
    started: AtomicBool,
    draining: AtomicBool,
    checks: Mutex<BTreeMap<&'static str, Check>>,
    /// How often systemd wants to hear of the tick, if it does.
    watchdog: Option<Duration>,
}

/// One part's report.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Check {
    ok: bool,
    since: Timestamp,
    detail: String,
}

/// What may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// `/livez`: does its loop come round? Never whether anybody else answers.
    Live,
    /// `/readyz`: does it do its work?
    Ready,
    /// `/startupz`: has it come up?
    Startup,
}

impl Probe {
    /// Every probe.
    pub const ALL: [Self; 3] = [Self::Live, Self::Ready, Self::Startup];

    /// Its name, which is its path.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Live => "livez",
            Self::Ready => "readyz",
            Self::Startup => "startupz",
        }
    }
}

/// The answer to a probe.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    status: &'static str,
    checks: BTreeMap<&'static str, Check>,
    version: &'static str,
    draining: bool,
}

impl Answer {
    /// Whether all is well.
    pub fn is_ok(&self) -> bool {
        self.status == "ok"
    }
}

impl Default for Health {
    fn default() -> Self {
        // Only a time that is named for this very process is one.
        let watchdog = sd_notify::watchdog_enabled().map(|every| every / 2);
        Self(Arc::new(State {
            begun: Instant::now(),
            ticked: AtomicU64::new(0),
            told: AtomicU64::new(0),
            started: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            checks: Mutex::default(),
            watchdog,
        }))
    }
}

impl Health {
    /// The loop has come round. Told systemd as often as it wants to hear it, and that a process which leaves still does.
    pub fn tick(&self) {
        let now = self.millis();
        self.0.ticked.store(now, Ordering::Relaxed);
        let since = Duration::from_millis(now.saturating_sub(self.0.told.load(Ordering::Relaxed)));
        if self.0.watchdog.is_some_and(|every| since >= every) {
            tell(&[NotifyState::Watchdog]);
            self.0.told.store(now, Ordering::Relaxed);
        }
        if self.0.draining.load(Ordering::Relaxed) {
            tell(&[NotifyState::ExtendTimeoutUsec(u32::try_from(MORE.as_micros()).unwrap_or(u32::MAX))]);
        }
    }

    /// It has come up: settings are right, places were opened, the broker was asked.
    pub fn started(&self) {
        if !self.0.started.swap(true, Ordering::Relaxed) {
            tell(&[NotifyState::Ready]);
        }
    }

    /// It takes no more work.
    pub fn draining(&self) {
        if !self.0.draining.swap(true, Ordering::Relaxed) {
            tell(&[NotifyState::Stopping]);
        }
    }

    /// How one part of its work stands: well, or why not. It is ready while all that ever reported do well, and one did.
    pub fn report(&self, name: &'static str, stands: Result<(), &str>) {
        let mut checks = self.0.checks.lock().unwrap_or_else(PoisonError::into_inner);
        let (ok, detail) = (stands.is_ok(), stands.err().unwrap_or_default());
        match checks.get_mut(name).filter(|check| check.ok == ok) {
            Some(check) if check.detail == detail => {}
            Some(check) => detail.clone_into(&mut check.detail),
            None => drop(checks.insert(name, Check { ok, since: Timestamp::now(), detail: detail.to_owned() })),
        }
    }

    /// Answers a probe.
    pub fn answer(&self, probe: Probe) -> Answer {
        let draining = self.0.draining.load(Ordering::Relaxed);
        let checks = match probe {
            Probe::Live => BTreeMap::from([("loop", self.alive())]),
            Probe::Ready => self.ready(draining),
            Probe::Startup => BTreeMap::from([("started", self.has_started())]),
        };
        let status = if checks.values().all(|check| check.ok) { "ok" } else { "unavailable" };
        Answer { status, checks, version: VERSION, draining }
    }

    fn alive(&self) -> Check {
        let ticked = self.0.ticked.load(Ordering::Relaxed);
        let ago = Duration::from_millis(self.millis().saturating_sub(ticked));
        let (ok, detail) = match ticked {
            0 => (true, "not begun".to_owned()),
            _ => (ago < HUNG, format!("came round {:.1} s ago", ago.as_secs_f64())),
        };
        Check { ok, since: Timestamp::now() - ago, detail }
    }

    fn has_started(&self) -> Check {
        let ok = self.0.started.load(Ordering::Relaxed);
        Check { ok, since: Timestamp::now() - self.0.begun.elapsed(), detail: String::new() }
    }

    fn ready(&self, draining: bool) -> BTreeMap<&'static str, Check> {
        let mut checks = self.0.checks.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if checks.is_empty() {
            let detail = "nothing has reported yet".to_owned();
            checks.insert("started", Check { detail, ok: false, ..self.has_started() });
        }
        if draining {
            let detail = "takes no more work".to_owned();
            checks.insert("draining", Check { ok: false, since: Timestamp::now(), detail });
        }
        checks
    }

    /// 1 at least.
    fn millis(&self) -> u64 {
        u64::try_from(self.0.begun.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
    }

    /// As if the loop had come round last so long ago.
    #[cfg(test)]
    fn hung_for(&mut self, length: Duration) {
        let state = Arc::get_mut(&mut self.0).unwrap();
        state.begun = state.begun.checked_sub(length).unwrap();
    }
}

/// Tells systemd, where it listens; without it nothing is said to anybody.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd could not be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ok(health: &Health) -> [bool; 3] {
        Probe::ALL.map(|probe| health.answer(probe).is_ok())
    }

    #[test]
    fn a_process_is_ready_when_its_parts_say_so_and_it_does_not_leave() {
        let health = Health::default();
        assert_eq!(ok(&health), [true, false, false], "alive, and no more");
        health.started();
        assert_eq!(ok(&health), [true, false, true]);
        health.report("consuming", Ok(()));
        assert_eq!(ok(&health), [true, true, true]);
        health.report("paused", Err("queue a is paused"));
        let answer = health.answer(Probe::Ready);
        assert!(!answer.is_ok() && answer.checks["paused"].detail.contains("queue a") && answer.checks["consuming"].ok);
        health.report("paused", Ok(()));
        health.draining();
        assert_eq!(ok(&health), [true, false, true], "draining");
        let body = serde_json::to_value(health.answer(Probe::Ready)).unwrap();
        assert_eq!((&body["status"], &body["draining"]), (&"unavailable".into(), &true.into()));
        assert_eq!(body["checks"]["draining"]["ok"], false);
    }

    #[test]
    fn only_a_loop_that_does_not_come_round_is_dead() {
        let mut health = Health::default();
        health.report("consuming", Err("the broker is away"));
        health.hung_for(Duration::from_secs(60));
        assert!(health.answer(Probe::Live).is_ok(), "it has not begun");
        health.tick();
        assert!(health.answer(Probe::Live).is_ok());
        health.hung_for(Duration::from_secs(16));
        assert!(!health.answer(Probe::Live).is_ok());
        health.tick();
        assert!(health.answer(Probe::Live).is_ok());
    }
}
