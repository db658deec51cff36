//! One limit key's gate, as pure arithmetic on given moments: what shuts it, for how long, and who may try it.
//! Who asks, and which lanes lie behind it, is `mod.rs`.

use std::time::Duration;

use tokio::time::Instant;

use crate::job::JobId;
use crate::outcome::{Failure, FailureClass, Outcome};
use crate::time::Timestamp;

/// Failures in a row that mean an outage: few enough to spare attempts, too many for one poisonous job.
pub(super) const TRIP: usize = 5;
/// The first and the longest wait of a shut gate that nobody named a time for.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Between two probes of an account: a person has to act, and a probe may cost money.
const ACCOUNT_PAUSE: Duration = Duration::from_secs(600);
/// No gate stays shut longer on the other side's word alone: as long as a job waits to run unless told otherwise.
const LONGEST: Duration = Duration::from_secs(7 * 86_400);

/// What is known of one limit key.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// The jobs of the failures in a row, at most [`TRIP`].
    streak: Vec<JobId>,
    /// Why and until when nothing passes.
    pub(super) shut: Option<Shut>,
    /// The last wait for a rate limit that named no time; grows until a success.
    throttle_pause: Option<Duration>,
    /// One more with each shutting, so that calls begun before are told apart.
    turn: u64,
}

/// A gate that is shut.
#[derive(Debug)]
pub(super) struct Shut {
    pub(super) class: FailureClass,
    pub(super) detail: String,
    pub(super) since: Timestamp,
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
}

