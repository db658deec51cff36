//! Rate limits of keys without a rule, shared: who is refused tells the key's shared state, and whoever was refused lately
//! looks there, once a second while it calls or waits. Nobody asks for a key that it was never refused for: of a freeze
//! by others it learns with a refusal of its own, and from then on for ten minutes by looking.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, timeout};

use super::asking::ANSWER;
use super::breaker::Gate;
use super::{Limits, Table, shared};
use crate::error::{Error, Kind, Result};
use crate::ledger::Ledger;
use crate::outcome::{FailureClass, Outcome};

/// Between two looks at a key.
const LOOK: Duration = Duration::from_secs(1);
/// A key is looked at for so long after it was frozen last.
const LATELY: Duration = Duration::from_secs(600);
/// Keys looked at; what is refused beyond them holds back this worker alone.
const KEYS: usize = 100;

/// What a worker knows of a key that was frozen lately.
#[derive(Debug)]
pub(super) struct Frost {
    frozen_at: Instant,
    looked_at: Option<Instant>,
    untold: Option<Untold>,
}

/// A freeze that the others have not been told of: until when, and why.
type Untold = (Instant, String);

impl Limits {
    /// Shares rate limits of keys without a rule, until it is dropped. Where `ledger` shares no limits, each worker meets
    /// its own.
    pub async fn keep_freezing(&self, ledger: &dyn Ledger) {
        loop {
            let due = self.table().frosts_due();
            let shared = join_all(due.into_iter().map(|(key, untold)| self.share_frost(ledger, key, untold))).await;
            for error in shared.into_iter().filter_map(Result::err) {
                if error.kind() == Kind::Unsupported {
                    return;
                }
                tracing::debug!(%error, "cannot ask or tell how long a key is frozen; trying again");
            }
            let is_idle = self.table().frosts.is_empty();
            tokio::select! {
                () = self.0.freezing.notified() => {}
                () = tokio::time::sleep(LOOK), if !is_idle => {}
            }
        }
    }

    async fn share_frost(&self, ledger: &dyn Ledger, key: Arc<str>, untold: Option<Untold>) -> Result<()> {
        let asked = Instant::now();
        let answer = async {
            let Some((until, why)) = &untold else { return shared::look(ledger, &key).await };
            let wait = until.saturating_duration_since(asked).as_millis();
            let wait = i64::try_from(wait).unwrap_or(i64::MAX);
            shared::change(ledger, &key, |pool, now| pool.freeze(now, wait, why)).await.map(Some)
        };
        let late = |_| Err(Error::new(Kind::TimedOut, "share a freeze", "no answer in time"));
        let view = timeout(ANSWER, answer).await.unwrap_or_else(late)?;
        let mut table = self.table();
        let Some(frost) = table.frosts.get_mut(&key) else { return Ok(()) };
        frost.untold.take_if(|more| Some(&*more) == untold.as_ref());
        let Some(view) = view.filter(|view| view.frozen_for > 0) else { return Ok(()) };
        frost.frozen_at = asked;
        let until = Instant::now() + Duration::from_millis(u64::try_from(view.frozen_for).unwrap_or_default());
        let why = view.why.as_deref().unwrap_or("another worker was refused");
        if table.gates.get_mut(&key).is_some_and(|gate| gate.freeze((asked, until), why)) {
            self.0.changed.notify_one();
        }
        Ok(())
    }

    /// A call that no rule hears of came to this: others are told if its key is frozen.
    pub(super) fn note_frost(&self, key: &Arc<str>, outcome: &Outcome) {
        let is_throttled = |class: FailureClass| class == FailureClass::Throttled;
        if !matches!(outcome, Outcome::Failure(failure) if is_throttled(failure.class)) {
            return;
        }
        let (mut table, now) = (self.table(), Instant::now());
        let shut = table.gates.get(key).and_then(|gate| gate.shut.as_ref()).filter(|shut| is_throttled(shut.class));
        let Some((until, why)) = shut.map(|shut| (shut.until, shut.detail.clone())) else { return };
        table.frosts.retain(|_, frost| frost.is_kept(now));
        if table.frosts.len() >= KEYS && !table.frosts.contains_key(key) {
            return;
        }
        let new = || Frost { frozen_at: now, looked_at: None, untold: None };
        let frost = table.frosts.entry(Arc::clone(key)).or_insert_with(new);
        frost.frozen_at = now;
        if frost.untold.as_ref().is_none_or(|(known, _)| *known < until) {
            frost.untold = Some((until, why));
        }
        self.0.freezing.notify_one();
    }
}

impl Frost {
    fn is_kept(&self, now: Instant) -> bool {
        self.untold.as_ref().is_some_and(|(until, _)| *until > now) || now < self.frozen_at + LATELY
    }
}

impl Table {
    /// The keys to tell of or to look at now.
    fn frosts_due(&mut self) -> Vec<(Arc<str>, Option<Untold>)> {
        let now = Instant::now();
        self.frosts.retain(|_, frost| frost.is_kept(now));
        let mut due = Vec::new();
        for (key, frost) in &mut self.frosts {
            let is_late = frost.looked_at.is_none_or(|at| now >= at + LOOK);
            if is_late && (frost.untold.is_some() || self.gates.get_mut(key).is_some_and(Gate::was_used)) {
                frost.looked_at = Some(now);
                due.push((Arc::clone(key), frost.untold.clone()));
            }
        }
        due
    }
}
