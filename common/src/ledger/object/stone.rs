//! What stands in a job's own object: how it ended, in which words, and what became of that end.

use serde::{Deserialize, Serialize};

use super::keys::{Kind as Sort, Mark};
use crate::broker::{Head, LeaseId};
use crate::codec;
use crate::error::Result;
use crate::job::Fingerprint;
use crate::outcome::History;
use crate::record::{End, Record, State};
use crate::time::Timestamp;

const OP: &str = "read the end of a job";

/// The contents of one object below `ledger/ends`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Stone {
    /// When it was written, by the store's clock.
    pub(super) at: Timestamp,
    pub(super) what: What,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum What {
    /// The job ended.
    Ended { head: Box<Head>, record: Box<Record>, fate: Fate },
    /// A user cancelled the job before anybody here knew more of it than its id.
    Stopped,
    /// Its end was taken back: the message may run, whatever became of its batch before.
    Spared { head: Option<Box<Head>> },
    /// It ended so long ago that only this is left.
    Forgotten { end: End, fingerprint: Fingerprint },
}

/// What became of an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Fate {
    /// It is what the job came to.
    Stands,
    /// It can no longer be redriven.
    Dropped,
    /// The job waits in the next epoch, since then.
    Raised { at: Timestamp, published: bool },
}

impl Stone {
    /// A job's end.
    pub(super) fn ended(head: &Head, record: &Record, at: Timestamp) -> Self {
        let (head, record) = (Box::new(head.clone()), Box::new(record.clone()));
        Self { at, what: What::Ended { head, record, fate: Fate::Stands } }
    }

    pub(super) fn bytes(&self) -> Result<Vec<u8>> {
        codec::encode_account("write the end of a job", self, self.record())
    }

    pub(super) fn read(bytes: &[u8]) -> Result<Self> {
        codec::decode_account(OP, bytes, |stone: &mut Self| match &mut stone.what {
            What::Ended { record, .. } => Some(record.as_mut()),
            What::Stopped | What::Spared { .. } | What::Forgotten { .. } => None,
        })
    }

    /// The record, where there is one.
    pub(super) fn record(&self) -> Option<&Record> {
        match &self.what {
            What::Ended { record, .. } => Some(record),
            What::Stopped | What::Spared { .. } | What::Forgotten { .. } => None,
        }
    }

    /// Who wrote it, if a run did.
    pub(super) fn lease(&self) -> LeaseId {
        self.record().map_or(LeaseId::NONE, |record| record.lease)
    }

    /// How the job ended, unless that was taken back or overtaken.
    pub(super) fn state(&self) -> Option<State> {
        match &self.what {
            What::Ended { record, fate: Fate::Stands | Fate::Dropped, .. } => Some(record.end.into()),
            What::Forgotten { end, .. } => Some((*end).into()),
            What::Ended { fate: Fate::Raised { .. }, .. } | What::Stopped | What::Spared { .. } => None,
        }
    }

    /// Whether an end may take its place: what stands here is none yet.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.what, What::Stopped | What::Spared { .. })
    }

    /// The hash of what the job asks for.
    pub(super) fn fingerprint(&self) -> Option<Fingerprint> {
        match &self.what {
            What::Ended { head, .. } => Some(head.fingerprint),
            What::Spared { head } => head.as_ref().map(|head| head.fingerprint),
            What::Forgotten { fingerprint, .. } => Some(*fingerprint),
            What::Stopped => None,
        }
    }

    /// The mark of the end itself.
    pub(super) fn mark(&self) -> Option<Mark> {
        self.record().map(|record| Mark::of(record, self.at, Sort::Ended(record.end)))
    }

    /// The mark in the dead set, which stays as it is when the end is listed later.
    pub(super) fn dead_mark(&self) -> Option<Mark> {
        let dead = self.record().filter(|record| record.end == End::Dead);
        dead.map(|record| Mark::of(record, record.ended_at, Sort::Ended(End::Dead)))
    }
}

/// The head of a job that waits in the epoch after the one of `head`, since then, its allowance of time renewed.
pub(super) fn raised(head: &Head, since: Timestamp) -> Head {
    let epoch = head.epoch + 1;
    let head = Head { epoch, attempts: 0, history: History::default(), not_before: None, ..head.clone() };
    Head { deadline: renewed(&head, since), ..head }
}

/// Until when a job may run that waits anew since then.
pub(super) fn renewed(head: &Head, since: Timestamp) -> Timestamp {
    head.deadline.max(since + head.deadline.since(head.created_at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::envelope;
    use crate::job::{Job, Queue};
    use crate::outcome::{Body, CostSource, Detail, Origin};
    use crate::record::{Answer, Output};
    use crate::work::Work;

    fn stone(detail: Detail, origin: Origin) -> Stone {
        let head = envelope(&Job::new(Queue::standard(), Work::prompt(None, "hi"))).unwrap().head;
        let mut record = Record::unrun(&head, End::Succeeded, None, Timestamp::from_millis(9));
        let plain = Answer::plain(Output::Inline(Body::default()));
        record.answer = Some(Answer { detail: detail.kept(), origin: origin.kept(), ..plain });
        Stone::ended(&head, &record, Timestamp::from_millis(10))
    }

    #[test]
    fn all_of_an_answer_is_kept_and_nothing_more_where_there_is_nothing_more() {
        let detail = Detail { cache_write_tokens: 7, ..Detail::default() };
        let origin = Origin { cost_source: Some(CostSource::Provider), ..Origin::default() };
        for (detail, origin, version) in [
            (Detail::default(), Origin::default(), 1),
            (detail.clone(), Origin::default(), 2),
            (Detail::default(), origin.clone(), 2),
            (detail, origin, 2),
        ] {
            let stone = stone(detail, origin);
            let bytes = stone.bytes().unwrap();
            assert_eq!((bytes[0], Stone::read(&bytes).unwrap()), (version, stone));
            assert!(Stone::read(&bytes[..bytes.len() - 1]).is_err());
        }
    }
}
