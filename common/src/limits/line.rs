//! The jobs of one worker that were opened and wait for their reservation under one limit key: first come first. Pure.

use std::collections::VecDeque;

use super::amount::Amounts;
use super::ask::STEPS;
use super::need::{Need, Portion};

#[derive(Debug)]
struct Waiting {
    ticket: u64,
    need: Need,
    /// It waits for another key before this one.
    aside: bool,
}

/// They wait here.
#[derive(Debug, Default)]
pub(super) struct Line {
    all: VecDeque<Waiting>,
    tickets: u64,
}

impl Line {
    /// Puts a job at the end of the line. One that stands aside is in nobody's way until it does so no longer.
    pub(super) fn enter(&mut self, need: &Need, aside: bool) -> u64 {
        self.tickets += 1;
        self.all.push_back(Waiting { ticket: self.tickets, need: *need, aside });
        self.tickets
    }

    pub(super) fn leave(&mut self, ticket: u64) {
        if let Some(place) = self.all.iter().position(|waiting| waiting.ticket == ticket) {
            self.all.remove(place);
        }
    }

    /// Whether that is news of this place.
    pub(super) fn set_aside(&mut self, ticket: u64, aside: bool) -> bool {
        let place = self.all.iter_mut().find(|waiting| waiting.ticket == ticket);
        place.is_some_and(|waiting| std::mem::replace(&mut waiting.aside, aside) != aside)
    }

    fn going(&self) -> impl Iterator<Item = &Waiting> {
        self.all.iter().filter(|waiting| !waiting.aside)
    }

    /// Those that wait for this key and no other.
    pub(super) fn waiting(&self) -> usize {
        self.going().count()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.going().next().is_none()
    }

    /// Who is first, and what it needs.
    pub(super) fn first(&self) -> Option<(u64, Portion)> {
        self.going().next().map(|waiting| (waiting.ticket, waiting.need.portion()))
    }

    /// What all of them need.
    pub(super) fn sum(&self) -> Portion {
        self.going().fold(Portion::default(), |sum, waiting| sum + waiting.need.portion())
    }

    /// What the first of them needs, the first two, and so on.
    pub(super) fn steps(&self) -> Vec<Portion> {
        let add = |sum: &mut Portion, waiting: &Waiting| {
            *sum = *sum + waiting.need.portion();
            Some(*sum)
        };
        self.going().take(STEPS).scan(Portion::default(), add).collect()
    }

    /// What that place and all before it need, if it is one of the first.
    pub(super) fn up_to(&self, ticket: u64) -> Option<Amounts> {
        let mut sum = Amounts::NONE;
        for waiting in self.going().take(STEPS) {
            sum += waiting.need.amounts;
            if waiting.ticket == ticket {
                return Some(sum);
            }
        }
        None
    }
}
