//! THE way in, for commands and gateway alike: every row is checked, made a job and enqueued in windows; the same
//! submission made again enqueues only what is missing. Reading rows is `input`, the check `check.rs`.

mod ahead;
mod check;
mod faults;
mod fit;
mod one;
mod traced;
mod window;

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use promptq_common::broker::{Broker, Enqueued, Refusal};
use promptq_common::job::Job;
use promptq_common::telemetry::trace::Context;

pub use ahead::Ahead;
pub use check::{Checked, Sample, check};
use faults::Faults;
pub use fit::{Doubt, Doubts, Fit};
pub use one::{Taken, make, one};
use window::{Window, Windows};

use crate::input::{Input, OnConflict};
use crate::problem::{Exit, Problem, Result};

/// How strict to be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Terms {
    /// Enqueue the other rows when some are wrong.
    pub skip_invalid: bool,
    /// What happens to a row whose id stands for other content.
    pub on_conflict: OnConflict,
    /// Publish what is known and waits once more, for messages that are gone from RabbitMQ.
    pub republish: bool,
    /// What the jobs were caused by.
    pub caller: Option<Context>,
}

/// What enqueueing came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Jobs that are new.
    pub new: u64,
    /// Jobs that were there already.
    pub known: u64,
    /// Those of them that wait and were published once more.
    pub again: u64,
    /// Rows left out because they are wrong.
    pub invalid: u64,
    /// Rows left out because their id stands for other content.
    pub conflicts: u64,
    /// Rows left out because an earlier row of the input has their id.
    pub repeated: u64,
}

impl Tally {
    /// `4,000 new, 1,000 already known, 2 invalid rows skipped`. Every row is in one number.
    pub fn summary(&self) -> String {
        let mut text = format!("{} new, {} already known", grouped(self.new), grouped(self.known));
        if self.again > 0 {
            text = format!("{text} ({} of them had not ended and were published once more)", grouped(self.again));
        }
        for (count, what) in [(self.invalid, "invalid"), (self.repeated, "repeated")] {
            if count > 0 {
                let rows = if count == 1 { "row" } else { "rows" };
                text = format!("{text}, {} {what} {rows} skipped", grouped(count));
            }
        }
        if self.conflicts > 0 {
            let rows = if self.conflicts == 1 { "row kept the answer" } else { "rows kept the answers" };
            text = format!("{text}, {} {rows} of earlier content", grouped(self.conflicts));
        }
        text
    }

    fn add(&mut self, other: &Self) {
        self.new += other.new;
        self.known += other.known;
        self.again += other.again;
        self.invalid += other.invalid;
        self.conflicts += other.conflicts;
        self.repeated += other.repeated;
    }

    /// Takes the rows that repeat an id out of those the broker knew or refused when they came by.
    fn without_repeats(mut self, repeated: u64) -> Self {
        let refused = repeated.min(self.conflicts);
        self.conflicts -= refused;
        self.known = self.known.saturating_sub(repeated - refused);
        self.repeated = repeated;
        self
    }
}

/// Windows on their way at once: while one is written, the next is encoded, and one more waits for the broker.
const AT_ONCE: usize = 3;

/// Enqueues every row and seals the batch. With `checked`, the input must still be what it was then; with `ahead`, it goes
/// no faster than that says. Dropped in between: the windows confirmed so far stay, and the same call again enqueues the
/// rest.
///
/// # Errors
/// Says how many jobs were enqueued before it.
pub async fn enqueue(
    input: &Arc<Input>,
    broker: &Broker,
    terms: Terms,
    checked: Option<&Checked>,
    mut ahead: Option<Ahead>,
) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut windows = Windows::read(input, checked.map(|checked| checked.prints.clone()));
    let at_once = at_once(checked);
    let (mut flying, mut ended, mut outcome) = (FuturesOrdered::new(), false, Ok(()));
    loop {
        tokio::select! {
            biased;
            window = next_of(&mut windows, &mut ahead, tally.new), if !ended && flying.len() < at_once => match window {
                Ok(Some(window)) => flying.push_back(enqueue_window(broker, terms, window)),
                Ok(None) => ended = true,
                Err(problem) => (ended, outcome) = (true, outcome.and(Err(problem))),
            },
            Some((some, put)) = flying.next() => {
                tally.add(&some);
                ended |= put.is_err();
                outcome = outcome.and(put);
            }
            else => break,
        }
    }
    if let Err(problem) = outcome {
        return Err(problem.detail(format!("{} were enqueued before this", jobs(tally.new))));
    }
    broker.ledger().seal(input.batch(), input.queue()).await?;
    Ok(tally.without_repeats(checked.map_or(0, |checked| checked.repeated)))
}

/// The next window, once it may go. Cancel-safe.
async fn next_of(windows: &mut Windows, ahead: &mut Option<Ahead>, new: u64) -> Result<Option<Window>> {
    let Some(ahead) = ahead else { return windows.next().await };
    ahead.opens(new).await;
    let window = windows.next().await;
    ahead.went();
    window
}

