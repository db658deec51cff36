//! The ledger in a storm, as seen from outside: which record was there when.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use promptq_common::broker::{Broker, Depth};
use promptq_common::error::Result;
use promptq_common::job::{BatchName, Queue};
use promptq_common::ledger::{BatchView, Cursor, Results, Scope};
use promptq_common::record::Record;

/// For how long nothing may be seen while the broker is killed and comes back.
const BLIND: Duration = Duration::from_secs(15);

const PAGE: usize = 1_000;

pub(super) struct Watch<'a> {
    broker: &'a Broker,
    batch: BatchName,
    cursor: Cursor,
    /// When each row's record was first seen.
    seen: HashMap<u64, Instant>,
    /// When something was last seen.
    sighted: Instant,
}

impl<'a> Watch<'a> {
    pub(super) fn new(broker: &'a Broker, batch: &BatchName) -> Self {
        let (batch, sighted) = (batch.clone(), Instant::now());
        Self { broker, batch, cursor: Cursor(0), seen: HashMap::new(), sighted }
    }

    /// Jobs whose record was seen.
    pub(super) fn ended(&self) -> u64 {
        self.seen.len() as u64
    }

    /// When a row's record was seen.
    pub(super) fn seen(&self, row: u64) -> Option<Instant> {
        self.seen.get(&row).copied()
    }

    /// Reads what is new; a broker out of reach is nothing new for a while.
    pub(super) async fn look(&mut self) -> Result<()> {
        loop {
            let page = match self.page(self.cursor).await {
                Err(error) if error.is_transient() && self.sighted.elapsed() < BLIND => return Ok(()),
                page => page?,
            };
            // Taken after the answer: every record in it was stored before.
            self.sighted = Instant::now();
            self.cursor = page.next;
            for (_, record) in &page.records {
                self.seen.entry(row(record)).or_insert(self.sighted);
            }
            if !page.more {
                return Ok(());
            }
        }
    }

    /// Every record of the batch, from the first on.
    pub(super) async fn records(&self) -> Result<Vec<Record>> {
        let (mut all, mut from) = (Vec::new(), Cursor(0));
        loop {
            let page = self.page(from).await?;
            from = page.next;
            all.extend(page.records.into_iter().map(|(_, record)| record));
            if !page.more {
                return Ok(all);
            }
        }
    }

    pub(super) async fn batch(&self) -> Result<Option<BatchView>> {
        self.broker.ledger().batch(&self.batch).await
    }

    pub(super) async fn depth(&self) -> Result<Depth> {
        self.broker.depth(&Queue::standard()).await
    }

    /// Waits until nothing waits or runs any more, for this long at the most.
    pub(super) async fn until_tidy(&self, patience: Duration) -> Result<()> {
        let begun = Instant::now();
        loop {
            match self.depth().await {
                Err(error) if !error.is_transient() || begun.elapsed() > patience => return Err(error),
                Ok(Depth { ready: 0, delayed: 0, running: 0, .. }) => return Ok(()),
                Ok(_) if begun.elapsed() > patience => return Ok(()),
                Ok(_) | Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    async fn page(&self, from: Cursor) -> Result<Results> {
        self.broker.ledger().results(&Scope::Batch(self.batch.clone()), from, PAGE).await
    }

    #[cfg(test)]
    pub(super) fn saw(&mut self, row: u64, at: Instant) {
        self.seen.insert(row, at);
    }
}

/// The row a record is for; 0 when it names none.
pub(super) fn row(record: &Record) -> u64 {
    record.row.unwrap_or(0)
}
