//! The limit keys whose flex tier had no room: who of the jobs that ask for it may ask again, and when the others come.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use promptq_common::job::Job;
use promptq_common::outcome::Failure;
use promptq_common::time::Timestamp;
use tokio::time::Instant;

use super::{flex, is_full, spare, standard};

/// The first and the longest wait for room in the flex tier of a limit key, of which nobody named a time.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Keys remembered whose flex tier had no room, and for how long: that is also the longest wait that is named and kept.
const REMEMBERED: (usize, Duration) = (1_000, Duration::from_secs(600));
/// From one waiting job's turn to the next one's, on average: each that comes in vain is leased and given back.
const STEP: Duration = Duration::from_millis(100);
/// The turns of all of them are within so long, however many wait.
const SPREAD: Duration = Duration::from_secs(600);
/// Once calls were served for so long, or for as long as the last wait was, and none refused, all that wait are woken: room
/// for one call alone would have all of them leased in vain.
const SETTLED: Duration = Duration::from_secs(5);
/// Jobs that come so many within such a time have not come by their turns: another worker has found room and woken them, or
/// they are new, or very many.
const RUSH: (u32, Duration) = (50, Duration::from_secs(1));

/// The limit keys whose flex tier had no room lately.
#[derive(Debug, Default)]
pub(crate) struct Full(Mutex<HashMap<String, Shut>>);

#[derive(Debug)]
struct Shut {
    /// One job may ask again then.
    until: Instant,
    pause: Duration,
    probing: bool,
    /// When a job was refused last.
    since: Instant,
    /// The last turn that a waiting job was given.
    turn: Instant,
    /// How many were given a turn within the [`RUSH`] that began then.
    given: (Instant, u32),
    /// Since when calls are served, and whether those that wait were woken since.
    served: Option<(Instant, bool)>,
}

impl Shut {
    fn is_known(&self, now: Instant) -> bool {
        now < self.until + REMEMBERED.1
    }

    /// How long another job waits: one that may ask at once, and after it one at a time, not all in the same moment.
    fn next_turn(&mut self, now: Instant) -> Duration {
        let (last, step) = (self.until + SPREAD, STEP.mul_f64(rand::random::<f64>() * 2.0));
        let turn = self.turn.max(self.until) + step;
        self.turn = turn.min(last);
        if turn < last { turn - now } else { self.until + SPREAD.mul_f64(rand::random()) - now }
    }

    /// Whether another job may ask before it is time: once in the longest wait, in a rush.
    fn is_rush(&mut self, now: Instant) -> bool {
        let (begun, given) = &mut self.given;
        if now >= *begun + RUSH.1 {
            (*begun, *given) = (now, 0);
        }
        *given += u32::from(now >= *begun);
        let is_rush = *given >= RUSH.0;
        if is_rush {
            self.given = (now + PAUSE.1, 0);
        }
        is_rush
    }
}

/// What becomes of a job that asks for flex.
#[derive(Debug)]
pub(crate) enum Turn {
    /// It is called as it is.
    As,
    /// It waits.
    Wait(Duration),
    /// It is sent to the standard tier, as this job.
    Moved(Box<Job>),
}

impl Full {
    /// What becomes of a job by this way. One that asks for no flex is called as it is.
    pub(crate) fn turn(&self, job: &Job, key: &str) -> Turn {
        // What bodies say is read while nobody waits for this.
        if !self.is_shut(key) || flex(&job.work).is_none() {
            return Turn::As;
        }
        let spare = spare(job, Timestamp::now());
        if spare.is_zero() {
            return standard(job).map_or(Turn::As, Turn::Moved);
        }
        let (now, mut known) = (Instant::now(), self.known());
        let Some(shut) = known.get_mut(key).filter(|shut| shut.served.is_none()) else { return Turn::As };
        if now < shut.until && !shut.is_rush(now) {
            return Turn::Wait(shut.next_turn(now).min(spare));
        }
        (shut.until, shut.probing) = (shut.until.max(now + shut.pause), true);
        Turn::As
    }

