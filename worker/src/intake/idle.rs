//! A worker without jobs: whether it may leave, what it waits for, and why it leaves.

use std::collections::BTreeSet;
use std::time::Duration;

use promptq_common::broker::HoldKey;
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
/// The jobs on one page of those looked at to find out what they wait for, and the most pages: of more than one a lease is
/// waited.
const PAGES: (usize, usize) = (1_000, 100);
/// The most keys that they may wait for, and the longest look.
const LOOKED_AT: (usize, Duration) = (20, Duration::from_secs(10));

/// Jobs that are ready and may not run.
#[derive(Debug, Default)]
pub(super) struct Waits {
    /// Since when there are no others.
    pub(super) since: Option<Instant>,
    /// What was told to hold them back, and when it last did.
    told: Option<(BTreeSet<String>, Instant)>,
}

/// What is left of this worker's queues without being ready.
#[derive(Debug, Default)]
struct Left {
    /// How many jobs run elsewhere or wait for a time.
    jobs: u64,
    /// Whether the ledger tells of those that wait.
    told: bool,
    /// How many of them wait for something, as far as they were looked at, and for what; whether that is room in a flex tier.
    held: u64,
    keys: BTreeSet<String>,
    flex: bool,
    /// One of the keys, where all wait for money that is not there, or for a person.
    money: Option<String>,
}

impl Intake {
    /// Why an idle worker leaves, if nothing stays behind that may come back to it soon: the jobs of a worker that has died
    /// come back when their leases run out, retries when they are due. After a lease more it waits no longer.
    pub(super) async fn nothing_is_left(&self, idle: Duration) -> Option<StopReason> {
        let settings = &self.desk.settings;
        let is_over = idle >= settings.exit_when_idle.unwrap_or_default() + settings.lease
            && !self.desk.full.has_turns(settings.lease);
        match self.left(if is_over { PAGES.1 } else { 1 }, |left| left.flex).await? {
            Ok(Left { jobs: 0, .. }) => Some(StopReason::Idle),
            Ok(Left { money: Some(key), .. }) => Some(self.leaves_for(&key)),
            // Another worker may have given them their turns.
            Ok(left) if !is_over || left.flex => None,
            Ok(left) => Some(self.broke(&[]).filter(|_| !left.told).unwrap_or(StopReason::Idle)),
            Err(error) => {
                tracing::warn!(%error, "cannot ask what is left to run; not leaving yet");
                None
            }
        }
    }

    /// Why a worker leaves that was told to run once, with nothing ready but in these lanes, which may not run: for want of
    /// money where that alone holds what is left, and else as it was told, having said what does.
    pub(super) async fn over(&self, lanes: &[Lane]) -> StopReason {
        let left = match self.left(PAGES.1, |_| false).await {
            Some(Ok(Left { jobs: 0, .. })) if lanes.is_empty() => return StopReason::Once,
            Some(Ok(left)) => left,
            Some(Err(error)) => {
                tracing::warn!(%error, "cannot ask what is left to run");
                Left::default()
            }
            None => Left::default(),
        };
        let broke = match lanes {
            [] => left.money.as_deref().map(|key| self.leaves_for(key)),
            [_, ..] if self.has_retries() => None,
            [_, ..] => self.broke(lanes),
        };
        if let Some(reason) = broke {
            return reason;
        }
        let (names, mut what) = self.what_holds(lanes);
        what.extend(left.waits_for(&self.desk.limits.held(), &names));
        if !what.is_empty() {
            tracing::info!("leaving, with jobs left that may not run now, for {}", what.join("; "));
        }
        StopReason::Once
    }

    /// What is left without being ready, of which so many pages are looked at, or until it is `enough`; `None` once this worker
    /// is told to leave.
    async fn left(&self, pages: usize, enough: fn(&Left) -> bool) -> Option<Result<Left>> {
        let looking = async {
            let (mut running, mut delayed) = (0, 0);
            for (queue, _) in &self.desk.settings.queues {
                let depth = self.broker.depth(queue).await?;
                running += depth.running;
                delayed += depth.delayed;
            }
            let mut left = Left { jobs: running + delayed, told: delayed == 0, ..Left::default() };
            let is_little = usize::try_from(delayed).is_ok_and(|delayed| delayed <= PAGES.0);
            if delayed > 0 && (is_little || pages > 1) {
                self.look(&mut left, pages, enough).await?;
            }
            if left.held == left.jobs && left.keys.len() <= LOOKED_AT.0 {
                left.money = self.only_money_helps(&left.keys).await?;
            }
            Ok(left)
        };
        let mut phase = self.phase.clone();
        tokio::select! {
            biased;
            _ = phase.changed() => None,
            left = looking => Some(left),
        }
    }

