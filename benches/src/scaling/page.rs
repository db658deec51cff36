//! The tables of `benches/SCALING.md`, from the figures; the words around them are a person's.

use std::fmt::Write as _;

use anyhow::Context;

use super::figures::{Cost, Figures};
use super::{Kind, model};

type Make = fn(&Figures) -> String;

/// Every table by the name of its place in the page.
const TABLES: [(&str, Make); 5] =
    [("fill", filled), ("bytes", bytes), ("queues", spread), ("workers", fleets), ("model", model::tables)];

/// The page's text with every table written anew that has a place there, between `<!-- NAME -->` and `<!-- end NAME -->`.
///
/// # Errors
/// Where a place does not end.
pub fn page(figures: &Figures, text: &str) -> anyhow::Result<String> {
    let mut text = text.to_owned();
    for (name, table) in TABLES {
        let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- end {name} -->"));
        let Some((before, rest)) = text.split_once(&begin) else { continue };
        let (_, after) = rest.split_once(&end).with_context(|| format!("the place of {name} does not end"))?;
        text = format!("{before}{begin}{}{end}{after}", table(figures));
    }
    Ok(text)
}

/// All tables, one after another.
pub fn tables(figures: &Figures) -> String {
    TABLES.map(|(name, table)| [name, "\n\n", &table(figures), "\n"].concat()).concat()
}

fn filled(figures: &Figures) -> String {
    let head = [
        "backend",
        "waiting",
        "enqueue, us/job",
        "beside 10,000 waiting",
        "drain, us/job",
        "beside 10,000 waiting",
        "day",
    ];
    let mut table = Table::new(&head);
    for kind in Kind::ALL {
        for (filled, row) in
            figures.filled(kind).iter().flat_map(|filled| filled.rows.iter().map(move |row| (filled, row)))
        {
            let few = row.waiting <= 10_000;
            let ratio =
                |ratio| if few { "the same twice: ".to_owned() + &ratio_text(ratio) } else { ratio_text(ratio) };
            table.row(&[
                kind.to_string(),
                grouped(row.waiting),
                cost(row.enqueue),
                ratio(row.enqueue_ratio),
                cost(row.drain),
                ratio(row.drain_ratio),
                filled.date.clone(),
            ]);
        }
    }
    table.0
}

fn bytes(figures: &Figures) -> String {
    let head = ["backend", "most waiting", "payload, bytes", "memory, bytes/job", "disk, bytes/job"];
    let mut table = Table::new(&head);
    for kind in Kind::ALL {
        if let Some(row) = figures.filled(kind).and_then(|filled| filled.rows.last()) {
            let memory = if kind == Kind::Sqlite { "-".to_owned() } else { format!("{:.0}", row.memory) };
            let (payload, disk) = (format!("{:.0}", row.payload), format!("{:.0}", row.disk));
            table.row(&[kind.to_string(), grouped(row.waiting), payload, memory, disk]);
        }
    }
    table.0
}

fn spread(figures: &Figures) -> String {
    let head = [
        "backend",
        "queues",
        "enqueue, us/job",
        "beside one queue",
        "drain of all queues, us/job",
        "beside one queue",
        "drain of one of them, us/job",
        "beside one queue",
        "memory a queue, KiB",
    ];
    let mut table = Table::new(&head);
    for kind in Kind::ALL {
        for row in figures.spreading(kind).iter().flat_map(|spreading| &spreading.rows) {
            table.row(&[
                kind.to_string(),
                grouped(row.queues),
                cost(row.enqueue),
                ratio_text(row.enqueue_ratio),
                cost(row.drain_all),
                ratio_text(row.drain_all_ratio),
                cost(row.drain_one),
                ratio_text(row.drain_one_ratio),
                if kind == Kind::Sqlite { "-".to_owned() } else { format!("{:.1}", row.memory / 1024.0) },
            ]);
        }
    }
    table.0
}

fn fleets(figures: &Figures) -> String {
    let head = [
        "backend",
        "workers",
        "connections each (Redis + RabbitMQ)",
        "memory each, KiB (its own + server's)",
        "threads each",
        "idle: calls/s (Redis + RabbitMQ packets)",
        "idle: % of a processor (all workers + server)",
        "busy: us/job",
        "busy: calls/job (Redis + RabbitMQ packets)",
    ];
    let mut table = Table::new(&head);
    for kind in Kind::ALL {
        for row in figures.fleet(kind).iter().flat_map(|fleet| &fleet.rows) {
            table.row(&[
                kind.to_string(),
                grouped(row.workers),
                format!("{:.1} + {:.1}", row.connections[0], row.connections[1]),
                format!("{:.0} + {:.0}", row.memory[0].max(0.0) / 1024.0, row.memory[1].max(0.0) / 1024.0),
                format!("{:.1}", row.threads),
                format!("{:.0} + {:.0}", row.idle_calls[0], row.idle_calls[1]),
                format!("{:.1} + {:.1}", row.idle[0] * 100.0, row.idle[1] * 100.0),
                row.busy.map_or_else(|| "they lock each other out".to_owned(), cost),
                format!("{:.2} + {:.2}", row.busy_calls[0], row.busy_calls[1]),
            ]);
        }
    }
    table.0
}

/// A table in Markdown.
pub(super) struct Table(pub(super) String);

impl Table {
    pub(super) fn new(head: &[&str]) -> Self {
        let mut table = Self(String::new());
        table.row(&head.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>());
        table.0 += &"|---".repeat(head.len());
        table.0 += "|\n";
        table
    }

    pub(super) fn row(&mut self, cells: &[String]) {
        // A string takes whatever is written to it.
        let _written = writeln!(self.0, "| {} |", cells.join(" | "));
    }
}

/// Ours and the server's.
fn cost(cost: Cost) -> String {
    format!("{:.1} + {:.1}", cost.ours, cost.theirs)
}

fn ratio_text([least, median, most]: [f64; 3]) -> String {
    format!("**{median:.2}** ({least:.2}-{most:.2})")
}

/// With a comma at every thousand.
pub(super) fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let (mut text, length) = (String::new(), digits.len());
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (length - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
