//! Which models of a queue have lanes of their own: kept as a note in the ledger, because a server does not list its
//! queues and workers differ in what their settings name. Changed by one process at a time, under a lock of the ledger.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::broker::WorkerId;
use crate::error::{Error, Kind, Result};
use crate::job::{Band, Lane, ModelName, Queue};
use crate::ledger::Ledger;
use crate::time::Timestamp;

const OP: &str = "declare the topology";
/// How long the lock lasts if its owner dies; declaring takes a fraction of a second, and every look of a prune renews it.
pub(super) const LOCK: Duration = Duration::from_secs(60);
/// How long another that changes the lanes is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the ledger keeps for a queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    /// Whether everything was made and bound: whoever finds it all there need not look at bindings, which no server
    /// shows.
    pub(super) whole: bool,
    /// Models whose lanes are bound.
    pub(super) models: Vec<String>,
    /// Models whose lanes nothing leads to any more.
    pub(super) leaving: Vec<String>,
    /// Until then somebody tries to delete the lanes of `leaving`, and nobody consumes them. When that is over, or its
    /// process has died, what is left in them is worked off.
    pub(super) quiet_until: Option<Timestamp>,
}

/// The models of this queue whose lanes may hold jobs: those to consume from, beside `_`.
///
/// # Errors
/// As the ledger's; `Corrupt` for a note of another making.
pub(in crate::broker::amqp) async fn models(ledger: &dyn Ledger, queue: &Queue) -> Result<Vec<ModelName>> {
    let note = read(ledger, queue).await?;
    Ok(note.consumed(Timestamp::now()).map(ModelName::new).collect())
}

/// Every lane of this queue that may hold jobs.
///
/// # Errors
/// As [`models`].
pub(in crate::broker::amqp) async fn lanes(ledger: &dyn Ledger, queue: &Queue) -> Result<Vec<Lane>> {
    Ok(of(queue, &models(ledger, queue).await?).collect())
}

/// A queue's lanes: one for the jobs of all models but these and one for each of these, in three bands.
pub(super) fn of(queue: &Queue, models: &[ModelName]) -> impl Iterator<Item = Lane> {
    let models = std::iter::once(None).chain(models.iter().cloned().map(Some));
    models.flat_map(|model| Band::ALL.map(|band| Lane { queue: queue.clone(), model: model.clone(), band }))
}

/// The note as it is; an empty one where there is none yet.
pub(super) async fn read(ledger: &dyn Ledger, queue: &Queue) -> Result<Note> {
    let Some(text) = ledger.note(&place(queue)).await? else { return Ok(Note::default()) };
    serde_json::from_str(&text).map_err(|error| {
        let why = format!(
            "the note of queue {queue}'s lanes in the ledger cannot be read; if a newer promptq wrote it, update"
        );
        Error::new(Kind::Corrupt, OP, why).because(error)
    })
}

/// Keeps the note.
pub(super) async fn write(ledger: &dyn Ledger, queue: &Queue, note: &Note) -> Result<()> {
    let text = serde_json::to_string(note)
        .map_err(|error| Error::new(Kind::Corrupt, OP, "the note of the lanes").because(error))?;
    ledger.set_note(&place(queue), Some(&text)).await
}

/// Forgets the note of a queue that is no more.
pub(super) async fn remove(ledger: &dyn Ledger, queue: &Queue) -> Result<()> {
    ledger.set_note(&place(queue), None).await
}

/// The right to change the lanes of a queue, as long as it is held.
pub(super) struct Change<'a> {
    pub(super) ledger: &'a dyn Ledger,
    pub(super) queue: &'a Queue,
    owner: WorkerId,
}

impl<'a> Change<'a> {
    /// Waits for others who change them.
    ///
    /// # Errors
    /// `Unavailable` when one does so for long.
    pub(super) async fn begin(ledger: &'a dyn Ledger, queue: &'a Queue) -> Result<Self> {
        let change = Self { ledger, queue, owner: WorkerId::random("declare") };
        let deadline = Instant::now() + PATIENCE;
        while !change.holds().await? {
            if Instant::now() > deadline {
                let why = format!("another process changes the lanes of queue {queue}; try again in a minute");
                return Err(Error::new(Kind::Unavailable, OP, why));
            }
            sleep(Duration::from_millis(200)).await;
        }
        Ok(change)
    }

