//! The rules of limits: what they are, whether workers share them, and whether any job can ever come under each.

use promptq_common::config;
use promptq_common::error::Kind;
use promptq_common::job::Queue;
use promptq_common::limits::{Rule, covers};
use promptq_worker::runner::Runners;

use super::{Finding, Health, PATIENCE};
use crate::context::Context;
use crate::limits::waits::runners;

const CHECK: &str = "limits";

/// One finding for all rules, and one for each that no job comes under. Nothing where there are none.
pub(super) async fn checks(cx: &Context, is_there: bool) -> Vec<Finding> {
    let rules = &cx.config.limits;
    if rules.is_empty() {
        return Vec::new();
    }
    let sharing = if is_there { sharing(cx).await } else { by_settings(cx) };
    let mut findings = vec![shown(rules, sharing, cx.config.worker.limit_share)];
    if let Some(runners) = runners(cx) {
        findings.extend(rules.iter().filter_map(|rule| unmatched(rule, &runners, &cx.config)));
    }
    findings
}

/// Whether workers keep limits together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sharing {
    Together,
    Apart,
    /// The ledger could not be asked, which its own check tells.
    Unknown,
}

async fn sharing(cx: &Context) -> Sharing {
    let Ok(broker) = cx.broker().await else { return Sharing::Unknown };
    match tokio::time::timeout(PATIENCE, broker.ledger().limits()).await {
        Ok(Ok(_)) => Sharing::Together,
        Ok(Err(error)) if error.kind() == Kind::Unsupported => Sharing::Apart,
        Ok(Err(_)) | Err(_) => Sharing::Unknown,
    }
}

/// What it will be once there is something to ask.
fn by_settings(cx: &Context) -> Sharing {
    match &cx.config.ledger {
        Some(config::Ledger::Store) => Sharing::Apart,
        Some(config::Ledger::Elsewhere { .. }) | None => Sharing::Together,
    }
}

fn shown(rules: &[Rule], sharing: Sharing, share: f64) -> Finding {
    let one = |rule: &Rule| {
        let caps: Vec<_> = rule.caps.iter().map(ToString::to_string).collect();
        let adaptive = if rule.adaptive { ", raised by headers" } else { "" };
        format!("{} {}{adaptive}", rule.key, caps.join(" + "))
    };
    let rules = rules.iter().map(one).collect::<Vec<_>>().join("; ");
    match sharing {
        Sharing::Together => Finding::new(CHECK, Health::Ok, format!("{rules}; shared by all workers")),
        Sharing::Unknown => Finding::new(CHECK, Health::Ok, rules),
        Sharing::Apart => Finding::new(
            CHECK,
            Health::Warning,
            format!("{rules}; not shared: this ledger cannot, so each worker keeps to {share} of each"),
        )
        .hint("set worker.limit_share to 1 divided by the number of workers, or name a ledger of Redis or SQLite"),
    }
}

/// Of a rule that no job comes under.
fn unmatched(rule: &Rule, runners: &Runners, config: &config::Config) -> Option<Finding> {
    let key = rule.key.as_str();
    let provider = key.split('/').next().unwrap_or(key);
    let known = |name: &str| name == config::MOCK || name.starts_with("exec:") || config.providers.contains_key(name);
    // What a job that names the key as its model would come under.
    let meant = runners.limit_keys(&Queue::standard(), Some(key));
    let found = Finding::new(CHECK, Health::Warning, format!("no job comes under [limits.{key:?}]"));
    match meant.as_slice() {
        _ if known(provider) && provider == key => None,
        meant if known(provider) && meant.iter().any(|meant| covers(key, meant)) => None,
        [meant] => Some(found.hint(format!("jobs of the model {key} come under {meant:?}: name that"))),
        [_, ..] => {
            Some(found.hint(format!("jobs of the model {key} come under {}: name one of these", meant.join(", "))))
        }
        [] if known(provider) => None,
        [] => Some(found.hint(format!("there is no [providers.{provider}]; a key is PROVIDER or PROVIDER/MODEL"))),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use promptq_common::limits::{Cap, Measure, Per};
    use promptq_worker::configured;

    use super::*;

    fn rule(key: &str) -> Rule {
        let cap = |measure, most| Cap { measure, per: Per::Minute, most };
        let caps = vec![cap(Measure::Requests, 500), cap(Measure::Tokens, 90_000)];
        Rule { key: key.into(), caps, adaptive: false }
    }

    fn config_of(settings: &str) -> config::Config {
        let read = |_: &Path| Err(std::io::ErrorKind::NotFound.into());
        let sources = config::Sources {
            files: vec![("promptq.toml".into(), settings.into())],
            environment: BTreeMap::from([("HOME".to_owned(), "/home/me".to_owned())]),
            flags: Vec::new(),
            folder: "/".into(),
            read: &read,
        };
        config::resolve(&sources).unwrap()
    }

    fn hint(key: &str, settings: &str) -> Option<String> {
        let config = config_of(settings);
        let runners = Runners::new(configured::runners(&config)).unwrap();
        let found = unmatched(&rule(key), &runners, &config)?;
        assert_eq!(found.health, Health::Warning);
        found.hint
    }

    #[test]
    fn a_rule_that_no_job_comes_under_is_told_with_the_one_that_was_meant() {
        let openai = "providers.openai.api_key = \"k\"\n[models.fast]\nprovider = \"openai\"\nmodel = \"gpt-4o-mini\"";
        for key in ["openai", "openai/gpt-4o", "openai/gpt", "mock", "mock/slow", "exec:wc"] {
            assert_eq!(hint(key, openai), None, "{key}");
        }
        for (key, says) in [
            ("gpt-4o", "\"openai/gpt-4o\""),
            ("fast", "\"openai/gpt-4o-mini\""),
            ("openai/gpt-4o-2024-08-06", "\"openai/gpt-4o\""),
        ] {
            assert!(hint(key, openai).unwrap().contains(says), "{key}: {:?}", hint(key, openai));
        }
        let two = format!("{openai}\n[models.safe]\nroutes = [\"openai/gpt-4o\", \"anthropic/claude-x\"]");
        assert!(hint("safe", &two).unwrap().contains("openai/gpt-4o, anthropic/claude-x: name one"));
        assert_eq!(hint("anthropic/claude-x", &two), None);
        assert!(hint("acme/gpt", "").unwrap().contains("[providers.acme]"));
        assert!(hint("anthropic/claude-x", "").unwrap().contains("[providers.anthropic]"));
    }

    #[test]
    fn rules_are_shown_and_that_they_are_not_shared_is_a_warning() {
        let rules = [rule("openai"), Rule { adaptive: true, ..rule("acme/x") }];
        let together = shown(&rules, Sharing::Together, 0.125);
        assert_eq!(together.health, Health::Ok);
        let text = "openai 500 requests/min + 90000 tokens/min; acme/x 500 requests/min + 90000 tokens/min, raised by headers; shared";
        assert!(together.what.starts_with(text), "{}", together.what);
        let apart = shown(&rules, Sharing::Apart, 0.125);
        assert!(apart.health == Health::Warning && apart.what.contains("keeps to 0.125"), "{}", apart.what);
    }
}
