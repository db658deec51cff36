//! What stands in the way of others in a lane's queue: jobs of closed models among those that have no lane of their own.
//! Which are to wait elsewhere, and how long; where is `post.rs`.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::desk::Item;
use crate::broker::backend::Want;
use crate::job::Lane;

/// Unstarted deliveries of a lane that stays closed for longer go back. Protocol, section 2.
pub(super) const CLOSED: Duration = Duration::from_secs(5);
/// Nothing can wake what waits elsewhere. Protocol, section 2.
const LONGEST: Duration = Duration::from_secs(600);

/// Since when the worker takes nothing from lanes, those of models without a queue of their own included.
#[derive(Debug, Default)]
pub(super) struct Closed(HashMap<Lane, Instant>);

impl Closed {
    /// Takes note of what is closed now. A worker with its hands full says nothing of lanes.
    pub(super) fn note(&mut self, want: &Want, now: Instant) {
        if want.total == 0 {
            return;
        }
        let closed: Vec<_> = want.caps.iter().filter(|(_, cap)| *cap == 0).map(|(lane, _)| lane).collect();
        self.0.retain(|lane, _| closed.contains(&lane));
        for lane in closed {
            self.0.entry(lane.clone()).or_insert(now);
        }
    }

    /// Takes out of what `queue` delivered the jobs of models that have been closed for long, with how long each is to
    /// wait: as long again as its model has been closed, so that a job moves a few times in an hour and is not kept for
    /// longer than it had to wait anyway.
    pub(super) fn part(&self, queue: &Lane, waiting: &mut VecDeque<Item>, now: Instant) -> Vec<(Item, Duration)> {
        if self.0.is_empty() || queue.model.is_some() {
            return Vec::new();
        }
        let (mut stay, mut go) = (VecDeque::with_capacity(waiting.len()), Vec::new());
        for item in waiting.drain(..) {
            match self.wait(queue, &item.parcel.envelope.head.lane, now) {
                Some(wait) => go.push((item, wait)),
                None => stay.push_back(item),
            }
        }
        *waiting = stay;
        go
    }

    fn wait(&self, queue: &Lane, lane: &Lane, now: Instant) -> Option<Duration> {
        let closed = now - *self.0.get(lane).filter(|_| lane != queue)?;
        (closed > CLOSED).then(|| closed.min(LONGEST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Band, ModelName, Queue};

    fn lane(model: Option<&str>) -> Lane {
        Lane { queue: Queue::standard(), model: model.map(ModelName::new), band: Band::Normal }
    }

    fn want(caps: &[(&str, u32)]) -> Want {
        let caps = caps.iter().map(|(model, cap)| (lane(Some(model)), *cap)).collect();
        Want { total: 4, caps, rest: 4 }
    }

    #[test]
    fn a_job_waits_elsewhere_as_long_as_its_model_was_closed() {
        let (mut closed, start) = (Closed::default(), Instant::now());
        let wait = |closed: &Closed, model, seconds| {
            closed.wait(&lane(None), &lane(model), start + Duration::from_secs(seconds))
        };
        closed.note(&want(&[("shut", 0), ("open", 1)]), start);
        closed.note(&want(&[("shut", 0)]), start + CLOSED);
        assert_eq!(wait(&closed, Some("shut"), 5), None);
        assert_eq!(wait(&closed, Some("shut"), 6), Some(Duration::from_secs(6)));
        assert_eq!(wait(&closed, Some("shut"), 6_000), Some(LONGEST));
        assert_eq!((wait(&closed, Some("open"), 6), wait(&closed, None, 6)), (None, None));
        // A full worker says nothing of it, an open model begins anew.
        closed.note(&Want::default(), start);
        assert!(wait(&closed, Some("shut"), 6).is_some());
        closed.note(&want(&[("shut", 1)]), start);
        assert_eq!(wait(&closed, Some("shut"), 6), None);
    }
}
