//! `run`: a table's rows through SQLite with all of promptq's writes and out again, a line each; and the same without a
//! broker. Rows are parsed and put into a template here, which stands for the one that promptq is given.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufReader, BufWriter, Write as _};

use anyhow::{Context, ensure};
use csv::{Reader, StringRecord};

use super::arguments::Rows;
use super::clock::Stopwatch;
use super::rows::Stored;
use super::sqlite::Sqlite;

/// The line of JSON that says what it took.
pub(super) fn run(rows: &Rows) -> anyhow::Result<String> {
    let mut table = Table::open(rows)?;
    let output = File::create(&rows.output).with_context(|| format!("make {}", rows.output.display()))?;
    let mut output = BufWriter::with_capacity(1 << 16, output);
    let clock = Stopwatch::start();
    let done = match &rows.broker {
        None => pass(&mut table, &mut output)?,
        Some(setting) => through(&mut table, &mut output, &mut Sqlite::open(setting)?, setting.batch)?,
    };
    output.into_inner()?.sync_all()?;
    ensure!(done > 0, "{} has no rows", rows.input.display());
    let line = clock.stop(done, false)?;
    let lines = std::fs::read_to_string(&rows.output)?.lines().count();
    ensure!(lines == done, "{lines} lines of {done} rows");
    Ok(line)
}

/// Parses, fills in and writes.
fn pass(table: &mut Table, output: &mut BufWriter<File>) -> anyhow::Result<usize> {
    let mut done = 0;
    while let Some((number, prompt)) = table.next()? {
        write_line(output, number, prompt)?;
        done += 1;
    }
    Ok(done)
}

/// A batch at a time: one transaction ends the last one, puts the next one in and claims it; then the ended ones' lines
/// go out. Between two transactions the file has every row either as a job in hand, or with its record.
fn through(
    table: &mut Table,
    output: &mut BufWriter<File>,
    broker: &mut Sqlite,
    batch: usize,
) -> anyhow::Result<usize> {
    let (mut done, mut claimed) = (0, Vec::new());
    let mut prompts: VecDeque<(u64, String)> = VecDeque::new();
    loop {
        let mut payloads = Vec::with_capacity(batch);
        while payloads.len() < batch {
            let Some((number, prompt)) = table.next()? else { break };
            payloads.push(Stored::payload_of(prompt)?);
            prompts.push_back((number, prompt.to_owned()));
        }
        if payloads.is_empty() && claimed.is_empty() {
            return Ok(done);
        }
        let next = broker.transact(|rows, conn| {
            rows.end(conn, &claimed)?;
            if payloads.is_empty() {
                return Ok(Vec::new());
            }
            rows.put_these(conn, &payloads)?;
            rows.claim(conn, payloads.len())
        })?;
        ensure!(next.len() == payloads.len(), "rows that were put in are not there");
        for _ in &claimed {
            let (number, prompt) = prompts.pop_front().context("a row for each end")?;
            write_line(output, number, &prompt)?;
        }
        output.flush()?;
        done += claimed.len();
        claimed = next;
    }
}

/// One row's result: what it was asked stands for what is answered.
fn write_line(output: &mut BufWriter<File>, number: u64, prompt: &str) -> anyhow::Result<()> {
    write!(
        output,
        "{{\"id\":\"batch_req_{number:032x}\",\"custom_id\":null,\"response\":{{\"status_code\":200,\"body\":"
    )?;
    serde_json::to_writer(&mut *output, prompt)?;
    writeln!(
        output,
        "}},\"error\":null,\"promptq\":{{\"row\":{number},\"queue\":\"default\",\"state\":\"succeeded\"}}}}"
    )?;
    Ok(())
}

/// A table, read row by row.
struct Table {
    reader: Reader<BufReader<File>>,
    row: StringRecord,
    /// Which column the template names.
    text: usize,
    prompt: String,
    number: u64,
    left: usize,
}

impl Table {
    fn open(rows: &Rows) -> anyhow::Result<Self> {
        let file = File::open(&rows.input).with_context(|| format!("open {}", rows.input.display()))?;
        let mut reader = Reader::from_reader(BufReader::with_capacity(1 << 16, file));
        let text = reader.headers()?.iter().position(|name| name == "text").context("a column named text is needed")?;
        Ok(Self { reader, row: StringRecord::new(), text, prompt: String::new(), number: 0, left: rows.most })
    }

    /// The next row's number and prompt: `Sentiment of: {{text}}`.
    fn next(&mut self) -> anyhow::Result<Option<(u64, &str)>> {
        if self.left == 0 || !self.reader.read_record(&mut self.row)? {
            return Ok(None);
        }
        self.left -= 1;
        self.number += 1;
        self.prompt.clear();
        self.prompt.push_str("Sentiment of: ");
        self.prompt.push_str(self.row.get(self.text).unwrap_or_default());
        Ok(Some((self.number, &self.prompt)))
    }
}
