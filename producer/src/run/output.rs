//! The output file of a run: appended to, made durable, and found again after a crash at any point.
//! Where it stood is a [`Position`], which the caller keeps in the ledger; what is written is `follow.rs`.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use promptq_common::ledger::Cursor;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::lock::{beside, claim};
use crate::problem::{Exit, Problem, Result};
use crate::sink::cannot_write;

/// How far an output was durable at some time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    /// Bytes.
    pub length: u64,
    /// The last record in them.
    pub cursor: Cursor,
    /// Lines.
    pub lines: u64,
    /// SHA-256 of the last [`TAIL`] of those bytes, hexadecimal.
    pub tail: String,
}

impl Position {
    /// Counts what was written where nothing is gone on with.
    pub(super) fn pass(&mut self, bytes: &[u8], lines: u64, cursor: Cursor) {
        self.length += bytes.len() as u64;
        self.lines += lines;
        self.cursor = cursor;
    }
}

/// Bytes compared to tell our own file from another.
const TAIL: usize = 4_096;
/// How every line of ours begins.
const LINE_START: &[u8] = br#"{"id":"batch_req_"#;

/// An output file, locked against other runs.
#[derive(Debug)]
pub(super) struct OutputFile {
    file: File,
    path: PathBuf,
    position: Position,
    tail: Vec<u8>,
}

impl OutputFile {
    /// Opens `path` where one of the `known` positions left it; makes it (mode 0600) when it is missing. With
    /// `overwrite`, begins anew whatever is there.
    ///
    /// # Errors
    /// `Conflict` when the file holds something else than this run wrote, or another process writes it.
    pub(super) fn open(path: &Path, known: &[Position], overwrite: bool) -> Result<Self> {
        let trouble = |error: &io::Error| cannot_write(path, error);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        let file = file.map_err(|error| trouble(&error))?;
        claim(&file, "the output file", path)?;
        let length = file.metadata().map_err(|error| trouble(&error))?.len();
        // Where a symbolic link leads to: what takes the file's place later must not take the link's.
        let real = std::fs::canonicalize(path).map_err(|error| trouble(&error))?;
        let mut output = Self { file, path: real, position: Position::default(), tail: Vec::new() };
        if length == 0 || overwrite {
            output.cut(&Position::default()).map_err(|error| trouble(&error))?;
            sync_folder(path).map_err(|error| trouble(&error))?;
            return Ok(output);
        }
        for position in known {
            if output.fits(position, length).map_err(|error| trouble(&error))? {
                output.cut(position).map_err(|error| trouble(&error))?;
                return Ok(output);
            }
        }
        let what = format!("{} is not as this run left it", path.display());
        let problem = if known.is_empty() {
            let what = format!("{} exists and is not of this run", path.display());
            Problem::new(Exit::Conflict, "output-changed", what)
                .detail("this is another run (input, template, model or parameters changed): its jobs are new")
                .hint("--overwrite writes this run's results over it; another file with -o keeps it")
        } else {
            Problem::new(Exit::Conflict, "output-changed", what)
                .hint("--overwrite writes it again from the stored results; nothing is paid twice")
                .hint("another -o is another run, which pays for every job again")
        };
        Err(problem.detail("nothing was written to it"))
    }

    /// Appends whole lines, durably. A crash in between leaves bytes behind the last known position, which
    /// [`OutputFile::open`] cuts off.
    pub(super) fn append(&mut self, bytes: &[u8], lines: u64, cursor: Cursor) -> Result<()> {
        let written = self.file.write_all(bytes).and_then(|()| self.file.sync_data());
        written.map_err(|error| cannot_write(&self.path, &error))?;
        let keep = bytes.len().min(TAIL);
        self.tail.extend_from_slice(&bytes[bytes.len() - keep..]);
        let excess = self.tail.len().saturating_sub(TAIL);
        self.tail.drain(..excess);
        self.position = Position {
            length: self.position.length + bytes.len() as u64,
            cursor,
            lines: self.position.lines + lines,
            tail: hex(&Sha256::digest(&self.tail)),
        };
        Ok(())
    }

    /// Where it stands.
    pub(super) fn position(&self) -> &Position {
        &self.position
    }

