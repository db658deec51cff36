//! A worker's part of a limit key, as the shared state has it.

use serde::{Deserialize, Serialize};

use super::amount::{Amounts, float};
use super::need::Portion;

/// A worker's part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Member {
    pub(super) id: u64,
    /// Its last ask.
    pub(super) seq: u64,
    pub(super) seen: i64,
    /// Granted and not consumed yet, calls in flight included.
    pub(super) held: Portion,
    pub(super) want: Amounts,
    pub(super) least: Portion,
    /// Since when it has had too little to do anything with.
    pub(super) starving: Option<i64>,
}

impl Member {
    /// What of that its calls in flight have reserved, about: the rest was granted for calls that may begin, each of them one
    /// request, which a call in flight has consumed, and as large as those that it wants.
    pub(super) fn in_calls(&self) -> Amounts {
        let held = self.held.amounts;
        let each = self.want.times(float(held.requests) / float(self.want.requests.max(1)));
        let granted = Amounts { requests: held.requests, input: held.input, calls: held.requests, ..each };
        held - granted.min(held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_calls_in_flight_hold_is_told_from_what_is_granted_for_the_next() {
        let job = |jobs: f64| Amounts { usd: 7, ..Amounts::call(900, 300) }.times(jobs);
        // Of a call that is under way its request and input are consumed.
        let running = Amounts { requests: 0, input: 0, ..job(3.0) };
        let held = Portion { amounts: running + job(4.0), ..Portion::default() };
        let (want, least) = (job(8.0), Portion::default());
        let member = Member { id: 1, seq: 1, seen: 0, held, want, least, starving: None };
        assert_eq!(member.in_calls(), running);
        let idle = Member { want: Amounts::NONE, held: Portion { amounts: running, ..held }, ..member };
        assert_eq!(idle.in_calls(), running, "it wants no more");
    }
}
