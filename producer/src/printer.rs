//! The only printing: data to stdout, talk to stderr, as tables for people, plain lines for pipes, or JSON.
//! Progress of a run is `progress.rs`, which draws through this.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use comfy_table::{ColumnConstraint, ContentArrangement, Table, Width};
use serde::Serialize;

use crate::problem::{Exit, Problem, Result};

/// The shape of data on stdout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table on a terminal, plain lines elsewhere.
    #[default]
    Table,
    /// One record per line, tabs between fields, no wrapping.
    Plain,
    /// One JSON value.
    Json,
    /// One JSON value per line.
    Jsonl,
}

/// Whether to use colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless `NO_COLOR` is set or TERM is dumb.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// How to print.
#[derive(Clone, Copy, Debug, Default)]
pub struct Style {
    /// The shape of data.
    pub format: Format,
    /// Whether to use colour.
    pub color: Color,
    /// Whether `NO_COLOR` or a dumb terminal turns `Auto` off.
    pub plain_terminal: bool,
    /// Whether talk is left out; errors never are.
    pub quiet: bool,
}

/// Writes for people and programs. A reader that has gone away is [`Exit::Done`]'s business, not an error to show.
#[derive(Clone, Copy, Debug, Default)]
pub struct Printer {
    style: Style,
}

impl Printer {
    /// A printer in this style.
    pub const fn new(style: Style) -> Self {
        Self { style }
    }

    /// The shape of data.
    pub fn format(&self) -> Format {
        self.style.format
    }

    /// Whether data is JSON.
    pub fn is_json(&self) -> bool {
        matches!(self.style.format, Format::Json | Format::Jsonl)
    }

    /// Whether talk is left out.
    pub fn is_quiet(&self) -> bool {
        self.style.quiet
    }

    /// One line of data.
    pub fn line(&self, text: &str) -> Result<()> {
        let mut out = io::stdout().lock();
        written(out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush()))
    }

    /// Bytes of data as they are, flushed.
    pub fn data(&self, bytes: &[u8]) -> Result<()> {
        let mut out = io::stdout().lock();
        written(out.write_all(bytes).and_then(|()| out.flush()))
    }

    /// One JSON value: on one line for `Jsonl`, indented for people's eyes otherwise.
    pub fn json(&self, value: &impl Serialize) -> Result<()> {
        let text = match self.style.format {
            Format::Jsonl => serde_json::to_string(value),
            Format::Json | Format::Table | Format::Plain => serde_json::to_string_pretty(value),
        };
        self.line(&text.map_err(|error| Problem::new(Exit::Failed, "failed", format!("cannot write JSON: {error}")))?)
    }

    /// Rows, under headings unless they stand above already: a table on a terminal that is wide enough to keep every
    /// word whole, lines with tabs between their fields elsewhere.
    pub fn table(&self, headings: Option<&[&str]>, rows: &[Vec<String>]) -> Result<()> {
        let drawn = self.style.format != Format::Plain && io::stdout().is_terminal();
        match drawn.then(|| drawn_table(headings, rows, Table::new().width())).flatten() {
            Some(text) if text.is_empty() => Ok(()),
            Some(text) => self.line(&text),
            None => {
                headings.map_or(Ok(()), |headings| self.line(&headings.join("\t")))?;
                let clean = |cell: &String| cell.replace(['\t', '\n', '\r'], " ");
                rows.iter().try_for_each(|row| self.line(&row.iter().map(clean).collect::<Vec<_>>().join("\t")))
            }
        }
    }

    /// One line of talk on stderr, unless quiet. Never fails: talk that nobody can read is lost.
    pub fn say(&self, text: &str) {
        if !self.style.quiet {
            stderr_line(text);
        }
    }

    /// One JSON value on a line of stderr.
    pub fn event(&self, value: &serde_json::Value) {
        stderr_line(&value.to_string());
    }

    /// Whether stderr is a terminal that can be drawn on.
    pub fn draws(&self) -> bool {
        !self.style.plain_terminal && io::stderr().is_terminal()
    }

    /// A line of talk that is shown even when quiet.
    pub fn warn(&self, text: &str) {
        stderr_line(&format!("{} {text}", self.paint("33", "warning:")));
    }

    /// A problem, on stderr: for people, or as one JSON object when data is JSON.
    pub fn problem(&self, problem: &Problem) {
        if problem.is_reader_gone() {
            return;
        }
        if self.is_json() {
            stderr_line(&problem.to_json().to_string());
            return;
        }
        let text = problem.to_string();
        let label = format!("error[{}]:", problem.slug);
        stderr_line(&text.replacen(&label, &self.paint("31;1", &label), 1));
    }

    /// Whether stderr takes colour.
    pub fn colors(&self) -> bool {
        match self.style.color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => !self.style.plain_terminal && io::stderr().is_terminal(),
        }
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colors() { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

/// A table whose words are whole; `None` where `width` columns do not hold it.
fn drawn_table(headings: Option<&[&str]>, rows: &[Vec<String>], width: Option<u16>) -> Option<String> {
    let width = width.filter(|width| *width > 0)?;
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_width(width);
    if let Some(headings) = headings {
        table.set_header(headings);
    }
    table.add_rows(rows);
    let count = |word: &str| word.chars().count();
    for (at, column) in table.column_iter_mut().enumerate() {
        let cells = rows.iter().filter_map(|row| row.get(at)).map(String::as_str);
        let cells = cells.chain(headings.and_then(|headings| headings.get(at)).copied());
        let longest = cells.flat_map(str::split_whitespace).map(count).max().unwrap_or(0);
        // The padding: one column on either side.
        let longest = u16::try_from(longest + 2).unwrap_or(u16::MAX);
        column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(longest)));
    }
    let text = table.trim_fmt();
    let fits = text.lines().all(|line| count(line) <= usize::from(width));
    fits.then_some(text)
}

fn written(result: io::Result<()>) -> Result<()> {
    result.map_err(|error| {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Problem::reader_gone();
        }
        Problem::new(Exit::Failed, "output", format!("cannot write to standard output: {error}"))
    })
}

fn stderr_line(text: &str) {
    let mut err = io::stderr().lock();
    let _lost = err.write_all(text.as_bytes()).and_then(|()| err.write_all(b"\n"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_keeps_its_words_whole_or_is_none() {
        let id = "019abcde-0123-7abc-8def-0123456789ab".to_owned();
        let rows = [vec![id.clone(), "renew key, credit or permission, then redrive".to_owned()]];
        let drawn = |width| drawn_table(Some(&["ID", "SUGGESTION"]), &rows, width);
        let narrow = drawn(Some(60)).unwrap();
        assert!(narrow.contains(&id) && narrow.lines().count() > 2, "{narrow}");
        assert!(drawn(Some(120)).unwrap().lines().count() == 2);
        assert_eq!([drawn(Some(30)), drawn(Some(0)), drawn(None)], [None, None, None]);
    }
}
