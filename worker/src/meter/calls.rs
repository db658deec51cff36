//! What is counted of calls to providers and of the wait for their limits, by provider and model.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use promptq_common::limits::account_of;
use promptq_common::outcome::{FailureClass, Outcome, Usage, Usd};
use promptq_common::price::Prices;
use promptq_common::telemetry::label::OTHER;
use promptq_common::telemetry::metric as m;
use promptq_common::telemetry::recorder::{Counter, Histogram, Recorder, Sum};

use super::lock;

/// Models that are told apart: anybody may name one.
const MODELS: usize = 100;

/// Every model that was called, or that the settings name.
#[derive(Debug)]
pub(super) struct Providers {
    recorder: &'static Recorder,
    /// The limit keys that the settings name.
    named: BTreeSet<String>,
    prices: Prices,
    calls: Mutex<HashMap<String, Arc<Calls>>>,
    waits: Mutex<HashMap<String, Histogram>>,
}

impl Providers {
    pub(super) fn new(recorder: &'static Recorder, named: BTreeSet<String>, prices: Prices) -> Self {
        let providers = Self { recorder, named, prices, calls: Mutex::default(), waits: Mutex::default() };
        for key in &providers.named {
            drop(providers.calls(key));
        }
        providers
    }

    /// A call under a limit key has come to its end.
    pub(super) fn called(&self, key: &str, outcome: &Outcome, took: Duration) {
        self.calls(key).note(outcome, took);
    }

    /// A job had to wait so long for the limits of a key.
    pub(super) fn waited(&self, key: &str, length: Duration) {
        let (provider, mut waits) = (provider_of(key), lock(&self.waits));
        if let Some(wait) = waits.get(provider) {
            return wait.record(length);
        }
        let wait = self.recorder.histogram(&m::LIMIT_WAIT, &[provider]);
        wait.record(length);
        waits.insert(provider.to_owned(), wait);
    }

    fn calls(&self, key: &str) -> Arc<Calls> {
        let mut calls = lock(&self.calls);
        if let Some(known) = calls.get(key) {
            return Arc::clone(known);
        }
        let (provider, model) = (provider_of(key), key.split_once(['/', ':']).map_or(key, |(_, model)| model));
        let is_known = self.named.contains(key) || model == provider || self.prices.of(provider, model).is_some();
        let (name, model) = if is_known && calls.len() < MODELS {
            (key.to_owned(), model)
        } else {
            (format!("{provider}/{OTHER}"), OTHER)
        };
        let made = || Arc::new(Calls::new(self.recorder, provider, model));
        Arc::clone(calls.entry(name).or_insert_with(made))
    }
}

/// The calls to one model.
#[derive(Debug)]
struct Calls {
    outcomes: [Counter; 6],
    duration: Histogram,
    first_token: Histogram,
    tokens: [Counter; 3],
    cost: Sum,
}

/// `acme` of `acme/fast`, `exec` of `exec:wc`, else the whole.
fn provider_of(key: &str) -> &str {
    account_of(key).split(':').next().unwrap_or(key)
}

impl Calls {
    fn new(recorder: &Recorder, provider: &str, model: &str) -> Self {
        let labels = &[provider, model];
        Self {
            outcomes: recorder.counters(&m::CALLS, labels),
            duration: recorder.histogram(&m::CALL_DURATION, labels),
            first_token: recorder.histogram(&m::FIRST_TOKEN, labels),
            tokens: recorder.counters(&m::TOKENS, labels),
            cost: recorder.sum(&m::COST, labels),
        }
    }

    fn note(&self, outcome: &Outcome, took: Duration) {
        self.duration.record(took);
        let (came, usage, cost) = match outcome {
            Outcome::Success(reply) => {
                if let Some(first_piece) = reply.detail.as_ref().and_then(|detail| detail.first_piece) {
                    self.first_token.record(first_piece);
                }
                (0, reply.usage, reply.cost)
            }
            Outcome::Failure(failure) => {
                let came = match failure.class {
                    FailureClass::Throttled => 1,
                    FailureClass::Capacity => 2,
                    FailureClass::TimedOut => 3,
                    FailureClass::Account | FailureClass::Fatal | FailureClass::Content => 4,
                    FailureClass::Transient | FailureClass::UnknownBilled | FailureClass::Crashed => 5,
                };
                (came, failure.usage, failure.cost)
            }
        };
        self.outcomes[came].increment(1);
        let Usage { input_tokens, output_tokens, cached_tokens, .. } = usage;
        for (counter, tokens) in self.tokens.iter().zip([input_tokens, output_tokens, cached_tokens]) {
            counter.increment(tokens);
        }
        self.cost.add_nanos(cost.map_or(0, Usd::as_nanos));
    }
}
