//! What people release: gates opened before their time, here and, by way of the ledger, in every worker.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::rules::means;
use super::{Limits, account_of, shared};
use crate::error::{Kind, Result};
use crate::ledger::Ledger;

/// Between two looks at whether somebody has released what is shut here: a person waits for it.
const LOOK: Duration = Duration::from_secs(1);
/// Each look is one read for each name that it asks for: so many names, mostly all there are; of more a part, so that each
/// has its turn within [`TURNS`] looks.
const NAMES: usize = 5;
const TURNS: usize = 5;
/// The most names looked at: more are not shut at once but by an outage of everything.
const KEYS: usize = 100;

impl Limits {
    /// Opens whatever is shut or bounded here under a key: `provider`, its account and all of its models; or the beginning of
    /// `provider/model`, those models. What waits for it may go on at once.
    pub fn open(&self, key: &str) {
        {
            let mut table = self.table();
            let (table, now) = (&mut *table, Instant::now());
            let gates = table.gates.iter_mut().map(|(limit_key, gate)| (&**limit_key, gate));
            let accounts = table.accounts.iter_mut().map(|(name, gate)| (&**name, gate));
            let covered = gates.chain(accounts).filter(|(name, _)| means(key, name));
            let released: Vec<_> = covered.filter_map(|(name, gate)| gate.release().then(|| name.to_owned())).collect();
            for name in &released {
                table.open(name, now);
            }
            table.opened.insert(key.to_owned());
        }
        self.0.changed.notify_one();
    }

    /// Opens what is shut or bounded here once a person has released it anywhere (`promptq limits release KEY`), until it is dropped:
    /// also keys without a rule, since a release leaves its moment with the ledger. Where that shares no limits, only a new
    /// worker tries at once.
    pub async fn keep_opening(&self, ledger: &dyn Ledger) {
        let mut last = String::new();
        loop {
            tokio::time::sleep(LOOK).await;
            match self.open_released(ledger, &mut last).await {
                Ok(()) => {}
                Err(error) if error.kind() == Kind::Unsupported => return,
                Err(error) => tracing::debug!(%error, "cannot ask whether limits were released; trying again"),
            }
        }
    }

    /// Looks at the names that come after `last`, the first of all after the last one.
    async fn open_released(&self, ledger: &dyn Ledger, last: &mut String) -> Result<()> {
        let shut = self.shut();
        let (next, before): (Vec<_>, Vec<_>) = shut.into_iter().partition(|(name, _)| name > last);
        let count = NAMES.max((next.len() + before.len()).div_ceil(TURNS));
        for (name, shut_for) in next.into_iter().chain(before).take(count) {
            last.clone_from(&name);
            // By the length of time, since its clock need not be this one's.
            if shared::released(ledger, &name).await?.is_some_and(|ago| ago < shut_for) {
                tracing::info!(key = %name, "a limit was released by a person; its jobs go on");
                self.open(&name);
            }
        }
        Ok(())
    }

    /// Each name that a person may have for what is shut or bounded here, and for how long the latest of it has been.
    fn shut(&self) -> BTreeMap<String, Duration> {
        let (table, now) = (self.table(), Instant::now());
        let mut shut = BTreeMap::new();
        for (key, gate) in table.shuttable() {
            let bounded = || gate.endpoint.as_ref()?.bound_since(now).map(|(_, (began, _))| began);
            let Some(began) = gate.shut.as_ref().map(|shut| shut.began).or_else(bounded) else { continue };
            let length = now.saturating_duration_since(began);
            let rules = self.quotas().rules_of(key);
            let names: BTreeSet<_> = [key, account_of(key)].into_iter().chain(rules.iter().map(|key| &**key)).collect();
            for name in names {
                let known = shut.entry(name.to_owned()).or_insert(length);
                *known = length.min(*known);
            }
            if shut.len() >= KEYS {
                break;
            }
        }
        shut
    }
}
