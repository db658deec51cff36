//! Two queues on one account, each with workers of its own, on one file: the limit is kept by both together, and both go on.

use anyhow::Context as _;

use super::calls::{Call, Counted, Spent};
use super::fake::windows;
use super::findings::Finding;
use super::fleet::{Fleet, Post};
use super::kept::{LATENCY, provided, refused, ruled, used};
use super::prompts::Prompts;
use super::{Form, Seen};
use crate::account::number;
use crate::stage::Kind;

const LIMITS: [(&str, u64); 1] = [("requests", 600)];
const QUEUES: [&str; 2] = ["reviews", "letters"];

pub(super) async fn measured(form: Form) -> Seen {
    ("queues: two on one account, over one SQLite file".to_owned(), run(form).await)
}

async fn run(form: Form) -> anyhow::Result<Vec<Finding>> {
    let (first, steady) = (form.first(), form.seconds(300, 90, 5));
    let provider = LATENCY.to_owned() + &provided(&LIMITS);
    let mut fleet = Fleet::set_up(Kind::Sqlite, &provider, &ruled("gpt-4o", &LIMITS)).await?;
    for number in 0..8 {
        fleet.hire(number, Post { queues: QUEUES[number % 2], slots: 64 })?;
    }
    for (queue, seed) in QUEUES.into_iter().zip(41..) {
        let prompts = Prompts { model: "gpt-4o", tokens: (50, 2_000), max_tokens: 256, seed };
        // Each could use all of it.
        fleet.submit(&prompts, (first + steady + form.late()).as_secs() * 10 + 200, &["-Q", queue]).await?;
    }
    fleet.until_called(1).await?;
    fleet.pass(first + steady + form.late()).await?;
    let fullest = windows(&fleet.fake.bill().await?).into_iter().map(|window| window.highest_percent);
    let fullest = fullest.fold(0.0, f64::max);
    let calls = fleet.fake.calls()?;
    let spent = Spent::of(calls, Counted::Requests);
    let from = spent.begins().context("no call was let in")? + i64::try_from(first.as_millis())?;
    let to = from + i64::try_from(steady.as_millis())?;
    let of_queue = |call: &&Call, queue: usize| {
        let worker = call.caller.as_deref().and_then(|caller| caller.strip_prefix('w')?.parse::<usize>().ok());
        call.is_let_in() && (from..to).contains(&call.started_ms) && worker.is_some_and(|worker| worker % 2 == queue)
    };
    let parts = [0, 1].map(|queue| number(calls.iter().filter(|call| of_queue(call, queue)).count()));
    let lesser = parts[0].min(parts[1]) / (parts[0] + parts[1]).max(1.0) * 100.0;
    let mut found = used(&spent, (from, to), LIMITS[0].1);
    found.extend(refused(calls, from, to));
    found.push(Finding::new("of a limit in the fullest minute", fullest, "%").at_most(100.0));
    // Two equal halves, but for chance.
    found.push(Finding::new("of all calls, those of the queue that had fewer", lesser, "%").at_least(40.0));
    Ok(found)
}
