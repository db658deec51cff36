//! How one run's account is written: attempts, records and verdicts. Which of them it is to be, others decide.

use std::time::Duration;

use promptq_common::broker::{Head, HoldKey, LeaseId, Verdict, WorkerId};
use promptq_common::outcome::{AnswerClass, Attempt, Failure, FailureClass, Reply};
use promptq_common::record::{Answer, Cause, End, Output, Record};
use promptq_common::telemetry::trace::Context;
use promptq_common::time::Timestamp;

use crate::tier::MOVED;

/// One delivery of a job to this worker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case<'a> {
    pub(crate) head: &'a Head,
    pub(crate) lease: LeaseId,
    pub(crate) worker: &'a WorkerId,
    pub(crate) started_at: Timestamp,
    /// Workers that died, or lost their lease, while running it before.
    pub(crate) deaths: u32,
    /// Whether its call goes to the standard tier, though it asks for flex.
    pub(crate) moved: bool,
    /// Where in a trace the delivery is.
    pub(crate) place: Option<&'a Context>,
}

impl Case<'_> {
    /// An answer.
    pub(crate) fn succeeded(&self, reply: Reply, output: Output) -> Verdict {
        let mut record = self.record(End::Succeeded, None);
        spend(&mut record, self.answered(&reply));
        record.answer = Some(Answer {
            status_code: reply.status_code,
            request_id: reply.request_id,
            model: reply.model,
            finish_reason: reply.finish_reason,
            output,
            detail: reply.detail,
            origin: reply.origin,
        });
        Verdict::End(Box::new(record))
    }

    /// Called again at once: an answer that is not whole is put aside.
    pub(crate) fn put_aside(&self, reply: &Reply) -> Verdict {
        Verdict::Retry { after: Duration::ZERO, attempt: Box::new(self.answered(reply)) }
    }

    /// Given up after a run.
    pub(crate) fn failed(&self, failure: &Failure) -> Verdict {
        let mut record = self.record(End::Dead, Some(cause_of(failure)));
        spend(&mut record, self.attempt(Some(failure)));
        Verdict::End(Box::new(record))
    }

    /// Given up without a run; no attempt is spent.
    pub(crate) fn dead(&self, class: FailureClass, code: &str, detail: &str) -> Verdict {
        self.unrun(End::Dead, Some(cause_of(&Failure::new(class, code, detail))))
    }

    /// Given up without a run, after so many that nobody came back from: each may have been billed.
    pub(crate) fn lost(&self, deaths: u32, failure: &Failure) -> Verdict {
        let mut record = self.record(End::Dead, Some(cause_of(failure)));
        record.started_at = None;
        record.history.unknown_billed = record.history.unknown_billed.saturating_add(deaths);
        Verdict::End(Box::new(record))
    }

    /// Given up after calls that the head has in its history already: together they were an attempt.
    pub(crate) fn tried(&self, failure: &Failure) -> Verdict {
        let mut record = self.record(End::Dead, Some(cause_of(failure)));
        record.attempts = self.head.attempts.saturating_add(1);
        Verdict::End(Box::new(record))
    }

    /// A user stopped it; `cut` is the run that was stopped, where it may have been billed.
    pub(crate) fn cancelled(&self, cut: Option<&Failure>) -> Verdict {
        let mut record = self.record(End::Cancelled, Some(plain("cancelled_by_user", "cancelled by a user")));
        match cut {
            Some(failure) => spend(&mut record, self.attempt(Some(failure))),
            None => record.started_at = None,
        }
        Verdict::End(Box::new(record))
    }

    /// Another attempt later.
    pub(crate) fn retry(&self, after: Duration, failure: &Failure) -> Verdict {
        Verdict::Retry { after, attempt: Box::new(self.attempt(Some(failure))) }
    }

    fn unrun(&self, end: End, cause: Option<Cause>) -> Verdict {
        let mut record = self.record(end, cause);
        record.started_at = None;
        Verdict::End(Box::new(record))
    }

    fn record(&self, end: End, cause: Option<Cause>) -> Record {
        let mut record = Record::unrun(self.head, end, cause, Timestamp::now());
        record.lease = self.lease;
        record.worker = Some(self.worker.as_str().to_owned());
        record.started_at = Some(self.started_at);
        record
    }

    fn answered(&self, reply: &Reply) -> Attempt {
        let wrong = wrong_with(reply);
        Attempt {
            code: wrong.map(|_| reply.class.as_str().to_owned()),
            detail: self.told(wrong.map(|wrong| {
                let reason = reply.finish_reason.as_deref().map_or_else(String::new, |reason| format!(" ({reason})"));
                format!("{wrong}{reason}")
            })),
            status_code: Some(reply.status_code),
            usage: reply.usage,
            cost: reply.cost,
            ..self.attempt(None)
        }
    }

    /// This run, as the job's history keeps it.
    pub(crate) fn attempt(&self, failure: Option<&Failure>) -> Attempt {
        Attempt {
            n: self.head.attempts.saturating_add(1),
            worker: self.worker.as_str().to_owned(),
            started_at: self.started_at,
            ended_at: Timestamp::now(),
            class: failure.map(|failure| failure.class),
            code: failure.map(|failure| failure.code.clone()),
            detail: self.told(failure.map(|failure| failure.detail.clone())),
            status_code: failure.and_then(|failure| failure.status_code),
            usage: failure.map(|failure| failure.usage).unwrap_or_default(),
            cost: failure.and_then(|failure| failure.cost),
        }
    }

    /// What an attempt says of itself, and that it went to another tier than was asked for.
    fn told(&self, detail: Option<String>) -> Option<String> {
        match detail {
            detail if !self.moved => detail,
            None => Some(MOVED.to_owned()),
            Some(detail) => Some(cut(format!("{detail} ({MOVED})"))),
        }
    }
}

/// No longer than a failure's detail.
pub(crate) fn cut(detail: String) -> String {
    if detail.len() <= Failure::DETAIL { detail } else { detail.chars().take(Failure::DETAIL).collect() }
}

/// Back to its lane until there is money for it, spending nothing.
pub(crate) fn hold(after: Duration, hold: HoldKey) -> Verdict {
    Verdict::Release { after, hold: Some(hold) }
}

/// Back to its lane, spending nothing.
pub(crate) fn release(after: Duration, held_by: Option<&str>) -> Verdict {
    Verdict::Release { after, hold: held_by.map(|key| HoldKey::Limit(key.to_owned())) }
}

/// What is known to be wrong with an answer, in words.
fn wrong_with(reply: &Reply) -> Option<&'static str> {
    let says = reply.text.as_deref().is_some_and(|text| !text.trim().is_empty());
    match reply.class {
        AnswerClass::Complete | AnswerClass::Unknown => None,
        AnswerClass::Truncated => Some("the answer was cut off"),
        AnswerClass::Refused => Some("the answer was refused"),
        AnswerClass::InvalidOutput if says => Some("the answer is not the JSON that was asked for"),
        AnswerClass::InvalidOutput => Some("the answer is empty"),
    }
}

fn spend(record: &mut Record, attempt: Attempt) {
    record.attempts = attempt.n;
    record.history.push(attempt);
}

fn cause_of(failure: &Failure) -> Cause {
    Cause {
        class: Some(failure.class),
        code: failure.code.clone(),
        detail: failure.detail.clone(),
        status_code: failure.status_code,
    }
}

fn plain(code: &str, detail: &str) -> Cause {
    Cause { class: None, code: code.to_owned(), detail: detail.to_owned(), status_code: None }
}
