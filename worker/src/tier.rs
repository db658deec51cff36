//! From the flex tier to the standard one. A job that asks for flex, costs less there and may be told that there is no room.
//! It waits for some, under one hold key with the others that do; once its deadline is near its call asks for no tier.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use promptq_common::job::Job;
use promptq_common::outcome::{Failure, FailureClass, Outcome};
use promptq_common::time::Timestamp;
use promptq_common::work::{Input, Work};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::Instant;

use crate::asked::Asked;
use crate::provider::request::replaced;
use crate::size::parameters;

/// Beside an attempt: two of the longest waits.
const MARGIN: Duration = Duration::from_secs(120);
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

/// What the attempts of a job say that was sent to the standard tier.
pub(crate) const MOVED: &str = "moved from the flex to the standard tier: the deadline is near";

/// Until when a job may wait for the flex tier: then there is time for one attempt by its whole timeout, and for two
/// minutes. At least the first half of the time that it has.
pub fn waits_until(job: &Job) -> Timestamp {
    let half = job.deadline.since(job.created_at) / 2;
    job.deadline - job.policy.timeout.saturating_add(MARGIN).min(half)
}

/// How long that is yet.
fn spare(job: &Job, now: Timestamp) -> Duration {
    waits_until(job).since(now)
}

/// The same job without a word of a tier, if it asks for flex.
pub(crate) fn standard(job: &Job) -> Option<Box<Job>> {
    let plain = replaced(parameters(&job.work), flex(&job.work)?, &serde_json::Value::Null)?;
    let mut work = job.work.clone();
    match &mut work.input {
        Input::Prompt(prompt) => prompt.params = plain,
        Input::Request { body, .. } => *body = plain,
    }
    Some(Box::new(Job { work, ..job.clone() }))
}

/// The place in its body where a job asks for flex; `None` of others, and where it says its tier twice.
fn flex(work: &Work) -> Option<&str> {
    #[derive(Deserialize)]
    struct Said<'a> {
        #[serde(borrow, alias = "serviceTier")]
        service_tier: &'a RawValue,
    }
    let body = parameters(work);
    if !body.to_ascii_lowercase().contains("flex") || Asked::of(work)?.tier()? != "flex" {
        return None;
    }
    let said: Said<'_> = serde_json::from_str(body).ok()?;
    Some(said.service_tier.get())
}

/// Whether somebody answered that there is no room now; who cannot be reached says nothing of a tier.
fn is_full(failure: &Failure) -> bool {
    failure.class == FailureClass::Capacity && matches!(failure.status_code, Some(429 | 498 | 503 | 529))
}

/// What the limits of a key hear in place of what came of a call. That the flex tier is full says nothing of the key's other
/// calls: whoever says so is there, and served nothing.
pub(crate) fn heard(job: &Job, outcome: &Outcome) -> Option<Outcome> {
    let Outcome::Failure(failure) = outcome else { return None };
    if !is_full(failure) || !matches!(failure.status_code, Some(429 | 498)) {
        return None;
    }
    flex(&job.work)?;
    Some(Outcome::Failure(Failure { class: FailureClass::Fatal, retry_after: None, ..failure.clone() }))
}

/// The limit keys whose flex tier had no room lately.
#[derive(Debug, Default)]
pub(crate) struct Full(Mutex<HashMap<String, Shut>>);

