//! A worker asks the fleet's shared state for its parts of the limits, a few times a second for each key, and tells what
//! its calls came to.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep_until, timeout};

use super::ask::Grant;
use super::part::crowded;
use super::pool::Pool;
use super::{Limits, shared};
use crate::error::{Error, Kind, Result};
use crate::ledger::Ledger;

/// An ask that takes longer is made again: what was granted before is void by then.
pub(super) const ANSWER: Duration = Duration::from_secs(2);

impl Limits {
    /// Keeps this worker's parts of the limits, until it is dropped. Where `ledger` cannot share anything, it keeps to
    /// `share` of each limit by itself and says so.
    pub async fn keep_asking(&self, ledger: &dyn Ledger, share: f64) {
        let mut is_known = false;
        loop {
            if self.quotas().is_empty() && self.quotas().book().parts.is_empty() {
                // A job may bring a cap on its cost.
                self.quotas().asking.notified().await;
                continue;
            }
            if !is_known {
                self.find_out(ledger, share).await;
                is_known = true;
            }
            let due = match self.due() {
                (due, _) if !due.is_empty() => due,
                (_, None) => {
                    self.quotas().asking.notified().await;
                    continue;
                }
                (_, Some(at)) => {
                    tokio::select! {
                        () = self.quotas().asking.notified() => {}
                        () = sleep_until(at) => {}
                    }
                    continue;
                }
            };
            join_all(due.iter().map(|key| self.ask(ledger, key, false))).await;
        }
    }

    /// Gives back what this worker holds of the limits, and tells what its last calls came to.
    pub async fn stop_asking(&self, ledger: &dyn Ledger) {
        let keys: Vec<_> = self.quotas().book().parts.keys().map(Arc::clone).collect();
        let leaving = keys.iter().map(|key| async move {
            if self.quotas().book().parts.get(key).is_some_and(|part| part.purse.awaits_answer()) {
                // That one is asked again, and says nothing of the calls since.
                self.ask(ledger, key, false).await;
            }
            self.ask(ledger, key, true).await;
        });
        join_all(leaving).await;
    }

    /// Whether the ledger can share limits.
    async fn find_out(&self, ledger: &dyn Ledger, share: f64) {
        let mut pause = Duration::from_millis(100);
        loop {
            match ledger.limits().await {
                Ok(_) => return,
                Err(error) if error.kind() == Kind::Unsupported => {
                    tracing::warn!(
                        share,
                        "limits are not shared: {error}; this worker keeps to its share of each (worker.limit_share)"
                    );
                    return self.quotas().book().go_alone(share);
                }
                Err(error) => tracing::debug!(%error, "cannot ask how limits are shared; trying again"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(ANSWER);
        }
    }

    /// The keys to ask for now, or when the next one is due.
    fn due(&self) -> (Vec<Arc<str>>, Option<Instant>) {
        let quotas = self.quotas();
        let (now, here) = (quotas.now(), Instant::now());
        let (mut due, mut next) = (Vec::new(), None::<i64>);
        for (key, part) in &quotas.book().parts {
            match part.asks_at(now) {
                Some(at) if at <= now => due.push(Arc::clone(key)),
                Some(at) => next = Some(next.map_or(at, |next| next.min(at))),
                None => {}
            }
        }
        let wait = next.map(|at| Duration::from_millis(u64::try_from(at - now).unwrap_or_default()));
        (due, wait.map(|wait| here + wait))
    }

    async fn ask(&self, ledger: &dyn Ledger, key: &Arc<str>, leaves: bool) {
        let (quotas, slots) = (self.quotas(), self.quotas().slots());
        let of_pool = |pool: &mut Pool, clock: i64| {
            let asked = quotas.book().ask(key, quotas.now(), (slots, leaves));
            asked.map(|ask| pool.ask(clock, &ask)).unwrap_or_default()
        };
        let answer: Result<Grant> = if quotas.book().alone.is_some() {
            Ok(self.ask_alone(key, slots, leaves))
        } else {
            let asked = timeout(ANSWER, shared::change(ledger, key, of_pool)).await;
            asked.unwrap_or_else(|_| Err(Error::new(Kind::TimedOut, "ask for a limit", "no answer in time")))
        };
        let now = quotas.now();
        let opened = {
            let mut book = quotas.book();
            match answer {
                Ok(grant) => {
                    let is_known = book.parts.get(key).is_some_and(|part| part.crowded.is_some());
                    if grant.crowded && !is_known {
                        tracing::warn!(%key, "a limit has too many workers: {}", crowded());
                    }
                    book.granted(key, now, &grant)
                }
                Err(error) => {
                    let Some(part) = book.parts.get_mut(key) else { return };
                    if part.unanswered(now, error.to_string()) {
                        tracing::warn!(%error, %key, "the limits' store does not answer; what was granted is used up, then nothing");
                    }
                    false
                }
            }
        };
        self.granted(key, opened);
    }

    fn ask_alone(&self, key: &Arc<str>, slots: u32, leaves: bool) -> Grant {
        let quotas = self.quotas();
        let now = quotas.now();
        let mut book = quotas.book();
        let asked = book.ask(key, now, (slots, leaves)).zip(book.parts.get_mut(key));
        asked.map(|(ask, part)| part.alone.get_or_insert_default().ask(now, &ask)).unwrap_or_default()
    }
}
