//! From arguments to files that can be read twice: paths, globs, standard input in a temporary file; what each is.
//! Reading rows is `rows.rs`.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use super::args::{InputArgs, Kind};
use crate::problem::{Exit, Problem, Result};
use crate::submit::grouped;

/// One file to read, as often as needed.
#[derive(Clone, Debug)]
pub struct Source {
    /// As people know it: the path as given, or `-`.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// What stands between the columns of CSV, when a flag says so.
    pub delimiter: Option<u8>,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    Path(PathBuf),
    /// Standard input, kept in a file without a name.
    Spool(Arc<File>),
    /// Standard input itself; can be read once.
    Stream,
}

/// What a file was when it was read: another reading must come to the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Print {
    size: u64,
    modified: Option<SystemTime>,
    read: u64,
    hash: [u8; 32],
}

impl Source {
    /// Everything the arguments name, in order; the files of a glob by name.
    pub fn all(args: &InputArgs) -> Result<Vec<Self>> {
        let mut sources = Vec::new();
        for input in &args.inputs {
            if input == "-" {
                sources.push(standard_input(args)?);
                continue;
            }
            for path in paths(input)? {
                let place = Place::Path(path.clone());
                let name = path.to_string_lossy().into_owned();
                let kind = match args.kind {
                    Some(kind) => kind,
                    None => guess(&name, &mut open(&path)?).map_err(|error| unreadable(&name, &error))?,
                };
                if kind == Kind::Txt && args.kind.is_none() && args.inputs.len() == 1 && path == Path::new(input) {
                    one_prompt(&name, open(&path)?)?;
                }
                sources.push(Self { name, kind, delimiter: args.delimiter, place });
            }
        }
        if args.delimiter.is_some() && !sources.iter().any(|source| source.kind == Kind::Csv) {
            return Err(Problem::usage("--delimiter is for CSV, and no input is").hint("say so with --in csv"));
        }
        if args.inputs.iter().filter(|input| *input == "-").count() > 1 {
            return Err(Problem::usage("- (standard input) is named twice"));
        }
        Ok(sources)
    }

    /// Job lines in a file without a name, as standard input is kept in one.
    pub fn spooled(name: impl Into<String>, spool: File) -> Self {
        Self { name: name.into(), kind: Kind::Jsonl, delimiter: None, place: Place::Spool(Arc::new(spool)) }
    }

    /// Opens it at its beginning.
    pub fn open(&self) -> Result<Tracked> {
        let file = match &self.place {
            Place::Path(path) => Some(open(path)?),
            Place::Spool(file) => {
                let mut file = file.try_clone().map_err(|error| unreadable(&self.name, &error))?;
                file.seek(SeekFrom::Start(0)).map_err(|error| unreadable(&self.name, &error))?;
                Some(file)
            }
            Place::Stream => None,
        };
        Ok(Tracked { file, read: 0, hash: Sha256::new() })
    }

    /// Feeds what tells it from other inputs into `hash`: its place, or its content when it came by standard input.
    pub fn identify(&self, hash: &mut Sha256) -> Result<()> {
        match &self.place {
            Place::Path(path) => {
                let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                hash.update(path.as_os_str().as_encoded_bytes());
            }
            Place::Stream => hash.update(b"-"),
            Place::Spool(_) => {
                let mut reader = self.open()?;
                let mut buffer = vec![0; 1 << 16];
                loop {
                    match reader.read(&mut buffer).map_err(|error| unreadable(&self.name, &error))? {
                        0 => break,
                        n => hash.update(&buffer[..n]),
                    }
                }
            }
        }
        hash.update(b"\0");
        Ok(())
    }
}

/// A file being read, which can say afterwards what it was.
#[derive(Debug)]
pub struct Tracked {
    file: Option<File>,
    read: u64,
    hash: Sha256,
}

impl Tracked {
    /// What was read so far, and how the file looks now.
    pub fn print(&self) -> Print {
        let meta = self.file.as_ref().and_then(|file| file.metadata().ok());
        Print {
            size: meta.as_ref().map_or(0, std::fs::Metadata::len),
            modified: meta.and_then(|meta| meta.modified().ok()),
            read: self.read,
            hash: self.hash.clone().finalize().into(),
        }
    }

    /// Whether the file looks as it did when `print` was taken.
    pub fn looks_like(&self, print: &Print) -> bool {
        let Some(Ok(meta)) = self.file.as_ref().map(File::metadata) else { return true };
        meta.len() == print.size && meta.modified().ok() == print.modified
    }
}

impl Read for Tracked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = match &mut self.file {
            Some(file) => file.read(buffer)?,
            None => io::stdin().lock().read(buffer)?,
        };
        self.read += n as u64;
        self.hash.update(&buffer[..n]);
        Ok(n)
    }
}

/// An input or output error of the file `name`.
pub(super) fn unreadable(name: &str, error: &io::Error) -> Problem {
    Problem::new(Exit::Usage, "unreadable", format!("cannot read {name}: {error}"))
}

fn paths(input: &str) -> Result<Vec<PathBuf>> {
    let path = Path::new(input);
    if path.exists() || !input.contains(['*', '?', '[']) {
        if path.is_dir() {
            return Err(Problem::usage(format!("{input} is a folder")).hint(format!("name its files: '{input}/*.md'")));
        }
        return Ok(vec![path.to_owned()]);
    }
    let found = glob::glob(input).map_err(|error| Problem::usage(format!("{input:?} is not a glob: {error}")))?;
    let mut files = Vec::new();
    for entry in found {
        let file = entry.map_err(|error| unreadable(input, error.error()))?;
        if file.is_file() {
            files.push(file);
        }
    }
    if files.is_empty() {
        return Err(Problem::new(Exit::Usage, "no-input", format!("no file fits {input:?}")));
    }
    Ok(files)
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|error| unreadable(&path.to_string_lossy(), &error))
}

