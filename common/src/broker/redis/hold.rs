//! The right to run one job: claim, heartbeat and settle by id and lease, gathered with those of other jobs.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use deadpool_redis::redis::Value;

use super::gather::Gather;
use super::wire::{Places, end_letter, end_of, strange, use_text};
use crate::broker::backend::{Beat, Claim, Head, Hold, LeaseId, Settled, Verdict};
use crate::codec;
use crate::error::Result;
use crate::record::{Output, Record};
use crate::result_line::announcement;

/// The scripts of everything that is leased.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) claims: Gather,
    pub(super) beats: Gather,
    pub(super) settles: Gather,
}

/// A lease on a job.
#[derive(Debug)]
pub(super) struct RedisHold {
    pub(super) desk: Arc<Desk>,
    /// The queue's prefix.
    pub(super) key: Vec<u8>,
    pub(super) head: Head,
    pub(super) lease: LeaseId,
    pub(super) length: Duration,
}

impl RedisHold {
    fn names(&self) -> Vec<Vec<u8>> {
        vec![self.head.id.as_bytes().to_vec(), self.lease.as_bytes().to_vec()]
    }

    /// The verdict as `settle.lua` reads it. `TooLarge` when the record cannot be stored.
    fn item(&self, verdict: &Verdict) -> Result<Vec<Vec<u8>>> {
        let mut item = self.names();
        item.extend(match verdict {
            Verdict::End(record) => end(record)?,
            Verdict::Retry { after, attempt } => {
                let mut history = self.head.history.clone();
                history.push((**attempt).clone());
                let consumed = use_text(&history);
                [
                    "y".into(),
                    millis(*after),
                    text(self.head.attempts.saturating_add(1)),
                    Vec::new(),
                    codec::encode_history(&history)?,
                    Vec::new(),
                    consumed.into_bytes(),
                    Vec::new(),
                ]
            }
            Verdict::Release { after, hold } => {
                let key = hold.as_ref().map(ToString::to_string).unwrap_or_default();
                let none = Vec::new;
                ["h".into(), millis(*after), none(), none(), key.into_bytes(), none(), none(), none()]
            }
        });
        Ok(item)
    }
}

#[async_trait]
impl Hold for RedisHold {
    async fn claim(&self) -> Result<Claim> {
        let mut item = self.names();
        item.push(text(self.head.epoch));
        let mut answer = Places::of(self.desk.claims.ask(self.key.clone(), item).await?)?;
        Ok(match answer.text()?.as_str() {
            "E" => Claim::Ended(end_of(&answer.text()?)?.into()),
            "C" => Claim::Cancelled,
            "P" => Claim::Paused { reason: answer.text()? },
            "F" => Claim::Fresh { deaths: answer.number()? },
            "T" => Claim::Taken { until: answer.time()? },
            "X" => Claim::Stale,
            _ => return Err(strange("a claim")),
        })
    }

    async fn beat(&self) -> Result<Beat> {
        let mut item = self.names();
        item.push(millis(self.length));
        Ok(match letter(self.desk.beats.ask(self.key.clone(), item).await?)?.as_str() {
            "K" => Beat::Kept,
            "C" => Beat::Cancelled,
            "E" => Beat::Ended,
            "L" => Beat::Lost,
            _ => return Err(strange("a beat")),
        })
    }

    async fn settle(&self, verdict: &Verdict) -> Result<Settled> {
        let item = self.item(verdict)?;
        crate::crash_point!("redis.settle.before_call");
        let answer = letter(self.desk.settles.ask(self.key.clone(), item).await?)?;
        crate::crash_point!("redis.settle.after_call");
        Ok(match answer.as_str() {
            "A" => Settled::Applied,
            "K" => Settled::Kept,
            "S" => Settled::Stale,
            _ => return Err(strange("a settlement")),
        })
    }
}

fn end(record: &Record) -> Result<[Vec<u8>; 8]> {
    let stored = record.answer.as_ref().and_then(|answer| match &answer.output {
        Output::Stored(stored) => Some(stored.key.clone()),
        Output::Inline(_) => None,
    });
    let code = stored.or_else(|| record.cause.as_ref().map(|cause| cause.code.clone())).unwrap_or_default();
    Ok([
        end_letter(record.end).into(),
        text(record.epoch),
        text(record.attempts),
        text(record.ended_at.as_millis()),
        codec::encode_record(record)?,
        code.into_bytes(),
        use_text(&record.history).into_bytes(),
        announcement(record).into_bytes(),
    ])
}

fn letter(answer: Value) -> Result<String> {
    Places::of(Value::Array(vec![answer]))?.text()
}

/// A number as scripts read it.
pub(super) fn text(number: impl ToString) -> Vec<u8> {
    number.to_string().into_bytes()
}

/// A length in milliseconds as scripts read it; at most some 300 years, so that sums of times stay exact in Lua.
pub(super) fn millis(length: Duration) -> Vec<u8> {
    const MOST: u128 = 10_000_000_000_000;
    text(length.as_millis().min(MOST))
}
