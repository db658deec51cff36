//! Who asks, and whether they may: the bearer key of a request, its role and queues, and how often it may ask.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use governor::clock::{Clock, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use promptq_common::job::Queue;

use super::key::{Key, Role, Secret};
use super::keyring::{Refused, Ring};
use super::problem::{Problem, Result};

/// Who asks.
#[derive(Clone, Debug)]
pub(super) struct Caller(Option<Arc<Key>>);

impl Caller {
    /// Who the head of a request says it is: anybody, where nobody needs a key.
    pub(super) async fn of(headers: &HeaderMap, ring: &Ring) -> Result<Self> {
        if ring.is_open() {
            return Ok(Self(None));
        }
        let Some(said) = headers.get(AUTHORIZATION) else {
            return Err(Problem::new("no-key", "send the key: Authorization: Bearer pq_…"));
        };
        let said = said.to_str().unwrap_or_default().split_once(' ');
        let bearer = said.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, text)| text.trim());
        let unknown = || Problem::new("bad-key", "no such key: it was mistyped, or revoked");
        let secret = bearer.and_then(Secret::read).ok_or_else(unknown)?;
        match ring.find(&secret).await {
            Ok(key) => Ok(Self(Some(key))),
            Err(Refused::Unknown) => Err(unknown()),
            Err(Refused::Expired) => Err(Problem::new("bad-key", format!("the key {} has expired", secret.id()))),
        }
    }

    /// Refuses who may not do what takes this role.
    pub(super) fn must_be(&self, role: Role) -> Result<()> {
        match &self.0 {
            Some(key) if key.role < role => {
                let what = format!("the key {} is a {}'s; this takes a {role}'s", key.id, key.role);
                Err(Problem::new("not-allowed", what))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Whether it may do anything in this queue.
    pub(super) fn covers(&self, queue: &Queue) -> bool {
        self.0.as_ref().is_none_or(|key| key.covers(queue))
    }

    /// Whether it may do things in every queue.
    pub(super) fn covers_all(&self) -> bool {
        self.0.as_ref().is_none_or(|key| key.queues.is_empty())
    }

    /// Refuses who may do nothing in this queue.
    pub(super) fn must_cover(&self, queue: &Queue) -> Result<()> {
        if self.covers(queue) {
            return Ok(());
        }
        Err(Problem::new("not-allowed", format!("the key {} is not for queue {queue}", self.id())))
    }

    /// Its key's id, if it has one.
    pub(super) fn key(&self) -> Option<&str> {
        self.0.as_ref().map(|key| &*key.id)
    }

    /// What logs and audit lines call it.
    pub(super) fn id(&self) -> &str {
        self.key().unwrap_or("anybody")
    }
}

/// How often each key asks; who needs no key may ask as often as they like.
#[derive(Debug)]
pub(super) struct Rates {
    standard: u32,
    limiters: Mutex<HashMap<String, (u32, Arc<Limiter>)>>,
    clock: DefaultClock,
}

type Limiter = RateLimiter<NotKeyed, InMemoryState, DefaultClock, StateInformationMiddleware>;

/// How a key stands with its rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    /// So many requests a second.
    rate: u32,
    /// So many of them are left at once.
    left: u32,
    /// In so many seconds there is room again; 0 if there is.
    wait: u64,
}

impl Standing {
    /// What is told to clients that keep to it by themselves: `RateLimit-Policy` and `RateLimit`.
    pub(super) fn headers(self) -> [(HeaderName, HeaderValue); 2] {
        let Self { rate, left, wait } = self;
        let [policy, limit] = [format!("\"key\";q={rate};w=1"), format!("\"key\";r={left};t={}", wait.max(1))];
        let value = |text: String| HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""));
        [
            (HeaderName::from_static("ratelimit-policy"), value(policy)),
            (HeaderName::from_static("ratelimit"), value(limit)),
        ]
    }

    /// Refuses a request for which there is no room.
    pub(super) fn allow(self, caller: &Caller) -> Result<()> {
        if self.wait == 0 {
            return Ok(());
        }
        let what = format!("the key {} may ask {} times a second", caller.id(), self.rate);
        Err(Problem::new("too-many-requests", what).after(self.wait))
    }
}

impl Rates {
    /// So many requests a second for a key that says nothing else.
    pub(super) fn new(standard: u32) -> Self {
        Self { standard, limiters: Mutex::default(), clock: DefaultClock::default() }
    }

