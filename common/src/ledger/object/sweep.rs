//! Retention: records give up their answers by age, ids are forgotten later still. The marks say what is old.

use std::time::Duration;

use tokio::time::Instant;

use super::keys::{self, Kind as Sort, Mark};
use super::stone::{Fate, Stone, What};
use super::{ObjectLedger, is_old};
use crate::broker::{Retention, Swept};
use crate::error::Result;
use crate::record::{End, Output, Record};

/// Marks looked at in one call, and changed: some seconds' work.
const LOOKED_AT: usize = 5_000;
const CHANGED: usize = 200;

/// How long it is remembered that a worker reported, or that a message was opened again.
const TRACES: Duration = Duration::from_secs(86_400);

/// How far a round has come.
#[derive(Debug, Default)]
pub(super) struct Progress {
    finished: Option<Instant>,
    /// Folders of marks that are still to be looked at, and after which name in the last of them.
    rest: Option<Vec<(String, Option<String>)>>,
}

impl ObjectLedger {
    /// The next part of a round; one begins at most once an hour. Nothing is kept of it: whoever dies, the next round
    /// finds what is left.
    pub(super) async fn sweep_on(&self, retention: &Retention) -> Result<Swept> {
        let mut progress = self.swept.lock().await;
        let mut swept = Swept::default();
        let mut rest = match progress.rest.take() {
            Some(rest) => rest,
            None if !is_old(progress.finished, self.ages.sweeps) => return Ok(swept),
            None => self.folders().await?,
        };
        let Some((folder, after)) = rest.pop() else {
            let before = self.clock.now() - TRACES;
            for traces in ["ledger/starts", "ledger/workers"] {
                swept.more |= self.store.delete_older(traces, before, CHANGED).await? == CHANGED;
            }
            progress.finished = Some(Instant::now());
            return Ok(swept);
        };
        let left = self.sweep_folder(&folder, after, (retention, &mut swept)).await?;
        if let Some(after) = left {
            rest.push((folder, Some(after)));
        }
        progress.rest = Some(rest);
        swept.more = true;
        Ok(swept)
    }

    async fn folders(&self) -> Result<Vec<(String, Option<String>)>> {
        let mut all = Vec::new();
        for queue in self.store.folders("ledger/marks").await? {
            let queue = format!("ledger/marks/{queue}");
            let batches = self.store.folders(&queue).await?;
            all.extend(batches.into_iter().map(|batch| (format!("{queue}/{batch}"), None)));
        }
        Ok(all)
    }

    /// After which mark to go on; `None` when what is left is young.
    async fn sweep_folder(
        &self,
        folder: &str,
        after: Option<String>,
        (retention, swept): (&Retention, &mut Swept),
    ) -> Result<Option<String>> {
        let youngest = self.clock.now() - retention.succeeded.min(retention.dead);
        let page = self.store.list(folder, after.as_deref(), LOOKED_AT).await?;
        let mut changed = 0;
        for listed in &page {
            let Some(mark) = Mark::parse(&listed.name) else { continue };
            if mark.at() >= youngest {
                return Ok(None);
            }
            changed += usize::from(self.sweep_mark(folder, &mark, (retention, swept)).await?);
            if changed == CHANGED {
                return Ok(Some(listed.name.clone()));
            }
        }
        Ok(page.last().filter(|_| page.len() == LOOKED_AT).map(|listed| listed.name.clone()))
    }

    /// Whether there was something to do. The mark is changed last: until then it is found again.
    async fn sweep_mark(
        &self,
        folder: &str,
        mark: &Mark,
        (retention, swept): (&Retention, &mut Swept),
    ) -> Result<bool> {
        let age = self.clock.now().since(mark.at());
        let name = format!("{folder}/{}", mark.name());
        if age > retention.tombstones {
            self.store.delete(&[mark.key(), keys::kept(mark.id), name]).await?;
            return Ok(true);
        }
        let kept = if mark.kind == Sort::Ended(End::Succeeded) { retention.succeeded } else { retention.dead };
        if mark.forgotten || age <= kept || !matches!(mark.kind, Sort::Ended(_)) {
            return Ok(false);
        }
        let forgotten = self.rewrite(mark.key(), |stone| {
            let listed = stone.mark().is_some_and(|now| now.place == mark.place);
            match &stone.what {
                What::Ended { head, record, fate: Fate::Stands | Fate::Dropped } if listed => {
                    let (end, fingerprint) = (record.end, head.fingerprint);
                    Some(Stone { what: What::Forgotten { end, fingerprint }, ..stone.clone() })
                }
                What::Ended { .. } | What::Stopped | What::Spared { .. } | What::Forgotten { .. } => None,
            }
        });
        let before = self.stone(&mark.key()).await?;
        if forgotten.await?.is_some() {
            swept.forgotten += 1;
            swept.outputs.extend(before.as_ref().and_then(Stone::record).and_then(stored_key));
            self.undead(before.as_ref()).await?;
            self.store.delete(&[keys::kept(mark.id)]).await?;
        }
        let quiet = Mark { forgotten: true, ..*mark };
        self.store.put(&format!("{folder}/{}", quiet.name()), Vec::new()).await?;
        self.store.delete(&[name]).await?;
        Ok(true)
    }
}

fn stored_key(record: &Record) -> Option<String> {
    match &record.answer.as_ref()?.output {
        Output::Stored(stored) => Some(stored.key.clone()),
        Output::Inline(_) => None,
    }
}