    fn is_shut(&self, key: &str) -> bool {
        self.known().get(key).is_some_and(|shut| shut.served.is_none() && shut.is_known(Instant::now()))
    }

    /// A job was refused here, and would come back after so long. How long it is to wait, or how it is sent now.
    pub(crate) fn refused(&self, job: &Job, key: &str, (failure, after): (&Failure, Duration)) -> Turn {
        if !is_full(failure) || flex(&job.work).is_none() {
            return Turn::As;
        }
        let after = after.min(REMEMBERED.1);
        let (opens, turn) = self.shut(key, Instant::now(), failure.retry_after.unwrap_or_default().min(REMEMBERED.1));
        let spare = spare(job, Timestamp::now());
        if spare <= after.max(opens) {
            return standard(job).map_or(Turn::As, Turn::Moved);
        }
        Turn::Wait(after.max(turn).min(spare))
    }

    /// Shuts the flex tier of a key for so long at least. How long that is, and until the turn of the job that says so.
    fn shut(&self, key: &str, now: Instant, least: Duration) -> (Duration, Duration) {
        let mut known = self.known();
        if known.len() >= REMEMBERED.0 {
            known.retain(|_, shut| shut.is_known(now));
        }
        if known.len() >= REMEMBERED.0 && !known.contains_key(key) {
            return (least, least);
        }
        let (pause, given) = (PAUSE.0, (now, 0));
        let shut = Shut { until: now, pause, probing: false, since: now, turn: now, given, served: None };
        let shut = known.entry(key.to_owned()).or_insert(shut);
        (shut.since, shut.served) = (now, None);
        if std::mem::take(&mut shut.probing) {
            shut.pause = (shut.pause * 2).min(PAUSE.1);
        }
        shut.until = shut.until.max(now + shut.pause.max(least));
        (shut.until - now, shut.next_turn(now))
    }

    /// A job was answered that was called as it is. A call that had begun before another was refused tells of the room
    /// there was then.
    pub(crate) fn served(&self, job: &Job, key: &str, begun: Instant) {
        if !self.is_shut(key) || flex(&job.work).is_none() {
            return;
        }
        if let Some(shut) = self.known().get_mut(key).filter(|shut| begun >= shut.since) {
            shut.probing = false;
            shut.served.get_or_insert((Instant::now(), false));
        }
    }

    /// The keys that have room again since the last call: all that wait for it may go on.
    pub(crate) fn take_opened(&self) -> Vec<String> {
        let mut opened = Vec::new();
        for (key, shut) in self.known().iter_mut() {
            if let Some((since, woken)) = &mut shut.served
                && !*woken
                && since.elapsed() >= shut.pause.min(SETTLED)
            {
                (*woken, shut.pause) = (true, PAUSE.0);
                opened.push(key.clone());
            }
        }
        opened
    }

