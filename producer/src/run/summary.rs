//! The last lines of a run: what came of it, and what its dead jobs died of.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use promptq_common::broker::MAX_BATCH;
use promptq_common::job::BatchName;
use promptq_common::ledger::{BatchView, JobFilter, Ledger};
use promptq_common::outcome::CostSource;
use promptq_common::record::{Record, State};

use crate::problem::Result;
use crate::submit::{grouped, jobs};

/// What is told of results beside how many there are: which answers were stored ones, which are not whole, and whose cost
/// is a guess.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    words: BTreeMap<&'static str, u64>,
    guessed: u64,
}

impl Tally {
    pub(super) fn add(&mut self, record: &Record) {
        self.guessed += u64::from(record.cost_source() == Some(CostSource::Estimate));
        let Some(answer) = &record.answer else { return };
        let reused = answer.origin.as_ref().and_then(|origin| origin.reused_from).map(|_| "reused");
        for word in reused.into_iter().chain(record.class_name()) {
            *self.words.entry(word).or_default() += 1;
        }
    }

    pub(super) fn append(&mut self, more: &Self) {
        self.guessed += more.guessed;
        for (word, count) in &more.words {
            *self.words.entry(*word).or_default() += count;
        }
    }

    /// ` (3,000 reused, 12 truncated)`, or nothing.
    fn says(&self) -> String {
        let words: Vec<_> = self.words.iter().map(|(word, count)| format!("{} {word}", grouped(*count))).collect();
        if words.is_empty() { String::new() } else { format!(" ({})", words.join(", ")) }
    }
}

/// `done: 4,992 succeeded (3,000 reused), 8 dead, $0.24, 10:04 → out.jsonl`; a cost that nobody knows is called so.
pub(super) fn summary(how: &str, view: &BatchView, tally: &Tally, elapsed: Duration, output: &Path) -> String {
    let counts = &view.counts;
    let mut parts = vec![format!("{} succeeded{}", grouped(counts.succeeded), tally.says())];
    for (count, what) in [(counts.dead, "dead"), (counts.cancelled, "cancelled"), (counts.expired, "expired")] {
        if count > 0 {
            parts.push(format!("{} {what}", grouped(count)));
        }
    }
    let cost = match (view.known_cost(), view.cost_unknown) {
        (Some(cost), 0) => format!("${cost}"),
        (Some(cost), unknown) => format!("${cost} and unknown for {}", jobs(unknown)),
        (None, _) => "cost unknown".to_owned(),
    };
    let guessed = if tally.guessed > 0 { format!(" (estimated for {})", jobs(tally.guessed)) } else { String::new() };
    parts.push(cost + &guessed);
    parts.push(clock(elapsed));
    let place = if output == Path::new("-") { String::new() } else { format!(" → {}", output.display()) };
    format!("{how}: {}{place}", parts.join(", "))
}

/// Causes that are named.
const NAMED: usize = 3;
/// Dead jobs that are looked at, the newest: more would hold up the end of a run that died whole.
const LOOKED_AT: usize = 10_000;

/// `died of: 6x content_filter, 2x context_length_exceeded`; `None` where no job is dead.
pub(super) async fn causes(ledger: &dyn Ledger, batch: &BatchName) -> Result<Option<String>> {
    let filter = JobFilter { batch: Some(batch.clone()), states: vec![State::Dead], ..JobFilter::default() };
    let (mut counts, mut cursor, mut seen) = (BTreeMap::<String, u64>::new(), None, 0);
    loop {
        let page = ledger.list(&filter, cursor.as_deref(), MAX_BATCH).await?;
        seen += page.items.len();
        for job in page.items {
            let cause = job.record.and_then(|record| record.cause);
            *counts.entry(cause.map_or_else(|| "unknown".to_owned(), |cause| cause.code)).or_default() += 1;
        }
        cursor = page.next;
        if cursor.is_none() || seen >= LOOKED_AT {
            break;
        }
    }
    Ok(named(counts, cursor.is_some()))
}

