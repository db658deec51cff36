//! Which models of a queue have lanes of their own, as far as a publisher knows. The jobs of the others come to the lane
//! of jobs without a model by any key; by that lane's own key the server finds it at the first look.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::topology;
use crate::job::{Lane, ModelName, Queue};
use crate::ledger::Ledger;

/// What is known of a queue is looked up again after this, beside what goes on …
const AGAIN: Duration = Duration::from_secs(1);
/// … and is as good as nothing after this: somebody may have given a model a lane.
const OLD: Duration = Duration::from_secs(2);
/// Of so many queues something is known at most.
const QUEUES: usize = 1_000;

/// The lanes that a publisher knows of.
#[derive(Debug, Default)]
pub(super) struct KnownLanes(Mutex<HashMap<Queue, Known>>);

#[derive(Debug)]
struct Known {
    /// Those with lanes; `None` before the first look has ended.
    models: Option<Vec<ModelName>>,
    /// When that was so.
    since: Instant,
    /// When the last look began.
    looked: Instant,
}

impl KnownLanes {
    /// The key that takes a job that is ready to its lane.
    pub(super) fn key(&self, lane: &Lane) -> String {
        if lane.model.as_ref().is_some_and(|model| self.has_none(&lane.queue, model)) {
            return topology::key(&Lane { model: None, ..lane.clone() });
        }
        topology::key(lane)
    }

    /// Whether a model is known to have no lane.
    fn has_none(&self, queue: &Queue, model: &ModelName) -> bool {
        let known = self.known();
        let fresh = known.get(queue).filter(|known| known.since.elapsed() < OLD);
        fresh.and_then(|known| known.models.as_ref()).is_some_and(|models| !models.contains(model))
    }

    /// Whether to look now. Says so to one who asks, and to others not for a while.
    pub(super) fn is_due(&self, queue: &Queue) -> bool {
        let (mut known, now) = (self.known(), Instant::now());
        if let Some(known) = known.get_mut(queue) {
            let due = now - known.looked >= AGAIN;
            known.looked = if due { now } else { known.looked };
            return due;
        }
        if known.len() >= QUEUES {
            known.retain(|_, known| now - known.looked < OLD);
            // The jobs of the rest go by their own keys.
            if known.len() >= QUEUES {
                return false;
            }
        }
        known.insert(queue.clone(), Known { models: None, since: now, looked: now });
        true
    }

    /// Looks. What cannot be seen stays as it was known, until that is too old.
    pub(super) async fn look(&self, ledger: &dyn Ledger, queue: &Queue) {
        let began = Instant::now();
        let Ok(models) = topology::models(ledger, queue).await else { return };
        if let Some(known) = self.known().get_mut(queue) {
            (known.models, known.since) = (Some(models), began);
        }
    }

    /// Knows nothing of a queue any more.
    pub(super) fn forget(&self, queue: &Queue) {
        self.known().remove(queue);
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Queue, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Band;

    #[tokio::test(start_paused = true)]
    async fn a_model_goes_by_its_own_key_unless_it_was_just_seen_to_have_no_lane() {
        let broker = crate::broker::Broker::memory();
        let (ledger, queue, lanes) = (broker.ledger(), Queue::standard(), KnownLanes::default());
        let lane = Lane { queue: queue.clone(), model: Some(ModelName::new("m")), band: Band::High };
        assert_eq!(lanes.key(&lane), "default.m.high");
        assert!(lanes.is_due(&queue) && !lanes.is_due(&queue));
        assert_eq!(lanes.key(&lane), "default.m.high", "nobody has looked yet");
        lanes.look(ledger, &queue).await;
        assert_eq!(lanes.key(&lane), "default._.high");
        tokio::time::advance(AGAIN).await;
        assert!(lanes.is_due(&queue) && !lanes.is_due(&queue));
        assert_eq!(lanes.key(&lane), "default._.high");
        tokio::time::advance(OLD.saturating_sub(AGAIN)).await;
        assert_eq!(lanes.key(&lane), "default.m.high", "somebody may have made one since");
        let note = r#"{"whole":true,"models":["m"],"leaving":[],"quiet_until":null}"#;
        ledger.set_note("amqp/lanes/default", Some(note)).await.unwrap();
        lanes.look(ledger, &queue).await;
        assert_eq!(lanes.key(&lane), "default.m.high");
    }

    #[tokio::test(start_paused = true)]
    async fn with_too_many_queues_what_is_known_of_the_first_stays_while_it_is_good() {
        let broker = crate::broker::Broker::memory();
        let lanes = KnownLanes::default();
        let queue = |number: usize| Queue::new(&format!("q{number}")).unwrap();
        for number in 0..QUEUES {
            assert!(lanes.is_due(&queue(number)));
        }
        lanes.look(broker.ledger(), &queue(0)).await;
        assert!(!lanes.is_due(&queue(QUEUES)));
        let lane = |number| Lane { queue: queue(number), model: Some(ModelName::new("m")), band: Band::High };
        assert_eq!(lanes.key(&lane(0)), "q0._.high");
        assert_eq!(lanes.key(&lane(QUEUES)), format!("q{QUEUES}.m.high"));
        tokio::time::advance(AGAIN).await;
        assert!(lanes.is_due(&queue(0)));
        tokio::time::advance(OLD.saturating_sub(AGAIN)).await;
        assert!(lanes.is_due(&queue(QUEUES)), "the others have not been asked about for long");
        assert_eq!(lanes.key(&lane(0)), "q0.m.high");
        assert_eq!(lanes.known().len(), 2);
    }
}
