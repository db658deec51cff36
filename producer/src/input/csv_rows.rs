//! Records of a CSV or TSV file, each with the line it begins in; ragged ones are faults, an open quote an error.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, BufReader, Read};

use memchr::{memchr2, memchr3};
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

    /// Follows what is read next: where lines end, and whether a quote is open.
    fn see(&mut self, bytes: &[u8]) {
        let mut at = 0;
        while let Some(passed) = self.quotes.next_in(&bytes[at..]) {
            at += passed;
            if bytes[at] == b'\n' {
                let returned = at.checked_sub(1).map_or(self.returned, |before| bytes[before] == b'\r');
                let end = self.offset + at as u64;
                self.ends.get_mut().push_back((end - u64::from(returned), end));
            }
            self.quotes.pass(bytes[at]);
            at += 1;
        }
        self.returned = bytes.last().map_or(self.returned, |last| *last == b'\r');
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
        self.see(&buffer[..n]);
        self.ended |= n == 0 && !buffer.is_empty();
        self.offset += n as u64;
        self.since.set(self.since.get() + n as u64);
        Ok(n)
    }
}

/// Follows the quotes of a file, as the reader does: one counts at the beginning of a field alone.
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
    /// Where the next byte is that may be a line's end or change the place.
    fn next_in(&self, bytes: &[u8]) -> Option<usize> {
        match self.place {
            Field::Start | Field::Half => (!bytes.is_empty()).then_some(0),
            Field::Plain => memchr3(self.delimiter, b'\n', b'\r', bytes),
            Field::Quoted => memchr2(b'"', b'\n', bytes),
        }
    }

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

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

    use super::super::args::InputArgs;
    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        input: InputArgs,
    }

    fn metered() -> Metered {
        let file = tempfile::Builder::new().suffix(".csv").tempfile().unwrap();
        let cli = Cli::parse_from(["test", file.path().to_str().unwrap()]);
        let tracked = Source::all(&cli.input).unwrap()[0].open().unwrap();
        Metered::new(BufReader::new(tracked), b',')
    }

    #[test]
    fn what_is_skipped_changes_nothing() {
        let mut random = StdRng::seed_from_u64(1);
        let mut open = 0;
        for _ in 0..2_000 {
            let length = random.random_range(0..40);
            let text: Vec<u8> = (0..length).map(|_| b"ab\",\n\r"[random.random_range(0..6)]).collect();
            let mut each = metered();
            for (at, byte) in (0..).zip(&text) {
                if *byte == b'\n' {
                    each.ends.get_mut().push_back((at - u64::from(each.returned), at));
                }
                each.returned = *byte == b'\r';
                each.quotes.pass(*byte);
            }
            each.ended = true;
            open += u32::from(each.left_open().is_some());
            for piece in [1, 3, 40] {
                let mut some = metered();
                for bytes in text.chunks(piece) {
                    some.see(bytes);
                    some.offset += bytes.len() as u64;
                }
                some.ended = true;
                assert_eq!(some.ends, each.ends, "{:?} by {piece}", String::from_utf8_lossy(&text));
                assert_eq!(some.left_open(), each.left_open(), "{:?} by {piece}", String::from_utf8_lossy(&text));
            }
        }
        assert!((200..1_800).contains(&open), "{open}");
    }
}
