//! The fake provider's own account of every call: the latest in memory, all of them in a file, a line of JSON each. No
//! prompts, no answers, no keys.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context;
use promptq_common::outcome::Usd;
use serde::{Deserialize, Serialize};

use super::allowance::{Dimension, Per};
use super::shape::Api;

/// The most calls that one page of `GET /fake/calls` holds.
pub const PAGE: usize = 1_000;

/// One call, from its request's end to its answer's.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Call {
    /// 1 for the call that ended first.
    pub n: u64,
    /// Milliseconds since 1970 when its request had come.
    pub started_ms: i64,
    /// Milliseconds since 1970 when the last byte of its answer had gone, or the other side.
    pub ended_ms: i64,
    /// The account's name.
    pub account: String,
    /// Whose API.
    pub api: Api,
    /// Such as `/v1/messages`.
    pub endpoint: String,
    /// The model asked for; empty where none can be told.
    pub model: String,
    /// Who called: what stands before the version in the path, else `x-client-request-id`, else `idempotency-key`.
    pub caller: Option<String>,
    /// The beginning of the SHA-256 of the request's texts; the same for the same request.
    pub prompt: String,
    /// Whether the answer was sent piece by piece.
    pub stream: bool,
    /// HTTP status; 0 when none was sent.
    pub status: u16,
    /// What came of it.
    pub end: End,
    /// The fault that struck, by its name.
    pub fault: Option<String>,
    /// The limit that refused it.
    pub limit: Option<(Dimension, Per)>,
    /// Input tokens, cached ones included; 0 when no work was done.
    pub input_tokens: u64,
    /// Of these, read from a cache.
    pub cached_tokens: u64,
    /// Output tokens that were made, reasoning included.
    pub output_tokens: u64,
    /// Of these, reasoning.
    pub reasoning_tokens: u64,
    /// The most output that the request allowed.
    pub max_tokens: Option<u64>,
    /// What it is billed; `None` when the model has no price.
    pub usd: Option<Usd>,
    /// Where in a trace it was said to be.
    #[serde(default)]
    pub trace: Option<String>,
}

/// What came of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// Answered as it should be.
    Answered,
    /// Refused: by a limit, a fault, or because of what it is.
    Refused,
    /// A fault broke the answer.
    Broken,
    /// The caller hung up before the end.
    Gone,
}

/// Where calls are written down.
#[derive(Debug)]
pub struct Ledger {
    next: u64,
    kept: usize,
    calls: VecDeque<Call>,
    file: Option<File>,
    /// Why the file has stopped growing.
    pub trouble: Option<String>,
}

impl Ledger {
    /// In memory alone when there is no path. A file that is there is added to.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(path: Option<&Path>, kept: usize) -> anyhow::Result<Self> {
        let open = |path: &Path| {
            let opened = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
            opened.with_context(|| format!("cannot write the ledger {}", path.display()))
        };
        Ok(Self { next: 1, kept, calls: VecDeque::new(), file: path.map(open).transpose()?, trouble: None })
    }

    /// Writes a call down, under the next number.
    pub fn add(&mut self, mut call: Call) {
        call.n = self.next;
        self.next += 1;
        if let Some(file) = &mut self.file {
            let written = serde_json::to_string(&call)
                .map_err(std::io::Error::other)
                // In one write, so that a killed process leaves whole lines.
                .and_then(|line| file.write_all(format!("{line}\n").as_bytes()));
            if let Err(error) = written {
                self.trouble = Some(error.to_string());
            }
        }
        self.calls.push_back(call);
        while self.calls.len() > self.kept {
            self.calls.pop_front();
        }
    }

    /// Up to [`PAGE`] calls in memory with numbers after this one.
    pub fn after(&self, n: u64) -> Vec<Call> {
        let from = self.calls.partition_point(|call| call.n <= n);
        self.calls.iter().skip(from).take(PAGE).cloned().collect()
    }

    /// Forgets what is in memory; numbers go on, and the file stays.
    pub fn forget(&mut self) {
        self.calls.clear();
    }
}
