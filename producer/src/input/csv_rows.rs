//! Records of a CSV or TSV file, each with the line it begins in; ragged ones are faults, an open quote an error.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, BufReader, Read};

use serde_json::Value;

use super::args::Kind;
use super::rows::{Fault, LONGEST, Row, not_utf8, skip_mark};
use super::source::{Source, Tracked, unreadable};
use crate::problem::{Exit, Problem, Result};

/// The records below a heading row.
#[derive(Debug)]
pub(super) struct CsvRows {
    reader: csv::Reader<Metered>,
    headings: Vec<String>,
    line: u64,
    /// The last one, for its room.
    record: csv::StringRecord,
}

impl CsvRows {
    /// Reads the heading row, which must name every column once.
    pub(super) fn open(source: &Source, tracked: Tracked) -> Result<Self> {
        let delimiter = if source.kind == Kind::Tsv { b'\t' } else { source.delimiter.unwrap_or(b',') };
        let mut first = BufReader::with_capacity(1 << 16, tracked);
        skip_mark(&mut first).map_err(|error| unreadable(&source.name, &error))?;
        let metered = Metered::new(first, delimiter);
        let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(metered);
        let bad = |what: String| {
            Problem::new(Exit::Usage, "bad-headings", format!("{} {what}", source.name))
                .detail(format!("--> {}:1", source.name))
                .detail("nothing was enqueued")
        };
        let headings: Vec<String> = match reader.headers() {
            Ok(record) => record.iter().map(str::to_owned).collect(),
            Err(error) => return Err(bad(format!("has no readable heading row: {error}"))),
        };
        if headings.is_empty() {
            return Err(bad("has no heading row".into()).hint("the first row names the columns, as in id,text"));
        }
        if let Some(line) = reader.get_ref().left_open() {
            return Err(bad(never_closed(line)));
        }
        if let ([only], None, Kind::Csv) = (headings.as_slice(), source.delimiter, source.kind)
            && let Some(other) = [';', '\t', '|'].into_iter().find(|other| only.contains(*other))
        {
            return Err(bad(format!("has a single column, named {only:?}: is it separated by {other:?}?"))
                .hint(format!("--delimiter '{}', or --delimiter , if it is one column", other.escape_default())));
        }
        for (n, heading) in headings.iter().enumerate() {
            if heading.trim().is_empty() {
                return Err(bad(format!("has no name for column {}", n + 1)));
            }
            if headings.iter().take(n).any(|other| other == heading) {
                return Err(bad(format!("has two columns named {heading:?}")));
            }
        }
        Ok(Self { reader, headings, line: 1, record: csv::StringRecord::new() })
    }

    /// The next record and the line it begins in; `Err` ends the file.
    pub(super) fn next_row(&mut self) -> io::Result<Option<(u64, Result<Row, Fault>)>> {
        let source = self.reader.get_ref();
        source.since.set(0);
        self.line += source.lines_before(self.reader.position().byte());
        let line = self.line;
        let read = self.reader.read_record(&mut self.record);
        if let Some(line) = self.reader.get_ref().left_open() {
            return Err(io::Error::other(never_closed(line)));
        }
        let error = match read {
            Ok(false) => return Ok(None),
            Ok(true) => {
                let columns = self.headings.iter().cloned().zip(self.record.iter().map(Value::from)).collect();
                return Ok(Some((line, Ok(Row::Columns(columns)))));
            }
            Err(error) => error,
        };
        let fault = match error.kind() {
            csv::ErrorKind::Io(error) if is_too_long(error) => {
                return Err(io::Error::other(format!(
                    "the row that begins in line {line} is longer than {} MiB; is a quote never closed?",
                    LONGEST >> 20
                )));
            }
            csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
                Fault::new(format!("{len} columns where the heading row has {expected_len}"))
                    .hint("quote fields that hold the separator, as in \"a, b\"")
            }
            csv::ErrorKind::Utf8 { err, .. } => {
                let name = self.headings.get(err.field()).map_or("?", String::as_str);
                Fault { what: format!("column {name:?} is not UTF-8"), ..not_utf8() }
            }
            csv::ErrorKind::Io(_) | csv::ErrorKind::Seek | csv::ErrorKind::Serialize(_) | _ => {
                return Err(io::Error::other(error.to_string()));
            }
        };
        Ok(Some((line, Err(fault))))
    }

    /// The file beneath.
    pub(super) fn tracked(&self) -> &Tracked {
        &self.reader.get_ref().inner
    }
}

