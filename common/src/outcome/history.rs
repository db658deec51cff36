//! What became of a job's attempts: sums over all of them, and ten in detail.

use serde::{Deserialize, Serialize};

use super::{AnswerClass, FailureClass, Usage, Usd};
use crate::time::Timestamp;

/// One try of a job, as its history keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// 1 for the first.
    pub n: u32,
    /// Who ran it.
    pub worker: String,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Timestamp,
    /// Why it did not succeed; `None` for one that was answered.
    pub class: Option<FailureClass>,
    /// The failure's code; of an answer that is known not to be whole, its class.
    pub code: Option<String>,
    /// The failure, or what is wrong with the answer, in one line.
    pub detail: Option<String>,
    /// HTTP status, where there was one.
    pub status_code: Option<u16>,
    /// What it consumed.
    pub usage: Usage,
    /// What it cost, when known.
    pub cost: Option<Usd>,
}

impl Attempt {
    /// What is wrong with the answer it was given, if it was given one and that is known.
    pub fn fault(&self) -> Option<AnswerClass> {
        let code = self.code.as_deref().filter(|_| self.class.is_none())?;
        AnswerClass::FAULTY.into_iter().find(|class| class.as_str() == code)
    }

    /// Whether nobody knows what it cost: an answer without a price, or something that ran and was cut.
    fn is_cost_unknown(&self) -> bool {
        let may_cost = self.class.is_none_or(|class| class.may_cost(self.status_code));
        self.cost.is_none() && (may_cost || self.is_too_large() || self.usage != Usage::default())
    }

    /// Whether it was stopped as it answered at too great length.
    fn is_too_large(&self) -> bool {
        self.class.is_some() && self.code.as_deref() == Some("output_too_large")
    }

    /// The class of its failure, or of an answer that is not whole.
    pub fn class_name(&self) -> Option<&'static str> {
        self.class.map(FailureClass::as_str).or_else(|| self.fault().map(AnswerClass::as_str))
    }
}

/// What the attempts so far came to: sums over all, details of ten: of those whose answers were put aside, and of the last.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// Tokens over all attempts.
    pub usage: Usage,
    /// Known cost over all attempts; `None` while none was known.
    pub cost: Option<Usd>,
    /// Attempts that may have been billed without an answer.
    pub unknown_billed: u32,
    /// At most [`History::KEPT`] attempts, oldest first. The oldest that failed makes room, unless nothing else tells what is
    /// not known of the cost; those that were answered stay.
    pub recent: Vec<Attempt>,
}

impl History {
    /// How many attempts are kept in detail.
    pub const KEPT: usize = 10;

    /// Whether a call was made of which nobody knows what it cost.
    pub fn is_cost_unknown(&self) -> bool {
        let told = self.recent.iter().filter(|attempt| attempt.class == Some(FailureClass::UnknownBilled)).count();
        // The others are workers that died.
        let died = usize::try_from(self.unknown_billed).unwrap_or(usize::MAX) > told;
        let consumed = self.usage != Usage::default() && self.cost.is_none();
        died || consumed || self.recent.iter().any(Attempt::is_cost_unknown)
    }

    /// What is known of the cost; nothing where no call was made, or none that is billed. `None` where nobody knows any of it.
    pub fn known_cost(&self) -> Option<Usd> {
        self.cost.or_else(|| (!self.is_cost_unknown()).then(Usd::default))
    }

    /// Whether what is known of the cost is not all of it.
    pub fn is_cost_partial(&self) -> bool {
        self.cost.is_some() && self.is_cost_unknown()
    }

    /// Whether a part of the cost is a guess: of a call that was cut, or whose answer was.
    pub fn is_cost_guessed(&self) -> bool {
        let is_cut = |one: &Attempt| one.class == Some(FailureClass::UnknownBilled) || one.is_too_large();
        self.recent.iter().any(|one| one.cost.is_some() && is_cut(one))
    }

    /// Attempts of a job that has not ended whose answers were put aside, for the job to be called again.
    pub fn put_aside(&self) -> u32 {
        u32::try_from(self.recent.iter().filter(|attempt| attempt.class.is_none()).count()).unwrap_or(u32::MAX)
    }

    /// Adds an attempt to the sums and the list.
    pub fn push(&mut self, attempt: Attempt) {
        self.usage += attempt.usage;
        if let Some(cost) = attempt.cost {
            *self.cost.get_or_insert_default() += cost;
        }
        if attempt.class == Some(FailureClass::UnknownBilled) {
            self.unknown_billed += 1;
        }
        if self.recent.len() >= Self::KEPT {
            self.recent.remove(self.least());
        }
        self.recent.push(attempt);
    }

