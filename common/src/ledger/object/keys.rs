//! Where the object-store ledger keeps what: the keys of its objects, and marks, whose names alone tell what ended.

use crate::broker::LeaseId;
use crate::job::{BatchName, JobId, Queue};
use crate::outcome::{Usage, Usd};
use crate::record::{End, Record};
use crate::store::key_part;
use crate::time::Timestamp;

/// The commit: one per job, whatever its epoch.
pub(super) fn success(id: JobId) -> String {
    format!("ledger/ends/{id}")
}

/// Any other end of this epoch.
pub(super) fn other(id: JobId, epoch: u32) -> String {
    format!("ledger/ends/{id}.{epoch}")
}

/// The payload of a job that ended without a success.
pub(super) fn kept(id: JobId) -> String {
    format!("ledger/kept/{id}")
}

/// The runs of messages that came again.
pub(super) fn starts(id: JobId) -> String {
    format!("ledger/starts/{id}")
}

/// One of them.
pub(super) fn start(id: JobId, epoch: u32, lease: LeaseId) -> String {
    format!("{}/{epoch}.{lease}", starts(id))
}

/// Marks of a queue, a folder for each batch.
pub(super) fn marks_of_queue(queue: &Queue) -> String {
    format!("ledger/marks/{}", key_part(queue.as_str()))
}

/// Marks of a batch; `~`, which begins no name, for jobs without one.
pub(super) fn marks(queue: &Queue, batch: Option<&BatchName>) -> String {
    let batch = batch.map_or_else(|| "~".to_owned(), |batch| key_part(batch.as_str()));
    format!("{}/{batch}", marks_of_queue(queue))
}

/// Dead jobs that may be redriven.
pub(super) fn dead(queue: &Queue) -> String {
    format!("ledger/dead/{}", key_part(queue.as_str()))
}

/// What is kept of a batch.
pub(super) fn batch(name: &BatchName, what: &str) -> String {
    format!("ledger/batches/{}/{what}", key_part(name.as_str()))
}

/// What is kept of a queue.
pub(super) fn queue(queue: &Queue, what: &str) -> String {
    format!("ledger/queues/{}/{what}", key_part(queue.as_str()))
}

/// What is kept under a name.
pub(super) fn aside(folder: &str, name: &str) -> String {
    format!("ledger/{folder}/{}", key_part(name))
}

/// A name that sorts by time, newest first.
pub(super) fn newest_first(at: Timestamp, name: &str) -> String {
    format!("ledger/newest/{:016x}.{}", u64::MAX - at.as_millis().unsigned_abs(), key_part(name))
}

/// What a mark says of its job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It ended so.
    Ended(End),
    /// It waits again, in the next epoch.
    Raised,
    /// It waits again, in the same epoch: its end was taken back.
    Restored,
}

/// An entry in the list of what ended: an empty object with a telling name. All of it follows from what is in the
/// job's own object, so that whoever writes it again writes the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// Its place in the order: milliseconds by the store's clock, then 20 bits of the job's id.
    pub(super) place: u64,
    pub(super) id: JobId,
    pub(super) epoch: u32,
    pub(super) kind: Kind,
    /// Whether the record has given up its answer.
    pub(super) forgotten: bool,
    pub(super) usage: Usage,
    /// `None` where nobody knows any of it.
    pub(super) cost: Option<Usd>,
}

impl Mark {
    /// Of a record that was written then.
    pub(super) fn of(record: &Record, at: Timestamp, kind: Kind) -> Self {
        Self {
            place: place(at, record.id),
            id: record.id,
            epoch: record.epoch,
            kind,
            forgotten: false,
            usage: record.history.usage,
            cost: record.history.known_cost(),
        }
    }

    /// Of a job that waits again since then, in that epoch.
    pub(super) fn waits(id: JobId, epoch: u32, at: Timestamp, kind: Kind) -> Self {
        Self { place: place(at, id), id, epoch, kind, forgotten: false, usage: Usage::default(), cost: None }
    }

    /// When it was written.
    pub(super) fn at(&self) -> Timestamp {
        time_of(self.place)
    }

    /// Its name within its folder; names sort by place.
    pub(super) fn name(&self) -> String {
        let Self { place, id, epoch, usage, .. } = self;
        let letter = self.letter();
        let Usage { input_tokens, output_tokens, cached_tokens, reasoning_tokens } = usage;
        let cost = self.cost.map_or_else(|| "-".to_owned(), |cost| cost.as_nanos().to_string());
        format!(
            "{place:016x}.{id}.{epoch}.{letter}.{input_tokens}.{output_tokens}.{cached_tokens}.{reasoning_tokens}.{cost}"
        )
    }

