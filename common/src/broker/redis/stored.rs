//! A job as bytes, the way `scripts/book.lua` lays it out: what comes with a job is written here and what became of it
//! is read here. What it means is `wire.rs`.

use super::wire::{head_rest, lane_text, strange};
use crate::broker::LeaseId;
use crate::broker::backend::Head;
use crate::codec;
use crate::error::{Error, Kind, Result};
use crate::job::JobId;
use crate::outcome::{History, Usage};
use crate::time::Timestamp;

/// Where a payload is, in the lowest bits of its place; the next one says that the job waits at another broker.
const PLACE: u8 = 0b11;
/// `MARKS` in `book.lua`.
const CANCEL: u8 = 1;
const DROPPED: u8 = 2;

/// What is in the bytes of a job, unread.
#[derive(Debug, Default)]
pub(super) struct Stored<'a> {
    pub(super) stage: u8,
    pub(super) epoch: u32,
    pub(super) attempts: u32,
    pub(super) deaths: u32,
    pub(super) history: &'a [u8],
    pub(super) cancel: bool,
    pub(super) dropped: bool,
    pub(super) due: u64,
    pub(super) hold: &'a [u8],
    pub(super) lease: &'a [u8],
    pub(super) leased: u64,
    pub(super) worker: &'a [u8],
    pub(super) ended: u64,
    pub(super) unrun: &'a [u8],
    pub(super) record: &'a [u8],
    pub(super) deadline: u64,
    pub(super) batch: &'a [u8],
    pub(super) lane: &'a [u8],
    pub(super) created: u64,
    pub(super) fingerprint: &'a [u8],
    pub(super) head: &'a [u8],
    pub(super) payload: &'a [u8],
}

impl<'a> Stored<'a> {
    /// Takes the bytes of a job apart.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self> {
        let mut cut = Cut(bytes);
        let mut job = Self { stage: cut.byte()?, ..Self::default() };
        let trail = cut.counted(3)?;
        let mut core = Cut(cut.counted(3)?);
        let place = core.byte()?;
        if place & PLACE != 0 {
            job.payload = cut.0;
        }
        // Its number and when it was enqueued.
        core.take(11)?;
        job.deadline = core.number(6)?;
        (job.batch, job.lane) = (core.counted(2)?, core.counted(2)?);
        (job.created, job.fingerprint, job.head) = (core.number(6)?, core.take(16)?, core.0);
        if !trail.is_empty() {
            job.read_trail(Cut(trail))?;
        }
        Ok(job)
    }

    fn read_trail(&mut self, mut trail: Cut<'a>) -> Result<()> {
        match self.stage {
            b'l' => (self.lease, self.leased) = (trail.take(16)?, trail.number(6)?),
            b'r' | b'd' | b'a' => {
                // Since when it is ready.
                trail.take(6)?;
                self.due = trail.number(6)?;
                trail.counted(1)?;
                self.hold = trail.counted(2)?;
            }
            _ => {
                // Its places in the logs.
                trail.take(12)?;
                self.ended = trail.number(6)?;
                // The bytes of its record, the lease that wrote it.
                trail.take(4)?;
                trail.counted(1)?;
                self.unrun = trail.counted(1)?;
            }
        }
        // The generation of its entry.
        trail.byte()?;
        let marks = trail.byte()?;
        (self.cancel, self.dropped) = (marks & CANCEL != 0, marks & DROPPED != 0);
        (self.epoch, self.attempts, self.deaths) = (trail.small()?, trail.small()?, trail.small()?);
        let deadline = trail.number(6)?;
        if deadline > 0 {
            self.deadline = deadline;
        }
        // The last lease whose verdict was applied.
        trail.counted(1)?;
        self.history = trail.counted(4)?;
        // What it consumed.
        trail.counted(1)?;
        match self.stage {
            b'l' => self.worker = trail.0,
            b'r' | b'd' | b'a' => {}
            _ => {
                // The code of its cause.
                trail.counted(2)?;
                // Where no worker wrote a record stands when its message comes.
                if self.unrun.is_empty() {
                    self.record = trail.0;
                }
            }
        }
        Ok(())
    }
}

/// Bytes, read from first to last.
struct Cut<'a>(&'a [u8]);

