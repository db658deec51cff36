//! Sums of dollars: as people write them, and the most that the tokens of a call cost.

use crate::outcome::Usd;

/// The most dollars of a cap: above what any account spends a day, and exact as a fraction, in billionths.
pub const DOLLARS: i64 = 9_000_000;

/// So many dollars, more than none: `25`, `$0.50`.
///
/// # Errors
/// Says how to write it.
pub fn dollars_of(text: &str) -> Result<Usd, String> {
    let bad = || format!("{text:?} is no sum of dollars above 0 such as 25 or 0.50");
    let text = text.trim();
    let usd: Usd = text.strip_prefix('$').unwrap_or(text).parse().map_err(|_| bad())?;
    if (1..=DOLLARS * 1_000_000_000).contains(&usd.as_nanos()) { Ok(usd) } else { Err(bad()) }
}

/// What the tokens of a model cost at most, whatever of them is cached or long, in dollars a million.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ceiling {
    /// Of tokens sent.
    pub input: Usd,
    /// Of tokens received.
    pub output: Usd,
}

impl Ceiling {
    /// Of what costs nothing.
    pub const FREE: Self = Self { input: Usd::from_nanos(0), output: Usd::from_nanos(0) };

    /// The most that a call may cost with so many tokens, rounded up; `None` where nobody bounds its answer, and answers cost.
    pub fn worst(&self, input: u64, output: Option<u64>) -> Option<Usd> {
        const MILLION: i128 = 1_000_000;
        let output = if self.output == Usd::default() { 0 } else { output? };
        let nanos = |tokens: u64, price: Usd| i128::from(tokens) * i128::from(price.as_nanos());
        let sum = nanos(input, self.input).saturating_add(nanos(output, self.output));
        let nanos = sum.saturating_add(MILLION - 1) / MILLION;
        Some(Usd::from_nanos(i64::try_from(nanos).unwrap_or(i64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_is_read_as_people_write_it() {
        assert_eq!(dollars_of(" $25 ").map(Usd::as_nanos), Ok(25_000_000_000));
        assert!(["25/day", "0", "", "-1", "9000001"].iter().all(|text| dollars_of(text).is_err()));
    }

    #[test]
    fn the_worst_of_a_call_is_all_its_tokens_at_their_price_rounded_up() {
        let usd = Usd::from_nanos;
        let model = Ceiling { input: usd(2_500_000_000), output: usd(10_000_000_000) };
        assert_eq!(model.worst(1_000, Some(64)), Some(usd(3_140_000)));
        assert_eq!((model.worst(1_000, None), model.worst(0, Some(0))), (None, Some(usd(0))));
        let cheap = Ceiling { input: usd(1), output: usd(0) };
        assert_eq!((cheap.worst(1, None), cheap.worst(1_000_001, None)), (Some(usd(1)), Some(usd(2))));
        let dear = Ceiling { input: usd(i64::MAX), output: usd(i64::MAX) };
        assert_eq!(dear.worst(u64::MAX, Some(u64::MAX)), Some(usd(i64::MAX)));
        assert_eq!(Ceiling::FREE.worst(9, None), Some(usd(0)));
    }
}