    /// Whether jobs that were put off here may still be waiting for their turns, or had them less than so long ago.
    pub(crate) fn has_turns(&self, grace: Duration) -> bool {
        let now = Instant::now();
        self.known().values().any(|shut| now < shut.turn + grace)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Shut>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use promptq_common::outcome::{FailureClass, Outcome};

    use super::super::tests::asks;
    use super::super::{MARGIN, heard};
    use super::*;

    /// A job that asks for flex and has no time, or a day.
    fn flex(is_late: bool) -> Job {
        let mut job = asks(r#"{"service_tier":"flex"}"#);
        job.deadline = job.created_at + Duration::from_secs(if is_late { 0 } else { 86_400 });
        job
    }

    fn failure(class: FailureClass, status_code: Option<u16>) -> Failure {
        Failure { status_code, ..Failure::new(class, "scripted", "") }
    }

    #[test]
    fn what_is_no_word_of_room_says_nothing_of_a_tier() {
        let full = Full::default();
        let job = flex(true);
        for (class, status) in
            [(FailureClass::Capacity, None), (FailureClass::Capacity, Some(500)), (FailureClass::Throttled, Some(429))]
        {
            let failure = failure(class, status);
            assert!(matches!(full.refused(&job, "k", (&failure, Duration::ZERO)), Turn::As), "{class} {status:?}");
            assert!(matches!(full.turn(&job, "k"), Turn::As) && heard(&job, &Outcome::Failure(failure)).is_none());
        }
        for status in [429, 498, 503] {
            let refused = failure(FailureClass::Capacity, Some(status));
            assert!(matches!(full.refused(&job, "k", (&refused, Duration::ZERO)), Turn::Moved(_)), "{status}");
            let heard = heard(&job, &Outcome::Failure(refused.clone()));
            assert_eq!(heard.is_some(), status != 503, "a whole endpoint that has too much to do is no tier's affair");
            assert!(super::super::heard(&asks("{}"), &Outcome::Failure(refused)).is_none());
        }
        assert!(matches!(full.turn(&job, "k"), Turn::Moved(_)));
        assert!(matches!((full.turn(&job, "other"), full.turn(&asks("{}"), "k")), (Turn::As, Turn::As)));
    }

    #[tokio::test(start_paused = true)]
    async fn one_job_asks_a_full_tier_at_a_time_and_less_and_less_often() {
        let full = Full::default();
        let (job, refusal) = (flex(false), failure(FailureClass::Capacity, Some(498)));
        let refused = |refusal: &Failure| match full.refused(&job, "k", (refusal, Duration::ZERO)) {
            Turn::Wait(wait) => wait.as_secs(),
            Turn::As | Turn::Moved(_) => panic!("it has time"),
        };
        assert_eq!([refused(&refusal), refused(&refusal)], [1, 1], "calls begun together are one sign");
        let mut waits = Vec::new();
        for _ in 0..8 {
            let Turn::Wait(wait) = full.turn(&job, "k") else { panic!("it is shut") };
            tokio::time::advance(wait).await;
            assert!(matches!((full.turn(&job, "k"), full.turn(&job, "k")), (Turn::As, Turn::Wait(_))), "one asks");
            waits.push(refused(&refusal));
        }
        assert_eq!(waits, [2, 4, 8, 16, 32, 60, 60, 60]);
        let named = Failure { retry_after: Some(Duration::from_secs(3_600)), ..refusal };
        assert_eq!(refused(&named), 600);
        full.served(&asks("{}"), "k", Instant::now());
        assert!(matches!(full.turn(&job, "k"), Turn::Wait(_)));
        full.served(&job, "k", Instant::now());
        assert!(matches!(full.turn(&job, "k"), Turn::As));
    }

    fn waits(turn: &Turn) -> Duration {
        let Turn::Wait(wait) = turn else { panic!("{turn:?}") };
        *wait
    }

    #[tokio::test(start_paused = true)]
    async fn jobs_have_their_turns_one_after_another_and_all_of_them_within_ten_minutes() {
        let (full, job, refusal) = (Full::default(), flex(false), failure(FailureClass::Capacity, Some(429)));
        let opens = waits(&full.refused(&job, "k", (&refusal, Duration::ZERO)));
        let mut turns: Vec<_> = (0..101).map(|_| full.turn(&job, "k")).collect();
        assert!(matches!(turns.remove(49), Turn::As), "in a rush one asks");
        let turns: Vec<_> = turns.iter().map(waits).collect();
        assert!(turns.is_sorted() && turns[0] > opens && turns[0] < opens + STEP * 4, "{turns:?}");
        assert!((50..=150).contains(&(turns[99].saturating_sub(opens).as_millis() / STEP.as_millis())), "{turns:?}");
        let mut by_second = vec![0; 602];
        for _ in 0..20_000 {
            by_second[usize::try_from(waits(&full.turn(&job, "k")).as_secs()).unwrap()] += 1;
        }
        assert!(by_second.iter().all(|turns| *turns < 100), "{by_second:?}");
        let mut soon = job.clone();
        soon.deadline = Timestamp::now() + job.policy.timeout + MARGIN + Duration::from_secs(9);
        soon.created_at = soon.deadline - Duration::from_secs(86_400);
        assert!(waits(&full.turn(&soon, "k")) <= Duration::from_secs(9), "its deadline comes first");
        assert!(full.has_turns(Duration::ZERO));
        tokio::time::advance(Duration::from_secs(602)).await;
        assert!(!full.has_turns(Duration::ZERO) && full.has_turns(Duration::from_secs(45)));
    }

    #[tokio::test(start_paused = true)]
    async fn room_for_one_call_wakes_nobody_and_room_for_a_while_all_of_them_once() {
        let (full, job, refusal) = (Full::default(), flex(false), failure(FailureClass::Capacity, Some(429)));
        let second = Duration::from_secs(1);
        for room in [Duration::from_millis(900), second] {
            let wait = waits(&full.refused(&job, "k", (&refusal, Duration::ZERO)));
            tokio::time::advance(wait).await;
            assert!(matches!(full.turn(&job, "k"), Turn::As), "one asks");
            full.served(&job, "k", Instant::now());
            assert!(matches!(full.turn(&job, "k"), Turn::As), "and others that come may go");
            tokio::time::advance(room).await;
            assert_eq!(full.take_opened().len(), usize::from(room == second));
        }
        tokio::time::advance(second * 60).await;
        assert!(full.take_opened().is_empty(), "they are woken already");
        assert!(matches!(full.turn(&job, "k"), Turn::As));
        assert!((1..3).contains(&waits(&full.refused(&job, "k", (&refusal, Duration::ZERO))).as_secs()));
    }
    #[tokio::test(start_paused = true)]
    async fn the_late_answer_of_a_call_that_had_begun_before_opens_nothing() {
        let (full, job, refusal) = (Full::default(), flex(false), failure(FailureClass::Capacity, Some(429)));
        let second = Duration::from_secs(1);
        let early = Instant::now();
        tokio::time::advance(second).await;
        let wait = waits(&full.refused(&job, "k", (&refusal, Duration::ZERO)));
        tokio::time::advance(wait).await;
        full.served(&job, "k", early);
        assert!(matches!((full.turn(&job, "k"), full.turn(&job, "k")), (Turn::As, Turn::Wait(_))), "one asks");
        let probe = Instant::now();
        tokio::time::advance(second * 10).await;
        full.served(&job, "k", early);
        assert!(full.take_opened().is_empty(), "nobody is woken");
        full.served(&job, "k", probe);
        tokio::time::advance(second * 10).await;
        assert_eq!(full.take_opened(), ["k"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_rush_of_jobs_that_another_worker_has_woken_has_one_ask_once_a_minute() {
        let (here, there, job) = (Full::default(), Full::default(), flex(false));
        let named = Some(Duration::from_secs(600));
        let refusal = Failure { retry_after: named, ..failure(FailureClass::Capacity, Some(429)) };
        for full in [&here, &there] {
            full.refused(&job, "k", (&refusal, Duration::ZERO));
        }
        let calls = |full: &Full, jobs| (0..jobs).filter(|_| matches!(full.turn(&job, "k"), Turn::As)).count();
        for _ in 0..100 {
            assert_eq!(calls(&here, 10), 0, "ten in a second come by their turns");
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(calls(&here, 5_000), 1);
        here.refused(&job, "k", (&refusal, Duration::ZERO));
        assert_eq!(calls(&here, 5_000), 0, "it has just asked");
        tokio::time::advance(Duration::from_secs(61)).await;
        assert_eq!(calls(&here, 49), 0);
        assert_eq!(calls(&here, 5_000), 1);
        here.served(&job, "k", Instant::now());
        assert_eq!((calls(&here, 5_000), calls(&there, 49)), (5_000, 0), "each worker finds out by itself");
    }
}
