//! The sections `prices.PROVIDER/MODEL`: what models cost of which nothing is known, or which cost their user something else.

use std::collections::BTreeMap;

use super::error::Origin;
use super::provider::{MOCK, Provider};
use super::reader::Reader;
use crate::outcome::Usd;
use crate::price::{Date, Price, Prices, Rates, Seller};

/// Dollars for a million tokens that no model costs.
const TOO_MUCH: Usd = Usd::from_nanos(1_000_000_000_000_000);

/// Every price that was said, and the known ones of whoever the providers are.
pub(super) fn prices(r: &mut Reader<'_>, providers: &BTreeMap<String, Provider>) -> Prices {
    let names = r.names("prices").into_iter();
    let own: Vec<_> = names.map(|name| (name.clone(), price(r, &name))).collect();
    let sellers = providers.iter().map(|(name, provider)| (name.clone(), Seller::at(&provider.base_url)));
    Prices::new(own, sellers.collect())
}

fn price(r: &mut Reader<'_>, name: &str) -> Price {
    let at = |setting: &'static str| ["prices", name, setting];
    let is_whole = name.split_once('/').is_some_and(|(provider, model)| !provider.is_empty() && !model.is_empty());
    let is_part = name.split_once('/').is_some_and(|(_, model)| model.contains('*') && model != "*");
    if name.split_once('/').is_some_and(|(provider, _)| provider == MOCK) {
        r.wrong(&at("input"), "cannot be: the mock costs nothing");
    } else if is_part {
        r.wrong(&at("input"), "cannot be: a price is of one model, or of all others as in [prices.\"acme/*\"]");
    } else if !is_whole {
        r.wrong(&at("input"), "cannot be: prices are of PROVIDER/MODEL, as in [prices.\"acme/fast-2\"]");
    }
    let input = needed(r, &at("input"));
    let output = needed(r, &at("output"));
    let mut or_input = |setting: &'static str| {
        let said = r.amount(&at(setting), dollars);
        if said.is_none() {
            r.stands_for(&at(setting), input.to_string());
        }
        said.unwrap_or(input)
    };
    let (cached_input, cache_write) = (or_input("cached_input"), or_input("cache_write"));
    let as_of = r.parsed(&at("as_of"), None, |text| {
        text.parse::<Date>().map_err(|_| format!("must be a day such as \"2026-11-03\", not {text:?}"))
    });
    let plain = Price::flat(input, output);
    let rates = Rates { cached_input, cache_write, cache_write_1h: Some(cache_write), ..plain.rates };
    Price { rates, as_of, ..plain }
}

fn needed(r: &mut Reader<'_>, path: &[&str]) -> Usd {
    let said = r.amount(path, dollars);
    if said.is_none() && r.origin(path) == Origin::Default {
        r.wrong(path, "is missing");
    }
    said.unwrap_or_default()
}

fn dollars(text: &str) -> Result<Usd, String> {
    let rate = text.parse::<Usd>().ok().filter(|rate| *rate < TOO_MUCH);
    rate.ok_or_else(|| format!("must be dollars for a million tokens, in quotes such as \"0.20\", not {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, tests};

    fn given(text: &str) -> Result<Config, String> {
        tests::given(&[("promptq.toml", text)], &[], &[])
    }

    #[test]
    fn a_price_is_of_a_providers_model_and_dated() {
        let text = "[prices.\"acme/fast-2\"]\ninput = \"0.20\"\noutput = \"0.80\"\ncached_input = \"0.05\"\nas_of = \"2026-11-03\"\n\
            [prices.\"acme/slow\"]\ninput = 1\noutput = \"0\"";
        let config = given(text).unwrap();
        let usd = |text: &str| text.parse::<Usd>().unwrap();
        let price = config.prices.of("acme", "fast-2").unwrap();
        let Rates { input, cached_input, cache_write, output, .. } = price.rates;
        assert_eq!(
            [input, cached_input, cache_write, output].map(|rate| rate.to_string()),
            ["0.2", "0.05", "0.2", "0.8"]
        );
        assert_eq!(price.as_of.unwrap().to_string(), "2026-11-03");
        let slow = config.prices.of("acme", "slow").unwrap();
        assert_eq!((slow.rates.input, slow.rates.cached_input, slow.as_of), (usd("1"), usd("1"), None));
        let shown = |name: &str| &config.settings.iter().find(|setting| setting.name == name).unwrap().value;
        assert_eq!(
            (shown("prices.acme/fast-2.input"), shown("prices.acme/slow.cache_write")),
            (&"0.2".into(), &"1".into())
        );
    }

    #[test]
    fn a_server_of_ones_own_has_no_known_prices_whatever_its_name() {
        let of = |text: &str| given(text).unwrap().prices.of("openai", "gpt-4o").is_some();
        assert!(of("") && of("[providers.openai]\napi_key = \"k\""));
        assert!(!of("[providers.openai]\nbase_url = \"http://127.0.0.1:8081/v1\""));
        let work = given("[providers.work]\nbase_url = \"https://api.openai.com/v1\"").unwrap();
        assert!(work.prices.of("work", "gpt-4o-2024-08-06").is_some());
    }

    #[test]
    fn what_is_no_price_is_told_with_its_place() {
        let price = |settings: &str| given(&format!("[prices.\"acme/fast-2\"]\n{settings}\n")).unwrap_err();
        for (settings, says) in [
            ("input = \"0.2\"", "prices.acme/fast-2.output is missing"),
            ("output = \"0.2\"", "prices.acme/fast-2.input is missing"),
            ("input = \"-1\"\noutput = \"1\"", "promptq.toml:2:9: prices.acme/fast-2.input must be dollars"),
            ("input = 0.2\noutput = \"1\"", "prices.acme/fast-2.input must be text in quotes"),
            ("input = \"1000000\"\noutput = \"1\"", "not \"1000000\""),
            ("input = \"1\"\noutput = \"1\"\nas_of = \"soon\"", "as_of must be a day such as"),
            ("input = \"1\"\noutput = \"1\"\ncached = \"1\"", "unknown setting prices.acme/fast-2.cached"),
        ] {
            assert!(price(settings).contains(says), "{}", price(settings));
            assert_eq!(price(settings).lines().count(), 1, "{}", price(settings));
        }
        let part = given("[prices.\"acme/fast-*\"]\ninput = \"1\"\noutput = \"1\"").unwrap_err();
        assert!(part.contains("[prices.\"acme/*\"]") && part.lines().count() == 1, "{part}");
        let nameless = given("[prices.fast]\ninput = \"1\"\noutput = \"1\"").unwrap_err();
        assert!(nameless.contains("prices are of PROVIDER/MODEL"), "{nameless}");
        let mock = given("[prices.\"mock/fast\"]\ninput = \"1\"\noutput = \"1\"").unwrap_err();
        assert!(mock.contains("the mock costs nothing") && mock.lines().count() == 1, "{mock}");
    }
}