    /// Which of those kept makes room: the oldest that failed and without which as much is known of the cost.
    fn least(&self) -> usize {
        let known = |of: &Self| (of.is_cost_unknown(), of.is_cost_guessed());
        let without = |at| {
            let mut rest = self.clone();
            rest.recent.remove(at);
            rest
        };
        let mut failed = (0..self.recent.len()).filter(|at| self.recent[*at].class.is_some());
        let oldest = failed.clone().next();
        failed.find(|at| known(&without(*at)) == known(self)).or(oldest).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use std::slice;

    use super::*;

    fn attempt(n: u32, class: Option<FailureClass>, code: Option<&str>) -> Attempt {
        Attempt {
            n,
            worker: "w".into(),
            started_at: Timestamp::from_millis(0),
            ended_at: Timestamp::from_millis(1),
            class,
            code: code.map(str::to_owned),
            detail: None,
            status_code: None,
            usage: Usage { input_tokens: 2, ..Usage::default() },
            cost: Some(Usd::from_nanos(3)),
        }
    }

    #[test]
    fn history_keeps_the_sums_of_what_it_drops() {
        let mut history = History::default();
        for n in 1..=12 {
            history.push(attempt(n, Some(FailureClass::Transient), None));
        }
        assert_eq!((history.usage.input_tokens, history.cost), (24, Some(Usd::from_nanos(36))));
        assert_eq!((history.recent.len(), history.recent[0].n), (History::KEPT, 3));
    }

    #[test]
    fn what_is_not_known_of_the_cost_is_not_forgotten_with_its_attempt() {
        let unpriced =
            Attempt { usage: Usage::default(), cost: None, ..attempt(1, Some(FailureClass::Transient), None) };
        for first in [attempt(1, Some(FailureClass::UnknownBilled), None), unpriced] {
            let mut history = History::default();
            history.push(first);
            let before = (history.is_cost_unknown(), history.is_cost_guessed());
            for n in 2..=30 {
                history.push(attempt(n, Some(FailureClass::Transient), None));
            }
            assert_eq!((history.is_cost_unknown(), history.is_cost_guessed()), before);
            assert_eq!((history.recent.len(), history.recent[1].n), (History::KEPT, 22));
        }
    }

    #[test]
    fn only_a_call_whose_bill_nobody_knows_makes_a_cost_unknown() {
        let known = |attempts: &[Attempt]| {
            let mut history = History::default();
            for attempt in attempts {
                history.push(attempt.clone());
            }
            (history.known_cost().map(Usd::as_nanos), history.is_cost_unknown())
        };
        let free = |class, status_code| Attempt {
            usage: Usage::default(),
            cost: None,
            status_code,
            ..attempt(1, class, None)
        };
        assert_eq!(known(&[]), (Some(0), false), "never called");
        let priced = attempt(1, None, None);
        for class in [FailureClass::Throttled, FailureClass::Account, FailureClass::Fatal, FailureClass::Content] {
            assert_eq!(known(&[free(Some(class), Some(400))]), (Some(0), false), "{class}");
            assert_eq!(known(&[priced.clone(), free(Some(class), None)]), (Some(3), false), "{class}");
        }
        for (class, status_code) in [(FailureClass::Transient, Some(500)), (FailureClass::Content, Some(200))] {
            assert_eq!(known(&[free(Some(class), status_code)]), (None, true), "{class}: caps count the worst of it");
        }
        let large = Attempt { code: Some("output_too_large".into()), ..free(Some(FailureClass::Fatal), None) };
        assert_eq!(known(&[large]), (None, true), "the program has run");
        for class in
            [None, Some(FailureClass::Transient), Some(FailureClass::TimedOut), Some(FailureClass::UnknownBilled)]
        {
            assert_eq!(known(&[free(class, None)]), (None, true), "{class:?}");
            assert_eq!(known(&[priced.clone(), free(class, None)]), (Some(3), true), "{class:?}");
        }
        let consumed = Attempt { cost: None, ..attempt(1, Some(FailureClass::Fatal), None) };
        assert_eq!(known(&[consumed]), (None, true));
        let crashed = History { unknown_billed: 3, ..History::default() };
        assert_eq!(crashed.known_cost(), None, "what its workers died of may have been billed");
        let later = History { cost: Some(Usd::from_nanos(3)), ..crashed };
        assert_eq!((later.known_cost(), later.is_cost_unknown()), (Some(Usd::from_nanos(3)), true));
        let told = Attempt { class: Some(FailureClass::UnknownBilled), ..priced };
        assert_eq!(known(slice::from_ref(&told)), (Some(3), false), "guessed, and told as such");
        let of = |recent| History { cost: Some(Usd::from_nanos(3)), recent, ..History::default() };
        let long = Attempt { code: Some("output_too_large".into()), ..attempt(1, Some(FailureClass::Fatal), None) };
        assert!(of(vec![long]).is_cost_guessed());
        let (guessed, exact) = (of(vec![told, attempt(2, None, None)]), of(vec![attempt(1, None, None)]));
        assert_eq!([guessed.is_cost_guessed(), exact.is_cost_guessed(), later.is_cost_guessed()], [true, false, false]);
        assert_eq!([later.is_cost_partial(), exact.is_cost_partial()], [true, false]);
    }

    #[test]
    fn answers_that_were_put_aside_are_counted_however_many_attempts_fail_after_them() {
        let mut history = History::default();
        for n in 1..=9 {
            history.push(attempt(n, None, Some("truncated")));
        }
        for n in 10..=40 {
            history.push(attempt(n, Some(FailureClass::Transient), Some("http_500")));
        }
        assert_eq!((history.put_aside(), history.recent.len(), history.recent[9].n), (9, History::KEPT, 40));
        assert_eq!(history.usage.input_tokens, 80);
    }

    #[test]
    fn an_attempt_has_the_class_of_its_failure_or_of_what_is_wrong_with_its_answer() {
        let name = |class, code| attempt(1, class, code).class_name();
        assert_eq!((name(None, None), name(None, Some("refused"))), (None, Some("refused")));
        assert_eq!(name(Some(FailureClass::Fatal), Some("refused")), Some("fatal"), "a failure's code is its own");
        assert_eq!(name(None, Some("complete")), None);
    }
}
