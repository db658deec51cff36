//! Why a job has not run yet, in a sentence or two: from its state, hold and pause, the queue and workers around it, and
//! the limits that it waits for.

use std::time::Duration;

use promptq_common::broker::{Depth, HoldKey};
use promptq_common::ledger::{JobView, WorkerReport};
use promptq_common::record::State;
use promptq_common::time::{Timestamp, format_duration};

use super::flex;
use crate::context::Context;
use crate::limits::{Standing, waits, words};
use crate::list::{quoted, thousands};
use crate::problem::Result;

/// Why a job has not run yet.
#[derive(Debug)]
pub(super) struct Why {
    /// For people.
    pub(super) says: String,
    /// The limit it waits for.
    pub(super) limit: Option<Standing>,
}

/// Looks around the job and says why.
pub(super) async fn explain(cx: &Context, job: &JobView) -> Result<Why> {
    let broker = cx.existing().await?;
    let workers = broker.ledger().workers().await?;
    let depth = broker.depth(&job.queue).await?;
    let waits = matches!(job.state, State::Scheduled | State::Queued | State::Retrying) && job.paused.is_none();
    if waits && let Some(says) = flex::explain(broker.ledger(), job, &workers).await? {
        return Ok(Why { says, limit: None });
    }
    let limit = if waits { waits::of_job(cx, job, &workers).await? } else { None };
    let now = Timestamp::now();
    if cx.keeps_messages_apart()
        && limit.is_none()
        && let Some(gone) = without_message(job, &workers, depth, now)
    {
        return Ok(Why { says: gone, limit });
    }
    Ok(Why { says: sentence(job, limit.as_ref(), (&workers, depth), now), limit })
}

/// Of a job that could start, while the broker has no message that any job of its queue could start by.
fn without_message(job: &JobView, workers: &[WorkerReport], depth: Depth, now: Timestamp) -> Option<String> {
    let could_start = job.state == State::Queued && job.paused.is_none() && job.hold.is_none();
    // Busy ones have a few in hand that they begin next.
    let mut serving = workers.iter().filter(|worker| waits::serves(worker, &job.queue) && !worker.draining).peekable();
    let busy = serving.peek().is_some() && serving.all(|worker| worker.running >= worker.slots);
    if !could_start || busy || job.due.is_some_and(|due| due > now) || depth.ready > 0 {
        return None;
    }
    let mut places = vec!["a worker has it in hand and has not begun"];
    if depth.delayed > 0 {
        places.push("it is among the delayed ones");
    }
    Some(format!(
        "RabbitMQ has no message ready in queue {}: {}, or it is gone, purged or deleted there. Submit the same job again \
         with --republish, or end it: promptq cancel {}.",
        job.queue,
        places.join(", or "),
        job.id
    ))
}

fn sentence(
    job: &JobView,
    limit: Option<&Standing>,
    (workers, depth): (&[WorkerReport], Depth),
    now: Timestamp,
) -> String {
    match job.state {
        State::Succeeded | State::Dead | State::Cancelled | State::Expired => ended(job, now),
        State::Running if job.cancel_requested => "It runs, and its worker has been told to stop it.".to_owned(),
        State::Running => {
            let worker = job.worker.as_deref().unwrap_or("a worker");
            let since = job.leased_at.map_or(Duration::ZERO, |at| now.since(at));
            let seen = workers.iter().any(|report| report.id.as_str() == worker && now.since(report.seen_at) < SILENCE);
            if seen || since < SILENCE {
                return format!("It runs on {worker} since {}.", format_duration(since));
            }
            lost(job, worker, since, workers)
        }
        State::Scheduled | State::Queued | State::Retrying => waiting(job, limit, (workers, depth), now),
    }
}

/// A worker that has not reported for so long is no longer listed by the ledger.
const SILENCE: Duration = Duration::from_secs(60);

fn lost(job: &JobView, worker: &str, since: Duration, workers: &[WorkerReport]) -> String {
    let next = match workers.iter().filter(|report| waits::serves(report, &job.queue) && !report.draining).count() {
        0 => format!("none lives now: start promptq-worker --queues {}", job.queue),
        1 => "one lives now".to_owned(),
        several => format!("{several} live now"),
    };
    format!(
        "{worker} took it {} ago and has not reported within the last minute: it seems lost. When its lease is over, \
         the job is given to the next live worker of its queue ({next}).",
        format_duration(since)
    )
}

