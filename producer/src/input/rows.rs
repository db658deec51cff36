//! Rows out of a file, one at a time and in bounded memory: lines, CSV records, whole files, with the place of each.
//! What a row means is `make.rs`.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;

use promptq_common::codec::MAX_BYTES;
use serde_json::{Map, Value};

use super::args::Kind;
use super::csv_rows::CsvRows;
use super::source::{Print, Source, Tracked, unreadable};
use crate::problem::Result;

/// One row as it stands in the file.
#[derive(Clone, Debug, PartialEq)]
pub enum Row {
    /// A line of JSON.
    Json(String),
    /// Named columns.
    Columns(Map<String, Value>),
    /// A prompt; a whole file brings its name.
    Text {
        /// The text.
        text: String,
        /// The file it is.
        file: Option<String>,
    },
}

/// Where a row begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The file as people know it.
    pub file: Arc<str>,
    /// 1-based.
    pub line: u64,
}

/// What is wrong with a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// 1-based byte in the line, when known.
    pub column: Option<usize>,
    /// What.
    pub what: String,
    /// A piece of the row that shows it.
    pub excerpt: Option<String>,
    /// How to mend it.
    pub hint: Option<String>,
}

impl Fault {
    /// A fault that speaks for itself.
    pub fn new(what: impl Into<String>) -> Self {
        Self { column: None, what: what.into(), excerpt: None, hint: None }
    }

    /// Adds a way to mend it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// The rows of one file.
#[derive(Debug)]
pub(super) struct Rows {
    file: Arc<str>,
    name: String,
    shape: Shape,
}

#[derive(Debug)]
enum Shape {
    Lines { reader: BufReader<Tracked>, line: u64, json: bool },
    Csv(Box<CsvRows>),
    Whole { reader: Option<Tracked>, done: Option<Tracked> },
}

/// The longest line, record or file that can be a prompt: as long as an encoded job may be.
pub(super) const LONGEST: usize = MAX_BYTES;

impl Rows {
    /// Opens `source` and reads its headings, if it has any.
    pub(super) fn open(source: &Source) -> Result<Self> {
        let tracked = source.open()?;
        let shape = match source.kind {
            Kind::Jsonl | Kind::Lines => {
                let mut reader = BufReader::with_capacity(1 << 16, tracked);
                skip_mark(&mut reader).map_err(|error| unreadable(&source.name, &error))?;
                Shape::Lines { reader, line: 0, json: source.kind == Kind::Jsonl }
            }
            Kind::Csv | Kind::Tsv => Shape::Csv(Box::new(CsvRows::open(source, tracked)?)),
            Kind::Txt => Shape::Whole { reader: Some(tracked), done: None },
        };
        Ok(Self { file: source.name.as_str().into(), name: source.name.clone(), shape })
    }

    /// The next row with its place; a faulty one is told and skipped.
    pub(super) fn next_row(&mut self) -> Result<Option<(Place, Result<Row, Fault>)>> {
        let at = |line| Place { file: Arc::clone(&self.file), line };
        match &mut self.shape {
            Shape::Lines { reader, line, json } => loop {
                let mut bytes = Vec::new();
                let read = read_line(reader, &mut bytes).map_err(|error| unreadable(&self.name, &error))?;
                if !read {
                    return Ok(None);
                }
                *line += 1;
                let row = text_of(bytes);
                if row.as_ref().is_ok_and(|text| text.trim().is_empty()) {
                    continue;
                }
                let row = row.map(|text| if *json { Row::Json(text) } else { Row::Text { text, file: None } });
                return Ok(Some((at(*line), row)));
            },
            Shape::Csv(rows) => {
                let row = rows.next_row().map_err(|error| unreadable(&self.name, &error))?;
                Ok(row.map(|(line, row)| (at(line), row)))
            }
            Shape::Whole { reader, done } => {
                let Some(mut tracked) = reader.take() else { return Ok(None) };
                let mut bytes = Vec::new();
                let read = (&mut tracked).take(LONGEST as u64 + 1).read_to_end(&mut bytes);
                read.map_err(|error| unreadable(&self.name, &error))?;
                *done = Some(tracked);
                if bytes.starts_with(MARK) {
                    bytes.drain(..MARK.len());
                }
                let row = text_of(bytes).and_then(|text| {
                    if text.trim().is_empty() { Err(Fault::new("the file is empty")) } else { Ok(text) }
                });
                Ok(Some((at(1), row.map(|text| Row::Text { text, file: Some(self.name.clone()) }))))
            }
        }
    }

    /// Whether the next row may have to be waited for.
    pub(super) fn drained(&self) -> bool {
        match &self.shape {
            Shape::Lines { reader, .. } => !reader.buffer().contains(&b'\n'),
            Shape::Csv(_) | Shape::Whole { .. } => false,
        }
    }

    /// What was read, for comparing two readings.
    pub(super) fn print(&self) -> Option<Print> {
        self.tracked().map(Tracked::print)
    }

    /// Whether the file still looks as it did when `print` was taken.
    pub(super) fn looks_like(&self, print: &Print) -> bool {
        self.tracked().is_none_or(|tracked| tracked.looks_like(print))
    }

    fn tracked(&self) -> Option<&Tracked> {
        match &self.shape {
            Shape::Lines { reader, .. } => Some(reader.get_ref()),
            Shape::Csv(rows) => Some(rows.tracked()),
            Shape::Whole { reader, done } => reader.as_ref().or(done.as_ref()),
        }
    }
}

const MARK: &[u8] = b"\xef\xbb\xbf";

/// Leaves out a byte order mark.
pub(super) fn skip_mark(reader: &mut impl BufRead) -> io::Result<()> {
    if reader.fill_buf()?.starts_with(MARK) {
        reader.consume(MARK.len());
    }
    Ok(())
}

/// One line without its end; of one that is too long, the first bytes, enough to be refused. False at the end.
fn read_line(reader: &mut impl BufRead, bytes: &mut Vec<u8>) -> io::Result<bool> {
    let read = reader.by_ref().take(LONGEST as u64 + 1).read_until(b'\n', bytes)?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    } else if bytes.len() > LONGEST {
        reader.skip_until(b'\n')?;
    }
    Ok(read > 0)
}

fn text_of(bytes: Vec<u8>) -> Result<String, Fault> {
    if bytes.len() > LONGEST {
        return Err(too_long());
    }
    String::from_utf8(bytes).map_err(|error| {
        let column = Some(error.utf8_error().valid_up_to() + 1);
        Fault { column, ..not_utf8() }
    })
}

fn too_long() -> Fault {
    Fault::new(format!("longer than {} MiB, the most one job may be", LONGEST >> 20))
}

pub(super) fn not_utf8() -> Fault {
    Fault::new("not UTF-8").hint("convert the file: iconv -f latin1 -t utf-8 FILE")
}

#[cfg(test)]
#[path = "rows_tests.rs"]
mod tests;
