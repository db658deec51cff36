//! The right to run one job: claim, heartbeat and settle by id and lease, gathered with those of other jobs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use deadpool_redis::redis::Value;
use tokio::time::Instant;

use super::admin::one;
use super::gather::{Gather, Item};
use super::link::Link;
use super::stored::{leased, put, put_counted, put_use};
use super::wire::{Places, end_letter, end_of, strange};
use crate::broker::backend::{Beat, Claim, Head, Hold, LeaseId, Settled, Verdict};
use crate::codec;
use crate::error::Result;
use crate::job::JobId;
use crate::outcome::History;
use crate::record::{Output, Record};
use crate::result_line::announcement;

/// The scripts of everything that is leased.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) claims: Gather,
    pub(super) beats: Gather,
    pub(super) settles: Gather,
    /// What another broker asks of its ledger: `claims.lua`.
    pub(super) messages: Gather,
}

/// A lease on a job.
#[derive(Debug)]
pub(super) struct RedisHold {
    pub(super) link: Link,
    pub(super) desk: Arc<Desk>,
    /// The queue's prefix.
    pub(super) key: Arc<[u8]>,
    pub(super) tried: Tried,
    pub(super) lease: LeaseId,
    pub(super) length: Duration,
    pub(super) granted: Granted,
}

/// So long after a lease was asked for its first claim is answered by what the lease said. Nobody has held the job before
/// without letting go of it, so that nobody else can have an answer for it; and a server that comes back with less than it
/// had takes longer than this to start, let alone to hand the job to another. Cancels and pauses take effect within 5 s,
/// a job that runs learns of its own with a beat. Of a lease that is about to run out nothing is taken for granted: not
/// more than half of it may have passed.
pub(super) const MOMENT: Duration = Duration::from_millis(20);

/// What the answer that granted a lease said of it: a claim is answered by that as long as nothing has turned since.
#[derive(Debug)]
pub(super) struct Granted {
    /// When the lease was asked for, and [`Link::turns`] then.
    asked: (Instant, u64),
    deaths: u32,
    /// When the lease runs out, in the server's milliseconds.
    till: u64,
    /// The queue's `turned` then.
    turned: [u8; 8],
    /// Whether the holder has asked or said anything: from then on only the job itself tells.
    used: AtomicBool,
}

impl Granted {
    pub(super) fn new(asked: (Instant, u64), deaths: u32, till: u64, turned: [u8; 8]) -> Self {
        Self { asked, deaths, till, turned, used: AtomicBool::new(false) }
    }

    /// Whether asking would prove no more than the lease did: see [`MOMENT`].
    fn is_of_this_moment(&self, tried: &Tried, turns: u64, length: Duration) -> bool {
        let (asked, turns_then) = self.asked;
        let is_young = asked.elapsed() < MOMENT.min(length / 2);
        is_young && turns == turns_then && self.deaths == 0 && tried.epoch == 0
    }
}

impl Desk {
    /// What a heartbeat says.
    pub(super) async fn beat(&self, key: Arc<[u8]>, id: JobId, lease: LeaseId, length: Duration) -> Result<Beat> {
        let mut fixed = leased(id, lease, 6);
        put(&mut fixed, clamped(length), 6);
        let item = Item { fixed, words: Vec::new() };
        Ok(match letter(&self.beats.ask(key, item).await?) {
            b'K' => Beat::Kept,
            b'C' => Beat::Cancelled,
            b'E' => Beat::Ended,
            b'L' => Beat::Lost,
            _ => return Err(strange("a beat")),
        })
    }

    /// What became of a verdict, as [`verdict_words`] wrote it.
    pub(super) async fn settle(&self, key: Arc<[u8]>, item: Item) -> Result<Settled> {
        crate::crash_point!("redis.settle.before_call");
        let answer = letter(&self.settles.ask(key, item).await?);
        crate::crash_point!("redis.settle.after_call");
        Ok(match answer {
            b'A' => Settled::Applied,
            b'K' => Settled::Kept,
            b'S' => Settled::Stale,
            _ => return Err(strange("a settlement")),
        })
    }
}

/// What of a job a verdict goes on from.
#[derive(Clone, Debug)]
pub(super) struct Tried {
    pub(super) id: JobId,
    pub(super) epoch: u32,
    pub(super) attempts: u32,
    pub(super) history: History,
}

impl From<&Head> for Tried {
    fn from(head: &Head) -> Self {
        Self { id: head.id, epoch: head.epoch, attempts: head.attempts, history: head.history.clone() }
    }
}

/// What comes with a verdict where the broker is another: no announcement, and the payload for a redrive.
#[derive(Clone, Copy, Debug)]
pub(super) struct Elsewhere<'a>(pub(super) Option<&'a [u8]>);