/// What a report came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ruling {
    /// The failure is the outage's doing, not the job's: it counts as `capacity` and spends no attempt.
    pub outage: bool,
    /// The gate is shut; the job should wait at least this long.
    pub wait: Option<Duration>,
    /// The gate was shut before this report and is open now: what was held back may go on.
    pub opened: bool,
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

    /// How many jobs may pass now: none, one (a probe), or any number.
    pub(super) fn room(&self, now: Instant) -> u32 {
        match &self.shut {
            None => u32::MAX,
            Some(shut) => u32::from(!shut.probing && shut.class != FailureClass::Throttled && now >= shut.until),
        }
    }

    /// Lets a job pass, or says how long it should wait and why.
    pub(super) fn admit(&mut self, now: Instant) -> Result<Ticket, (Duration, FailureClass)> {
        let room = self.room(now);
        match &mut self.shut {
            None => Ok(Ticket { probe: false, turn: self.turn }),
            Some(shut) if room > 0 => {
                shut.probing = true;
                Ok(Ticket { probe: true, turn: self.turn })
            }
            Some(shut) => Err((shut.wait(now), shut.class)),
        }
    }

    /// A job that passed came to nothing that says anything about the other side.
    pub(super) fn give_back(&mut self, ticket: Ticket) {
        if let Some(shut) = self.shut.as_mut().filter(|_| ticket.probe && ticket.turn == self.turn) {
            shut.probing = false;
        }
    }

    /// Takes note of what a job that passed came to.
    pub(super) fn report(&mut self, now: Instant, ticket: Ticket, job: JobId, outcome: &Outcome) -> Ruling {
        let before = self.shut.is_some();
        let mut outage = false;
        match outcome {
            Outcome::Success(_) => self.answered(ticket, true),
            Outcome::Failure(failure) => match failure.class {
                FailureClass::Throttled => self.throttled(now, ticket, failure),
                FailureClass::Account => self.refused(now, failure),
                FailureClass::Capacity | FailureClass::UnknownBilled => self.failed(now, ticket, job, failure),
                // A program's failure has no status and says nothing about the others of its key.
                FailureClass::Transient if failure.status_code.is_some() => {
                    self.failed(now, ticket, job, failure);
                    outage = self.shut.as_ref().is_some_and(|shut| shut.class == FailureClass::Capacity);
                }
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
        let wait = self.shut.as_ref().map(|shut| shut.wait(now));
        Ruling { outage, wait, opened: before && self.shut.is_none() }
    }

    /// The other side works: an outage is over; an account only when the call began after it was shut.
    fn answered(&mut self, ticket: Ticket, success: bool) {
        self.streak.clear();
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
                shut.until = now + wait;
                shut.probing = false;
            }
            _ => self.shut_for(now, failure, FailureClass::Account, wait),
        }
    }

    fn failed(&mut self, now: Instant, ticket: Ticket, job: JobId, failure: &Failure) {
        let probe = ticket.probe && ticket.turn == self.turn;
        match &mut self.shut {
            Some(shut) if probe => {
                shut.pause = (shut.pause * 2).min(PAUSE.1.max(shut.pause));
                shut.until = now + shut.pause.max(asked(failure));
                shut.probing = false;
            }
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

    fn shut_for(&mut self, now: Instant, failure: &Failure, class: FailureClass, wait: Duration) {
        let since = Timestamp::now();
        let pause = if class == FailureClass::Account { ACCOUNT_PAUSE } else { PAUSE.0 };
        let detail = format!("{}: {}", failure.code, failure.detail);
        self.shut = Some(Shut { class, detail, since, until: now + wait, pause, probing: false });
        self.streak.clear();
        self.turn += 1;
    }

    /// Whether nothing would be lost by forgetting it.
    pub(super) fn is_plain(&self) -> bool {
        self.shut.is_none() && self.streak.is_empty() && self.throttle_pause.is_none()
    }
}

fn asked(failure: &Failure) -> Duration {
    failure.retry_after.unwrap_or_default().min(LONGEST)
}

impl Shut {
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
mod tests {
    use super::*;
    use crate::outcome::Reply;

    const SECOND: Duration = Duration::from_secs(1);

    fn failure(class: FailureClass) -> Outcome {
        let mut failure = Failure::new(class, "code", "said so");
        failure.status_code = (class != FailureClass::Capacity).then_some(500);
        Outcome::Failure(failure)
    }

    fn success() -> Outcome {
        Outcome::Success(Reply::default())
    }

    /// Sends one job through and reports what it came to.
    fn send(gate: &mut Gate, now: Instant, outcome: &Outcome) -> Ruling {
        let ticket = gate.admit(now).expect("the gate lets it pass");
        gate.report(now, ticket, JobId::fresh(), outcome)
    }

    fn tripped(now: Instant) -> Gate {
        let mut gate = Gate::default();
        for n in 1..=TRIP {
            assert_eq!(gate.room(now), u32::MAX, "open before failure {n}");
            let ruling = send(&mut gate, now, &failure(FailureClass::Transient));
            assert_eq!(ruling.outage, n == TRIP, "the failure that trips it spends no attempt either");
        }
        assert_eq!(gate.room(now), 0);
        gate
    }

    #[test]
    fn five_failures_in_a_row_shut_the_gate_and_one_probe_opens_it() {
        let now = Instant::now();
        let mut gate = tripped(now);
        let probe_at = now + SECOND;
        assert_eq!(gate.room(probe_at), 1);
        let probe = gate.admit(probe_at).unwrap();
        assert!(probe.probe && gate.admit(probe_at).is_err(), "one at a time");
        assert!(gate.report(probe_at, probe, JobId::fresh(), &success()).opened);
        assert_eq!(gate.room(probe_at), u32::MAX);
    }

    #[test]
    fn failed_probes_come_further_apart_up_to_a_minute() {
        let mut now = Instant::now();
        let mut gate = tripped(now);
        let mut waits = Vec::new();
        for _ in 0..8 {
            now = gate.shut.as_ref().unwrap().until;
            let ruling = send(&mut gate, now, &failure(FailureClass::Transient));
            assert!(ruling.outage);
            waits.push(ruling.wait.unwrap().as_secs());
        }
        assert_eq!(waits, [2, 4, 8, 16, 32, 60, 60, 60]);
    }

    #[test]
    fn one_job_alone_does_not_shut_the_gate_but_nobody_reached_does() {
        let (now, job) = (Instant::now(), JobId::fresh());
        let mut gate = Gate::default();
        for _ in 0..20 {
            let ticket = gate.admit(now).unwrap();
            gate.report(now, ticket, job, &failure(FailureClass::Transient));
        }
        assert_eq!(gate.room(now), u32::MAX);
        for _ in 0..TRIP {
            let ticket = gate.admit(now).unwrap();
            gate.report(now, ticket, job, &failure(FailureClass::Capacity));
            if gate.shut.is_some() {
                break;
            }
        }
        assert_eq!(gate.room(now), 0);
    }

    #[test]
    fn an_answer_between_failures_begins_the_count_again() {
        let now = Instant::now();
        let mut gate = Gate::default();
        for n in 0..40 {
            let class = if n % 4 == 3 { FailureClass::Fatal } else { FailureClass::Transient };
            send(&mut gate, now, &failure(class));
        }
        assert_eq!(gate.room(now), u32::MAX);
    }

    #[test]
    fn programs_that_fail_hold_nobody_back() {
        let now = Instant::now();
        let mut gate = Gate::default();
        for _ in 0..20 {
            let outcome = Outcome::Failure(Failure::new(FailureClass::Transient, "exit_1", ""));
            assert!(!send(&mut gate, now, &outcome).outage);
        }
        assert_eq!(gate.room(now), u32::MAX);
    }

    #[test]
    fn a_rate_limit_shuts_until_its_time_and_grows_without_one() {
        let now = Instant::now();
        let mut gate = Gate::default();
        let mut named = Failure::new(FailureClass::Throttled, "rate_limit", "");
        named.retry_after = Some(SECOND * 7);
        assert_eq!(send(&mut gate, now, &Outcome::Failure(named)).wait, Some(SECOND * 7));
        assert_eq!((gate.room(now + SECOND * 6), gate.pass_time(now + SECOND * 6)), (0, false));
        assert!(gate.pass_time(now + SECOND * 7));
        let mut gate = Gate::default();
        let mut at = now;
        for seconds in [1, 2, 4] {
            let (first, late) = (gate.admit(at).unwrap(), gate.admit(at).unwrap());
            let ruling = gate.report(at, first, JobId::fresh(), &failure(FailureClass::Throttled));
            assert_eq!(ruling.wait, Some(SECOND * seconds));
            let same = gate.report(at, late, JobId::fresh(), &failure(FailureClass::Throttled));
            assert_eq!(same.wait, ruling.wait, "a call begun before says nothing new");
            at += SECOND * seconds;
            assert!(gate.pass_time(at));
        }
    }

    #[test]
    fn an_account_is_probed_every_ten_minutes_and_not_opened_by_older_calls() {
        let now = Instant::now();
        let mut gate = Gate::default();
        let older = gate.admit(now).unwrap();
        send(&mut gate, now, &failure(FailureClass::Account));
        assert!(!gate.report(now, older, JobId::fresh(), &success()).opened);
        assert_eq!((gate.room(now + SECOND * 599), gate.room(now + SECOND * 600)), (0, 1));
        let wait = send(&mut gate, now + SECOND * 600, &failure(FailureClass::Account)).wait;
        assert_eq!(wait, Some(SECOND * 600));
        assert!(send(&mut gate, now + SECOND * 1_200, &success()).opened);
    }

    #[test]
    fn a_probe_given_back_lets_the_next_one_through() {
        let now = Instant::now();
        let mut gate = tripped(now);
        let probe = gate.admit(now + SECOND).unwrap();
        assert_eq!(gate.room(now + SECOND), 0);
        gate.give_back(probe);
        assert_eq!(gate.room(now + SECOND), 1);
    }
}
