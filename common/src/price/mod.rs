//! What calls cost: the price of a model, and what a call comes to by it. Exact: whole billionths of a dollar, never floats.
//! What nobody knows is `None`, never 0. The prices that are known from the start are `table.rs`, others come from the
//! configuration.

mod seller;
mod table;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::outcome::{Usage, Usd};
use crate::work::family;

pub use jiff::civil::Date;
pub use seller::Seller;

/// The prices that a process knows. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Prices(Arc<Known>);

#[derive(Debug, Default)]
struct Known {
    /// As configured, by provider and model.
    own: BTreeMap<String, BTreeMap<String, Price>>,
    /// Whose prices the providers have that are configured; `None`: nobody's that are known here.
    sellers: BTreeMap<String, Option<Seller>>,
}

/// What a model costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price {
    /// Dollars a million tokens, as usual.
    pub rates: Rates,
    /// When that was looked up.
    pub as_of: Option<Date>,
    /// What long prompts cost.
    pub long: Option<Long>,
    /// What flex and batch calls cost, in percent of the usual; `None`: unknown.
    pub flex: Option<u16>,
    /// What priority calls cost, in percent of the usual; `None`: unknown.
    pub priority: Option<u16>,
}

/// Dollars for a million tokens of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    /// Sent, and neither read from a cache nor written to it.
    pub input: Usd,
    /// Sent, and read from the provider's cache.
    pub cached_input: Usd,
    /// Sent, and written to the provider's cache.
    pub cache_write: Usd,
    /// Sent, and written to the provider's cache for an hour; `None`: unknown.
    pub cache_write_1h: Option<Usd>,
    /// Received, reasoning included.
    pub output: Usd,
}

/// What a prompt costs that is longer than most: all of it, and its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Long {
    /// With more input tokens than this, cached ones included.
    pub above: u64,
    /// Input and output, in percent of the usual; `None`: unknown.
    pub percent: Option<(u16, u16)>,
}

/// What a call consumed, as far as its cost depends on it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Consumed<'a> {
    /// Tokens.
    pub usage: Usage,
    /// Of the input, written to the provider's cache.
    pub cache_writes: u64,
    /// Of those, kept for an hour.
    pub hour_writes: u64,
    /// The tier it was served in, as the provider names it; `None`: the usual one.
    pub tier: Option<&'a str>,
}

impl Prices {
    /// These prices of one's own, by `PROVIDER/MODEL` (`PROVIDER/*`: all others of a provider), and whose prices the
    /// configured providers have.
    pub fn new(own: impl IntoIterator<Item = (String, Price)>, sellers: BTreeMap<String, Option<Seller>>) -> Self {
        let mut known = Known { own: BTreeMap::new(), sellers };
        for (name, price) in own {
            let (provider, model) = name.split_once('/').unwrap_or((&name, "*"));
            known.own.entry(provider.to_owned()).or_default().insert(model.to_owned(), price);
        }
        Self(Arc::new(known))
    }

    /// The price of a provider's model: one's own before a known one, its version's (`gpt-4o-2024-08-06`) before its
    /// family's (`gpt-4o`).
    pub fn of(&self, provider: &str, model: &str) -> Option<Price> {
        self.of_answer(provider, model, None)
    }

    /// The price of a call for the model `asked` that the model `answered`, where the provider says so.
    pub fn of_answer(&self, provider: &str, asked: &str, answered: Option<&str>) -> Option<Price> {
        let models = || answered.into_iter().chain([asked]);
        let own = self.0.own.get(provider);
        let named =
            |own: &BTreeMap<String, Price>| models().find_map(|model| versions(model, |name| own.get(name).copied()));
        let any = |own: &BTreeMap<String, Price>| own.get("*").copied();
        own.and_then(|own| named(own).or_else(|| any(own))).or_else(|| {
            let seller = self.seller(provider)?;
            models().find_map(|model| versions(model, |name| table::price(seller, name)))
        })
    }