    /// Takes the lock, or keeps it. False once another has it.
    pub(super) async fn holds(&self) -> Result<bool> {
        self.ledger.lock(&place(self.queue), &self.owner, LOCK).await
    }

    /// Lets others change them.
    pub(super) async fn end(self) -> Result<()> {
        self.ledger.unlock(&place(self.queue), &self.owner).await
    }
}

impl Note {
    /// Whether all of `models` have lanes that jobs are led to.
    pub(super) fn has(&self, models: &[ModelName]) -> bool {
        models.iter().all(|model| self.models.iter().any(|known| known == model.as_str()))
    }

    /// Takes models up, again where they were about to go.
    pub(super) fn take_up(&mut self, models: &[ModelName]) {
        self.leaving.retain(|leaving| models.iter().all(|model| model.as_str() != leaving));
        self.models.extend(models.iter().map(|model| model.as_str().to_owned()));
        self.models.sort_unstable();
        self.models.dedup();
    }

    /// Gives up every model but these.
    pub(super) fn give_up_all_but(&mut self, models: &[ModelName]) {
        let (stay, go) = std::mem::take(&mut self.models)
            .into_iter()
            .partition(|known| models.iter().any(|model| model.as_str() == known));
        self.models = stay;
        self.leaving.extend::<Vec<String>>(go);
        self.leaving.sort_unstable();
        self.leaving.dedup();
    }

    /// The models of lanes that jobs are led to.
    pub(super) fn bound(&self) -> Vec<ModelName> {
        self.models.iter().map(|model| ModelName::new(model)).collect()
    }

    /// The models of all lanes that may be there.
    pub(super) fn all(&self) -> Vec<ModelName> {
        self.models.iter().chain(&self.leaving).map(|model| ModelName::new(model)).collect()
    }

    fn consumed(&self, now: Timestamp) -> impl Iterator<Item = &str> {
        let quiet = self.quiet_until.is_some_and(|until| until > now);
        let leaving = if quiet { &[] } else { self.leaving.as_slice() };
        self.models.iter().chain(leaving).map(String::as_str)
    }
}

fn place(queue: &Queue) -> String {
    format!("amqp/lanes/{queue}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(models: &[&str]) -> Vec<ModelName> {
        models.iter().copied().map(ModelName::new).collect()
    }

    fn consumed(note: &Note, now: i64) -> Vec<&str> {
        note.consumed(Timestamp::from_millis(now)).collect()
    }

    #[test]
    fn a_model_that_leaves_is_consumed_again_when_nobody_is_deleting_it() {
        let mut note = Note::default();
        note.take_up(&names(&["b", "a", "b"]));
        assert_eq!(note.models, ["a", "b"]);
        note.give_up_all_but(&names(&["b", "c"]));
        note.quiet_until = Some(Timestamp::from_millis(50));
        assert_eq!((consumed(&note, 49), consumed(&note, 50)), (vec!["b"], vec!["b", "a"]));
        assert!(note.has(&names(&["b"])) && !note.has(&names(&["a"])));
        note.take_up(&names(&["a"]));
        assert_eq!(consumed(&note, 0), ["a", "b"]);
        assert!(note.leaving.is_empty());
    }

    #[tokio::test]
    async fn one_process_at_a_time_changes_the_lanes_and_a_note_of_another_making_is_told() {
        let broker = crate::broker::Broker::memory();
        let ledger = broker.ledger();
        let queue = Queue::standard();
        let note = Note { whole: true, models: vec!["m".to_owned()], ..Note::default() };
        write(ledger, &queue, &note).await.unwrap();
        assert_eq!((read(ledger, &queue).await.unwrap(), models(ledger, &queue).await.unwrap()), (note, names(&["m"])));
        let first = Change::begin(ledger, &queue).await.unwrap();
        let second = Change { ledger, queue: &queue, owner: WorkerId::random("declare") };
        assert!(first.holds().await.unwrap() && !second.holds().await.unwrap());
        first.end().await.unwrap();
        assert!(second.holds().await.unwrap());
        ledger.set_note(&place(&queue), Some("[]")).await.unwrap();
        assert_eq!(models(ledger, &queue).await.unwrap_err().kind(), Kind::Corrupt);
    }
}