impl<'a> Cut<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(|| strange("a job that is cut short"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8> {
        self.take(1).map(|byte| byte[0])
    }

    /// A number of at most 8 bytes, the lowest first.
    fn number(&mut self, width: usize) -> Result<u64> {
        Ok(self.take(width)?.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn small(&mut self) -> Result<u32> {
        self.number(4).map(|number| u32::try_from(number).unwrap_or(u32::MAX))
    }

    /// Bytes behind their count.
    fn counted(&mut self, width: usize) -> Result<&'a [u8]> {
        let count = self.number(width)?;
        self.take(usize::try_from(count).unwrap_or(usize::MAX))
    }
}

/// A time that [`Cut::number`] read.
pub(super) fn time(millis: u64) -> Timestamp {
    Timestamp::from_millis(i64::try_from(millis).unwrap_or(i64::MAX))
}

/// A job as `admit.lua` reads it.
pub(super) fn item(head: &Head, payload: &[u8]) -> Result<[Vec<u8>; 2]> {
    let mut with = Vec::with_capacity(96 + payload.len());
    put(&mut with, millis_of(head.deadline), 6);
    put_counted(&mut with, head.batch.as_ref().map_or(&[], |name| name.as_str().as_bytes()), 2)?;
    put_counted(&mut with, lane_text(&head.lane).as_bytes(), 2)?;
    put(&mut with, millis_of(head.created_at), 6);
    with.extend_from_slice(&head.fingerprint.0);
    with.extend_from_slice(&head_rest(head)?);
    let mut job = head_of(head.id, 40);
    put(&mut job, head.not_before.map_or(0, millis_of), 6);
    put(&mut job, with.len() as u64, 3);
    put(&mut job, u64::from(head.epoch), 4);
    put(&mut job, u64::from(head.attempts), 4);
    put_counted(&mut job, &codec::encode_history(&head.history)?, 4)?;
    put_use(&mut job, &head.history);
    with.extend_from_slice(payload);
    Ok([job, with])
}

/// The id, and room for so much behind it.
pub(super) fn head_of(id: JobId, more: usize) -> Vec<u8> {
    let mut head = Vec::with_capacity(16 + more);
    head.extend_from_slice(id.as_bytes());
    head
}

/// The id and the lease, and room for so much behind them.
pub(super) fn leased(id: JobId, lease: LeaseId, more: usize) -> Vec<u8> {
    let mut head = head_of(id, 16 + more);
    head.extend_from_slice(lease.as_bytes());
    head
}

/// What attempts consumed, as scripts add it up: see `SPENT` in `book.lua`. Of nothing only its length.
pub(super) fn put_use(bytes: &mut Vec<u8>, history: &History) {
    let Usage { input_tokens, output_tokens, cached_tokens, reasoning_tokens } = history.usage;
    let unknown = history.is_cost_unknown();
    if history.usage == Usage::default() && history.cost.is_none() && !unknown {
        return bytes.push(0);
    }
    bytes.push(34);
    for tokens in [input_tokens, output_tokens, cached_tokens, reasoning_tokens] {
        put(bytes, tokens, 6);
    }
    bytes.extend_from_slice(&history.cost.map_or(0, crate::outcome::Usd::as_nanos).to_le_bytes());
    bytes.extend_from_slice(&[u8::from(history.cost.is_some()), u8::from(unknown)]);
}

/// A number in so many bytes, the lowest first; the largest there is when it is larger.
pub(super) fn put(bytes: &mut Vec<u8>, number: u64, width: usize) {
    let largest = u64::MAX >> (64 - 8 * width);
    bytes.extend_from_slice(&number.min(largest).to_le_bytes()[..width]);
}

/// Bytes behind their count.
pub(super) fn put_counted(bytes: &mut Vec<u8>, text: &[u8], width: usize) -> Result<()> {
    let count = text.len() as u64;
    if count > u64::MAX >> (64 - 8 * width) {
        return Err(Error::new(Kind::TooLarge, "write a job down", format!("{count} bytes where they have to be few")));
    }
    put(bytes, count, width);
    bytes.extend_from_slice(text);
    Ok(())
}

/// A time in milliseconds; those before 1970 are none.
pub(super) fn millis_of(time: Timestamp) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(0)
}
