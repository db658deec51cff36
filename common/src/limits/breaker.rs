//! One limit key's gate, or one account's, as pure arithmetic on given moments: what shuts it, for how long, and who may
//! try it. Who asks is `mod.rs`, which lanes lie behind it `ways.rs`; how many an open gate lets through at once, `aimd.rs`.

use std::time::Duration;

use tokio::time::Instant;

use super::aimd::{Aimd, Sign};
use crate::job::{JobId, Lane};
use crate::outcome::{Failure, FailureClass, Outcome};
use crate::time::Timestamp;

/// Failures in a row that mean an outage: few enough to spare attempts, too many for one poisonous job.
pub(super) const TRIP: usize = 5;
/// The first and the longest wait of a shut gate that nobody named a time for.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Between two probes of an account: a person has to act, and a probe may cost money.
const ACCOUNT_PAUSE: Duration = Duration::from_secs(600);
/// Jobs in a row that found no such model, and how long nobody asks for it then: its name is wrong here, or it is not
/// there yet.
const MISSING: (usize, Duration) = (3, Duration::from_secs(60));
/// No gate stays shut longer on the other side's word alone: as long as a job waits to run unless told otherwise.
const LONGEST: Duration = Duration::from_secs(7 * 86_400);

/// What is known of one limit key.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// The jobs of the failures in a row, at most [`TRIP`].
    streak: Vec<JobId>,
    /// The jobs in a row, less than [`MISSING`], for which there was no such model.
    missing: Vec<JobId>,
    /// Why and until when nothing passes.
    pub(super) shut: Option<Shut>,
    /// The last wait for a rate limit that named no time; grows until a success.
    throttle_pause: Option<Duration>,
    /// One more with each shutting, so that calls begun before are told apart.
    turn: u64,
    /// How many calls go at once, for those over a network.
    pub(super) endpoint: Option<Box<Aimd>>,
    /// A job has passed since somebody asked.
    used: bool,
}

/// A gate that is shut.
#[derive(Debug)]
pub(super) struct Shut {
    pub(super) class: FailureClass,
    pub(super) detail: String,
    pub(super) since: Timestamp,
    /// The same by this process's own clock.
    pub(super) began: Instant,
    /// When a throttled gate opens, and when the others let a probe through.
    pub(super) until: Instant,
    pause: Duration,
    pub(super) probing: bool,
}

/// Leave to pass a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    pub(super) probe: bool,
    turn: u64,
    /// When its call began, if it goes over a network.
    pub(super) called: Option<Instant>,
}

/// What a report came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ruling {
    /// The failure is the outage's doing, not the job's: it counts as `capacity` and spends no attempt.
    pub outage: bool,
    /// The gate is shut; the job should wait at least this long.
    pub wait: Option<Duration>,
    /// So is the account, which the gate says nothing of.
    pub account: Option<Duration>,
    /// The gate is shut by this very report, and not by a rate limit.
    pub shut: bool,
    /// The gate was shut before this report and is open now: what was held back may go on.
    pub opened: bool,
    /// The endpoint has too much to do: only so many calls go there at once from now on.
    pub at_once: Option<u32>,
}

impl Gate {
    /// Opens a throttled gate whose time is over. Says whether it did.
    pub(super) fn pass_time(&mut self, now: Instant) -> bool {
        let over = self.shut.as_ref().is_some_and(|shut| shut.class == FailureClass::Throttled && now >= shut.until);
        if over {
            self.shut = None;
        }
        over
    }

    /// Whether it is shut, and not by a rate limit.
    pub(super) fn is_down(&self) -> bool {
        self.shut.as_ref().is_some_and(|shut| shut.class != FailureClass::Throttled)
    }

    /// How long a job held back here waits at least, if it is shut.
    pub(super) fn wait(&self, now: Instant) -> Option<Duration> {
        self.shut.as_ref().map(|shut| shut.wait(now))
    }