    /// An empty file beside it, to be filled and then put in its place by [`OutputFile::replace`].
    pub(super) fn draft(&self) -> Result<Self> {
        let path = beside(&self.path);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&path);
        let file = file.map_err(|error| cannot_write(&path, &error))?;
        claim(&file, "the output file", &path)?;
        let position = Position { tail: hex(&Sha256::digest([])), ..Position::default() };
        Ok(Self { file, path, position, tail: Vec::new() })
    }

    /// Leaves a draft unused. What a crash leaves of it, the next draft takes the place of.
    pub(super) fn discard(self) {
        std::fs::remove_file(&self.path).ok();
    }

    /// Puts a draft in this file's place. The caller has saved both positions, so that a crash before or after the
    /// exchange finds a file that fits.
    pub(super) fn replace(&mut self, draft: Self) -> Result<()> {
        std::fs::rename(&draft.path, &self.path).map_err(|error| cannot_write(&self.path, &error))?;
        sync_folder(&self.path).map_err(|error| cannot_write(&self.path, &error))?;
        let path = std::mem::take(&mut self.path);
        *self = Self { path, ..draft };
        Ok(())
    }

    /// Whether the file begins with what `position` says, and goes on with nothing but lines like ours.
    fn fits(&mut self, position: &Position, length: u64) -> io::Result<bool> {
        if length < position.length {
            return Ok(false);
        }
        let tail = self.tail_at(position.length)?;
        if hex(&Sha256::digest(&tail)) != position.tail {
            return Ok(false);
        }
        let mut more = Vec::new();
        self.file.seek(SeekFrom::Start(position.length))?;
        (&self.file).take(LINE_START.len() as u64).read_to_end(&mut more)?;
        Ok(LINE_START.starts_with(&more))
    }

    fn cut(&mut self, position: &Position) -> io::Result<()> {
        self.file.set_len(position.length)?;
        self.file.seek(SeekFrom::End(0))?;
        self.file.sync_all()?;
        self.tail = self.tail_at(position.length)?;
        self.position = Position { tail: hex(&Sha256::digest(&self.tail)), ..position.clone() };
        Ok(())
    }

    fn tail_at(&self, length: u64) -> io::Result<Vec<u8>> {
        let keep = usize::try_from(length).unwrap_or(TAIL).min(TAIL);
        let mut tail = vec![0; keep];
        self.file.read_exact_at(&mut tail, length - keep as u64)?;
        Ok(tail)
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn line(n: u32) -> Vec<u8> {
        format!("{{\"id\":\"batch_req_{n}\",\"x\":\"{}\"}}\n", "y".repeat(3_000)).into_bytes()
    }

    fn write(path: &Path, known: &[Position], n: u32) -> Position {
        let mut output = OutputFile::open(path, known, false).unwrap();
        output.append(&line(n), 1, Cursor(u64::from(n))).unwrap();
        output.position().clone()
    }

    #[test]
    fn what_a_crash_left_behind_is_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.jsonl");
        let first = write(&path, &[], 1);
        let second = write(&path, std::slice::from_ref(&first), 2);
        assert_eq!((second.lines, second.cursor), (2, Cursor(2)));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        // As if the process had died before the second position was saved, in the middle of a line even.
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"id\":\"ba").unwrap();
        assert_eq!(write(&path, &[first], 2), second);
        assert_eq!(std::fs::read(&path).unwrap(), [line(1), line(2)].concat());
    }

    #[test]
    fn a_missing_file_is_written_from_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.jsonl");
        let first = write(&path, &[], 1);
        std::fs::remove_file(&path).unwrap();
        let output = OutputFile::open(&path, &[first], false).unwrap();
        assert_eq!((output.position().length, output.position().cursor), (0, Cursor(0)));
    }

    #[test]
    fn a_file_that_is_not_ours_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.jsonl");
        let first = write(&path, &[], 1);
        let ours = std::fs::read(&path).unwrap();
        let changed = |bytes: &[u8], known: &[Position]| {
            std::fs::write(&path, bytes).unwrap();
            let problem = OutputFile::open(&path, known, false).unwrap_err();
            assert_eq!(problem.exit, Exit::Conflict);
            assert_eq!(std::fs::read(&path).unwrap(), bytes, "nothing was touched");
        };
        let known = std::slice::from_ref(&first);
        changed(&ours, &[]);
        changed(&ours[..ours.len() - 1], known);
        changed(&[&ours[..ours.len() - 2], b"!\n"].concat(), known);
        changed(&[&ours, &b"my own notes\n"[..]].concat(), known);
        assert_eq!(OutputFile::open(&path, known, true).unwrap().position().length, 0);
        assert!(std::fs::read(&path).unwrap().is_empty());
    }

    #[test]
    fn a_draft_takes_the_files_place_and_can_be_gone_on_with() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.jsonl");
        let mut output = OutputFile::open(&path, &[], false).unwrap();
        output.append(&line(1), 1, Cursor(1)).unwrap();
        let mut draft = output.draft().unwrap();
        draft.append(&line(7), 1, Cursor(9)).unwrap();
        let known = [output.position().clone(), draft.position().clone()];
        output.replace(draft).unwrap();
        output.append(&line(8), 1, Cursor(10)).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), [line(7), line(8)].concat());
        drop(output);
        assert_eq!(OutputFile::open(&path, &known, false).unwrap().position().cursor, Cursor(9));
    }

    #[test]
    fn two_runs_never_write_one_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.jsonl");
        let _first = OutputFile::open(&path, &[], false).unwrap();
        assert_eq!(OutputFile::open(&path, &[], true).unwrap_err().exit, Exit::Conflict);
    }
}
