//! A worker without jobs: whether it may leave, what it waits for, and why it leaves.

use std::collections::BTreeSet;
use std::time::Duration;

use promptq_common::error::{Kind, Result};
use promptq_common::job::Lane;
use promptq_common::ledger::JobFilter;
use promptq_common::limits::{Held, look};
use promptq_common::record::State;
use promptq_common::time::Timestamp;
use tokio::time::Instant;

use super::Intake;
use crate::StopReason;

/// What was in the way is told again once it has not been for so long.
const AGAIN: Duration = Duration::from_secs(60);
/// The most jobs, and keys of theirs, looked at to find out whether money alone is missing: of more a lease is waited.
const LOOKED_AT: (u64, usize) = (1_000, 20);

/// Jobs that are ready and may not run.
#[derive(Debug, Default)]
pub(super) struct Waits {
    /// Since when there are no others.
    pub(super) since: Option<Instant>,
    /// What was told to hold them back, and when it last did.
    told: Option<(BTreeSet<String>, Instant)>,
}

impl Intake {
    /// Why an idle worker leaves, if nothing stays behind that may come back to it soon: the jobs of a worker that has died
    /// come back when their leases run out, retries when they are due. After a lease more it waits no longer.
    pub(super) async fn nothing_is_left(&self, idle: Duration) -> Option<StopReason> {
        let settings = &self.desk.settings;
        match self.counted().await? {
            Ok((0, _)) => Some(StopReason::Idle),
            Ok((_, Some(key))) => Some(self.leaves_for(&key)),
            Ok(_) if idle < settings.exit_when_idle.unwrap_or_default() + settings.lease => None,
            Ok(_) if self.desk.full.has_turns(settings.lease) => None,
            Ok(_) => Some(self.broke(&[]).unwrap_or(StopReason::Idle)),
            Err(error) => {
                tracing::warn!(%error, "cannot ask what is left to run; not leaving yet");
                None
            }
        }
    }

    /// Why a worker leaves that was told to run once, with nothing ready but in these lanes, which may not run: for want of
    /// money where that alone holds what is left, and else as it was told, having said what does.
    pub(super) async fn over(&self, lanes: &[Lane]) -> StopReason {
        let broke = match (lanes, self.has_retries()) {
            ([], retries) => match self.counted().await {
                Some(Ok((0, _))) => return StopReason::Once,
                Some(Ok((_, Some(key)))) => Some(self.leaves_for(&key)),
                Some(Ok((left, None))) if left > LOOKED_AT.0 && !retries => self.broke(&[]),
                Some(Ok(_) | Err(_)) | None => None,
            },
            ([_, ..], false) => self.broke(lanes),
            ([_, ..], true) => None,
        };
        if let Some(reason) = broke {
            return reason;
        }
        let (names, mut what) = self.what_holds(lanes);
        let held = self.desk.limits.held();
        what.extend(held.iter().filter(|held| !names.contains(&held.key)).map(told));
        if !what.is_empty() {
            tracing::info!("leaving, with jobs left that may not run now, for {}", what.join("; "));
        }
        StopReason::Once
    }

    /// How many jobs of this worker's queues run elsewhere or wait for a time, and what all of them wait for if that is
    /// money; `None` once it is told to leave.
    async fn counted(&self) -> Option<Result<(u64, Option<String>)>> {
        let counting = async {
            let (mut running, mut delayed) = (0, 0);
            for (queue, _) in &self.desk.settings.queues {
                let depth = self.broker.depth(queue).await?;
                running += depth.running;
                delayed += depth.delayed;
            }
            let key = if running == 0 { self.only_money_helps(delayed).await? } else { None };
            Ok((running + delayed, key))
        };
        let mut phase = self.phase.clone();
        tokio::select! {
            biased;
            _ = phase.changed() => None,
            counted = counting => Some(counted),
        }
    }

    /// Leaves what all waits for this key of money.
    fn leaves_for(&self, key: &str) -> StopReason {
        let known = self.desk.limits.held().into_iter().find(|held| held.key == key);
        known.map_or_else(|| leaving(key, "there is not enough for them", false), |held| said(&held))
    }

    /// Whether a job that spent an attempt here waits for its next one.
    fn has_retries(&self) -> bool {
        self.retries_until.is_some_and(|until| until >= Timestamp::now())
    }

