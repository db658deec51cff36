//! How far a batch or a count is, on stderr: a bar on a terminal, else a plain line now and then, or JSON lines.

use std::time::{Duration, Instant};

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use promptq_common::ledger::BatchView;
use promptq_common::time::format_duration;
use serde_json::json;

use crate::printer::Printer;
use crate::submit::grouped;

/// How progress is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// A bar on a terminal, lines elsewhere
    #[default]
    Auto,
    /// A bar
    Bar,
    /// A line every 10 s and at each tenth
    Lines,
    /// The same as JSON
    Jsonl,
    /// Nothing
    None,
}

/// Between two lines, as a person reading a log expects: neither frames nor silence.
const EVERY: Duration = Duration::from_secs(10);

/// Shows how many of so many things are done.
#[derive(Debug)]
pub struct Count {
    printer: Printer,
    what: &'static str,
    total: u64,
    bar: Option<ProgressBar>,
    last: Instant,
}

impl Count {
    /// Begins now; `what` is the verb: `moved`.
    pub fn new(printer: Printer, what: &'static str, total: u64) -> Self {
        let drawn = printer.draws() && !printer.is_quiet();
        Self { printer, what, total, bar: drawn.then(bar), last: Instant::now() }
    }

    /// So many are done.
    pub fn show(&mut self, done: u64) {
        let total = self.total.max(done);
        let text = format!("{} {} of {}", self.what, grouped(done), grouped(total));
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(text);
        } else if self.last.elapsed() >= EVERY {
            self.last = Instant::now();
            self.printer.say(&text);
        }
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(8));
    let style =
        ProgressStyle::with_template("{percent:>3}% {bar:24} {msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.progress_chars("█▌░"));
    bar
}

/// Shows how far a batch is.
#[derive(Debug)]
pub struct Progress {
    printer: Printer,
    mode: Mode,
    bar: Option<ProgressBar>,
    began: Instant,
    ended_before: Option<u64>,
    last: Instant,
    tenth: u64,
}

impl Progress {
    /// Begins now.
    pub fn new(mode: Mode, printer: Printer) -> Self {
        let mode = match mode {
            Mode::Auto if printer.is_quiet() => Mode::None,
            Mode::Auto if printer.draws() => Mode::Bar,
            Mode::Auto => Mode::Lines,
            Mode::Bar | Mode::Lines | Mode::Jsonl | Mode::None => mode,
        };
        let bar = (mode == Mode::Bar).then(bar);
        let now = Instant::now();
        Self { printer, mode, bar, began: now, ended_before: None, last: now, tenth: 0 }
    }

    /// Shows the batch as it is now, `total` jobs when all are submitted, and what holds it back.
    pub fn show(&mut self, view: &BatchView, total: u64, blocked: Option<&str>) {
        let ended = view.counts.ended();
        let total = total.max(view.counts.total);
        let before = *self.ended_before.get_or_insert(ended);
        let done_here = ended.saturating_sub(before);
        let left = total.saturating_sub(ended);
        let moves = blocked.is_none() || view.counts.running > 0;
        let eta = (done_here > 0 && left > 0 && moves).then(|| {
            let seconds = self.began.elapsed().as_secs_f64() * to_f64(left) / to_f64(done_here);
            Duration::from_secs_f64(seconds.min(1e8))
        });
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(ended);
            bar.set_message(text(view, total, eta, blocked, self.began.elapsed()));
            return;
        }
        let tenth = (ended * 10).checked_div(total).unwrap_or_default();
        if self.last.elapsed() < EVERY && (tenth <= self.tenth || left == 0) {
            return;
        }
        (self.last, self.tenth) = (Instant::now(), tenth);
        match self.mode {
            Mode::Lines => {
                let percent = (ended * 100).checked_div(total).unwrap_or_default();
                let elapsed = self.began.elapsed();
                self.printer.say(&format!("{percent:>3}% {}", text(view, total, eta, blocked, elapsed)));
            }
            Mode::Jsonl => {
                let elapsed = self.began.elapsed().as_secs_f64();
                let event = json!({ "event": "progress", "batch": view.name, "total": total, "counts": view.counts,
                    "usage": view.usage, "cost_usd": view.known_cost(), "cost_unknown": view.cost_unknown, "blocked": blocked,
                    "elapsed_s": elapsed, "eta_s": eta.map(|eta| eta.as_secs()) });
                self.printer.event(&event);
            }
            Mode::Auto | Mode::Bar | Mode::None => {}
        }
    }

    /// Takes the bar away, so that what is said next stands alone.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Says something beside the bar, which is back afterwards.
    pub fn hide(&self, say: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(say),
            None => say(),
        }
    }

    /// Since it began.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

fn text(view: &BatchView, total: u64, eta: Option<Duration>, blocked: Option<&str>, elapsed: Duration) -> String {
    let counts = &view.counts;
    let mut parts = vec![format!("{}/{}", grouped(counts.ended()), grouped(total))];
    for (count, what) in [
        (counts.dead, "dead"),
        (counts.cancelled, "cancelled"),
        (counts.expired, "expired"),
        (counts.delayed, "waiting for a time"),
        (counts.running, "running"),
    ] {
        if count > 0 {
            parts.push(format!("{} {what}", grouped(count)));
        }
    }
    parts.extend(match (view.cost, view.cost_unknown) {
        (None, 0) => None,
        (None, _) => Some("cost ?".to_owned()),
        (Some(cost), 0) => Some(format!("${cost}")),
        (Some(cost), _) => Some(format!("${cost} + ?")),
    });
    parts.push(format!("{} elapsed", format_duration(Duration::from_secs(elapsed.as_secs().max(1)))));
    parts.extend(eta.map(|eta| format!("ETA {}", format_duration(Duration::from_secs(eta.as_secs().max(1))))));
    parts.extend(blocked.map(|reason| format!("held back: {reason}")));
    parts.join(" · ")
}

#[expect(clippy::cast_precision_loss, reason = "an estimate for people")]
fn to_f64(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use promptq_common::job::{BatchName, Queue};
    use promptq_common::ledger::{Counts, Cursor};
    use promptq_common::outcome::{Usage, Usd};
    use promptq_common::time::Timestamp;

    use super::*;

    #[test]
    fn a_cost_that_is_not_all_known_says_so() {
        let shown = |cost: Option<i64>, cost_unknown| {
            let view = BatchView {
                name: BatchName::new("b").unwrap(),
                queue: Queue::standard(),
                created_at: Timestamp::now(),
                sealed: true,
                cancelled: false,
                counts: Counts { total: 9, succeeded: 3, ..Counts::default() },
                usage: Usage::default(),
                cost: cost.map(Usd::from_nanos),
                cost_unknown,
                last: Cursor(0),
            };
            text(&view, 9, None, None, Duration::from_secs(2))
        };
        assert_eq!(shown(Some(240_000_000), 0), "3/9 · $0.24 · 2s elapsed");
        assert_eq!(shown(Some(240_000_000), 1), "3/9 · $0.24 + ? · 2s elapsed");
        assert_eq!(shown(None, 3), "3/9 · cost ? · 2s elapsed");
        assert_eq!(shown(None, 0), "3/9 · 2s elapsed");
    }
}
