//! Which cap of a limit key keeps jobs back, and whether it is money that is missing.

use promptq_common::limits::{CapView, Lack, Measure};

use super::{Held, Standing, State, words};

/// A limit of which so much is used holds back whoever wants more: workers use about 95 % of one that binds.
const FULL: f64 = 0.95;
/// And so much where workers say that they wait for it: large jobs, or many small ones at once, leave more of it.
const SHORT: f64 = 0.5;

impl Standing {
    /// What matters most of one of its caps. What holds the whole key back does so whichever cap is looked at; that all of one
    /// is used says nothing of the others.
    pub fn state_of<'a>(&'a self, cap: &'a CapView) -> State<'a> {
        let state = self.state();
        let State::Full(binding, _) = state else { return state };
        if binding == cap {
            return state;
        }
        if part(cap) >= FULL { State::Full(cap, None) } else { self.easy() }
    }

    /// The cap that keeps jobs back: one on money that has too little for any of them; the one that workers name; else the
    /// one that is used most if that is all of it.
    pub(super) fn binding(&self, throttled: Option<&Held>) -> Option<&CapView> {
        if let Some((cap, _)) = self.lacks() {
            return Some(cap);
        }
        let named = throttled.and_then(|held| self.caps().find(|cap| held.cap == Some(cap.cap)));
        // A refusal says nothing about how much of it is used.
        let is_told = |held: &Held| held.cap.is_some() || words::is_budget(&self.key);
        let is_short = throttled.is_some_and(is_told) || self.shared.as_ref().is_some_and(|shared| shared.starving > 0);
        let least = if is_short { SHORT } else { FULL };
        named.or_else(|| self.caps().filter(|cap| part(cap) >= least).max_by(|a, b| part(a).total_cmp(&part(b))))
    }

    /// The cap on money that has not enough for any job that waits for it, as far as workers have told.
    pub fn lacks(&self) -> Option<(&CapView, Lack)> {
        let lack = self.shared.as_ref()?.lacks?;
        let money = self.caps().filter(|cap| cap.cap.measure == Measure::Usd);
        money.min_by_key(|cap| cap.cap.most.saturating_sub(cap.used)).map(|cap| (cap, lack))
    }
}

/// How much of a cap is used and held.
#[expect(clippy::cast_precision_loss, reason = "a share for people")]
fn part(cap: &CapView) -> f64 {
    cap.used.saturating_add(cap.held) as f64 / cap.cap.most.max(1) as f64
}

#[cfg(test)]
pub(crate) mod tests {
    use promptq_common::ledger::HeldKey;
    use promptq_common::limits::{Cap, Per, PoolView};
    use promptq_common::outcome::FailureClass;

    use super::super::tests::{standing, told, view, worker};
    use super::*;

    /// 84 % of a day's money is spent, and no job that waits costs so little as the rest.
    pub(crate) fn spent(ago: i64) -> PoolView {
        let cap = Cap { measure: Measure::Usd, per: Per::Day, most: 47_500_000 };
        let spent =
            CapView { cap, configured: cap.most, set: None, learned: None, used: 40_000_000, held: 0, in_calls: 0 };
        let lacks = Some(Lack { least: 10_000_000, ago });
        PoolView { caps: vec![view((0, 0), (0, 0)).caps[0], spent], lacks, ..view((0, 0), (0, 0)) }
    }

    #[test]
    fn a_cap_with_room_is_bounded_where_its_endpoint_is_though_another_is_full() {
        let bounded = HeldKey { at_once: Some(9), ..told("acme/gpt", FailureClass::Capacity, "too much to do") };
        let shown = standing(Some(view((500, 0), (0, 0))), &[worker("w", vec![bounded])]);
        let states: Vec<_> = shown.caps().map(|cap| words::word(shown.state_of(cap))).collect();
        assert_eq!(states, ["full", "bounded"]);
    }

    #[test]
    fn money_that_is_not_enough_for_any_job_binds_however_much_is_left() {
        let shown = standing(Some(spent(0)), &[]);
        let State::Full(cap, _) = shown.state() else { panic!("{:?}", shown.state()) };
        assert_eq!(cap.cap.measure, Measure::Usd);
        let enough = standing(Some(PoolView { lacks: None, ..spent(0) }), &[]);
        assert!(!enough.holds() && enough.lacks().is_none(), "{:?}", enough.state());
    }
}