    /// From a name; `None` for what is no mark of ours. Folders before it do not count.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let name = name.rsplit('/').next()?;
        let mut parts = name.split('.');
        let place = u64::from_str_radix(parts.next()?, 16).ok()?;
        let (id, epoch) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let (kind, forgotten) = kind_of(parts.next()?)?;
        let mut number = || parts.next()?.parse::<u64>().ok();
        let usage = Usage {
            input_tokens: number()?,
            output_tokens: number()?,
            cached_tokens: number()?,
            reasoning_tokens: number()?,
        };
        let cost = match parts.next()? {
            "-" => None,
            nanos => Some(Usd::from_nanos(nanos.parse().ok()?)),
        };
        Some(Self { place, id, epoch, kind, forgotten, usage, cost })
    }

    fn letter(&self) -> char {
        let letter = match self.kind {
            Kind::Ended(End::Succeeded) => 's',
            Kind::Ended(End::Dead) => 'd',
            Kind::Ended(End::Cancelled) => 'c',
            Kind::Ended(End::Expired) => 'e',
            Kind::Raised => 'w',
            Kind::Restored => 't',
        };
        if self.forgotten { letter.to_ascii_uppercase() } else { letter }
    }
}

/// Bits of a place below the milliseconds; 44 above them last until the year 2527.
const TIE: u32 = 20;

/// Where a mark stands in the order.
pub(super) fn place(at: Timestamp, id: JobId) -> u64 {
    let [.., a, b, c] = *id.as_bytes();
    let tie = u64::from_be_bytes([0, 0, 0, 0, 0, a, b, c]) & ((1 << TIE) - 1);
    // The lowest bit is left for places that are given to marks which came late.
    floor(at) | (tie & !1)
}

/// When a mark at this place was written.
pub(super) fn time_of(place: u64) -> Timestamp {
    Timestamp::from_millis(i64::try_from(place >> TIE).unwrap_or(i64::MAX))
}

/// The first place of a moment.
pub(super) fn floor(at: Timestamp) -> u64 {
    u64::try_from(at.as_millis()).unwrap_or(0) << TIE
}

/// What sorts after every mark of this place and before the next.
pub(super) fn after(place: u64) -> String {
    format!("{place:016x}~")
}

fn kind_of(letter: &str) -> Option<(Kind, bool)> {
    let forgotten = letter.chars().all(|letter| letter.is_ascii_uppercase());
    let kind = match letter.to_ascii_lowercase().as_str() {
        "s" => Kind::Ended(End::Succeeded),
        "d" => Kind::Ended(End::Dead),
        "c" => Kind::Ended(End::Cancelled),
        "e" => Kind::Ended(End::Expired),
        "w" => Kind::Raised,
        "t" => Kind::Restored,
        _ => return None,
    };
    Some((kind, forgotten))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_says_the_same_when_it_is_read_and_sorts_by_time() {
        let kinds = End::ALL.map(Kind::Ended).into_iter().chain([Kind::Raised, Kind::Restored]);
        for (n, kind) in kinds.enumerate() {
            for (forgotten, cost) in [(false, None), (true, Some(Usd::from_nanos(-7)))] {
                let usage = Usage { input_tokens: n as u64, output_tokens: u64::MAX, ..Usage::default() };
                let waits = Mark::waits(JobId::fresh(), 3, Timestamp::now(), kind);
                let mark = Mark { forgotten, usage, cost, ..waits };
                assert_eq!(Mark::parse(&format!("q/b/{}", mark.name())), Some(mark));
                let later = Mark { place: place(mark.at() + std::time::Duration::from_millis(1), mark.id), ..mark };
                assert!(mark.name() < after(mark.place) && after(mark.place) < later.name());
                assert!(mark.name().len() < 200, "a file's name");
            }
        }
        for strange in ["", "x", "0000.x.1.s.0.0.0.0.-", "probe"] {
            assert_eq!(Mark::parse(strange), None);
        }
    }

    #[test]
    fn names_from_users_are_one_part_of_a_key() {
        let (queue, name) = (Queue::new("q").unwrap(), BatchName::new("nov reviews/1").unwrap());
        assert_eq!(marks(&queue, Some(&name)), "ledger/marks/q/nov%20reviews%2F1");
        assert_eq!(batch(&name, "made"), "ledger/batches/nov%20reviews%2F1/made");
        assert_eq!(marks(&queue, None), "ledger/marks/q/~");
    }
}
