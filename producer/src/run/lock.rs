//! Which run this is, and that it is the only one: an identity, a lock file, and who held it before.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use promptq_common::broker::{WorkerId, default_path};
use promptq_common::config;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use crate::input::{InputArgs, Source, identify};
use crate::problem::{Exit, Problem, Result};

/// What makes a run this one: inputs (by path; standard input by content), template, model, parameters, broker and
/// output. 16 hexadecimal digits.
pub(super) fn identity(args: &InputArgs, sources: &[Source], broker: &str, output: Option<&Path>) -> Result<String> {
    let mut hash = Sha256::new();
    identify(args, sources, &mut hash)?;
    let output = output.map(|path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned()));
    hash.update(format!("{broker}\0{output:?}"));
    Ok(hash.finalize().iter().take(8).fold(String::new(), |text, byte| text + &format!("{byte:02x}")))
}

/// The lock of one run, held until dropped or until the process ends, however it ends.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
    /// Who held it before: a worker that is gone, and whose leases may be recovered.
    pub predecessor: Option<WorkerId>,
}

impl Lock {
    /// Takes the lock of run `name`.
    pub(super) fn take(name: &str) -> Result<Self> {
        let environment = config::environment();
        let get = |name: &str| environment.get(name).map(String::as_str);
        let state = default_path(get("XDG_STATE_HOME"), get("HOME"));
        Self::take_in(&state.with_file_name("runs"), name)
    }

    fn take_in(folder: &Path, name: &str) -> Result<Self> {
        let path = folder.join(format!("{name}.lock"));
        let trouble = |error: &std::io::Error| {
            Problem::new(Exit::Failed, "lock", format!("cannot use {}: {error}", path.display()))
        };
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| trouble(&error))?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| trouble(&error))?;
        claim(&file, "this run", &path)?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(|error| trouble(&error))?;
        let predecessor = (!text.trim().is_empty()).then(|| WorkerId::known(text.trim()));
        Ok(Self { file, predecessor })
    }

    /// Says who holds it now; durable, for a successor may need it. Call after the predecessor's leases are recovered
    /// and before the first lease of `worker`.
    pub(super) fn sign(&mut self, worker: &WorkerId) -> Result<()> {
        let signed = self
            .file
            .rewind()
            .and_then(|()| self.file.set_len(0))
            .and_then(|()| self.file.write_all(worker.as_str().as_bytes()))
            .and_then(|()| self.file.sync_all());
        signed.map_err(|error| Problem::new(Exit::Failed, "lock", format!("cannot write the lock file: {error}")))
    }
}

/// How long a killed process may take to be gone: it holds its locks until then.
const GOING: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(20);

/// Takes the advisory lock on a file, or says that another run has it. Blocks its thread for up to a second where one has.
#[expect(clippy::disallowed_methods, reason = "at the start of a run, before anything else goes on")]
pub(super) fn claim(file: &File, what: &str, path: &Path) -> Result<()> {
    let began = Instant::now();
    let taken = loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if began.elapsed() < GOING => thread::sleep(LOOK),
            taken => break taken,
        }
    };
    taken.map_err(|error| {
        let problem = Problem::new(Exit::Conflict, "running", format!("{what} is in use by another process"));
        let problem = problem.detail(format!("--> {}", path.display()));
        if error == Errno::WOULDBLOCK {
            problem.hint("wait for it, or stop it; the same command then goes on where it was")
        } else {
            problem.detail(error.to_string())
        }
    })
}

/// A path beside `path`, for a file that will take its place.
pub(super) fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".promptq-rewrite");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_holds_it_and_the_next_learns_who_did() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = Lock::take_in(folder.path(), "a").unwrap();
        assert_eq!(first.predecessor, None);
        first.sign(&WorkerId::known("w-1")).unwrap();
        assert_eq!(Lock::take_in(folder.path(), "a").unwrap_err().exit, Exit::Conflict);
        assert!(Lock::take_in(folder.path(), "b").is_ok());
        drop(first);
        assert_eq!(Lock::take_in(folder.path(), "a").unwrap().predecessor, Some(WorkerId::known("w-1")));
    }

    #[test]
    fn one_who_is_just_going_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let first = Lock::take_in(folder.path(), "a").unwrap();
        let second = thread::scope(|scope| {
            let second = scope.spawn(|| Lock::take_in(folder.path(), "a").map(drop));
            let blocked = Instant::now();
            while blocked.elapsed() < GOING / 4 {
                thread::yield_now();
            }
            drop(first);
            second.join().unwrap()
        });
        assert!(second.is_ok(), "{second:?}");
    }
}
