//! The three pipes of a child, served at the same time so that none of them can block another.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};

/// How much of the end of standard error is kept: a stack trace's last lines.
const STDERR: usize = 4 * 1024;
/// Bytes read at once: a pipe's own size on Linux.
const CHUNK: usize = 64 * 1024;

/// Standard output went over its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLarge;

/// A child's pipes and what came out of them so far.
#[derive(Debug)]
pub(super) struct Pipes {
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    out: Vec<u8>,
    err: Vec<u8>,
    max_output: usize,
}

impl Pipes {
    /// Takes the pipes of `child`, keeping at most `max_output` bytes of its standard output.
    pub(super) fn of(child: &mut Child, max_output: usize) -> Self {
        Self {
            stdin: child.stdin.take(),
            stdout: child.stdout.take(),
            stderr: child.stderr.take(),
            out: Vec::new(),
            err: Vec::new(),
            max_output,
        }
    }

    /// Writes `input` and closes standard input; reads both outputs to their ends. What was read stays when this is dropped.
    pub(super) async fn flow(&mut self, input: &[u8]) -> Result<(), TooLarge> {
        let Self { stdin, stdout, stderr, out, err, max_output } = self;
        let feed = async {
            if let Some(mut stdin) = stdin.take() {
                // A program need not read its input: a closed pipe is no error, its exit code tells.
                drop(stdin.write_all(input).await);
            }
            Ok(())
        };
        let keep = read(stdout.take(), |chunk| {
            if out.len() + chunk.len() > *max_output {
                return Err(TooLarge);
            }
            out.extend_from_slice(chunk);
            Ok(())
        });
        let tail = read(stderr.take(), |chunk| {
            err.extend_from_slice(chunk);
            let surplus = err.len().saturating_sub(STDERR);
            err.drain(..surplus);
            Ok(())
        });
        tokio::try_join!(feed, keep, tail).map(|_| ())
    }

    /// What was written to standard output.
    pub(super) fn stdout(&self) -> &[u8] {
        &self.out
    }

    /// The last bytes written to standard error.
    pub(super) fn stderr(&self) -> &[u8] {
        &self.err
    }
}

async fn read(
    pipe: Option<impl AsyncRead + Unpin>,
    mut each: impl FnMut(&[u8]) -> Result<(), TooLarge>,
) -> Result<(), TooLarge> {
    let Some(mut pipe) = pipe else { return Ok(()) };
    let mut chunk = vec![0; CHUNK];
    // A read error ends the pipe like its end does.
    while let Ok(n @ 1..) = pipe.read(&mut chunk).await {
        each(chunk.get(..n).unwrap_or(&[]))?;
    }
    Ok(())
}
