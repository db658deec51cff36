//! Prices that are known from the start: list prices for text in standard accounts, each with the day it was last found to
//! be so. Tools, stored caches, other media and processing in one region cost extra and are not in them. A model that is not
//! here, or whose price was about to change, has none.

use jiff::civil::date;

use super::{Date, Long, Price, Rates, Seller};
use crate::outcome::Usd;

/// The price of a model by exactly this name.
pub(super) fn price(seller: Seller, model: &str) -> Option<Price> {
    let lists = match seller {
        Seller::OpenAi => OPENAI,
        Seller::Anthropic => ANTHROPIC,
        Seller::Gemini => GEMINI,
        Seller::OpenRouter => return None,
    };
    lists.iter().find_map(|(as_of, prices)| {
        let (_, price) = prices.iter().find(|(name, _)| *name == model)?;
        Some(Price { as_of: Some(*as_of), ..*price })
    })
}

/// Prices by model, and the day that they were looked up.
type Dated = (Date, &'static [(&'static str, Price)]);

const OPENAI: &[Dated] = &[
    (
        date(2026, 10, 26),
        &[("gpt-6.1-terra", openai(1_000, 50, 5_000).writes().long(272_000, Some((200, 150))).priority(200))],
    ),
    (
        date(2026, 10, 16),
        &[
            ("gpt-6.1-sol", openai(2_000, 100, 10_000).writes().long(272_000, None)),
            ("gpt-6-astra", openai(10_000, 1_000, 50_000).writes().long(272_000, None)),
            ("gpt-6-sol", openai(2_000, 200, 10_000).writes().long(272_000, None)),
            ("gpt-6-luna", openai(100, 10, 500).writes().long(272_000, None)),
            ("gpt-5.6-terra", openai(2_000, 200, 12_000).writes().long(272_000, Some((200, 150)))),
            ("gpt-5.6-luna", openai(200, 20, 1_200).writes().long(272_000, Some((200, 150)))),
        ],
    ),
    (
        date(2026, 9, 5),
        &[
            ("gpt-5.5", openai(5_000, 500, 30_000).long(272_000, Some((200, 150))).priority(250)),
            ("gpt-5.4", openai(2_500, 250, 15_000).long(272_000, Some((200, 150))).priority(200)),
            ("gpt-5.4-mini", openai(750, 75, 4_500).priority(200)),
            ("gpt-5.4-nano", openai(200, 20, 1_250)),
            ("gpt-5.2", openai(1_750, 175, 14_000).priority(200)),
            ("gpt-5.1", openai(1_250, 125, 10_000).priority(200)),
            ("gpt-5", openai(1_250, 125, 10_000).priority(200)),
            ("gpt-5-mini", openai(250, 25, 2_000).priority(180)),
            ("gpt-5-nano", openai(50, 5, 400)),
        ],
    ),
    (
        date(2026, 8, 10),
        &[
            ("gpt-4.1", openai(2_000, 500, 8_000).priority(175)),
            ("gpt-4.1-mini", openai(400, 100, 1_600)),
            ("gpt-4.1-nano", openai(100, 25, 400)),
            ("gpt-4o", openai(2_500, 1_250, 10_000)),
            ("gpt-4o-mini", openai(150, 75, 600)),
            ("o3", openai(2_000, 500, 8_000)),
        ],
    ),
    (
        date(2025, 7, 4),
        &[
            ("gpt-4o-2024-05-13", openai(5_000, 5_000, 15_000)),
            ("o3-mini", openai(1_100, 550, 4_400)),
            ("o4-mini", openai(1_100, 275, 4_400)),
            ("text-embedding-3-small", openai(20, 20, 0)),
            ("text-embedding-3-large", openai(130, 130, 0)),
        ],
    ),
];

