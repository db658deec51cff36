//! Whose turn it is: queues by weight, bands 8 : 3 : 1, lanes of a band one after another. Pure; remembers its place
//! between calls, so that shares hold however small each call is.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::job::{Band, Lane, Queue};

/// A lane that could be leased from now, and how many jobs at most.
#[derive(Clone, Debug)]
pub(in crate::broker) struct Open {
    pub(in crate::broker) lane: Lane,
    pub(in crate::broker) room: u32,
}

/// The turns taken so far.
#[derive(Debug, Default)]
pub(in crate::broker) struct Rounds {
    queues: HashMap<Queue, i64>,
    bands: HashMap<(Queue, Band), i64>,
    last: HashMap<(Queue, Band), Lane>,
}

/// What is still to be had in one call: the lanes of each queue and band, as places in the list of open lanes.
type Waiting = BTreeMap<Queue, BTreeMap<Band, VecDeque<usize>>>;

impl Rounds {
    /// Up to `total` turns, as places in `open`; every lane at most `room` times.
    pub(in crate::broker) fn take(&mut self, weights: &[(Queue, u32)], open: &[Open], total: u32) -> Vec<usize> {
        let mut room: Vec<u32> = open.iter().map(|open| open.room).collect();
        let mut waiting = self.line_up(open);
        let mut turns = Vec::new();
        while turns.len() < total as usize && !waiting.is_empty() {
            let shares: Vec<(Queue, i64)> = waiting
                .keys()
                .map(|queue| {
                    let weight = weights.iter().find(|(name, _)| name == queue).map_or(1, |(_, weight)| *weight);
                    (queue.clone(), i64::from(weight.max(1)))
                })
                .collect();
            let Some(queue) = next_turn(&mut self.queues, &shares) else { break };
            let Some(bands) = waiting.get_mut(&queue) else { break };
            let shares: Vec<_> = bands.keys().map(|&band| ((queue.clone(), band), i64::from(band.weight()))).collect();
            let Some((_, band)) = next_turn(&mut self.bands, &shares) else { break };
            let Some(place) = bands.get_mut(&band).and_then(VecDeque::pop_front) else { break };
            turns.push(place);
            room[place] -= 1;
            if room[place] > 0 {
                bands.entry(band).or_default().push_back(place);
            } else if bands.get(&band).is_some_and(VecDeque::is_empty) {
                bands.remove(&band);
            }
            if bands.is_empty() {
                waiting.remove(&queue);
            }
            self.last.insert((queue, band), open[place].lane.clone());
        }
        turns
    }

    /// The open lanes by queue and band, each band beginning after the lane that had the last turn.
    fn line_up(&self, open: &[Open]) -> Waiting {
        let mut waiting = Waiting::new();
        for (place, lane) in open.iter().enumerate().filter(|(_, open)| open.room > 0) {
            let bands = waiting.entry(lane.lane.queue.clone()).or_default();
            bands.entry(lane.lane.band).or_default().push_back(place);
        }
        for (queue, bands) in &mut waiting {
            for (&band, places) in bands {
                let places = places.make_contiguous();
                places.sort_by(|&a, &b| open[a].lane.cmp(&open[b].lane));
                if let Some(last) = self.last.get(&(queue.clone(), band)) {
                    let after = places.partition_point(|&place| open[place].lane <= *last);
                    places.rotate_left(after);
                }
            }
        }
        waiting
    }
}

/// Smooth weighted turns: everyone earns its share, the richest goes and pays what all of them earned.
fn next_turn<K: Clone + Eq + std::hash::Hash>(credits: &mut HashMap<K, i64>, shares: &[(K, i64)]) -> Option<K> {
    let mut best: Option<(&K, i64)> = None;
    for (key, share) in shares {
        let credit = credits.entry(key.clone()).or_insert(0);
        *credit += share;
        if best.is_none_or(|(_, most)| *credit > most) {
            best = Some((key, *credit));
        }
    }
    let (key, _) = best?;
    let all: i64 = shares.iter().map(|(_, share)| share).sum();
    *credits.get_mut(key)? -= all;
    Some(key.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::ModelName;

    fn open(queue: &str, model: &str, band: Band, room: u32) -> Open {
        let lane = Lane { queue: Queue::new(queue).unwrap(), model: Some(ModelName::new(model)), band };
        Open { lane, room }
    }

    fn shares(weights: &[(Queue, u32)], lanes: &[Open], calls: usize, each: u32) -> Vec<usize> {
        let mut rounds = Rounds::default();
        let mut counts = vec![0; lanes.len()];
        for _ in 0..calls {
            for place in rounds.take(weights, lanes, each) {
                counts[place] += 1;
            }
        }
        counts
    }

    #[test]
    fn bands_are_served_eight_three_one_however_small_the_calls() {
        let lanes: Vec<_> = Band::ALL.map(|band| open("q", "m", band, 1_000)).into();
        let weights = [(Queue::new("q").unwrap(), 1)];
        assert_eq!(shares(&weights, &lanes, 120, 1), [80, 30, 10]);
        assert_eq!(shares(&weights, &lanes, 1, 120), [80, 30, 10]);
    }

    #[test]
    fn queues_are_served_by_weight_and_their_lanes_in_turn() {
        let lanes = [
            open("a", "x", Band::Normal, 1_000),
            open("a", "y", Band::Normal, 1_000),
            open("b", "x", Band::Normal, 1_000),
        ];
        let weights = [(Queue::new("a").unwrap(), 2), (Queue::new("b").unwrap(), 1)];
        assert_eq!(shares(&weights, &lanes, 60, 1), [20, 20, 20]);
        assert_eq!(shares(&weights, &lanes, 12, 5), [20, 20, 20]);
    }

    #[test]
    fn a_lane_alone_gets_everything_within_its_room() {
        let lanes = [open("q", "m", Band::Low, 7), open("q", "n", Band::High, 0)];
        assert_eq!(shares(&[], &lanes, 1, 50), [7, 0]);
    }
}
