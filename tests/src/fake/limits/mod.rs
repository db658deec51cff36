//! What accounts have used of what they may: for each account and model family sliding windows over requests and tokens, calls
//! open at once, and money. Charged as each provider does it; how a refusal is worded is `refusal/`'s.

use std::collections::HashMap;

use serde::Serialize;

use super::allowance::{Dimension, LimitRule, Per};
use super::random::times;
use super::shape::Api;
use super::window::Window;

/// Groups of calls that have windows of their own. More share one, so that a caller who makes up names costs no memory.
const GROUPS: usize = 1_000;

const METERS: [(Dimension, Per); 8] = [
    (Dimension::Requests, Per::Minute),
    (Dimension::InputTokens, Per::Minute),
    (Dimension::OutputTokens, Per::Minute),
    (Dimension::Tokens, Per::Minute),
    (Dimension::Requests, Per::Day),
    (Dimension::InputTokens, Per::Day),
    (Dimension::OutputTokens, Per::Day),
    (Dimension::Tokens, Per::Day),
];

/// What a call is charged when it is let in.
#[derive(Clone, Copy, Debug)]
pub struct Charge {
    /// Input tokens that count.
    pub input: u64,
    /// The most output it may have; `None` where output is charged as it appears.
    pub output: Option<u64>,
}

impl Charge {
    /// The way of an API: `OpenAI` charges what the call may come to (`assumed` where it says no maximum), Anthropic the
    /// input that was not cached and then output as it appears, Gemini the input and then output as it appears, against a
    /// limit of output alone.
    pub fn of(api: Api, input: u64, cached: u64, most: u64) -> Self {
        match api {
            Api::OpenAi => Self { input, output: Some(most) },
            Api::Anthropic => Self { input: input.saturating_sub(cached), output: None },
            Api::Gemini => Self { input, output: None },
        }
    }

    fn amount(self, dimension: Dimension) -> u64 {
        match dimension {
            Dimension::Requests => 1,
            Dimension::InputTokens => self.input,
            Dimension::OutputTokens => self.output.unwrap_or(0),
            Dimension::Tokens => self.input.saturating_add(self.output.unwrap_or(0)),
            Dimension::Concurrent => 0,
        }
    }

    /// What must be free: where output is charged as it appears, one token.
    fn needed(self, dimension: Dimension) -> u64 {
        match (dimension, self.output) {
            (Dimension::OutputTokens, None) => 1,
            _ => self.amount(dimension),
        }
    }
}

/// Why a call was not let in.
#[derive(Clone, Copy, Debug)]
pub struct Denied {
    /// What is used up.
    pub dimension: Dimension,
    /// Within what.
    pub per: Per,
    /// How much of it there is.
    pub limit: u64,
    /// How much was used.
    pub used: u64,
    /// How much was asked for.
    pub requested: u64,
    /// Milliseconds until it fits; `None` when it never does.
    pub wait: Option<u64>,
}

/// How a limit stands, as headers tell it.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// Of what.
    pub dimension: Dimension,
    /// The limit that is told.
    pub limit: u64,
    /// What is left of it.
    pub remaining: u64,
    /// Milliseconds until all of it is there again.
    pub reset: u64,
}

/// How much of a window was used, as the bill tells it.
#[derive(Clone, Debug, Serialize)]
pub struct Use {
    /// Account and model family, or the pattern of models that share.
    pub group: String,
    /// Of what.
    pub dimension: Dimension,
    /// Within what.
    pub per: Per,
    /// The limit that was enforced last; `None` when there is none.
    pub limit: Option<u64>,
    /// What counts now.
    pub used: u64,
    /// The most that calls which were let in ever had within one window.
    pub highest: u64,
    /// The same in percent of the limit of that moment; one decimal. 0 without a limit.
    pub highest_percent: f64,
}

/// Every window of every account.
#[derive(Debug)]
pub struct Limits {
    lengths: [u64; 2],
    groups: HashMap<String, Group>,
}

#[derive(Debug)]
struct Group {
    meters: Vec<Meter>,
    open: u64,
}

#[derive(Debug)]
struct Meter {
    window: Window,
    limit: Option<u64>,
    highest: u64,
    permille: u64,
}

impl Limits {
    /// With minutes and days of so many milliseconds.
    pub fn new(minute: u64, day: u64) -> Self {
        Self { lengths: [minute, day], groups: HashMap::new() }
    }

    /// Which windows a call belongs to.
    pub fn group(&self, rule: &LimitRule, account: &str, family: &str) -> String {
        let name = format!("{account}/{}", if rule.shared { &rule.model.0 } else { family });
        if self.groups.len() >= GROUPS && !self.groups.contains_key(&name) { "(others)".to_owned() } else { name }
    }

