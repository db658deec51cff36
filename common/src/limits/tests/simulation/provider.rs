//! A provider with true sliding windows.

use std::collections::{BTreeMap, VecDeque};

use crate::limits::amount::{Amounts, Measure, Per};
use crate::limits::ask::Heard;

/// A minute in milliseconds.
pub(super) const MINUTE: i64 = 60_000;

/// A provider that counts exactly: what came within the last 60 s, to the millisecond.
pub(super) struct Provider {
    pub(super) limits: BTreeMap<Measure, i64>,
    seen: BTreeMap<Measure, VecDeque<(i64, i64)>>,
    sums: BTreeMap<Measure, i64>,
    pub(super) worst: BTreeMap<Measure, i64>,
    pub(super) total: BTreeMap<Measure, i64>,
    pub(super) counting_since: i64,
    pub(super) refused: i64,
    pub(super) answered: i64,
    /// What others of the account sent, and how often they were turned away.
    pub(super) others: (i64, i64),
}

impl Provider {
    pub(super) fn new(limits: &[(Measure, i64)]) -> Self {
        Self {
            limits: limits.iter().copied().collect(),
            seen: BTreeMap::new(),
            sums: BTreeMap::new(),
            worst: BTreeMap::new(),
            total: BTreeMap::new(),
            counting_since: 0,
            refused: 0,
            answered: 0,
            others: (0, 0),
        }
    }

    pub(super) fn used(&mut self, now: i64, measure: Measure) -> i64 {
        let (seen, sum) = (self.seen.entry(measure).or_default(), self.sums.entry(measure).or_default());
        while seen.front().is_some_and(|(at, _)| *at <= now - MINUTE) {
            *sum -= seen.pop_front().map_or(0, |(_, amount)| amount);
        }
        *sum
    }

    pub(super) fn count(&mut self, now: i64, amounts: &Amounts) {
        for measure in [Measure::Requests, Measure::InputTokens, Measure::OutputTokens, Measure::Tokens] {
            let used = self.used(now, measure) + amounts.of(measure);
            self.sums.insert(measure, used);
            self.seen.entry(measure).or_default().push_back((now, amounts.of(measure)));
            let worst = self.worst.entry(measure).or_default();
            *worst = used.max(*worst);
            if now >= self.counting_since {
                *self.total.entry(measure).or_default() += amounts.of(measure);
            }
        }
    }

    /// A request has arrived. Whether it is taken.
    pub(super) fn arrive(&mut self, now: i64, amounts: &Amounts) -> bool {
        let limits = self.limits.clone();
        let fits = limits.iter().all(|(measure, most)| self.used(now, *measure) + amounts.of(*measure) <= *most);
        if fits {
            self.count(now, amounts);
            self.answered += 1;
        } else {
            self.refused += 1;
        }
        fits
    }

    /// Others of the account send so many tokens, if there is room for them.
    pub(super) fn others(&mut self, now: i64, input: i64) {
        let most = self.limits.get(&Measure::InputTokens).copied().unwrap_or(i64::MAX);
        let fits = self.used(now, Measure::InputTokens) + input <= most;
        if fits {
            self.count(now, &Amounts { input, ..Amounts::NONE });
        }
        let turned_away = i64::from(!fits);
        self.others = (self.others.0 + 1, self.others.1 + turned_away);
    }

    pub(super) fn headers(&mut self, now: i64) -> Vec<Heard> {
        let limits = self.limits.clone();
        let heard = |(measure, most): (&Measure, &i64)| {
            let left = (most - self.used(now, *measure)).max(0);
            Heard { measure: *measure, per: Per::Minute, most: *most, left: Some(left) }
        };
        limits.iter().map(heard).collect()
    }
}
