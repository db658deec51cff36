//! What a fake provider is told: its accounts, models, prices, answers, latencies, limits and faults, from a TOML or JSON
//! file, checked as a whole. What a rule means is with the rule: `allowance.rs`, `fault.rs`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use promptq_common::outcome::Usd;
use serde::{Deserialize, Serialize};

use super::allowance::LimitRule;
use super::fault::FaultRule;
use super::random::{Span, Spread};

/// Everything that can be set. Without a file: no limits, no faults, no waiting, answers of 20 tokens.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How long a "minute" of the limits is; shorter ones make short tests.
    pub minute: Span,
    /// How long a "day" is: the last 24 hours, sliding.
    pub day: Span,
    /// API keys by the name their account has here. When there are any, other keys are answered 401; otherwise any key, or
    /// none, is an account of its own.
    pub accounts: BTreeMap<String, String>,
    /// What is known about models: the first whose name fits counts.
    pub models: Vec<Model>,
    /// Whether models that are not listed are answered 404.
    pub only_listed_models: bool,
    /// How many bytes of text are one input token, at least 0.1; rounded up.
    pub bytes_per_token: f64,
    /// What answers are like.
    pub answer: AnswerRule,
    /// How long calls take.
    pub latency: Latency,
    /// Who may use how much: the first whose account and model fit counts.
    pub limits: Vec<LimitRule>,
    /// What goes wrong when: the first that applies to a call strikes.
    pub faults: Vec<FaultRule>,
    /// Calls kept in memory for `GET /fake/calls`; older ones are in the file alone.
    pub calls_kept: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            minute: Span(Duration::from_secs(60)),
            day: Span(Duration::from_secs(86_400)),
            accounts: BTreeMap::new(),
            models: Vec::new(),
            only_listed_models: false,
            bytes_per_token: 4.0,
            answer: AnswerRule::default(),
            latency: Latency::default(),
            limits: Vec::new(),
            faults: Vec::new(),
            calls_kept: 100_000,
        }
    }
}

/// A model, or several by a pattern.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Model {
    /// Its name, or a beginning with `*` behind it.
    pub name: Pattern,
    /// Dollars for a million input tokens.
    pub input: Usd,
    /// Dollars for a million input tokens read from a cache; as `input` when absent.
    pub cached: Option<Usd>,
    /// Dollars for a million output tokens.
    pub output: Usd,
    /// In place of `answer` for this model.
    pub answer: Option<AnswerRule>,
    /// In place of `latency` for this model.
    pub latency: Option<Latency>,
}

/// What answers are like.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AnswerRule {
    /// Output tokens that an answer would have if nobody limited it, reasoning included.
    pub output: Spread<u64>,
    /// In place of words drawn from the seed: what every answer says.
    pub text: Option<String>,
    /// Output tokens in a chunk of a stream, at least 1.
    pub chunk: u64,
    /// Share of the input that is said to be read from a cache, 0 to 1.
    pub cached: f64,
    /// Share of the output that is said to be reasoning, 0 to 1.
    pub reasoning: f64,
    /// Numbers in an embedding, unless the request says `dimensions`.
    pub dimensions: usize,
}

impl Default for AnswerRule {
    fn default() -> Self {
        Self { output: Spread::Fixed(20), text: None, chunk: 8, cached: 0.0, reasoning: 0.0, dimensions: 16 }
    }
}

/// How long calls take; drawn for each request from the seed.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Latency {
    /// From the request's end to the first chunk.
    pub first: Spread<Span>,
    /// Between two chunks, also those that are not sent apart.
    pub between: Spread<Span>,
}

impl Default for Latency {
    fn default() -> Self {
        Self { first: Spread::Fixed(Span(Duration::ZERO)), between: Spread::Fixed(Span(Duration::ZERO)) }
    }
}

/// A name, or the beginning of one with `*` behind it; `*` alone fits all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pattern(pub String);

impl Default for Pattern {
    fn default() -> Self {
        Self("*".to_owned())
    }
}

impl Pattern {
    /// Whether it means this name.
    pub fn fits(&self, name: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => self.0 == name,
        }
    }
}

