//! How limit keys stand: what their fleet shares of them, and what workers say holds jobs back. What is said of that to
//! people is `words.rs`, in tables `brief.rs`; which cap it is, `binding.rs`; which of them a queue, a batch or a job waits for is `waits.rs`, `follow.rs` while it goes on.

pub(crate) mod binding;
pub mod brief;
pub(crate) mod follow;
pub mod sheet;
pub mod waits;
pub mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use promptq_common::error::Kind;
use promptq_common::job::Queue;
use promptq_common::ledger::{HeldKey, Ledger, WorkerReport};
use promptq_common::limits::{self, Cap, CapView, Per, PoolView};
use promptq_common::outcome::FailureClass;
use promptq_common::time::Timestamp;
use serde_json::{Value, json};

use crate::problem::Result;

/// Keys that are looked up at the same time.
const AT_ONCE: usize = 16;
/// A worker's word that a rate limit keeps its jobs back counts for so long after its own end of it: it tells of these
/// every 10 s, and somewhat late where a ledger is slow.
const FRESH: Duration = Duration::from_secs(15);

/// One limit key.
#[derive(Clone, Debug)]
pub struct Standing {
    /// The key: of a rule, of a budget, or of provider and model.
    pub key: String,
    /// What its fleet shares; `None` where nothing is kept of it, or limits cannot be shared.
    pub shared: Option<PoolView>,
    /// What workers say holds its jobs back, the gravest first.
    pub held: Vec<Held>,
    /// When this was so.
    pub at: Timestamp,
}

/// One thing that holds jobs back, at all the workers that say so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// `throttled`, `capacity` or `account`.
    pub class: FailureClass,
    /// What the other side said to one of them, or which limit it is.
    pub detail: String,
    /// Since when, at the first of them.
    pub since: Timestamp,
    /// When the first of them tries it again.
    pub until: Timestamp,
    /// Whether a job of some worker tries it now.
    pub probing: bool,
    /// Who says so.
    pub workers: Vec<String>,
    /// Queues and models of the jobs behind it, as far as they are told.
    pub lanes: BTreeSet<(Queue, Option<String>)>,
    /// It is not shut: its endpoint has too much to do, and gets so many calls at once from these workers together.
    pub at_once: Option<u32>,
    /// The cap that has nothing left, as one of them was told last.
    pub cap: Option<Cap>,
}

