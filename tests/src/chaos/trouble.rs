//! What happens to the broker in a storm, when, and for how long.

use std::fmt;
use std::time::{Duration, Instant};

use super::rabbit::HEARTBEAT;

/// One thing that may happen to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Killed with -9, and started again on its data.
    Kill,
    /// Stopped in its tracks.
    Pause,
    /// Unreachable for the workers, their connections reset.
    Cut,
    /// Out of memory, as it thinks: it takes no messages.
    Alarm,
}

/// How often each happens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Troubles {
    /// Kills of the broker; none where it is no server.
    pub kills: u64,
    /// Pauses of it, each longer than two heartbeats. RabbitMQ only, as the others.
    pub pauses: u64,
    /// Cuts between the workers and it.
    pub cuts: u64,
    /// Memory alarms.
    pub alarms: u64,
}

impl Trouble {
    /// How long it lasts.
    pub(super) fn length(self) -> Duration {
        match self {
            // As long as the server takes to start again.
            Self::Kill => Duration::ZERO,
            Self::Pause => HEARTBEAT * 2 + Duration::from_secs(2),
            Self::Cut => Duration::from_secs(2),
            Self::Alarm => Duration::from_secs(5),
        }
    }
}

impl Troubles {
    pub(super) fn count(self) -> u64 {
        self.kills + self.pauses + self.cuts + self.alarms
    }

    /// All of them, each kind spread among the others.
    fn in_order(self) -> Vec<Trouble> {
        let kinds = [
            (Trouble::Kill, self.kills),
            (Trouble::Cut, self.cuts),
            (Trouble::Pause, self.pauses),
            (Trouble::Alarm, self.alarms),
        ];
        let mut all: Vec<(u64, Trouble)> = Vec::new();
        for (kind, count) in kinds {
            all.extend((0..count).map(|place| ((2 * place + 1) * 1_000 / (2 * count), kind)));
        }
        all.sort_by_key(|(place, _)| *place);
        all.into_iter().map(|(_, kind)| kind).collect()
    }
}

impl fmt::Display for Troubles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} kills, {} pauses, {} cuts, {} alarms", self.kills, self.pauses, self.cuts, self.alarms)
    }
}

/// What is yet to come, and what goes on.
#[derive(Debug)]
pub(super) struct Forecast {
    all: Vec<Trouble>,
    done: usize,
    present: Option<(Trouble, Instant)>,
}

/// What is to be done now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Begin(Trouble),
    End(Trouble),
}

impl Forecast {
    pub(super) fn of(troubles: Troubles) -> Self {
        Self { all: troubles.in_order(), done: 0, present: None }
    }

    /// The next turn when `ended` of `jobs` have; one trouble at a time, evenly over the jobs.
    pub(super) fn turn(&mut self, ended: u64, jobs: u64) -> Option<Turn> {
        if let Some((trouble, over)) = self.present {
            return (Instant::now() >= over).then(|| {
                self.present = None;
                Turn::End(trouble)
            });
        }
        let next = *self.all.get(self.done)?;
        let due = ended * (self.all.len() as u64 + 1) > jobs * (self.done as u64 + 1);
        due.then(|| {
            self.done += 1;
            self.present = Some((next, Instant::now() + next.length()));
            Turn::Begin(next)
        })
    }

    /// What goes on and has to be ended.
    pub(super) fn present(&mut self) -> Option<Trouble> {
        self.present.take().map(|(trouble, _)| trouble)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn troubles_come_one_at_a_time_and_mixed() {
        let mut forecast = Forecast::of(Troubles { kills: 2, cuts: 1, ..Troubles::default() });
        assert_eq!(forecast.all, [Trouble::Kill, Trouble::Cut, Trouble::Kill]);
        assert_eq!(forecast.turn(25, 100), None);
        assert_eq!(forecast.turn(26, 100), Some(Turn::Begin(Trouble::Kill)));
        assert_eq!(forecast.turn(80, 100), Some(Turn::End(Trouble::Kill)));
        assert_eq!(forecast.turn(80, 100), Some(Turn::Begin(Trouble::Cut)));
        assert_eq!(forecast.turn(100, 100), None);
        assert_eq!(forecast.present(), Some(Trouble::Cut));
    }
}