#[derive(Debug)]
struct Shut {
    /// One job may ask again then.
    until: Instant,
    pause: Duration,
    probing: bool,
    /// The last turn that a waiting job was given.
    turn: Instant,
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
        if now < shut.until {
            return Turn::Wait(shut.next_turn(now).min(spare));
        }
        (shut.until, shut.probing) = (now + shut.pause, true);
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
        let shut = Shut { until: now, pause: PAUSE.0, probing: false, turn: now, served: None };
        let shut = known.entry(key.to_owned()).or_insert(shut);
        shut.served = None;
        if std::mem::take(&mut shut.probing) {
            shut.pause = (shut.pause * 2).min(PAUSE.1);
        }
        shut.until = shut.until.max(now + shut.pause.max(least));
        (shut.until - now, shut.next_turn(now))
    }

    /// A job was answered that was called as it is.
    pub(crate) fn served(&self, job: &Job, key: &str) {
        if !self.is_shut(key) || flex(&job.work).is_none() {
            return;
        }
        if let Some(shut) = self.known().get_mut(key) {
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
    use promptq_common::job::Queue;
    use promptq_common::work::{Prompt, Work};

    use super::*;

    fn asks(body: &str) -> Job {
        let input = Input::Request { url: "/v1/chat/completions".into(), body: body.into() };
        Job::new(Queue::standard(), Work { model: None, input })
    }

    #[test]
    fn only_the_tier_of_a_job_that_asks_for_flex_is_taken_out() {
        let body = |text: &str| standard(&asks(text)).map(|job| parameters(&job.work).to_owned());
        for (asked, sent) in [
            (
                r#"{"service_tier": "flex","seed":12345678901234567890.0}"#,
                r#"{"service_tier": null,"seed":12345678901234567890.0}"#,
            ),
            (r#"{"n":1,"serviceTier":"FLEX"}"#, r#"{"n":1,"serviceTier":null}"#),
        ] {
            assert_eq!(body(asked).as_deref(), Some(sent));
        }
        for other in [
            r#"{"service_tier":"priority","messages":[{"content":"flex"}]}"#,
            r#"{"messages":[{"content":"flex","service_tier":"flex"}]}"#,
            r#"{"service_tier":"auto","service_tier":"flex"}"#,
            r#"{"service_tier":null,"user":"flex"}"#,
            "flex",
        ] {
            assert_eq!(body(other), None, "{other}");
        }
        let params = r#"{"service_tier":"flex"}"#.to_owned();
        let prompt = Input::Prompt(Prompt { text: "flex".into(), system: None, params });
        let moved = standard(&Job::new(Queue::standard(), Work { model: None, input: prompt })).unwrap();
        assert_eq!(parameters(&moved.work), r#"{"service_tier":null}"#);
    }

    #[test]
    fn a_job_may_wait_until_one_attempt_fits_before_its_deadline() {
        let now = Timestamp::from_millis(1_000_000_000);
        let spare = |span: u64, left: u64| {
            let mut job = Job { deadline: now + Duration::from_secs(left), ..asks("{}") };
            job.created_at = Timestamp::from_millis(job.deadline.as_millis() - i64::try_from(span).unwrap() * 1_000);
            job.policy.timeout = Duration::from_secs(600);
            spare(&job, now).as_secs()
        };
        let day = 86_400;
        assert_eq!([spare(day, 720), spare(day, 721)], [0, 1], "the timeout and two minutes");
        assert_eq!([spare(600, 300), spare(600, 301), spare(600, 0)], [0, 1, 0], "half of a short time");
    }

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
            assert!(super::heard(&asks("{}"), &Outcome::Failure(refused)).is_none());
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
        full.served(&asks("{}"), "k");
        assert!(matches!(full.turn(&job, "k"), Turn::Wait(_)));
        full.served(&job, "k");
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
        let turns: Vec<_> = (0..100).map(|_| waits(&full.turn(&job, "k"))).collect();
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
            full.served(&job, "k");
            assert!(matches!(full.turn(&job, "k"), Turn::As), "and others that come may go");
            tokio::time::advance(room).await;
            assert_eq!(full.take_opened().len(), usize::from(room == second));
        }
        tokio::time::advance(second * 60).await;
        assert!(full.take_opened().is_empty(), "they are woken already");
        assert!(matches!(full.turn(&job, "k"), Turn::As));
        assert!((1..3).contains(&waits(&full.refused(&job, "k", (&refusal, Duration::ZERO))).as_secs()));
    }
}
