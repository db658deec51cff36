//! Rows for `promptq submit`: prompts of a set size in tokens, the same for the same seed, no two of them alike.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;

/// Bytes that the fake provider takes for a token.
const BYTES_PER_TOKEN: usize = 4;
const WORDS: &[u8] = b"the river keeps its own count of every stone it has moved and tells nobody of it; ";

/// What rows are like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prompts<'a> {
    /// The model.
    pub(super) model: &'a str,
    /// Input tokens: from the first to the second, evenly by their logarithm, as most prompts are small and few are large.
    pub(super) tokens: (u32, u32),
    /// The most tokens of an answer.
    pub(super) max_tokens: u64,
    /// What they are drawn from.
    pub(super) seed: u64,
}

impl Prompts<'_> {
    /// What one has on average, in tokens.
    pub(super) fn mean(&self) -> f64 {
        let (low, high) = (f64::from(self.tokens.0), f64::from(self.tokens.1));
        if high > low { (high - low) / (high / low).ln() } else { low }
    }

    /// Writes so many rows into a file of the folder, named by the seed.
    pub(super) fn write(&self, folder: &Path, rows: u64) -> anyhow::Result<PathBuf> {
        let path = folder.join(format!("rows-{}.jsonl", self.seed));
        let file = File::create(&path).with_context(|| format!("{} cannot be written", path.display()))?;
        let (mut file, mut dice) = (BufWriter::new(file), StdRng::seed_from_u64(self.seed));
        for row in 0..rows {
            let tokens = self.draw(&mut dice);
            let row = json!({
                "custom_id": format!("r{row}"),
                "prompt": text(&format!("{}-{row}: ", self.seed), tokens),
                "model": self.model,
                "max_tokens": self.max_tokens,
            });
            writeln!(file, "{row}")?;
        }
        file.flush()?;
        Ok(path)
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between two small numbers")]
    fn draw(&self, dice: &mut StdRng) -> usize {
        let (low, high) = (f64::from(self.tokens.0), f64::from(self.tokens.1));
        (low.ln() + (high.ln() - low.ln()) * dice.random::<f64>()).exp() as usize
    }
}

/// A text of so many tokens that begins so.
fn text(begins: &str, tokens: usize) -> String {
    let bytes = begins.bytes().chain(WORDS.iter().copied().cycle()).take(tokens.max(4) * BYTES_PER_TOKEN);
    String::from_utf8_lossy(&bytes.collect::<Vec<_>>()).into_owned()
}
