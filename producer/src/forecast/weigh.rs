//! What caps do to the jobs of a forecast: each cap as it stands now, with what people set, headers taught and others use.

use std::fmt;
use std::time::Duration;

use promptq_common::broker::{Broker, HoldKey};
use promptq_common::config::Config;
use promptq_common::job::{BatchName, Queue};
use promptq_common::ledger::Ledger;
use promptq_common::limits::{Amounts, Cap, CapView, Measure, Per, Rule, paced};
use promptq_common::outcome::Usd;
use promptq_worker::money::Unknown;

use super::{Forecast, Forecaster, longest_first};
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
    pub(super) key: String,
    /// The number of its limit key; without one it is on all jobs.
    pub(super) place: Option<usize>,
    pub(super) cap: Cap,
    /// The most that is configured, or in force if that is more: what is larger dies of it.
    pub(super) configured: Option<i64>,
    /// Whose word it is.
    pub(super) from: &'static str,
    /// What of it is used, and held by calls.
    pub(super) taken: i64,
}

/// Whose jobs they are: of a queue and a batch, which may cost so much in all.
pub(crate) type Whose<'a> = (&'a Queue, &'a BatchName, Option<Usd>);

/// What a cap does to the jobs under it.
#[derive(Clone, Debug)]
pub(super) struct Bound {
    pub(super) stand: Stand,
    pub(super) load: Load,
    /// Of money: the jobs that what is left of it will do for, with likely answers and with the longest.
    pub(super) fits: Option<(u64, u64)>,
    /// Of a cap over a time: how long they take because of it.
    pub(super) takes: Option<Duration>,
    /// Of calls at once: how many follow one another, at best.
    pub(super) rounds: Option<u64>,
}

impl Forecaster {
    /// By these settings, the caps as they stand and the fleet's stored answers.
    ///
    /// # Errors
    /// As [`Forecaster::new`] and [`Forecaster::weighing`].
    pub(crate) async fn of(cx: &Context, broker: &Broker, whose: Whose<'_>) -> Result<Self> {
        let store = if cx.config.store.url.is_some() { Some(cx.store().await?.clone()) } else { None };
        let forecaster = Self::new(&cx.config)?.weighing(broker.ledger(), &cx.config, whose).await?;
        Ok(forecaster.reusing(store))
    }

    /// By the caps as they stand: of accounts, of the queue, and `max_cost` of the batch.
    ///
    /// # Errors
    /// As the ledger's; where nothing could keep `max_cost`.
    pub(super) async fn weighing(
        self,
        ledger: &dyn Ledger,
        config: &Config,
        (queue, batch, max_cost): Whose<'_>,
    ) -> Result<Self> {
        let own = HoldKey::Budget(queue.to_string()).to_string();
        let (mut asked, _) = kept(ledger).await?;
        asked.retain(|key| !words::is_budget(key));
        asked.extend(self.keys.iter().cloned().chain([own.clone()]));
        let standings = several(ledger, asked, &[]).await?;
        // A freeze is kept under a key that caps nothing.
        let capping = standings.iter().filter(|standing| standing.caps().next().is_some());
        let shared = capping.map(|standing| standing.key.clone());
        let keys = longest_first(self.keys.iter().cloned().chain(shared).collect());
        let mut stands = Vec::new();
        for standing in standings {
            let rule = config.limits.iter().find(|rule| rule.key == standing.key);
            let of_queue = config.queues.get(queue).and_then(|queue| queue.budget).filter(|_| standing.key == own);
            let configured: Vec<Cap> = rule.iter().flat_map(|rule| &rule.caps).copied().chain(of_queue).collect();
            stands.extend(Stand::all(&standing, &configured, &keys));
        }
        if let Some(most) = max_cost {
            let key = HoldKey::Batch(batch.clone()).to_string();
            let cap = Cap { measure: Measure::Usd, per: Per::Ever, most: most.as_nanos() };
            let known = budget::kept(ledger, &key).await?;
            let spent = known.and_then(|known| known.caps.into_iter().find(|view| view.cap.measure == Measure::Usd));
            let taken = spent.map_or(0, |view| view.used.saturating_add(view.held));
            stands.push(Stand { key, place: None, cap, configured: None, from: "--max-cost", taken });
        }
        Ok(Self { keys, stands: stands.into(), ..self })
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
    fn unused(key: &str, place: Option<usize>, cap: Cap) -> Self {
        Self { key: key.to_owned(), place, cap, configured: Some(cap.most), from: "configured", taken: 0 }
    }

    /// Every cap of a rule, with nothing of it used.
    pub(super) fn configured<'a>(rule: &'a Rule, keys: &[String]) -> impl Iterator<Item = Self> + use<'a> {
        let place = place(&rule.key, keys);
        rule.caps.iter().map(move |cap| Self::unused(&rule.key, place, *cap))
    }

    /// The caps of a key: those that its fleet shares, then what else is configured here.
    fn all(standing: &Standing, here: &[Cap], keys: &[String]) -> Vec<Self> {
        let (key, place) = (&standing.key, place(&standing.key, keys));
        let views = || standing.shared.iter().flat_map(|shared| &shared.caps);
        let is_same = |a: &Cap, b: &Cap| (a.measure, a.per) == (b.measure, b.per);
        let shared = views().filter_map(|view| {
            let here = here.iter().find(|cap| is_same(cap, &view.cap)).map(|cap| cap.most);
            let configured = Some(view.configured).filter(|most| *most < i64::MAX).or(here);
            let (most, from) = in_force(view, configured)?;
            let (cap, taken) = (Cap { most, ..view.cap }, view.used.saturating_add(view.held));
            let configured = configured.map(|configured| configured.max(most));
            Some(Self { key: key.clone(), place, cap, configured, from, taken })
        });
        let unused = here.iter().filter(|cap| !views().any(|view| is_same(&view.cap, cap)));
        shared.chain(unused.map(|cap| Self::unused(key, place, *cap))).collect()
    }
}

