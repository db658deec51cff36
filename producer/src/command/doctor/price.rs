//! Whether the models that the settings name have a price, without which nobody can say what a job cost; and whether each
//! price is of a model that some job may have.

use std::collections::BTreeSet;

use promptq_common::config::{Config, MOCK};
use promptq_common::price::Seller;
use promptq_common::work::family;

use super::{Finding, Health};

/// The most models that are named.
const NAMED: usize = 5;

/// Tells which models have no price, where their providers do not say themselves what an answer cost, and which prices are
/// of no model that is named.
pub(super) fn checks(config: &Config) -> Vec<Finding> {
    let models = config.models.values().flatten().map(|model| (model.provider.as_str(), model.model.as_str()));
    let defaults =
        config.providers.iter().filter_map(|(name, provider)| Some((&**name, provider.default_model.as_deref()?)));
    // The mock costs nothing.
    let named: BTreeSet<_> = models.chain(defaults).filter(|(provider, _)| *provider != MOCK).collect();
    unpriced(config, &named).into_iter().chain(unused(config, &named)).collect()
}

/// Provider and model, as the settings name them.
type Named<'a> = BTreeSet<(&'a str, &'a str)>;

fn unpriced(config: &Config, named: &Named<'_>) -> Option<Finding> {
    let prices = &config.prices;
    let is_unknown =
        |(provider, model): &(&str, &str)| prices.of(provider, model).is_none() && !prices.is_told(provider);
    let unknown: BTreeSet<_> = named.iter().copied().filter(is_unknown).collect();
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

/// The first [`NAMED`] prices that no job has here, or only one that names their model itself.
fn unused(config: &Config, named: &Named<'_>) -> Vec<Finding> {
    let is_of = |(provider, model): (&str, &str)| {
        named.iter().any(|(of, name)| *of == provider && (model == "*" || *name == model || family(name) == model))
    };
    let unused = config.prices.own().filter(|price| !is_of(*price)).take(NAMED);
    let finding = |(provider, model): (&str, &str)| {
        let name = format!("{provider}/{model}");
        if !config.providers.contains_key(provider) && Seller::named(provider).is_none() {
            let what = format!("no job has the price of [prices.{name:?}]");
            let hint = format!("there is no [providers.{provider}]; a price is of PROVIDER/MODEL, as jobs are called");
            return Finding::new("price", Health::Warning, what).hint(hint);
        }
        let what = match model {
            "*" => format!("[prices.{name:?}] is of jobs that name {provider}/MODEL: no [models.NAME] leads there"),
            _ => format!("[prices.{name:?}] is of jobs with -m {name}: no [models.NAME] leads there"),
        };
        Finding::new("price", Health::Ok, what)
    };
    unused.map(finding).collect()
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use promptq_common::config::{Sources, resolve};

    use super::*;

    fn all(settings: &str) -> Vec<Finding> {
        let read = |_: &Path| Err(std::io::ErrorKind::NotFound.into());
        let sources = Sources {
            files: vec![(PathBuf::from("promptq.toml"), settings.to_owned())],
            environment: [("HOME".to_owned(), "/home/me".to_owned())].into(),
            flags: Vec::new(),
            folder: PathBuf::from("/run"),
            read: &read,
        };
        checks(&resolve(&sources).unwrap())
    }

    fn told(settings: &str) -> Option<String> {
        all(settings).into_iter().next().map(|finding| finding.what)
    }

    #[test]
    fn a_price_that_no_model_has_is_told_with_the_jobs_that_would_have_it() {
        let price = |name: &str| format!("[prices.{name:?}]\ninput = \"1\"\noutput = \"1\"\n");
        let acme = "[providers.acme]\nbase_url = \"http://127.0.0.1:9/v1\"\ndefault_model = \"fast-2-2026-01-01\"\n";
        let of = |name: &str| {
            let found = all(&(price(name) + acme)).into_iter().find(|finding| finding.what.contains("[prices."));
            found.map(|finding| (finding.health, finding.what + "; " + &finding.hint.unwrap_or_default()))
        };
        assert_eq!([of("acme/fast-2-2026-01-01"), of("acme/fast-2"), of("acme/*")], [None, None, None]);
        let (health, told) = of("acme/slow").unwrap();
        assert_eq!(health, Health::Ok, "a job may name it: {told}");
        assert!(told.starts_with("[prices.\"acme/slow\"] is of jobs with -m acme/slow"), "{told}");
        let (health, told) = of("amce/fast-2").unwrap();
        assert!(health == Health::Warning && told.contains("there is no [providers.amce]"), "{told}");
    }

    #[test]
    fn a_configured_model_without_a_price_is_named() {
        const ACME: &str = "[providers.acme]\nbase_url = \"http://127.0.0.1:9/v1\"\ndefault_model = \"fast-2\"\n";
        assert_eq!([told(""), told("[models.fast]\nprovider = \"mock\"")], [None, None]);
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