const ANTHROPIC: &[Dated] = &[(
    date(2026, 10, 24),
    &[
        ("claude-fable-5-1", anthropic(10_000, 250, 50_000)),
        ("claude-fable-5", anthropic(10_000, 1_000, 50_000)),
        ("claude-opus-5-5", anthropic(4_000, 200, 20_000)),
        ("claude-opus-5", anthropic(5_000, 500, 25_000)),
        ("claude-opus-4-8", anthropic(5_000, 500, 25_000)),
        ("claude-opus-4-7", anthropic(5_000, 500, 25_000)),
        ("claude-opus-4-6", anthropic(5_000, 500, 25_000)),
        ("claude-opus-4-5", anthropic(5_000, 500, 25_000)),
        ("claude-sonnet-5-5", anthropic(2_000, 100, 10_000)),
        ("claude-sonnet-5", anthropic(2_000, 200, 10_000)),
        ("claude-sonnet-4-6", anthropic(3_000, 300, 15_000)),
        ("claude-sonnet-4-5", anthropic(3_000, 300, 15_000)),
        ("claude-haiku-5-5", anthropic(100, 10, 500).long(100_000, Some((500, 500)))),
        ("claude-haiku-4-5", anthropic(1_000, 100, 5_000)),
    ],
)];

const GEMINI: &[Dated] = &[(
    date(2026, 10, 7),
    &[
        ("gemini-3.5-flash", gemini(1_500, 150, 9_000)),
        ("gemini-3.5-flash-lite", gemini(300, 30, 2_500)),
        ("gemini-3.1-pro-preview", gemini(2_000, 200, 12_000).long(200_000, Some((200, 150)))),
        ("gemini-3-flash-preview", gemini(500, 50, 3_000)),
        ("gemini-2.5-pro", gemini(1_250, 125, 10_000).long(200_000, Some((200, 150)))),
        ("gemini-2.5-flash", gemini(300, 30, 2_500)),
        ("gemini-2.5-flash-lite", gemini(100, 10, 400)),
    ],
)];

/// Input, cached input and output in thousandths of a dollar. Flex and batch calls are half of it.
const fn openai(input: i64, cached: i64, output: i64) -> Price {
    let plain = Price::flat(mills(input), mills(output));
    let rates = Rates { cached_input: mills(cached), cache_write_1h: None, ..plain.rates };
    Price { rates, flex: Some(50), ..plain }
}

/// As [`openai`]. Writing to the cache costs a quarter more than sending, and twice as much for an hour.
const fn anthropic(input: i64, cached: i64, output: i64) -> Price {
    let plain = openai(input, cached, output).writes();
    Price { rates: Rates { cache_write_1h: Some(mills(input * 2)), ..plain.rates }, ..plain }
}

/// As [`openai`].
const fn gemini(input: i64, cached: i64, output: i64) -> Price {
    openai(input, cached, output)
}

const fn mills(thousandths: i64) -> Usd {
    Usd::from_nanos(thousandths * 1_000_000)
}

impl Price {
    /// Where writing to the cache costs a quarter more than sending.
    const fn writes(self) -> Self {
        let cache_write = Usd::from_nanos(self.rates.input.as_nanos() / 4 * 5);
        Self { rates: Rates { cache_write, ..self.rates }, ..self }
    }

    const fn long(self, above: u64, percent: Option<(u16, u16)>) -> Self {
        Self { long: Some(Long { above, percent }), ..self }
    }

    const fn priority(self, percent: u16) -> Self {
        Self { priority: Some(percent), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_model_is_named_twice_and_what_is_cached_never_costs_more() {
        let lists = [OPENAI, ANTHROPIC, GEMINI];
        let all: Vec<_> = lists.into_iter().flatten().flat_map(|(_, prices)| *prices).collect();
        assert_eq!(all.len(), 48);
        for (n, (name, price)) in all.iter().enumerate() {
            let Rates { input, cached_input, cache_write, output, .. } = price.rates;
            assert!(all.iter().skip(n + 1).all(|(other, _)| other != name), "{name} is named twice");
            assert!(input > Usd::default() && cached_input <= input && cache_write >= input, "{name}");
            assert!(output >= input || output == Usd::default(), "{name}");
        }
    }
}