    /// Lets a call in and charges it, or says what is in its way: of several, what takes longest.
    ///
    /// # Errors
    /// That. Nothing is charged then, but see [`Limits::failed`].
    pub fn admit(&mut self, now: u64, group: &str, rule: &LimitRule, charge: Charge) -> Result<(), Denied> {
        let group = self.reach(group);
        let mut worst: Option<Denied> = None;
        for ((dimension, per), meter) in METERS.into_iter().zip(&mut group.meters) {
            meter.limit = rule.enforced(dimension, per);
            let Some(limit) = meter.limit else { continue };
            let requested = charge.needed(dimension);
            let wait = meter.window.wait(now, limit, requested);
            if wait == Some(0) {
                continue;
            }
            let longer = |than: &Denied| wait.unwrap_or(u64::MAX) > than.wait.unwrap_or(u64::MAX);
            if worst.as_ref().is_none_or(longer) {
                worst = Some(Denied { dimension, per, limit, used: meter.window.used(now), requested, wait });
            }
        }
        if let Some(limit) =
            rule.concurrent.map(|limit| times(limit, rule.enforced)).filter(|&limit| group.open >= limit)
        {
            let (dimension, per, used) = (Dimension::Concurrent, Per::Minute, group.open);
            worst = worst.or(Some(Denied { dimension, per, limit, used, requested: 1, wait: Some(1_000) }));
        }
        if let Some(denied) = worst {
            return Err(denied);
        }
        for ((dimension, _), meter) in METERS.into_iter().zip(&mut group.meters) {
            meter.charge(now, charge.amount(dimension));
        }
        group.open += 1;
        Ok(())
    }

    /// Charges a request to a call that failed or was refused.
    pub fn failed(&mut self, now: u64, group: &str) {
        for ((dimension, _), meter) in METERS.into_iter().zip(&mut self.reach(group).meters) {
            if dimension == Dimension::Requests {
                meter.window.charge_refused(now, 1);
            }
        }
    }

    /// Whether a request more fits, whatever it asks for.
    ///
    /// # Errors
    /// What is in its way.
    pub fn requests(&mut self, now: u64, group: &str, rule: &LimitRule) -> Result<(), Denied> {
        for ((dimension, per), meter) in METERS.into_iter().zip(&mut self.reach(group).meters) {
            let limit = rule.enforced(dimension, per).filter(|_| dimension == Dimension::Requests);
            let Some(limit) = limit else { continue };
            let wait = meter.window.wait(now, limit, 1);
            if wait != Some(0) {
                return Err(Denied { dimension, per, limit, used: meter.window.used(now), requested: 1, wait });
            }
        }
        Ok(())
    }

    /// Charges output as it appears.
    pub fn appeared(&mut self, now: u64, group: &str, api: Api, tokens: u64) {
        for ((dimension, _), meter) in METERS.into_iter().zip(&mut self.reach(group).meters) {
            let counts = match api {
                Api::OpenAi => false,
                Api::Anthropic => matches!(dimension, Dimension::OutputTokens | Dimension::Tokens),
                Api::Gemini => dimension == Dimension::OutputTokens,
            };
            if counts {
                meter.charge(now, tokens);
            }
        }
    }

    /// A call that was let in has ended.
    pub fn ended(&mut self, group: &str) {
        if let Some(group) = self.groups.get_mut(group) {
            group.open = group.open.saturating_sub(1);
        }
    }

    /// What headers tell: for each dimension its minute, or its day where only that is limited.
    pub fn standings(&mut self, now: u64, group: &str, rule: &LimitRule) -> Vec<Standing> {
        let mut told: Vec<Standing> = Vec::new();
        for ((dimension, per), meter) in METERS.into_iter().zip(&mut self.reach(group).meters) {
            let Some(limit) = rule.announced(dimension, per) else { continue };
            if told.iter().all(|standing| standing.dimension != dimension) {
                let remaining = limit.saturating_sub(meter.window.used(now));
                told.push(Standing { dimension, limit, remaining, reset: meter.window.empty_in(now) });
            }
        }
        told
    }

    /// Every window that was used.
    pub fn uses(&mut self, now: u64) -> Vec<Use> {
        let mut uses = Vec::new();
        for (name, group) in &mut self.groups {
            for ((dimension, per), meter) in METERS.into_iter().zip(&mut group.meters) {
                if meter.highest > 0 || meter.limit.is_some() {
                    uses.push(meter.told(name, (dimension, per), now));
                }
            }
        }
        uses.sort_by(|a, b| (&a.group, a.per, a.dimension).cmp(&(&b.group, b.per, b.dimension)));
        uses
    }

    fn reach(&mut self, name: &str) -> &mut Group {
        let lengths = self.lengths;
        self.groups.entry(name.to_owned()).or_insert_with(|| {
            let meter = |(_, per)| {
                let length = if per == Per::Minute { lengths[0] } else { lengths[1] };
                Meter { window: Window::new(length), limit: None, highest: 0, permille: 0 }
            };
            Group { meters: METERS.into_iter().map(meter).collect(), open: 0 }
        })
    }
}

impl Meter {
    fn charge(&mut self, now: u64, amount: u64) {
        if amount == 0 {
            return;
        }
        self.window.charge(now, amount);
        let used = self.window.let_in(now);
        self.highest = self.highest.max(used);
        if let Some(limit) = self.limit.filter(|&limit| limit > 0) {
            self.permille = self.permille.max(used.saturating_mul(1_000) / limit);
        }
    }

    fn told(&mut self, group: &str, (dimension, per): (Dimension, Per), now: u64) -> Use {
        let highest_percent = f64::from(u32::try_from(self.permille).unwrap_or(u32::MAX)) / 10.0;
        let (used, limit, highest) = (self.window.used(now), self.limit, self.highest);
        Use { group: group.to_owned(), dimension, per, limit, used, highest, highest_percent }
    }
}

#[cfg(test)]
mod tests;
