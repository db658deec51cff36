//! How a limit key stands, or one of its caps, in a few words: for tables. Pure.

use promptq_common::limits::Measure;

use super::words::{caution, lacking, left, tried};
use super::{Standing, State};

/// A state of the key, or of a cap of it (see [`Standing::state_of`]).
pub fn brief(standing: &Standing, state: State<'_>) -> String {
    let at = standing.at;
    match state {
        State::Refused(held) => format!("account refused, {}", tried(held, at)),
        State::Down(held) => format!("does not work, {}", tried(held, at)),
        State::Frozen(until) => format!("frozen for {}", left(until, at)),
        State::Full(cap, _) => {
            let job = lacking(standing).filter(|_| cap.cap.measure == Measure::Usd);
            let more = job.map(|job| format!("a job may cost {job}")).or_else(|| caution(standing));
            more.map_or_else(|| "full".to_owned(), |more| format!("full, {more}"))
        }
        State::Throttled(held) => format!("held back for {}", left(held.until, at)),
        State::Bounded(_, at_once) => format!("at most {at_once} at once"),
        State::Cautious(_) => caution(standing).unwrap_or_default(),
        State::Open => "open".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use promptq_common::ledger::HeldKey;
    use promptq_common::limits::PoolView;
    use promptq_common::outcome::FailureClass;

    use super::super::binding::tests::spent;
    use super::super::tests::{NOW, standing, told, view, worker};
    use super::*;

    fn shared(view: PoolView) -> Standing {
        standing(Some(view), &[])
    }

    /// Of the key, and of each of its caps.
    fn briefs(standing: &Standing) -> Vec<String> {
        let caps = standing.caps().map(|cap| standing.state_of(cap));
        std::iter::once(standing.state()).chain(caps).map(|state| brief(standing, state)).collect()
    }

    #[test]
    fn a_table_has_the_state_in_a_few_words() {
        assert_eq!(briefs(&shared(view((10, 0), (0, 0)))), ["open"; 3]);
        let slowed = PoolView { rate: 0.25, ..view((499, 0), (0, 0)) };
        let says = "full, at 25 % after refusals";
        assert_eq!(briefs(&shared(slowed)), [says, says, "at 25 % after refusals"]);
        assert_eq!(briefs(&shared(PoolView { frozen_for: 65_000, ..view((0, 0), (0, 0)) })), ["frozen for 1m5s"; 3]);
        let fails = told("acme/gpt", FailureClass::Capacity, "connect");
        let bounded = HeldKey { at_once: Some(12), ..fails.clone() };
        let mut now = standing(Some(view((10, 0), (0, 0))), &[worker("w", vec![fails])]);
        now.at = NOW + Duration::from_secs(60);
        assert_eq!(briefs(&now), ["does not work, tried again now"; 3]);
        assert_eq!(briefs(&standing(None, &[worker("w", vec![bounded])])), ["at most 12 at once"]);
    }

    #[test]
    fn a_cap_has_the_state_of_its_own_however_little_another_has_left() {
        let says = "full, a job may cost $0.01";
        assert_eq!(briefs(&shared(spent(0))), [says, "open", says]);
        let mut both = spent(0);
        both.caps[0].used = 490;
        assert_eq!(briefs(&shared(both)), [says, "full", says]);
        assert_eq!(briefs(&shared(view((499, 0), (89_000, 0)))), ["full"; 3]);
    }
}
