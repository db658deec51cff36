//! The Redis that keeps the limits stops in its tracks, or is killed and comes back: what the fleet calls meanwhile, and that
//! no minute is over.

use anyhow::Context as _;
use promptq_common::time::Timestamp;

use super::calls::{Counted, MINUTE, Spent, float, share_of_429};
use super::fake::windows;
use super::findings::Finding;
use super::fleet::Fleet;
use super::kept::{LATENCY, provided, ruled};
use super::prompts::Prompts;
use super::{Form, Seen};
use crate::account::number;
use crate::stage::Kind;

/// How it is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Away {
    /// SIGSTOP: connections stand, nothing answers.
    Paused,
    /// SIGKILL, and started again on what it had written: `appendfsync always`.
    Gone,
}

pub(super) const AWAY: [Away; 2] = [Away::Paused, Away::Gone];

const LIMITS: [(&str, u64); 2] = [("requests", 600), ("tokens", 1_000_000)];

pub(super) async fn measured(form: Form, away: Away) -> Seen {
    let name = match away {
        Away::Paused => "store: Redis stopped for 20 s",
        Away::Gone => "store: Redis killed and away for 20 s",
    };
    (name.to_owned(), run(form, away).await)
}

async fn run(form: Form, away: Away) -> anyhow::Result<Vec<Finding>> {
    let prompts = Prompts { model: "gpt-4o", tokens: (50, 20_000), max_tokens: 256, seed: 21 };
    let (first, gap, rest) = (form.first(), form.seconds(20, 20, 3), form.seconds(180, 75, 6));
    let mut fleet =
        Fleet::of(8, Kind::RedisAlways, &(LATENCY.to_owned() + &provided(&LIMITS)), &ruled(prompts.model, &LIMITS))
            .await?;
    fleet.submit(&prompts, (first + gap + rest + form.late()).as_secs() * 6 + 200, &[]).await?;
    fleet.until_called(1).await?;
    fleet.pass(first).await?;
    let left = Timestamp::now().as_millis();
    let redis = fleet.stage.redis().context("a Redis")?;
    match away {
        Away::Paused => redis.pause(),
        Away::Gone => redis.kill(),
    }
    fleet.pass(gap).await?;
    let redis = fleet.stage.redis().context("a Redis")?;
    match away {
        Away::Paused => redis.resume(),
        Away::Gone => redis.restart(),
    }
    let back = Timestamp::now().as_millis();
    fleet.pass(rest + form.late()).await?;
    let fullest = windows(&fleet.fake.bill().await?).into_iter().map(|window| window.highest_percent);
    let fullest = fullest.fold(0.0, f64::max);
    let calls = fleet.fake.calls()?;
    let meanwhile = calls.iter().filter(|call| call.started_ms >= left && call.started_ms < back).count();
    let next = calls.iter().map(|call| call.started_ms).filter(|at| *at >= back).min();
    let next = next.context("no call came after it was back")?;
    let spent = Spent::of(calls, Counted::Tokens);
    let last = spent.within(back + i64::try_from(rest.as_millis())? - MINUTE, back + i64::try_from(rest.as_millis())?);
    Ok(vec![
        Finding::new("of a limit in the fullest minute", fullest, "%").at_most(100.0),
        Finding::new("of calls answered 429", share_of_429(calls) * 100.0, "%").at_most(0.5),
        Finding::new("calls while it was away", number(meanwhile), "calls"),
        Finding::new("until the first call after it was back", float((next - back).unsigned_abs()) / 1e3, "s"),
        Finding::new("of the limit used in the last minute", float(last) / float(LIMITS[1].1) * 100.0, "%"),
    ])
}
