//! Money: a batch that may cost a dollar, and a run that is killed at half and started again; by the provider's own bill.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use promptq_common::time::Timestamp;

use super::calls::Call;
use super::findings::Finding;
use super::fleet::{Fleet, Post};
use super::prompts::Prompts;
use super::{Form, Seen};
use crate::account::number;
use crate::stage::Kind;

/// The most a job may come to: 1,500 tokens out at $ 10 for a million are $ 0.015, and were each of its 1,000 bytes a token,
/// it had $ 0.004 of them in. On average it is $ 0.009.
const PROMPTS: Prompts<'static> = Prompts { model: "gpt-4o", tokens: (50, 250), max_tokens: 1_500, seed: 61 };
const PROVIDER: &str = "[answer]\noutput = { uniform = [200, 1500] }\nchunk = 500\n\
    [latency]\nfirst = { lognormal = { median = \"400ms\", sigma = 0.5, max = \"2s\" } }\n\
    [[models]]\nname = \"gpt-4o\"\ninput = \"4\"\noutput = \"10\"\n";
/// The same prices, as promptq is told.
const PRICES: &str = "[prices.\"openai/gpt-4o\"]\ninput = \"4\"\noutput = \"10\"\n";
const DOLLAR: f64 = 1e9;

/// What happens to the worker of a batch that may cost a dollar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Luck {
    /// Nothing.
    Good,
    /// It is killed at half, and another one goes on.
    Bad,
}

pub(super) const LUCK: [Luck; 2] = [Luck::Good, Luck::Bad];

/// 300 jobs, a dollar for all of them, 64 slots.
pub(super) async fn stopped(form: Form, luck: Luck) -> Seen {
    let name = match luck {
        Luck::Good => "money: --max-cost 1.00, 64 slots, jobs of at most $ 0.02",
        Luck::Bad => "money: the same, the worker killed at half",
    };
    (name.to_owned(), run_stopped(form, luck).await)
}

async fn run_stopped(form: Form, luck: Luck) -> anyhow::Result<Vec<Finding>> {
    let (rows, cap) = form.of((300, 1.0), (300, 1.0), (60, 0.2));
    let mut fleet = Fleet::set_up(Kind::Redis, PROVIDER, PRICES).await?;
    let cap_said = format!("{cap:.2}");
    fleet.submit(&PROMPTS, rows, &["--max-cost", &cap_said]).await?;
    fleet.hire(0, Post::STANDARD)?;
    if luck == Luck::Bad {
        // About half of what a dollar, or a fifth of one, buys.
        fleet.until_called(form.of(50, 50, 8)).await?;
        fleet.kill(0)?;
        fleet.hire(1, Post::STANDARD)?;
    }
    fleet.until_called(1).await?;
    // Those that a dead worker had are with another one 10 s later.
    until_quiet(&mut fleet, form.seconds(20, 20, 8)).await?;
    let calls = fleet.fake.calls()?;
    let bill = calls.iter().map(Call::nanos).sum::<i64>();
    let left = usize::try_from(rows)? - paid(calls).len();
    let bill = Finding::new("the bill", dollars(bill), "$").at_most(cap);
    // A batch that has nothing left to do need not have used all of it, nor one that may have paid for what was lost.
    let is_used_up = luck == Luck::Good && left > 0;
    Ok(vec![
        if is_used_up { bill.at_least(cap * 0.95) } else { bill },
        Finding::new("jobs that were never called", number(left), "jobs"),
    ])
}

/// A run without a limit that binds, killed with -9 when half of it has ended, then run again.
pub(super) async fn killed(form: Form) -> Seen {
    ("money: a run killed at half and run again".to_owned(), run_killed(form).await)
}

async fn run_killed(form: Form) -> anyhow::Result<Vec<Finding>> {
    let rows: u64 = form.of(400, 400, 40);
    let mut fleet = Fleet::set_up(Kind::Sqlite, PROVIDER, PRICES).await?;
    let path = PROMPTS.write(fleet.home.path(), rows)?.display().to_string();
    // More than all of it may come to.
    let most = format!("{}", rows / 40);
    let arguments = ["run", &path, "-o", "out.jsonl", "--concurrency", "64", "--progress", "none", "--max-cost", &most];
    let run = fleet.home.start("promptq", &arguments)?;
    fleet.until_called(usize::try_from(rows / 2)?).await?;
    let before = Timestamp::now().as_millis();
    run.stop()?;
    let after = Timestamp::now().as_millis();
    fleet.home.start("promptq", &arguments)?.ended().await.context("the second run")?;
    let calls = fleet.fake.calls()?;
    let pass = paid(calls);
    ensure!(pass.len() == usize::try_from(rows)?, "{} of {rows} jobs were called", pass.len());
    let bill = calls.iter().map(Call::nanos).sum::<i64>();
    let pass = pass.values().sum::<i64>();
    let in_flight: Vec<&Call> =
        calls.iter().filter(|call| call.started_ms <= after && call.ended_ms >= before).collect();
    let lost = in_flight.iter().map(|call| call.nanos()).sum::<i64>();
    let lines = std::fs::read_to_string(fleet.home.path().join("out.jsonl"))?.lines().count();
    Ok(vec![
        Finding::new("one pass", dollars(pass), "$"),
        Finding::new("the bill of both runs", dollars(bill), "$").at_most(dollars(pass + lost)),
        Finding::new("calls in flight at the kill", number(in_flight.len()), "calls"),
        Finding::new("results written", number(lines), "jobs").at_least(number(usize::try_from(rows)?)),
    ])
}

/// Each prompt that was worked on, and what one call for it costs: the same text is answered the same way.
fn paid(calls: &[Call]) -> BTreeMap<&str, i64> {
    calls.iter().filter(|call| call.is_let_in()).map(|call| (call.prompt.as_str(), call.nanos())).collect()
}

/// Waits until no call has come for so long.
async fn until_quiet(fleet: &mut Fleet, quiet: Duration) -> anyhow::Result<()> {
    let (began, mut changed, mut calls) = (Instant::now(), Instant::now(), 0);
    loop {
        let now = fleet.fake.calls()?.len();
        if now != calls {
            (calls, changed) = (now, Instant::now());
        }
        if changed.elapsed() >= quiet {
            return Ok(());
        }
        ensure!(began.elapsed() < Duration::from_secs(300), "calls come and come");
        fleet.pass(Duration::from_millis(200)).await?;
    }
}

#[expect(clippy::cast_precision_loss, reason = "a few dollars")]
fn dollars(nanos: i64) -> f64 {
    nanos as f64 / DOLLAR
}
