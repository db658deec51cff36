//! Eight workers on one limit, whichever of several binds: how much of it they use, how often they are refused, and the
//! fullest minute. Also with answers that are off by three times what they are guessed at.

use std::time::Duration;

use anyhow::Context as _;

use super::calls::{Call, Counted, MINUTE, Spent, float, share_of_429};
use super::fake::windows;
use super::findings::Finding;
use super::fleet::Fleet;
use super::prompts::Prompts;
use super::{Form, Seen};
use crate::account::number;
use crate::stage::Kind;

/// So much more work than fits into the limit.
const SPARE: f64 = 1.3;
/// How long answers take: half of them under a second, one in a thousand over six.
pub(super) const LATENCY: &str = "[latency]\nfirst = { lognormal = { median = \"1s\", sigma = 0.6, max = \"8s\" } }\n";

/// What binds, and how large calls are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Variant {
    name: &'static str,
    counted: Counted,
    /// By the minute.
    limit: u64,
    /// As the fake provider is told; promptq is told the same.
    minute: &'static [(&'static str, u64)],
    /// Output tokens.
    output: &'static str,
    /// Their mean, roughly.
    output_mean: f64,
    prompts: Prompts<'static>,
}

const PROMPTS: Prompts<'static> = Prompts { model: "gpt-4o", tokens: (50, 20_000), max_tokens: 256, seed: 1 };
const CLAUDE: Prompts<'static> =
    Prompts { model: "anthropic/claude-sonnet-4", tokens: (50, 500), max_tokens: 4_096, seed: 2 };

pub(super) static VARIANTS: [Variant; 4] = [
    Variant {
        name: "kept: 600 requests bind",
        counted: Counted::Requests,
        limit: 600,
        minute: &[("requests", 600), ("tokens", 4_000_000)],
        output: "{ lognormal = { median = 120, sigma = 0.6, max = 2000 } }",
        output_mean: 140.0,
        prompts: PROMPTS,
    },
    Variant {
        name: "kept: 1M tokens bind",
        counted: Counted::Tokens,
        limit: 1_000_000,
        minute: &[("requests", 2_000), ("tokens", 1_000_000)],
        output: "{ lognormal = { median = 120, sigma = 0.6, max = 2000 } }",
        output_mean: 140.0,
        prompts: PROMPTS,
    },
    // A first guess is a quarter of what is allowed, 1,024.
    Variant {
        name: "kept: 400k output tokens, answers three times the guess",
        counted: Counted::Output,
        limit: 400_000,
        minute: &[("requests", 2_000), ("output_tokens", 400_000)],
        output: "{ uniform = [2900, 3250] }",
        output_mean: 3_075.0,
        prompts: CLAUDE,
    },
    Variant {
        name: "kept: 400k output tokens, answers a third to three times",
        counted: Counted::Output,
        limit: 400_000,
        minute: &[("requests", 2_000), ("output_tokens", 400_000)],
        output: "{ lognormal = { median = 600, sigma = 0.55, max = 1800 } }",
        output_mean: 680.0,
        prompts: CLAUDE,
    },
];

/// A minute for warming up, then the measured ones.
pub(super) async fn measured(form: Form, variant: &'static Variant) -> Seen {
    (variant.name.to_owned(), run(form, variant).await)
}

async fn run(form: Form, variant: &Variant) -> anyhow::Result<Vec<Finding>> {
    let (first, steady) = (form.first(), form.seconds(420, 120, 5));
    let (provider, config) = variant.configuration();
    let mut fleet = Fleet::of(8, Kind::Redis, &provider, &config).await?;
    fleet.submit(&variant.prompts, variant.rows(first + steady + form.late()), &[]).await?;
    fleet.until_called(1).await?;
    fleet.pass(first + steady + form.late()).await?;
    let fullest = windows(&fleet.fake.bill().await?).into_iter().map(|window| window.highest_percent);
    let fullest = fullest.fold(0.0, f64::max);
    let calls = fleet.fake.calls()?;
    let spent = Spent::of(calls, variant.counted);
    let begins = spent.begins().context("no call was let in")?;
    let from = begins + i64::try_from(first.as_millis())?;
    let to = from + i64::try_from(steady.as_millis())?;
    let mut found = used(&spent, (from, to), variant.limit);
    found.extend(refused(calls, from, to));
    found.push(Finding::new("of a limit in the fullest minute", fullest, "%").at_most(100.0));
    Ok(found)
}

/// How much of a limit by the minute was used between two moments.
pub(super) fn used(spent: &Spent, (from, to): (i64, i64), limit: u64) -> Vec<Finding> {
    let length = (5 * MINUTE).min(to - from);
    let share = |amount: u64, length: i64| {
        let minutes = float(length.unsigned_abs()) / float(MINUTE.unsigned_abs());
        float(amount) / (float(limit) * minutes) * 100.0
    };
    let emptiest = share(spent.emptiest(from, to, length), length);
    let what = format!("of the limit used, the emptiest {} s after the first minute", length / 1_000);
    let mut found = vec![Finding::new(&what, emptiest, "%").at_least(95.0)];
    if let Some(least) = spent.minutes(from, to).into_iter().min() {
        found.push(Finding::new("of the limit used in the emptiest of these minutes", share(least, MINUTE), "%"));
    }
    found
}

/// How many calls were refused, before a moment and from there to another.
pub(super) fn refused(calls: &[Call], from: i64, to: i64) -> Vec<Finding> {
    let (before, after): (Vec<Call>, Vec<Call>) =
        calls.iter().filter(|call| call.started_ms < to).cloned().partition(|call| call.started_ms < from);
    vec![
        Finding::new("calls after the first minute", number(after.len()), "calls"),
        Finding::new("of calls answered 429 after the first minute", share_of_429(&after) * 100.0, "%").at_most(0.5),
        Finding::new("of calls answered 429 in the first minute", share_of_429(&before) * 100.0, "%"),
    ]
}

impl Variant {
    /// The fake provider's and promptq's.
    fn configuration(&self) -> (String, String) {
        let Self { output, minute, .. } = self;
        let answers = format!("[answer]\noutput = {output}\nchunk = 500\n");
        (answers + LATENCY + &provided(minute), ruled(self.prompts.model, minute))
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "some thousands")]
    fn rows(&self, length: Duration) -> u64 {
        let each = match self.counted {
            Counted::Requests => 1.0,
            Counted::Tokens => self.prompts.mean() + float(self.prompts.max_tokens),
            Counted::Output => self.output_mean,
        };
        (float(self.limit) / each * length.as_secs_f64() / 60.0 * SPARE) as u64 + 100
    }
}

/// These limits, as the fake provider is told.
pub(super) fn provided(minute: &[(&str, u64)]) -> String {
    let rates: Vec<_> = minute.iter().map(|(name, most)| format!("{name} = {most}")).collect();
    format!("[[limits]]\nminute = {{ {} }}\n", rates.join(", "))
}

/// The same as promptq is told, for the provider of a model.
pub(super) fn ruled(model: &str, minute: &[(&str, u64)]) -> String {
    let key = model.split_once('/').map_or("openai", |(provider, _)| provider);
    let rates: Vec<_> = minute.iter().map(|(name, most)| format!("{name} = \"{most}/min\"\n")).collect();
    format!("[limits.{key}]\n{}", rates.concat())
}