    /// Counts a request; `None` of who has no key.
    pub(super) fn count(&self, caller: &Caller) -> Option<Standing> {
        let key = caller.0.as_ref()?;
        let rate = key.rate.unwrap_or(self.standard);
        Some(match self.limiter(&key.id, rate).check() {
            Ok(seen) => Standing { rate, left: seen.remaining_burst_capacity(), wait: 0 },
            Err(early) => {
                let wait = early.wait_time_from(self.clock.now()).as_millis().div_ceil(1_000).max(1);
                Standing { rate, left: 0, wait: wait.try_into().unwrap_or(1) }
            }
        })
    }

    /// As many of them as there are keys: what was of one that is gone goes when another comes.
    fn limiter(&self, id: &str, rate: u32) -> Arc<Limiter> {
        /// More than are ever used at once; a limiter that is forgotten begins full again.
        const MOST: usize = 20_000;
        let mut limiters = self.limiters.lock().unwrap_or_else(PoisonError::into_inner);
        match limiters.get(id) {
            Some((known, limiter)) if *known == rate => Arc::clone(limiter),
            _ => {
                if limiters.len() >= MOST {
                    limiters.clear();
                }
                let quota = Quota::per_second(NonZeroU32::new(rate).unwrap_or(NonZeroU32::MIN));
                let limiter = Arc::new(RateLimiter::direct(quota).with_middleware());
                limiters.insert(id.to_owned(), (rate, Arc::clone(&limiter)));
                limiter
            }
        }
    }
}

#[cfg(test)]
impl Caller {
    /// Whoever asks where nobody needs a key.
    pub(super) fn anybody() -> Self {
        Self(None)
    }

    /// One with a key of its own.
    pub(super) fn some(role: Role, queues: &[&str], rate: Option<u32>) -> Self {
        let queues = queues.iter().map(|name| Queue::new(name).unwrap()).collect();
        let key = Key { rate, ..Key::of(&Secret::random(), "ci".into(), role, queues) };
        Self(Some(Arc::new(key)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_may_do_what_lesser_ones_may_and_only_in_its_queues() {
        let roles = [Role::Viewer, Role::Submitter, Role::Operator, Role::Admin];
        for (at, role) in roles.into_iter().enumerate() {
            for (least, wanted) in roles.into_iter().enumerate() {
                assert_eq!(Caller::some(role, &[], None).must_be(wanted).is_ok(), at >= least, "{role} as {wanted}");
            }
        }
        let caller = Caller::some(Role::Admin, &["a"], None);
        assert!(caller.must_cover(&Queue::new("a").unwrap()).is_ok() && !caller.covers_all());
        assert_eq!(caller.must_cover(&Queue::new("b").unwrap()).unwrap_err().status(), 403);
    }

    #[test]
    fn each_key_has_its_own_rate_and_what_is_above_it_is_told_when_to_come() {
        let rates = Rates::new(3);
        let caller = |rate| Caller::some(Role::Viewer, &[], rate);
        let (slow, quick) = (caller(None), caller(Some(1_000)));
        let through = |caller: &Caller| {
            let standings = (0..100).filter_map(|_| rates.count(caller));
            standings.filter(|standing| standing.allow(caller).is_ok()).count()
        };
        assert!((3..10).contains(&through(&slow)), "one a third of a second and three at once");
        assert_eq!(through(&quick), 100);
        let refused = (0..9).find_map(|_| rates.count(&slow)?.allow(&slow).err()).unwrap();
        assert_eq!(refused.status(), 429);
        assert!(rates.count(&Caller::anybody()).is_none());
    }

    #[test]
    fn a_key_is_told_what_is_left_of_its_rate() {
        let (rates, key) = (Rates::new(50), Caller::some(Role::Viewer, &[], None));
        let told =
            |standing: Standing| standing.headers().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()));
        let first = rates.count(&key).unwrap();
        assert_eq!(told(first), ["ratelimit-policy: \"key\";q=50;w=1", "ratelimit: \"key\";r=49;t=1"]);
        let next = rates.count(&key).unwrap();
        assert!(next.left <= first.left && next.left >= 40, "{next:?}");
        let refused = (0..100_000).find_map(|_| rates.count(&key).filter(|standing| standing.wait > 0)).unwrap();
        assert_eq!(told(refused)[1], "ratelimit: \"key\";r=0;t=1");
    }
}
