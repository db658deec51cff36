//! The right to run one job: claim, heartbeat and settle by id and lease, gathered with those of other jobs.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use deadpool_redis::redis::Value;

use super::admin::one;
use super::gather::Gather;
use super::wire::{Places, end_letter, end_of, strange, use_text};
use crate::broker::backend::{Beat, Claim, Head, Hold, LeaseId, Settled, Verdict};
use crate::codec;
use crate::error::Result;
use crate::job::JobId;
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
    pub(super) desk: Arc<Desk>,
    /// The queue's prefix.
    pub(super) key: Vec<u8>,
    pub(super) head: Head,
    pub(super) lease: LeaseId,
    pub(super) length: Duration,
}

impl Desk {
    /// What a heartbeat says.
    pub(super) async fn beat(&self, key: Vec<u8>, id: JobId, lease: LeaseId, length: Duration) -> Result<Beat> {
        let mut item = names(id, lease);
        item.push(millis(length));
        Ok(match letter(self.beats.ask(key, item).await?)?.as_str() {
            "K" => Beat::Kept,
            "C" => Beat::Cancelled,
            "E" => Beat::Ended,
            "L" => Beat::Lost,
            _ => return Err(strange("a beat")),
        })
    }

    /// What became of a verdict, as [`verdict_words`] wrote it.
    pub(super) async fn settle(&self, key: Vec<u8>, item: Vec<Vec<u8>>) -> Result<Settled> {
        crate::crash_point!("redis.settle.before_call");
        let answer = letter(self.settles.ask(key, item).await?)?;
        crate::crash_point!("redis.settle.after_call");
        Ok(match answer.as_str() {
            "A" => Settled::Applied,
            "K" => Settled::Kept,
            "S" => Settled::Stale,
            _ => return Err(strange("a settlement")),
        })
    }
}

/// What comes with a verdict where the broker is another: no announcement, and the payload for a redrive.
#[derive(Clone, Copy, Debug)]
pub(super) struct Elsewhere<'a>(pub(super) Option<&'a [u8]>);

/// The verdict as `settle.lua` reads it. `TooLarge` when the record cannot be stored.
pub(super) fn verdict_words(
    head: &Head,
    lease: LeaseId,
    verdict: &Verdict,
    elsewhere: Option<Elsewhere<'_>>,
) -> Result<Vec<Vec<u8>>> {
    let mut item = names(head.id, lease);
    let none = Vec::new;
    item.extend(match verdict {
        Verdict::End(record) => {
            let told = if elsewhere.is_some() { none() } else { announcement(record).into_bytes() };
            let payload = elsewhere.and_then(|Elsewhere(payload)| payload).map(<[u8]>::to_vec).unwrap_or_default();
            end(record, told, payload)?
        }
        Verdict::Retry { after, attempt } => {
            let mut history = head.history.clone();
            history.push((**attempt).clone());
            let (attempts, consumed) = (text(head.attempts.saturating_add(1)), use_text(&history).into_bytes());
            let history = codec::encode_history(&history)?;
            ["y".into(), millis(*after), attempts, none(), history, none(), consumed, none(), none()]
        }
        Verdict::Release { after, hold } => {
            let key = hold.as_ref().map(ToString::to_string).unwrap_or_default().into_bytes();
            ["h".into(), millis(*after), none(), none(), key, none(), none(), none(), none()]
        }
    });
    Ok(item)
}

fn names(id: JobId, lease: LeaseId) -> Vec<Vec<u8>> {
    vec![id.as_bytes().to_vec(), lease.as_bytes().to_vec()]
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
        let mut item = names(self.head.id, self.lease);
        item.push(text(self.head.epoch));
        claim_from(&mut Places::of(self.desk.claims.ask(self.key.clone(), item).await?)?)
    }

    async fn beat(&self) -> Result<Beat> {
        self.desk.beat(self.key.clone(), self.head.id, self.lease, self.length).await
    }

    async fn settle(&self, verdict: &Verdict) -> Result<Settled> {
        let item = verdict_words(&self.head, self.lease, verdict, None)?;
        self.desk.settle(self.key.clone(), item).await
    }
}

fn end(record: &Record, told: Vec<u8>, payload: Vec<u8>) -> Result<[Vec<u8>; 9]> {
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
        told,
        payload,
    ])
}

fn letter(answer: Value) -> Result<String> {
    Places::of(Value::Array(vec![answer]))?.text()
}

/// A number as scripts read it.
pub(super) fn text(number: impl ToString + Copy) -> Vec<u8> {
    number.to_string().into_bytes()
}

/// A length in milliseconds as scripts read it; at most some 300 years, so that sums of times stay exact in Lua.
pub(super) fn millis(length: Duration) -> Vec<u8> {
    const MOST: u128 = 10_000_000_000_000;
    text(length.as_millis().min(MOST))
}
