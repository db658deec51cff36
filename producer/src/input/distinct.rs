//! Finds ids that stand for more than one row, in memory that does not grow with the rows: sorted runs in a
//! temporary file, merged at the end.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;

use promptq_common::job::JobId;

/// Ids kept in memory before they are written out: 6 MiB of them.
const RUN: usize = 1 << 18;
/// Bytes of an id and its row.
const ENTRY: usize = 24;
/// Entries read at a time from each run while merging: 24 KiB; 10 million rows are 39 runs.
const READ: usize = 1_024;

type Entry = ([u8; 16], u64);

/// Collects ids with their rows.
#[derive(Debug)]
pub struct Distinct {
    run: Vec<Entry>,
    length: usize,
    file: Option<File>,
    written: Vec<u64>,
}

impl Default for Distinct {
    fn default() -> Self {
        Self { run: Vec::new(), length: RUN, file: None, written: Vec::new() }
    }
}

impl Distinct {
    #[cfg(test)]
    fn with_runs_of(length: usize) -> Self {
        Self { length, ..Self::default() }
    }

    /// Adds the id of a row.
    pub fn add(&mut self, id: JobId, row: u64) -> io::Result<()> {
        self.run.push((*id.as_bytes(), row));
        if self.run.len() >= self.length { self.write_run() } else { Ok(()) }
    }

    fn write_run(&mut self) -> io::Result<()> {
        self.run.sort_unstable();
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(tempfile::tempfile()?),
        };
        let mut out = BufWriter::with_capacity(1 << 16, file);
        for (id, row) in self.run.drain(..) {
            out.write_all(&id)?;
            out.write_all(&row.to_be_bytes())?;
        }
        out.flush()?;
        self.written.push(self.length as u64);
        Ok(())
    }

    /// How many rows have an id an earlier row has, and the first `keep` such pairs (earlier row, later row).
    pub fn repeats(mut self, keep: usize) -> io::Result<(u64, Vec<(u64, u64)>)> {
        self.run.sort_unstable();
        let mut runs: Vec<Run<'_>> = Vec::new();
        let mut at = 0;
        for length in &self.written {
            runs.push(Run { file: self.file.as_ref(), at, left: *length, buffer: Vec::new().into_iter() });
            at += length * ENTRY as u64;
        }
        runs.push(Run { file: None, at: 0, left: 0, buffer: std::mem::take(&mut self.run).into_iter() });
        let mut heap = BinaryHeap::new();
        for (n, run) in runs.iter_mut().enumerate() {
            if let Some(entry) = run.next()? {
                heap.push(Reverse((entry, n)));
            }
        }
        let (mut count, mut pairs, mut last) = (0, Vec::new(), None::<Entry>);
        while let Some(Reverse(((id, row), n))) = heap.pop() {
            if let Some(entry) = runs[n].next()? {
                heap.push(Reverse((entry, n)));
            }
            match last {
                Some((same, first)) if same == id => {
                    count += 1;
                    if pairs.len() < keep {
                        pairs.push((first, row));
                    }
                }
                _ => last = Some((id, row)),
            }
        }
        Ok((count, pairs))
    }
}

/// One sorted run: a stretch of the file, or what was still in memory.
struct Run<'a> {
    file: Option<&'a File>,
    at: u64,
    left: u64,
    buffer: std::vec::IntoIter<Entry>,
}

impl Run<'_> {
    fn next(&mut self) -> io::Result<Option<Entry>> {
        if let (None, Some(file)) = (self.buffer.as_slice().first(), self.file)
            && self.left > 0
        {
            let entries = usize::try_from(self.left).unwrap_or(READ).min(READ);
            let mut bytes = vec![0; entries * ENTRY];
            file.read_exact_at(&mut bytes, self.at)?;
            self.at += bytes.len() as u64;
            self.left -= entries as u64;
            self.buffer = bytes.chunks_exact(ENTRY).map(entry).collect::<Vec<_>>().into_iter();
        }
        Ok(self.buffer.next())
    }
}

fn entry(bytes: &[u8]) -> Entry {
    let (mut id, mut row) = ([0; 16], [0; 8]);
    id.copy_from_slice(&bytes[..16]);
    row.copy_from_slice(&bytes[16..]);
    (id, u64::from_be_bytes(row))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u64) -> JobId {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes());
        JobId::from_bytes(bytes)
    }

    #[test]
    fn repeats_are_found_across_runs() {
        for length in [3, 1_000, 5_000, 100_000] {
            let mut distinct = Distinct::with_runs_of(length);
            for row in 1..=10_000 {
                distinct.add(id(if row == 9_999 { 2 } else { row }), row).unwrap();
            }
            distinct.add(id(2), 10_001).unwrap();
            assert_eq!(distinct.repeats(1).unwrap(), (2, vec![(2, 9_999)]), "runs of {length}");
        }
    }

    #[test]
    fn nothing_repeats_in_nothing() {
        assert_eq!(Distinct::default().repeats(5).unwrap(), (0, vec![]));
    }
}