/// The verdict as `settle.lua` reads it. `TooLarge` when the record cannot be stored.
pub(super) fn verdict_words(
    job: &Tried,
    lease: LeaseId,
    verdict: &Verdict,
    elsewhere: Option<Elsewhere<'_>>,
) -> Result<Item> {
    let mut fixed = leased(job.id, lease, 16);
    let mut say = |kind: &str, epoch: u32, attempts: u32, wait: Duration, second: &str| {
        fixed.extend_from_slice(kind.as_bytes());
        put(&mut fixed, u64::from(epoch), 4);
        put(&mut fixed, u64::from(attempts), 4);
        put(&mut fixed, clamped(wait), 6);
        fixed.extend_from_slice(second.as_bytes());
    };
    let words = match verdict {
        Verdict::End(record) => {
            let (second, word) = match elsewhere {
                None => ("t", announcement(record).into_bytes()),
                Some(Elsewhere(Some(payload))) if !payload.is_empty() => ("p", payload.to_vec()),
                Some(_) => ("-", Vec::new()),
            };
            say(end_letter(record.end), record.epoch, record.attempts, Duration::ZERO, second);
            vec![end(record)?, word]
        }
        Verdict::Retry { after, attempt } => {
            let mut history = job.history.clone();
            history.push((**attempt).clone());
            say("y", 0, job.attempts.saturating_add(1), *after, "-");
            let mut past = Vec::new();
            put_use(&mut past, &history);
            past.extend_from_slice(&codec::encode_history(&history)?);
            vec![past, Vec::new()]
        }
        Verdict::Release { after, hold } => {
            say("h", 0, 0, *after, "-");
            vec![hold.as_ref().map(ToString::to_string).unwrap_or_default().into_bytes(), Vec::new()]
        }
    };
    Ok(Item { fixed, words })
}

/// What `claim.lua` says, and `claims.lua` of an opened message, from the front of `answer`.
pub(super) fn claim_from(answer: &mut Places) -> Result<Claim> {
    let (letter, mut what) = (answer.text()?, one(answer.value().unwrap_or(Value::Nil))?);
    Ok(match letter.as_str() {
        "E" => Claim::Ended(end_of(&what.text()?)?.into()),
        "C" => Claim::Cancelled,
        "P" => Claim::Paused { reason: what.text()? },
        "F" => Claim::Fresh { deaths: what.number()? },
        "T" => Claim::Taken { until: what.time()? },
        "X" => Claim::Stale,
        _ => return Err(strange("a claim")),
    })
}

#[async_trait]
impl Hold for RedisHold {
    async fn claim(&self) -> Result<Claim> {
        let Granted { deaths, till, turned, used, .. } = &self.granted;
        let fresh = !used.swap(true, Relaxed);
        if fresh && self.granted.is_of_this_moment(&self.tried, self.link.turns(), self.length) {
            return Ok(Claim::Fresh { deaths: *deaths });
        }
        let mut fixed = leased(self.tried.id, self.lease, 18);
        put(&mut fixed, u64::from(self.tried.epoch), 4);
        put(&mut fixed, if fresh { *till } else { 0 }, 6);
        fixed.extend_from_slice(turned);
        let answer = self.desk.claims.ask(Arc::clone(&self.key), Item { fixed, words: Vec::new() }).await?;
        if letter(&answer) == b'Y' {
            return Ok(Claim::Fresh { deaths: *deaths });
        }
        claim_from(&mut Places::of(answer)?)
    }

    async fn beat(&self) -> Result<Beat> {
        self.granted.used.store(true, Relaxed);
        self.desk.beat(Arc::clone(&self.key), self.tried.id, self.lease, self.length).await
    }

    async fn settle(&self, verdict: &Verdict) -> Result<Settled> {
        self.granted.used.store(true, Relaxed);
        let item = verdict_words(&self.tried, self.lease, verdict, None)?;
        self.desk.settle(Arc::clone(&self.key), item).await
    }
}

/// `HOW` in `settle.lua`.
fn end(record: &Record) -> Result<Vec<u8>> {
    let stored = record.answer.as_ref().and_then(|answer| match &answer.output {
        Output::Stored(stored) => Some(stored.key.as_str()),
        Output::Inline(_) => None,
    });
    let code = stored.or_else(|| record.cause.as_ref().map(|cause| cause.code.as_str())).unwrap_or_default();
    let encoded = codec::encode_record(record)?;
    let mut how = Vec::with_capacity(40 + code.len() + encoded.len());
    put_use(&mut how, &record.history);
    put_counted(&mut how, code.as_bytes(), 2)?;
    how.extend_from_slice(&encoded);
    Ok(how)
}

/// A letter that was answered, alone or in a text of many; 0 for anything else.
pub(super) fn letter(answer: &Value) -> u8 {
    if let Value::Int(letter) = answer {
        u8::try_from(*letter).unwrap_or(0)
    } else if let Value::BulkString(bytes) = answer
        && let [letter] = bytes[..]
    {
        letter
    } else {
        0
    }
}

/// A number as scripts read it.
pub(super) fn text(number: impl ToString + Copy) -> Vec<u8> {
    number.to_string().into_bytes()
}

/// A length in milliseconds as scripts read it.
pub(super) fn millis(length: Duration) -> Vec<u8> {
    text(clamped(length))
}

/// A length in milliseconds; at most some 300 years, so that sums of times stay exact in Lua.
pub(super) fn clamped(length: Duration) -> u64 {
    const MOST: u64 = 10_000_000_000_000;
    u64::try_from(length.as_millis()).unwrap_or(MOST).min(MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lease_speaks_for_itself_for_a_moment_and_half_of_it_at_the_most() {
        let tried = Tried { id: JobId::fresh(), epoch: 0, attempts: 0, history: History::default() };
        let granted = Granted::new((Instant::now(), 0), 0, 0, [0; 8]);
        let speaks = |length| granted.is_of_this_moment(&tried, 0, Duration::from_millis(length));
        assert!(speaks(60_000) && speaks(10));
        tokio::time::advance(Duration::from_millis(5)).await;
        assert!(speaks(60_000) && !speaks(10), "half of it has passed");
        tokio::time::advance(MOMENT).await;
        assert!(!speaks(60_000));
    }
}
