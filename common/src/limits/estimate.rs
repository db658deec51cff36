//! How many tokens a call will probably take, and how far that may be off: from bytes and what calls of the same kind
//! took before. Pure.

use std::collections::HashMap;

use super::amount::{Amounts, whole};
use super::need::{Doubt, Need};
use crate::job::Queue;

/// Bytes of text to a token, over the languages and tokenizers of common models; corrected by what calls came to.
const BYTES_PER_TOKEN: f64 = 3.6;
/// How far that may be corrected: a template of one symbol, or text of one byte a token.
const RATIO: (f64, f64) = (0.2, 5.0);
/// How far a model that nobody has met may be off: code and most languages lie within twice this.
const UNMET: f64 = 0.25;
/// What an answer comes to that nobody has bounded: the most that common models write unless told otherwise.
const UNBOUNDED: u64 = 4_096;
/// A first guess is a quarter of what is allowed, and at least this.
const FIRST: (u64, u64) = (4, 256);
/// The least weight of the newest call: it takes some 50 to forget.
const WEIGHT: f64 = 0.02;
/// Tokens of a request beside those of its texts: roles and marks of a few messages come to some ten.
const AROUND: u64 = 64;
/// Kinds remembered; beyond that all are learned anew.
const KINDS: usize = 10_000;

/// What was learned. One for a worker.
#[derive(Debug, Default)]
pub struct Estimates {
    /// By model: tokens beside those that the bytes make.
    ratios: HashMap<String, Guess>,
    /// By queue and model: tokens of an answer. A queue's jobs mostly come from one template.
    answers: HashMap<(Queue, String), Guess>,
}

/// What is known of a call before it is sent.
#[derive(Clone, Copy, Debug)]
pub struct Asks<'a> {
    /// Its queue.
    pub queue: &'a Queue,
    /// Its model, as the provider knows it.
    pub model: &'a str,
    /// The bytes of its texts.
    pub bytes: usize,
    /// The most tokens it may be answered with, if it says so.
    pub max_tokens: Option<u64>,
    /// Whether the provider counts that as soon as the call is sent.
    pub output_upfront: bool,
}

/// A number that is learned: what it is on average, and the square of how far that was off.
#[derive(Clone, Copy, Debug)]
struct Guess {
    mean: f64,
    variance: f64,
    /// The weight of the next one: the first guess is worth one of those seen.
    weight: f64,
}

impl Guess {
    fn first(mean: f64, off: f64) -> Self {
        Self { mean, variance: off * off, weight: 0.5 }
    }

    fn learn(&mut self, seen: f64) {
        let off = seen - self.mean;
        self.mean += off * self.weight;
        self.variance += (off * off - self.variance) * self.weight;
        self.weight = (self.weight / (1.0 + self.weight)).max(WEIGHT);
    }
}

impl Estimates {
    /// What a call will probably take.
    pub fn need(&self, asks: &Asks<'_>) -> Need {
        let (plain, ratio) = (plain(asks.bytes), self.ratio(asks.model));
        let most = asks.max_tokens.unwrap_or(UNBOUNDED);
        let answer = self.answer(asks);
        let probably = asks.max_tokens.map_or(answer.mean, |most| answer.mean.min(float(most)));
        let (output, doubt) = if asks.output_upfront { (float(most), 0.0) } else { (probably, answer.variance) };
        let amounts = Amounts::call(whole((plain * ratio.mean).ceil()).max(1), whole(output.ceil()).max(1));
        let doubt = Doubt { input: plain * plain * ratio.variance, output: doubt };
        Need { amounts, doubt, output_upfront: asks.output_upfront }
    }

    /// Learns from what a call came to.
    pub fn learn(&mut self, asks: &Asks<'_>, input: u64, output: u64) {
        if self.ratios.len() >= KINDS || self.answers.len() >= KINDS {
            *self = Self::default();
        }
        if asks.bytes > 0 && input > 0 {
            let mut ratio = self.ratio(asks.model);
            ratio.learn((float(input) / plain(asks.bytes)).clamp(RATIO.0, RATIO.1));
            self.ratios.insert(asks.model.to_owned(), ratio);
        }
        let mut answer = self.answer(asks);
        answer.learn(float(output));
        self.answers.insert((asks.queue.clone(), asks.model.to_owned()), answer);
    }

    /// What a call's input may come to at most, for people who pay for it: a token for two bytes, or twice what it probably
    /// is if that is more, and what providers put around it; never more than a token a byte.
    pub fn most_input(&self, model: &str, bytes: usize) -> u64 {
        let (probably, bytes) = (plain(bytes) * self.ratio(model).mean, u64::try_from(bytes).unwrap_or(u64::MAX));
        let twice = u64::try_from(whole((probably * 2.0).ceil())).unwrap_or(u64::MAX);
        (bytes / 2).max(twice).min(bytes).saturating_add(AROUND)
    }

