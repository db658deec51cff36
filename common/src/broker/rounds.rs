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

/// What somebody who waits for a turn has saved up.
#[derive(Clone, Copy, Debug)]
struct Purse {
    /// What each round brings.
    share: i64,
    credit: i64,
}

/// The lanes of a band that are still to have turns, as places in the list of open lanes.
struct BandLine {
    band: Band,
    purse: Purse,
    places: VecDeque<usize>,
    /// Who had the last turn of this call.
    last: Option<usize>,
}

/// The bands of a queue.
struct QueueLine<'a> {
    queue: &'a Queue,
    purse: Purse,
    bands: Vec<BandLine>,
    /// Which of them are still to have turns, in their order.
    left: Vec<usize>,
}

impl Rounds {
    /// Up to `total` turns, as places in `open`; every lane at most `room` times.
    pub(in crate::broker) fn take(&mut self, weights: &[(Queue, u32)], open: &[Open], total: u32) -> Vec<usize> {
        let mut room: Vec<u32> = open.iter().map(|open| open.room).collect();
        let mut lines = self.line_up(weights, open);
        let mut left: Vec<usize> = (0..lines.len()).collect();
        let mut turns = Vec::new();
        while turns.len() < total as usize {
            let Some(at) = next_turn(&mut lines, &left, |line| &mut line.purse) else { break };
            let QueueLine { bands, left: bands_left, .. } = &mut lines[at];
            let Some(which) = next_turn(bands, bands_left, |band| &mut band.purse) else { break };
            let band = &mut bands[which];
            let Some(place) = band.places.pop_front() else { break };
            turns.push(place);
            band.last = Some(place);
            room[place] -= 1;
            if room[place] > 0 {
                band.places.push_back(place);
            } else if band.places.is_empty() {
                bands_left.retain(|&band| band != which);
            }
            if bands_left.is_empty() {
                left.retain(|&line| line != at);
            }
        }
        self.remember(lines, open);
        turns
    }

    /// The open lanes by queue and band, each band beginning after the lane that had the last turn.
    fn line_up<'a>(&self, weights: &[(Queue, u32)], open: &'a [Open]) -> Vec<QueueLine<'a>> {
        let mut waiting: BTreeMap<&Queue, BTreeMap<Band, VecDeque<usize>>> = BTreeMap::new();
        for (place, lane) in open.iter().enumerate().filter(|(_, open)| open.room > 0) {
            let bands = waiting.entry(&lane.lane.queue).or_default();
            bands.entry(lane.lane.band).or_default().push_back(place);
        }
        let weights: HashMap<&Queue, u32> = weights.iter().map(|(queue, weight)| (queue, *weight)).collect();
        let line = |(queue, bands): (&'a Queue, BTreeMap<Band, VecDeque<usize>>)| {
            let bands: Vec<_> =
                bands.into_iter().map(|(band, places)| self.band_line(queue, band, places, open)).collect();
            let share = i64::from(weights.get(queue).copied().unwrap_or(1).max(1));
            let purse = Purse { share, credit: self.queues.get(queue).copied().unwrap_or(0) };
            QueueLine { queue, purse, left: (0..bands.len()).collect(), bands }
        };
        waiting.into_iter().map(line).collect()
    }

    fn band_line(&self, queue: &Queue, band: Band, mut places: VecDeque<usize>, open: &[Open]) -> BandLine {
        let of = (queue.clone(), band);
        let sorted = places.make_contiguous();
        sorted.sort_by(|&a, &b| open[a].lane.cmp(&open[b].lane));
        if let Some(last) = self.last.get(&of) {
            let after = sorted.partition_point(|&place| open[place].lane <= *last);
            sorted.rotate_left(after);
        }
        let purse = Purse { share: i64::from(band.weight()), credit: self.bands.get(&of).copied().unwrap_or(0) };
        BandLine { band, purse, places, last: None }
    }

    fn remember(&mut self, lines: Vec<QueueLine<'_>>, open: &[Open]) {
        for QueueLine { queue, purse, bands, .. } in lines {
            self.queues.insert(queue.clone(), purse.credit);
            for BandLine { band, purse, last, .. } in bands {
                self.bands.insert((queue.clone(), band), purse.credit);
                if let Some(last) = last {
                    self.last.insert((queue.clone(), band), open[last].lane.clone());
                }
            }
        }
    }
}

/// Smooth weighted turns: everyone who is `left` earns its share, the richest goes and pays what all of them earned.
fn next_turn<T>(lines: &mut [T], left: &[usize], purse: impl Fn(&mut T) -> &mut Purse) -> Option<usize> {
    let mut best: Option<(usize, i64)> = None;
    let mut all = 0;
    for &at in left {
        let purse = purse(&mut lines[at]);
        purse.credit += purse.share;
        all += purse.share;
        if best.is_none_or(|(_, most)| purse.credit > most) {
            best = Some((at, purse.credit));
        }
    }
    let (at, _) = best?;
    purse(&mut lines[at]).credit -= all;
    Some(at)
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
