//! A file that results are written to: a regular one is replaced as a whole or written as they come, a symbolic link
//! is followed, anything else (a device, a pipe) is written to as it is. What is written is the caller's.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::problem::{Exit, Problem, Result};

/// A file being written.
#[derive(Debug)]
pub struct Sink {
    lines: BufWriter<Target>,
    path: PathBuf,
}

#[derive(Debug)]
enum Target {
    /// Takes the name `at` once it is whole.
    Whole { draft: NamedTempFile, at: PathBuf },
    /// Written in place; a regular file is made durable at the end.
    Direct { file: File, regular: bool },
}

impl Sink {
    /// Opens `path`. With `as_they_come`, a regular file is emptied and written in place, so that others can read
    /// along; otherwise it is replaced when [`Sink::finish`] is called. New files have mode 0600.
    ///
    /// # Errors
    /// `Usage` for a folder, or a path whose folder is missing.
    pub fn create(path: &Path, as_they_come: bool) -> Result<Self> {
        let target = Target::open(path, as_they_come).map_err(|error| cannot_write(path, &error))?;
        Ok(Self { lines: BufWriter::new(target), path: path.to_owned() })
    }

    /// Whether `path` is something other than a file or a folder: a device or a pipe, which can only be written to.
    pub fn is_special(path: &Path) -> bool {
        std::fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir())
    }

    /// Writes bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.lines.write_all(bytes).map_err(|error| cannot_write(&self.path, &error))
    }

    /// Writes one line.
    pub fn line(&mut self, text: &str) -> Result<()> {
        writeln!(self.lines, "{text}").map_err(|error| cannot_write(&self.path, &error))
    }

    /// Hands everything written so far to the system.
    pub fn flush(&mut self) -> Result<()> {
        self.lines.flush().map_err(|error| cannot_write(&self.path, &error))
    }

    /// Makes it durable, under its name.
    pub fn finish(self) -> Result<()> {
        let Self { lines, path } = self;
        let done = lines.into_inner().map_err(io::IntoInnerError::into_error).and_then(Target::finish);
        done.map_err(|error| cannot_write(&path, &error))
    }
}

impl Target {
    fn open(path: &Path, as_they_come: bool) -> io::Result<Self> {
        let direct = |regular| {
            let file = OpenOptions::new().write(true).create(regular).truncate(regular).mode(0o600).open(path)?;
            Ok(Self::Direct { file, regular })
        };
        let at = match std::fs::metadata(path) {
            Ok(found) if found.is_dir() => return Err(io::Error::new(ErrorKind::IsADirectory, "it is a folder")),
            Ok(found) if !found.is_file() => return direct(false),
            Ok(_) => std::fs::canonicalize(path)?,
            // A link to a file that is not there yet: opening it makes that file.
            Err(error) if error.kind() == ErrorKind::NotFound && path.is_symlink() => return direct(true),
            Err(error) if error.kind() == ErrorKind::NotFound => path.to_owned(),
            Err(error) => return Err(error),
        };
        if as_they_come {
            return direct(true);
        }
        let folder = at.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // Mode 0600 from the start: answers are as private as prompts.
        let draft = NamedTempFile::new_in(folder)?;
        Ok(Self::Whole { draft, at })
    }

    fn finish(self) -> io::Result<()> {
        match self {
            Self::Whole { draft, at } => {
                draft.as_file().sync_all()?;
                draft.persist(at).map(drop).map_err(|error| error.error)
            }
            Self::Direct { file, regular: true } => file.sync_all(),
            Self::Direct { regular: false, .. } => Ok(()),
        }
    }
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Whole { draft, .. } => draft.write(bytes),
            Self::Direct { file, .. } => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Whole { draft, .. } => draft.flush(),
            Self::Direct { file, .. } => file.flush(),
        }
    }
}

/// What an error while writing to `path` means: a wrong argument, a reader that has gone, or trouble.
pub(crate) fn cannot_write(path: &Path, error: &io::Error) -> Problem {
    if error.kind() == ErrorKind::BrokenPipe {
        return Problem::reader_gone();
    }
    let misnamed = [ErrorKind::NotFound, ErrorKind::IsADirectory, ErrorKind::NotADirectory].contains(&error.kind());
    let exit = if misnamed { Exit::Usage } else { Exit::Failed };
    Problem::new(exit, "output", format!("cannot write {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, symlink};
    use std::process::{Command, Stdio};

    use super::*;

    fn write(path: &Path) -> Result<()> {
        let mut sink = Sink::create(path, false)?;
        sink.line("new")?;
        sink.finish()
    }

    #[test]
    fn only_regular_files_are_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("real"), "old").unwrap();
        symlink(at("real"), at("link")).unwrap();
        symlink(at("later"), at("dangling")).unwrap();
        write(&at("link")).unwrap();
        write(&at("dangling")).unwrap();
        for (link, file) in [("link", "real"), ("dangling", "later")] {
            assert!(at(link).is_symlink());
            assert_eq!(std::fs::read_to_string(at(file)).unwrap(), "new\n");
        }
    }

    #[test]
    fn what_is_no_regular_file_is_written_to_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let (pipe, link) = (folder.path().join("pipe"), folder.path().join("link"));
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        symlink(&pipe, &link).unwrap();
        for (path, as_they_come) in [(&pipe, false), (&link, false), (&pipe, true)] {
            let reader = Command::new("cat").arg(&pipe).stdout(Stdio::piped()).spawn().unwrap();
            let mut sink = Sink::create(path, as_they_come).unwrap();
            sink.line("new").unwrap();
            sink.finish().unwrap();
            assert!(std::fs::metadata(path).unwrap().file_type().is_fifo(), "it is what it was");
            assert_eq!(reader.wait_with_output().unwrap().stdout, b"new\n");
        }
        assert!(link.is_symlink());
    }

    #[test]
    fn a_folder_or_a_missing_one_is_a_wrong_argument() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(write(folder.path()).unwrap_err().exit, Exit::Usage);
        assert_eq!(write(&folder.path().join("gone/out")).unwrap_err().exit, Exit::Usage);
    }

    #[test]
    fn what_is_followed_can_be_read_along() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        std::fs::write(&path, "old, and longer").unwrap();
        let mut sink = Sink::create(&path, true).unwrap();
        sink.line("one").unwrap();
        sink.flush().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\n");
        sink.finish().unwrap();
    }
}