impl Config {
    /// Reads and checks a file: JSON when its name ends in `.json`, else TOML.
    ///
    /// # Errors
    /// One that names the file, the place in it and what is wrong there.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let is_json = path.extension().is_some_and(|extension| extension == "json");
        let config: Self = if is_json {
            serde_json::from_str(&text).with_context(|| format!("{} cannot be used", path.display()))?
        } else {
            toml::from_str(&text).with_context(|| format!("{} cannot be used", path.display()))?
        };
        config.check().with_context(|| format!("{} cannot be used", path.display()))?;
        Ok(config)
    }

    /// # Errors
    /// When something in it cannot be meant.
    pub fn check(&self) -> anyhow::Result<()> {
        if self.minute.0.is_zero() || self.day.0 < self.minute.0 {
            bail!("minute must be longer than nothing and no longer than day");
        }
        if !(0.1..=1_000.0).contains(&self.bytes_per_token) {
            bail!("bytes_per_token {} is not from 0.1 to 1000", self.bytes_per_token);
        }
        self.answer.check().context("answer")?;
        self.latency.check().context("latency")?;
        for model in &self.models {
            let named = || format!("models: {:?}", model.name.0);
            model.answer.as_ref().map_or(Ok(()), AnswerRule::check).with_context(named)?;
            model.latency.as_ref().map_or(Ok(()), Latency::check).with_context(named)?;
        }
        check_rules(&self.limits, &self.faults)
    }

    /// What is known about a model.
    pub fn model(&self, name: &str) -> Option<&Model> {
        self.models.iter().find(|model| model.name.fits(name))
    }

    /// What its answers are like.
    pub fn answer(&self, model: &str) -> &AnswerRule {
        self.model(model).and_then(|model| model.answer.as_ref()).unwrap_or(&self.answer)
    }

    /// How long its calls take.
    pub fn latency(&self, model: &str) -> &Latency {
        self.model(model).and_then(|model| model.latency.as_ref()).unwrap_or(&self.latency)
    }
}

/// # Errors
/// When a rule cannot be meant; it is named by its place.
pub fn check_rules(limits: &[LimitRule], faults: &[FaultRule]) -> anyhow::Result<()> {
    for (at, rule) in limits.iter().enumerate() {
        rule.check().with_context(|| format!("limits, number {}", at + 1))?;
    }
    for (at, rule) in faults.iter().enumerate() {
        rule.check().with_context(|| format!("faults, number {}", at + 1))?;
    }
    Ok(())
}

/// # Errors
/// When it is not from 0 to 1.
pub fn check_share(name: &str, share: f64) -> anyhow::Result<()> {
    if !(0.0..=1.0).contains(&share) {
        bail!("{name} {share} is not from 0 to 1");
    }
    Ok(())
}

impl AnswerRule {
    fn check(&self) -> anyhow::Result<()> {
        check_share("cached", self.cached)?;
        check_share("reasoning", self.reasoning)?;
        if self.chunk == 0 || !(1..=4_096).contains(&self.dimensions) {
            bail!("chunk must be at least 1, dimensions from 1 to 4096");
        }
        self.output.fault().map_or(Ok(()), |why| bail!("output: {why}"))
    }
}

impl Latency {
    fn check(&self) -> anyhow::Result<()> {
        for (name, spread) in [("first", &self.first), ("between", &self.between)] {
            if let Some(why) = spread.fault() {
                bail!("{name}: {why}");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str) -> Result<Config, String> {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        Config::read(&path).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn toml_and_json_say_the_same() {
        let toml = "minute = \"1s\"\n[answer]\noutput = { uniform = [1, 9] }\n[[models]]\nname = \"gpt-*\"\ninput = \"0.15\"\noutput = \"0.6\"";
        let json = r#"{"minute":"1s","answer":{"output":{"uniform":[1,9]}},"models":[{"name":"gpt-*","input":"0.15","output":"0.6"}]}"#;
        let (toml, json) = (read("a.toml", toml).unwrap(), read("a.json", json).unwrap());
        assert_eq!(format!("{toml:?}"), format!("{json:?}"));
        assert_eq!(toml.model("gpt-4o").unwrap().input, Usd::from_nanos(150_000_000));
        assert!(toml.model("claude").is_none());
    }

    #[test]
    fn what_cannot_be_meant_is_told_with_its_place() {
        for (text, says) in [
            ("minut = \"1s\"", "minut"),
            ("minute = \"soon\"", "soon"),
            ("minute = \"2d\"", "no longer than day"),
            ("bytes_per_token = 0", "bytes_per_token 0"),
            ("[answer]\ncached = 1.5", "cached 1.5"),
            ("[answer]\noutput = { uniform = [9, 1] }", "larger bound first"),
            ("[latency]\nfirst = { normal = 1 }", "normal"),
            ("[[faults]]\nkind = \"earthquake\"", "earthquake"),
            ("[[faults]]\nkind = \"overloaded\"\nshare = 2.0", "faults, number 1: share 2"),
            ("[[limits]]\nminute = { calls = 1 }", "calls"),
            ("[[limits]]\nenforced = -1.0", "limits, number 1"),
        ] {
            let error = read("wrong.toml", text).unwrap_err();
            assert!(error.contains(says) && error.contains("wrong.toml"), "{text}: {error}");
        }
    }
}