/// What matters most of a key now.
#[derive(Clone, Copy, Debug)]
pub enum State<'a> {
    /// Its account does not work.
    Refused(&'a Held),
    /// Its provider does not work.
    Down(&'a Held),
    /// Nobody calls until then, after a refusal.
    Frozen(Timestamp),
    /// All of this cap is used; there is room again then, if somebody has said so.
    Full(&'a CapView, Option<Timestamp>),
    /// Something else holds jobs back for a time.
    Throttled(&'a Held),
    /// Its endpoint has too much to do, and gets only so many calls at once.
    Bounded(&'a Held, u32),
    /// It is used with caution, this share of its limits, after refusals.
    Cautious(f64),
    /// Nothing holds it back.
    Open,
}

/// Every key that there is anything to say of, by name; and whether limits are shared here.
///
/// # Errors
/// As the ledger's.
pub async fn every(ledger: &dyn Ledger) -> Result<(Vec<Standing>, bool)> {
    let workers = ledger.workers().await?;
    let (mut keys, is_shared) = kept(ledger).await?;
    keys.extend(workers.iter().flat_map(|worker| &worker.held).map(|held| held.key.clone()));
    Ok((several(ledger, keys, &workers).await?, is_shared))
}

/// The keys that something is kept of; and whether limits can be shared here.
pub(crate) async fn kept(ledger: &dyn Ledger) -> Result<(BTreeSet<String>, bool)> {
    match ledger.limits().await {
        Ok(keys) => Ok((keys.into_iter().collect(), true)),
        Err(error) if error.kind() == Kind::Unsupported => Ok((BTreeSet::new(), false)),
        Err(error) => Err(error.into()),
    }
}

/// These keys.
pub(crate) async fn several(
    ledger: &dyn Ledger,
    keys: BTreeSet<String>,
    workers: &[WorkerReport],
) -> Result<Vec<Standing>> {
    stream::iter(keys.into_iter().map(|key| one(ledger, key, workers))).buffered(AT_ONCE).try_collect().await
}

/// One key.
pub(crate) async fn one(ledger: &dyn Ledger, key: String, workers: &[WorkerReport]) -> Result<Standing> {
    let shared = match limits::look(ledger, &key).await {
        Ok(shared) => shared,
        Err(error) if error.kind() == Kind::Unsupported => None,
        Err(error) => return Err(error.into()),
    };
    Ok(Standing::new(key, shared, workers, Timestamp::now()))
}

impl Standing {
    /// What is known of a key at a moment.
    pub fn new(key: String, shared: Option<PoolView>, workers: &[WorkerReport], at: Timestamp) -> Self {
        let held = held(&key, workers, at);
        Self { key, shared, held, at }
    }

    /// What matters most of it.
    pub fn state(&self) -> State<'_> {
        let of = |class| self.held.iter().find(|held| held.class == class && held.at_once.is_none());
        if let Some(held) = of(FailureClass::Account) {
            return State::Refused(held);
        }
        if let Some(held) = of(FailureClass::Capacity) {
            return State::Down(held);
        }
        if let Some(until) = self.frozen_until() {
            return State::Frozen(until);
        }
        let throttled = of(FailureClass::Throttled);
        if let Some(cap) = self.binding(throttled) {
            // Of what never ages nothing comes back by itself.
            let told = throttled.filter(|_| cap.cap.per != Per::Ever);
            return State::Full(cap, told.map(|held| held.until).filter(|until| *until > self.at));
        }
        if let Some(held) = throttled {
            return State::Throttled(held);
        }
        self.easy()
    }

    /// Its state while nothing shuts it, and no limit of it is used up.
    fn easy(&self) -> State<'_> {
        if let Some((held, at_once)) = self.held.iter().find_map(|held| Some((held, held.at_once?))) {
            return State::Bounded(held, at_once);
        }
        match self.shared.as_ref().map_or(1.0, |shared| shared.rate) {
            rate if rate < 1.0 => State::Cautious(rate),
            _ => State::Open,
        }
    }

    /// Whether jobs wait for it, or would.
    pub fn holds(&self) -> bool {
        !matches!(self.state(), State::Open | State::Cautious(_))
    }

    /// Until when nobody calls, after a refusal.
    pub fn frozen_until(&self) -> Option<Timestamp> {
        let millis = u64::try_from(self.shared.as_ref()?.frozen_for).ok().filter(|millis| *millis > 0)?;
        Some(self.at + Duration::from_millis(millis))
    }

    /// The caps there are; one that was set and taken back, and is configured nowhere, is none.
    pub fn caps(&self) -> impl Iterator<Item = &CapView> {
        let caps = self.shared.iter().flat_map(|shared| &shared.caps);
        caps.filter(|cap| cap.set.is_some() || cap.configured < i64::MAX)
    }

    /// It as one object.
    pub fn object(&self) -> Value {
        let shared = self.shared.as_ref();
        json!({
            "key": self.key,
            "state": words::word(self.state()),
            "says": words::line(self),
            "caps": self.caps().map(words::cap).collect::<Vec<_>>(),
            "rate": shared.map(|shared| shared.rate),
            "frozen_until": self.frozen_until(),
            "refusal": shared.and_then(|shared| shared.why.as_deref()),
            "workers": shared.map(|shared| shared.workers),
            "waiting": shared.map(|shared| shared.starving),
            "blocked": self.blocked(),
        })
    }

    /// What workers say holds its jobs back, as data.
    pub fn blocked(&self) -> Value {
        let lane = |(queue, model): &(Queue, Option<String>)| json!({ "queue": queue, "model": model });
        let held = |held: &Held| {
            json!({
                "class": held.class,
                "detail": held.detail,
                "since": held.since,
                "until": held.until,
                "probing": held.probing,
                "workers": held.workers,
                "lanes": held.lanes.iter().map(lane).collect::<Vec<_>>(),
                "at_once": held.at_once,
            })
        };
        self.held.iter().map(held).collect()
    }
}

/// What workers say holds back the jobs of a key, the gravest first.
fn held(key: &str, workers: &[WorkerReport], at: Timestamp) -> Vec<Held> {
    const GRAVEST: [FailureClass; 2] = [FailureClass::Account, FailureClass::Capacity];
    let mut all: BTreeMap<(bool, usize), Held> = BTreeMap::new();
    let fresh = |told: &&HeldKey| told.class != FailureClass::Throttled || told.until + FRESH > at;
    for worker in workers {
        for told in worker.held.iter().filter(|told| told.key == key).filter(fresh) {
            let place = GRAVEST.iter().position(|class| *class == told.class).unwrap_or(GRAVEST.len());
            let held = all.entry((told.at_once.is_some(), place)).or_insert_with(|| Held {
                class: told.class,
                detail: told.detail.clone(),
                since: told.since,
                until: told.until,
                probing: false,
                workers: Vec::new(),
                lanes: BTreeSet::new(),
                at_once: None,
                cap: None,
            });
            held.at_once = told.at_once.map(|most| most.saturating_add(held.at_once.unwrap_or_default()));
            held.since = held.since.min(told.since);
            held.until = held.until.min(told.until);
            held.probing |= told.probing;
            held.cap = held.cap.or(told.cap);
            held.workers.push(worker.id.as_str().to_owned());
            held.lanes.extend(told.lanes.iter().cloned());
        }
    }
    all.into_values().collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use promptq_common::broker::WorkerId;
    use promptq_common::limits::Measure;

    use super::*;

    pub(crate) const NOW: Timestamp = Timestamp::from_millis(100_000);

    pub(crate) fn worker(name: &str, held: Vec<HeldKey>) -> WorkerReport {
        WorkerReport {
            id: WorkerId::known(name),
            host: "h".into(),
            pid: 1,
            version: "0".into(),
            started_at: NOW,
            seen_at: NOW,
            slots: 4,
            running: 1,
            queues: vec!["default:2".into()],
            draining: false,
            blocked: None,
            held,
            paces: Vec::new(),
        }
    }

    /// Held since 10 s, for 60 s more.
    pub(crate) fn told(key: &str, class: FailureClass, detail: &str) -> HeldKey {
        HeldKey {
            key: key.into(),
            class,
            detail: detail.into(),
            since: Timestamp::from_millis(90_000),
            until: Timestamp::from_millis(160_000),
            probing: false,
            lanes: vec![(Queue::standard(), Some("gpt".into()))],
            at_once: None,
            cap: None,
        }
    }

    /// 500 requests and 90,000 tokens a minute.
    pub(crate) fn view(requests: (i64, i64), tokens: (i64, i64)) -> PoolView {
        let cap = |measure, most, (used, held)| CapView {
            cap: Cap { measure, per: Per::Minute, most },
            configured: most,
            set: None,
            learned: None,
            used,
            held,
            in_calls: held,
        };
        PoolView {
            caps: vec![cap(Measure::Requests, 500, requests), cap(Measure::Tokens, 90_000, tokens)],
            frozen_for: 0,
            why: None,
            rate: 1.0,
            workers: 2,
            starving: 0,
            lacks: None,
        }
    }

    pub(crate) fn standing(shared: Option<PoolView>, workers: &[WorkerReport]) -> Standing {
        Standing::new("acme/gpt".into(), shared, workers, NOW)
    }

    fn word(shared: Option<PoolView>, held: &[HeldKey]) -> &'static str {
        words::word(standing(shared, &[worker("w", held.to_vec())]).state())
    }

    #[test]
    fn the_gravest_thing_that_is_said_of_a_key_is_its_state() {
        let (low, full) = (view((200, 10), (0, 0)), view((200, 10), (80_000, 9_000)));
        let frozen = PoolView { frozen_for: 9_000, ..full.clone() };
        let account = told("acme/gpt", FailureClass::Account, "no credit");
        let down = told("acme/gpt", FailureClass::Capacity, "refused");
        let slow = told("acme/gpt", FailureClass::Throttled, "slow down");
        assert_eq!(word(Some(frozen.clone()), &[slow.clone(), down.clone(), account]), "refused");
        assert_eq!(word(Some(frozen.clone()), &[slow.clone(), down.clone()]), "unreachable");
        assert_eq!(word(Some(frozen), std::slice::from_ref(&slow)), "frozen");
        assert_eq!(word(Some(full), &[]), "full");
        assert_eq!(word(Some(low.clone()), std::slice::from_ref(&slow)), "throttled");
        assert_eq!(word(Some(view((300, 10), (0, 0))), std::slice::from_ref(&slow)), "throttled", "by the provider");
        assert_eq!(word(None, std::slice::from_ref(&slow)), "throttled", "a gate of a key without a rule");
        assert_eq!(word(Some(PoolView { rate: 0.5, ..low.clone() }), &[]), "cautious");
        assert_eq!(word(Some(low.clone()), &[told("acme/gpt-2", FailureClass::Account, "")]), "open", "another key's");
        let bounded = HeldKey { at_once: Some(9), ..down };
        assert_eq!(word(Some(PoolView { rate: 0.5, ..low }), std::slice::from_ref(&bounded)), "bounded");
        assert_eq!(word(None, &[bounded, slow]), "throttled");
        assert_eq!(word(None, &[]), "open");
    }

    #[test]
    fn the_cap_that_binds_is_the_one_that_workers_name_or_else_the_fullest() {
        let named = |shared: PoolView, held: &[HeldKey]| {
            let standing = standing(Some(shared), &[worker("w", held.to_vec())]);
            let State::Full(cap, until) = standing.state() else { return None };
            Some((cap.cap.measure, until.is_some()))
        };
        let cap = Some(view((0, 0), (0, 0)).caps[0].cap);
        let short =
            HeldKey { cap, ..told("acme/gpt", FailureClass::Throttled, "all of 500 requests/min is used; …") };
        assert_eq!(named(view((90, 0), (85_000, 0)), std::slice::from_ref(&short)), Some((Measure::Requests, true)));
        let mut for_ever = view((500, 0), (0, 0));
        for_ever.caps[0].cap.per = Per::Ever;
        assert_eq!(named(for_ever, std::slice::from_ref(&short)), Some((Measure::Requests, false)));
        let past = HeldKey { until: Timestamp::from_millis(100_000 - 15_000), ..short };
        assert_eq!(named(view((90, 0), (80_000, 0)), &[past]), None, "of a worker that told it long ago");
        assert_eq!(named(view((480, 0), (89_000, 0)), &[]), Some((Measure::Tokens, false)));
        let starving = PoolView { starving: 1, ..view((90, 0), (50_000, 0)) };
        assert_eq!(named(starving, &[]), Some((Measure::Tokens, false)), "large jobs leave much of it");
        assert_eq!(named(PoolView { starving: 1, ..view((40, 10), (0, 0)) }, &[]), None, "a tenth goes at once");
        let mut taken_back = view((500, 0), (0, 0));
        taken_back.caps[0].configured = i64::MAX;
        assert_eq!(named(taken_back, &[]), None);
    }

    #[test]
    fn what_several_workers_say_is_one_thing() {
        let later = HeldKey {
            since: Timestamp::from_millis(80_000),
            until: Timestamp::from_millis(190_000),
            probing: true,
            lanes: vec![(Queue::standard(), None)],
            ..told("acme/gpt", FailureClass::Account, "no credit at all")
        };
        let workers =
            [worker("a", vec![told("acme/gpt", FailureClass::Account, "no credit")]), worker("b", vec![later])];
        let standing = standing(None, &workers);
        let [held] = standing.held.as_slice() else { panic!("{:?}", standing.held) };
        assert_eq!((held.since.as_millis(), held.until.as_millis(), held.probing), (80_000, 160_000, true));
        assert_eq!((held.workers.join(" "), held.lanes.len()), ("a b".to_owned(), 2));
        assert_eq!(held.detail, "no credit");
        let bounded = |at_once| HeldKey { at_once, ..told("acme/gpt", FailureClass::Capacity, "too much to do") };
        let workers = [worker("a", vec![bounded(Some(9))]), worker("b", vec![bounded(Some(3)), bounded(None)])];
        let all = Standing::new("acme/gpt".into(), None, &workers, NOW);
        assert_eq!(all.held.iter().map(|held| held.at_once).collect::<Vec<_>>(), [None, Some(12)]);
    }
}
