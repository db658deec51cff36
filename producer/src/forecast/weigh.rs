//! What caps do to the jobs of a forecast: each cap as it stands now, with what people set, headers taught and others use.

use std::collections::BTreeSet;
use std::time::Duration;

use promptq_common::broker::{Broker, HoldKey};
use promptq_common::config::Config;
use promptq_common::job::{BatchName, Queue};
use promptq_common::ledger::Ledger;
use promptq_common::limits::{Amounts, Cap, CapView, Measure, Per, Rule, paced};
use promptq_common::outcome::Usd;
use promptq_worker::money::Unknown;

use super::{Forecast, Forecaster};
use crate::budget;
use crate::context::Context;
use crate::limits::{Standing, kept, several, words};
use crate::problem::Result;

/// What a cap is about.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Load {
    pub(super) jobs: u64,
    /// Of them, those that are not called under a cap on money: nobody knows what they may cost.
    pub(super) uncalled: Uncalled,
    amounts: Amounts,
    /// Dollars with likely answers, with the longest, and as they are reserved.
    likely: Usd,
    most: Usd,
    worst: Usd,
}

/// Jobs of which nobody knows what they may cost, by what nobody knows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Uncalled {
    /// They wait until somebody does.
    pub(super) price: u64,
    /// They end dead: how long their answers may be.
    pub(super) answer: u64,
    /// They end dead: what something in their requests costs.
    pub(super) part: u64,
}

/// A cap as it stands now.
#[derive(Clone, Debug)]
pub(super) struct Stand {
    key: String,
    cap: Cap,
    /// Whose word it is.
    from: &'static str,
    /// What of it is used, and held by calls.
    taken: i64,
}

/// What a cap does to the jobs under it.
#[derive(Clone, Debug)]
pub(super) struct Bound {
    pub(super) key: String,
    pub(super) cap: Cap,
    pub(super) from: &'static str,
    pub(super) taken: i64,
    pub(super) load: Load,
    /// Of money: the jobs that what is left of it will do for, with likely answers and with the longest.
    pub(super) fits: Option<(u64, u64)>,
    /// Of a cap over a time: how long they take because of it.
    pub(super) takes: Option<Duration>,
    /// Of calls at once: how many follow one another, at best.
    pub(super) rounds: Option<u64>,
}

impl Forecaster {
    /// By these settings, the caps that the fleet shares and its stored answers.
    ///
    /// # Errors
    /// As [`Forecaster::new`], or as the ledger's.
    pub async fn of(cx: &Context, broker: &Broker) -> Result<Self> {
        let store = if cx.config.store.url.is_some() { Some(cx.store().await?.clone()) } else { None };
        let (mut keys, _) = kept(broker.ledger()).await?;
        keys.retain(|key| !words::is_budget(key));
        let mut standings = several(broker.ledger(), keys, &[]).await?;
        // A freeze is kept under a key that caps nothing.
        standings.retain(|standing| standing.caps().next().is_some());
        Ok(Self::new(&cx.config)?.beside(standings.into_iter().map(|standing| standing.key).collect(), store))
    }
}

impl Uncalled {
    /// One more.
    pub(super) fn add(&mut self, unknown: &Unknown) {
        match unknown {
            Unknown::Price => self.price += 1,
            Unknown::Answer => self.answer += 1,
            Unknown::Part(_) => self.part += 1,
        }
    }

    /// The larger of each kind.
    pub(super) fn max(self, other: Self) -> Self {
        let Self { price, answer, part } = other;
        Self { price: self.price.max(price), answer: self.answer.max(answer), part: self.part.max(part) }
    }

    pub(super) fn dead(self) -> u64 {
        self.answer + self.part
    }

    pub(super) fn all(self) -> u64 {
        self.price + self.dead()
    }
}

