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
    /// The most output it may have; `None` where output is charged as it appears, or not at all.
    pub output: Option<u64>,
}

impl Charge {
    /// The way of an API: `OpenAI` charges what the call may come to (`assumed` where it says no maximum), Anthropic the
    /// input that was not cached and then output as it appears, Gemini the input.
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
        if let Some(limit) = rule.concurrent.map(|limit| times(limit, rule.enforced)).filter(|&limit| group.open >= limit) {
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(text: &str) -> LimitRule {
        toml::from_str(text).unwrap()
    }

    fn limits() -> Limits {
        Limits::new(60_000, 86_400_000)
    }

    #[test]
    fn openai_charges_what_a_call_may_come_to_and_keeps_it() {
        let (mut limits, rule) = (limits(), rule("minute = { tokens = 1000 }"));
        let charge = Charge::of(Api::OpenAi, 100, 60, 500);
        limits.admit(0, "g", &rule, charge).unwrap();
        let denied = limits.admit(1, "g", &rule, charge).unwrap_err();
        assert_eq!((denied.dimension, denied.used, denied.requested), (Dimension::Tokens, 600, 600));
        assert_eq!(denied.wait, Some(59_999));
        limits.appeared(2, "g", Api::OpenAi, 3);
        assert_eq!(limits.standings(2, "g", &rule)[0].remaining, 400);
    }

    #[test]
    fn anthropic_charges_fresh_input_and_then_output_as_it_appears() {
        let (mut limits, rule) = (limits(), rule("minute = { input_tokens = 100, output_tokens = 50 }"));
        let charge = Charge::of(Api::Anthropic, 100, 60, 4_000);
        limits.admit(0, "g", &rule, charge).unwrap();
        limits.admit(0, "g", &rule, charge).unwrap();
        limits.appeared(10, "g", Api::Anthropic, 70);
        let denied = limits.admit(20, "g", &rule, Charge::of(Api::Anthropic, 1, 0, 1)).unwrap_err();
        assert_eq!((denied.dimension, denied.used, denied.wait), (Dimension::OutputTokens, 70, Some(59_990)));
    }

    #[test]
    fn gemini_charges_input() {
        let (mut limits, rule) = (limits(), rule("minute = { tokens = 100 }"));
        limits.admit(0, "g", &rule, Charge::of(Api::Gemini, 60, 0, 1_000)).unwrap();
        limits.appeared(1, "g", Api::Gemini, 500);
        limits.admit(2, "g", &rule, Charge::of(Api::Gemini, 40, 0, 1_000)).unwrap();
    }

    #[test]
    fn a_refused_call_is_charged_only_where_its_failure_counts() {
        let (mut limits, rule) = (limits(), rule("minute = { requests = 2, tokens = 100 }"));
        limits.admit(0, "g", &rule, Charge { input: 60, output: None }).unwrap();
        limits.admit(1, "g", &rule, Charge { input: 60, output: None }).unwrap_err();
        let uses = |limits: &mut Limits| limits.uses(2).iter().map(|line| (line.used, line.highest)).collect::<Vec<_>>();
        assert_eq!(uses(&mut limits)[0], (1, 1), "requests");
        limits.failed(1, "g");
        assert_eq!(uses(&mut limits)[0], (2, 1), "a failed one counts and was not let in");
        let denied = limits.admit(3, "g", &rule, Charge { input: 1, output: None }).unwrap_err();
        assert_eq!((denied.dimension, denied.wait), (Dimension::Requests, Some(59_997)));
    }

    #[test]
    fn what_takes_longest_is_told_and_what_never_fits_before_all() {
        let (mut limits, rule) = (limits(), rule("minute = { requests = 1 }\nday = { requests = 1, tokens = 10 }"));
        limits.admit(0, "g", &rule, Charge { input: 1, output: None }).unwrap();
        assert_eq!(limits.admit(0, "g", &rule, Charge { input: 1, output: None }).unwrap_err().per, Per::Day);
        assert_eq!(limits.admit(0, "g", &rule, Charge { input: 11, output: None }).unwrap_err().wait, None);
    }

    #[test]
    fn calls_open_at_once_are_limited_until_they_end() {
        let (mut limits, rule) = (limits(), rule("concurrent = 1"));
        let charge = Charge { input: 1, output: None };
        limits.admit(0, "g", &rule, charge).unwrap();
        assert_eq!(limits.admit(0, "g", &rule, charge).unwrap_err().dimension, Dimension::Concurrent);
        limits.ended("g");
        limits.admit(0, "g", &rule, charge).unwrap();
    }

    #[test]
    fn what_is_told_and_what_holds_may_differ() {
        let charge = Charge { input: 1, output: None };
        let (mut told, half) = (limits(), rule("minute = { requests = 10 }\nannounced = 0.5"));
        (0..10).for_each(|_| told.admit(0, "g", &half, charge).unwrap());
        let standing = told.standings(0, "g", &half)[0];
        assert_eq!((standing.limit, standing.remaining), (5, 0));
        let (mut untold, half) = (limits(), rule("minute = { requests = 10 }\nenforced = 0.5"));
        (0..5).for_each(|_| untold.admit(0, "g", &half, charge).unwrap());
        untold.admit(0, "g", &half, charge).unwrap_err();
        assert_eq!(untold.standings(0, "g", &half)[0].remaining, 5);
    }

    proptest! {
        /// Whatever is asked, no minute has more than any of the limits, and the bill knows the fullest one.
        #[test]
        fn no_minute_has_more_than_any_limit(
            calls in prop::collection::vec((0..20_000_u64, 0..400_u64, 0..400_u64), 1..150),
        ) {
            let (mut limits, rule) = (limits(), rule("minute = { requests = 5, tokens = 1000 }"));
            let (mut now, mut let_in) = (0, Vec::new());
            for (pause, input, most) in calls {
                now += pause;
                let charge = Charge::of(Api::OpenAi, input, 0, most);
                if limits.admit(now, "g", &rule, charge).is_ok() {
                    let_in.push((now, input + most));
                } else {
                    prop_assert!(!let_in.is_empty());
                }
            }
            let mut fullest = 0;
            for &(end, _) in &let_in {
                let within = let_in.iter().filter(|(at, _)| *at <= end && at + 60_000 > end);
                let (count, tokens) = within.fold((0, 0), |(count, sum), (_, tokens)| (count + 1, sum + tokens));
                prop_assert!(count <= 5 && tokens <= 1_000, "{count} calls, {tokens} tokens");
                fullest = fullest.max(count);
            }
            let told = limits.uses(now).into_iter().find(|line| line.dimension == Dimension::Requests);
            prop_assert_eq!(told.map_or(0, |line| line.highest), fullest);
        }
    }
}
