//! Faulty rows, gathered for people: the first of each kind with its place, and how many there are.

use crate::input::{Fault, Place};
use crate::problem::{Exit, Problem};

/// Kinds of faults that are shown; of the rest only the number.
const SHOWN: usize = 20;

/// Faulty rows.
#[derive(Debug, Default)]
pub(super) struct Faults {
    count: u64,
    shown: Vec<Shown>,
}

#[derive(Debug)]
struct Shown {
    row: u64,
    place: Place,
    fault: Fault,
    more: u64,
}

impl Faults {
    /// Adds one.
    pub(super) fn add(&mut self, row: u64, place: Place, fault: Fault) {
        self.count += 1;
        let same = |shown: &&mut Shown| shown.fault.what == fault.what && shown.fault.excerpt.is_none();
        if let Some(shown) = self.shown.iter_mut().find(same) {
            shown.more += 1;
        } else if self.shown.len() < SHOWN {
            self.shown.push(Shown { row, place, fault, more: 0 });
        }
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// How many rows.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// All of them as one problem; `outcome` says what became of the rest, `others` whether there are rows to go on
    /// with.
    pub(super) fn problem(&self, outcome: &str, others: bool) -> Problem {
        let mut hints: Vec<String> = Vec::new();
        let mut problem = match self.shown.as_slice() {
            [] => Problem::new(Exit::Usage, "bad-row", "a row is wrong"),
            [only] => {
                let what = format!("row {} of {}: {}{}", only.row, only.place.file, only.fault.what, more(only.more));
                Problem::new(Exit::Usage, "bad-row", what).detail(place(only))
            }
            many => {
                let what = format!("{} rows are wrong", super::grouped(self.count));
                let mut problem = Problem::new(Exit::Usage, "bad-row", what);
                for shown in many {
                    problem = problem.detail(format!("row {}: {}{}", shown.row, shown.fault.what, more(shown.more)));
                    problem = problem.detail(place(shown));
                }
                problem
            }
        };
        let told: u64 = self.shown.iter().map(|shown| shown.more + 1).sum();
        if told < self.count {
            problem = problem.detail(format!("… and {} more", super::grouped(self.count - told)));
        }
        for hint in self.shown.iter().filter_map(|shown| shown.fault.hint.as_ref()) {
            if !hints.contains(hint) && hints.len() < 3 {
                hints.push(hint.clone());
            }
        }
        if others {
            hints.push("mend the rows, or pass --skip-invalid to enqueue the others".into());
        } else if hints.is_empty() {
            hints.push("no row can be used: mend the template, the flags or the file".into());
        }
        problem.hints = hints;
        problem.detail(outcome)
    }
}

fn place(shown: &Shown) -> String {
    let column = shown.fault.column.map(|column| format!(":{column}")).unwrap_or_default();
    let excerpt = shown.fault.excerpt.as_ref().map(|piece| format!("  | {piece}")).unwrap_or_default();
    format!("--> {}:{}{column}{excerpt}", shown.place.file, shown.place.line)
}

fn more(count: u64) -> String {
    match count {
        0 => String::new(),
        1 => " (and 1 more row)".into(),
        count => format!(" (and {} more rows)", super::grouped(count)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_fault_is_told_whole_and_many_are_counted() {
        let place = |line| Place { file: "a.jsonl".into(), line };
        let mut faults = Faults::default();
        let fault =
            Fault { column: Some(31), excerpt: Some("{\"id".into()), ..Fault::new("EOF while parsing a string") };
        faults.add(118, place(118), fault);
        assert_eq!(
            faults.problem("nothing was enqueued", true).to_string(),
            "error[bad-row]: row 118 of a.jsonl: EOF while parsing a string\n  --> a.jsonl:118:31  | {\"id\n  nothing was enqueued\n  hint: mend the rows, or pass --skip-invalid to enqueue the others"
        );
        for n in 0..100 {
            faults.add(n, place(n), Fault::new(format!("fault {}", n / 2)));
        }
        let text = faults.problem("x", false).to_string();
        assert!(!text.contains("--skip-invalid"), "there is nothing left to enqueue: {text}");
        assert!(text.starts_with("error[bad-row]: 101 rows are wrong"), "{text}");
        assert!(text.contains("fault 0 (and 1 more row)") && text.contains("… and 62 more"), "{text}");
    }
}