fn standard_input(args: &InputArgs) -> Result<Source> {
    let mut stdin = io::stdin().lock();
    if stdin.is_terminal() {
        return Err(Problem::usage("standard input is a terminal")
            .hint("pipe the rows in, as in `promptq submit - < prompts.jsonl`, or name a file"));
    }
    let name = "-".to_owned();
    if args.stream {
        let head = stdin.fill_buf().map_err(|error| unreadable("-", &error))?;
        let kind = args.kind.unwrap_or(if first_is_brace(head) { Kind::Jsonl } else { Kind::Lines });
        return Ok(Source { name, kind, delimiter: args.delimiter, place: Place::Stream });
    }
    let limit = args.spool_limit.as_u64();
    let trouble = |error: &io::Error| {
        Problem::new(Exit::Failed, "spool", format!("cannot keep standard input in a temporary file: {error}"))
            .hint("set TMPDIR to a folder with room, or pass --stream to enqueue as it comes")
    };
    let mut spool = tempfile::tempfile().map_err(|error| trouble(&error))?;
    let copied = io::copy(&mut stdin.take(limit.saturating_add(1)), &mut spool).map_err(|error| trouble(&error))?;
    if copied > limit {
        return Err(Problem::usage(format!("standard input is larger than {}", args.spool_limit))
            .detail("nothing was enqueued")
            .hint("raise --spool-limit, or pass --stream to enqueue as it comes"));
    }
    spool.flush().and_then(|()| spool.rewind()).map_err(|error| trouble(&error))?;
    let mut head = [0; 512];
    let n = spool.read(&mut head).map_err(|error| trouble(&error))?;
    let kind = args.kind.unwrap_or(if first_is_brace(&head[..n]) { Kind::Jsonl } else { Kind::Lines });
    Ok(Source { name, kind, delimiter: args.delimiter, place: Place::Spool(Arc::new(spool)) })
}

/// By the name's ending; without a telling one, JSON lines when the first character is a brace, else one prompt.
fn guess(name: &str, file: &mut impl Read) -> io::Result<Kind> {
    let ending = name.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase());
    Ok(match ending.as_deref() {
        Some("jsonl" | "ndjson") => Kind::Jsonl,
        Some("csv") => Kind::Csv,
        Some("tsv" | "tab") => Kind::Tsv,
        Some("txt" | "md" | "markdown" | "text") => Kind::Txt,
        _ => {
            let mut reader = BufReader::with_capacity(512, file);
            if first_is_brace(reader.fill_buf()?) { Kind::Jsonl } else { Kind::Txt }
        }
    })
}

/// Refuses a text file named by itself that may as well hold one prompt per line. Markdown is one prompt.
fn one_prompt(name: &str, file: File) -> Result<()> {
    let ending = Path::new(name).extension().and_then(|ending| ending.to_str()).map(str::to_ascii_lowercase);
    if !matches!(ending.as_deref(), None | Some("txt" | "text")) {
        return Ok(());
    }
    let lines = filled_lines(BufReader::with_capacity(1 << 16, file)).map_err(|error| unreadable(name, &error))?;
    if lines < 2 {
        return Ok(());
    }
    let what = format!("{name} has {} lines: one prompt or one a line?", grouped(lines));
    Err(Problem::new(Exit::Usage, "ambiguous-input", what)
        .detail("nothing was enqueued")
        .hint("--in lines makes each line a prompt")
        .hint("--in txt makes the whole file one prompt"))
}

/// How many lines hold more than blanks; in flat memory, whatever their length.
fn filled_lines(mut reader: impl BufRead) -> io::Result<u64> {
    let (mut lines, mut filled) = (0, false);
    loop {
        let piece = reader.fill_buf()?;
        if piece.is_empty() {
            return Ok(lines);
        }
        for byte in piece {
            if *byte == b'\n' {
                filled = false;
            } else if !filled && !byte.is_ascii_whitespace() {
                (lines, filled) = (lines + 1, true);
            }
        }
        let read = piece.len();
        reader.consume(read);
    }
}

fn first_is_brace(head: &[u8]) -> bool {
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    head.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_guessed_from_name_and_first_character() {
        for (name, head, kind) in [
            ("a.jsonl", "", Kind::Jsonl),
            ("a.NDJSON", "", Kind::Jsonl),
            ("a.csv", "{", Kind::Csv),
            ("a.tsv", "", Kind::Tsv),
            ("a.md", "{", Kind::Txt),
            ("prompts", "\u{feff} {\"prompt\":1}", Kind::Jsonl),
            ("prompts", "Say hello", Kind::Txt),
        ] {
            assert_eq!(guess(name, &mut head.as_bytes()).unwrap(), kind, "{name}");
        }
    }

    #[test]
    fn a_changed_file_has_another_print() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        std::fs::write(&path, "one").unwrap();
        let source = Source { name: "a".into(), kind: Kind::Txt, delimiter: None, place: Place::Path(path.clone()) };
        let print = || {
            let mut file = source.open().unwrap();
            io::copy(&mut file, &mut io::sink()).unwrap();
            (file.print(), file)
        };
        let (before, file) = print();
        assert!(file.looks_like(&before));
        assert_eq!(print().0, before);
        std::fs::write(&path, "two").unwrap();
        assert_ne!(print().0, before);
    }
}
