//! What goes wrong, and when: rules of a configuration, and which of them strikes a call. How a fault looks on the wire is
//! `refusal/`'s and `deliver.rs`'s.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::bail;
use serde::{Deserialize, Serialize};

use super::config::{Pattern, check_share};
use super::kind::{Kind, Stage};
use super::random::{Dice, Span};
use super::shape::{Api, Ask};

/// A fault and when it strikes: every condition that is given must hold.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultRule {
    /// What happens.
    pub kind: Kind,
    /// What the ledger calls it; the kind when absent.
    #[serde(default)]
    pub name: Option<String>,
    /// Share of the calls that it may strike, 0 to 1, drawn from the seed and their number.
    #[serde(default)]
    pub share: Option<f64>,
    /// Only each n-th of the calls that it may strike.
    #[serde(default)]
    pub every: Option<u64>,
    /// Only the first so many of the calls that it may strike.
    #[serde(default)]
    pub first: Option<u64>,
    /// Only calls whose texts hold this.
    #[serde(default)]
    pub contains: Option<String>,
    /// Only calls of these accounts.
    #[serde(default)]
    pub account: Pattern,
    /// Only calls for these models.
    #[serde(default)]
    pub model: Pattern,
    /// Only calls of this API.
    #[serde(default)]
    pub api: Option<Api>,
    /// Only from so long after the rule was set.
    #[serde(default)]
    pub after: Option<Span>,
    /// Only for so long from then on: a storm.
    #[serde(default, rename = "for")]
    pub lasting: Option<Span>,
    /// What a refusal says of when to come again.
    #[serde(default)]
    pub retry_after: Option<Span>,
    /// How much longer a call takes until its first byte.
    #[serde(default)]
    pub delay: Option<Span>,
    /// In place of the kind's HTTP status.
    #[serde(default)]
    pub status: Option<u16>,
    /// In place of the kind's sentence.
    #[serde(default)]
    pub message: Option<String>,
    /// In place of the kind's whole body.
    #[serde(default)]
    pub body: Option<String>,
    /// More headers.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Of `error_inside`: which error; `overloaded` when absent.
    #[serde(default)]
    pub inner: Option<Kind>,
    /// Whether the call is paid for; by the kind when absent.
    #[serde(default)]
    pub billed: Option<bool>,
}

impl FaultRule {
    /// A rule without conditions.
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            name: None,
            share: None,
            every: None,
            first: None,
            contains: None,
            account: Pattern::default(),
            model: Pattern::default(),
            api: None,
            after: None,
            lasting: None,
            retry_after: None,
            delay: None,
            status: None,
            message: None,
            body: None,
            headers: BTreeMap::new(),
            inner: None,
            billed: None,
        }
    }

    /// What the ledger calls it.
    pub fn called(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.kind.name())
    }

    /// Whether a call that it struck is paid for: what was worked on is, unless it never came to anything.
    pub fn is_billed(&self) -> bool {
        self.billed
            .unwrap_or(self.kind.stage() == Stage::Delivery && !matches!(self.kind, Kind::Silent | Kind::ErrorInside))
    }

    /// # Errors
    /// When it can never strike, or could not be sent.
    pub fn check(&self) -> anyhow::Result<()> {
        self.share.map_or(Ok(()), |share| check_share("share", share))?;
        if self.every == Some(0) {
            bail!("every must be at least 1");
        }
        if self.status.is_some_and(|status| !(200..600).contains(&status)) {
            bail!("status {} is no status of HTTP", self.status.unwrap_or_default());
        }
        if self.inner.is_some_and(|inner| inner.stage() != Stage::Refused) {
            bail!("inner must be an error that an answer can hold");
        }
        let in_a_line = |text: &str| !text.is_empty() && text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if let Some((name, _)) = self.headers.iter().find(|(name, value)| !in_a_line(name) || !in_a_line(value)) {
            bail!("the header {name:?} cannot be sent");
        }
        Ok(())
    }
}

/// The rules, and how many calls each might have struck.
#[derive(Debug)]
pub struct Faults {
    seed: u64,
    since: u64,
    rules: Vec<(Arc<FaultRule>, u64)>,
}

impl Faults {
    /// Rules that were set at this time, in milliseconds.
    pub fn new(seed: u64, since: u64, rules: &[FaultRule]) -> Self {
        Self { seed, since, rules: rules.iter().map(|rule| (Arc::new(rule.clone()), 0)).collect() }
    }