    /// How many jobs may pass now: none, one (a probe), as many as go at once, or any number.
    pub(super) fn room(&self, now: Instant) -> u32 {
        match &self.shut {
            None => self.endpoint.as_ref().map_or(u32::MAX, |endpoint| endpoint.room()),
            Some(shut) => u32::from(!shut.probing && shut.class != FailureClass::Throttled && now >= shut.until),
        }
    }

    /// The same for one of the lanes behind it.
    pub(super) fn room_of(&self, lane: &Lane, now: Instant) -> u32 {
        match self.endpoint.as_ref().filter(|_| self.shut.is_none()) {
            Some(endpoint) => endpoint.room_of(lane, now),
            None => self.room(now),
        }
    }

    /// Whether any number of jobs may pass.
    pub(super) fn is_open(&self) -> bool {
        self.shut.is_none() && self.endpoint.as_ref().is_none_or(|endpoint| endpoint.most().is_none())
    }

    /// Lets a job pass, or says how long it should wait and why. A job that was leased runs although others got the room
    /// meanwhile: giving it back would cost more than one call too many.
    pub(super) fn admit(&mut self, now: Instant, is_call: bool) -> Result<Ticket, (Duration, FailureClass)> {
        let room = self.room(now);
        let probe = match &mut self.shut {
            None => false,
            Some(shut) if room > 0 => {
                shut.probing = true;
                true
            }
            Some(shut) => return Err((shut.wait(now), shut.class)),
        };
        if is_call {
            self.endpoint.get_or_insert_default().begun(now);
        }
        self.used = true;
        Ok(Ticket { probe, turn: self.turn, called: is_call.then_some(now) })
    }

    /// Whether a job has passed since this was asked last, or waits to.
    pub(super) fn was_used(&mut self) -> bool {
        std::mem::take(&mut self.used) || self.shut.is_some()
    }

    /// Another worker was refused: shut by a rate limit from `began` until then, unless something graver has shut it. Whether
    /// that is news.
    pub(super) fn freeze(&mut self, (began, until): (Instant, Instant), why: &str) -> bool {
        match &mut self.shut {
            Some(shut) if shut.class == FailureClass::Throttled => {
                let is_longer = until > shut.until;
                shut.until = shut.until.max(until);
                is_longer
            }
            Some(_) => false,
            None => {
                self.shut_by((FailureClass::Throttled, why.to_owned()), (began, until), PAUSE.0);
                true
            }
        }
    }

    /// A job that passed never came to anything.
    pub(super) fn leave(&mut self, now: Instant, ticket: Ticket) {
        self.call_ended(now, ticket, |_| Sign::Nothing);
        self.give_back(ticket);
    }

    /// Opens it, whatever is known: a person knows better. Says whether it was shut, or bounded.
    pub(super) fn release(&mut self) -> bool {
        let was_open = self.is_open();
        self.shut = None;
        self.streak.clear();
        self.missing.clear();
        self.throttle_pause = None;
        if let Some(endpoint) = &mut self.endpoint {
            endpoint.release();
        }
        !was_open
    }

    /// How many go at once from now on, if that is fewer for it.
    fn call_ended(&mut self, now: Instant, ticket: Ticket, sign: impl FnOnce(Duration) -> Sign) -> Option<u32> {
        let (began, endpoint) = ticket.called.zip(self.endpoint.as_mut())?;
        let took = now.saturating_duration_since(began);
        if endpoint.ended(now, began, sign(took)) { endpoint.most() } else { None }
    }

    /// A job that passed came to nothing that says anything about the other side.
    fn give_back(&mut self, ticket: Ticket) {
        if let Some(shut) = self.shut.as_mut().filter(|_| ticket.probe && ticket.turn == self.turn) {
            shut.probing = false;
        }
    }

