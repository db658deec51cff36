//! Batches on their way: sealed at the target, where they are sealed here, once their jobs have come and not before, or
//! whoever waits for such a batch there would think it complete. A note at the source keeps their names over a death,
//! when no job names them any more.

use std::collections::BTreeMap;

use promptq_common::broker::{Broker, WorkerId};
use promptq_common::job::{BatchName, Queue};

use crate::problem::{Exit, Problem, Result};

/// The most bytes of the note: a ledger takes 64 KiB.
const NOTE_BYTES: usize = 60 * 1024;

/// Batches whose seal is due, each with its queue.
#[derive(Debug)]
pub(super) struct Open {
    key: String,
    batches: BTreeMap<BatchName, Queue>,
}

impl Open {
    /// What an earlier try left to be sealed.
    pub(super) async fn load(from: &Broker, owner: &WorkerId) -> Result<Self> {
        let key = format!("open/{owner}");
        let note = from.ledger().note(&key).await?;
        let read = note.map_or_else(|| Ok(BTreeMap::new()), |text| serde_json::from_str(&text));
        let batches = read.map_err(|error| {
            Problem::new(Exit::Failed, "corrupt", "the note of an earlier move cannot be read")
                .detail(error.to_string())
        })?;
        Ok(Self { key, batches })
    }

    /// Takes in batches that have jobs at the target now; durable before any of these jobs is forgotten here.
    pub(super) async fn add(
        &mut self,
        from: &Broker,
        to: &Broker,
        named: impl Iterator<Item = (BatchName, Queue)>,
    ) -> Result<()> {
        let before = self.batches.len();
        self.batches.extend(named);
        if self.batches.len() == before {
            return Ok(());
        }
        let text = self.text()?;
        if text.len() > NOTE_BYTES {
            // So many batches are small ones: most have come whole.
            return self.seal(from, to).await;
        }
        Ok(from.ledger().set_note(&self.key, Some(&text)).await?)
    }

    /// Seals there what is sealed here.
    pub(super) async fn seal(&mut self, from: &Broker, to: &Broker) -> Result<()> {
        for (batch, queue) in &self.batches {
            if from.ledger().batch(batch).await?.is_some_and(|view| view.sealed) {
                to.ledger().seal(batch, queue).await?;
            }
        }
        self.batches.clear();
        Ok(from.ledger().set_note(&self.key, None).await?)
    }

    fn text(&self) -> Result<String> {
        serde_json::to_string(&self.batches)
            .map_err(|error| Problem::new(Exit::Failed, "failed", format!("cannot write a note: {error}")))
    }
}