    /// The rules as they were set.
    pub fn rules(&self) -> Vec<&FaultRule> {
        self.rules.iter().map(|(rule, _)| &**rule).collect()
    }

    /// The first rule that strikes this call.
    pub fn strike(&mut self, now: u64, account: &str, ask: &Ask) -> Option<Arc<FaultRule>> {
        let (seed, age) = (self.seed, now.saturating_sub(self.since));
        let mut struck = None;
        for (at, (rule, seen)) in self.rules.iter_mut().enumerate() {
            if struck.is_some() || !concerns(rule, age, account, ask) {
                continue;
            }
            *seen += 1;
            let drawn = rule.share.is_none_or(|share| Dice::new(seed, at as u64).share(*seen) < share);
            let counted =
                rule.every.is_none_or(|every| *seen % every == 0) && rule.first.is_none_or(|first| *seen <= first);
            if drawn && counted {
                struck = Some(Arc::clone(rule));
            }
        }
        struck
    }
}

fn concerns(rule: &FaultRule, age: u64, account: &str, ask: &Ask) -> bool {
    let from = rule.after.map_or(0, Span::as_millis);
    let until = rule.lasting.map_or(u64::MAX, |lasting| from.saturating_add(lasting.as_millis()));
    (from..until).contains(&age)
        && rule.account.fits(account)
        && rule.model.fits(&ask.model)
        && rule.api.is_none_or(|api| api == ask.endpoint.api())
        && rule.contains.as_ref().is_none_or(|marker| ask.prompt.contains(marker.as_str()))
}

#[cfg(test)]
mod tests {
    use super::super::shape::Route;
    use super::*;

    fn ask(text: &str) -> Ask {
        let body = format!(r#"{{"model":"m-1","input":"{text}"}}"#);
        Ask::read(&Route::of("/v1/responses").unwrap(), body.as_bytes()).unwrap()
    }

    fn faults(rules: &str) -> Faults {
        let config: crate::fake::config::Config = toml::from_str(rules).unwrap();
        config.check().unwrap();
        Faults::new(1, 1_000, &config.faults)
    }

    #[test]
    fn every_condition_must_hold() {
        let rule = "[[faults]]\nkind = \"overloaded\"\ncontains = \"boom\"\naccount = \"a*\"\nmodel = \"m-*\"\napi = \"openai\"\nafter = \"1s\"\nfor = \"2s\"";
        let strikes = |now, account, text| faults(rule).strike(now, account, &ask(text)).is_some();
        assert!(strikes(2_000, "a1", "a boom here"));
        assert!(strikes(3_999, "a1", "boom"));
        for (now, account, text) in
            [(1_999, "a", "boom"), (4_000, "a", "boom"), (2_000, "b", "boom"), (2_000, "a", "calm")]
        {
            assert!(!strikes(now, account, text), "{now} {account} {text}");
        }
        let anthropic = faults("[[faults]]\nkind = \"overloaded\"\napi = \"anthropic\"").strike(1_000, "a", &ask(""));
        assert!(anthropic.is_none());
    }

    #[test]
    fn calls_are_counted_by_rule() {
        let struck = |rule: &str| -> Vec<usize> {
            let mut faults = faults(&format!("[[faults]]\nkind = \"conflict\"\n{rule}"));
            (1..=9).filter(|_| faults.strike(1_000, "a", &ask("")).is_some()).collect()
        };
        assert_eq!(struck("every = 3"), [3, 6, 9]);
        assert_eq!(struck("first = 2"), [1, 2]);
        assert_eq!(struck("share = 0.0"), [0; 0]);
        assert_eq!(struck("share = 1.0").len(), 9);
    }

    #[test]
    fn a_share_is_about_kept_and_the_same_each_time() {
        let struck = || -> Vec<bool> {
            let mut faults = faults("[[faults]]\nkind = \"conflict\"\nshare = 0.3");
            (0..2_000).map(|_| faults.strike(1_000, "a", &ask("")).is_some()).collect()
        };
        let count = struck().iter().filter(|struck| **struck).count();
        assert!((520..680).contains(&count), "{count}");
        assert_eq!(struck(), struck());
    }

    #[test]
    fn the_first_rule_that_applies_strikes() {
        let mut faults =
            faults("[[faults]]\nkind = \"conflict\"\nfirst = 1\n[[faults]]\nkind = \"billing\"\nstatus = 499");
        let mut next = || faults.strike(1_000, "a", &ask("")).map(|rule| rule.kind);
        assert_eq!((next(), next()), (Some(Kind::Conflict), Some(Kind::Billing)));
    }
}