fn ended(job: &JobView, now: Timestamp) -> String {
    let Some(record) = &job.record else {
        return format!("It has ended as {}: its deadline was {}.", job.state, job.deadline);
    };
    let cause = record.cause.as_ref().map(|cause| format!(": {} ({})", cause.code, cause.detail)).unwrap_or_default();
    format!("It has {} {} ago{cause}.", past(job.state), format_duration(now.since(record.ended_at)))
}

fn past(state: State) -> &'static str {
    match state {
        State::Succeeded => "succeeded",
        State::Dead => "died",
        State::Cancelled => "been cancelled",
        State::Expired => "expired",
        State::Scheduled | State::Queued | State::Running | State::Retrying => "not ended",
    }
}

fn waiting(
    job: &JobView,
    limit: Option<&Standing>,
    (workers, depth): (&[WorkerReport], Depth),
    now: Timestamp,
) -> String {
    let in_the_way = limit.and_then(words::sentence);
    if let Some(reason) = &job.paused {
        let reason = if reason.is_empty() { String::new() } else { format!(" ({reason})") };
        return format!("Its queue {} is paused{reason}: promptq queues resume {}.", job.queue, job.queue);
    }
    if let Some(hold) = &job.hold {
        return held_back((job, hold), limit, in_the_way, now);
    }
    if let Some(due) = job.due.filter(|due| *due > now) {
        let left = format_duration(due.since(now));
        return match job.attempts {
            0 => format!("It is scheduled and may start in {left}."),
            spent => format!("Attempt {spent} failed; the next one may start in {left}."),
        };
    }
    let serving: Vec<&WorkerReport> = workers.iter().filter(|worker| waits::serves(worker, &job.queue)).collect();
    if let Some((limit, more)) = limit.zip(in_the_way.as_ref()).filter(|(limit, _)| limit.lacks().is_some()) {
        return format!("It waits for {}. {more}", limit.key);
    }
    if serving.is_empty() {
        return unserved(job);
    }
    let serving: Vec<&WorkerReport> = serving.into_iter().filter(|worker| !worker.draining).collect();
    if serving.is_empty() {
        return "Every worker of its queue is draining and takes no more jobs.".to_owned();
    }
    if let Some((limit, more)) = limit.zip(in_the_way) {
        return format!("It waits for {}. {more}", limit.key);
    }
    if let Some(reason) = serving.iter().map(|worker| blocked(worker)).collect::<Option<Vec<_>>>() {
        return format!(
            "Every worker of its queue takes no jobs now: {}.",
            reason.first().copied().unwrap_or("blocked")
        );
    }
    let (slots, running) = serving.iter().fold((0_u64, 0_u64), |(slots, running), worker| {
        (slots + u64::from(worker.slots), running + u64::from(worker.running))
    });
    let ahead = thousands(depth.ready.saturating_sub(1));
    if running >= slots {
        return format!(
            "All {} slots of its queue's workers are busy, and {ahead} jobs wait beside it.",
            thousands(slots)
        );
    }
    format!("It can start at any moment: {} of {} slots are free, {ahead} jobs wait beside it.", slots - running, slots)
}

pub(super) fn unserved(job: &JobView) -> String {
    format!(
        "No worker has served queue {} within the last minute: start promptq-worker --queues {}.",
        job.queue, job.queue
    )
}

fn held_back(
    (job, hold): (&JobView, &HoldKey),
    limit: Option<&Standing>,
    in_the_way: Option<String>,
    now: Timestamp,
) -> String {
    let by = held_by(hold, limit);
    if let (HoldKey::Batch(_), Some(cap)) = (hold, limit.filter(|limit| limit.shared.is_some())) {
        // It is due when it is looked at again, which changes nothing; who allows more wakes it.
        let more = in_the_way.unwrap_or_else(|| {
            let set = format!("promptq limits set {} usd=AMOUNT", quoted(&cap.key));
            format!("What is left is too little, or kept for calls that run: only more money helps: {set}.")
        });
        return format!("It is held back by {by}. {more}");
    }
    let until = job.due.map(|due| format!(", at the longest {}", format_duration(due.since(now))));
    let plain = format!("It is held back by {by}{}.", until.unwrap_or_default());
    match in_the_way {
        Some(more) => format!("{plain} {more}"),
        None => plain,
    }
}

