//! The last line of a run.

use std::path::Path;
use std::time::Duration;

use promptq_common::ledger::BatchView;

use crate::submit::{grouped, jobs};

/// `done: 4,992 succeeded, 8 dead, $0.24, 10:04 → out.jsonl`; a cost that nobody knows is called so.
pub(super) fn summary(how: &str, view: &BatchView, elapsed: Duration, output: &Path) -> String {
    let counts = &view.counts;
    let mut parts = vec![format!("{} succeeded", grouped(counts.succeeded))];
    for (count, what) in [(counts.dead, "dead"), (counts.cancelled, "cancelled"), (counts.expired, "expired")] {
        if count > 0 {
            parts.push(format!("{} {what}", grouped(count)));
        }
    }
    let cost = match (view.cost, view.cost_unknown) {
        (Some(cost), 0) => format!("${cost}"),
        (Some(cost), unknown) => format!("${cost} and unknown for {}", jobs(unknown)),
        (None, _) => "cost unknown".to_owned(),
    };
    parts.push(cost);
    parts.push(clock(elapsed));
    let place = if output == Path::new("-") { String::new() } else { format!(" → {}", output.display()) };
    format!("{how}: {}{place}", parts.join(", "))
}

fn clock(elapsed: Duration) -> String {
    let seconds = elapsed.as_secs();
    let (hours, minutes, seconds) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

#[cfg(test)]
mod tests {
    use promptq_common::job::{BatchName, Queue};
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
        let line = |view: &BatchView| summary("done", view, Duration::from_secs(604), Path::new("out.jsonl"));
        assert_eq!(line(&view), "done: 4,992 succeeded, 8 dead, $0.24, 10:04 → out.jsonl");
        view.cost = None;
        assert_eq!(line(&view), "done: 4,992 succeeded, 8 dead, cost unknown, 10:04 → out.jsonl");
    }
}