/// One where an id may come twice: a broker tells the second of two only when it has the first. And one of rows that
/// nobody has looked at: those behind a wrong one must not be under way.
fn at_once(checked: Option<&Checked>) -> usize {
    if checked.is_some_and(|checked| checked.repeated == 0) { AT_ONCE } else { 1 }
}

/// What became of a window, as far as it came.
async fn enqueue_window(broker: &Broker, terms: Terms, window: Window) -> (Tally, Result<()>) {
    let mut tally = Tally::default();
    let put = put_window(broker, terms, window, &mut tally).await;
    (tally, put)
}

async fn put_window(broker: &Broker, terms: Terms, mut window: Window, tally: &mut Tally) -> Result<()> {
    if window.changed {
        return Err(changed());
    }
    if window.checked && !window.faults.is_empty() && !terms.skip_invalid {
        return Err(changed());
    }
    let sending = traced::sending(&mut window.jobs, terms.caller, broker.backend_name());
    let answers = enqueue_retrying(broker, &window.jobs, terms.republish).await;
    sending.answered(&answers);
    let answers = answers?;
    for (job, answer) in window.jobs.iter().zip(answers) {
        match answer {
            Enqueued::New => tally.new += 1,
            Enqueued::Known(state) => {
                tally.known += 1;
                tally.again += u64::from(terms.republish && !state.is_ended());
            }
            Enqueued::Refused(Refusal::Conflict) if terms.on_conflict == OnConflict::Skip || terms.skip_invalid => {
                tally.conflicts += 1;
            }
            Enqueued::Refused(Refusal::Conflict) => {
                return Err(conflict(1, &[job.row.unwrap_or_default()], job.custom_id.is_none()));
            }
            Enqueued::Refused(refusal) => return Err(refused(job, &refusal)),
        }
    }
    tally.invalid += window.faults.count();
    if !window.faults.is_empty() && !terms.skip_invalid {
        return Err(window.faults.problem("the rows from here on were not enqueued", true));
    }
    Ok(())
}

/// Three more tries, 0.1 to 1.6 s apart: a broker that restarts is back by then, one that is gone is worth telling.
async fn enqueue_retrying(broker: &Broker, jobs: &[Job], republish: bool) -> Result<Vec<Enqueued>> {
    let mut pause = Duration::from_millis(100);
    loop {
        let answers = if republish { broker.republish(jobs).await } else { broker.enqueue(jobs).await };
        match answers {
            Ok(answers) => return Ok(answers),
            Err(error) if error.is_transient() && pause < Duration::from_secs(2) => {
                tokio::time::sleep(pause).await;
                pause *= 4;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn refused(job: &Job, refusal: &Refusal) -> Problem {
    let row = job.row.map(|row| format!("row {row}: ")).unwrap_or_default();
    let queue = &job.queue;
    match refusal {
        Refusal::Conflict => Problem::new(Exit::Conflict, "conflict", format!("{row}its key is that of other content")),
        Refusal::TooLarge(bytes) => {
            Problem::new(Exit::Usage, "too-large", format!("{row}the broker takes no job of {bytes} bytes"))
        }
        Refusal::NoSuchQueue => Problem::new(Exit::NotFound, "no-queue", format!("the broker has no queue {queue}"))
            .hint(format!("run `promptq queues declare {queue}` as a user that may")),
        Refusal::OtherQueue(other) => {
            let batch = job.batch.as_ref().map(|batch| format!("batch {batch:?}")).unwrap_or_default();
            let what = format!("{batch} belongs to queue {other:?}, not {queue:?}");
            Problem::new(Exit::Conflict, "other-queue", what).hint(format!("pass -Q {other}, or another --batch name"))
        }
    }
}

/// `counted`: rows among them have no id, so that their number alone names them.
fn conflict(count: u64, rows: &[u64], counted: bool) -> Problem {
    let rows: Vec<_> = rows.iter().map(ToString::to_string).collect();
    let plural = if count == 1 { "row has the id" } else { "rows have ids" };
    let problem = Problem::new(
        Exit::Conflict,
        "conflict",
        format!("{} {plural} of other content submitted before", grouped(count)),
    )
    .detail(format!("rows: {}{}", rows.join(", "), if count > rows.len() as u64 { ", …" } else { "" }));
    let problem = if counted {
        problem.hint("rows are counted by position; give them names with --id-field (in job lines: \"id\")")
    } else {
        problem
    };
    problem
        .hint("--on-conflict skip leaves them out and keeps the earlier jobs; another --batch name makes them new jobs")
}

fn changed() -> Problem {
    Problem::new(Exit::Conflict, "changed", "the input changed while it was read")
        .hint("run the same command again once the file is complete: it enqueues only what is missing")
}

/// A count with its noun: `1 job`, `5,000 jobs`.
pub fn jobs(count: u64) -> String {
    format!("{} {}", grouped(count), if count == 1 { "job" } else { "jobs" })
}

/// A number for people: `5,000`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests;
