//! Which jobs of a forecast have a stored answer, which costs nothing: so many are looked up, for so long, and it says so.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use promptq_common::error::Kind;
use promptq_common::job::Job;
use promptq_common::store::{ReuseKey, Store};
use promptq_common::time::Timestamp;
use promptq_worker::runner::Runner;
use tokio::time::{Instant, timeout};

use super::Share;

/// The most that are looked up: each reads an answer, which may be 8 MiB.
const MOST: u64 = 500;
/// And the longest that all of that takes; one look takes a fifth of it.
const LONGEST: Duration = Duration::from_secs(10);
const AT_ONCE: usize = 8;

/// What a job's answer would be found by, and how old it may be.
#[derive(Clone, Debug)]
pub(super) struct Reusable {
    keys: Vec<ReuseKey>,
    oldest: Duration,
}

/// Where answers are kept, and what was found there.
#[derive(Clone, Debug, Default)]
pub(super) struct Stored {
    store: Option<Store>,
    until: Option<Instant>,
    /// Jobs that take stored answers.
    pub(super) asked: u64,
    pub(super) looked_up: u64,
    /// Of those, the ones that have one.
    pub(super) found: u64,
    /// Why nothing more is looked up, where it is the store's fault.
    pub(super) trouble: Option<String>,
}

impl Reusable {
    pub(super) fn of(job: &Job, routes: &[Arc<dyn Runner>]) -> Option<Self> {
        let oldest = job.extras.as_ref()?.reuse?;
        Some(Self { keys: routes.iter().filter_map(|runner| runner.reuse_key(job)).collect(), oldest })
    }
}

impl Stored {
    pub(super) fn new(store: Option<Store>) -> Self {
        let trouble = store.is_none().then(|| "no store is set here (--store)".to_owned());
        Self { store, trouble, ..Self::default() }
    }

    /// Those that have no stored answer, or were not looked up.
    pub(super) async fn without(&mut self, shares: Vec<Share>) -> Vec<Share> {
        let (asking, mut called): (Vec<_>, Vec<_>) = shares.into_iter().partition(|share| share.reusable.is_some());
        self.asked += asking.len() as u64;
        let mut asking = asking.into_iter();
        while let Some(store) = self.store.clone().filter(|_| self.goes_on()) {
            let left = usize::try_from(MOST - self.looked_up).unwrap_or(AT_ONCE);
            let some: Vec<_> = asking.by_ref().take(AT_ONCE.min(left)).collect();
            if some.is_empty() {
                break;
            }
            let looks: Vec<_> = some.iter().map(|share| has_answer(&store, share.reusable.as_ref())).collect();
            let found = join_all(looks).await;
            for (share, found) in some.into_iter().zip(found) {
                self.looked_up += u64::from(found.is_ok());
                match found {
                    Ok(true) => self.found += 1,
                    Ok(false) => called.push(share),
                    Err(why) => {
                        self.trouble = Some(why);
                        called.push(share);
                    }
                }
            }
        }
        called.extend(asking);
        called
    }

    fn goes_on(&mut self) -> bool {
        let until = *self.until.get_or_insert_with(|| Instant::now() + LONGEST);
        self.trouble.is_none() && self.looked_up < MOST && Instant::now() < until
    }
}

/// Whether there is one under any of the keys; why nobody knows, where the store fails. A damaged one is none.
async fn has_answer(store: &Store, reusable: Option<&Reusable>) -> Result<bool, String> {
    for key in reusable.iter().flat_map(|reusable| &reusable.keys) {
        let kept = match timeout(LONGEST / 5, store.reusable(key)).await {
            Ok(Ok(kept)) => kept,
            Ok(Err(error)) if matches!(error.kind(), Kind::Corrupt | Kind::TooLarge) => None,
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err("the store does not answer".to_owned()),
        };
        let is_young = |at| reusable.is_some_and(|reusable| Timestamp::now().since(at) <= reusable.oldest);
        if kept.is_some_and(|kept| is_young(kept.at)) {
            return Ok(true);
        }
    }
    Ok(false)
}