    /// Looks at what the jobs wait for that do.
    async fn look(&self, left: &mut Left, mut pages: usize, enough: fn(&Left) -> bool) -> Result<()> {
        let end = Instant::now() + LOOKED_AT.1;
        for (queue, _) in &self.desk.settings.queues {
            let states = vec![State::Queued, State::Scheduled, State::Retrying];
            let filter = JobFilter { queue: Some(queue.clone()), states, ..JobFilter::default() };
            let mut cursor = None;
            loop {
                if pages == 0 || enough(left) || Instant::now() >= end {
                    return Ok(());
                }
                let page = match self.broker.ledger().list(&filter, cursor.as_deref(), PAGES.0).await {
                    Err(error) if error.kind() == Kind::Unsupported => return Ok(()),
                    page => page?,
                };
                pages -= 1;
                left.told |= !page.items.is_empty();
                page.items.into_iter().filter_map(|job| job.hold).for_each(|hold| left.note(&hold));
                cursor = page.next;
                if cursor.is_none() {
                    break;
                }
            }
        }
        Ok(())
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

    /// One of the keys, if each stands for money that is not there, or for a person.
    async fn only_money_helps(&self, keys: &BTreeSet<String>) -> Result<Option<String>> {
        let named = |held: Vec<Held>| held.into_iter().map(|held| held.key).collect::<BTreeSet<_>>();
        let (held, spent) = (named(self.desk.limits.held()), named(self.desk.limits.spent()));
        for key in keys.difference(&spent) {
            // What something else holds here as well may go on without a person.
            if held.contains(key) || look(self.broker.ledger(), key).await?.is_none_or(|view| view.lacks.is_none()) {
                return Ok(None);
            }
        }
        Ok(keys.first().cloned())
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

impl Left {
    /// One more waits for this.
    fn note(&mut self, hold: &HoldKey) {
        self.held += 1;
        self.flex |= hold.flex().is_some();
        if self.keys.len() <= LOOKED_AT.0 {
            self.keys.insert(hold.limit_key());
        }
    }

    /// In words, what is not among `names`; all that holds jobs back here if nobody tells.
    fn waits_for(&self, held: &[Held], names: &BTreeSet<String>) -> Vec<String> {
        if !self.told {
            return held.iter().filter(|held| !names.contains(&held.key)).map(told).collect();
        }
        let of = |key: &String| match HoldKey::of_limit(key).flex() {
            Some(tier) => format!("room in the flex tier of {tier}"),
            None => held.iter().find(|held| held.key == *key).map_or_else(|| key.clone(), told),
        };
        self.keys.difference(names).map(of).collect()
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
    use promptq_common::outcome::FailureClass;

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

    #[test]
    fn what_the_jobs_wait_for_that_are_left_is_named_and_nothing_else() {
        let held = |key: &str| Held {
            key: key.into(),
            class: FailureClass::Throttled,
            detail: "said so".into(),
            since: Timestamp::now(),
            until: Timestamp::now(),
            probing: false,
            cap: None,
            spent: false,
            to_mend: false,
        };
        let held = ["acme", "idle", "lane"].map(held);
        let names = BTreeSet::from(["lane".to_owned()]);
        let mut left = Left::default();
        assert_eq!(left.waits_for(&held, &names), ["acme (said so)", "idle (said so)"], "nobody tells of what waits");
        left.told = true;
        assert!(left.waits_for(&held, &names).is_empty(), "it is scheduled");
        for hold in ["limit:acme", "limit:flex:acme/m", "limit:lane", "batch:b"] {
            left.note(&hold.parse().unwrap());
        }
        let said = left.waits_for(&held, &names).join("; ");
        assert_eq!(said, "acme (said so); batch:b; room in the flex tier of acme/m");
    }
}