/// `acme: 300 requests/min (set)`.
impl fmt::Display for Stand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let from = if self.from == "configured" { String::new() } else { format!(" ({})", self.from) };
        write!(f, "{}: {}{from}", self.key, self.cap)
    }
}

/// The number of a limit key; none of a batch's or a queue's money.
fn place(key: &str, keys: &[String]) -> Option<usize> {
    keys.iter().position(|known| known == key).filter(|_| !words::is_budget(key))
}

/// A cap as it is, whatever refusals have left of it for now, and whose word that is.
pub(super) fn in_force(view: &CapView, configured: Option<i64>) -> Option<(i64, &'static str)> {
    match words::from(view) {
        "set" => view.set.map(|most| (most, "set")),
        "learned" if configured.is_some() => view.learned.map(|most| (most, "learned")),
        _ => configured.map(|most| (most, "configured")),
    }
}

impl Bound {
    /// Jobs that wait until a person allows more.
    pub(super) fn holds(&self) -> u64 {
        let fits = self.fits.filter(|_| self.stand.cap.per == Per::Ever);
        fits.map_or(0, |(likely, _)| self.load.called() - likely)
    }

    /// Jobs that ask nothing of other caps because of it.
    pub(super) fn stays(&self) -> u64 {
        self.fits.map_or(0, |_| self.load.uncalled.all() + self.holds())
    }

    /// How long so much takes under it, beside what is used of it.
    fn takes(&self, asked: i64) -> Duration {
        let most = self.stand.cap.most.max(1);
        if asked.saturating_add(self.stand.taken) <= most {
            return paced(&self.stand.cap, asked).unwrap_or_default();
        }
        let (asked, per) = (i128::from(asked) + i128::from(self.stand.taken), i128::from(self.stand.cap.per.millis()));
        Duration::from_millis(u64::try_from(asked * per / i128::from(most)).unwrap_or(u64::MAX))
    }
}

impl Forecast {
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
            let stays = if bound.stand.cap.measure == Measure::Usd { held } else { stays };
            let asked = goes(bound.load.of(bound.stand.cap.measure), stays);
            if bound.stand.cap.measure == Measure::Concurrent {
                bound.rounds =
                    u64::try_from(asked).ok().map(|asked| asked.div_ceil(bound.stand.cap.most.max(1).unsigned_abs()));
            } else if bound.stand.cap.per != Per::Ever {
                bound.takes = Some(bound.takes(asked));
            }
        }
        // Of two that take as long, one that is not about money, which has lines of its own.
        bounds.sort_by_key(|bound| (std::cmp::Reverse(bound.takes), bound.stand.cap.measure == Measure::Usd));
        bounds
    }

    fn bound(&self, stand: &Stand) -> Option<Bound> {
        let load = stand.place.map_or(Some(self.all), |place| self.under.get(&place).copied())?;
        let room = stand.cap.most.saturating_sub(stand.taken);
        let is_money = stand.cap.measure == Measure::Usd;
        let fits = is_money.then(|| (load.fits(room, load.likely), load.fits(room, load.most)));
        Some(Bound { stand: stand.clone(), load, fits, takes: None, rounds: None })
    }
}
