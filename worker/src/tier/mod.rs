//! From the flex tier to the standard one. A job that asks for flex, costs less there and may be told that there is no room.
//! It waits for some, under one hold key with the others that do (`full.rs`); once its deadline is near its call asks for no
//! tier.

mod full;

use std::time::Duration;

use promptq_common::job::Job;
use promptq_common::outcome::{Failure, FailureClass, Outcome};
use promptq_common::time::Timestamp;
use promptq_common::work::{Input, Work};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::asked::Asked;
use crate::provider::request::replaced;
use crate::size::parameters;

pub(crate) use full::{Full, Turn};

/// Beside an attempt: two of the longest waits.
const MARGIN: Duration = Duration::from_secs(120);

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

#[cfg(test)]
mod tests {
    use promptq_common::job::Queue;
    use promptq_common::work::{Prompt, Work};

    use super::*;

    pub(super) fn asks(body: &str) -> Job {
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
}
