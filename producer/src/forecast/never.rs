//! Jobs that a cap never lets through as it stands: they need more than all of it, or may cost more. A worker ends those above
//! a limit as it is configured; one that was lowered may be raised again, and money may be allowed, so the others wait.

use promptq_common::job::Job;
use promptq_common::limits::{Amounts, Measure, Size};
use promptq_common::outcome::Usd;
use promptq_worker::size;

use super::weigh::Stand;
use super::{Forecast, Forecaster, Seat};
use crate::submit::jobs;

/// What becomes of a job that a cap never lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Never {
    /// It ends dead, and does not wait.
    is_dead: bool,
    /// The cap, by number.
    stand: usize,
}

impl Forecaster {
    /// The ways that a job may go, past those that it is too large for. All of them, and the cap that it is above, where it
    /// gets by none.
    pub(super) fn passable(&self, job: &Job, seats: Vec<Seat>) -> (Option<Never>, Vec<Seat>) {
        if self.stands.is_empty() {
            return (None, seats);
        }
        let above: Vec<_> = seats.iter().map(|seat| self.above(job, seat)).collect();
        match above.iter().copied().find(|above| above.is_none_or(|above| !above.is_dead)) {
            Some(None) => {
                let open = seats.into_iter().zip(above).filter(|(_, above)| above.is_none());
                (None, open.map(|(seat, _)| seat).collect())
            }
            Some(waits) => (waits, seats),
            None => (above.last().copied().flatten(), seats),
        }
    }

    /// The limit that a job is larger than; the one that it dies of first.
    fn above(&self, job: &Job, seat: &Seat) -> Option<Never> {
        let (under, certain) = (self.under(&seat.limit_key), self.certain(job, seat));
        let limits = || self.caps(&under).filter(|(_, stand)| stand.cap.measure != Measure::Usd);
        let is_above = |stand: &Stand, most: i64| certain.of(stand.cap.measure) > most;
        let dead = limits().find(|(_, stand)| stand.configured.is_some_and(|most| is_above(stand, most)));
        let first = dead.or_else(|| limits().find(|(_, stand)| is_above(stand, stand.cap.most)));
        first.map(|(stand, _)| Never { is_dead: dead.is_some(), stand })
    }

    /// The cap on money, the lowest one, that a job may cost more than all of.
    pub(super) fn unpayable(&self, under: &[usize], worst: Option<&Usd>) -> Option<Never> {
        let worst = worst?.as_nanos();
        let money = self.caps(under).filter(|(_, stand)| stand.cap.measure == Measure::Usd);
        let lowest = money.min_by_key(|(_, stand)| stand.cap.most).filter(|(_, stand)| stand.cap.most < worst);
        lowest.map(|(stand, _)| Never { is_dead: false, stand })
    }

    /// What counts of a call before it is answered: however long the answer will be is a guess, and stops nobody.
    fn certain(&self, job: &Job, seat: &Seat) -> Amounts {
        let Size { max_tokens, .. } = size::size(&job.work);
        let output_upfront = seat.counts_upfront && max_tokens.is_some();
        let Amounts { input, output, .. } = self.guess(job, &seat.limit_key, (max_tokens, output_upfront));
        Amounts { requests: 1, input, output: if output_upfront { output } else { 0 }, ..Amounts::NONE }
    }

    /// The caps of these limit keys, and those of all jobs.
    fn caps(&self, under: &[usize]) -> impl Iterator<Item = (usize, &Stand)> {
        let stands = self.stands.iter().enumerate();
        stands.filter(move |(_, stand)| stand.place.is_none_or(|place| under.contains(&place)))
    }
}

impl Forecast {
    /// A line for each cap that never lets some jobs through.
    pub(super) fn barred(&self) -> Vec<String> {
        let line = |(never, count): (&Never, &u64)| {
            let stand = self.stands.get(never.stand)?;
            let (about, what) = match stand.cap.measure {
                Measure::Usd => ("money ", "may cost"),
                Measure::Requests
                | Measure::InputTokens
                | Measure::OutputTokens
                | Measure::Tokens
                | Measure::Concurrent => ("limits", "need"),
            };
            let becomes = if never.is_dead { "dead, as larger_than_limit" } else { "waiting" };
            Some(format!("{about}  never called: {}, {becomes}: they {what} more than all of {stand}", jobs(*count)))
        };
        self.never.iter().filter_map(line).collect()
    }

    /// How many die of a limit, and how many wait until a person allows more.
    pub(super) fn barred_counts(&self) -> (u64, u64) {
        let of =
            |is_dead| self.never.iter().filter(|(never, _)| never.is_dead == is_dead).map(|(_, count)| count).sum();
        (of(true), of(false))
    }
}
