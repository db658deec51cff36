//! The turns that a lease was asked for, and what it gave brought into their order. Whose turn it is: `broker/rounds.rs`.

use std::collections::{HashMap, VecDeque};

use crate::broker::backend::RawDelivery;
use crate::broker::rounds::Open;
use crate::job::Lane;

/// Whose turns a flight was asked for.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// The lanes asked, each once.
    pub(super) lanes: Vec<Lane>,
    /// The turns, as places among them.
    order: Vec<usize>,
}

impl Turns {
    /// The turns at these places of `open`, and how many each lane has.
    pub(super) fn of(open: &[Open], places: &[usize]) -> (Self, Vec<u32>) {
        let (mut turns, mut counts, mut known) = (Self::default(), Vec::new(), vec![None; open.len()]);
        for &place in places {
            let lane = *known[place].get_or_insert_with(|| {
                turns.lanes.push(open[place].lane.clone());
                counts.push(0);
                counts.len() - 1
            });
            counts[lane] += 1;
            turns.order.push(lane);
        }
        (turns, counts)
    }

    /// What was leased, in the order of the turns.
    pub(super) fn sort(&self, leased: Vec<RawDelivery>) -> Vec<RawDelivery> {
        // Calls answer lane by lane: of one lane there is nothing to sort.
        if self.lanes.len() < 2 {
            return leased;
        }
        let mut by_lane = HashMap::<Lane, VecDeque<RawDelivery>>::new();
        for job in leased {
            match by_lane.get_mut(&job.head.lane) {
                Some(jobs) => jobs.push_back(job),
                None => _ = by_lane.insert(job.head.lane.clone(), VecDeque::from([job])),
            }
        }
        self.order.iter().filter_map(|&at| by_lane.get_mut(&self.lanes[at])?.pop_front()).collect()
    }
}