fn held_by(hold: &HoldKey, limit: Option<&Standing>) -> String {
    match hold {
        HoldKey::Limit(key) => format!("the limit of {key}"),
        HoldKey::Batch(name) if limit.is_some_and(|limit| limit.shared.is_some()) => {
            format!("the budget of its batch {name}")
        }
        HoldKey::Batch(name) => format!("its batch {name}, which is paused"),
        HoldKey::Budget(queue) => format!("the budget of queue {queue}"),
    }
}

/// Why a worker takes no jobs at all: a limit keeps those of its key alone.
fn blocked(worker: &WorkerReport) -> Option<&str> {
    let reason = worker.blocked.as_deref()?;
    let is_limit = worker.held.iter().any(|held| reason.starts_with(&format!("{} {}: ", held.class, held.key)));
    (!is_limit).then_some(reason)
}

#[cfg(test)]
mod tests {
    use promptq_common::outcome::FailureClass;

    use super::*;
    use crate::limits::binding::tests::spent;
    use crate::limits::tests::{standing, told, view};
    use crate::view::tests::waiting;

    const NOW: Timestamp = Timestamp::from_millis(100_000);

    fn job(state: State) -> JobView {
        JobView { state, ..waiting() }
    }

    fn worker(running: u32) -> WorkerReport {
        WorkerReport { running, ..crate::limits::tests::worker("w", Vec::new()) }
    }

    #[test]
    fn a_job_whose_message_cannot_be_there_is_not_said_to_start_at_any_moment() {
        let later = Some(Timestamp::from_millis(130_000));
        let (queued, none) = (job(State::Queued), Depth::default());
        let said = without_message(&queued, &[], none, NOW).unwrap();
        assert!(
            said.contains("--republish") && said.contains("promptq cancel 0101") && !said.contains("delayed"),
            "{said}"
        );
        let said = without_message(&queued, &[worker(1)], Depth { delayed: 1, ..none }, NOW).unwrap();
        assert!(said.contains("among the delayed"), "{said}");
        assert_eq!(without_message(&queued, &[], Depth { ready: 1, ..none }, NOW), None, "one of them may be its own");
        assert_eq!(without_message(&queued, &[worker(4)], none, NOW), None, "it may be the next of a busy worker");
        let others = [
            JobView { due: later, ..job(State::Scheduled) },
            JobView { paused: Some(String::new()), ..queued.clone() },
            JobView { hold: Some(HoldKey::Limit("k".into())), due: later, ..queued },
            job(State::Running),
            job(State::Cancelled),
        ];
        for job in others {
            assert_eq!(without_message(&job, &[], none, NOW), None, "{:?}", job.state);
        }
    }

    #[test]
    fn the_first_thing_in_the_way_is_named() {
        let later = Some(Timestamp::from_millis(130_000));
        let queued = job(State::Queued);
        let other = WorkerReport { queues: vec!["defaults:1".into()], ..worker(0) };
        let stuck = WorkerReport { blocked: Some("disk is full".into()), ..worker(0) };
        let draining = WorkerReport { draining: true, ..worker(1) };
        let hold = Some(HoldKey::Limit("acme/fast".into()));
        let long_ago = Some(Timestamp::from_millis(0));
        let running = JobView { worker: Some("w".into()), leased_at: long_ago, ..job(State::Running) };
        let gone = JobView { worker: Some("w-9".into()), ..running.clone() };
        let cases: [(JobView, Vec<WorkerReport>, &str); 15] = [
            (JobView { paused: Some("rate".into()), ..queued.clone() }, vec![worker(0)], "paused (rate)"),
            (JobView { hold, due: later, ..queued.clone() }, vec![worker(0)], "limit of acme/fast, at the longest 30s"),
            (JobView { due: later, ..job(State::Scheduled) }, vec![], "may start in 30s"),
            (JobView { due: later, attempts: 2, ..job(State::Retrying) }, vec![], "Attempt 2 failed"),
            (queued.clone(), vec![], "No worker has served queue default"),
            (queued.clone(), vec![other], "No worker has served"),
            (queued.clone(), vec![stuck], "disk is full"),
            (queued.clone(), vec![draining.clone()], "draining"),
            (queued.clone(), vec![draining.clone(), worker(1)], "3 of 4 slots are free"),
            (running, vec![worker(1)], "runs on w since"),
            (gone.clone(), vec![worker(1), draining.clone()], "seems lost. When its lease is over, the job is given"),
            (gone, vec![draining], "none lives now: start promptq-worker --queues default"),
            (queued.clone(), vec![worker(4)], "All 4 slots"),
            (queued, vec![worker(1)], "3 of 4 slots are free"),
            (JobView { worker: Some("w-1".into()), ..job(State::Running) }, vec![], "runs on w-1"),
        ];
        for (job, workers, part) in cases {
            let said = sentence(&job, None, (&workers, Depth { ready: 3, ..Depth::default() }), NOW);
            assert!(said.contains(part), "{part}: {said}");
        }
    }