    /// Takes note of what a job that passed came to.
    pub(super) fn report(&mut self, now: Instant, ticket: Ticket, job: JobId, outcome: &Outcome) -> Ruling {
        let (before, was_down) = (self.shut.is_some(), self.is_down());
        let at_once = self.call_ended(now, ticket, |took| Sign::of(outcome, took));
        let mut outage = false;
        match outcome {
            Outcome::Success(_) => self.answered(ticket, true),
            Outcome::Failure(failure) => match failure.class {
                FailureClass::Throttled => self.throttled(now, ticket, failure),
                // Whoever refuses is there; the rest is its account's affair.
                FailureClass::Account => self.answered(ticket, false),
                FailureClass::Capacity | FailureClass::UnknownBilled => self.failed(now, ticket, job, failure),
                // A program's failure has no status and says nothing about the others of its key.
                FailureClass::Transient if failure.status_code.is_some() => {
                    self.failed(now, ticket, job, failure);
                    outage = self.shut.as_ref().is_some_and(|shut| shut.class == FailureClass::Capacity);
                }
                FailureClass::Fatal if failure.is_missing_model() => outage = self.not_there(now, ticket, job, failure),
                FailureClass::Fatal | FailureClass::Content if failure.status_code.is_some() => {
                    self.answered(ticket, false);
                }
                FailureClass::Transient
                | FailureClass::TimedOut
                | FailureClass::Fatal
                | FailureClass::Content
                | FailureClass::Crashed => self.give_back(ticket),
            },
        }
        let (opened, shut) = (before && self.shut.is_none(), !was_down && self.is_down());
        Ruling { outage, wait: self.wait(now), account: None, shut, opened, at_once }
    }

    /// The same of an account, whose gate this is: which model is down, or slow, is none of its affair.
    pub(super) fn report_account(&mut self, now: Instant, ticket: Option<Ticket>, outcome: &Outcome) {
        let failure = match outcome {
            Outcome::Success(_) => None,
            Outcome::Failure(failure) if failure.class == FailureClass::Account => return self.refused(now, failure),
            Outcome::Failure(failure) => Some(failure),
        };
        let Some(ticket) = ticket else { return };
        let Some(failure) = failure else { return self.answered(ticket, true) };
        match failure.class {
            // Answering "later" is answering.
            FailureClass::Throttled => self.answered(ticket, true),
            // A program's failure is its job's, and says nothing of the account.
            FailureClass::Transient if failure.status_code.is_none() => self.give_back(ticket),
            FailureClass::Capacity | FailureClass::UnknownBilled | FailureClass::Transient => {
                if let Some(shut) = self.shut.as_mut().filter(|_| ticket.probe && ticket.turn == self.turn) {
                    shut.probe_failed(now, failure);
                }
            }
            FailureClass::Account
            | FailureClass::TimedOut
            | FailureClass::Fatal
            | FailureClass::Content
            | FailureClass::Crashed => self.give_back(ticket),
        }
    }

    /// The other side works: an outage is over; an account only when the call began after it was shut.
    fn answered(&mut self, ticket: Ticket, success: bool) {
        self.streak.clear();
        self.missing.clear();
        if success {
            self.throttle_pause = None;
        }
        let over = self.shut.as_ref().is_some_and(|shut| {
            let tried = success && ticket.probe && ticket.turn == self.turn;
            shut.class == FailureClass::Capacity || (shut.class == FailureClass::Account && tried)
        });
        if over {
            self.shut = None;
        } else {
            self.give_back(ticket);
        }
    }

    fn throttled(&mut self, now: Instant, ticket: Ticket, failure: &Failure) {
        self.streak.clear();
        let fresh = ticket.turn == self.turn;
        let pause = match self.throttle_pause {
            Some(pause) if fresh => (pause * 2).min(PAUSE.1),
            Some(pause) => pause,
            None => PAUSE.0,
        };
        self.throttle_pause = Some(pause);
        let wait = failure.retry_after.map_or(pause, |wait| wait.min(LONGEST));
        match &mut self.shut {
            Some(shut) if shut.class == FailureClass::Throttled => shut.until = shut.until.max(now + wait),
            Some(_) if !(fresh && ticket.probe) => {}
            // Answering "later" is answering: an outage or a dead account is over.
            _ => self.shut_for(now, failure, FailureClass::Throttled, wait),
        }
    }

