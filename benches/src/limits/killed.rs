//! Workers killed at random and started again, then all of them at once: how much of the limits is lost a minute later.

use std::time::Instant;

use anyhow::Context as _;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::calls::{Counted, Spent, float, share_of_429};
use super::fake::windows;
use super::findings::Finding;
use super::fleet::{Fleet, Post};
use super::kept::{LATENCY, provided, ruled, used};
use super::prompts::Prompts;
use super::{Form, Seen};
use crate::account::number;
use crate::stage::Kind;

const WORKERS: usize = 8;
const LIMITS: [(&str, u64); 2] = [("requests", 600), ("tokens", 1_000_000)];
const PROMPTS: Prompts<'static> = Prompts { model: "gpt-4o", tokens: (50, 20_000), max_tokens: 256, seed: 11 };

pub(super) async fn measured(form: Form) -> Seen {
    ("killed: workers killed with -9 at random".to_owned(), run(form).await)
}

async fn run(form: Form) -> anyhow::Result<Vec<Finding>> {
    let (first, storm) = (form.first(), form.seconds(300, 60, 6));
    let mut fleet =
        Fleet::of(WORKERS, Kind::Redis, &(LATENCY.to_owned() + &provided(&LIMITS)), &ruled(PROMPTS.model, &LIMITS))
            .await?;
    // What a killed worker had counts as consumed, and there is always more to do.
    let rows = (first + storm + form.late()).as_secs() * 8 + 200;
    fleet.submit(&PROMPTS, rows, &[]).await?;
    fleet.until_called(1).await?;
    fleet.pass(first).await?;
    let (began, mut dice, mut kills) = (Instant::now(), StdRng::seed_from_u64(7), 0);
    while began.elapsed() < storm {
        let pause = form.seconds(6, 4, 2).mul_f64(dice.random_range(0.2..1.8));
        fleet.pass(pause).await?;
        let number = dice.random_range(0..WORKERS);
        fleet.kill(number)?;
        fleet.hire(number, Post::STANDARD)?;
        kills += 1;
    }
    for number in fleet.numbers() {
        fleet.kill(number)?;
    }
    fleet.pass(form.seconds(60, 60, 3)).await?;
    let minute = leaked(&fleet).await?;
    fleet.pass(form.seconds(3, 3, 1)).await?;
    let later = leaked(&fleet).await?;
    let known = windows(&fleet.fake.bill().await?);
    let fullest = known.iter().map(|window| window.highest_percent).fold(0.0, f64::max);
    let calls = fleet.fake.calls()?;
    let spent = Spent::of(calls, Counted::Tokens);
    let from = spent.begins().context("no call was let in")? + i64::try_from(first.as_millis())?;
    let to = from + i64::try_from(storm.as_millis())?;
    // What is used while workers die is shown, and has no goal.
    let used = used(&spent, (from, to), LIMITS[1].1).into_iter().map(|found| Finding { least: None, ..found });
    let mut found = vec![
        Finding::new("of a limit lost 60 s after all workers were killed", minute, "%"),
        // What a worker was granted may be called for until 2 s after its last word: it counts for a minute, and a slot
        // of half a second, from then. Less than 1 %.
        Finding::new("of a limit lost 63 s after all workers were killed", later, "%").at_most(0.999),
        Finding::new("of a limit in the fullest minute", fullest, "%").at_most(100.0),
        Finding::new("of calls answered 429", share_of_429(calls) * 100.0, "%"),
        Finding::new("workers killed before", number(kills), "kills"),
    ];
    found.extend(used);
    Ok(found)
}

/// The largest part of a limit, in per cent, that the fleet takes for used or held and the provider does not.
async fn leaked(fleet: &Fleet) -> anyhow::Result<f64> {
    let (view, bill) = (fleet.believed("openai").await?, fleet.fake.bill().await?);
    let known = windows(&bill);
    let shares = view.caps.iter().map(|cap| {
        let name = cap.cap.measure.as_str();
        let theirs = known.iter().find(|window| window.dimension == name);
        let theirs = theirs.map_or(0, |window| i64::try_from(window.used).unwrap_or(i64::MAX));
        let ours = (cap.used + cap.held - theirs).max(0);
        float(ours.unsigned_abs()) / float(cap.configured.max(1).unsigned_abs()) * 100.0
    });
    Ok(shares.fold(0.0, f64::max))
}
