//! The provider allows half from one moment on, and tells so in its headers alone: how long the fleet takes to follow, and how
//! often it is refused on the way.

use anyhow::Context as _;
use promptq_common::time::Timestamp;
use serde_json::json;

use super::calls::{Counted, MINUTE, Spent, float};
use super::findings::Finding;
use super::fleet::Fleet;
use super::kept::{LATENCY, provided, ruled, used};
use super::prompts::Prompts;
use super::{Form, Seen};
use crate::account::number;
use crate::stage::Kind;

const LIMITS: [(&str, u64); 2] = [("requests", 2_000), ("tokens", 2_000_000)];

pub(super) async fn measured(form: Form) -> Seen {
    ("headers: 2M tokens become 1M".to_owned(), run(form).await)
}

async fn run(form: Form) -> anyhow::Result<Vec<Finding>> {
    let prompts = Prompts { model: "gpt-4o", tokens: (50, 20_000), max_tokens: 256, seed: 31 };
    let (first, after) = (form.first(), form.seconds(360, 120, 6));
    let mut fleet =
        Fleet::of(8, Kind::Redis, &(LATENCY.to_owned() + &provided(&LIMITS)), &ruled(prompts.model, &LIMITS)).await?;
    fleet.submit(&prompts, first.as_secs() * 12 + (after + form.late()).as_secs() * 6 + 200, &[]).await?;
    fleet.until_called(1).await?;
    fleet.pass(first).await?;
    let half = LIMITS.map(|(name, most)| (name, most / 2));
    let changed = Timestamp::now().as_millis();
    let minute: serde_json::Map<_, _> = half.iter().map(|(name, most)| ((*name).to_owned(), json!(most))).collect();
    fleet.fake.set_limits(&json!({ "limits": [{ "minute": minute }] })).await?;
    fleet.pass(after + form.late()).await?;
    let calls = fleet.fake.calls()?;
    let refused: Vec<i64> =
        calls.iter().filter(|call| call.status == 429 && call.started_ms >= changed).map(|c| c.started_ms).collect();
    let spent = Spent::of(calls, Counted::Tokens);
    let below = spent.below_from(half[1].1, MINUTE).context("no call was let in")?;
    let last = refused.iter().copied().max().unwrap_or(changed);
    let since = |at: i64| float((at - changed).max(0).unsigned_abs()) / 1e3;
    let later = calls.iter().filter(|call| call.started_ms >= changed).count();
    let to = changed + i64::try_from(after.as_millis())?;
    // From when on every minute could be whole again.
    let from = (changed + MINUTE).min(to - 1_000);
    // How much of the new limit is used has no goal: refusals on the way slow a key down for minutes.
    let used = used(&spent, (from, to), half[1].1).into_iter().map(|found| Finding { least: None, ..found });
    let mut found = vec![
        Finding::new("calls answered 429 on the way", number(refused.len()), "calls"),
        Finding::new("calls after the change", number(later), "calls"),
        Finding::new("until the last 429", since(last), "s"),
        Finding::new("until no minute was over the new limit", since(below), "s"),
    ];
    found.extend(used);
    Ok(found)
}