    /// What all of so many delayed jobs wait for, one of its keys, if that is money which is not there, or a person.
    async fn only_money_helps(&self, delayed: u64) -> Result<Option<String>> {
        if delayed == 0 || delayed > LOOKED_AT.0 {
            return Ok(None);
        }
        let ledger = self.broker.ledger();
        let (mut keys, mut found) = (BTreeSet::new(), 0);
        for (queue, _) in &self.desk.settings.queues {
            let filter = JobFilter { queue: Some(queue.clone()), states: vec![State::Queued], ..JobFilter::default() };
            let page = match ledger.list(&filter, None, usize::try_from(LOOKED_AT.0).unwrap_or(usize::MAX)).await {
                Err(error) if error.kind() == Kind::Unsupported => return Ok(None),
                page => page?,
            };
            for hold in page.items.into_iter().filter_map(|job| job.hold) {
                keys.insert(hold.limit_key());
                found += 1;
            }
        }
        if found != delayed || keys.len() > LOOKED_AT.1 {
            return Ok(None);
        }
        let named = |held: Vec<Held>| held.into_iter().map(|held| held.key).collect::<BTreeSet<_>>();
        let (held, spent) = (named(self.desk.limits.held()), named(self.desk.limits.spent()));
        for key in keys.difference(&spent) {
            // What something else holds here as well may go on without a person.
            if held.contains(key) || look(ledger, key).await?.is_none_or(|view| view.lacks.is_none()) {
                return Ok(None);
            }
        }
        Ok(keys.pop_first())
    }

    /// Why a worker that leaves by itself does so, if there is no money for any job of these lanes, which are ready: nothing
    /// that it could wait for brings any.
    fn broke(&self, lanes: &[Lane]) -> Option<StopReason> {
        self.desk.limits.is_spent_for(lanes).as_ref().map(said)
    }

    /// Tells whoever has a worker leave by itself why it does not, while jobs of these lanes are ready and may not run; or why
    /// it leaves after all.
    pub(super) fn waits_with(&mut self, lanes: &[Lane]) -> Option<StopReason> {
        let length = self.desk.settings.exit_when_idle?;
        self.tell_what_holds(lanes);
        let is_long = self.waits.since.get_or_insert_with(Instant::now).elapsed() >= length;
        if is_long && !self.has_retries() { self.broke(lanes) } else { None }
    }

    /// Names what holds the jobs of these lanes back, once for each change of it. A limit that opens in a moment is nothing
    /// to speak of.
    fn tell_what_holds(&mut self, lanes: &[Lane]) {
        let (names, what) = self.what_holds(lanes);
        if self.waits.is_news(names, Instant::now()) {
            tracing::info!("jobs wait that may not run now, and this worker with them, for {}", what.join("; "));
        }
    }

    /// What holds the jobs of these lanes back: by name, and in words.
    fn what_holds(&self, lanes: &[Lane]) -> (BTreeSet<String>, Vec<String>) {
        let (held, free) = self.desk.limits.holding(lanes);
        let queues = free.iter().map(|queue| format!("queue {queue}"));
        let names = held.iter().map(|held| held.key.clone()).chain(queues).collect();
        let queues = free.iter().map(|queue| {
            format!("queue {queue}, which is paused or empty by now (`promptq queues resume {queue}` ends a pause)")
        });
        (names, held.iter().map(told).chain(queues).collect())
    }
}

impl Waits {
    /// Whether something else is in the way than was told.
    fn is_news(&mut self, names: BTreeSet<String>, now: Instant) -> bool {
        if names.is_empty() {
            return false;
        }
        let is_known =
            self.told.as_ref().is_some_and(|(told, at)| *told == names && now.saturating_duration_since(*at) < AGAIN);
        self.told = Some((names, now));
        !is_known
    }
}

/// A key with what is said of it.
fn told(held: &Held) -> String {
    format!("{} ({})", held.key, held.detail)
}

/// Leaves what waits for this.
fn said(held: &Held) -> StopReason {
    leaving(&held.key, &held.detail, held.to_mend)
}

/// What a person has to mend is told by the detail; for all else there is too little money.
fn leaving(key: &str, detail: &str, to_mend: bool) -> StopReason {
    if to_mend {
        tracing::warn!(key, "leaving: the jobs that are left may not be called: {detail}");
    } else {
        tracing::warn!(
            key,
            "leaving: the jobs that are left wait for money: {detail}; `promptq limits set {key:?} usd=AMOUNT` allows more"
        );
    }
    StopReason::Broke
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_the_way_is_news_once_and_again_after_a_while() {
        let (mut waits, mut now) = (Waits::default(), Instant::now());
        let mut told = |names: &[&str], after| {
            now += Duration::from_secs(after);
            waits.is_news(names.iter().map(ToString::to_string).collect(), now)
        };
        assert!(told(&["acme"], 0));
        assert!((0..100).all(|_| !told(&["acme"], 2)), "jobs may come and go meanwhile");
        assert!(!told(&[], 30) && !told(&["acme"], 20), "a limit that opens for a moment");
        assert!(told(&["acme", "queue b"], 1) && told(&["acme"], 1));
        assert!(told(&["acme"], 60));
    }
}