impl Load {
    /// One job; `cost` is `None` where nobody knows.
    pub(super) fn job(amounts: Amounts, cost: Option<(Usd, Usd)>, worst: Result<Usd, Unknown>) -> Self {
        let mut uncalled = Uncalled::default();
        let (likely, most) = cost.filter(|_| worst.is_ok()).unwrap_or_default();
        let worst = worst.inspect_err(|unknown| uncalled.add(unknown)).unwrap_or_default();
        Self { jobs: 1, uncalled, amounts, likely, most, worst }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.jobs += other.jobs;
        let Uncalled { price, answer, part } = other.uncalled;
        self.uncalled.price += price;
        self.uncalled.answer += answer;
        self.uncalled.part += part;
        self.amounts += other.amounts;
        self.likely += other.likely;
        self.most += other.most;
        self.worst += other.worst;
    }

    /// How many of its jobs `room` will do for when each comes to its part of `cost`: a call begins while there is enough for
    /// its worst.
    fn fits(&self, room: i64, cost: Usd) -> u64 {
        let payable = i128::from(self.called());
        if payable == 0 {
            return 0;
        }
        let (room, worst) = (i128::from(room.max(0)), i128::from(self.worst.as_nanos()));
        if room >= worst {
            return self.called();
        }
        // In parts of a job, so that nothing is rounded away.
        let left = room * payable - worst;
        if left < 0 {
            return 0;
        }
        let fits = (left / i128::from(cost.as_nanos().max(1)) + 1).min(payable);
        u64::try_from(fits).unwrap_or(u64::MAX)
    }

    /// The jobs that are called, as soon as caps on money let them.
    pub(super) fn called(&self) -> u64 {
        self.jobs - self.uncalled.all()
    }

    /// What of it a cap counts.
    fn of(&self, measure: Measure) -> i64 {
        if measure == Measure::Usd { self.likely.as_nanos() } else { self.amounts.of(measure) }
    }
}

impl Stand {
    /// Every cap of a rule, with nothing of it used.
    pub(super) fn configured(rule: &Rule) -> impl Iterator<Item = Self> {
        let key = rule.key.clone();
        rule.caps.clone().into_iter().map(move |cap| Self { key: key.clone(), cap, from: "configured", taken: 0 })
    }

    /// The caps of a key: those that its fleet shares, then what else is configured here.
    fn all(standing: &Standing, configured: &[Cap]) -> Vec<Self> {
        let views = || standing.shared.iter().flat_map(|shared| &shared.caps);
        let is_same = |a: &Cap, b: &Cap| (a.measure, a.per) == (b.measure, b.per);
        let new = |cap, from, taken| Self { key: standing.key.clone(), cap, from, taken };
        let shared = views().filter_map(|view| {
            let here = configured.iter().find(|cap| is_same(cap, &view.cap)).map(|cap| cap.most);
            let (most, from) = in_force(view, here)?;
            Some(new(Cap { most, ..view.cap }, from, view.used.saturating_add(view.held)))
        });
        let unused = configured.iter().filter(|cap| !views().any(|view| is_same(&view.cap, cap)));
        shared.chain(unused.map(|cap| new(*cap, "configured", 0))).collect()
    }
}

/// A cap as it is, whatever refusals have left of it for now, and whose word that is.
fn in_force(view: &CapView, here: Option<i64>) -> Option<(i64, &'static str)> {
    let configured = Some(view.configured).filter(|most| *most < i64::MAX).or(here);
    match words::from(view) {
        "set" => view.set.map(|most| (most, "set")),
        "learned" if configured.is_some() => view.learned.map(|most| (most, "learned")),
        _ => configured.map(|most| (most, "configured")),
    }
}

impl Bound {
    /// Jobs that wait until a person allows more.
    pub(super) fn holds(&self) -> u64 {
        let fits = self.fits.filter(|_| self.cap.per == Per::Ever);
        fits.map_or(0, |(likely, _)| self.load.called() - likely)
    }

    /// Jobs that ask nothing of other caps because of it.
    pub(super) fn stays(&self) -> u64 {
        self.fits.map_or(0, |_| self.load.uncalled.all() + self.holds())
    }

    /// How long so much takes under it, beside what is used of it.
    fn takes(&self, asked: i64) -> Duration {
        let most = self.cap.most.max(1);
        if asked.saturating_add(self.taken) <= most {
            return paced(&self.cap, asked).unwrap_or_default();
        }
        let (asked, per) = (i128::from(asked) + i128::from(self.taken), i128::from(self.cap.per.millis()));
        Duration::from_millis(u64::try_from(asked * per / i128::from(most)).unwrap_or(u64::MAX))
    }
}

