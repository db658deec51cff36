//! What a submission will probably take: tokens, dollars and time, added up job by job while its input is read. The guesses
//! are the limits' own, the prices the configuration's. What caps do to it is `weigh.rs`, which jobs none of them ever lets
//! through `never.rs`, who runs them `seat.rs`, which have a stored answer `stored.rs`; how it is shown is `show.rs`.

mod never;
mod seat;
mod show;
mod stored;
mod weigh;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use promptq_common::config::Config;
use promptq_common::job::Job;
use promptq_common::limits::{Amounts, Asks, Estimates, counting};
use promptq_common::outcome::Usd;
use promptq_common::price::{Date, Prices};
use promptq_common::store::Store;
use promptq_worker::asked::{Asked, Images};
use promptq_worker::configured;
use promptq_worker::money::{self, Unknown};
use promptq_worker::runner::{Runner, Runners};
use promptq_worker::size;

use crate::problem::{Exit, Problem, Result};
use never::Never;
pub(crate) use seat::{Seat, elsewhere};
use stored::{Reusable, Stored};
use weigh::{Load, Stand, Uncalled};

/// The most models that are named.
const NAMED: usize = 20;

/// Guesses what jobs will take, as this configuration would run them.
#[derive(Debug)]
pub struct Forecaster {
    runners: Runners,
    programs: BTreeSet<String>,
    prices: Prices,
    /// Limit keys that anything is said of, the longest first.
    keys: Arc<[String]>,
    /// Their caps, and those on money of all jobs: as configured here, until they are looked up.
    stands: Arc<[Stand]>,
    estimates: Estimates,
    store: Option<Store>,
}

/// What one job will probably take.
#[derive(Clone, Debug)]
pub struct Share {
    input: u64,
    likely: u64,
    most: u64,
    is_bounded: bool,
    is_program: bool,
    /// Whether all that it sends is text.
    is_text: bool,
    model: String,
    cost: Option<(Usd, Usd)>,
    /// Other routes that have no price.
    unpriced: Vec<String>,
    as_of: Option<Date>,
    /// What is reserved of caps on money before its call, or what nobody knows, so that it is not called under one.
    worst: Result<Usd, Unknown>,
    /// What it may cost by its own word.
    max_cost: Option<Usd>,
    /// The limit keys that it comes under, by number.
    under: Vec<usize>,
    /// The cap that never lets it through.
    never: Option<Never>,
    reusable: Option<Reusable>,
}

/// What jobs will probably take together, each in one call.
#[derive(Clone, Debug, Default)]
pub struct Forecast {
    jobs: u64,
    /// Of them, run by commands, which have no tokens.
    programs: u64,
    /// Of them, with an answer that they do not bound.
    unbounded: u64,
    /// Of them, with more than text, which is not counted.
    beyond_text: u64,
    input: u64,
    likely: u64,
    most: u64,
    /// With likely answers, and with the longest.
    cost: (Usd, Usd),
    /// Jobs whose cost nobody knows.
    unpriced: u64,
    /// Models that have a price, and those that have none: the first [`NAMED`] by name.
    models: (BTreeSet<String>, BTreeSet<String>),
    /// The days of the oldest and the newest price.
    as_of: Option<(Date, Date)>,
    /// What falls under each limit key, by number, and what there is in all.
    under: BTreeMap<usize, Load>,
    all: Load,
    /// Those that name a `max_cost` of their own and are not called; and those that may cost more than it.
    own: Uncalled,
    dear: u64,
    /// Those that a cap never lets through, counted apart: they are in nothing else here.
    never: BTreeMap<Never, u64>,
    stands: Arc<[Stand]>,
    stored: Stored,
}

impl Forecaster {
    /// Reads what models, prices and limits there are.
    ///
    /// # Errors
    /// Settings of providers or commands that cannot work (exit 2).
    pub fn new(config: &Config) -> Result<Self> {
        let runners = Runners::new(configured::runners(config));
        let runners = runners.map_err(|error| Problem::new(Exit::Usage, "config", format!("{error:#}")))?;
        let keys = longest_first(config.limits.iter().map(|rule| rule.key.clone()).collect());
        Ok(Self {
            runners,
            programs: config.runners.keys().cloned().collect(),
            prices: config.prices.clone(),
            stands: config.limits.iter().flat_map(|rule| Stand::configured(rule, &keys)).collect(),
            keys,
            estimates: Estimates::default(),
            store: None,
        })
    }

    /// Where a fleet keeps answers.
    #[must_use]
    pub fn reusing(self, store: Option<Store>) -> Self {
        Self { store, ..self }
    }

    /// Nothing yet.
    pub fn forecast(&self) -> Forecast {
        let (stands, stored) = (Arc::clone(&self.stands), Stored::new(self.store.clone()));
        Forecast { stands, stored, ..Forecast::default() }
    }

