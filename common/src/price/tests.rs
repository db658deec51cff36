//! Which price a model has, and what calls come to by it: figures worked out by hand.

use super::*;

fn usd(text: &str) -> Usd {
    text.parse().unwrap()
}

fn price(input: &str, output: &str) -> Price {
    Price::flat(usd(input), usd(output))
}

fn prices(own: &[(&str, Price)], sellers: &[(&str, Option<Seller>)]) -> Prices {
    let own = own.iter().map(|(name, price)| ((*name).to_owned(), *price));
    Prices::new(own, sellers.iter().map(|(name, seller)| ((*name).to_owned(), *seller)).collect())
}

fn consumed(input: u64, output: u64, cached: u64) -> Consumed<'static> {
    let usage = Usage { input_tokens: input, output_tokens: output, cached_tokens: cached, reasoning_tokens: 0 };
    Consumed { usage, ..Consumed::default() }
}

#[test]
fn a_call_costs_what_its_parts_cost() {
    let all = Prices::default();
    let known = |name: &str| {
        let (provider, model) = name.split_once('/').unwrap();
        all.of(provider, model).unwrap()
    };
    for (name, call, cost) in [
        // 1,000 x 2.50 + 200 x 10.00, a million each.
        ("openai/gpt-4o", consumed(1_000, 200, 0), "0.0045"),
        // 400 x 2.50 + 600 x 1.25 + 200 x 10.00
        ("openai/gpt-4o", consumed(1_000, 200, 600), "0.00375"),
        // 22 x 0.15 + 9 x 0.60
        ("openai/gpt-4o-mini", consumed(22, 9, 0), "0.0000087"),
        // 3 x 0.05 + 1 x 0.40, in billionths: 150 + 400
        ("openai/gpt-5-nano", consumed(3, 1, 0), "0.00000055"),
        // 1,000,000 x 0.02 and no output
        ("openai/text-embedding-3-small", consumed(1_000_000, 0, 0), "0.02"),
        // 500 fresh x 3.00 + 300 read x 0.30 + 200 written x 3.75 + 100 x 15.00
        ("anthropic/claude-sonnet-4-5", Consumed { cache_writes: 200, ..consumed(1_000, 100, 300) }, "0.00384"),
        // 500 x 3.00 + 300 x 0.30 + 50 x 3.75 + 150 for an hour x 6.00 + 100 x 15.00
        (
            "anthropic/claude-sonnet-4-5",
            Consumed { cache_writes: 200, hour_writes: 150, ..consumed(1_000, 100, 300) },
            "0.0041775",
        ),
        // 300,000 x 1.25 x 2 + 1,000 x 10.00 x 1.5: longer than 200,000, all of it
        ("gemini/gemini-2.5-pro", consumed(300_000, 1_000, 0), "0.765"),
        // 200,000 x 1.25 + 1,000 x 10.00: just not longer
        ("gemini/gemini-2.5-pro", consumed(200_000, 1_000, 0), "0.26"),
        // 40,000 x 0.50 + 80,000 read x 0.05 + 1,000 x 2.50: longer than 100,000
        ("anthropic/claude-haiku-5-5", consumed(120_000, 1_000, 80_000), "0.0265"),
        // Half of 1,000 x 2.50 + 200 x 15.00
        ("openai/gpt-5.4", Consumed { tier: Some("flex"), ..consumed(1_000, 200, 0) }, "0.00275"),
        // Two and a half times 1,000 x 5.00 + 200 x 30.00
        ("openai/gpt-5.5", Consumed { tier: Some("priority"), ..consumed(1_000, 200, 0) }, "0.0275"),
        ("openai/gpt-5.5", Consumed { tier: Some("default"), ..consumed(1_000, 200, 0) }, "0.011"),
        ("gemini/gemini-3.5-flash", Consumed { tier: Some("STANDARD"), ..consumed(1_000, 0, 0) }, "0.0015"),
    ] {
        assert_eq!(known(name).cost(&call), Some(usd(cost)), "{name} {call:?}");
    }
}

#[test]
fn what_has_no_known_price_costs_nobody_knows_what() {
    let all = Prices::default();
    let cost = |provider: &str, model: &str, call: Consumed<'_>| all.of(provider, model).unwrap().cost(&call);
    let tier = |tier: &'static str| Consumed { tier: Some(tier), ..consumed(10, 10, 0) };
    assert_eq!(cost("openai", "gpt-4o", tier("scale")), None);
    assert_eq!(cost("openai", "gpt-4o", tier("priority")), None, "what priority costs there is not known");
    assert_eq!(cost("anthropic", "claude-opus-5", tier("priority")), None);
    let long = Consumed { tier: Some("priority"), ..consumed(300_000, 1, 0) };
    assert_eq!(cost("openai", "gpt-5.5", long), None, "priority leaves long prompts out");
    assert_eq!(cost("openai", "gpt-6-sol", consumed(272_001, 1, 0)), None, "long ones cost more, not known how much");
    assert!(cost("openai", "gpt-6-sol", consumed(272_000, 1, 0)).is_some());
    let hour = Consumed { cache_writes: 5, hour_writes: 1, ..consumed(10, 10, 0) };
    assert_eq!(cost("openai", "gpt-6-sol", hour), None);
    assert_eq!(all.of("openai", "gpt-99"), None);
    assert_eq!(all.of("openai", "gpt-4o-audio-preview"), None, "another model that begins the same");
    assert_eq!(all.of("acme", "gpt-4o"), None, "somebody else's model of that name");
}