    /// The names, `PROVIDER/MODEL`, that have a price of one's own.
    pub fn own(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .own
            .iter()
            .flat_map(|(provider, models)| models.keys().map(move |model| (provider.as_str(), model.as_str())))
    }

    /// Whether a provider tells what each answer cost, so that nobody needs a price for its models.
    pub fn is_told(&self, provider: &str) -> bool {
        self.seller(provider) == Some(Seller::OpenRouter)
    }

    /// Where nobody said where it is, a provider is whom its name says.
    fn seller(&self, provider: &str) -> Option<Seller> {
        self.0.sellers.get(provider).copied().unwrap_or_else(|| Seller::named(provider))
    }
}

/// What `find` has of a model's version, else of its family.
fn versions(model: &str, find: impl Fn(&str) -> Option<Price>) -> Option<Price> {
    // As Gemini names them at times.
    let model = model.strip_prefix("models/").unwrap_or(model);
    find(model).or_else(|| find(family(model)))
}

impl Price {
    /// Nothing for anything.
    pub const FREE: Self = Self::flat(Usd::from_nanos(0), Usd::from_nanos(0));

    /// So much for all input, so much for all output, as usual; other tiers are unknown.
    pub const fn flat(input: Usd, output: Usd) -> Self {
        let rates = Rates { input, cached_input: input, cache_write: input, cache_write_1h: Some(input), output };
        Self { rates, as_of: None, long: None, flex: None, priority: None }
    }

    /// What a call came to, rounded to the nearest billionth of a dollar; `None` where its tier, the length of its prompt or
    /// how it used the cache has no known price.
    pub fn cost(&self, consumed: &Consumed<'_>) -> Option<Usd> {
        /// Of a million tokens, of a hundred percent twice.
        const WHOLE: i128 = 1_000_000 * 100 * 100;
        let Usage { input_tokens, output_tokens, cached_tokens, .. } = consumed.usage;
        let Rates { input, cached_input, cache_write, cache_write_1h, output } = self.rates;
        let cached = cached_tokens.min(input_tokens);
        let written = consumed.cache_writes.min(input_tokens - cached);
        let hour = consumed.hour_writes.min(written);
        let hour_rate = if hour == 0 { Usd::default() } else { cache_write_1h? };
        let fresh = input_tokens - cached - written;
        let parts = [(fresh, input), (cached, cached_input), (written - hour, cache_write), (hour, hour_rate)];
        let sent = parts.into_iter().map(|(tokens, rate)| product(tokens, rate)).fold(0, i128::saturating_add);
        let received = product(output_tokens, output);
        let (tier, long) = (self.tier_percent(consumed)?, self.long_percent(input_tokens)?);
        let weighed = |part: i128, percent: u16| part.saturating_mul(i128::from(tier)).saturating_mul(percent.into());
        let total = weighed(sent, long.0).saturating_add(weighed(received, long.1));
        let nanos = total.saturating_add(WHOLE / 2) / WHOLE;
        Some(Usd::from_nanos(i64::try_from(nanos).unwrap_or(i64::MAX)))
    }

    fn tier_percent(&self, consumed: &Consumed<'_>) -> Option<u16> {
        let Some(tier) = consumed.tier else { return Some(100) };
        match tier.to_ascii_lowercase().as_str() {
            "" | "default" | "standard" | "standard_only" | "auto" | "on_demand" => Some(100),
            "flex" | "batch" => self.flex,
            // What is told of it leaves long prompts out.
            "priority" => {
                self.priority.filter(|_| self.long.is_none_or(|long| consumed.usage.input_tokens <= long.above))
            }
            _ => None,
        }
    }

    /// Of input and of output.
    fn long_percent(&self, input_tokens: u64) -> Option<(u16, u16)> {
        self.long.filter(|long| input_tokens > long.above).map_or(Some((100, 100)), |long| long.percent)
    }
}

fn product(tokens: u64, rate: Usd) -> i128 {
    i128::from(tokens).saturating_mul(rate.as_nanos().into())
}

#[cfg(test)]
mod tests;