    /// What a job will probably take.
    pub fn share(&self, job: &Job) -> Share {
        let routes = self.runners.routes(job).unwrap_or_default();
        let (never, seats) = self.passable(job, self.seats(job, &routes));
        let mut seats = seats.into_iter();
        let seat = seats.next().unwrap_or_default();
        let max_tokens = size::answers(&job.work).0;
        let guess = |output_upfront| self.guess(job, &seat.limit_key, (max_tokens, output_upfront));
        let (likely, longest) = (guess(false), guess(true));
        let asked = Asked::of(&job.work);
        let answers = asked.as_ref().map_or(Some(1), Asked::answers);
        let tokens = |count: i64| if seat.is_program { 0 } else { u64::try_from(count).unwrap_or(0) };
        let answer = |count: i64| tokens(count).saturating_mul(answers.unwrap_or(1));
        let (input, likely, most) = (tokens(likely.input), answer(likely.output), answer(longest.output));
        let tier = asked.as_ref().and_then(Asked::tier);
        let costs = |seat: &Seat| seat.costs(input, (likely, most), tier.as_deref());
        // As long as all is well a job goes its first way; at most it goes the dearest.
        let (likely_cost, longest_cost) = costs(&seat);
        let (mut dearest, mut unpriced, mut runners) = (longest_cost, Vec::new(), Vec::from_iter(seat.runner.clone()));
        for other in seats {
            match costs(&other).1 {
                Some(cost) => dearest = dearest.map(|dearest| dearest.max(cost)),
                None => unpriced.push(other.model),
            }
            runners.extend(other.runner);
        }
        let worst = match runners.as_slice() {
            _ if seat.is_program => Ok(Usd::default()),
            // Whoever has the model reserves this at least.
            [] if seat.price.is_none() => Err(Unknown::Price),
            [] if !seat.can_be_capped(max_tokens) => Err(Unknown::Answer),
            [] => longest_cost.ok_or(Unknown::Price),
            runners => self.worst(job, &seat.limit_key, runners),
        };
        let under = self.under(&seat.limit_key);
        Share {
            input,
            likely,
            most,
            is_bounded: seat.is_program || answers == Some(0) || (max_tokens.is_some() && answers.is_some()),
            is_program: seat.is_program,
            is_text: seat.is_program || asked.is_none_or(|asked| asked.images() == Ok(Images::default())),
            cost: likely_cost.zip(dearest),
            unpriced,
            as_of: seat.price.and_then(|price| price.as_of),
            never: never.or_else(|| self.unpayable(&under, worst.as_ref().ok())),
            worst,
            max_cost: job.extras.as_ref().and_then(|extras| extras.max_cost),
            under,
            reusable: Reusable::of(job, &routes),
            model: seat.model,
        }
    }

    fn guess(&self, job: &Job, limit_key: &str, (max_tokens, output_upfront): (Option<u64>, bool)) -> Amounts {
        let (queue, bytes) = (&job.queue, size::size(&job.work).bytes);
        self.estimates.need(&Asks { queue, model: limit_key, bytes, max_tokens, output_upfront }).amounts
    }

    /// The limit keys that a call comes under.
    fn under(&self, limit_key: &str) -> Vec<usize> {
        let counting = counting(self.keys.iter().map(String::as_str), limit_key).into_iter().flatten();
        counting.filter_map(|key| self.keys.iter().position(|known| known == key)).collect()
    }

    /// As a worker reserves it that has not learned anything.
    fn worst(&self, job: &Job, limit_key: &str, routes: &[Arc<dyn Runner>]) -> Result<Usd, Unknown> {
        money::missing(job, routes, &self.prices).map_or(Ok(()), Err)?;
        let tokens = |bytes| self.estimates.most_input(limit_key, bytes);
        routes.iter().find_map(|runner| money::most(job, &**runner, &self.prices, tokens)).ok_or(Unknown::Price)
    }
}

impl Forecast {
    /// Adds a job.
    pub fn add(&mut self, share: Share) {
        if let Some(never) = share.never {
            *self.never.entry(never).or_default() += 1;
            return;
        }
        self.jobs += 1;
        self.programs += u64::from(share.is_program);
        self.unbounded += u64::from(!share.is_bounded);
        self.beyond_text += u64::from(!share.is_text);
        self.input = self.input.saturating_add(share.input);
        self.likely = self.likely.saturating_add(share.likely);
        self.most = self.most.saturating_add(share.most);
        let named = if let Some((likely, most)) = share.cost {
            self.cost.0 += likely;
            self.cost.1 += most;
            &mut self.models.0
        } else {
            self.unpriced += 1;
            &mut self.models.1
        };
        name(named, share.model);
        share.unpriced.into_iter().for_each(|model| name(&mut self.models.1, model));
        if let Some(day) = share.as_of.filter(|_| share.cost.is_some()) {
            let (oldest, newest) = self.as_of.unwrap_or((day, day));
            self.as_of = Some((oldest.min(day), newest.max(day)));
        }
        let tokens = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        if let Some(most) = share.max_cost {
            share.worst.as_ref().err().into_iter().for_each(|unknown| self.own.add(unknown));
            self.dear += u64::from(share.worst.as_ref().is_ok_and(|worst| *worst > most));
        }
        let load = Load::job(Amounts::call(tokens(share.input), tokens(share.likely)), share.cost, share.worst);
        self.all.add(&load);
        share.under.iter().for_each(|key| self.under.entry(*key).or_default().add(&load));
    }

    /// Adds those of these jobs that have no stored answer.
    pub async fn take(&mut self, shares: Vec<Share>) {
        for share in self.stored.without(shares).await {
            self.add(share);
        }
    }
}

fn longest_first(mut keys: Vec<String>) -> Arc<[String]> {
    keys.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
    keys.dedup();
    keys.into()
}

/// Adds a name to the first [`NAMED`].
fn name(named: &mut BTreeSet<String>, model: String) {
    if named.len() < NAMED || named.last().is_some_and(|last| model < *last) {
        named.insert(model);
        if named.len() > NAMED {
            named.pop_last();
        }
    }
}

#[cfg(test)]
mod capped_tests;
#[cfg(test)]
mod tests;
