//! What a job's call may cost at most, which caps have to have that much, and why it may not be made at all. Reserving it
//! is the limits' business.

use std::sync::Arc;

use promptq_common::broker::HoldKey;
use promptq_common::job::{Extras, Job};
use promptq_common::limits::{Budget, Ceiling, Measure, Pass, Size};
use promptq_common::outcome::{FailureClass, Usd};
use promptq_common::price::{Price, Prices};

use crate::asked::{Asked, IMAGE_TOKENS, Images};
use crate::cost::Bill;
use crate::execute::Desk;
use crate::runner::Runner;
use crate::size::{bytes, parameters};
use crate::verdict::Case;

/// What is to become of a job whose cost is limited.
#[derive(Debug)]
pub(crate) enum Money {
    /// It may cost so much at most (`None`: nobody asks), which each of these has to have, in this order.
    Costs(Option<Usd>, Vec<Budget>),
    /// It can never be called: code and reason.
    Never(&'static str, String),
    /// It may be called once a person has mended something: what it waits for, and the reason.
    Waits(HoldKey, String),
}

/// Reckons a call. In one order for all workers: the batch's cap, then the queue's budget.
pub(crate) fn money(job: &Job, runner: &dyn Runner, (case, desk, pass): (&Case<'_>, &Desk, &Pass)) -> Money {
    let Extras { max_cost, batch_max_cost, .. } = job.extras.as_deref().cloned().unwrap_or_default();
    let budgets = budgets(batch_max_cost, case, desk);
    if max_cost.is_none() && budgets.is_empty() && !desk.limits.is_priced(pass) {
        return Money::Costs(None, budgets);
    }
    let tokens = |bytes: usize| desk.limits.most_input(pass, &Size { bytes, max_tokens: None });
    let worst = match worst(job, runner, tokens, &desk.settings.prices) {
        Ok(worst) => worst,
        Err(Unknown::Price) => {
            let hold = budgets.into_iter().next().map_or_else(|| HoldKey::of_limit(pass.key()), |budget| budget.hold);
            return Money::Waits(hold, format!("{}: {}", pass.key(), Unknown::Price.says()));
        }
        Err(unknown @ (Unknown::Answer | Unknown::Part(_))) => return Money::Never(unknown.code(), unknown.says()),
    };
    match max_cost {
        Some(most) if over(worst, spent(case, worst), most) => Money::Never("larger_than_max_cost", {
            let before = spent(case, worst);
            let how = if before == case.head.history.cost.unwrap_or_default() { "has" } else { "may have" };
            let before = if before == Usd::default() {
                String::new()
            } else {
                format!(", and {how} cost {} before", say(before))
            };
            format!(
                "it may cost {}{before}: its max_cost is {}; hint: bound its answer by max_tokens, or allow more",
                say(worst),
                say(most)
            )
        }),
        _ => Money::Costs(Some(worst), budgets),
    }
}

/// Whether a job's own cap allows another call after one that cost so much (`None`: nobody knows).
pub(crate) fn has_left(bill: Bill<'_>, case: &Case<'_>, cost: Option<Usd>) -> bool {
    let Some(most) = bill.job.extras.as_ref().and_then(|extras| extras.max_cost) else { return true };
    worst(bill.job, bill.runner, as_many, bill.prices).is_ok_and(|worst| {
        let mut before = spent(case, worst);
        before += cost.unwrap_or(worst);
        !over(worst, before, most)
    })
}

/// The most tokens of a text: one for each byte.
fn as_many(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// Why a job under a cap on its cost would not be called by such workers; `None` where it would. Of several ways all need a
/// price: the job waits at one that has none. One that nobody bounds, or can reckon, is passed by.
pub fn missing(job: &Job, runners: &[Arc<dyn Runner>], prices: &Prices) -> Option<Unknown> {
    let (mut passed, mut works) = (None, false);
    for runner in runners {
        match worst(job, &**runner, as_many, prices) {
            Err(Unknown::Price) => return Some(Unknown::Price),
            Err(unknown @ (Unknown::Answer | Unknown::Part(_))) => passed = Some(unknown),
            Ok(_) => works = true,
        }
    }
    passed.filter(|_| !works)
}

/// The most that a call may cost, where `tokens` says how many so many bytes come to at most; `None` where nobody knows.
pub fn most(job: &Job, runner: &dyn Runner, prices: &Prices, tokens: impl Fn(usize) -> u64) -> Option<Usd> {
    worst(job, runner, tokens, prices).ok()
}

/// What nobody knows of a call, so that nobody knows what it may cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// The price of its model: it waits until somebody does.
    Price,
    /// How long its answer may be.
    Answer,
    /// What something in its request costs, of this name.
    Part(String),
}

impl Unknown {
    /// What its job ends as where only another job helps.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Price => "no_price",
            Self::Answer => "no_max_tokens",
            Self::Part(_) => "cost_unknown",
        }
    }