    fn ratio(&self, model: &str) -> Guess {
        self.ratios.get(model).copied().unwrap_or_else(|| Guess::first(1.0, UNMET))
    }

    fn answer(&self, asks: &Asks<'_>) -> Guess {
        let known = self.answers.get(&(asks.queue.clone(), asks.model.to_owned())).copied();
        known.unwrap_or_else(|| {
            let most = asks.max_tokens.unwrap_or(UNBOUNDED);
            let first = float((most / FIRST.0).max(FIRST.1).min(most));
            Guess::first(first, first)
        })
    }
}

fn plain(bytes: usize) -> f64 {
    float(u64::try_from(bytes).unwrap_or(u64::MAX)) / BYTES_PER_TOKEN
}

#[expect(clippy::cast_precision_loss, reason = "exact below 2^53")]
fn float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(queue: &Queue, bytes: usize, max_tokens: Option<u64>) -> Asks<'_> {
        Asks { queue, model: "m", bytes, max_tokens, output_upfront: false }
    }

    fn tokens(estimates: &Estimates, asks: &Asks<'_>) -> (i64, i64) {
        let need = estimates.need(asks);
        (need.amounts.input, need.amounts.output)
    }

    #[test]
    fn the_first_guess_is_from_bytes_and_a_quarter_of_what_is_allowed() {
        let (estimates, queue) = (Estimates::default(), Queue::standard());
        assert_eq!(tokens(&estimates, &asks(&queue, 3_600, Some(4_000))), (1_000, 1_000));
        assert_eq!(tokens(&estimates, &asks(&queue, 3_600, Some(800))).1, 256);
        assert_eq!(tokens(&estimates, &asks(&queue, 3_600, Some(100))).1, 100);
        assert_eq!(tokens(&estimates, &asks(&queue, 0, None)), (1, 1_024));
        let upfront = Asks { output_upfront: true, ..asks(&queue, 0, Some(4_000)) };
        let need = estimates.need(&upfront);
        assert_eq!((need.amounts.output, need.doubt.output), (4_000, 0.0));
    }

    #[test]
    fn it_learns_the_ratio_of_a_model_and_the_answers_of_a_kind() {
        let (mut estimates, queue) = (Estimates::default(), Queue::standard());
        let other = Queue::new("other").unwrap();
        for n in 0..400 {
            estimates.learn(&asks(&queue, 3_600, None), 2_000, 400 + n % 2 * 200);
        }
        let (input, output) = tokens(&estimates, &asks(&queue, 3_600, None));
        assert!((1_999..=2_001).contains(&input) && (490..=510).contains(&output), "{input} {output}");
        assert_eq!(tokens(&estimates, &asks(&queue, 3_600, Some(50))).1, 50);
        assert_eq!(tokens(&estimates, &asks(&other, 3_600, None)).1, 1_024, "another queue, another template");
        (0..400).for_each(|_| estimates.learn(&asks(&other, 3_600, None), 2_000, 20_000));
        assert_eq!(tokens(&estimates, &asks(&other, 3_600, None)).1, 20_000, "nobody bounds it");
        let doubt = estimates.need(&asks(&queue, 3_600, None)).doubt;
        assert!((95.0..105.0).contains(&doubt.output.sqrt()) && doubt.input.sqrt() < 20.0, "{doubt:?}");
        estimates.learn(&asks(&queue, 10, None), 1_000_000, 1);
        let (input, _) = tokens(&estimates, &asks(&queue, 3_600, None));
        assert!(input < 2_100, "one odd call is a small step: {input}");
    }

    #[test]
    fn the_most_that_an_input_may_come_to_is_above_all_ordinary_texts() {
        let mut estimates = Estimates::default();
        let most = |estimates: &Estimates, bytes| estimates.most_input("m", bytes);
        assert_eq!((most(&estimates, 0), most(&estimates, 3_600)), (64, 2_064));
        // A script of which a token is a byte and a half.
        for _ in 0..100 {
            estimates.learn(&asks(&Queue::standard(), 3_600, None), 2_400, 9);
        }
        assert_eq!(most(&estimates, 3_600), 3_664, "no token is less than a byte");
        for _ in 0..400 {
            estimates.learn(&asks(&Queue::standard(), 3_600, None), 600, 9);
        }
        assert_eq!(most(&estimates, 3_600), 1_864, "never less than a token for two bytes");
    }

    #[test]
    fn a_wrong_guess_is_known_to_be_wrong_from_the_first_answer_on() {
        let (mut estimates, queue) = (Estimates::default(), Queue::standard());
        estimates.learn(&asks(&queue, 360, Some(4_096)), 100, 3_072);
        let need = estimates.need(&asks(&queue, 360, Some(4_096)));
        assert_eq!(need.amounts.output, 2_048);
        assert!(need.doubt.output.sqrt() > 1_000.0);
    }
}
