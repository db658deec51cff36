//! What a worker tells the shared state of a limit key and asks of it, and what it is answered: pure values. Who deals out
//! what there is, is `pool.rs`.

use std::collections::BTreeMap;

use super::amount::{Amounts, Cap, Measure, Per};
use super::need::Portion;

/// What a worker tells and asks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ask {
    /// Who asks.
    pub id: u64,
    /// One more with each ask that was answered.
    pub seq: u64,
    /// The key's caps as this worker's configuration has them.
    pub caps: Vec<Cap>,
    /// Whether a provider's header may raise them.
    pub adaptive: bool,
    /// What was consumed since the last ask, each with its age in milliseconds. Corrections may be negative.
    pub spent: Vec<(i64, Amounts)>,
    /// What is reserved by calls in flight.
    pub held: Portion,
    /// What could be used until the next ask.
    pub want: Portion,
    /// The least that is of any use: one job.
    pub least: Portion,
    /// What the first in line need: one job, two, and so on, at most 16. Empty where jobs are only expected.
    pub steps: Vec<Portion>,
    /// Refusals since the last ask: the epoch of the latest call, and the longest wait in milliseconds.
    pub refused: Option<(u64, i64)>,
    /// Whether one of them was for calls that had become more too fast.
    pub too_fast: bool,
    /// What the provider's headers said since the last ask, each with its age in milliseconds.
    pub heard: Vec<(i64, Heard)>,
    /// The models that they said it of, at most two: of several they say nothing of the key.
    pub heard_of: Vec<String>,
    /// Whether the worker leaves.
    pub leaves: bool,
}

/// Of so many jobs in line it is told what they need one by one.
pub(super) const STEPS: usize = 16;

impl Ask {
    /// What of a share goes to whole jobs, at least one: with a part of one nothing can be called, and meanwhile nobody
    /// else has it.
    pub(super) fn whole_jobs(&self, share: Portion) -> Portion {
        let fits = |portion: &&Portion| portion.amounts.is_within(&share.amounts);
        match self.steps.last() {
            _ if fits(&&self.want) => share,
            Some(last) if self.steps.len() >= STEPS && fits(&last) => share,
            Some(_) => self.steps.iter().rev().find(fits).copied().unwrap_or(self.least),
            None => {
                let jobs = u32::try_from(share.amounts.requests.max(1)).unwrap_or(u32::MAX);
                self.least.times(f64::from(jobs))
            }
        }
    }
}

/// What a provider's header said of one of its limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Which of its limits.
    pub measure: Measure,
    /// Over what it counts.
    pub per: Per,
    /// The limit.
    pub most: i64,
    /// What is left of it, if that was said.
    pub left: Option<i64>,
}

/// What a worker may use until its next ask; what it had before and did not use is part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// Of everything so much.
    pub amounts: Amounts,
    /// The epoch that calls are sent under.
    pub epoch: u64,
    /// For how long nobody calls, in milliseconds; 0 while the key is not frozen.
    pub frozen: i64,
    /// After how many milliseconds there may be enough for the least, if there is not now.
    pub wait: Option<i64>,
    /// The cap that kept it from giving all that was wanted.
    pub short: Option<Cap>,
    /// When to ask again, in milliseconds.
    pub again: i64,
    /// How money stands, where it is capped.
    pub money: Option<Money>,
    /// There are as many workers of the key as there may be: the asker gets nothing of it.
    pub crowded: bool,
    /// The caps there are, as people set them and headers have them: not only those that the asker is configured with.
    pub caps: Vec<Cap>,
}

/// How money stands under a limit key: of several caps the one that leaves least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Money {
    /// The cap.
    pub cap: Cap,
    /// What is not spent, whoever holds it.
    pub unspent: i64,
    /// What of that nobody holds either.
    pub open: i64,
}

/// With their ages.
pub(super) fn aged(heard: &[(i64, Heard)], now: i64) -> Vec<(i64, Heard)> {
    heard.iter().map(|(at, heard)| ((now - at).max(0), *heard)).collect()
}

/// The same of amounts by moment.
pub(super) fn ages(moments: &BTreeMap<i64, Amounts>, now: i64) -> Vec<(i64, Amounts)> {
    moments.iter().map(|(at, amounts)| ((now - at).max(0), *amounts)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_whole_jobs_and_at_least_one() {
        let portion =
            |requests, input| Portion { amounts: Amounts { requests, input, ..Amounts::NONE }, ..Portion::default() };
        let line = vec![portion(1, 300), portion(2, 400), portion(3, 900)];
        let opened = Ask { want: portion(3, 900), least: portion(1, 300), steps: line, ..Ask::default() };
        for (share, granted) in [(200, 300), (399, 300), (700, 400), (900, 900)] {
            assert_eq!(opened.whole_jobs(portion(3, share)).amounts.input, granted, "{share}");
        }
        let expected = Ask { want: portion(9, 900), least: portion(1, 100), ..Ask::default() };
        assert_eq!(expected.whole_jobs(portion(4, 450)).amounts, portion(4, 400).amounts);
        assert_eq!(expected.whole_jobs(portion(9, 900)).amounts, expected.want.amounts);
    }
}