    /// In words, with a hint.
    pub fn says(&self) -> String {
        let what = match self {
            Self::Price => {
                "nobody knows the price of its model; hint: give it one in the section prices of the settings, 0 where it \
                 costs nothing"
            }
            Self::Answer => "nobody bounds its answer; hint: --max-tokens N, or max_tokens in the line",
            Self::Part(name) => {
                return format!(
                    "what it may cost is limited, and nobody can say beforehand what {name:?} in its request costs; hint: \
                     leave that out, or submit it without a limit"
                );
            }
        };
        format!("what it may cost is limited, and {what}")
    }
}

/// The most that a call may cost; `tokens` says how many so many bytes of text come to.
fn worst(job: &Job, runner: &dyn Runner, tokens: impl Fn(usize) -> u64, prices: &Prices) -> Result<Usd, Unknown> {
    let asked = Asked::of(&job.work);
    let images = asked.as_ref().map_or_else(|| Err("body".to_owned()), Asked::images);
    let Images { count, bytes: shown } = images.as_ref().copied().unwrap_or_default();
    let input = tokens(bytes(&job.work).saturating_sub(shown)).saturating_add(count.saturating_mul(IMAGE_TOKENS));
    let ceiling = ceiling(job, runner, asked.as_ref(), (input, prices)).ok_or(Unknown::Price)?;
    if ceiling == Ceiling::FREE {
        return Ok(Usd::default());
    }
    images.map_err(Unknown::Part)?;
    ceiling.worst(input, most_output(job, runner, asked.as_ref())).ok_or(Unknown::Answer)
}

/// What the tokens of a call cost at most; nothing where nothing is paid for, `None` where nobody knows.
fn ceiling(job: &Job, runner: &dyn Runner, asked: Option<&Asked>, (input, prices): (u64, &Prices)) -> Option<Ceiling> {
    if !runner.billed() {
        return Some(Ceiling::FREE);
    }
    let (provider, model) = runner.priced_as(job)?;
    let Price { rates, long, priority, .. } = prices.of(&provider, &model)?;
    let body = parameters(&job.work);
    let hour = if body.contains("\"1h\"") { rates.cache_write_1h? } else { Usd::default() };
    let input_rate = rates.input.max(rates.cached_input).max(rates.cache_write).max(hour);
    let percent = long.filter(|long| input > long.above).map_or(Some((100, 100)), |long| long.percent)?;
    let tier = match asked.and_then(Asked::tier).as_deref() {
        // Of a tier that costs less, no more than the usual is taken for sure: the call may be served in that one.
        None | Some("" | "auto" | "default" | "standard" | "standard_only" | "on_demand" | "flex" | "batch") => 100,
        Some("priority") => priority?.max(100),
        Some(_) => return None,
    };
    let weighed = |rate: Usd, percent: u16| {
        let nanos = i128::from(rate.as_nanos()) * i128::from(percent.max(100)) * i128::from(tier);
        Usd::from_nanos(i64::try_from((nanos + 9_999) / 10_000).unwrap_or(i64::MAX))
    };
    Some(Ceiling { input: weighed(input_rate, percent.0), output: weighed(rates.output, percent.1) })
}

/// The most tokens of all answers to a job's call.
fn most_output(job: &Job, runner: &dyn Runner, asked: Option<&Asked>) -> Option<u64> {
    match asked?.answers()? {
        0 => Some(0),
        count => Some(runner.most_output(job)?.saturating_mul(count)),
    }
}

fn budgets(batch_max_cost: Option<Usd>, case: &Case<'_>, desk: &Desk) -> Vec<Budget> {
    let (queue, batch) = (&case.head.lane.queue, case.head.batch.as_ref());
    let of_batch = batch.zip(batch_max_cost.or(desk.settings.own_cap)).map(|(batch, most)| {
        // All that such a worker may run is of its batch.
        let queue = desk.settings.own_batch.as_ref().filter(|own| *own == batch).map(|_| queue.clone());
        Budget { queue, ..Budget::of_batch(batch, most) }
    });
    let of_queue = desk.settings.budgets.get(queue).map(|cap| Budget::of_queue(queue, *cap));
    of_batch.into_iter().chain(of_queue).collect()
}

/// What a job's calls have cost so far; those that may have been billed, by nobody knows how much, count as the worst: calls
/// that were cut, and those of workers that died.
fn spent(case: &Case<'_>, worst: Usd) -> Usd {
    let history = &case.head.history;
    let cut = history.recent.iter().filter(|attempt| attempt.class == Some(FailureClass::UnknownBilled));
    let guessed = cut.map(|attempt| attempt.cost.unwrap_or_default());
    let more = guessed.map(|guess| worst.as_nanos().saturating_sub(guess.as_nanos()).max(0));
    let dead = worst.as_nanos().saturating_mul(case.deaths.into());
    let mut spent = history.cost.unwrap_or_default();
    spent += Usd::from_nanos(more.fold(dead, i64::saturating_add));
    spent
}

fn over(worst: Usd, spent: Usd, most: Usd) -> bool {
    let mut all = spent;
    all += worst;
    all > most
}

fn say(usd: Usd) -> String {
    Measure::Usd.say(usd.as_nanos())
}