    #[test]
    fn a_limit_in_the_way_is_told_with_what_is_used_of_it() {
        let account = told("acme/gpt", FailureClass::Account, "no credit");
        let blocked = Some("account acme/gpt: no credit".to_owned());
        let stuck = WorkerReport { blocked, held: vec![account], ..worker(1) };
        let said = |job: &JobView, limit: &Standing| {
            sentence(job, Some(limit), (std::slice::from_ref(&stuck), Depth::default()), NOW)
        };
        let queued = job(State::Queued);
        let (full, low) = (standing(Some(view((490, 7), (0, 0))), &[]), standing(Some(view((1, 0), (0, 0))), &[]));
        let lane = said(&queued, &full);
        assert!(lane.starts_with("It waits for acme/gpt. 497 of 500 requests/min of acme/gpt are used"), "{lane}");
        let refused = said(&queued, &standing(None, std::slice::from_ref(&stuck)));
        assert!(refused.contains("The account of acme/gpt has been refused for 10s (no credit)"), "{refused}");
        let money = standing(Some(spent(0)), &[]);
        let nobody = sentence(&queued, Some(&money), (&[], Depth::default()), NOW);
        assert!(nobody.starts_with("It waits for acme/gpt. $0.04 of $0.0475/day"), "a worker would not help: {nobody}");
        let other = sentence(&queued, None, (std::slice::from_ref(&stuck), Depth::default()), NOW);
        assert!(other.contains("3 of 4 slots are free"), "its worker is held back for another key: {other}");
        let held = |hold| JobView { hold: Some(hold), due: Some(Timestamp::from_millis(130_000)), ..queued.clone() };
        let limit = held(HoldKey::Limit("acme/gpt".into()));
        let begins = "It is held back by the limit of acme/gpt, at the longest 30s.";
        assert!(said(&limit, &full).starts_with(&format!("{begins} 497 of 500")), "{}", said(&limit, &full));
        assert_eq!(said(&limit, &low), begins, "it is open by now");
        let batch = held(HoldKey::Batch(promptq_common::job::BatchName::new("nov").unwrap()));
        let unpriced = told("batch:nov", FailureClass::Throttled, "nobody knows the price");
        let unpriced = WorkerReport { held: vec![unpriced], ..worker(0) };
        let money = |shared, workers: &[_]| Standing::new("batch:nov".into(), shared, workers, NOW);
        for (standing, part) in [
            (money(full.shared, &[]), "only more money: promptq limits set batch:nov usd=AMOUNT."),
            (money(low.shared.clone(), &[]), "only more money helps: promptq limits set batch:nov usd=AMOUNT."),
            (money(low.shared, &[unpriced]), "batch:nov has been held back for 10s (nobody knows the price)."),
        ] {
            let spent = said(&batch, &standing);
            let begins = "It is held back by the budget of its batch nov. ";
            assert!(spent.starts_with(begins) && spent.ends_with(part), "no time lifts it: {spent}");
        }
        let paused = said(&batch, &money(None, &[]));
        assert!(paused.contains("its batch nov, which is paused"), "{paused}");
    }
}