impl Forecast {
    /// Sets it against the caps as they stand: of accounts, of the queue, and `max_cost` of the batch.
    ///
    /// # Errors
    /// As the ledger's; where nothing could keep `max_cost`.
    pub async fn weigh(
        &mut self,
        ledger: &dyn Ledger,
        config: &Config,
        (queue, batch, max_cost): (&Queue, &BatchName, Option<Usd>),
    ) -> Result<()> {
        let used: BTreeSet<String> = self.under.keys().filter_map(|key| self.keys.get(*key)).cloned().collect();
        let own = HoldKey::Budget(queue.to_string()).to_string();
        let keys = used.into_iter().chain([own.clone()]).collect();
        let mut stands = Vec::new();
        for standing in several(ledger, keys, &[]).await? {
            let rule = config.limits.iter().find(|rule| rule.key == standing.key);
            let of_queue = config.queues.get(queue).and_then(|queue| queue.budget).filter(|_| standing.key == own);
            let configured: Vec<Cap> = rule.iter().flat_map(|rule| &rule.caps).copied().chain(of_queue).collect();
            stands.extend(Stand::all(&standing, &configured));
        }
        if let Some(most) = max_cost {
            let key = HoldKey::Batch(batch.clone()).to_string();
            let cap = Cap { measure: Measure::Usd, per: Per::Ever, most: most.as_nanos() };
            let views = budget::kept(ledger, &key).await?.into_iter().flat_map(|view| view.caps);
            let spent = views.filter(|view| view.cap.measure == Measure::Usd);
            let taken = spent.map(|view| view.used.saturating_add(view.held)).max().unwrap_or_default();
            stands.push(Stand { key, cap, from: "--max-cost", taken });
        }
        self.stands = stands;
        Ok(())
    }

    /// Every cap, the one that takes longest first. More workers change none of them.
    pub(super) fn bounds(&self) -> Vec<Bound> {
        let mut bounds: Vec<_> = self.stands.iter().filter_map(|stand| self.bound(stand)).collect();
        let most_of = |of: fn(&Bound) -> u64| bounds.iter().map(of).max().unwrap_or_default().min(self.jobs);
        let (held, stays) = (most_of(Bound::holds), most_of(Bound::stays));
        // What is held asks nothing of the other caps; of money, nor does what nobody knows the cost of.
        let goes = |count: i64, stays: u64| {
            let part = i128::from(count) * i128::from(self.jobs - stays) / i128::from(self.jobs.max(1));
            i64::try_from(part.max(0)).unwrap_or(i64::MAX)
        };
        for bound in &mut bounds {
            let stays = if bound.cap.measure == Measure::Usd { held } else { stays };
            let asked = goes(bound.load.of(bound.cap.measure), stays);
            if bound.cap.measure == Measure::Concurrent {
                bound.rounds =
                    u64::try_from(asked).ok().map(|asked| asked.div_ceil(bound.cap.most.max(1).unsigned_abs()));
            } else if bound.cap.per != Per::Ever {
                bound.takes = Some(bound.takes(asked));
            }
        }
        // Of two that take as long, one that is not about money, which has lines of its own.
        bounds.sort_by_key(|bound| (std::cmp::Reverse(bound.takes), bound.cap.measure == Measure::Usd));
        bounds
    }

    fn bound(&self, stand: &Stand) -> Option<Bound> {
        let load = match HoldKey::of_limit(&stand.key) {
            HoldKey::Limit(key) => *self.under.get(&self.keys.iter().position(|known| *known == key)?)?,
            HoldKey::Budget(_) | HoldKey::Batch(_) => self.all,
        };
        let Stand { key, cap, from, taken } = stand.clone();
        let room = cap.most.saturating_sub(taken);
        let fits = (cap.measure == Measure::Usd).then(|| (load.fits(room, load.likely), load.fits(room, load.most)));
        Some(Bound { key, cap, from, taken, load, fits, takes: None, rounds: None })
    }
}
