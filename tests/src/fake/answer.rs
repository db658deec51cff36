//! One answer, drawn: how long it is, what it says, in which pieces, why it ends. A function of the seed and the request.

use super::config::Config;
use super::random::{Dice, times};
use super::shape::Ask;

/// What is drawn for which purpose.
const LENGTH: u64 = 1;
const WORDS: u64 = 1_000;
const ID: u64 = 2;
const NUMBERS: u64 = 1_000_000;

/// No answer is longer, in tokens: four times what any model gives today.
const LONGEST: u64 = 1 << 20;

/// Output that a call without a maximum is charged for at its start: what `OpenAI`'s own example script assumes.
pub const ASSUMED: u64 = 15;

const VOCABULARY: [&str; 32] = [
    "amber", "basin", "cedar", "delta", "ember", "fjord", "grove", "haven", "inlet", "jetty", "knoll", "larch", "mesa",
    "north", "oasis", "pine", "quay", "ridge", "shore", "trail", "upland", "vale", "wharf", "yarrow", "zephyr",
    "birch", "cove", "dune", "fern", "glade", "heath", "moor",
];

/// Why an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// It said what it had to.
    Stop,
    /// The request allowed no more.
    Length,
    /// It was refused for what it says.
    Refused,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// 24 hexadecimal digits; each API puts its own beginning before it.
    pub id: String,
    /// The model as it was asked for.
    pub model: String,
    /// Seconds since 1970.
    pub created: i64,
    /// Input tokens, cached ones included.
    pub input: u64,
    /// Of these, read from a cache.
    pub cached: u64,
    /// Output tokens, reasoning included.
    pub output: u64,
    /// Of these, reasoning.
    pub reasoning: u64,
    /// Why it ends.
    pub finish: Finish,
    /// What it says, piece by piece, with the output tokens that each piece took.
    pub pieces: Vec<Piece>,
    /// Embeddings, one for each input.
    pub vectors: Vec<Vec<f32>>,
    /// Whether they are told as base64.
    pub base64: bool,
    /// Whether a stream of chat tells its usage.
    pub usage_in_stream: bool,
}

/// A piece of an answer.
#[derive(Clone, Debug)]
pub struct Piece {
    /// What it says.
    pub text: String,
    /// Output tokens that it took, reasoning before it included.
    pub tokens: u64,
}