    fn refused(&mut self, now: Instant, failure: &Failure) {
        self.streak.clear();
        let wait = asked(failure).max(ACCOUNT_PAUSE);
        match &mut self.shut {
            Some(shut) if shut.class == FailureClass::Account => {
                // A time that was named holds against words without one.
                let least = if failure.retry_after.is_some() { now } else { shut.until };
                shut.until = least.max(now + wait);
                shut.probing = false;
            }
            _ => self.shut_for(now, failure, FailureClass::Account, wait),
        }
    }

    fn failed(&mut self, now: Instant, ticket: Ticket, job: JobId, failure: &Failure) {
        let probe = ticket.probe && ticket.turn == self.turn;
        match &mut self.shut {
            Some(shut) if probe => shut.probe_failed(now, failure),
            Some(_) => {}
            None => {
                // One job may fail for its own reasons any number of times; nobody reached is nobody's own reason.
                if failure.class == FailureClass::Capacity || !self.streak.contains(&job) {
                    self.streak.push(job);
                }
                if self.streak.len() >= TRIP {
                    let wait = asked(failure).max(PAUSE.0);
                    self.shut_for(now, failure, FailureClass::Capacity, wait);
                }
            }
        }
    }

    /// There is no such model. Whether it has been so for several jobs, so that it is no one job's fault.
    fn not_there(&mut self, now: Instant, ticket: Ticket, job: JobId, failure: &Failure) -> bool {
        self.streak.clear();
        match &mut self.shut {
            Some(shut) if ticket.probe && ticket.turn == self.turn => shut.probe_failed(now, failure),
            Some(_) => {}
            None => {
                if !self.missing.contains(&job) {
                    self.missing.push(job);
                }
                if self.missing.len() >= MISSING.0 {
                    self.shut_for(now, failure, FailureClass::Capacity, asked(failure).max(MISSING.1));
                }
            }
        }
        self.is_down()
    }

    fn shut_for(&mut self, now: Instant, failure: &Failure, class: FailureClass, wait: Duration) {
        let missing = failure.is_missing_model();
        let pause = if missing { MISSING.1 } else { PAUSE.0 };
        let pause = if class == FailureClass::Account { ACCOUNT_PAUSE } else { pause };
        self.shut_by((class, format!("{}: {}", failure.code, failure.detail)), (now, now + wait), pause);
        if let Some(endpoint) = self.endpoint.as_mut().filter(|_| class == FailureClass::Capacity && !missing) {
            endpoint.outage(now);
        }
    }

    fn shut_by(
        &mut self,
        (class, detail): (FailureClass, String),
        (began, until): (Instant, Instant),
        pause: Duration,
    ) {
        let since = Timestamp::now();
        self.shut = Some(Shut { class, detail, since, began, until, pause, probing: false });
        self.streak.clear();
        self.missing.clear();
        self.turn += 1;
    }

    /// Whether nothing would be lost by forgetting it.
    pub(super) fn is_plain(&self) -> bool {
        let idle = self.endpoint.as_ref().is_none_or(|endpoint| endpoint.is_plain());
        let counts = !self.streak.is_empty() || !self.missing.is_empty() || self.throttle_pause.is_some();
        self.shut.is_none() && !counts && idle
    }
}

fn asked(failure: &Failure) -> Duration {
    failure.retry_after.unwrap_or_default().min(LONGEST)
}

impl Shut {
    /// It was tried in vain: longer until the next time.
    fn probe_failed(&mut self, now: Instant, failure: &Failure) {
        self.pause = (self.pause * 2).min(PAUSE.1.max(self.pause));
        self.until = now + self.pause.max(asked(failure));
        self.probing = false;
    }

    /// What a job held back waits at least: until the gate is tried, and while a probe is out, its next one.
    fn wait(&self, now: Instant) -> Duration {
        self.until.saturating_duration_since(now).max(PAUSE.0)
    }

    /// When the gate changes by itself, if it does.
    pub(super) fn turns_at(&self) -> Option<Instant> {
        (!self.probing).then_some(self.until)
    }
}

#[cfg(test)]
#[path = "tests/breaker.rs"]
mod tests;
