//! What grows when a fleet grows: `benches/scaling fill BACKEND JOBS`, `queues BACKEND COUNT…`, `workers BACKEND COUNT…`, each
//! noted in `benches/scaling.json`; `page` writes the tables between the marks of `benches/SCALING.md` anew.
#![expect(clippy::print_stdout, reason = "the figures are for people")]

use std::path::Path;

use anyhow::{Context, bail};
use promptq_benches::scaling::{Figures, fill, page, queues, tables, workers};

const USAGE: &str = "benches/scaling fill BACKEND JOBS | queues BACKEND COUNT... | workers BACKEND COUNT... | page";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let path = Path::new("benches/scaling.json");
    let mut figures = Figures::read(path)?;
    let said = match words[..] {
        ["fill", kind, most] => fill(&mut figures, kind.parse()?, most.parse()?).await?,
        ["queues", kind, ref counts @ ..] if !counts.is_empty() => {
            queues(&mut figures, kind.parse()?, &numbers(counts)?).await?
        }
        ["workers", kind, ref counts @ ..] if !counts.is_empty() => {
            workers(&mut figures, kind.parse()?, &numbers(counts)?).await?
        }
        ["page"] => {
            let path = Path::new("benches/SCALING.md");
            let text = std::fs::read_to_string(path).context("there is no benches/SCALING.md here")?;
            return Ok(std::fs::write(path, page(&figures, &text)?)?);
        }
        _ => bail!("that is not known; {USAGE}"),
    };
    // What was measured meanwhile by another one of us stays.
    let mut all = Figures::read(path)?;
    all.take(figures, words[0], words[1]);
    all.write(path)?;
    print!("{said}{}", tables(&all));
    Ok(())
}

fn numbers(words: &[&str]) -> anyhow::Result<Vec<usize>> {
    words.iter().map(|word| word.parse().with_context(|| format!("{word} is no number"))).collect()
}
