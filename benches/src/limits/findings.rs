//! What a run of `benches/limits` or `benches/gateway` saw, beside its goals: as a table for people, and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use crate::account::short;
use crate::report::Machine;

/// The form of the file; another one is refused.
pub const SCHEMA: u32 = 1;

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Findings {
    /// [`SCHEMA`].
    pub schema: u32,
    /// When it began, RFC 3339 in UTC.
    pub date: String,
    /// `full`, `quick` or `smoke`.
    pub form: String,
    /// Whether every measure had the machine for itself.
    pub alone: bool,
    /// Where.
    pub machine: Machine,
    /// Of promptq and its brokers, by name.
    pub versions: BTreeMap<String, String>,
    /// Every figure, measure by measure.
    pub findings: Vec<Finding>,
    /// Measures that broke off, and why.
    pub trouble: Vec<String>,
}

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// In which measure.
    pub measure: String,
    /// What it is.
    pub what: String,
    /// What it was.
    pub seen: f64,
    /// Of what: `%`, `s`, `ms`, `$`, `calls`, `jobs`, `kills`.
    pub unit: String,
    /// What it should at least be, where there is such a goal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub least: Option<f64>,
    /// What it should at most be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub most: Option<f64>,
}

impl Finding {
    /// One without a goal.
    pub fn new(what: &str, seen: f64, unit: &str) -> Self {
        let (measure, what, unit) = (String::new(), what.to_owned(), unit.to_owned());
        Self { measure, what, seen, unit, least: None, most: None }
    }

    /// With a goal: at least so much.
    pub fn at_least(self, least: f64) -> Self {
        Self { least: Some(least), ..self }
    }

    /// With a goal: at most so much.
    pub fn at_most(self, most: f64) -> Self {
        Self { most: Some(most), ..self }
    }

    /// Whether its goals are met; `None` where it has none.
    pub fn is_met(&self) -> Option<bool> {
        let above = self.least.map(|least| self.seen >= least);
        let below = self.most.map(|most| self.seen <= most);
        if above.is_none() { below } else { above.map(|above| above && below.unwrap_or(true)) }
    }

    fn goal(&self) -> String {
        let part = |word: &str, bound: Option<f64>| bound.map(|bound| format!("{word} {}", shown(bound, &self.unit)));
        let parts: Vec<_> = [part("at least", self.least), part("at most", self.most)].into_iter().flatten().collect();
        if parts.is_empty() { "-".to_owned() } else { parts.join(", ") }
    }
}

impl Findings {
    /// From a file.
    ///
    /// # Errors
    /// When it cannot be read, or is of another form.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
        let findings: Self =
            serde_json::from_str(&text).with_context(|| format!("{} is none of benches/limits", path.display()))?;
        ensure!(findings.schema == SCHEMA, "{} has schema {}, not {SCHEMA}", path.display(), findings.schema);
        Ok(findings)
    }

    /// Into a file, and its folder.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let text = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(path, text).with_context(|| format!("{} cannot be written", path.display()))
    }

    /// As a table.
    pub fn table(&self) -> String {
        let mut text = String::new();
        self.write_table(&mut text).expect("a string takes all");
        text
    }

    fn write_table(&self, text: &mut String) -> std::fmt::Result {
        let machine = &self.machine;
        writeln!(text, "promptq, {} run of {}", self.form, self.date)?;
        writeln!(
            text,
            "{} x {}, {} MiB, {}, {}",
            machine.processors, machine.processor, machine.memory_mib, machine.kernel, machine.rustc
        )?;
        let versions: Vec<_> = self.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        writeln!(text, "{}", versions.join(", "))?;
        let mut measure = "";
        for finding in &self.findings {
            if finding.measure != measure {
                measure = &finding.measure;
                writeln!(text, "\n{measure:62}{:>12}   goal", "seen")?;
            }
            let met = match finding.is_met() {
                None => "",
                Some(true) => "met",
                Some(false) => "MISSED",
            };
            let seen = shown(finding.seen, &finding.unit);
            writeln!(text, "  {:60}{seen:>12}   {:38}{met}", finding.what, finding.goal())?;
        }
        for trouble in &self.trouble {
            writeln!(text, "\nbroke off: {trouble}")?;
        }
        Ok(())
    }
}

fn shown(figure: f64, unit: &str) -> String {
    match unit {
        "calls" | "jobs" | "kills" => format!("{figure:.0} {unit}"),
        "$" => format!("$ {figure:.4}"),
        _ => format!("{} {unit}", short(figure)),
    }
}