#[test]
fn sums_are_exact_and_stop_at_the_end() {
    // A third of a billionth each, rounded to the nearest.
    let tiny = price("0.000333334", "0");
    for (tokens, nanos) in [(1, 0), (2, 1), (3, 1), (3_000, 1_000), (3_000_000, 1_000_002)] {
        assert_eq!(tiny.cost(&consumed(tokens, 0, 0)), Some(Usd::from_nanos(nanos)), "{tokens}");
    }
    // Floats would have made 0.30000000000000004 of it.
    assert_eq!(price("0.1", "0.2").cost(&consumed(1_000_000, 1_000_000, 0)), Some(usd("0.3")));
    let huge = Price { flex: Some(u16::MAX), ..price("9000000000", "9000000000") };
    let all = Consumed { tier: Some("flex"), ..consumed(u64::MAX, u64::MAX, 0) };
    assert_eq!(huge.cost(&all), Some(Usd::from_nanos(i64::MAX)));
    // More read from the cache and written to it than was sent at all: what was sent is paid for once.
    let odd = Consumed { cache_writes: 9, hour_writes: 99, ..consumed(10, 0, 8) };
    assert_eq!(price("1", "1").cost(&odd), Some(usd("0.00001")));
    assert_eq!(Price::FREE.cost(&consumed(5, 5, 5)), Some(Usd::default()));
}

#[test]
fn the_longest_name_of_a_model_has_the_say() {
    let own =
        [("acme/fast-2", price("1", "1")), ("acme/fast-2-2026-09-01", price("2", "2")), ("acme/*", price("3", "3"))];
    let all = prices(&own, &[("acme", None)]);
    let input = |model: &str| all.of("acme", model).map(|price| price.rates.input);
    assert_eq!(input("fast-2"), Some(usd("1")));
    assert_eq!(input("fast-2-2026-09-01"), Some(usd("2")));
    assert_eq!(input("fast-2-2026-10-01"), Some(usd("1")), "a version costs what its family costs");
    assert_eq!(input("fast-2-latest"), Some(usd("1")));
    assert_eq!(input("fast-21"), Some(usd("3")));
    assert_eq!(all.of("other", "fast-2"), None);
    let known =
        |model: &str| all.of("openai", model).map(|price| (price.rates.input, price.as_of.unwrap().to_string()));
    assert_eq!(known("gpt-4o-2024-08-06"), Some((usd("2.5"), "2026-08-10".to_owned())));
    assert_eq!(known("gpt-4o-2024-05-13").unwrap().0, usd("5"), "its own before its family's");
    assert_eq!(all.of("gemini", "models/gemini-2.5-pro").unwrap().rates.input, usd("1.25"));
}

#[test]
fn ones_own_price_goes_before_a_known_one() {
    let all = prices(&[("openai/gpt-4o", price("1", "1"))], &[]);
    let of = |asked: &str, answered: Option<&str>| all.of_answer("openai", asked, answered).unwrap().rates.input;
    assert_eq!(of("gpt-4o", Some("gpt-4o-2024-08-06")), usd("1"));
    assert_eq!(of("gpt-4o-mini", Some("gpt-4o-mini-2024-07-18")), usd("0.15"));
    assert_eq!(of("gpt-4o", Some("gpt-5")), usd("1"), "a price of one's own for what was asked for");
    assert_eq!(of("fastest", Some("gpt-5")), usd("1.25"), "the model that answered");
    assert_eq!(of("gpt-5", Some("gateway-internal")), usd("1.25"), "an answer under a name nobody knows");
}

#[test]
fn a_provider_has_the_prices_of_whom_it_is() {
    let all = prices(&[], &[("openai", None), ("work", Some(Seller::OpenAi)), ("router", Some(Seller::OpenRouter))]);
    assert_eq!(all.of("openai", "gpt-4o"), None, "a server of one's own under that name");
    assert_eq!(all.of("work", "gpt-4o").unwrap().rates.input, usd("2.5"));
    assert_eq!(all.of("gemini", "gemini-2.5-flash").unwrap().rates.input, usd("0.3"), "not configured here: itself");
    assert_eq!(all.of("router", "openai/gpt-4o"), None);
    assert!(all.is_told("router") && !all.is_told("work") && !all.is_told("openai"));
}