fn never_closed(line: u64) -> String {
    format!("the quote that opens in line {line} is never closed: the rest of the file would be one field")
}

fn is_too_long(error: &io::Error) -> bool {
    error.get_ref().and_then(|inner| inner.downcast_ref::<TooLong>()).is_some()
}

/// Stops a record that never ends, and knows where lines end.
#[derive(Debug)]
struct Metered {
    inner: Tracked,
    rest: Vec<u8>,
    since: Cell<u64>,
    offset: u64,
    /// Where each line end begins (at its carriage return, if it has one) and its newline.
    ends: RefCell<VecDeque<(u64, u64)>>,
    returned: bool,
    quotes: Quotes,
    ended: bool,
}

impl Metered {
    /// Goes on where `first` has read to.
    fn new(first: BufReader<Tracked>, delimiter: u8) -> Self {
        let rest = first.buffer().to_vec();
        Self {
            inner: first.into_inner(),
            rest,
            since: Cell::new(0),
            offset: 0,
            ends: RefCell::default(),
            returned: false,
            quotes: Quotes { delimiter, place: Field::Start, line: 1, opened: 1 },
            ended: false,
        }
    }

    /// The line in which a quote opens that the file, read to its end, never closes.
    fn left_open(&self) -> Option<u64> {
        (self.ended && self.quotes.place == Field::Quoted).then_some(self.quotes.opened)
    }

    /// How many lines end before the record that is looked for from `byte` on, since the last such call: line ends
    /// right there still belong to the record before, or to empty lines.
    fn lines_before(&self, mut byte: u64) -> u64 {
        let mut ends = self.ends.borrow_mut();
        let mut lines = 0;
        while let Some((_, end)) = ends.front().copied().filter(|(begin, _)| *begin <= byte) {
            ends.pop_front();
            lines += 1;
            byte = byte.max(end + 1);
        }
        lines
    }
}

impl Read for Metered {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.since.get() > LONGEST as u64 {
            return Err(io::Error::other(TooLong));
        }
        let n = if self.rest.is_empty() {
            self.inner.read(buffer)?
        } else {
            let n = self.rest.len().min(buffer.len());
            buffer[..n].copy_from_slice(&self.rest[..n]);
            self.rest.drain(..n);
            n
        };
        let ends = self.ends.get_mut();
        for (at, byte) in (self.offset..).zip(&buffer[..n]) {
            if *byte == b'\n' {
                ends.push_back((at - u64::from(self.returned), at));
            }
            self.returned = *byte == b'\r';
            self.quotes.pass(*byte);
        }
        self.ended |= n == 0 && !buffer.is_empty();
        self.offset += n as u64;
        self.since.set(self.since.get() + n as u64);
        Ok(n)
    }
}

/// Follows the quotes of a file byte by byte, as the reader does: one counts at the beginning of a field alone.
#[derive(Debug)]
struct Quotes {
    delimiter: u8,
    place: Field,
    line: u64,
    opened: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Start,
    Plain,
    Quoted,
    /// After a quote in a quoted field: its end, or the first half of a quote.
    Half,
}

impl Quotes {
    fn pass(&mut self, byte: u8) {
        let ends = byte == self.delimiter || matches!(byte, b'\n' | b'\r');
        self.place = match self.place {
            Field::Start if byte == b'"' => {
                self.opened = self.line;
                Field::Quoted
            }
            Field::Quoted if byte == b'"' => Field::Half,
            Field::Half if byte == b'"' => Field::Quoted,
            Field::Quoted => Field::Quoted,
            Field::Start | Field::Plain | Field::Half => {
                if ends {
                    Field::Start
                } else {
                    Field::Plain
                }
            }
        };
        self.line += u64::from(byte == b'\n');
    }
}

#[derive(Debug)]
struct TooLong;

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("too long")
    }
}

impl std::error::Error for TooLong {}