impl Answer {
    /// Draws the answer to a request. `nth` tells calls with the same request apart, in their ids alone.
    pub fn draw(config: &Config, seed: u64, ask: &Ask, nth: u64, created: i64) -> Self {
        let rule = config.answer(&ask.model);
        let dice = Dice::new(seed, ask.about);
        let (most, input) = (ask.most.unwrap_or(u64::MAX).min(LONGEST), ask.input_tokens(config.bytes_per_token));
        let wanted = match &rule.text {
            Some(text) => {
                times(1, (f64::from(u32::try_from(text.len()).unwrap_or(u32::MAX)) / config.bytes_per_token).ceil())
            }
            None => rule.output.draw(dice, LENGTH),
        };
        let output = wanted.min(most);
        let reasoning = times(output, rule.reasoning).min(output);
        let finish = if wanted > most && most > 0 { Finish::Length } else { Finish::Stop };
        let words: Vec<String> = match &rule.text {
            Some(text) if output == wanted => vec![text.clone()],
            Some(text) => {
                vec![text.chars().take(usize::try_from(times(output, config.bytes_per_token)).unwrap_or(0)).collect()]
            }
            None => (0..output - reasoning).map(|at| word(dice, at)).collect(),
        };
        let dimensions = ask.dimensions.unwrap_or(rule.dimensions).min(4_096);
        let is_embedding = ask.endpoint == super::shape::Endpoint::Embeddings;
        let vectors = if is_embedding { ask.inputs.min(2_048) } else { 0 };
        let id = Dice::new(seed, ask.about ^ nth.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        Self {
            id: format!("{:016x}{:08x}", id.bits(ID), id.bits(ID + 1) >> 32),
            model: ask.model.clone(),
            created,
            input,
            cached: times(input, rule.cached).min(input),
            output,
            reasoning,
            finish,
            pieces: if is_embedding { Vec::new() } else { pieces(&words, rule.chunk, output) },
            vectors: (0..vectors).map(|at| vector(dice, at as u64, dimensions)).collect(),
            base64: ask.base64,
            usage_in_stream: ask.usage_in_stream,
        }
    }

    /// All it says.
    pub fn text(&self) -> String {
        self.pieces.iter().map(|piece| piece.text.as_str()).collect()
    }
}

fn word(dice: Dice, at: u64) -> String {
    let which = usize::try_from(dice.bits(WORDS + at) % 32).unwrap_or(0);
    let word = VOCABULARY.get(which).copied().unwrap_or_default();
    if at == 0 { word.to_owned() } else { format!(" {word}") }
}

/// Words in pieces of so many tokens each; what is not said (reasoning) was taken before the first.
fn pieces(words: &[String], chunk: u64, output: u64) -> Vec<Piece> {
    let chunk = usize::try_from(chunk).unwrap_or(usize::MAX).max(1);
    let mut pieces: Vec<Piece> =
        words.chunks(chunk).map(|words| Piece { text: words.concat(), tokens: words.len() as u64 }).collect();
    let said: u64 = pieces.iter().map(|piece| piece.tokens).sum();
    match pieces.first_mut() {
        Some(first) => first.tokens += output.saturating_sub(said),
        None => pieces.push(Piece { text: String::new(), tokens: output }),
    }
    pieces
}

fn vector(dice: Dice, input: u64, dimensions: usize) -> Vec<f32> {
    let number = |at: usize| {
        let bits = dice.bits(NUMBERS + input * 5_000 + at as u64) >> 48;
        f32::from(u16::try_from(bits).unwrap_or(0)) / 65_536.0 - 0.5
    };
    (0..dimensions).map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::super::shape::Route;
    use super::*;

    fn draw(config: &Config, seed: u64, body: &str) -> Answer {
        let ask = Ask::read(&Route::of("/v1/chat/completions").unwrap(), body.as_bytes()).unwrap();
        Answer::draw(config, seed, &ask, 1, 0)
    }

    fn config(text: &str) -> Config {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn the_seed_and_the_request_decide() {
        let config = config("[answer]\noutput = { uniform = [1, 1000] }\ncached = 0.5\nreasoning = 0.25");
        let body = r#"{"model":"m","messages":[{"content":"hello"}]}"#;
        let one = draw(&config, 1, body);
        assert_eq!(format!("{one:?}"), format!("{:?}", draw(&config, 1, body)));
        for other in [draw(&config, 2, body), draw(&config, 1, &body.replace("hello", "hallo"))] {
            assert_ne!((one.output, one.text()), (other.output, other.text()));
        }
    }

    #[test]
    fn a_maximum_cuts_and_is_told() {
        let config = config("[answer]\noutput = { fixed = 30 }\nreasoning = 0.5\nchunk = 4");
        let body = |most: u64| format!(r#"{{"model":"m","max_tokens":{most},"messages":[{{"content":"x"}}]}}"#);
        let whole = draw(&config, 1, &body(30));
        assert_eq!((whole.output, whole.reasoning, whole.finish), (30, 15, Finish::Stop));
        assert_eq!(whole.text().split_whitespace().count(), 15);
        assert_eq!(whole.pieces.iter().map(|piece| piece.tokens).sum::<u64>(), 30);
        let cut = draw(&config, 1, &body(10));
        assert_eq!((cut.output, cut.finish), (10, Finish::Length));
    }

    #[test]
    fn a_text_of_the_configuration_is_said() {
        let config = config("bytes_per_token = 2\n[answer]\ntext = \"abcdef\"");
        let answer = draw(&config, 1, r#"{"model":"m","messages":[]}"#);
        assert_eq!((answer.text().as_str(), answer.output), ("abcdef", 3));
        let cut = draw(&config, 1, r#"{"model":"m","messages":[],"max_tokens":2}"#);
        assert_eq!((cut.text().as_str(), cut.output, cut.finish), ("abcd", 2, Finish::Length));
    }
}
