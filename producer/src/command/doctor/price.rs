//! Whether the models that the settings name have a price: without one nobody can say what a job cost.

use std::collections::BTreeSet;

use promptq_common::config::Config;

use super::{Finding, Health};

/// The most models that are named.
const NAMED: usize = 5;

/// Tells which models have no price; nothing where all have, or their providers say themselves what an answer cost.
pub(super) fn check(config: &Config) -> Option<Finding> {
    let models = config.models.values().flatten().map(|model| (model.provider.as_str(), model.model.as_str()));
    let defaults =
        config.providers.iter().filter_map(|(name, provider)| Some((&**name, provider.default_model.as_deref()?)));
    let prices = &config.prices;
    let is_unknown =
        |(provider, model): &(&str, &str)| prices.of(provider, model).is_none() && !prices.is_told(provider);
    let unknown: BTreeSet<_> = models.chain(defaults).filter(is_unknown).collect();
    let (provider, model) = unknown.first()?;
    let named: Vec<_> = unknown.iter().take(NAMED).map(|(provider, model)| format!("{provider}/{model}")).collect();
    let more = match unknown.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let its = if unknown.len() == 1 { "its" } else { "their" };
    let what = format!("no price for {}{more}; {its} cost will be shown as ?", named.join(", "));
    let hint = format!("[prices.\"{provider}/{model}\"] input = \"…\", output = \"…\": dollars for a million tokens");
    Some(Finding::new("price", Health::Warning, what).hint(hint))
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use promptq_common::config::{Sources, resolve};

    use super::*;

    fn told(settings: &str) -> Option<String> {
        let read = |_: &Path| Err(std::io::ErrorKind::NotFound.into());
        let sources = Sources {
            files: vec![(PathBuf::from("promptq.toml"), settings.to_owned())],
            environment: [("HOME".to_owned(), "/home/me".to_owned())].into(),
            flags: Vec::new(),
            folder: PathBuf::from("/run"),
            read: &read,
        };
        check(&resolve(&sources).unwrap()).map(|finding| finding.what)
    }

    #[test]
    fn a_configured_model_without_a_price_is_named() {
        const ACME: &str = "[providers.acme]\nbase_url = \"http://127.0.0.1:9/v1\"\ndefault_model = \"fast-2\"\n";
        assert_eq!(told(""), None);
        assert_eq!(told(ACME).unwrap(), "no price for acme/fast-2; its cost will be shown as ?");
        let priced = format!("{ACME}[prices.\"acme/fast-2\"]\ninput = \"1\"\noutput = \"1\"");
        assert_eq!(told(&priced), None);
        let slow = format!("{ACME}[models.slow]\nprovider = \"acme\"\nmodel = \"slow-1\"");
        assert!(told(&slow).unwrap().starts_with("no price for acme/fast-2, acme/slow-1; their cost"));
        let several =
            format!("{priced}\n[models.fast]\nroutes = [\"acme/fast-2\", \"openai/gpt-4o\", \"acme/slow-1\"]");
        assert_eq!(told(&several).unwrap(), "no price for acme/slow-1; its cost will be shown as ?", "on every route");
        assert_eq!(told("[models.fast]\nprovider = \"anthropic\"\nmodel = \"claude-haiku-4-5\""), None);
        let router = "[providers.router]\nbase_url = \"https://openrouter.ai/api/v1\"\ndefault_model = \"any\"";
        assert_eq!(told(router), None, "it says itself what an answer cost");
    }
}
