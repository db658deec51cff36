//! Windows of jobs, read on a thread of their own a little ahead of whoever enqueues them.

use std::sync::Arc;

use promptq_common::broker::MAX_BATCH;
use promptq_common::job::Job;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Faults;
use crate::input::{Input, Print, Reading};
use crate::problem::{Exit, Problem, Result};

/// The most bytes of prompts in one window, unless one job alone is larger.
const WINDOW_BYTES: usize = 1 << 20;
/// Windows read ahead: one waits while one is enqueued.
const AHEAD: usize = 2;

/// Rows that travel together.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// The jobs, in order.
    pub jobs: Vec<Job>,
    /// What was wrong among the rows.
    pub faults: Faults,
    /// Whether the input had changed since it was checked.
    pub changed: bool,
    /// Whether it had been checked.
    pub checked: bool,
}

/// Reads windows until the input ends.
#[derive(Debug)]
pub(super) struct Windows {
    windows: mpsc::Receiver<Result<Window>>,
    _reader: JoinSet<()>,
}

impl Windows {
    /// Begins to read; `prints` is what the files were when they were checked.
    pub(super) fn read(input: &Arc<Input>, prints: Option<Vec<Print>>) -> Self {
        let (sender, windows) = mpsc::channel(AHEAD);
        let reading = input.read();
        let mut reader = JoinSet::new();
        reader.spawn_blocking(move || {
            if let Err(problem) = send_all(reading, prints.as_deref(), &sender) {
                // Nobody listens any more: nobody to tell.
                drop(sender.blocking_send(Err(problem)));
            }
        });
        Self { windows, _reader: reader }
    }

    /// The next one; `None` at the end. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Option<Window>> {
        self.windows.recv().await.transpose()
    }
}

fn send_all(mut reading: Reading, prints: Option<&[Print]>, sender: &mpsc::Sender<Result<Window>>) -> Result<()> {
    let mut window = Window { checked: prints.is_some(), ..Window::default() };
    let mut bytes = 0;
    loop {
        let item = reading.next_item()?;
        let ended = item.is_none();
        let mut next = None;
        match item.map(|item| (item.made, item.row, item.place)) {
            Some((Ok(made), ..)) => next = Some(made.job),
            Some((Err(fault), row, place)) => window.faults.add(row, place, fault),
            None => {}
        }
        // Unchecked rows go as they come, and those before a fault go all the same.
        let now = !window.checked && (!window.faults.is_empty() || reading.drained());
        if now && window.jobs.len() < MAX_BATCH {
            window.jobs.extend(next.take());
        }
        let size = next.as_ref().map_or(0, |job| job.work.size());
        let full = window.jobs.len() >= MAX_BATCH || bytes + size > WINDOW_BYTES;
        if ended || now || (full && !window.jobs.is_empty()) {
            window.changed = prints.is_some_and(|prints| !reading.agrees(prints));
            let fresh = Window { checked: window.checked, ..Window::default() };
            if sender.blocking_send(Ok(std::mem::replace(&mut window, fresh))).is_err() {
                return Ok(());
            }
            bytes = 0;
        }
        if ended {
            break;
        }
        bytes += size;
        window.jobs.extend(next);
    }
    if prints.is_some_and(|prints| reading.prints() != prints) {
        return Err(Problem::new(Exit::Conflict, "changed", "the input changed while it was read"));
    }
    Ok(())
}