fn named(counts: BTreeMap<String, u64>, more: bool) -> Option<String> {
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let others = counts.len().saturating_sub(NAMED);
    let top = counts.into_iter().take(NAMED).map(|(code, count)| format!("{}x {code}", grouped(count)));
    let mut text = top.collect::<Vec<_>>().join(", ");
    if text.is_empty() {
        return None;
    }
    if others > 0 {
        text = format!("{text}, {others} other {}", if others == 1 { "cause" } else { "causes" });
    }
    let among = if more { format!(" (of the newest {})", grouped(LOOKED_AT as u64)) } else { String::new() };
    Some(format!("died of{among}: {text}"))
}

fn clock(elapsed: Duration) -> String {
    let seconds = elapsed.as_secs();
    let (hours, minutes, seconds) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

#[cfg(test)]
mod tests {
    use promptq_common::job::Queue;
    use promptq_common::ledger::{Counts, Cursor};
    use promptq_common::outcome::{Usage, Usd};
    use promptq_common::time::Timestamp;

    use super::*;

    #[test]
    fn it_says_what_came_of_it() {
        let mut view = BatchView {
            name: BatchName::new("b").unwrap(),
            queue: Queue::standard(),
            created_at: Timestamp::now(),
            sealed: true,
            cancelled: false,
            counts: Counts { total: 5_000, succeeded: 4_992, dead: 8, ..Counts::default() },
            usage: Usage::default(),
            cost: Some(Usd::from_nanos(240_000_000)),
            cost_unknown: 0,
            last: Cursor(0),
        };
        let none = Tally::default();
        let line = |view: &BatchView| summary("done", view, &none, Duration::from_secs(604), Path::new("out.jsonl"));
        let of = |words: &[(&'static str, u64)], guessed| Tally { words: words.iter().copied().collect(), guessed };
        let mut tally = of(&[("truncated", 1)], 0);
        tally.append(&of(&[("truncated", 11), ("reused", 3_000)], 0));
        let told = |tally: &Tally| summary("done", &view, tally, Duration::ZERO, Path::new("-"));
        assert_eq!(told(&tally), "done: 4,992 succeeded (3,000 reused, 12 truncated), 8 dead, $0.24, 0:00");
        tally = of(&[], 1);
        tally.append(&of(&[], 1));
        assert_eq!(told(&tally), "done: 4,992 succeeded, 8 dead, $0.24 (estimated for 2 jobs), 0:00");
        assert_eq!(line(&view), "done: 4,992 succeeded, 8 dead, $0.24, 10:04 → out.jsonl");
        view.cost = None;
        assert_eq!(line(&view), "done: 4,992 succeeded, 8 dead, cost unknown, 10:04 → out.jsonl");
        (view.counts.succeeded, view.counts.dead) = (0, 8);
        assert_eq!(line(&view), "done: 0 succeeded, 8 dead, $0, 10:04 → out.jsonl", "none of them was called");
        view.cost_unknown = 1;
        assert_eq!(line(&view), "done: 0 succeeded, 8 dead, cost unknown, 10:04 → out.jsonl");
    }

    #[test]
    fn the_three_causes_that_count_most_are_named() {
        let named = |counts: &[(&str, u64)], more| {
            named(counts.iter().map(|(code, count)| ((*code).to_owned(), *count)).collect(), more)
        };
        assert_eq!(named(&[], false), None);
        assert_eq!(named(&[("a", 2), ("b", 6)], false).unwrap(), "died of: 6x b, 2x a");
        let many = [("a", 2), ("b", 6), ("c", 1), ("d", 3_000), ("e", 1)];
        assert_eq!(named(&many[..4], false).unwrap(), "died of: 3,000x d, 6x b, 2x a, 1 other cause");
        let cut = "died of (of the newest 10,000): 3,000x d, 6x b, 2x a, 2 other causes";
        assert_eq!(named(&many, true).unwrap(), cut);
    }
}
